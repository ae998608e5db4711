//! Ports: what the kernel knows of an endpoint.
//!
//! A port is a place where deliveries can be put, with a name, a generation,
//! what it may do and what it is charged for. What stands behind it (a session,
//! a plugin here, a plugin in a child) is in a handle that the kernel never
//! looks into, so routing cannot see placement.
//!
//! # Invariants
//!
//! - A detached port stays detached; its endpoint comes back as a new port with
//!   another id, so nothing that was meant for the old one reaches it.
//! - The lock on `asks` is taken before a shard of the pending table, never
//!   while one is held; likewise `subscriptions` before a shard of the index.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use foldhash::fast::RandomState;
use ksi_identity::Authority;
use ksi_protocol::{Pattern, frame::Id, limits};

use crate::envelope::Token;

/// Names an endpoint. The index is used again after a detachment, each time
/// with a higher generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId {
    /// Position among all endpoints.
    pub index: u32,
    /// How often the position was used before.
    pub generation: u32,
}

/// On which side of the daemon an endpoint stands: [`Kernel::close`] refuses
/// the requests of clients, and of nobody else.
///
/// [`Kernel::close`]: crate::Kernel::close
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Outside: a session on the socket.
    Client,
    /// A plugin, wherever it runs.
    Plugin,
    /// The daemon itself.
    Daemon,
}

/// How much an endpoint may have open at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Requests that it waits for; more are refused `busy`, the sender to blame.
    pub in_flight: u32,
    /// Subscriptions.
    pub subscriptions: u32,
    /// Requests and words that are waited for from it; more are refused
    /// `busy` to their askers, the receiver to blame.
    pub holding: u32,
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            in_flight: limits::IN_FLIGHT_MAX,
            subscriptions: limits::SUBSCRIPTIONS_MAX,
            holding: limits::IN_FLIGHT_MAX,
        }
    }
}

/// An attached endpoint.
pub struct Port<H> {
    /// Its id, of this attachment alone.
    pub id: EndpointId,
    /// Who it is in envelopes and logs: `session:7`, `plugin:echo`, `daemon`.
    pub origin: Arc<str>,
    /// On which side it stands.
    pub role: Role,
    /// What the daemon knows it by.
    pub handle: H,
    /// What it may have open.
    pub quota: Quota,
    /// What it may send and hear, and in whose name.
    pub authority: Authority,
    closed: AtomicBool,
    /// Requests and words that are waited for from it.
    holding: AtomicU32,
    handled: AtomicU64,
    /// What it waits for, by its own ids; its size is the charge.
    asks: Mutex<HashMap<Id, Token, RandomState>>,
    /// What it listens to, by its own ids; its size is the charge.
    subscriptions: Mutex<HashMap<Id, Pattern>>,
}

impl<H> Port<H> {
    pub(crate) fn new(id: EndpointId, role: Role, handle: H, quota: Quota, authority: Authority) -> Self {
        Self {
            id,
            origin: Arc::clone(&authority.caller.origin),
            role,
            handle,
            quota,
            authority,
            closed: AtomicBool::new(false),
            holding: AtomicU32::new(0),
            handled: AtomicU64::new(0),
            asks: Mutex::default(),
            subscriptions: Mutex::default(),
        }
    }

    /// Whether it is still attached.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.closed.load(Ordering::SeqCst)
    }

    /// Closes it; false where it was closed already.
    ///
    /// Whoever makes something wait for this port writes that down first and
    /// asks [`Port::is_open`] afterwards; whoever closes it does so first and
    /// reads what is written down afterwards. So one of the two always sees
    /// the other, and nothing waits for a port that is gone.
    pub(crate) fn close(&self) -> bool {
        !self.closed.swap(true, Ordering::SeqCst)
    }

    /// Requests and words that are waited for from it.
    #[must_use]
    pub fn holding(&self) -> u32 {
        self.holding.load(Ordering::SeqCst)
    }

    /// Charges it for one more; false where its quota is used up.
    pub(crate) fn hold(&self) -> bool {
        let more = |held: u32| (held < self.quota.holding).then_some(held + 1);
        self.holding.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok()
    }

    /// Takes back one charge.
    pub(crate) fn let_go(&self) {
        self.holding.fetch_sub(1, Ordering::SeqCst);
    }

    /// Requests that it has answered.
    #[must_use]
    pub fn handled(&self) -> u64 {
        self.handled.load(Ordering::Relaxed)
    }

    pub(crate) fn count_handled(&self) {
        self.handled.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests that it waits for.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.asks().len()
    }

    pub(crate) fn asks(&self) -> MutexGuard<'_, HashMap<Id, Token, RandomState>> {
        locked(&self.asks)
    }

    pub(crate) fn subscriptions(&self) -> MutexGuard<'_, HashMap<Id, Pattern>> {
        locked(&self.subscriptions)
    }
}

/// Locks. A poisoned lock is taken as it is: no change that is made under a
/// lock of the kernel can stop half-way.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives out ids.
#[derive(Default)]
pub(crate) struct Slots(Mutex<Free>);

#[derive(Default)]
struct Free {
    /// Ids that come next, generation already raised.
    again: Vec<EndpointId>,
    /// First index that was never used.
    fresh: u32,
}

impl Slots {
    pub(crate) fn take(&self) -> EndpointId {
        let mut free = locked(&self.0);
        free.again.pop().unwrap_or_else(|| {
            let index = free.fresh;
            free.fresh += 1;
            EndpointId { index, generation: 0 }
        })
    }

    pub(crate) fn put_back(&self, id: EndpointId) {
        let next = EndpointId { generation: id.generation.wrapping_add(1), ..id };
        locked(&self.0).again.push(next);
    }

    /// Endpoints that are attached.
    pub(crate) fn in_use(&self) -> usize {
        let free = locked(&self.0);
        free.fresh as usize - free.again.len()
    }
}
