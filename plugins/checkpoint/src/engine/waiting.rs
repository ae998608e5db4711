//! Who waits for a position to be synced.
//!
//! A sync wakes one task from the thread that wrote, whichever waits; that one wakes the others on their own thread, all that
//! are due at once. So a sync costs one wake across threads, however many wait for it.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use ksi_sdk::protocol::Refusal;

use super::shared::Shared;
use crate::record::Seq;

/// All that wait, by position.
#[derive(Default)]
pub(super) struct Waiting {
    wakers: RefCell<BTreeMap<(Seq, u64), Waker>>,
    last: Cell<u64>,
}

/// Resolves when a position is synced.
pub(super) struct Durable<'a> {
    shared: &'a Shared,
    waiting: &'a Waiting,
    seq: Seq,
    /// Its place among those that wait, once it does.
    place: Option<u64>,
}

impl Waiting {
    pub(super) fn durable<'a>(&'a self, shared: &'a Shared, seq: Seq) -> Durable<'a> {
        Durable { shared, waiting: self, seq, place: None }
    }

    /// Wakes who is due, and lets the next sync wake one of the others.
    fn go_on(&self, shared: &Shared) {
        loop {
            let synced = shared.archive.synced();
            let due = {
                let mut wakers = self.wakers.borrow_mut();
                // After an error nobody is due any more, and everybody is to be told.
                match shared.stopped() {
                    Some(_) => std::mem::take(&mut *wakers),
                    // To split is work for as many as there are, so it is done only where somebody is due.
                    None if wakers.keys().next().is_none_or(|(seq, _)| *seq > synced) => BTreeMap::new(),
                    None => {
                        let rest = wakers.split_off(&(synced + 1, 0));
                        std::mem::replace(&mut *wakers, rest)
                    }
                }
            };
            due.into_values().for_each(Waker::wake);
            let wakers = self.wakers.borrow();
            let Some(waker) = wakers.values().next() else { return };
            shared.waker().register(waker);
            // A sync between the look and the registration would have woken nobody.
            if shared.archive.synced() == synced && shared.stopped().is_none() {
                return;
            }
        }
    }
}

impl Future for Durable<'_> {
    type Output = Result<(), Refusal>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let synced = |this: &Self| this.shared.archive.synced() >= this.seq;
        let waits =
            this.place.is_some_and(|place| this.waiting.wakers.borrow().contains_key(&(this.seq, place)));
        if synced(this) && !waits {
            // Nobody's wake depends on this one.
            return Poll::Ready(Ok(()));
        }
        if !synced(this) && this.shared.stopped().is_none() {
            let place = *this.place.get_or_insert_with(|| {
                this.waiting.last.set(this.waiting.last.get() + 1);
                this.waiting.last.get()
            });
            this.waiting.wakers.borrow_mut().insert((this.seq, place), cx.waker().clone());
        }
        this.waiting.go_on(this.shared);
        if synced(this) {
            return Poll::Ready(Ok(()));
        }
        match this.shared.stopped() {
            Some(refusal) => Poll::Ready(Err(refusal)),
            None => Poll::Pending,
        }
    }
}

impl Drop for Durable<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place
            && self.waiting.wakers.borrow_mut().remove(&(self.seq, place)).is_some()
        {
            // It may have been the one that the next sync wakes.
            self.waiting.go_on(self.shared);
        }
    }
}
