//! Events on their way to one client.

use std::sync::Arc;

use bytes::BytesMut;
use ksi_kernel::Envelope;
use ksi_protocol::{
    fanout::{self, Tail},
    frame::Id,
};

use super::face::Face;

/// An event in the form that its face needs.
#[derive(Debug, Clone)]
pub enum Body {
    /// Encoded once for all clients that speak frames.
    Tail(Tail),
    /// For the JSON face, which is encoded when it is written.
    Envelope(Arc<Envelope>),
}

impl Body {
    /// Bytes that it is charged for while it waits.
    pub(super) fn bytes(&self) -> usize {
        64 + match self {
            Self::Tail(tail) => tail.len(),
            Self::Envelope(envelope) => envelope.data.len(),
        }
    }
}

/// Appends an event to what goes into the socket.
pub(super) fn put_event(face: &mut Face, buffer: &mut BytesMut, id: Id, seq: u64, body: &Body) {
    match body {
        Body::Tail(tail) => fanout::put(buffer, id, seq, tail),
        Body::Envelope(envelope) => face.event(id, seq, envelope, buffer),
    }
}
