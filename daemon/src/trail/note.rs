//! A decision on its way into the audit trail: names, and the payload or what is
//! written of it.

use std::sync::Arc;

use ksi_protocol::{Bytes, EventName, audit::Decision};
use ksi_trust::Digest;

/// A decision on its way.
#[derive(Debug)]
pub(super) struct Note {
    /// When, milliseconds since 1970.
    pub(super) at_ms: u64,
    /// Whose share of the queue it takes.
    pub(super) payer: Arc<str>,
    /// In whose name.
    pub(super) principal: String,
    /// The tenant of that one.
    pub(super) tenant: Option<String>,
    /// Who sent it.
    pub(super) origin: String,
    /// On whose behalf, where that is another.
    pub(super) behalf: Option<String>,
    /// What was asked or told.
    pub(super) event: EventName,
    /// Whether it was told.
    pub(super) emitted: bool,
    /// What it takes.
    pub(super) permission: String,
    /// Whether it was allowed.
    pub(super) allowed: bool,
    /// What ties it to its cause.
    pub(super) correlation_id: Option<String>,
    /// What came along.
    pub(super) payload: Payload,
}

/// What came along with a decision.
#[derive(Debug)]
pub(super) enum Payload {
    /// Itself; it is digested later.
    Whole(Bytes),
    /// What is written of it.
    Digested {
        /// Its SHA-256.
        digest: Digest,
        /// Its size in bytes.
        size: usize,
    },
}

impl Payload {
    /// Bytes that it keeps while it waits.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Whole(data) => data.len(),
            Self::Digested { .. } => 0,
        }
    }

    pub(super) fn digested(&self) -> (Digest, usize) {
        match self {
            Self::Whole(data) => (Digest::of(data), data.len()),
            Self::Digested { digest, size } => (*digest, *size),
        }
    }
}

impl Note {
    /// Bytes that it keeps while it waits, but for its payload.
    pub(super) fn weight(&self) -> usize {
        let texts = [&self.principal, &self.origin, &self.permission];
        let more = [&self.tenant, &self.behalf, &self.correlation_id].into_iter().flatten();
        let texts: usize = texts.into_iter().chain(more).map(String::len).sum();
        size_of::<Self>() + self.event.as_str().len() + texts
    }
}

impl From<Note> for Decision {
    fn from(note: Note) -> Self {
        let (digest, size) = note.payload.digested();
        Self {
            at_ms: note.at_ms,
            principal: note.principal,
            tenant: note.tenant,
            origin: note.origin,
            behalf: note.behalf,
            event: note.event.as_str().to_owned(),
            emitted: note.emitted,
            permission: note.permission,
            allowed: note.allowed,
            correlation_id: note.correlation_id,
            sha256: digest.to_string(),
            size: size as u64,
        }
    }
}
