//! A signal between tasks of one thread: wait until a condition holds, look
//! again whenever someone says that something changed.
//!
//! # Invariants
//!
//! - A waiter holds one entry at most, and none once it is dropped.
//! - Who has waited longest looks first.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
};

/// Where tasks wait, and what wakes them.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    waiting: RefCell<BTreeMap<u64, Waker>>,
    next: Cell<u64>,
}

impl Signal {
    /// Lets every waiter look at its condition again.
    pub(crate) fn notify(&self) {
        let waiting = self.waiting.take();
        for waker in waiting.into_values() {
            waker.wake();
        }
    }

    /// Waits until the condition holds; at once if it does already.
    pub(crate) fn until<F: FnMut() -> bool>(&self, holds: F) -> Until<'_, F> {
        let key = self.next.get();
        self.next.set(key + 1);
        Until { signal: self, key, holds }
    }
}

/// The future of [`Signal::until`].
pub(crate) struct Until<'a, F> {
    signal: &'a Signal,
    key: u64,
    holds: F,
}

impl<F: FnMut() -> bool + Unpin> Future for Until<'_, F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let until = self.get_mut();
        if (until.holds)() {
            return Poll::Ready(());
        }
        until.signal.waiting.borrow_mut().insert(until.key, context.waker().clone());
        Poll::Pending
    }
}

impl<F> Drop for Until<'_, F> {
    fn drop(&mut self) {
        self.signal.waiting.borrow_mut().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[test]
    fn a_waiter_looks_again_when_notified_and_leaves_nothing_behind() {
        let signal = Signal::default();
        let flag = Cell::new(false);
        let mut context = Context::from_waker(Waker::noop());
        {
            let mut waiting = pin!(signal.until(|| flag.get()));
            assert!(waiting.as_mut().poll(&mut context).is_pending());
            assert!(waiting.as_mut().poll(&mut context).is_pending());
            assert_eq!(signal.waiting.borrow().len(), 1);
            flag.set(true);
            signal.notify();
            assert!(waiting.as_mut().poll(&mut context).is_ready());
        }
        assert!(signal.waiting.borrow().is_empty());
    }
}
