//! Durable work and durable facts: what a policy says, what is told about a
//! piece of work, and how facts are read again.
//!
//! A request for an event that is declared durable is answered `accepted` once
//! it is written down, and carried out later, however often the daemon or a
//! plugin dies meanwhile. The plugin that keeps work answers `work:*` and
//! `checkpoint:*`; these are their payloads.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{EventName, Pattern, Payload, Refusal};

/// How the work of a durable event is carried out; from its declaration in the
/// manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Policy {
    /// Attempts before it has failed. One that was refused because nobody could
    /// take it does not count.
    pub attempts: u32,
    /// Longest pause before the second attempt, milliseconds; doubled for each
    /// one after.
    pub backoff_min_ms: u64,
    /// Longest pause before any attempt, milliseconds.
    pub backoff_max_ms: u64,
    /// Time for which the handler of an attempt may say nothing, neither its answer
    /// nor a part of it, milliseconds.
    pub timeout_ms: u64,
    /// Milliseconds after its acceptance from which it is not started any more. The
    /// first time that somebody dies while it runs, they begin anew.
    pub expires_ms: u64,
    /// How long its result is kept after its end, milliseconds.
    pub keep_ms: u64,
    /// Whether it is done again when nobody knows whether an attempt had its
    /// effect. Without it such work ends as `unknown`.
    pub repeat: bool,
}

impl Policy {
    /// The same for one request that is of use for this long and no longer. What is
    /// declared of its event is the most.
    #[must_use]
    pub fn expiring_in(self, time: Duration) -> Self {
        let time_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self { expires_ms: self.expires_ms.min(time_ms), ..self }
    }
}

impl Default for Policy {
    fn default() -> Self {
        const MINUTE: u64 = 60_000;
        const DAY: u64 = 24 * 60 * MINUTE;
        Self {
            attempts: 5,
            backoff_min_ms: 1_000,
            backoff_max_ms: MINUTE,
            timeout_ms: 10 * MINUTE,
            expires_ms: DAY,
            keep_ms: DAY,
            repeat: false,
        }
    }
}

/// A durable request is safe. The fields of the `accepted` frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Accepted {
    /// Name of the work, valid on every connection and after a restart.
    pub request_id: String,
    /// Its position in the journal.
    pub seq: u64,
}

/// Where a piece of work stands. The last six are ends; work ends once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum WorkState {
    /// Written down, and not begun.
    Accepted,
    /// An attempt is under way.
    Leased,
    /// An attempt has failed, and the next one is due later.
    Waiting,
    /// Its handler has answered; the result is kept for a time.
    Done,
    /// Its handler has refused it for good, or its attempts are used up.
    Failed,
    /// It was not done in time, and is not begun any more.
    Expired,
    /// Somebody has cancelled it.
    Cancelled,
    /// Its handler has crashed over it again and again.
    Dead,
    /// Nobody knows whether it has had its effect, and it may not be repeated
    /// unasked. An operator may do so.
    Unknown,
}

impl WorkState {
    /// Every state, in the order of a life.
    pub const ALL: [Self; 9] = [
        Self::Accepted,
        Self::Leased,
        Self::Waiting,
        Self::Done,
        Self::Failed,
        Self::Expired,
        Self::Cancelled,
        Self::Dead,
        Self::Unknown,
    ];

    /// Whether nothing happens any more unless somebody asks for it.
    #[must_use]
    pub fn is_end(self) -> bool {
        !matches!(self, Self::Accepted | Self::Leased | Self::Waiting)
    }

    /// The state as it is written on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Leased => "leased",
            Self::Waiting => "waiting",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::Dead => "dead",
            Self::Unknown => "unknown",
        }
    }
}

