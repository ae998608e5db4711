//! Payloads of the `completion:*` events, as they travel.
//!
//! The doc comments are what users read in `ksi describe`. Numbers are wide
//! here and checked in `order`, so that a value out of range is
//! refused with the path of its field. What others than the one who asked read, too,
//! is in `ksi_provider::completion`.

use ksi_provider::{Message, ResponseFormat, TokenLogprobs, Tool, ToolCallDelta, ToolChoice};
use ksi_sdk::prelude::{Deserialize, JsonSchema, Refusal, Serialize};
use serde_json::{Map, Value};

mod conversation;
mod hook;
mod route;
mod usage;

pub use conversation::{Forget, Forgotten, HistoryAnswer, HistoryRequest, Memory};
pub use hook::{PostLlmResult, PreLlmPrompt};
pub use ksi_provider::completion::{
    BreakerInfo, Budget, Candidate, Chunk, Completed, ContextReport, LimitedBy, Limits, Load, ModelName,
    Open, PauseInfo, ProviderInfo, Providers, Restarted, Route, Spent, Stage, State, Status, Tried,
    UsageAnswer, UsageRow, Used,
};
pub use route::RouteRequest;
pub use usage::{By, UsageRequest};

/// Ask a model. The text comes in chunks while it is made; the end repeats all
/// of it with what it cost. A client that goes away cancels the request.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// What to ask, as one message of the user. Either this or `messages`.
    pub prompt: Option<String>,
    /// The conversation so far, oldest first. Either this or `prompt`.
    pub messages: Option<Vec<Message>>,
    /// Instructions that go before everything else.
    pub system: Option<String>,
    /// `provider/model`, for example `llama/ksi-tiny` or `mock/echo`; without it the configured default.
    pub model: Option<String>,
    /// Models that answer, one after the other, where that one cannot; without them
    /// the configured ones, and with an empty list none. The result says who answered and why.
    #[schemars(length(max = 8))]
    pub fallbacks: Option<Vec<String>>,
    /// Tools that the model may call.
    #[serde(default)]
    pub tools: Vec<Tool>,
    /// Whether it calls them; default `auto`.
    pub tool_choice: Option<ToolChoice>,
    /// What the text of the answer is to be: `text`, `json`, or `{"json_schema": {"schema": {…}}}`.
    pub response_format: Option<ResponseFormat>,
    /// Lets another attempt begin after text was sent. The text then starts over, and a chunk with
    /// `restarted` says so. Without it such a request fails.
    #[serde(default)]
    pub restart: bool,
    /// Only asks models that keep everything on this machine.
    #[serde(default)]
    pub local_only: bool,
    /// Goes on with the conversation as it is remembered, and remembers this request and its answer.
    #[serde(default)]
    pub remember: bool,
    /// What else the model shall know, by name; a part of the system text.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub memories: Vec<Memory>,
    /// Most tokens that the model is given to read of memories, of what is remembered, and of `messages`
    /// with `trim`. What is left out then is told in the result.
    #[schemars(range(min = 1, max = 100_000_000))]
    pub context_tokens: Option<i64>,
    /// Lets the oldest of `messages` be left out where there is no room for all of them, as far as the
    /// last one of the user; what was left out is told in the result. Without it they are refused then.
    #[serde(default)]
    pub trim: bool,
    /// Which agent asks; budgets may be per agent.
    #[schemars(length(min = 1, max = 128))]
    pub agent: Option<String>,
    /// Requests of one conversation are answered one after the other.
    #[schemars(length(min = 1, max = 128))]
    pub conversation_id: Option<String>,
    /// Most tokens to generate.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub max_tokens: Option<i64>,
    /// 0 always takes the likeliest token; higher is more varied.
    #[schemars(range(min = 0, max = 5))]
    pub temperature: Option<f64>,
    /// Considers only the likeliest tokens that together have this probability.
    #[schemars(range(min = 0, max = 1))]
    pub top_p: Option<f64>,
    /// Considers only this many of the likeliest tokens; 0 is all.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub top_k: Option<i64>,
    /// Considers only tokens at least this likely, relative to the likeliest.
    #[schemars(range(min = 0, max = 1))]
    pub min_p: Option<f64>,
    /// Above 1 makes what was said already less likely.
    #[schemars(range(min = 0.1, max = 10))]
    pub repetition_penalty: Option<f64>,
    /// The same seed, model and settings give the same answer.
    #[schemars(range(min = 0, max = 4_294_967_295_u32))]
    pub seed: Option<i64>,
    /// Texts at which the answer ends; they are not part of it.
    #[schemars(length(max = 16))]
    pub stop: Option<Vec<String>>,
    /// How many answers to make of the question; default 1. The first is the answer, and the one that is
    /// remembered; the others are told as `alternatives`. Only models that can are asked.
    #[schemars(range(min = 1, max = 16))]
    pub choices: Option<i64>,
    /// Tells how likely each token was, and this many that could have come in its place. A model that
    /// cannot says so in `ignored`.
    #[schemars(range(min = 0, max = 20))]
    pub logprobs: Option<i64>,
    /// Higher goes first; 0 is normal.
    #[schemars(range(min = -10, max = 10))]
    pub priority: Option<i64>,
    /// Time from acceptance to the end of the answer, waiting included.
    #[schemars(range(min = 1, max = 86_400_000))]
    pub timeout_ms: Option<i64>,
}

