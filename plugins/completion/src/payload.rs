//! Payloads of the `completion:*` events, as they travel.
//!
//! The doc comments are what users read in `ksi describe`. Numbers are wide
//! here and checked in `order`, so that a value out of range is
//! refused with the path of its field.

use ksi_provider::{
    Alternative, Message, ResponseFormat, Timings, TokenLogprobs, Tool, ToolCall, ToolCallDelta, ToolChoice,
    Usage,
};
use ksi_sdk::prelude::{Deserialize, JsonSchema, Refusal, Serialize};
use serde_json::{Map, Value};

mod conversation;
mod hook;
mod route;
mod usage;

pub use conversation::{ContextReport, Forget, Forgotten, HistoryAnswer, HistoryRequest, Memory};
pub use hook::{PostLlmResult, PreLlmPrompt};
pub use route::{Candidate, Route, RouteRequest, Stage};
pub use usage::{Budget, By, LimitedBy, Limits, Spent, UsageAnswer, UsageRequest, UsageRow, Used};

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

/// The next piece of the text.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct Chunk {
    /// The piece; all pieces of one answer in order are its text.
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
    /// Said instead of text: all pieces before are void, another attempt begins. Only where the
    /// request allowed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarted: Option<Restarted>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_first(choice: &u32) -> bool {
    *choice == 0
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

/// What has become of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It waits for its turn.
    Queued,
    /// Its provider works on it.
    Running,
    /// It ended with a result.
    Done,
    /// It ended with a refusal.
    Failed,
    /// It was cancelled.
    Cancelled,
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

/// A request that waits or runs.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Open {
    /// Names the request.
    pub request_id: String,
    /// `queued`, `running`, or `cancelled` while it stops.
    pub state: State,
    /// Its conversation.
    pub conversation_id: Option<String>,
    /// `provider/model`.
    pub model: String,
    /// 0 if it runs, 1 if it is the next for its provider, and so on.
    pub position: Option<usize>,
    /// Its priority.
    pub priority: i8,
    /// Milliseconds since it was accepted.
    pub age_ms: u64,
}

/// Load of one provider.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Load {
    /// The provider.
    pub name: String,
    /// Requests that it may work on at once.
    pub concurrency: usize,
    /// Requests that it works on, of those that whoever asks may see.
    pub running: usize,
    /// Requests that wait for it, of those that whoever asks may see.
    pub queued: usize,
}

/// The requests that wait or run, of those that whoever asks may see.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// How many wait.
    pub queued: usize,
    /// How many run.
    pub running: usize,
    /// Each of them, in the order of acceptance.
    pub requests: Vec<Open>,
    /// Each provider.
    pub providers: Vec<Load>,
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

/// One provider.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ProviderInfo {
    /// Its name, the part of a model's name before the `/`.
    pub name: String,
    /// What it is.
    pub about: String,
    /// Names of its models, where it could be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<String>>,
    /// Why it could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unavailable: Option<String>,
    /// What to do about that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Whether nothing leaves this machine.
    pub local: bool,
    /// Models that failed again and again and are left alone, or tried with one request.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub breakers: Vec<BreakerInfo>,
    /// Where it asked to be left alone, and is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pauses: Vec<PauseInfo>,
    /// Requests that it may work on at once.
    pub concurrency: usize,
    /// Requests that it works on, of those that whoever asks may see.
    pub running: usize,
    /// Requests that wait for it, of those that whoever asks may see.
    pub queued: usize,
}

/// A circuit breaker that is not closed.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct BreakerInfo {
    /// The model.
    pub model: String,
    /// `open` or `half_open`.
    pub state: String,
    /// Milliseconds until it is tried with one request, where it is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

/// A provider, or one of its models, that is left alone because it said so.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct PauseInfo {
    /// The model, where it is that one alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Until when, in milliseconds since 1970.
    pub until_ms: u64,
    /// Milliseconds until then.
    pub retry_after_ms: u64,
    /// For how many milliseconds it wishes that, where those are more than are believed
    /// (`retry.pause_max_ms`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wished_ms: Option<u64>,
    /// Which model refused, and what it said.
    pub why: String,
}

/// The providers of models.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Providers {
    /// Each of them.
    pub providers: Vec<ProviderInfo>,
}
