//! Telling a fact to all who listen, those who read before those who do not.
//!
//! What is told to a client whose socket is full goes into its ring, where the
//! oldest makes room and is counted. A hundred such clients cost more than the
//! write to the one who reads, and it shall not wait for them: they hear once
//! the turn has written everybody else's socket.
//!
//! # Invariants
//!
//! - What one turn says to one client keeps its order: who has something put off
//!   has what follows put off as well, and an answer comes after it. A client's
//!   own turn puts nothing off for it.
//! - A turn puts off a bounded number of events, and none beyond its end.

use std::sync::Arc;

use ksi_kernel::{Envelope, Fact, Listener};
use ksi_protocol::fanout::tail;

use super::{Handle, Turn};
use crate::session::{body::Body, outbox::Outbox};

/// Events that a turn puts off before it tells them all.
const LATE_MAX: usize = 4096;

/// What a turn has put off.
#[derive(Default)]
pub(super) struct Late {
    facts: Vec<Telling>,
    events: usize,
}

impl Late {
    pub(super) fn is_empty(&self) -> bool {
        self.facts.is_empty()
    }
}

/// A fact on its way to some listeners.
struct Telling {
    envelope: Arc<Envelope>,
    /// The part that all clients of the binary face share; encoded for the first.
    tail: Option<Body>,
    to: Vec<Arc<Listener<Handle>>>,
}

impl Telling {
    /// Puts it into the queue of a client; whether that wants to be written.
    fn tell(&mut self, outbox: &Outbox, one: &Listener<Handle>) -> bool {
        let Self { envelope, tail, .. } = self;
        let name = envelope.event.as_str();
        if outbox.wants_tail {
            let tail = tail.get_or_insert_with(|| encoded(envelope));
            outbox.event(one.sub, one.class, name, tail)
        } else {
            outbox.event(one.sub, one.class, name, &Body::Envelope(Arc::clone(envelope)))
        }
    }
}

impl Turn<'_> {
    /// Tells all who listen, but puts off those whose socket is full. The kernel
    /// is not asked here, so nothing new is decided meanwhile.
    pub(super) fn tell(&mut self, fact: Fact<Handle>) {
        let Fact { envelope, mut to } = fact;
        let mut telling = Telling { envelope, tail: None, to: Vec::new() };
        to.retain(|one| match &one.port.handle {
            Handle::Session(outbox) if outbox.hears_late() && !self.is_caller(outbox) => {
                outbox.put_off();
                true
            }
            Handle::Session(outbox) => {
                if telling.tell(outbox, one) {
                    self.touch(outbox);
                }
                false
            }
            Handle::Daemon | Handle::Actor(_) | Handle::Link(_) => {
                self.deliver(&one.port, one.delivery(&telling.envelope));
                false
            }
        });
        telling.to = to;
        if telling.to.is_empty() {
            return;
        }
        self.late.events += telling.to.len();
        self.late.facts.push(telling);
        if self.late.events > LATE_MAX {
            self.flush();
        }
    }

    /// Before something else is said to a client: what was put off for it is told.
    pub(super) fn keep_order(&mut self, outbox: &Outbox) {
        if !self.late.is_empty() && outbox.hears_late() {
            self.tell_late();
        }
    }

    /// Tells what was put off.
    pub(super) fn tell_late(&mut self) {
        for mut telling in std::mem::take(&mut self.late).facts {
            for one in std::mem::take(&mut telling.to) {
                let Handle::Session(outbox) = &one.port.handle else { continue };
                if telling.tell(outbox, &one) {
                    self.touch(outbox);
                }
                outbox.caught_up();
            }
        }
    }
}

fn encoded(envelope: &Envelope) -> Body {
    Body::Tail(tail(
        envelope.event.as_str(),
        &envelope.data,
        &envelope.origin,
        envelope.at_ms,
        envelope.correlation_id.as_deref(),
    ))
}

#[cfg(test)]
mod tests;
