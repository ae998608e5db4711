//! What `completion:*` answers those who ask for text.
//!
//! What it is asked with is its own: it refuses what it does not know. What it
//! answers is read by others, `ksi` among them, so it stands here. Doc comments
//! are the help that users see.
//!
//! Whoever reads these minds no field more and misses one that is not there: a
//! field that is always told has no default. One that came later has, since
//! answers are kept.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    answer::{Alternative, Timings, TokenLogprobs, ToolCallDelta, Usage, is_zero},
    request::ToolCall,
};

pub mod providers;
pub mod route;
pub mod status;
pub mod usage;

pub use providers::{BreakerInfo, PauseInfo, ProviderInfo, Providers};
pub use route::{Candidate, Route, Stage};
pub use status::{Load, Open, State, Status};
pub use usage::{Budget, LimitedBy, Limits, Spent, UsageAnswer, UsageRow, Used};

/// The next piece of the text.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct Chunk {
    /// The piece; all pieces of one answer in order are its text.
    pub text: String,
    /// Pieces of tool calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
    /// Which of several answers it belongs to, from 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub choice: u32,
    /// How likely its tokens were, where that was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprobs>,
    /// Said instead of text: all pieces before are void, another attempt begins. Only where the
    /// request allowed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarted: Option<Restarted>,
}

/// Another attempt begins after text was sent.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Restarted {
    /// Its number.
    pub attempt: u32,
    /// Who is asked now.
    pub model: ModelName,
    /// What ended the attempt before.
    pub because: String,
}

/// A provider and one of its models.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ModelName {
    /// The provider.
    pub provider: String,
    /// The model, as the provider calls it.
    pub model: String,
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.provider, self.model)
    }
}

/// One attempt at a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Tried {
    /// Its number; the first is 1.
    pub number: u32,
    /// Who was asked.
    pub model: ModelName,
    /// `answered`, or the code of the refusal.
    pub outcome: String,
    /// What the refusal said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Milliseconds from the acceptance of the request to the start of the attempt.
    pub started_ms: u64,
    /// Milliseconds that it took.
    pub took_ms: u64,
    /// Whether some of its text was sent.
    pub text_sent: bool,
}

/// A request that was answered in full.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Completed {
    /// Names the request.
    pub request_id: String,
    /// The whole text.
    pub text: String,
    /// The tools that the model wishes called.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The other answers, where several were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alternatives: Vec<Alternative>,
    /// How likely the tokens of the text were, where that was asked for and the provider can tell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprobs>,
    /// Which model was asked for; of an alias, `alias` and its name.
    pub requested: ModelName,
    /// Which model answered.
    pub answered: ModelName,
    /// Why that one: `as requested`, `default model`, or a sentence; after a failure, what failed.
    pub why: String,
    /// Whether the answer comes from something too small to be of use: a toy model or a mock.
    pub toy: bool,
    /// Why the text ends: `stop` (the model was done), `length`, `stop_string`, `tool_calls` or
    /// `content_filter`.
    pub stop_reason: String,
    /// The budget that let an answer have no more than so many tokens; `length` may be its doing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limited_by: Option<LimitedBy>,
    /// The seed that was used, where the provider tells: with it the answer can be had again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u32>,
    /// What it cost.
    pub usage: Usage,
    /// Where the time went.
    pub timings: Timings,
    /// Milliseconds that the request waited for its turn.
    pub queued_ms: u64,
    /// How many times a provider was asked.
    pub attempts: u32,
    /// Each of these attempts, the one that was answered last.
    #[serde(default)]
    pub tried: Vec<Tried>,
    /// Settings of the request that had no effect, since the provider does not have them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignored: Vec<String>,
    /// The conversation, where the request named one.
    pub conversation_id: Option<String>,
    /// What the model was given to read, where that was put together for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<ContextReport>,
    /// Whether the conversation was remembered, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remembered: Option<bool>,
}

/// What the model was given to read, and what was left out for want of room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ContextReport {
    /// Tokens that the model reads.
    pub tokens: u64,
    /// Tokens that there was room for.
    pub room: u64,
    /// How they were counted: by the model's own tokenizer (`llama:tokenize`), or as an `estimate` of
    /// four bytes each.
    pub counted_by: String,
    /// Messages of the history that the model reads: of what is remembered, and, with `trim`, of those of
    /// the request before its last turn.
    pub history_messages: usize,
    /// The oldest messages of the history, which were left out.
    pub dropped_messages: usize,
    /// Memories that were left out.
    pub dropped_memories: Vec<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_is_left_out_since_there_is_none_of_it_reads_back() {
        let provider =
            json!({"name": "mock", "about": "", "local": true, "concurrency": 1, "running": 0, "queued": 0});
        let read: ProviderInfo = serde_json::from_value(provider.clone()).unwrap();
        assert_eq!(json!(read), provider);
        let candidate = json!({"model": "a/b", "tier": 0, "eligible": true, "wait_ms": 0, "reasons": []});
        let read: Candidate = serde_json::from_value(candidate.clone()).unwrap();
        assert_eq!(json!(read), candidate);
    }

    #[test]
    fn a_figure_that_is_always_told_is_missed_where_it_is_not_there() {
        let used = json!({"calls": 1, "answered": 1, "prompt_tokens": 3, "completion_tokens": 4, "money": 0.0,
                          "one_more": true});
        assert!(serde_json::from_value::<UsageRow>(used.clone()).is_ok());
        for name in ["calls", "answered", "prompt_tokens", "completion_tokens", "money"] {
            let mut less = used.clone();
            less.as_object_mut().unwrap().remove(name);
            let error = serde_json::from_value::<UsageRow>(less).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        for (name, error) in [
            (
                "completion_tokens",
                serde_json::from_value::<Usage>(without(Usage::default(), "completion_tokens")).err(),
            ),
            (
                "generate_ms",
                serde_json::from_value::<Timings>(without(Timings::default(), "generate_ms")).err(),
            ),
        ] {
            assert!(error.is_some_and(|error| error.to_string().contains(name)), "{name}");
        }
    }

    fn without(figures: impl Serialize, name: &str) -> Value {
        let mut figures = json!(figures);
        figures.as_object_mut().unwrap().remove(name).unwrap();
        figures
    }

    #[test]
    fn a_stage_is_shown_as_it_is_written() {
        for stage in [Stage::Tried, Stage::Capability, Stage::Policy, Stage::Health] {
            assert_eq!(json!(stage), stage.as_str());
        }
    }
}
