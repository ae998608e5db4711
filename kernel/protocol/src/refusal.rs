//! Refusals: the peer's "no", with a code from a closed list, what happened,
//! and what to do next.

use serde::{Deserialize, Serialize};

/// Why a request was not done. The list is closed: a client may match on it,
/// and `PROTOCOL.md` has a paragraph for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// Nobody declares this event; the hint offers the nearest names.
    UnknownEvent,
    /// The payload does not fit the event's schema; the hint names path and type.
    InvalidPayload,
    /// The frame itself is malformed, or not allowed here.
    InvalidFrame,
    /// The asker may not do this.
    Denied,
    /// A limit is reached; retry after the given time.
    Busy,
    /// The deadline of the request passed.
    Timeout,
    /// The frame, payload or input exceeds a limit, both of which are named.
    TooLarge,
    /// The event is known, but the plugin that owns it is not loaded.
    NoOwner,
    /// The plugin died or was restarted while it held the request.
    PluginRestarted,
    /// The request was cancelled, by its asker or because it disconnected.
    Cancelled,
    /// The daemon is stopping and takes no new requests.
    ShuttingDown,
    /// The thing named does not exist.
    NotFound,
    /// The thing exists already, or changed meanwhile.
    Conflict,
    /// The owner exists but cannot serve now: starting, held, or lacking something.
    Unavailable,
    /// The handler failed in a way that it did not foresee.
    Internal,
    /// The outcome is not known: a crash came between effect and answer.
    Unknown,
}

impl Code {
    /// Every code, in the order of the documentation.
    pub const ALL: [Self; 16] = [
        Self::UnknownEvent,
        Self::InvalidPayload,
        Self::InvalidFrame,
        Self::Denied,
        Self::Busy,
        Self::Timeout,
        Self::TooLarge,
        Self::NoOwner,
        Self::PluginRestarted,
        Self::Cancelled,
        Self::ShuttingDown,
        Self::NotFound,
        Self::Conflict,
        Self::Unavailable,
        Self::Internal,
        Self::Unknown,
    ];

    /// Whether the same request may succeed later without a change.
    #[must_use]
    pub fn retryable(self) -> bool {
        matches!(
            self,
            Self::Busy | Self::Timeout | Self::PluginRestarted | Self::ShuttingDown | Self::Unavailable
        )
    }

    /// The code as it is written on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnknownEvent => "unknown_event",
            Self::InvalidPayload => "invalid_payload",
            Self::InvalidFrame => "invalid_frame",
            Self::Denied => "denied",
            Self::Busy => "busy",
            Self::Timeout => "timeout",
            Self::TooLarge => "too_large",
            Self::NoOwner => "no_owner",
            Self::PluginRestarted => "plugin_restarted",
            Self::Cancelled => "cancelled",
            Self::ShuttingDown => "shutting_down",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
            Self::Unknown => "unknown",
        }
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A refusal as it travels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[error("{message}")]
pub struct Refusal {
    /// What kind of no.
    pub code: Code,
    /// What happened, a sentence for a person.
    pub message: String,
    /// What to do next; empty where nothing helps.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
    /// Whether the same request may succeed later.
    #[serde(default)]
    pub retryable: bool,
    /// When to try again, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// Facts for a program, by name: numbers that a message mentions, for
    /// example.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<serde_json::Value>,
}

impl Refusal {
    /// A refusal with this code and message; `retryable` follows the code.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: String::new(),
            retryable: code.retryable(),
            retry_after_ms: None,
            details: None,
        }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Adds when to try again, and makes the refusal retryable.
    #[must_use]
    pub fn retry_after_ms(mut self, ms: u64) -> Self {
        self.retryable = true;
        self.retry_after_ms = Some(ms);
        self
    }

    /// Adds facts for a program.
    #[must_use]
    pub fn details(mut self, details: serde_json::Value) -> Self {
        self.details = Some(details);
        self
    }

    /// The payload does not fit; `why` is what the decoder said.
    #[must_use]
    pub fn invalid_payload(why: impl Into<String>) -> Self {
        Self::new(Code::InvalidPayload, format!("payload does not fit: {}", why.into()))
            .hint("`ksi describe EVENT` shows the fields and their types")
    }

    /// Names the path in the payload that does not fit.
    #[must_use]
    pub fn at(mut self, path: &str) -> Self {
        self.message = format!("{} (at `{path}`)", self.message);
        self
    }

    /// A thing that does not exist: `not_found("model", "llama/x")`.
    #[must_use]
    pub fn not_found(what: &str, name: &str) -> Self {
        Self::new(Code::NotFound, format!("no {what} named `{name}`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_written_as_serde_writes_it() {
        for code in Code::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }
}
