//! What accompanies a payload across the plugin boundary: the `meta` map of an
//! ABI message.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{frame::Caller, work::Policy};

/// Facts about an envelope that a handler may ask for. All are optional; an
/// absent map is an empty one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Meta {
    /// Who sent it: `session:7`, `plugin:agent`, `daemon`. Set by the daemon,
    /// which takes it from one plugin alone: the one that keeps work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// In whose name it was sent. As `origin`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<Caller>,
    /// To a listener, and from a plugin with what it emits: whose it is. From a
    /// plugin it counts where the request on whose behalf it tells has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// From a plugin: whoever it asks for must hold what it asks, too.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub on_behalf: bool,
    /// Ties together all that follows from one cause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// Of a durable event, two requests with one key are one request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// From a plugin, of a durable event: milliseconds after its acceptance from
    /// which what it asks is not begun any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in_ms: Option<u64>,
    /// From a plugin: time that its request may take, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// From a plugin: the request on whose behalf it asks or tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<u64>,
    /// Chunks that may be sent before a credit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credit: Option<u32>,
    /// To a listener, and with a durable fact: when the event passed the router,
    /// milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<u64>,
    /// What led here, from plugin to plugin; handed back with all that is sent on
    /// its account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chain: Option<Arc<str>>,
    /// To the plugin that keeps work: this is for somebody else, to be kept, and
    /// carried out by this policy. With `at_ms` it is not a request but a fact.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub work: Option<Policy>,
}
