//! The way out of a plugin: what an instance says to its host.

use std::sync::Arc;

use ksi_abi::{FULL, INVALID, Kind, OK};
use ksi_protocol::{Bytes, Code, Refusal};

use crate::clock;

/// One message to the host, before it takes a form that can cross the ABI.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outgoing<'a> {
    pub(crate) kind: Kind,
    pub(crate) id: u64,
    pub(crate) arg: u64,
    pub(crate) name: &'a str,
    pub(crate) payload: &'a [u8],
    pub(crate) meta: &'a [u8],
}

impl Outgoing<'_> {
    pub(crate) const fn new(kind: Kind, id: u64) -> Self {
        Self { kind, id, arg: 0, name: "", payload: &[], meta: &[] }
    }
}

/// The host of an instance. Both calls are allowed from any thread.
pub(crate) trait Link: Send + Sync {
    /// Hands a message over; the number is a status of the ABI.
    fn send(&self, message: &Outgoing<'_>) -> u32;
    /// Asks for a poll.
    fn wake(&self);
    /// Milliseconds since 1970, on a clock that never goes backwards.
    fn now_ms(&self) -> u64 {
        clock::now_ms()
    }
}

/// Sends, and turns the status into a refusal.
pub(crate) fn send(link: &Arc<dyn Link>, message: &Outgoing<'_>) -> Result<(), Refusal> {
    match link.send(message) {
        OK => Ok(()),
        FULL => {
            Err(Refusal::new(Code::Busy, "the daemon's queue for this plugin is full").retry_after_ms(50))
        }
        INVALID => Err(Refusal::new(Code::InvalidFrame, format!("the host refused {:?}", message.kind))),
        _ => Err(Refusal::new(Code::Unavailable, "the host is gone")),
    }
}

/// Encodes an answer, or the refusal that says why it cannot be encoded.
pub(crate) fn encode<T: serde::Serialize + ?Sized>(value: &T) -> Result<Bytes, Refusal> {
    ksi_protocol::encode(value)
        .map_err(|error| Refusal::new(Code::Internal, format!("cannot encode the payload: {error}")))
}
