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
//!   Nothing else is locked while `holding` is.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use foldhash::fast::RandomState;
use ksi_identity::Authority;
use ksi_protocol::{Pattern, Refusal, frame::Id, limits};

use crate::{envelope::Token, rate::Rate, refusals};

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
    /// `busy` to their askers, the receiver to blame. Nobody has more of them than
    /// [`limits::fair_share`] says; beyond that the sender is to blame.
    pub holding: u32,
    /// What it asks and tells a second, of which a second's worth may come at once;
    /// more is refused `busy`. `None`: any number.
    pub per_second: Option<u32>,
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            in_flight: limits::IN_FLIGHT_MAX,
            subscriptions: limits::SUBSCRIPTIONS_MAX,
            holding: limits::IN_FLIGHT_MAX,
            per_second: None,
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
    sent: Rate,
    /// Requests and words that are waited for from it.
    holding: Mutex<Holding>,
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
            sent: Rate::default(),
            holding: Mutex::default(),
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
        locked(&self.holding).all
    }

    /// Charges it for one more, on whose account that is.
    ///
    /// # Errors
    ///
    /// `busy` where its quota is used up, or the share that one may have of it.
    pub(crate) fn hold(self: &Arc<Self>, payer: &Arc<str>) -> Result<Hold<H>, Refusal> {
        let mut holding = locked(&self.holding);
        let (all, most) = (holding.all, self.quota.holding);
        if all >= most {
            return Err(refusals::holder_busy(&self.origin, most));
        }
        let own = holding.by.get(payer).copied().unwrap_or(0);
        let share = limits::fair_share(most as usize, (all - own) as usize);
        if own as usize >= share {
            return Err(refusals::share_used(&self.origin, payer, own));
        }
        holding.all += 1;
        *holding.by.entry(Arc::clone(payer)).or_default() += 1;
        Ok(Hold { port: Arc::clone(self), payer: Arc::clone(payer) })
    }

    /// Counts one thing more that it asks or tells.
    ///
    /// # Errors
    ///
    /// `busy` where that was too much of late.
    pub(crate) fn send(&self, now_ms: u64) -> Result<(), Refusal> {
        let Some(rate) = self.quota.per_second else { return Ok(()) };
        self.sent.take(rate, now_ms).map_err(|wait_ms| refusals::too_fast(&self.origin, rate, wait_ms))
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

/// What is waited for from a port.
#[derive(Default)]
struct Holding {
    all: u32,
    /// The same by those on whose account it is; nobody with none.
    by: HashMap<Arc<str>, u32, RandomState>,
}

/// One request or word that is waited for from a port, which is charged for it
/// until this is dropped.
pub(crate) struct Hold<H> {
    /// From whom.
    pub(crate) port: Arc<Port<H>>,
    /// On whose account.
    pub(crate) payer: Arc<str>,
}

impl<H> Drop for Hold<H> {
    fn drop(&mut self) {
        let mut holding = locked(&self.port.holding);
        holding.all -= 1;
        if let Some(own) = holding.by.get_mut(&self.payer) {
            *own -= 1;
            if *own == 0 {
                holding.by.remove(&self.payer);
            }
        }
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
