//! Routing: emit, request, answer, cancel, credit.
//!
//! Decides who receives an envelope, and says so in [`Effects`]. Who has a word
//! on the way is in `interception`, how a request ends in `endings`.
//!
//! # Failure
//!
//! Every refusal of a request reaches its asker as an answer, whether it is
//! found at once or later; the callers see only [`Fault`]s.

use std::sync::Arc;

use bytes::Bytes;
use ksi_protocol::{
    Refusal,
    frame::{Id, Stage},
    limits,
};

use crate::{
    effects::{Delivery, Effects},
    envelope::{Answer, Ask, Emission, Envelope, Token},
    interception::EMISSION_LIMIT,
    kernel::Kernel,
    pending::{Address, Held, Matter, Pending, Request, Word},
    port::{EndpointId, Port},
    refusals::{self, Fault},
    registry::Entry,
};

impl<H: Clone + Send + Sync + 'static> Kernel<H> {
    /// Tells all who listen but `port` itself. Returns how many subscriptions
    /// were told or, where interceptors have the word first, how many listen
    /// now.
    ///
    /// # Errors
    ///
    /// `denied` where the grant does not cover it, `cancelled` from a port that
    /// is detached.
    pub fn emit(
        &self,
        port: &Arc<Port<H>>,
        emission: Emission,
        now_ms: u64,
        effects: &mut Effects<H>,
    ) -> Result<usize, Refusal> {
        self.counters.emits.add(1);
        if !port.is_open() || !port.grant.allows_emission(&emission.event) {
            self.counters.refusals.add(1);
            let denied = || refusals::denied(port, &emission.event, "emits");
            return Err(if port.is_open() { denied() } else { refusals::detached() });
        }
        let inherited = || self.pending.cause(port, emission.parent?).ok()?.1;
        let envelope = Envelope {
            correlation_id: emission.correlation_id.or_else(inherited),
            event: emission.event,
            data: emission.data,
            origin: Arc::clone(&port.origin),
            idempotency_key: None,
            parent: emission.parent,
            at_ms: now_ms,
            deadline_ms: None,
            credit: None,
        };
        let Some(rest) = self.interceptors.chain(Stage::Before, &envelope.event, port) else {
            return Ok(self.tell(port.id, envelope, effects));
        };
        let mut listening = 0;
        self.subscriptions.each(&envelope.event, |one| listening += usize::from(one.port.id != port.id));
        let held = Held::Emission { from: port.id, envelope };
        let deadline_ms = now_ms.saturating_add(millis(EMISSION_LIMIT));
        self.consult(Word::over(held, rest, deadline_ms), now_ms, effects);
        Ok(listening)
    }

    /// Tells all who listen, except where it came from.
    pub(crate) fn tell(&self, from: EndpointId, envelope: Envelope, effects: &mut Effects<H>) -> usize {
        let envelope = Arc::new(envelope);
        let mut told = 0;
        self.subscriptions.each(&envelope.event, |one| {
            if one.port.id != from {
                told += 1;
                let (sub, class, envelope) = (one.id, one.class, Arc::clone(&envelope));
                effects.push(&one.port, Delivery::Event { sub, class, envelope });
            }
        });
        self.counters.deliveries.add(told);
        told
    }

    /// Asks the owner of an event. Exactly one last answer comes back to
    /// `port` in some call's effects, maybe in this one's.
    pub fn request(&self, port: &Arc<Port<H>>, ask: Ask, now_ms: u64, effects: &mut Effects<H>) {
        self.counters.requests.add(1);
        let token = self.pending.issue();
        let to = Address {
            asker: Arc::clone(port),
            id: ask.id,
            event: ask.event.clone(),
            correlation_id: ask.correlation_id.clone(),
        };
        if let Err(refusal) = self.open(port, token, ask, now_ms, effects) {
            self.deliver_answer(token, to, Answer::Refusal(refusal), effects);
        }
    }

    /// An error means that the request never existed; one that fails later
    /// is ended by whoever finds out.
    fn open(
        &self,
        port: &Arc<Port<H>>,
        token: Token,
        ask: Ask,
        now_ms: u64,
        effects: &mut Effects<H>,
    ) -> Result<(), Refusal> {
        if self.is_closed_to(port) {
            return Err(refusals::shutting_down());
        }
        if !port.grant.allows_call(&ask.event) {
            return Err(refusals::denied(port, &ask.event, "may_call"));
        }
        let events = self.registry.load();
        let entry = events.find(&ask.event)?;
        entry.owner()?;
        let timeout = ask.timeout.or(entry.declared.timeout).unwrap_or(limits::REQUEST_TIMEOUT);
        let mut deadline_ms = now_ms.saturating_add(millis(timeout.min(limits::REQUEST_TIMEOUT_MAX)));
        let mut correlation_id = ask.correlation_id;
        if let Some(parent) = ask.parent {
            let (parents_deadline_ms, inherited) = self.pending.cause(port, parent)?;
            deadline_ms = deadline_ms.min(parents_deadline_ms);
            correlation_id = correlation_id.or(inherited);
        }
        let request = Request {
            asker: Arc::clone(port),
            id: ask.id,
            event: ask.event.clone(),
            correlation_id: correlation_id.clone(),
            asked_ms: now_ms,
            credit: 0,
        };
        let envelope = Envelope {
            event: ask.event,
            data: ask.data,
            origin: Arc::clone(&port.origin),
            correlation_id,
            idempotency_key: ask.idempotency_key,
            parent: ask.parent,
            at_ms: now_ms,
            deadline_ms: Some(deadline_ms),
            credit: ask.credit,
        };
        let matter = Matter::Request(request);
        let pending = Pending { holder: None, deadline_ms, parent: ask.parent, children: Vec::new(), matter };
        self.pending.open(token, ask.id, port, pending)?;
        self.pending.schedule(deadline_ms, effects);
        if let Some(parent) = ask.parent
            && !self.pending.link(parent, token)
        {
            self.fail(token, refusals::parent_ended(parent), effects);
            return Ok(());
        }
        match self.interceptors.chain(Stage::Before, &envelope.event, port) {
            None => self.hand_over(token, envelope, entry, effects),
            Some(rest) => {
                let held = Held::Request { token, envelope };
                self.consult(Word::over(held, rest, deadline_ms), now_ms, effects);
            }
        }
        Ok(())
    }

    /// Gives an open request to the owner of its event.
    pub(crate) fn hand_over(
        &self,
        token: Token,
        mut envelope: Envelope,
        entry: &Entry<H>,
        effects: &mut Effects<H>,
    ) {
        let owner = match entry.owner() {
            Ok(owner) if owner.hold() => owner,
            Ok(owner) => return self.fail(token, refusals::holder_busy(owner), effects),
            Err(absent) => return self.fail(token, absent, effects),
        };
        let Some(early) = self.pending.entrust(token, owner) else { return owner.let_go() };
        if !owner.is_open() {
            return self.fail(token, entry.absent(), effects);
        }
        envelope.credit = envelope.credit.map(|credit| credit.saturating_add(early));
        self.counters.deliveries.add(1);
        effects.push(owner, Delivery::Request { token, envelope });
    }

    /// Passes on what an owner says to a request that it holds. An answer to
    /// one that has ended meanwhile is dropped and counted.
    ///
    /// # Errors
    ///
    /// A fault where the token was never this port's to answer.
    pub fn answer(
        &self,
        port: &Arc<Port<H>>,
        token: Token,
        answer: Answer,
        now_ms: u64,
        effects: &mut Effects<H>,
    ) -> Result<(), Fault> {
        let heard = self.interceptors.any();
        let (data, last): (_, fn(Bytes) -> Answer) = match answer {
            Answer::Reply(data) if heard => (data, Answer::Reply),
            Answer::End(data) if heard => (data, Answer::End),
            Answer::Chunk(_) => {
                let Some(to) = self.pending.address(token, port) else { return self.missing(token, port) };
                self.deliver_answer(token, to, answer, effects);
                return Ok(());
            }
            other => return self.conclude(port, token, other, effects),
        };
        let chain =
            |request: &Request<H>| self.interceptors.chain(Stage::After, &request.event, &request.asker);
        let Some((rest, event, deadline_ms)) = self.pending.review(token, port, chain) else {
            return self.conclude(port, token, last(data), effects);
        };
        port.count_handled();
        let held = Held::Answer { token, event, origin: Arc::clone(&port.origin), data, last };
        self.consult(Word::over(held, rest, deadline_ms), now_ms, effects);
        Ok(())
    }

    /// Ends a request with its owner's last answer.
    fn conclude(
        &self,
        port: &Port<H>,
        token: Token,
        answer: Answer,
        effects: &mut Effects<H>,
    ) -> Result<(), Fault> {
        let theirs = |entry: &Pending<H>| entry.is_request() && entry.is_held_by(port);
        let Some(entry) = self.pending.take_if(token, theirs) else { return self.missing(token, port) };
        port.count_handled();
        self.end(token, entry, answer, effects);
        Ok(())
    }

    /// What it means that a token is not there to be answered.
    pub(crate) fn missing(&self, token: Token, port: &Port<H>) -> Result<(), Fault> {
        match self.pending.fault(token, port) {
            Some(fault) => Err(fault),
            None => {
                self.counters.late.add(1);
                Ok(())
            }
        }
    }

    /// Gives up a request: its owner is told, and its asker has its last
    /// answer at once. Where it has ended already, nothing happens.
    pub fn cancel(&self, port: &Arc<Port<H>>, id: Id, effects: &mut Effects<H>) {
        let token = port.asks().get(&id).copied();
        if let Some(token) = token {
            self.fail(token, refusals::cancelled(), effects);
        }
    }

    /// Allows `n` more chunks of the answer to a request. Whether the owner
    /// keeps to it is not looked after here.
    pub fn credit(&self, port: &Arc<Port<H>>, id: Id, n: u32, effects: &mut Effects<H>) {
        let token = port.asks().get(&id).copied();
        if let Some(token) = token
            && let Some(owner) = self.pending.credit(token, n)
        {
            effects.push(&owner, Delivery::Credit { token, n });
        }
    }
}

/// A duration as the kernel counts time.
pub(crate) fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
