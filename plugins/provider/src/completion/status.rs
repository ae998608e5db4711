//! What `completion:status` answers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
