//! Effects: what is to be carried out after a call.

use std::sync::Arc;

use bytes::Bytes;
use ksi_identity::Caller;
use ksi_protocol::{
    EventName,
    frame::{Class, Id, Stage},
};

use crate::{
    envelope::{Answer, Envelope, Token},
    port::Port,
    subscriptions::Listener,
};

/// Something to put into a port's outbox.
#[derive(Debug, Clone, PartialEq)]
pub enum Delivery {
    /// To an owner: answer this.
    Request {
        /// Names it in the answer.
        token: Token,
        /// What is asked.
        envelope: Box<Envelope>,
    },
    /// To a subscriber: this happened. Its sequence number is the outbox's
    /// matter.
    Event {
        /// The subscription.
        sub: Id,
        /// What happens when its reader is slow.
        class: Class,
        /// What happened, shared by all who are told.
        envelope: Arc<Envelope>,
    },
    /// To an owner or interceptor: nobody waits for this any more.
    Cancel {
        /// As in the request or the question.
        token: Token,
    },
    /// To an owner: so many more chunks are welcome.
    Credit {
        /// As in the request.
        token: Token,
        /// How many.
        n: u32,
    },
    /// To an asker.
    Answer {
        /// The asker's own id.
        id: Id,
        /// The kernel's: tells a stray chunk of an ended request from one of
        /// a new request under the same id.
        token: Token,
        /// What was asked.
        event: EventName,
        /// The answer.
        answer: Answer,
        /// As in the request.
        correlation_id: Option<Arc<str>>,
    },
    /// To an interceptor: may this pass?
    Intercept {
        /// Names it in the verdict.
        token: Token,
        /// Which of the receiver's interceptors is asked.
        index: u32,
        /// Before or after.
        stage: Stage,
        /// The event under way.
        event: EventName,
        /// Its payload, or the reply's.
        data: Bytes,
        /// Who sent it: asker, emitter or, after, the owner.
        origin: Arc<str>,
        /// Who asked in the first place; not known after.
        caller: Option<Arc<Caller>>,
    },
}

/// One of these is moved several times for each request.
const _: () = assert!(size_of::<Delivery>() <= 96);

/// Something that happened, and all who are told: one for all of them, so that
/// each costs no more than a place in a list.
pub struct Fact<H> {
    /// What happened.
    pub envelope: Arc<Envelope>,
    /// Who is told.
    pub to: Vec<Arc<Listener<H>>>,
}

/// What a call has decided, in the order in which it is to be carried out:
/// facts first. Meant to be drained and used again.
pub struct Effects<H> {
    /// What happened, and who is told.
    pub facts: Vec<Fact<H>>,
    /// Where to, and what: all but events.
    pub deliveries: Vec<(Arc<Port<H>>, Delivery)>,
    /// A new earliest deadline: call [`Kernel::expire`] then, and no later.
    ///
    /// [`Kernel::expire`]: crate::Kernel::expire
    pub deadline: Option<u64>,
}

impl<H> Effects<H> {
    /// Nothing to do.
    #[must_use]
    pub fn new() -> Self {
        Self { facts: Vec::new(), deliveries: Vec::new(), deadline: None }
    }

    /// All deliveries, one by one.
    #[cfg(test)]
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = (Arc<Port<H>>, Delivery)> {
        let told = self.facts.drain(..).flat_map(|fact| {
            let Fact { envelope, to } = fact;
            to.into_iter().map(move |one| (Arc::clone(&one.port), one.delivery(&envelope)))
        });
        told.chain(self.deliveries.drain(..))
    }

    /// Adds a delivery; what is for a port that is gone is dropped.
    pub(crate) fn push(&mut self, port: &Arc<Port<H>>, delivery: Delivery) {
        if port.is_open() {
            self.deliveries.push((Arc::clone(port), delivery));
        }
    }
}

impl<H> Default for Effects<H> {
    fn default() -> Self {
        Self::new()
    }
}
