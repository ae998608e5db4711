//! A model's answer as it streams: the question, the pieces, the summary.
//!
//! `ask`, `chat`, `up` and `bench` share it. It decides nothing about models;
//! `completion` does, and says in the summary who answered and why.

use std::time::Duration;

use ksi_client::{CallOptions, Client, Part};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    args::Sampling,
    error::{Failure, Result},
    invocation::readable,
    output::{Output, elapsed},
    time::whole_ms,
};

/// Payload of `completion:request`.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Question {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) messages: Option<Vec<Message>>,
    /// Whether the oldest of them may be left out where there is no room.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) trim: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) conversation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) system: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) top_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) top_k: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) min_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) repetition_penalty: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) seed: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) stop: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) fallbacks: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) response_format: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) priority: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timeout_ms: Option<u64>,
}

impl Question {
    /// A question with the options of the command line.
    pub(crate) fn new(sampling: &Sampling, timeout: Option<Duration>) -> Self {
        let sampling = sampling.clone();
        Self {
            system: sampling.system,
            model: sampling.model,
            max_tokens: sampling.max_tokens,
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: sampling.top_k,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            seed: sampling.seed,
            stop: sampling.stop,
            timeout_ms: timeout.map(whole_ms),
            ..Self::default()
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Message {
    /// `user`, `assistant` or `system`.
    pub(crate) role: &'static str,
    /// What was said.
    pub(crate) content: String,
}

/// The parts of the summary that `ksi` shows; a program gets all of it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Summary {
    pub(crate) text: String,
    pub(crate) answered: Answered,
    pub(crate) why: String,
    pub(crate) toy: bool,
    pub(crate) stop_reason: String,
    pub(crate) usage: Usage,
    pub(crate) timings: Timings,
    pub(crate) limited_by: Option<LimitedBy>,
    pub(crate) context: Option<Context>,
    pub(crate) conversation_id: Option<String>,
}

/// Who answered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Answered {
    pub(crate) provider: String,
    pub(crate) model: String,
}

/// Tokens used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
}

/// The budget that has limited the answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct LimitedBy {
    pub(crate) budget: String,
}

/// What the model was given to read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Context {
    pub(crate) room: u64,
    pub(crate) dropped_messages: u64,
}

/// How long the model took.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Timings {
    pub(crate) generate_ms: f64,
    pub(crate) first_token_ms: f64,
    pub(crate) generate_per_second: f64,
}

impl Summary {
    /// Reads the summary of a completion.
    ///
    /// # Errors
    ///
    /// Fails where it has another shape.
    pub(crate) fn of(end: &Value) -> Result<Self> {
        Self::deserialize(end).map_err(|error| {
            Failure::failed(format!("the summary of the answer has an unknown form: {error}"))
                .hint("are ksi and ksid of one version? see: ksi version")
        })
    }

    /// Who answered and how fast, in one line.
    pub(crate) fn footer(&self) -> String {
        let Self { answered, usage, timings, .. } = self;
        let mut line = format!("{}/{}", answered.provider, answered.model);
        line.push_str(&format!(" · {} tokens", usage.completion_tokens));
        if timings.generate_per_second > 0.0 {
            line.push_str(&format!(" · {:.1} tokens/s", timings.generate_per_second));
        }
        if timings.first_token_ms > 0.0 {
            let first = Duration::from_secs_f64(timings.first_token_ms / 1000.0);
            line.push_str(&format!(" · first after {}", elapsed(first)));
        }
        if !self.why.is_empty() {
            line.push_str(&format!(" · {}", self.why));
        }
        line
    }

    /// Says on standard error what a person has to know of the answer, and, where
    /// that was asked for, who gave it and how fast.
    pub(crate) fn tell(&self, out: Output, verbose: bool) {
        for note in [self.trim_note(), self.cut_note()].into_iter().flatten() {
            out.warn(&note);
        }
        if verbose {
            out.note(&self.footer());
        }
    }

    /// The warning that the answer is not whole, where that is so.
    fn cut_note(&self) -> Option<String> {
        if self.stop_reason != "length" {
            return None;
        }
        let tokens = self.usage.completion_tokens;
        let more = match &self.limited_by {
            Some(LimitedBy { budget }) => {
                format!("the budget `{budget}` paid for no more; --max-tokens NUMBER asks it for more")
            }
            None => "--max-tokens NUMBER allows more, as far as the model's context goes".into(),
        };
        Some(format!("(the answer was cut after {tokens} tokens; {more})"))
    }

    /// The warning that the model has not read all that was said, where that is so.
    fn trim_note(&self) -> Option<String> {
        let Context { room, dropped_messages } = self.context.as_ref()?;
        let messages = match dropped_messages {
            0 => return None,
            1 => "1 earlier message was".into(),
            n => format!("{n} earlier messages were"),
        };
        Some(format!("({messages} left out: there is room for {room} tokens before the answer)"))
    }

    /// The warning that no real model has answered, where that is so.
    pub(crate) fn toy_note(&self) -> Option<String> {
        let Answered { provider, model } = &self.answered;
        let add = "add a real one: ksi model add PATH.gguf";
        match (self.toy, provider.as_str()) {
            (false, _) => None,
            (true, "llama") => Some(format!("({model}, KSI's built-in toy model; {add})")),
            (true, _) => Some(format!("({provider}/{model} is a stand-in and no model; {add})")),
        }
    }
}