impl std::fmt::Display for WorkState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is known of a piece of work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct WorkInfo {
    /// Its name.
    pub request_id: String,
    /// Its position in the journal.
    pub seq: u64,
    /// What was asked.
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub event: EventName,
    /// Where it stands.
    pub state: WorkState,
    /// Attempts that were begun and count.
    #[serde(default)]
    pub attempts: u32,
    /// Times that its handler has crashed over it.
    #[serde(default)]
    pub crashes: u32,
    /// Who asked.
    pub origin: String,
    /// In whose name: `user:alice`, `token:k3f9`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// What it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// The asker's key for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// When it was accepted, milliseconds since 1970.
    pub accepted_ms: u64,
    /// While it has not ended: from when on it is not begun any more, milliseconds
    /// since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// When the attempt under way is given up, or the next one is due,
    /// milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<u64>,
    /// When it ended, milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
    /// What its handler answered, where it is done and the result is still
    /// kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Payload>,
    /// Why the last attempt failed, or why it ended without a result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
}

/// Name one piece of work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct WorkName {
    /// As `accepted` said it.
    pub request_id: String,
}

/// Wait for the end of a piece of work; answers where it stands when it ends
/// or the time is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct WaitWork {
    /// As `accepted` said it.
    pub request_id: String,
    /// How long to wait, milliseconds; without it as long as the request may
    /// take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// List work, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ListWork {
    /// Only in these states; without any, in all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub states: Vec<WorkState>,
    /// Only of events that match.
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<Pattern>,
    /// Only after this one: `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// At most so many; without it, 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// Some of the work, without its results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct WorkPage {
    /// Oldest first.
    pub work: Vec<WorkInfo>,
    /// Where the next page begins, where there is more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Follow durable facts, from a position in the journal or where a consumer
/// has stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Follow {
    /// Which facts.
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub pattern: Pattern,
    /// The first fact may have this position or a later one. Without it a
    /// consumer goes on after what it has acknowledged, and anybody else begins
    /// with what comes next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_seq: Option<u64>,
    /// Name under which the position is kept. Whoever comes last with a name
    /// has it; the one before is refused `conflict`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumer: Option<String>,
}

/// One part of what a follower gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Followed {
    /// A fact.
    Fact(Kept),
    /// Facts that are no longer kept were passed over.
    Gap(Missed),
}

/// A fact that is kept, with its position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Kept {
    /// Its position in the journal. Positions of facts rise and have holes.
    pub seq: u64,
    /// What happened.
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub event: EventName,
    /// The payload.
    pub data: Bytes,
    /// Who said so.
    pub origin: String,
    /// When it passed the kernel, milliseconds since 1970.
    pub at_ms: u64,
    /// What it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
}

/// Positions in the journal whose facts are gone; which of them the follower
/// asked for is not known any more. One without any, `to_seq` before `from_seq`,
/// is the first thing that a follower is told: where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Missed {
    /// The first.
    pub from_seq: u64,
    /// The last.
    pub to_seq: u64,
}

/// Move a consumer on: it has dealt with every fact up to a position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Ack {
    /// Its name.
    pub consumer: String,
    /// The position of the last fact. One before what is acknowledged already
    /// changes nothing.
    pub seq: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_written_as_serde_writes_it() {
        for state in WorkState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }

    #[test]
    fn a_policy_says_only_what_differs() {
        let policy: Policy = serde_json::from_str(r#"{"attempts":1,"repeat":true}"#).unwrap();
        assert_eq!(policy, Policy { attempts: 1, repeat: true, ..Policy::default() });
    }

    #[test]
    fn what_a_follower_gets_survives_the_way() {
        let fact = Followed::Fact(Kept {
            seq: 7,
            event: EventName::parse("a:b").unwrap(),
            data: crate::empty(),
            origin: "session:1".into(),
            at_ms: 1,
            correlation_id: None,
            tenant: None,
        });
        let gap = Followed::Gap(Missed { from_seq: 1, to_seq: 6 });
        for part in [fact, gap] {
            assert_eq!(crate::decode::<Followed>(&crate::encode(&part).unwrap()).unwrap(), part);
        }
    }
}
