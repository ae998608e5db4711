//! Payloads of `work:*` that are not the protocol's own: what users read in
//! `ksi describe`, and the facts about ends.

use ksi_sdk::{
    prelude::{Code, Deserialize, JsonSchema, Serialize},
    protocol::work::{ListWork, WaitWork, WorkName, WorkState},
};

use crate::ledger::{Ended, Ending};

/// List durable work, oldest first, a page at a time: what waits, what runs,
/// and what has ended and is still kept. Without results; `work:get` has them.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct List(pub ListWork);

/// List work that somebody should look at, with the reasons: `dead`, whose
/// handler crashed over it again and again, and `unknown`, of which nobody knows
/// whether it had its effect. `work:retry` has one done again, `work:drop`
/// forgets it. With `states`, only those of the two.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Dead(pub ListWork);

/// Show one piece of work: where it stands and, once it has ended, its result or
/// the refusal that it ended with. Its end is kept for as long as its idempotency
/// key is remembered, a day, and its result for its time and while there is room:
/// what is `done` and has none had one.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Get(pub WorkName);

/// Wait until one piece of work has ended, and show it as `work:get` does. When
/// the time is over first, the answer shows where it stands then. Work that
/// failed is an answer, not a refusal: its `state` and `refusal` say so.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Wait(pub WaitWork);

/// Cancel one piece of work, whether it waits or runs; its handler is cancelled
/// too. Answers how it ended. What has ended otherwise already is refused
/// `conflict`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Cancel(pub WorkName);

/// Have work done again that ended as `failed`, `expired`, `dead` or `unknown`,
/// under the same `request_id`, while what was asked is kept. Its attempts are
/// counted on, and it gets as many more as its event allows.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Retry(pub WorkName);

/// Forget work that has ended, with its result and its idempotency key: what is
/// asked under that is new work. Answers what is forgotten.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Drop(pub WorkName);

/// A piece of durable work has ended: its handler has answered, and `work:get`
/// has the result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Done(pub Told);

/// A piece of durable work has ended without a result: it has failed, has
/// expired or was cancelled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Failed(pub Told);

/// A piece of durable work has ended in a way that somebody should look at:
/// `work:dead` lists it with the reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Died(pub Told);

/// What is told about an end. Never what was asked or answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Told {
    /// Name of the work.
    pub request_id: String,
    /// What was asked.
    pub event: String,
    /// How it ended.
    pub state: WorkState,
    /// Attempts that were begun and count.
    pub attempts: u32,
    /// Why it has no result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// What it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
}

/// The fact about an end.
pub(super) fn fact(ended: Ended) -> (&'static str, Told) {
    let event = match ended.how {
        Ending::Done => "work:done",
        Ending::Failed | Ending::Expired | Ending::Cancelled => "work:failed",
        Ending::Dead | Ending::Unknown => "work:died",
    };
    let told = Told {
        request_id: ended.id.to_string(),
        event: ended.event.to_string(),
        state: ended.how.state(),
        attempts: ended.attempts,
        code: ended.code,
        correlation_id: ended.correlation_id,
    };
    (event, told)
}
