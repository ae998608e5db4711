//! How tasks of one plugin wait for each other.
//!
//! # Invariants
//!
//! - A waiter holds one entry at most, and none once it is dropped; so the
//!   table is never larger than the number of waiters alive.
//! - Who has waited longest looks first.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, Waker},
};

/// Lets tasks wait until a condition holds; they look again whenever someone says
/// that something changed.
///
/// ```
/// use ksi_sdk::Signal;
/// use std::cell::Cell;
///
/// async fn full(count: &Cell<u32>, changed: &Signal) {
///     changed.until(|| count.get() >= 3).await;
/// }
///
/// fn add(count: &Cell<u32>, changed: &Signal) {
///     count.set(count.get() + 1);
///     changed.notify();
/// }
/// ```
#[derive(Debug, Default)]
pub struct Signal {
    waiting: RefCell<BTreeMap<u64, Waker>>,
    next: Cell<u64>,
}

impl Signal {
    /// Lets every waiter look at its condition again.
    pub fn notify(&self) {
        let waiting = self.waiting.take();
        for waker in waiting.into_values() {
            waker.wake();
        }
    }

    /// Waits until the condition holds; at once if it does already.
    pub fn until(&self, holds: impl Fn() -> bool) -> impl Future<Output = ()> {
        let key = self.next.get();
        self.next.set(key + 1);
        Until { signal: self, key, holds }
    }
}

/// The future of [`Signal::until`].
struct Until<'a, F> {
    signal: &'a Signal,
    key: u64,
    holds: F,
}

impl<F: Fn() -> bool> Future for Until<'_, F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if (self.holds)() {
            return Poll::Ready(());
        }
        self.signal.waiting.borrow_mut().insert(self.key, context.waker().clone());
        Poll::Pending
    }
}

impl<F> Drop for Until<'_, F> {
    fn drop(&mut self) {
        self.signal.waiting.borrow_mut().remove(&self.key);
    }
}

/// Lets the other tasks of the plugin go first, once.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|context| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::{
            Arc, Mutex,
            atomic::{AtomicU32, Ordering},
        },
        task::Wake,
    };

    use super::*;

    /// Says in which order it is woken.
    struct Line {
        number: u32,
        woken: Arc<Mutex<Vec<u32>>>,
    }

    impl Wake for Line {
        fn wake(self: Arc<Self>) {
            self.woken.lock().unwrap().push(self.number);
        }
    }

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
        flag.set(false);
        drop({
            let mut waiting = Box::pin(signal.until(|| flag.get()));
            assert!(waiting.as_mut().poll(&mut context).is_pending());
            waiting
        });
        assert!(signal.waiting.borrow().is_empty());
    }

    #[test]
    fn who_has_waited_longest_is_woken_first() {
        let (signal, woken) = (Signal::default(), Arc::new(Mutex::new(Vec::new())));
        let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(signal.until(|| false))).collect();
        for number in [2, 0, 1] {
            let waker = Waker::from(Arc::new(Line { number, woken: woken.clone() }));
            let place = usize::try_from(number).unwrap();
            assert!(waiting[place].as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        }
        signal.notify();
        assert_eq!(*woken.lock().unwrap(), [0, 1, 2]);
    }

    #[test]
    fn a_yield_waits_once_and_asks_to_be_polled_again() {
        struct Count(AtomicU32);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let count = Arc::new(Count(AtomicU32::new(0)));
        let waker = Waker::from(count.clone());
        let mut context = Context::from_waker(&waker);
        let mut yielding = pin!(yield_now());
        assert!(yielding.as_mut().poll(&mut context).is_pending());
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert!(yielding.as_mut().poll(&mut context).is_ready());
    }
}
