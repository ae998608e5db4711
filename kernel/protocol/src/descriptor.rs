//! Descriptors: what a plugin says of itself.
//!
//! A descriptor says *what* a plugin's events are; the manifest `events.toml`
//! says *policy* (placement, permissions, timeouts). `system:discover` merges
//! the two.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{frame::Stage, name::EventName, pattern::Pattern};

/// All that a plugin declares. Travels as MessagePack from library to host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Name of the plugin, its default namespace.
    pub name: String,
    /// Version of the plugin.
    pub version: String,
    /// What it does, one sentence.
    pub about: String,
    /// Requests that it answers.
    #[serde(default)]
    pub requests: Vec<RequestSpec>,
    /// Facts that it emits.
    #[serde(default)]
    pub emits: Vec<FactSpec>,
    /// Events that it asks for, besides what it keeps itself. It may ask for
    /// nothing else, and for these as far as the manifest's `may_call` goes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<Pattern>,
    /// Events that it listens to.
    #[serde(default)]
    pub listens: Vec<Pattern>,
    /// Events before or after which it wants a word.
    #[serde(default)]
    pub intercepts: Vec<InterceptSpec>,
    /// Version of the state that it keeps, for migrations.
    #[serde(default)]
    pub state_version: u32,
    /// Whether the plugin needs a process of its own (sockets, a runtime, a
    /// native library that may abort).
    #[serde(default)]
    pub child_only: bool,
    /// Whether it keeps work: requests for durable events and durable facts are
    /// handed to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keeps_work: bool,
}

/// A request that a plugin answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestSpec {
    /// Its name.
    pub event: EventName,
    /// What it does: the doc comment of the request's type.
    pub about: String,
    /// JSON schema of the payload.
    pub request: Value,
    /// JSON schema of the answer.
    pub reply: Value,
    /// JSON schema of a chunk, where the answer is streamed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk: Option<Value>,
}

/// A fact that a plugin emits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FactSpec {
    /// Its name.
    pub event: EventName,
    /// What it says.
    pub about: String,
    /// JSON schema of the payload.
    pub schema: Value,
}

/// A stage at which a plugin wants a word.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InterceptSpec {
    /// Which events.
    pub pattern: Pattern,
    /// Before or after.
    pub stage: Stage,
    /// Lower goes first.
    #[serde(default)]
    pub order: i32,
    /// Whether the event goes on when the interceptor is dead or silent.
    #[serde(default)]
    pub fail_open: bool,
}
