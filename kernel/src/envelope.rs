//! What goes in and comes out: the shapes of what is asked, told and answered.
//!
//! Nothing here is a frame: how these travel is the daemon's matter, and so
//! none of them can be serialized.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use ksi_identity::Caller;
use ksi_protocol::{EventName, Refusal, frame::Id, limits, work::Policy};

use crate::refusals;

/// Names a pending request, or a word that an interceptor owes; unique for the
/// life of the kernel, counted from 1. Whoever is asked sees it as the id.
pub type Token = u64;

/// What is routed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// What is asked, or what happened.
    pub event: EventName,
    /// The payload, opaque.
    pub data: Bytes,
    /// Who sent it.
    pub origin: Arc<str>,
    /// Who asked in the first place, and so whose it is.
    pub caller: Arc<Caller>,
    /// Ties together all that follows from one cause; inherited from `parent`
    /// where the sender gave none.
    pub correlation_id: Option<Arc<str>>,
    /// Of a durable event, two requests with one key are one request; of any other,
    /// whoever answers acts on it or not.
    pub idempotency_key: Option<Arc<str>>,
    /// How long after its acceptance this may be begun, where it is work that is of
    /// use for less than its event declares.
    pub expires_in: Option<Duration>,
    /// The request on whose behalf this was sent.
    pub parent: Option<Token>,
    /// The causal chain from plugin to plugin that this is the last step of;
    /// `None` where no plugin has sent it.
    pub chain: Option<Arc<str>>,
    /// When it passed the kernel, milliseconds since 1970.
    pub at_ms: u64,
    /// When the asker stops waiting; `None` for what was emitted.
    pub deadline_ms: Option<u64>,
    /// Chunks that may be sent before a `Credit`; `None` for any number.
    pub credit: Option<u32>,
    /// For the port that keeps work: how this is kept. A durable fact has it
    /// everywhere.
    pub work: Option<Arc<Policy>>,
}

/// What an asker must hold, from when it asks until it has its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Takes {
    /// What the event takes.
    Own,
    /// What another event takes: the daemon asks this one for whoever might do with that one what comes of
    /// it.
    Like(EventName),
    /// Nothing: the daemon has seen to it that this may be asked.
    Nothing,
}

/// A request, as its asker states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// The asker's name for it, unique among what it has in flight.
    pub id: Id,
    /// What is asked.
    pub event: EventName,
    /// The payload.
    pub data: Bytes,
    /// How long the asker waits; by default as long as the event declares.
    pub timeout: Option<Duration>,
    /// Chunks that may be sent before a credit.
    pub credit: Option<u32>,
    /// Ties together all that follows from one cause.
    pub correlation_id: Option<Arc<str>>,
    /// Of a durable event, two requests with one key are one request.
    pub idempotency_key: Option<Arc<str>>,
    /// Of a durable event: time after its acceptance from which it is not begun any
    /// more; at most what the event declares. Of any other it is refused.
    pub expires_in: Option<Duration>,
    /// What the asker holds and is asking for: this request ends with it.
    pub parent: Option<Token>,
    /// Whether its caller must hold what the event takes, besides the plugin
    /// that asks: for one that asks whatever it is told to.
    pub on_behalf: bool,
    /// What its asker must hold.
    pub takes: Takes,
    /// The causal chain that leads to this. Heeded only from a plugin.
    pub chain: Option<Arc<str>>,
    /// Who asked in the first place. Heeded only from the port that keeps work,
    /// under a durable event.
    pub caller: Option<Arc<Caller>>,
}

/// Takes a text away that has fewer or more bytes than it may: what is said of its
/// sender must not carry it on.
fn bound(field: &str, text: &mut Option<Arc<str>>, least: usize, most: usize) -> Result<(), Refusal> {
    match text.take_if(|text| !(least..=most).contains(&text.len())) {
        None => Ok(()),
        Some(text) => Err(refusals::wrong_length(field, text.len(), least, most)),
    }
}

impl Ask {
    /// Refuses texts that are longer or shorter than they may be, whoever sends them.
    pub(crate) fn bound(&mut self) -> Result<(), Refusal> {
        bound("correlation_id", &mut self.correlation_id, 0, limits::CORRELATION_ID_BYTES_MAX)?;
        bound("idempotency_key", &mut self.idempotency_key, 1, limits::IDEMPOTENCY_KEY_BYTES_MAX)
    }

    /// A request with nothing but what it needs.
    #[must_use]
    pub fn new(id: Id, event: EventName, data: Bytes) -> Self {
        Self {
            id,
            event,
            data,
            timeout: None,
            credit: None,
            correlation_id: None,
            idempotency_key: None,
            expires_in: None,
            parent: None,
            on_behalf: false,
            takes: Takes::Own,
            caller: None,
            chain: None,
        }
    }
}

/// Something to tell whoever listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emission {
    /// What happened.
    pub event: EventName,
    /// The payload.
    pub data: Bytes,
    /// Ties together all that follows from one cause.
    pub correlation_id: Option<Arc<str>>,
    /// The request on whose behalf it happened.
    pub parent: Option<Token>,
    /// Whose it is, where that request has ended or there was none.
    pub caller: Option<Arc<Caller>>,
    /// That the sender has no business with the tenant of that caller, so that it
    /// may only tell of it on behalf of a request.
    pub stranger: bool,
    /// The causal chain that leads to this. Heeded only from a plugin.
    pub chain: Option<Arc<str>>,
}

impl Emission {
    /// Refuses a text that is longer than it may be, whoever sends it.
    pub(crate) fn bound(&mut self) -> Result<(), Refusal> {
        bound("correlation_id", &mut self.correlation_id, 0, limits::CORRELATION_ID_BYTES_MAX)
    }

    /// An emission without a cause.
    #[must_use]
    pub fn new(event: EventName, data: Bytes) -> Self {
        Self { event, data, correlation_id: None, parent: None, caller: None, stranger: false, chain: None }
    }
}

/// What an owner says to a request. All but a chunk are the last word.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The one answer.
    Reply(Bytes),
    /// A part of a streamed answer.
    Chunk(Bytes),
    /// The last part of a streamed answer.
    End(Bytes),
    /// The request is safe as durable work and is no longer waited for: the
    /// result can be fetched by `request_id`, and nothing cancels it any more.
    Accepted {
        /// Name of the work.
        request_id: String,
        /// Its position in the journal.
        seq: u64,
    },
    /// No. Boxed, for it is rare and large.
    Refusal(Box<Refusal>),
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        Self::Refusal(Box::new(refusal))
    }
}

impl Answer {
    /// Whether nothing may follow it.
    #[must_use]
    pub fn is_last(&self) -> bool {
        !matches!(self, Self::Chunk(_))
    }
}

/// An interceptor's word.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Go on unchanged.
    Pass,
    /// Go on with this payload.
    Edit(Bytes),
    /// Go no further. The asker of a request gets the refusal; what was
    /// emitted is dropped.
    Refuse(Refusal),
}
