//! What can be asked and heard.

use serde::{Deserialize, Serialize};

/// `system:discover`: everything that can be asked or heard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Discovery {
    /// All events, by name.
    pub events: Vec<EventInfo>,
}

/// What kind of event it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// One answer.
    Request,
    /// Chunks, then a summary.
    Stream,
    /// Told to whoever listens.
    Fact,
}

/// One event: what the plugin says of it, and the policy that holds for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct EventInfo {
    /// Its name.
    pub event: String,
    /// The plugin that answers or emits it, or `daemon`.
    pub owner: String,
    /// What kind of event.
    pub kind: EventKind,
    /// What it does.
    pub about: String,
    /// Whether its owner is ready.
    pub available: bool,
    /// `live` or `durable`.
    pub delivery: String,
    /// Name of the permission that it takes; whoever may connect has them all.
    #[serde(default)]
    pub permission: String,
    /// Time that a request may take by default, milliseconds.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// JSON schema of the payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<serde_json::Value>,
    /// JSON schema of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<serde_json::Value>,
    /// JSON schema of a chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk: Option<serde_json::Value>,
}

/// The request of `system:discover`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Discover {
    /// Only events of this namespace.
    #[serde(default)]
    pub namespace: Option<String>,
    /// With schemas.
    #[serde(default)]
    pub detail: bool,
}

/// The request of `system:describe`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Describe {
    /// Name of the event.
    pub event: String,
}
