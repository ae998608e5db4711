//! Interceptors: who has a word before or after an event, and in which order.
//!
//! This is the register of them; what they hold up is in `interception`.
//!
//! # Failure
//!
//! An interceptor whose port was detached and that fails closed stays in the
//! register, and all that it should hear is refused `unavailable`: a guard that
//! dies must not open the gate. It goes when its origin comes back and
//! intercepts anew, in the same step, is forgotten, or may intercept no more. One that fails open goes at once.
//! For one that has not come yet, and that shall, the daemon puts in its place what
//! such a dead one leaves: it refuses the same, but for what the daemon asks, tells or answers.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use arc_swap::ArcSwap;
use ksi_identity::Rights;
use ksi_protocol::{EventName, descriptor::InterceptSpec, frame::Stage};

use crate::port::{Port, Role, locked};

/// One who has a word.
pub(crate) struct Interceptor<H> {
    pub(crate) port: Arc<Port<H>>,
    /// Which of those of its port it is.
    pub(crate) index: u32,
    pub(crate) spec: InterceptSpec,
}

/// Those who are still to be heard, in order.
pub(crate) type Chain<H> = std::vec::IntoIter<Arc<Interceptor<H>>>;

/// All who have a word, in order.
pub(crate) struct Interceptors<H> {
    /// Whether there are any: all that an event costs where there are none.
    any: AtomicBool,
    all: ArcSwap<Vec<Arc<Interceptor<H>>>>,
    /// Held while a changed copy is made.
    change: Mutex<()>,
}

impl<H> Interceptors<H> {
    pub(crate) fn new() -> Self {
        Self { any: AtomicBool::new(false), all: ArcSwap::default(), change: Mutex::default() }
    }

    pub(crate) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// Who has a word on an event that `sender` sent or asked for; itself it
    /// has none, nor has what it was before a restart. On what a plugin asks of
    /// its own instances nobody has. `receiver`: who is handed it, of a request.
    pub(crate) fn chain(
        &self,
        stage: Stage,
        event: &EventName,
        sender: &Port<H>,
        receiver: Option<&Port<H>>,
    ) -> Option<Chain<H>> {
        if !self.any() || event.manager().is_some() {
            return None;
        }
        let is_the_daemons =
            || [Some(sender), receiver].iter().flatten().any(|port| port.role == Role::Daemon);
        let heard = |one: &&Arc<Interceptor<H>>| {
            let spec = &one.spec;
            spec.stage == stage
                // What stands in for a guard that does not come must not keep
                // anybody from doing something about it.
                && (one.port.role != Role::Daemon || !is_the_daemons())
                && one.port.origin != sender.origin
                && spec.pattern.matches(event.as_str())
                && one.port.authority.is_granted(|rights| &rights.intercepts, event)
        };
        let chain: Vec<_> = self.all.load().iter().filter(heard).cloned().collect();
        (!chain.is_empty()).then(|| chain.into_iter())
    }

    /// Adds those of a port, each after those of the same order, in place of those
    /// that an earlier port of the same origin has left: in one change, so that
    /// there is no moment at which only some of them are there.
    pub(crate) fn add(&self, port: &Arc<Port<H>>, specs: impl IntoIterator<Item = InterceptSpec>) {
        self.change(|all| {
            all.retain(|one| one.port.is_open() || one.port.origin != port.origin);
            for (index, spec) in (0..).zip(specs) {
                if !port.is_open() && spec.fail_open {
                    continue;
                }
                let place = all.partition_point(|one| one.spec.order <= spec.order);
                all.insert(place, Arc::new(Interceptor { port: Arc::clone(port), index, spec }));
            }
        });
    }

    /// Removes those of a closed port that fail open.
    pub(crate) fn remove(&self, port: &Port<H>) {
        self.change(|all| all.retain(|one| one.port.id != port.id || !one.spec.fail_open));
    }

    /// Removes those that closed ports of an origin have left.
    pub(crate) fn forget(&self, origin: &str) {
        self.change(|all| all.retain(|one| one.port.is_open() || &*one.port.origin != origin));
    }

    /// Grants this to all of an origin: also to what closed ports have left, so that
    /// whoever takes the right from a guard that died opens the gate.
    pub(crate) fn grant(&self, origin: &str, rights: &Rights) {
        for one in self.all.load().iter().filter(|one| &*one.port.origin == origin) {
            one.port.authority.grant(rights.clone());
        }
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Arc<Interceptor<H>>>)) {
        let _one_at_a_time = locked(&self.change);
        let mut all = Vec::clone(&self.all.load());
        change(&mut all);
        let any = !all.is_empty();
        self.all.store(Arc::new(all));
        self.any.store(any, Ordering::Release);
    }
}
