//! What lies between the plugin under test and its fake host: everything that
//! the plugin says, until the test takes it.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ksi_abi::{Kind, OK};
use ksi_protocol::Bytes;

use crate::link::{Link, Outgoing};

/// What the clock shows when a test begins: some moment of 2024.
const BEGIN_MS: u64 = 1_720_000_000_000;

/// One message that the plugin sent.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub(super) kind: Kind,
    pub(super) id: u64,
    pub(super) arg: u64,
    pub(super) name: String,
    pub(super) payload: Bytes,
    pub(super) meta: Bytes,
}

#[derive(Default)]
struct Outbox {
    sent: VecDeque<Sent>,
    timers: Vec<(Duration, u64)>,
    now: Duration,
    woken: bool,
}

/// The fake host's end of the link. Threads of the plugin use it too.
#[derive(Default)]
pub(super) struct FakeLink {
    outbox: Mutex<Outbox>,
    changed: Condvar,
}

impl FakeLink {
    fn lock(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the wish to be polled.
    pub(super) fn take_woken(&self) -> bool {
        std::mem::take(&mut self.lock().woken)
    }

    /// Takes the first message of which this holds.
    pub(super) fn take(&self, wanted: impl Fn(&Sent) -> bool) -> Option<Sent> {
        let mut outbox = self.lock();
        let at = outbox.sent.iter().position(wanted)?;
        outbox.sent.remove(at)
    }

    /// The last message of which this holds; it stays where it is.
    pub(super) fn last(&self, wanted: impl Fn(&Sent) -> bool) -> Option<Sent> {
        self.lock().sent.iter().rev().find(|sent| wanted(sent)).cloned()
    }

    /// Whether there is a message of which this holds.
    pub(super) fn has(&self, wanted: impl Fn(&Sent) -> bool) -> bool {
        self.lock().sent.iter().any(wanted)
    }

    /// Waits until the plugin says something or wants to be polled; `false`
    /// where neither has happened before the deadline.
    pub(super) fn wait(&self, wanted: impl Fn(&Sent) -> bool, deadline: Instant) -> bool {
        let mut outbox = self.lock();
        loop {
            if outbox.woken || outbox.sent.iter().any(&wanted) {
                return true;
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            outbox = self.changed.wait_timeout(outbox, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A link for a later start: the time goes on.
    pub(super) fn after(&self) -> Self {
        let outbox = Outbox { now: self.now(), ..Outbox::default() };
        Self { outbox: Mutex::new(outbox), ..Self::default() }
    }

    /// What the time is, on a clock that only the test moves.
    pub(super) fn now(&self) -> Duration {
        self.lock().now
    }

    /// Moves the time to the next timer that is due by then and takes it, or to
    /// `until` where there is none.
    pub(super) fn next_timer(&self, until: Duration) -> Option<u64> {
        let mut outbox = self.lock();
        let next = (0..outbox.timers.len()).min_by_key(|&i| outbox.timers[i]);
        let Some(i) = next.filter(|&i| outbox.timers[i].0 <= until) else {
            outbox.now = until;
            return None;
        };
        let (at, id) = outbox.timers.remove(i);
        outbox.now = at;
        Some(id)
    }
}

impl Link for FakeLink {
    fn send(&self, message: &Outgoing<'_>) -> u32 {
        let mut outbox = self.lock();
        if message.kind == Kind::Timer {
            let due = outbox.now.saturating_add(Duration::from_millis(message.arg));
            outbox.timers.push((due, message.id));
        } else if message.kind == Kind::Cancel && outbox.timers.iter().any(|(_, id)| *id == message.id) {
            outbox.timers.retain(|(_, id)| *id != message.id);
        } else {
            outbox.sent.push_back(Sent {
                kind: message.kind,
                id: message.id,
                arg: message.arg,
                name: message.name.to_owned(),
                payload: Bytes::copy_from_slice(message.payload),
                meta: Bytes::copy_from_slice(message.meta),
            });
        }
        self.changed.notify_all();
        OK
    }

    fn wake(&self) {
        self.lock().woken = true;
        self.changed.notify_all();
    }

    fn now_ms(&self) -> u64 {
        BEGIN_MS + u64::try_from(self.now().as_millis()).unwrap_or(u64::MAX - BEGIN_MS)
    }
}