/// Asks, hands each piece of text to `on_text` as it comes, and gives the
/// summary. Dropping the future cancels the request in the daemon.
///
/// # Errors
///
/// Fails as the daemon refuses, or as `on_text` does.
pub(crate) async fn stream(
    client: &Client,
    question: &Question,
    options: CallOptions,
    mut on_text: impl FnMut(&str) -> Result<()>,
) -> Result<Value> {
    let mut stream = client.stream("completion:request", question, options).await?;
    while let Some(part) = stream.next().await {
        match part? {
            Part::Chunk(data) => {
                if let Some(text) = readable(&data)?.get("text").and_then(Value::as_str) {
                    on_text(text)?;
                }
            }
            Part::End(data) | Part::Reply(data) => return readable(&data),
            Part::Accepted { .. } => {}
        }
    }
    Err(Failure::failed("the answer ended without a summary").hint("see why: ksi logs"))
}

/// Prints the pieces of one answer and remembers whether its last line is
/// finished.
#[derive(Debug)]
pub(crate) struct Printer {
    out: Output,
    open: bool,
}

impl Printer {
    pub(crate) fn new(out: Output) -> Self {
        Self { out, open: false }
    }

    /// Prints one piece.
    ///
    /// # Errors
    ///
    /// Fails where standard output does.
    pub(crate) fn piece(&mut self, text: &str) -> Result<()> {
        if !text.is_empty() {
            self.open = !text.ends_with('\n');
        }
        self.out.piece(text)
    }

    /// Ends the last line.
    ///
    /// # Errors
    ///
    /// Fails where standard output does.
    pub(crate) fn finish(&mut self) -> Result<()> {
        if std::mem::take(&mut self.open) { self.out.piece("\n") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_question_says_only_what_was_given() {
        let question = Question { prompt: Some("hi".into()), ..Question::new(&Sampling::default(), None) };
        assert_eq!(serde_json::to_value(question).unwrap(), json!({"prompt": "hi"}));
    }

    #[test]
    fn a_question_has_the_options_of_the_command_line() {
        let sampling = Sampling {
            model: Some("llama/x".into()),
            temperature: Some(0.5),
            stop: vec!["END".into()],
            ..Sampling::default()
        };
        let question = Question::new(&sampling, Some(Duration::from_secs(2)));
        assert_eq!(
            serde_json::to_value(question).unwrap(),
            json!({"model": "llama/x", "temperature": 0.5, "stop": ["END"], "timeout_ms": 2000})
        );
    }

    #[test]
    fn the_footer_names_model_and_speed_and_the_note_the_toy() {
        let end = json!({
            "text": "hi", "answered": {"provider": "llama", "model": "ksi-tiny"}, "toy": true,
            "usage": {"prompt_tokens": 1, "completion_tokens": 12, "total_tokens": 13},
            "timings": {"generate_ms": 141.0, "first_token_ms": 8.4, "generate_per_second": 85.04},
            "stop_reason": "stop", "something_newer": true,
        });
        let summary = Summary::of(&end).unwrap();
        assert_eq!(summary.footer(), "llama/ksi-tiny · 12 tokens · 85.0 tokens/s · first after 8 ms");
        assert!(summary.toy_note().unwrap().starts_with("(ksi-tiny, KSI's built-in toy model"));
        let mock = Answered { provider: "mock".into(), model: "echo".into() };
        let note = Summary { answered: mock, ..summary.clone() }.toy_note().unwrap();
        assert!(note.starts_with("(mock/echo is a stand-in and no model"), "{note}");
        assert_eq!(Summary { toy: false, ..summary }.toy_note(), None);
    }

    #[test]
    fn an_answer_that_is_not_whole_says_so_and_how_to_get_more() {
        let note = |end: Value| Summary::of(&end).unwrap().cut_note();
        let mut end = json!({"stop_reason": "length", "usage": {"completion_tokens": 512}});
        assert_eq!(
            note(end.clone()).unwrap(),
            "(the answer was cut after 512 tokens; --max-tokens NUMBER allows more, as far as the model's \
             context goes)"
        );
        end["limited_by"] = json!({"budget": "few", "max_tokens": 512});
        assert!(note(end.clone()).unwrap().contains("the budget `few`"));
        end["stop_reason"] = json!("stop");
        assert_eq!(note(end), None);
    }

    #[test]
    fn what_the_model_has_not_read_is_told() {
        let note = |dropped: u64| {
            let end = json!({"context": {"tokens": 90, "room": 100, "dropped_messages": dropped}});
            Summary::of(&end).unwrap().trim_note()
        };
        assert_eq!(note(0), None);
        assert!(note(1).unwrap().starts_with("(1 earlier message was left out"));
        assert_eq!(
            note(4).unwrap(),
            "(4 earlier messages were left out: there is room for 100 tokens before the answer)"
        );
        assert_eq!(Summary::of(&json!({})).unwrap().trim_note(), None, "nothing was put together");
    }

    #[test]
    fn a_summary_of_another_form_is_a_failure_and_not_a_default() {
        assert!(Summary::of(&json!("text")).is_err());
    }
}
