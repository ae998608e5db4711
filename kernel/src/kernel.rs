//! The kernel itself: its tables, and everything that changes who is there.
//!
//! What happens to envelopes is in `routing`, `interception` and `endings`.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU8, Ordering},
};

use arc_swap::ArcSwapOption;
use ksi_identity::{Authority, Decision, Rights, Witness};
use ksi_protocol::{
    EventName, Pattern, Refusal,
    descriptor::InterceptSpec,
    frame::{Class, Id},
};

use crate::{
    chain::Chains,
    figures::{Counters, Figures},
    interceptors::Interceptors,
    pending::Table,
    port::{Port, Quota, Role, Slots},
    refusals,
    registry::{Declared, Registry},
    subscriptions::Subscriptions,
};

/// The routing machine. `H` is the daemon's handle of an endpoint, which the
/// kernel keeps and never looks into.
pub struct Kernel<H> {
    pub(crate) slots: Slots,
    pub(crate) registry: Registry<H>,
    pub(crate) subscriptions: Subscriptions<H>,
    pub(crate) interceptors: Interceptors<H>,
    pub(crate) pending: Table<H>,
    pub(crate) counters: Counters,
    witness: OnceLock<Arc<dyn Witness>>,
    pub(crate) chains: Chains,
    /// [`CLOSING`] and [`FROZEN`]; 0 nearly always.
    gate: AtomicU8,
    /// What those hear who are stopped by a freeze.
    frozen: ArcSwapOption<Refusal>,
}

/// Clients are asked nothing of any more: the daemon stops.
const CLOSING: u8 = 1;
/// Only what goes on under a freeze is let through.
const FROZEN: u8 = 2;

impl<H: Clone + Send + Sync + 'static> Default for Kernel<H> {
    fn default() -> Self {
        Self::new()
    }
}

