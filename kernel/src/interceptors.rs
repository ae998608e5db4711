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
//! One that has not come yet, and that shall, stands in the register as expected:
//! that refuses the same, but for what the daemon asks, tells or answers.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use arc_swap::ArcSwap;
use ksi_identity::Rights;
use ksi_protocol::{EventName, Pattern, descriptor::InterceptSpec, frame::Stage};

use crate::port::{Port, Role, locked};

/// One who has a word.
pub(crate) enum Interceptor<H> {
    /// A port, which may be gone, and which of its interceptors it is.
    Port { port: Arc<Port<H>>, index: u32, spec: InterceptSpec },
    /// A guard that has not come yet: all that it is granted a word on is refused.
    Expected { origin: Arc<str>, granted: ArcSwap<Vec<Pattern>> },
}

impl<H> Interceptor<H> {
    pub(crate) fn origin(&self) -> &Arc<str> {
        match self {
            Self::Port { port, .. } => &port.origin,
            Self::Expected { origin, .. } => origin,
        }
    }

    /// Whether things go on where it cannot be heard.
    pub(crate) fn fails_open(&self) -> bool {
        matches!(self, Self::Port { spec, .. } if spec.fail_open)
    }

    /// Whether it is what ports of an origin that are gone have left, or what is
    /// expected of it.
    fn is_left_by(&self, origin: &str) -> bool {
        **self.origin() == *origin && !matches!(self, Self::Port { port, .. } if port.is_open())
    }

    /// Its place among all; what will be refused anyhow is put to nobody before.
    fn order(&self) -> i32 {
        let Self::Port { spec, .. } = self else { return i32::MIN };
        spec.order
    }
}

/// Those who are still to be heard, in order.
pub(crate) type Remaining<H> = std::vec::IntoIter<Arc<Interceptor<H>>>;

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
    pub(crate) fn of(
        &self,
        stage: Stage,
        event: &EventName,
        sender: &Port<H>,
        receiver: Option<&Port<H>>,
    ) -> Option<Remaining<H>> {
        if !self.any() || event.manager().is_some() {
            return None;
        }
        let has_a_word = |one: &Interceptor<H>| match one {
            Interceptor::Port { port, spec, .. } => {
                spec.stage == stage
                    && spec.pattern.matches(event.as_str())
                    && port.authority.is_granted(|rights| &rights.intercepts, event)
            }
            // That a guard does not come must not keep anybody from doing something
            // about it.
            Interceptor::Expected { granted, .. } => {
                stage == Stage::Before
                    && granted.load().iter().any(|pattern| pattern.matches(event.as_str()))
                    && [Some(sender), receiver].iter().flatten().all(|port| port.role != Role::Daemon)
            }
        };
        let heard = |one: &&Arc<Interceptor<H>>| *one.origin() != sender.origin && has_a_word(one);
        let found: Vec<_> = self.all.load().iter().filter(heard).cloned().collect();
        (!found.is_empty()).then(|| found.into_iter())
    }

    /// Adds those of a port, each after those of the same order, in place of what
    /// its origin has left.
    pub(crate) fn add(&self, port: &Arc<Port<H>>, specs: impl IntoIterator<Item = InterceptSpec>) {
        let of = |(index, spec)| Interceptor::Port { port: Arc::clone(port), index, spec };
        // Asked while the change is made: whoever closes the port later removes them.
        let wanted = |one: &Interceptor<H>| port.is_open() || !one.fails_open();
        self.replace(&port.origin, (0..).zip(specs).map(of).filter(wanted));
    }

    /// Has a guard expected, in place of what its origin has left.
    pub(crate) fn expect(&self, origin: &str, intercepts: Vec<Pattern>) {
        let granted = ArcSwap::from_pointee(intercepts);
        self.replace(origin, [Interceptor::Expected { origin: origin.into(), granted }]);
    }

    /// Puts these in the place of what an origin has left: in one change, so that
    /// there is no moment at which only some of them are there.
    fn replace(&self, origin: &str, by: impl IntoIterator<Item = Interceptor<H>>) {
        self.change(|all| {
            all.retain(|one| !one.is_left_by(origin));
            for new in by {
                let place = all.partition_point(|one| one.order() <= new.order());
                all.insert(place, Arc::new(new));
            }
        });
    }

    /// Removes those of a closed port that fail open.
    pub(crate) fn remove(&self, port: &Port<H>) {
        self.change(|all| all.retain(|one| !(one.fails_open() && one.is_left_by(&port.origin))));
    }

    /// Removes those that closed ports of an origin have left, and what is expected
    /// of it.
    pub(crate) fn forget(&self, origin: &str) {
        self.replace(origin, []);
    }

    /// Grants this to all of an origin: also to what closed ports have left, so that
    /// whoever takes the right from a guard that died opens the gate.
    pub(crate) fn grant(&self, origin: &str, rights: &Rights) {
        for one in self.all.load().iter().filter(|one| **one.origin() == *origin) {
            match &**one {
                Interceptor::Port { port, .. } => port.authority.grant(rights.clone()),
                Interceptor::Expected { granted, .. } => granted.store(rights.intercepts.clone().into()),
            }
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
