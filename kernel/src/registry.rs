//! Registry: which events exist, and who answers them.
//!
//! An event is *declared* by somebody and *owned* by a port that is attached.
//! Declared but unowned is a state of its own: whoever asks gets the refusal
//! that came with the declaration, rather than `unknown_event`.
//!
//! Requests for an event that is declared durable go to the one port that
//! *keeps work*, whoever owns the event; that port's own requests for it, the
//! dispatch of what it has kept, go to the owner.
//!
//! The table is copied on every change, so looking up is one hash lookup that
//! no change delays.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use arc_swap::{ArcSwap, Guard};
use foldhash::fast::RandomState;
use ksi_identity::Permission;
use ksi_protocol::{EventName, Refusal, limits, nearest, work::Policy};

use crate::{
    port::{Port, locked},
    refusals,
};

/// Most names that a hint offers.
const NEAREST_MAX: usize = 3;

/// An event that can be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// Its name.
    pub name: EventName,
    /// Time that a request for it takes at most, where the asker sets none.
    pub timeout: Option<Duration>,
    /// Where it is durable: how it is kept. The kernel never looks into this,
    /// and hands it to the port that keeps work.
    pub work: Option<Arc<Policy>>,
    /// What it takes to ask for it or to hear of it; without one,
    /// [`Permission::ADMIN`].
    pub permission: Option<Permission>,
    /// What it takes a client to emit it; without one, [`Permission::ADMIN`].
    pub emit: Option<Permission>,
    /// Whether somebody is shown that it was allowed, and not only that it was
    /// denied.
    pub audited: bool,
    /// Whether it can be asked for while all else is frozen.
    pub unfrozen: bool,
}

impl Declared {
    /// An event without a policy.
    #[must_use]
    pub fn new(name: EventName) -> Self {
        Self { name, timeout: None, work: None, permission: None, emit: None, audited: true, unfrozen: false }
    }
}

/// What is known of one event.
pub(crate) struct Entry<H> {
    pub(crate) declared: Declared,
    declarer: Arc<str>,
    absent: Arc<Refusal>,
    owner: Option<Arc<Port<H>>>,
}

impl<H> Entry<H> {
    /// Who answers; where nobody does, what to tell the asker.
    pub(crate) fn owner(&self) -> Result<&Arc<Port<H>>, Refusal> {
        self.owner.as_ref().filter(|port| port.is_open()).ok_or_else(|| self.absent())
    }

    fn absent(&self) -> Refusal {
        Refusal::clone(&self.absent)
    }

    fn owned_by(&self, owner: Option<Arc<Port<H>>>) -> Arc<Self> {
        Arc::new(Self {
            declared: self.declared.clone(),
            declarer: Arc::clone(&self.declarer),
            absent: Arc::clone(&self.absent),
            owner,
        })
    }
}

/// Who is handed a request.
pub(crate) struct Receiver<'a, H> {
    pub(crate) port: &'a Arc<Port<H>>,
    entry: &'a Entry<H>,
    /// Whether it is handed over by the port that keeps work.
    pub(crate) dispatched: bool,
    /// For the port that keeps work: how this is kept.
    pub(crate) work: Option<&'a Arc<Policy>>,
}

impl<H> Receiver<'_, H> {
    /// How long the asker waits who says this of it. What is declared of a
    /// durable event is the time of an attempt, which nobody waits for.
    pub(crate) fn timeout(&self, asked: Option<Duration>) -> Duration {
        let declared = self.entry.declared.timeout.filter(|_| self.work.is_none());
        asked.or(declared).unwrap_or(limits::REQUEST_TIMEOUT).min(limits::REQUEST_TIMEOUT_MAX)
    }

    /// How the port keeps a request that may be begun for so long after its
    /// acceptance.
    pub(crate) fn policy(&self, expires_in: Option<Duration>) -> Option<Arc<Policy>> {
        self.work.map(|policy| match expires_in {
            None => Arc::clone(policy),
            Some(time) => Arc::new(policy.expiring_in(time)),
        })
    }

    /// What the asker is told where the port has gone in this very moment.
    pub(crate) fn gone(&self) -> Refusal {
        self.work.map_or_else(|| self.entry.absent(), |_| refusals::no_keeper(&self.entry.declared.name))
    }
}

/// One state of the table.
pub(crate) struct Events<H> {
    entries: Entries<H>,
    /// The port that keeps work.
    keeper: Option<Arc<Port<H>>>,
}

/// Names are looked up for every request, and come from clients: the hash is
/// fast, and seeded at random.
type Entries<H> = HashMap<EventName, Arc<Entry<H>>, RandomState>;

impl<H> Clone for Events<H> {
    fn clone(&self) -> Self {
        Self { entries: self.entries.clone(), keeper: self.keeper.clone() }
    }
}

impl<H> Events<H> {
    pub(crate) fn get(&self, event: &str) -> Option<&Entry<H>> {
        self.entries.get(event).map(AsRef::as_ref)
    }

    /// The port that keeps work.
    pub(crate) fn keeper(&self) -> Option<&Arc<Port<H>>> {
        self.keeper.as_ref().filter(|port| port.is_open())
    }

    /// What it takes to ask for an event, or to hear of it.
    pub(crate) fn permission(&self, event: &EventName) -> (u16, &str) {
        Permission::of(self.get(event.as_str()).and_then(|entry| entry.declared.permission.as_ref()))
    }

