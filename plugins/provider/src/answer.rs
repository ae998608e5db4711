//! The answer: its pieces while it is made, and the whole of it at the end.

use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, Error},
};
use serde_json::{Map, Value};

use crate::request::ToolCall;

/// A piece of the answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Delta {
    /// The text that is new; may be empty.
    #[serde(default)]
    pub text: String,
    /// Pieces of tool calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
    /// Which of several answers it belongs to, from 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub choice: u32,
    /// How likely the tokens of the text were, where that was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprobs>,
}

impl Delta {
    /// A piece that is text alone.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
pub(crate) fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A piece of a tool call. The first of each call has its id and its name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ToolCallDelta {
    /// Which call of the answer, from 0.
    pub index: u32,
    /// Names the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Which tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The next piece of the JSON text of its arguments.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub arguments: String,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The model ended its turn.
    Stop,
    /// The limit of tokens or the end of the context was reached.
    Length,
    /// One of the stop strings would have come next.
    StopString,
    /// The model waits for the results of its tool calls.
    ToolCalls,
    /// The provider withheld the rest, or the model declined.
    ContentFilter,
}

impl StopReason {
    /// The reason as it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::StopString => "stop_string",
            Self::ToolCalls => "tool_calls",
            Self::ContentFilter => "content_filter",
        }
    }
}

/// The whole answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Generated {
    /// The model that answered, as the provider calls it.
    pub model: String,
    /// The text: all pieces joined.
    pub text: String,
    /// The tools that the model wishes called.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Why it ended.
    pub stop_reason: StopReason,
    /// The other answers, where several were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alternatives: Vec<Alternative>,
    /// How likely the tokens were, where that was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprobs>,
    /// Whether the model is a toy, whose answers are often wrong.
    #[serde(default)]
    pub toy: bool,
    /// The seed that was used, where the provider tells: the same one gives the
    /// same text again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u32>,
    /// Counts of tokens.
    #[serde(default, deserialize_with = "as_told")]
    pub usage: Usage,
    /// Measured times.
    #[serde(default, deserialize_with = "as_told")]
    pub timings: Timings,
    /// Settings of the request that this provider does not have and that had no
    /// effect, by their names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignored: Vec<String>,
    /// What the provider itself calls this answer; its support asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_id: Option<String>,
}

/// Figures as a provider tells them: what it does not tell is 0. Whoever reads them
/// after that has all of them.
fn as_told<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Default + Serialize + DeserializeOwned,
    D: Deserializer<'de>,
{
    let told = Map::deserialize(deserializer)?.into_iter().filter(|(_, figure)| !figure.is_null());
    let mut figures = serde_json::to_value(T::default()).map_err(D::Error::custom)?;
    if let Value::Object(figures) = &mut figures {
        figures.extend(told);
    }
    T::deserialize(figures).map_err(D::Error::custom)
}

/// Another answer to the same request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Alternative {
    /// The text: all its pieces joined.
    pub text: String,
    /// The tools that the model wishes called.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Why it ended.
    pub stop_reason: StopReason,
    /// How likely its tokens were, where that was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprobs>,
}

/// How likely a token was, and what else could have come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TokenLogprobs {
    /// The token's text.
    pub token: String,
    /// Logarithm of its probability, by e.
    pub logprob: f32,
    /// The likeliest tokens in its place, the likeliest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<TokenLogprob>,
}

/// A token that could have come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TokenLogprob {
    /// The token's text.
    pub token: String,
    /// Logarithm of its probability, by e.
    pub logprob: f32,
}

/// Counts of tokens, as the provider tells them; 0 where it does not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Tokens of the input, those from the cache included.
    pub prompt_tokens: u64,
    /// Tokens of the answer, without the one that ended the turn where the
    /// provider does not count it.
    pub completion_tokens: u64,
    /// Both together.
    pub total_tokens: u64,
    /// Tokens of the input that did not have to be read again.
    pub cached_tokens: u64,
    /// Tokens of the input that were put into the provider's cache, where that
    /// has a price of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_write_tokens: Option<u64>,
    /// Tokens of the answer that are thoughts and not part of the text, where
    /// the provider tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_tokens: Option<u64>,
    /// US dollars, where the provider itself says what it cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<f64>,
}

/// Measured times and speeds. A remote provider's are those of this machine,
/// so the way there is in them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Timings {
    /// Time to load the model, where this request had to wait for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_ms: Option<f64>,
    /// Time spent waiting for a free slot, where the provider has such.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queued_ms: Option<f64>,
    /// Time to read the input, from the start of the work to the first token.
    pub prompt_ms: f64,
    /// Time from the first token to the end.
    pub generate_ms: f64,
    /// Time from the arrival of the request to the first token.
    pub first_token_ms: f64,
    /// Input tokens per second; 0 where it cannot be known.
    pub prompt_per_second: f64,
    /// Answer tokens per second; 0 where it cannot be known.
    pub generate_per_second: f64,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_provider_does_not_tell_is_0_and_what_it_tells_wrong_is_refused() {
        let generated = |usage: Value| {
            let answer = json!({"model": "x", "text": "", "stop_reason": "stop", "usage": usage});
            serde_json::from_value::<Generated>(answer)
        };
        let told = generated(json!({"completion_tokens": 7, "cost_usd": null, "newer": 1})).unwrap();
        assert_eq!(told.usage, Usage { completion_tokens: 7, ..Usage::default() });
        assert_eq!(told.timings, Timings::default());
        assert!(generated(json!({"completion_tokens": "7"})).is_err());
    }
}
