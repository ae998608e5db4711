//! What the daemon itself is asked, in line for the one task that answers it.
//!
//! Each who pays has a line of his own, and the lines are served in turns: who
//! asks without end waits behind nobody but himself.
//!
//! # Invariants
//!
//! - No more waits than there is room for, and nobody has more of that than
//!   [`fair_share`] says.
//! - As much room again is for those who administer, so that they can see to the
//!   rest however many others ask.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ksi_identity::Principal;
use ksi_kernel::Delivery;
use ksi_protocol::{Code, EventName, Refusal, limits::fair_share};
use tokio::sync::Notify;

use super::{Hub, Instead, SystemRequest, Turn};
use crate::{identity::Identity, own::NAMESPACES, woken};

/// Requests that may wait.
const ROOM: usize = 256;

/// The line, of whatever waits in it.
#[derive(Debug)]
pub(super) struct Desk<T> {
    lines: Mutex<Lines<T>>,
    /// Told when something has come.
    come: Notify,
    /// The bits of those who administer what is in each of [`NAMESPACES`].
    rights: [u16; NAMESPACES.len()],
}

#[derive(Debug)]
struct Lines<T> {
    waiting: usize,
    /// By those who pay; nobody with none.
    of: HashMap<Arc<str>, VecDeque<T>>,
    /// The same in the order in which they are served, each once.
    turns: VecDeque<Arc<str>>,
}

impl<T> Desk<T> {
    pub(super) fn new(identity: &Identity) -> Self {
        Self {
            lines: Mutex::new(Lines { waiting: 0, of: HashMap::new(), turns: VecDeque::new() }),
            come: Notify::new(),
            rights: NAMESPACES.map(|(_, right)| identity.permission(right).bit),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Lines<T>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts something in line, on whose account that is.
    ///
    /// # Errors
    ///
    /// Gives it back where there is no room for it.
    pub(super) fn push(&self, payer: &Arc<str>, administers: bool, asked: T) -> Result<(), T> {
        let mut lines = self.lock();
        let room = if administers { 2 * ROOM } else { ROOM };
        let own = lines.of.get(payer).map_or(0, VecDeque::len);
        if own >= fair_share(room, lines.waiting - own) {
            return Err(asked);
        }
        lines.waiting += 1;
        lines.of.entry(Arc::clone(payer)).or_default().push_back(asked);
        if own == 0 {
            lines.turns.push_back(Arc::clone(payer));
        }
        drop(lines);
        self.come.notify_one();
        Ok(())
    }

    /// The next thing, once there is one.
    pub(super) async fn next(&self) -> T {
        loop {
            let next = self.lock().take();
            match next {
                Some(asked) => return asked,
                None => self.come.notified().await,
            }
        }
    }
}

impl<T> Lines<T> {
    fn take(&mut self) -> Option<T> {
        let payer = self.turns.pop_front()?;
        let line = self.of.get_mut(&payer)?;
        let asked = line.pop_front();
        if line.is_empty() {
            self.of.remove(&payer);
        } else {
            self.turns.push_back(payer);
        }
        self.waiting -= 1;
        asked
    }
}

impl Hub {
    /// Whether somebody administers what an event is of, where the daemon itself
    /// answers it.
    #[must_use]
    pub fn administers(&self, principal: &Principal, event: &EventName, now_ms: u64) -> bool {
        let of = NAMESPACES.iter().position(|(namespace, _)| *namespace == event.namespace());
        of.is_some_and(|at| principal.holds(self.desk.rights[at], now_ms))
    }
}

impl Turn<'_> {
    /// Lines up what the daemon itself is asked, and hands on what it is answered.
    pub(super) fn pass_to_daemon(&mut self, delivery: Delivery) {
        let (token, envelope) = match delivery {
            Delivery::Request { token, envelope } => (token, envelope),
            Delivery::Answer { id, answer, .. } => return self.hub.asks.answered(id, answer),
            _ => return,
        };
        woken::note();
        let principal = Arc::clone(&envelope.caller.principal);
        let administers = self.hub.administers(&principal, &envelope.event, self.now_ms);
        let asked = SystemRequest { token, envelope };
        if self.hub.desk.push(&principal.payer, administers, asked).is_err() {
            let message =
                format!("`{}` asks more of the daemon itself than there is room for", principal.payer);
            let busy = Refusal::new(Code::Busy, message)
                .retry_after_ms(100)
                .hint("wait for answers before asking more");
            // It is settled by the loop that is under way.
            self.stand_in(self.hub.daemon(), token, Instead::Refusal(busy));
        }
    }
}

#[cfg(test)]
mod tests;
