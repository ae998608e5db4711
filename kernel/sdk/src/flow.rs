//! Flow control of a streamed answer: how many parts its asker has room for.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

/// Room for parts. Shared by the handler, its threads and the instance, which
/// adds to it when the asker allows more.
#[derive(Debug)]
pub(crate) struct Flow {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    room: u64,
    /// Nobody takes parts any more, so nobody need wait for room.
    closed: bool,
    waiting: Vec<Waker>,
}

impl Flow {
    pub(crate) fn new(room: u32) -> Arc<Self> {
        let state = State { room: room.into(), closed: false, waiting: Vec::new() };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No change under this lock can stop half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A part goes out.
    pub(crate) fn take(&self) {
        let mut state = self.lock();
        state.room = state.room.saturating_sub(1);
    }

    /// The asker has room for more.
    pub(crate) fn allow(&self, parts: u64) {
        self.change(|state| state.room = state.room.saturating_add(parts));
    }

    /// Lets go of all who wait.
    pub(crate) fn close(&self) {
        self.change(|state| state.closed = true);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let waiting = {
            let mut state = self.lock();
            change(&mut state);
            std::mem::take(&mut state.waiting)
        };
        self.changed.notify_all();
        waiting.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.room > 0 || state.closed {
            return Poll::Ready(());
        }
        if !state.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            state.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    pub(crate) fn wait_for_room(&self) {
        let mut state = self.lock();
        while state.room == 0 && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
