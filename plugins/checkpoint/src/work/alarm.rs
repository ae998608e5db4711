//! The alarm of the one task that keeps the time: when it next wakes by itself,
//! and how to wake it sooner.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    task::{Poll, Waker},
};

/// Set by who sleeps, moved forward by whoever has something for it sooner.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    /// Milliseconds since 1970; `None` while it sleeps without a time.
    set_ms: Cell<Option<u64>>,
    rung: Cell<bool>,
    sleeper: RefCell<Option<Waker>>,
}

impl Alarm {
    /// The sleeper wakes at this time by itself.
    pub(super) fn set(&self, at_ms: Option<u64>) {
        self.set_ms.set(at_ms);
        self.rung.set(false);
    }

    /// Rings where the sleeper would wake too late for this time.
    pub(super) fn needed_by(&self, at_ms: Option<u64>) {
        if at_ms.is_some_and(|at_ms| self.set_ms.get().is_none_or(|set_ms| at_ms < set_ms)) {
            self.ring();
        }
    }

    /// Wakes the sleeper.
    pub(super) fn ring(&self) {
        if !self.rung.replace(true)
            && let Some(sleeper) = self.sleeper.take()
        {
            sleeper.wake();
        }
    }

    /// Waits until it rings.
    pub(super) fn rung(&self) -> impl Future<Output = ()> {
        poll_fn(|context| match self.rung.get() {
            true => Poll::Ready(()),
            false => {
                *self.sleeper.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, task::Context};

    use super::*;

    fn rings(alarm: &Alarm) -> bool {
        pin!(alarm.rung()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn it_rings_for_what_is_sooner_only() {
        let alarm = Alarm::default();
        alarm.set(Some(100));
        for (needed, rung) in [(None, false), (Some(100), false), (Some(200), false), (Some(99), true)] {
            alarm.needed_by(needed);
            assert_eq!(rings(&alarm), rung, "{needed:?}");
        }
        alarm.set(None);
        assert!(!rings(&alarm));
        alarm.needed_by(Some(u64::MAX));
        assert!(rings(&alarm));
    }
}