    /// Whether this port would hand over work that it has kept, if it asked for
    /// the event.
    pub(crate) fn is_dispatched_by(&self, port: &Port<H>, entry: &Entry<H>) -> bool {
        entry.declared.work.is_some() && self.keeper.as_ref().is_some_and(|keeper| keeper.id == port.id)
    }

    /// Who is handed a request for an event: its owner or, where it is durable
    /// and not `dispatched` already, the port that keeps work.
    pub(crate) fn receiver<'a>(
        &'a self,
        entry: &'a Entry<H>,
        dispatched: bool,
    ) -> Result<Receiver<'a, H>, Refusal> {
        let work = entry.declared.work.as_ref().filter(|_| !dispatched);
        let port = match work {
            None => entry.owner()?,
            Some(_) => self.keeper().ok_or_else(|| refusals::no_keeper(&entry.declared.name))?,
        };
        Ok(Receiver { port, entry, dispatched, work })
    }

    pub(crate) fn find(&self, event: &EventName) -> Result<&Entry<H>, Refusal> {
        self.get(event.as_str()).ok_or_else(|| {
            let known = self.entries.keys().filter(|known| known.manager().is_none());
            let known = known.map(EventName::as_str);
            refusals::unknown_event(event, &nearest::ranked(event.as_str(), known, NEAREST_MAX))
        })
    }
}

/// All events.
pub(crate) struct Registry<H> {
    events: ArcSwap<Events<H>>,
    /// Held while a changed copy is made.
    change: Mutex<()>,
}

impl<H> Registry<H> {
    pub(crate) fn new() -> Self {
        let events = Events { entries: HashMap::default(), keeper: None };
        Self { events: ArcSwap::from_pointee(events), change: Mutex::default() }
    }

    pub(crate) fn load(&self) -> Guard<Arc<Events<H>>> {
        self.events.load()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Events<H>) -> T) -> T {
        let _one_at_a_time = locked(&self.change);
        let mut events = Events::clone(&self.events.load());
        let result = change(&mut events);
        self.events.store(Arc::new(events));
        result
    }

    pub(crate) fn declare(&self, declarer: &str, declared: &[Declared], absent: Refusal) -> Vec<EventName> {
        let declarer: Arc<str> = declarer.into();
        let absent = Arc::new(absent);
        self.change(|Events { entries: events, .. }| {
            let before: HashMap<_, _> = events.extract_if(|_, entry| entry.declarer == declarer).collect();
            let mut taken = Vec::new();
            for event in declared {
                if events.get(&event.name).is_some_and(|entry| entry.declarer != declarer) {
                    taken.push(event.name.clone());
                    continue;
                }
                let entry = Entry {
                    declared: event.clone(),
                    declarer: Arc::clone(&declarer),
                    absent: Arc::clone(&absent),
                    owner: before.get(&event.name).and_then(|entry| entry.owner.clone()),
                };
                events.insert(event.name.clone(), Arc::new(entry));
            }
            taken
        })
    }

    pub(crate) fn forget(&self, declarer: &str) {
        self.change(|events| events.entries.retain(|_, entry| &*entry.declarer != declarer));
    }

    pub(crate) fn own(&self, port: &Arc<Port<H>>, names: &[EventName]) -> Result<(), Refusal> {
        self.change(|Events { entries: events, .. }| {
            // A port is closed before it is disowned, and disowning waits for
            // this change, so a port that is open here will be disowned.
            if !port.is_open() {
                return Err(refusals::detached());
            }
            for name in names {
                let owner = events.get(name).and_then(|entry| entry.owner.as_ref());
                if let Some(other) = owner.filter(|other| other.is_open() && other.id != port.id) {
                    return Err(refusals::owned(name, &other.origin));
                }
            }
            for name in names {
                let owner = Some(Arc::clone(port));
                let entry = match events.get(name) {
                    Some(entry) => entry.owned_by(owner),
                    None => Arc::new(Entry {
                        declared: Declared::new(name.clone()),
                        declarer: Arc::clone(&port.origin),
                        absent: Arc::new(refusals::no_owner(name)),
                        owner,
                    }),
                };
                events.insert(name.clone(), entry);
            }
            Ok(())
        })
    }

    pub(crate) fn keep(&self, port: &Arc<Port<H>>) -> Result<(), Refusal> {
        self.change(|events| {
            // As for an owner, above.
            if !port.is_open() {
                return Err(refusals::detached());
            }
            if let Some(other) = events.keeper().filter(|other| other.id != port.id) {
                return Err(refusals::kept(&other.origin));
            }
            events.keeper = Some(Arc::clone(port));
            Ok(())
        })
    }

    pub(crate) fn disown(&self, port: &Port<H>) {
        let owned = |entry: &Entry<H>| entry.owner.as_ref().is_some_and(|owner| owner.id == port.id);
        let _one_at_a_time = locked(&self.change);
        let events = self.events.load();
        let keeps = events.keeper.as_ref().is_some_and(|keeper| keeper.id == port.id);
        if !keeps && !events.entries.values().any(|entry| owned(entry)) {
            return;
        }
        let mut events = Events::clone(&events);
        events.keeper.take_if(|_| keeps);
        for entry in events.entries.values_mut().filter(|entry| owned(entry)) {
            *entry = entry.owned_by(None);
        }
        self.events.store(Arc::new(events));
    }
}

#[cfg(test)]
mod tests;
