//! What the command says: one JSON object a line.

use ksi_provider::{
    StopReason, Usage,
    failure::{Failure, quoted, with_status},
};
use ksi_provider_http::{End, problem::invalid};
use ksi_sdk::prelude::{Deserialize, Duration, Refusal};
use serde_json::Value;

use crate::NAME;

/// Said of a session that the command does not have any more.
const GONE: &str = "No conversation found with session ID";

/// One line. Whatever else is in it does not matter here.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line {
    System {
        #[serde(default)]
        model: Option<String>,
    },
    StreamEvent {
        event: Event,
        /// Of a helper that the model has called; not a part of the answer.
        #[serde(default)]
        parent_tool_use_id: Option<String>,
    },
    Result(Box<Ending>),
    /// Whole messages, which come in pieces before, and what may come to be.
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Event {
    ContentBlockDelta {
        delta: Piece,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Piece {
    TextDelta {
        text: String,
    },
    #[serde(other)]
    Other,
}

/// The last line.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Ending {
    subtype: String,
    is_error: bool,
    result: Option<String>,
    errors: Vec<Value>,
    session_id: Option<String>,
    stop_reason: Option<String>,
    total_cost_usd: Option<f64>,
    usage: Counts,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Counts {
    input_tokens: u64,
    output_tokens: u64,
    cache_creation_input_tokens: u64,
    cache_read_input_tokens: u64,
}

/// What a line is to us.
#[derive(Debug)]
pub(crate) enum Said {
    /// The next piece of the text.
    Text(String),
    /// The end.
    End(Box<Ending>),
    Nothing,
}

/// Reads the lines of a run.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    model: Option<String>,
}

impl Reading {
    pub(crate) fn read(&mut self, line: &[u8]) -> Result<Said, Refusal> {
        let unread = |error| invalid(NAME, format!("a line of it cannot be read: {error}"));
        match serde_json::from_slice(line).map_err(unread)? {
            Line::System { model } => {
                self.model = model.or_else(|| self.model.take());
                Ok(Said::Nothing)
            }
            Line::StreamEvent {
                event: Event::ContentBlockDelta { delta: Piece::TextDelta { text } },
                parent_tool_use_id: None,
            } => Ok(Said::Text(text)),
            Line::Result(ending) => Ok(Said::End(ending)),
            Line::StreamEvent { .. } | Line::Other => Ok(Said::Nothing),
        }
    }

    /// What is told at the end.
    pub(crate) fn end(self, ending: &Ending, asked: Option<String>, ignored: Vec<String>) -> End {
        let counts = &ending.usage;
        let prompt =
            [counts.input_tokens, counts.cache_creation_input_tokens, counts.cache_read_input_tokens]
                .into_iter()
                .fold(0, u64::saturating_add);
        let usage = Usage {
            prompt_tokens: prompt,
            completion_tokens: counts.output_tokens,
            total_tokens: prompt.saturating_add(counts.output_tokens),
            cached_tokens: counts.cache_read_input_tokens,
            cache_write_tokens: Some(counts.cache_creation_input_tokens),
            cost_usd: ending.total_cost_usd,
            ..Usage::default()
        };
        let model = self.model.or(asked).unwrap_or_else(|| "default".into());
        End { model, usage, seed: None, ignored, response_id: ending.session_id.clone() }
    }
}

impl Ending {
    /// The text, where it did not come in pieces.
    pub(crate) fn text(&self) -> &str {
        self.result.as_deref().unwrap_or_default()
    }

    /// Why the answer ends.
    ///
    /// # Errors
    ///
    /// A run that failed.
    pub(crate) fn stop_reason(&self, now: Duration) -> Result<StopReason, Refusal> {
        if self.is_error || self.subtype != "success" {
            let errors = self.errors.iter().filter_map(Value::as_str);
            let said: Vec<&str> = self.result.as_deref().into_iter().chain(errors).collect();
            let said = if said.is_empty() { self.subtype.clone() } else { said.join("; ") };
            return Err(failed(&said, Failure::Overloaded, now));
        }
        Ok(match self.stop_reason.as_deref() {
            Some("max_tokens" | "model_context_window_exceeded") => StopReason::Length,
            Some("refusal") => StopReason::ContentFilter,
            _ => StopReason::Stop,
        })
    }
}

/// Whether a run failed for its session only.
pub(crate) fn is_about_the_session(refusal: &Refusal) -> bool {
    refusal.message.contains(GONE)
}

/// The refusal of a run that failed with these words; `otherwise` is what it is
/// where they are not known. `now` is the time since 1970.
pub(crate) fn failed(said: &str, otherwise: Failure, now: Duration) -> Refusal {
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let status = said.split_once("API Error: ").and_then(|(_, rest)| rest.get(..3)?.parse::<u16>().ok());
    let login =
        ["Invalid API key", "/login", "OAuth", "authentication_error", "API Error: 401", "API Error: 403"];
    let failure = if has(&login) {
        Failure::Unauthorized
    } else if has(&["Credit balance"]) {
        Failure::Quota
    } else if has(&["limit reached", "hit your limit"]) {
        Failure::RateLimited
    } else if has(&["Prompt is too long", "prompt is too long"]) {
        Failure::TooLarge
    } else {
        status.and_then(Failure::of_status).unwrap_or(otherwise)
    };
    let hint = match failure {
        Failure::Unauthorized => {
            "run `claude` once and log in, with `home` under [plugins.claude-cli.config] as its home; or \
             `ksi secret set claude` and `api_key = \"secret:claude\"`"
        }
        Failure::Quota => "look at the account's limits and bills at the provider",
        Failure::TooLarge => "shorten the conversation, or choose a model with a larger context",
        Failure::InvalidAnswer => {
            "does this version of `claude` know all arguments under [plugins.claude-cli.config]?"
        }
        _ => "try again later, or with another provider",
    };
    let refusal = failure.refusal(format!("`claude` failed: {}", quoted(said))).hint(hint);
    match status {
        Some(status) => with_status(refusal, status, None),
        // The limit of an account says when it is over, in seconds since 1970.
        None if refusal.retryable => {
            let over =
                said.rsplit_once('|').and_then(|(_, at)| at.trim().parse().ok()).map(Duration::from_secs);
            match over.and_then(|at| at.checked_sub(now)) {
                Some(wait) => refusal.retry_after_ms(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
                None => refusal,
            }
        }
        None => refusal,
    }
}

#[cfg(test)]
mod tests {
    use ksi_sdk::prelude::Code;

    use super::*;

    #[test]
    fn what_a_failed_run_says_has_its_kind() {
        let now = Duration::from_secs(1000);
        for (said, code, retryable, wait) in [
            ("Invalid API key · Please run /login", Code::Denied, false, None),
            ("API Error: 401 {\"type\":\"error\"}", Code::Denied, false, None),
            ("API Error: 404 {\"type\":\"error\"}", Code::NotFound, false, None),
            ("API Error: 529 {\"type\":\"error\"}", Code::Unavailable, true, None),
            ("API Error: 429 slow down", Code::Busy, true, None),
            ("Credit balance is too low", Code::Denied, false, None),
            ("Claude AI usage limit reached|1060", Code::Busy, true, Some(60_000)),
            ("Claude AI usage limit reached|10", Code::Busy, true, None),
            ("Prompt is too long", Code::TooLarge, false, None),
            ("error: unknown option '--tools'", Code::Unavailable, false, None),
        ] {
            let refusal = failed(said, Failure::InvalidAnswer, now);
            assert_eq!((refusal.code, refusal.retryable), (code, retryable), "{said}");
            assert_eq!(refusal.retry_after_ms, wait, "{said}");
            assert!(!refusal.hint.is_empty(), "{said}");
        }
    }
}
