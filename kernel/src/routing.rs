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
use ksi_identity::{Caller, Decision, Permission};
use ksi_protocol::{
    EventName, Refusal,
    frame::{Id, Stage},
};

use crate::{
    effects::{Delivery, Effects, Fact},
    envelope::{Answer, Ask, Emission, Envelope, Takes, Token},
    interception::EMISSION_LIMIT,
    kernel::Kernel,
    pending::{Address, Held, Matter, Pending, Request, Word},
    port::{EndpointId, Port, Role},
    refusals::{self, EVERY_TENANT, Fault},
    registry::{Entry, Receiver},
    subscriptions::Listener,
};

impl<H: Clone + Send + Sync + 'static> Kernel<H> {
    /// Tells all who listen but `port` itself and, where the event is durable,
    /// the port that keeps work, whoever `port` is. Returns how many
    /// subscriptions were told or, where interceptors have the word first, how
    /// many listen now.
    ///
    /// # Errors
    ///
    /// `denied` where the grant does not cover it, `cancelled` from a port that
    /// is detached, `invalid_frame` where its correlation id is too long, `too_large` where its causal chain goes too far or in a
    /// circle, the reason of a freeze from a client; of a durable fact `unavailable` while nobody keeps work, and
    /// `busy` while whoever does has as much as it may hold. Then nobody is
    /// told.
    pub fn emit(
        &self,
        port: &Arc<Port<H>>,
        emission: Emission,
        now_ms: u64,
        effects: &mut Effects<H>,
    ) -> Result<usize, Refusal> {
        self.counters.emits.add(1);
        let may = self.may_emit(port, emission, now_ms);
        let (envelope, bit, kept) = may.inspect_err(|_| self.counters.refusals.add(1))?;
        let Some(rest) = self.interceptors.of(Stage::Before, &envelope.event, port, None) else {
            return Ok(self.tell(port.id, envelope, bit, kept, effects));
        };
        let mut listening = 0;
        self.listening(port.id, &envelope, bit, |_| listening += 1);
        let payer = Arc::clone(&envelope.caller.principal.payer);
        let held = Held::Emission { from: port.id, envelope, bit, kept };
        let deadline_ms = now_ms.saturating_add(millis(EMISSION_LIMIT));
        self.consult(Word::over(held, payer, rest, deadline_ms), now_ms, effects);
        Ok(listening)
    }

    /// What is told, the bit of what it takes to hear of it and, where it is
    /// durable, the token under which it is kept.
    fn may_emit(
        &self,
        port: &Arc<Port<H>>,
        mut emission: Emission,
        now_ms: u64,
    ) -> Result<(Envelope, u16, Option<Token>), Refusal> {
        emission.bound()?;
        if !port.is_open() {
            return Err(refusals::detached());
        }
        self.admit(port, &emission.event, true)?;
        port.send(now_ms)?;
        let chain = self.chains.next(port, &emission.event, emission.chain.as_deref())?;
        let events = self.registry.load();
        let Emission { event, data, correlation_id, parent, caller, stranger, .. } = emission;
        let cause = parent.and_then(|parent| self.pending.cause(port, parent).ok()).unwrap_or_default();
        let declared = events.get(event.as_str()).map(|entry| &entry.declared);
        let (emit, takes) = Permission::of(declared.and_then(|declared| declared.emit.as_ref()));
        let stranger = stranger && cause.caller.is_none();
        let decision = Decision {
            is_emission: true,
            correlation_id: correlation_id.as_deref().or(cause.correlation_id.as_deref()),
            right: match port.role {
                Role::Plugin if stranger => EVERY_TENANT,
                Role::Plugin => "emits",
                _ => takes,
            },
            allowed: !stranger
                && port.authority.is_granted(|rights| &rights.emits, &event)
                && port.authority.holds(emit, now_ms),
            audited: declared.is_some_and(|declared| declared.audited),
            ..port.authority.decision(&event, &data, now_ms)
        };
        self.decide(port.role, &decision)?;
        let (bit, _) = Permission::of(declared.and_then(|declared| declared.permission.as_ref()));
        let work = declared.and_then(|declared| declared.work.clone());
        let caller = cause.caller.or(caller).unwrap_or_else(|| Arc::clone(&port.authority.caller));
        let kept = work.as_ref().map(|_| self.charge_keeper(&event, &caller)).transpose()?;
        let envelope = Envelope {
            event,
            data,
            origin: Arc::clone(&port.origin),
            caller,
            correlation_id: correlation_id.or(cause.correlation_id),
            idempotency_key: None,
            expires_in: None,
            parent,
            chain,
            at_ms: now_ms,
            deadline_ms: None,
            credit: None,
            work,
        };
        Ok((envelope, bit, kept))
    }

    /// Charges the port that keeps work for a durable fact that it will be
    /// handed. It is charged until it answers.
    fn charge_keeper(&self, event: &EventName, caller: &Caller) -> Result<Token, Refusal> {
        let events = self.registry.load();
        let absent = || refusals::no_keeper(event);
        let keeper = events.keeper().ok_or_else(absent)?;
        let holder = Some(keeper.hold(&caller.principal.payer)?);
        let token = self.pending.issue();
        let (parent, children, matter) = (None, Vec::new(), Matter::Fact);
        self.pending.insert(token, Pending { holder, deadline_ms: u64::MAX, parent, children, matter });
        if keeper.is_open() {
            return Ok(token);
        }
        // Whoever detached it may have missed this.
        self.pending.take(token);
        Err(absent())
    }

    /// Tells all who listen, except where it came from, and the port that keeps
    /// work where that was charged.
    pub(crate) fn tell(
        &self,
        from: EndpointId,
        envelope: Envelope,
        bit: u16,
        kept: Option<Token>,
        effects: &mut Effects<H>,
    ) -> usize {
        if let Some(token) = kept
            && let Some(keeper) = self.pending.holder(token)
        {
            effects.push(&keeper, Delivery::Request { token, envelope: Box::new(envelope.clone()) });
        }
        let mut to = Vec::new();
        self.listening(from, &envelope, bit, |one| {
            to.push(Arc::clone(one));
        });
        let told = to.len();
        self.counters.deliveries.add(told);
        if told > 0 {
            effects.facts.push(Fact { envelope: Arc::new(envelope), to });
        }
        told
    }

    /// Calls `each` for all who listen to what was told and may hear of it, but
    /// for where it came from.
    fn listening(
        &self,
        from: EndpointId,
        envelope: &Envelope,
        bit: u16,
        mut each: impl FnMut(&Arc<Listener<H>>),
    ) {
        let (event, tenant) = (&envelope.event, envelope.caller.principal.tenant.as_deref());
        self.subscriptions.each(event, |one| {
            if one.port.id != from
                && one.port.is_open()
                && one.port.authority.hears(event, tenant, bit, envelope.at_ms)
            {
                each(one);
            }
        });
    }

    /// Asks the owner of an event. Exactly one last answer comes back to
    /// `port` in some call's effects, maybe in this one's.
    pub fn request(&self, port: &Arc<Port<H>>, mut ask: Ask, now_ms: u64, effects: &mut Effects<H>) {
        self.counters.requests.add(1);
        let bounded = ask.bound();
        let token = self.pending.issue();
        let to = Address {
            asker: Arc::clone(port),
            id: ask.id,
            event: ask.event.clone(),
            correlation_id: ask.correlation_id.clone(),
            bit: None,
        };
        if let Err(refusal) = bounded.and_then(|()| self.open(port, token, ask, now_ms, effects)) {
            self.deliver_answer(token, to, refusal.into(), effects);
        }
    }

    /// An error means that the request never existed; one that fails later
    /// is ended by whoever finds out.
    fn open(
        &self,
        port: &Arc<Port<H>>,
        token: Token,
        mut ask: Ask,
        now_ms: u64,
        effects: &mut Effects<H>,
    ) -> Result<(), Refusal> {
        self.admit(port, &ask.event, false)?;
        port.send(now_ms)?;
        ask.chain = self.chains.next(port, &ask.event, ask.chain.as_deref())?;
        let events = self.registry.load();
        let entry = events.find(&ask.event);
        let dispatched = entry.as_ref().is_ok_and(|entry| events.is_dispatched_by(port, entry));
        let cause =
            ask.parent.map(|parent| self.pending.cause(port, parent)).transpose()?.unwrap_or_default();
        let theirs = if dispatched { ask.caller.take() } else { cause.caller };
        let caller = theirs.unwrap_or_else(|| Arc::clone(&port.authority.caller));
        ask.correlation_id = ask.correlation_id.take().or(cause.correlation_id);
        let (entry, bit) = self.decide_request(port, &ask, entry, dispatched, &caller, now_ms)?;
        let to = events.receiver(entry, dispatched)?;
        if ask.expires_in.is_some() && to.work.is_none() {
            return Err(refusals::never_expires(&ask.event));
        }
        // What is asked on behalf of another never outlives it.
        let deadline_ms = now_ms.saturating_add(millis(to.timeout(ask.timeout)));
        let deadline_ms = deadline_ms.min(cause.deadline_ms.unwrap_or(u64::MAX));
        let request = Request {
            asker: Arc::clone(port),
            id: ask.id,
            event: ask.event.clone(),
            correlation_id: ask.correlation_id.clone(),
            asked_ms: now_ms,
            caller: Arc::clone(&caller),
            bit: (ask.takes != Takes::Nothing).then_some(bit),
            credit: 0,
            is_the_daemons: false,
        };
        let envelope = Envelope {
            event: ask.event,
            data: ask.data,
            origin: Arc::clone(if dispatched { &caller.origin } else { &port.origin }),
            caller,
            correlation_id: ask.correlation_id,
            idempotency_key: ask.idempotency_key,
            expires_in: ask.expires_in,
            parent: ask.parent,
            chain: ask.chain,
            at_ms: now_ms,
            deadline_ms: Some(deadline_ms),
            credit: ask.credit,
            work: None,
        };
        self.begin(port, token, request, envelope, &to, effects)
    }

    /// Decides whether this may be asked in that name. Returns what is known of the
    /// event, and the bit of what it takes.
    fn decide_request<'a>(
        &self,
        port: &Port<H>,
        ask: &Ask,
        entry: Result<&'a Entry<H>, Refusal>,
        dispatched: bool,
        caller: &Caller,
        now_ms: u64,
    ) -> Result<(&'a Entry<H>, u16), Refusal> {
        let declared = entry.as_ref().ok().map(|entry| &entry.declared);
        let others;
        let (bit, takes) = match &ask.takes {
            Takes::Like(event) => {
                others = self.registry.load();
                others.permission(event)
            }
            Takes::Own | Takes::Nothing => {
                Permission::of(declared.and_then(|declared| declared.permission.as_ref()))
            }
        };
        let granted = match ask.event.manager() {
            Some(manager) => port.origin.strip_prefix("plugin:") == Some(manager),
            None => dispatched || port.authority.is_granted(|rights| &rights.may_call, &ask.event),
        };
        let entry = if granted { Ok(entry?) } else { entry };
        let holds = match dispatched || ask.on_behalf {
            true => caller.principal.holds(bit, now_ms),
            false => port.authority.holds(bit, now_ms),
        };
        let decision = Decision {
            caller,
            correlation_id: ask.correlation_id.as_deref(),
            right: if granted { takes } else { "may_call" },
            allowed: granted && (holds || ask.takes == Takes::Nothing),
            // What was kept was decided when it was asked.
            audited: !dispatched && declared.is_some_and(|declared| declared.audited),
            ..port.authority.decision(&ask.event, &ask.data, now_ms)
        };
        self.decide(port.role, &decision)?;
        Ok((entry?, bit))
    }

    /// Lets a request exist that may be asked, and sends it on its way.
    fn begin(
        &self,
        port: &Arc<Port<H>>,
        token: Token,
        request: Request<H>,
        envelope: Envelope,
        to: &Receiver<'_, H>,
        effects: &mut Effects<H>,
    ) -> Result<(), Refusal> {
        let (id, now_ms) = (request.id, request.asked_ms);
        let (parent, deadline_ms) = (envelope.parent, envelope.deadline_ms.unwrap_or(u64::MAX));
        let matter = Matter::Request(request);
        let pending = Pending { holder: None, deadline_ms, parent, children: Vec::new(), matter };
        let ends_ms = pending.ends_ms();
        self.pending.open(token, id, port, pending)?;
        self.pending.schedule(ends_ms, effects);
        if let Some(parent) = parent
            && !self.pending.link(parent, token)
        {
            self.fail(token, refusals::parent_ended(parent), effects);
            return Ok(());
        }
        let heard = || self.interceptors.of(Stage::Before, &envelope.event, port, Some(to.port));
        // What was kept has passed its interceptors, when it was asked.
        match if to.dispatched { None } else { heard() } {
            None => self.hand_over(token, envelope, to, effects),
            Some(rest) => {
                let payer = Arc::clone(&envelope.caller.principal.payer);
                let held = Held::Request { token, envelope };
                self.consult(Word::over(held, payer, rest, deadline_ms), now_ms, effects);
            }
        }
        Ok(())
    }

    /// Gives an open request to whoever is to have it.
    pub(crate) fn hand_over(
        &self,
        token: Token,
        mut envelope: Envelope,
        to: &Receiver<'_, H>,
        effects: &mut Effects<H>,
    ) {
        let port = to.port;
        let hold = match port.hold(&envelope.caller.principal.payer) {
            Ok(hold) => hold,
            Err(refusal) => return self.fail(token, refusal, effects),
        };
        let Some(early) = self.pending.entrust(token, hold) else { return };
        if !port.is_open() {
            return self.fail(token, to.gone(), effects);
        }
        envelope.work = to.policy(envelope.expires_in);
        envelope.credit = envelope.credit.map(|credit| credit.saturating_add(early));
        self.counters.deliveries.add(1);
        effects.push(port, Delivery::Request { token, envelope: Box::new(envelope) });
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
                // What goes on for long ends when the right to it does.
                if !to.may_hear(now_ms) {
                    self.fail(token, to.revoked(now_ms), effects);
                    return Ok(());
                }
                self.deliver_answer(token, to, answer, effects);
                return Ok(());
            }
            other => return self.conclude(port, token, other, now_ms, effects),
        };
        let wanted =
            |request: &Request<H>| self.interceptors.of(Stage::After, &request.event, &request.asker, None);
        let Some((rest, event, deadline_ms, hold)) = self.pending.review(token, port, wanted) else {
            return self.conclude(port, token, last(data), now_ms, effects);
        };
        port.count_handled();
        let held = Held::Answer { token, event, origin: Arc::clone(&port.origin), data, last };
        let payer = Arc::clone(&hold.payer);
        drop(hold);
        self.consult(Word::over(held, payer, rest, deadline_ms), now_ms, effects);
        Ok(())
    }

    /// Ends a request with its owner's last answer.
    fn conclude(
        &self,
        port: &Port<H>,
        token: Token,
        answer: Answer,
        now_ms: u64,
        effects: &mut Effects<H>,
    ) -> Result<(), Fault> {
        let theirs = |entry: &Pending<H>| !entry.is_word() && entry.is_held_by(port);
        let Some(entry) = self.pending.take_if(token, theirs) else { return self.missing(token, port) };
        port.count_handled();
        self.finish(token, entry, answer, now_ms, effects);
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