impl<H: Clone + Send + Sync + 'static> Kernel<H> {
    /// A kernel that knows nobody.
    #[must_use]
    pub fn new() -> Self {
        Self::with(Chains::default())
    }

    /// One in which causal chains go as far as this.
    #[must_use]
    pub fn with(chains: Chains) -> Self {
        Self {
            slots: Slots::default(),
            registry: Registry::new(),
            subscriptions: Subscriptions::new(),
            interceptors: Interceptors::new(),
            pending: Table::new(),
            counters: Counters::default(),
            witness: OnceLock::new(),
            chains,
            gate: AtomicU8::new(0),
            frozen: ArcSwapOption::empty(),
        }
    }

    /// Attaches an endpoint. Two attachments of one origin are two ports.
    pub fn attach(&self, role: Role, handle: H, quota: Quota, authority: Authority) -> Arc<Port<H>> {
        Arc::new(Port::new(self.slots.take(), role, handle, quota, authority))
    }

    /// Shows somebody the decisions on who may send what that are to be remembered,
    /// from now on. Only the first one is heeded; while there is none, showing costs
    /// nothing.
    pub fn show(&self, witness: Arc<dyn Witness>) {
        // Whoever comes second is not there.
        let _ = self.witness.set(witness);
    }

    /// Shows a decision, and refuses where it was against the sender.
    pub(crate) fn decide(&self, role: Role, decision: &Decision<'_>) -> Result<(), Refusal> {
        if (decision.audited || !decision.allowed)
            && let Some(witness) = self.witness.get()
        {
            witness.decided(decision);
        }
        if decision.allowed { Ok(()) } else { Err(refusals::denied(role, decision)) }
    }

    /// Whether a port may hear of an event of a tenant, for those who tell it of
    /// what it has not subscribed to here.
    #[must_use]
    pub fn hears(&self, port: &Port<H>, event: &EventName, tenant: Option<&str>, now_ms: u64) -> bool {
        let bit = self.registry.load().permission(event).0;
        port.authority.hears(event, tenant, bit, now_ms)
    }

    /// Says which events exist, whether or not somebody answers them now;
    /// whoever asks for one without an owner gets `absent`. Replaces what
    /// `declarer` declared before; an event that is declared again keeps its
    /// owner. Returns the events that somebody else declares, which are left as
    /// they were.
    ///
    /// `declarer` is the origin of the port that will own them.
    pub fn declare(&self, declarer: &str, events: &[Declared], absent: Refusal) -> Vec<EventName> {
        self.registry.declare(declarer, events, absent)
    }

    /// Forgets what `declarer` declared, and the interceptors that failed
    /// closed when its port was detached. Asking for its events is
    /// `unknown_event` from now on, even where a port still answers them.
    pub fn forget(&self, declarer: &str) {
        self.registry.forget(declarer);
        self.interceptors.forget(declarer);
    }

    /// Grants this to the interceptors of an origin, from the next event on: those
    /// of ports that are gone, too.
    pub fn grant_interceptors(&self, origin: &str, rights: &Rights) {
        self.interceptors.grant(origin, rights);
    }

    /// Has all refused that matches one of these, until this origin intercepts
    /// something or [`Kernel::forget_interceptors`]: a gate is not open before its
    /// guard is there.
    pub fn expect_interceptor(&self, origin: &str, intercepts: Vec<Pattern>) {
        self.interceptors.expect(origin, intercepts);
    }

    /// Lets go of what ports of an origin that are gone have left, and of what is
    /// expected of it.
    pub fn forget_interceptors(&self, origin: &str) {
        self.interceptors.forget(origin);
    }

    /// From now on this port answers these events, all or none of them. An
    /// event that nobody declared is declared by its origin.
    ///
    /// # Errors
    ///
    /// `conflict` where another attached port owns one of them.
    pub fn own(&self, port: &Arc<Port<H>>, events: &[EventName]) -> Result<(), Refusal> {
        self.registry.own(port, events)
    }

    /// From now on this port keeps work: requests for durable events, and
    /// durable facts, are handed to it; what it asks for itself under a durable
    /// event goes to that event's owner.
    ///
    /// # Errors
    ///
    /// `conflict` where another attached port keeps work.
    pub fn keep(&self, port: &Arc<Port<H>>) -> Result<(), Refusal> {
        self.registry.keep(port)
    }

    /// The port that keeps work.
    #[must_use]
    pub fn keeper(&self) -> Option<Arc<Port<H>>> {
        self.registry.load().keeper().cloned()
    }

    /// Who answers an event now.
    #[must_use]
    pub fn owner(&self, event: &str) -> Option<Arc<Port<H>>> {
        self.registry.load().get(event).and_then(|entry| entry.owner().ok().cloned())
    }

    /// What is declared of an event.
    #[must_use]
    pub fn declared(&self, event: &str) -> Option<Declared> {
        self.registry.load().get(event).map(|entry| entry.declared.clone())
    }

    /// Tells this port of every event that matches, until it unsubscribes.
    ///
    /// # Errors
    ///
    /// `denied` where the pattern is one event that it may not hear of; of those
    /// that a wildcard covers it hears what it may. `conflict` where it has a
    /// subscription of that id, `busy` over its quota, `unavailable` for [`Class::Durable`]: the port that keeps work is
    /// asked for that.
    pub fn subscribe(
        &self,
        port: &Arc<Port<H>>,
        id: Id,
        pattern: Pattern,
        class: Class,
        now_ms: u64,
    ) -> Result<(), Refusal> {
        if class == Class::Durable {
            return Err(refusals::no_durable(&pattern));
        }
        self.may_follow(port, &pattern, now_ms)?;
        self.subscriptions.add(port, id, pattern, class)
    }

    /// Refuses a pattern that is one event of which this port may not hear.
    ///
    /// # Errors
    ///
    /// `denied`.
    pub fn may_follow(&self, port: &Port<H>, pattern: &Pattern, now_ms: u64) -> Result<(), Refusal> {
        let Some(event) = pattern.exact() else { return Ok(()) };
        let events = self.registry.load();
        let (bit, name) = events.permission(&event);
        let held = port.authority.holds(bit, now_ms).then_some(());
        held.ok_or_else(|| refusals::lacks(&port.authority.caller, "hear", &event, name))
    }

    /// Ends a subscription. An event that is being routed may still come.
    ///
    /// # Errors
    ///
    /// `not_found` where there is none of that id.
    pub fn unsubscribe(&self, port: &Arc<Port<H>>, id: Id) -> Result<(), Refusal> {
        self.subscriptions.remove(port, id)
    }

    /// Gives this port a word on all that matches one of these: before requests and
    /// emissions, or after replies and ends, lower `order` first. Chunks are
    /// not intercepted, nor is what the port itself sends or asks for.
    ///
    /// With `fail_open` things go on when it is dead, silent or busy, otherwise
    /// they are refused. The port is told by its place among `specs` for which of its
    /// interceptors it is asked. What earlier ports of its origin have left, and what
    /// is expected of it, goes with the same step, also where there are no `specs`.
    pub fn intercept(&self, port: &Arc<Port<H>>, specs: impl IntoIterator<Item = InterceptSpec>) {
        self.interceptors.add(port, specs);
    }

    /// From now on requests of clients are refused `shutting_down`. Everything
    /// else goes on: answers, cancels, events, and what plugins and the daemon
    /// ask, because what is in flight may need it.
    pub fn close(&self) {
        self.gate.fetch_or(CLOSING, Ordering::Relaxed);
    }

    /// From now on, until it is called with `None`, requests are refused with
    /// `reason`, whoever asks, but for events that are declared to go on under a
    /// freeze; and so is what clients emit. What is in flight goes on.
    pub fn freeze(&self, reason: Option<Refusal>) {
        let frozen = reason.is_some();
        // The reason is there before anybody looks for it, and longer.
        if frozen {
            self.frozen.store(reason.map(Arc::new));
            self.gate.fetch_or(FROZEN, Ordering::Release);
        } else {
            self.gate.fetch_and(!FROZEN, Ordering::Release);
            self.frozen.store(None);
        }
    }

    /// Whether a port may send now. One look at a number unless something is up.
    pub(crate) fn admit(&self, port: &Port<H>, event: &EventName, fact: bool) -> Result<(), Refusal> {
        let gate = self.gate.load(Ordering::Acquire);
        if gate & CLOSING != 0 && port.role == Role::Client && !fact {
            return Err(refusals::shutting_down());
        }
        let stopped = gate & FROZEN != 0
            && match fact {
                true => port.role == Role::Client,
                false => {
                    !self.registry.load().get(event.as_str()).is_none_or(|entry| entry.declared.unfrozen)
                }
            };
        match self.frozen.load().as_ref().filter(|_| stopped) {
            Some(reason) => Err(Refusal::clone(reason)),
            None => Ok(()),
        }
    }

    /// What has been done so far, and what is open.
    #[must_use]
    pub fn figures(&self) -> Figures {
        Figures {
            requests: self.counters.requests.get(),
            emits: self.counters.emits.get(),
            deliveries: self.counters.deliveries.get(),
            refusals: self.counters.refusals.get(),
            late: self.counters.late.get(),
            subscriptions: self.subscriptions.len(),
            in_flight: self.in_flight(),
            endpoints: self.slots.in_use(),
        }
    }

    /// Requests that wait for an answer. Looks at all of them.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.pending.requests()
    }
}
