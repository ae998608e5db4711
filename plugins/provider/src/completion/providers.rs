//! What `completion:providers` answers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub breakers: Vec<BreakerInfo>,
    /// Where it asked to be left alone, and is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
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
