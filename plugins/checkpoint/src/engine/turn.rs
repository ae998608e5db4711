//! The end of the plugin's turn: the moment at which everything that had come
//! for the plugin is dealt with, and what somebody waits for is written at once.
//!
//! Without anybody who sees to that, the journal's thread is told at once.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::pin,
    rc::Rc,
    task::{Poll, Waker},
};

use futures_util::future::{Either, select};

use super::Engine;
use crate::record::Seq;

/// What is to be written at the end of this turn.
#[derive(Default)]
pub(super) struct Turn {
    /// Everything up to here is wanted, or was.
    wanted: Cell<Seq>,
    /// How many wait for it.
    waiting: Cell<usize>,
    /// Somebody writes at the end of each turn.
    is_ended: Cell<bool>,
    /// He sleeps, since nothing is wanted.
    sleeper: RefCell<Option<Waker>>,
}

impl Turn {
    /// Somebody waits for a position. Whether it is left to the end of the turn,
    /// or was wanted before; else the caller sees to it.
    pub(super) fn wants(&self, seq: Seq) -> bool {
        if self.wanted.get() >= seq {
            return true;
        }
        self.wanted.set(seq);
        self.waiting.set(self.waiting.get() + 1);
        if let Some(sleeper) = self.sleeper.take() {
            sleeper.wake();
        }
        self.is_ended.get()
    }

    /// Resolves when something is wanted. From the first call on, turns have an end.
    pub(super) async fn wanted(&self) {
        self.is_ended.set(true);
        poll_fn(|context| {
            if self.waiting.get() > 0 {
                return Poll::Ready(());
            }
            *self.sleeper.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Nobody sees to the end of a turn any more.
    pub(super) fn is_left(&self) {
        self.is_ended.set(false);
    }

    /// Up to where something is wanted, and by how many; none of it is from now on.
    pub(super) fn take(&self) -> (Seq, usize) {
        (self.wanted.get(), self.waiting.take())
    }
}

impl Engine {
    /// Has a position synced soon.
    pub fn hurry(&self, seq: Seq) {
        if !self.turn.wants(seq) {
            let (seq, waiting) = self.turn.take();
            self.shared.hurry(seq, waiting);
        }
    }

    /// Has what is wanted synced at the end of each turn of the plugin, when `turn_ends` resolves: all of it at
    /// once, and on this thread where the disk is swift. Ends with the journal, which [`Engine::close`] ends.
    pub async fn sync_at_turns_end(self: Rc<Self>, turn_ends: impl AsyncFn()) {
        while let Either::Left(_) = select(pin!(self.turn.wanted()), pin!(self.settled(Seq::MAX))).await {
            turn_ends().await;
            let (seq, waiting) = self.turn.take();
            if seq > self.synced_seq() && !self.shared.write_here() {
                self.shared.hurry(seq, waiting);
            }
        }
        self.turn.is_left();
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, task::Context};

    use super::*;

    #[test]
    fn what_is_wanted_is_left_to_the_end_of_the_turn_once_somebody_sees_to_that() {
        let turn = Turn::default();
        assert!(!turn.wants(1), "nobody is there");
        assert_eq!(turn.take(), (1, 1));
        assert!(turn.wants(1), "it is seen to");
        let mut context = Context::from_waker(Waker::noop());
        let mut end = pin!(turn.wanted());
        assert!(end.as_mut().poll(&mut context).is_pending());
        for seq in [2, 4, 3] {
            assert!(turn.wants(seq));
        }
        assert!(end.as_mut().poll(&mut context).is_ready());
        assert_eq!(turn.take(), (4, 2));
        turn.is_left();
        assert!(!turn.wants(5));
    }
}