/// Ask a model and do not wait. Once `accepted` is answered the request survives
/// whatever dies: it goes on under its `request_id` when the client goes away, and
/// after a restart. `completion:result` or `completion:error` tells when it has
/// ended; `work:wait` and `completion:get` fetch the result, which has the fields
/// below.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct AsyncRequest(pub Request);

/// A request has reached its provider. Told once more where it has to be begun
/// again, after a crash say; the text of the deltas then starts over.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Started {
    /// Names the request.
    pub request_id: String,
}

/// A request has made its next piece of text.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Delta {
    /// Names the request.
    pub request_id: String,
    /// The piece.
    pub text: String,
    /// Pieces of tool calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
    /// Which of several answers it belongs to, from 0.
    #[serde(default, skip_serializing_if = "is_first")]
    pub choice: u32,
    /// How likely its tokens were, where that was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprobs>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_first(choice: &u32) -> bool {
    *choice == 0
}

/// A request has failed.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Failed {
    /// Names the request.
    pub request_id: String,
    /// Why.
    #[schemars(with = "Map<String, Value>")]
    pub refusal: Refusal,
}

/// A request was cancelled.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Cancelled {
    /// Names the request.
    pub request_id: String,
}

/// Stop a request, waiting or running. What it had made so far is dropped.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cancel {
    /// The request.
    pub request_id: String,
}

/// What a cancel did.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CancelAnswer {
    /// Names the request.
    pub request_id: String,
    /// `cancelled`; or `done` or `failed` where the request had ended before.
    pub status: State,
}

/// Show the requests that wait or run.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StatusRequest {
    /// Only this one.
    pub request_id: Option<String>,
}

/// Fetch what became of a request. That of `completion:async` is kept as long as all
/// durable work; that of `completion:request` for an hour and not over a restart,
/// unless there are very many or very large ones.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Get {
    /// The request.
    pub request_id: String,
    /// Waits up to this long for the request to end; without it the answer comes at once.
    #[schemars(range(min = 0, max = 86_400_000))]
    pub wait_ms: Option<i64>,
}

/// Wait for the end of a request, and fetch what became of it; answers where it stands
/// when it ends or the time is over.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Wait {
    /// The request.
    pub request_id: String,
    /// How long to wait; without it as long as a request may take.
    #[schemars(range(min = 0, max = 86_400_000))]
    pub timeout_ms: Option<i64>,
}

/// What became of a request.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct GetAnswer {
    /// Names the request.
    pub request_id: String,
    /// Where it is.
    pub state: State,
    /// The result, of a request that is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Completed>,
    /// Why it failed, of one that did.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Map<String, Value>>")]
    pub refusal: Option<Refusal>,
}

/// Show the providers of models, their models and their load.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProvidersRequest {}
