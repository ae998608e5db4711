//! Callers and decisions: in whose name something is sent, and whether it may
//! be.

use std::sync::Arc;

use ksi_protocol::{Bytes, EventName};

use crate::Principal;

/// Who asked in the first place: what a plugin does for somebody is done in that
/// one's name. Each port has one of its own, so that those who count references
/// to it are few.
#[derive(Debug, PartialEq, Eq)]
pub struct Caller {
    /// The endpoint: `session:7`, `plugin:echo`, `daemon`.
    pub origin: Arc<str>,
    /// Whom it speaks for.
    pub principal: Arc<Principal>,
}

/// Whether somebody may send something. What is heard, and answers, are no
/// decisions of their own.
#[derive(Debug)]
pub struct Decision<'a> {
    /// Who sends it: `session:7`, `plugin:echo`.
    pub origin: &'a str,
    /// In whose name.
    pub caller: &'a Caller,
    /// What is asked or told.
    pub event: &'a EventName,
    /// Whether it is told.
    pub is_emission: bool,
    /// The payload.
    pub data: &'a Bytes,
    /// What it belongs to.
    pub correlation_id: Option<&'a str>,
    /// What it takes: a permission or, where a plugin lacks that, `may_call` or
    /// `emits`.
    pub right: &'a str,
    /// Whether it may.
    pub allowed: bool,
    /// Whether that is to be remembered where it may; where it may not, it always
    /// is.
    pub audited: bool,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
}

/// Somebody who is shown each [`Decision`] that is to be remembered.
pub trait Witness: Send + Sync {
    /// Called on the way of the event: it must not wait, and not call the
    /// kernel.
    fn decided(&self, decision: &Decision<'_>);
}
