//! Registry: which events exist, and who answers them.
//!
//! An event is *declared* by somebody and *owned* by a port that is attached.
//! Declared but unowned is a state of its own: whoever asks gets the refusal
//! that came with the declaration, rather than `unknown_event`.
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
use ksi_protocol::{EventName, Refusal};

use crate::{
    port::{Port, locked},
    refusals,
};

/// How like two names must be to be offered in a hint: 0 is nothing in common.
const LIKENESS_MIN: f64 = 0.5;

/// Most names that a hint offers.
const NEAREST_MAX: usize = 3;

/// An event that can be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// Its name.
    pub name: EventName,
    /// Time that a request for it takes at most, where the asker sets none.
    pub timeout: Option<Duration>,
    /// Whether requests for it are journaled before they are answered. The
    /// kernel keeps this for whoever asks; it routes both alike.
    pub durable: bool,
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

    pub(crate) fn absent(&self) -> Refusal {
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

/// One state of the table.
pub(crate) struct Events<H>(Entries<H>);

/// Names are looked up for every request, and come from clients: the hash is
/// fast, and seeded at random.
type Entries<H> = HashMap<EventName, Arc<Entry<H>>, RandomState>;

impl<H> Clone for Events<H> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<H> Events<H> {
    pub(crate) fn get(&self, event: &str) -> Option<&Entry<H>> {
        self.0.get(event).map(AsRef::as_ref)
    }

    pub(crate) fn find(&self, event: &EventName) -> Result<&Entry<H>, Refusal> {
        self.get(event.as_str()).ok_or_else(|| refusals::unknown_event(event, &self.nearest(event.as_str())))
    }

    fn nearest(&self, name: &str) -> Vec<&str> {
        let mut near: Vec<_> = self
            .0
            .keys()
            .map(|known| (strsim::normalized_damerau_levenshtein(name, known.as_str()), known.as_str()))
            .filter(|&(likeness, _)| likeness >= LIKENESS_MIN)
            .collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
        near.into_iter().take(NEAREST_MAX).map(|(_, name)| name).collect()
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
        Self { events: ArcSwap::from_pointee(Events(HashMap::default())), change: Mutex::default() }
    }

    pub(crate) fn load(&self) -> Guard<Arc<Events<H>>> {
        self.events.load()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Entries<H>) -> T) -> T {
        let _one_at_a_time = locked(&self.change);
        let mut events = Events::clone(&self.events.load());
        let result = change(&mut events.0);
        self.events.store(Arc::new(events));
        result
    }

    pub(crate) fn declare(&self, declarer: &str, declared: &[Declared], absent: Refusal) -> Vec<EventName> {
        let declarer: Arc<str> = declarer.into();
        let absent = Arc::new(absent);
        self.change(|events| {
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
        self.change(|events| events.retain(|_, entry| &*entry.declarer != declarer));
    }

    pub(crate) fn own(&self, port: &Arc<Port<H>>, names: &[EventName]) -> Result<(), Refusal> {
        self.change(|events| {
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
                        declared: Declared { name: name.clone(), timeout: None, durable: false },
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

    pub(crate) fn disown(&self, port: &Port<H>) {
        let owned = |entry: &Entry<H>| entry.owner.as_ref().is_some_and(|owner| owner.id == port.id);
        let _one_at_a_time = locked(&self.change);
        let events = self.events.load();
        if !events.0.values().any(|entry| owned(entry)) {
            return;
        }
        let mut events = Events::clone(&events);
        for entry in events.0.values_mut().filter(|entry| owned(entry)) {
            *entry = entry.owned_by(None);
        }
        self.events.store(Arc::new(events));
    }
}

#[cfg(test)]
mod tests;
