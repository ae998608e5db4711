//! Subscriptions: who listens to an event.
//!
//! A pattern without a wildcard lies under its name, one with a wildcard under
//! the segments before the first wildcard, and one that begins with a wildcard
//! in a list of its own. So what is emitted looks at the subscriptions that may
//! well match it, and never at the thousands that listen to something else.
//!
//! Lists are shared with those who read them and copied when changed under a
//! reader; a subscription that ends meanwhile may be told once more.

use std::{
    collections::{HashSet, hash_map},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwap;
use dashmap::{DashMap, mapref::entry};
use foldhash::fast::RandomState;
use ksi_protocol::{
    EventName, Pattern, Refusal,
    frame::{Class, Id},
};

use crate::{effects::Delivery, envelope::Envelope, port::Port, refusals};

/// A subscription: one who listens.
pub struct Listener<H> {
    /// Whose it is.
    pub port: Arc<Port<H>>,
    /// Which one.
    pub sub: Id,
    /// What happens when its reader is slow.
    pub class: Class,
    pattern: Pattern,
}

impl<H> Listener<H> {
    /// What is put into the port's outbox, where that takes no more than one
    /// thing at a time.
    #[must_use]
    pub fn delivery(&self, envelope: &Arc<Envelope>) -> Delivery {
        Delivery::Event { sub: self.sub, class: self.class, envelope: Arc::clone(envelope) }
    }
}

/// Where a pattern lies.
#[derive(PartialEq, Eq, Hash)]
enum Place {
    /// Under the one name that it matches.
    Exact(Box<str>),
    /// Under the segments with which all that it matches begins.
    Prefix(Box<str>),
    /// Anywhere.
    Everywhere,
}

impl Place {
    fn of(pattern: &Pattern) -> Self {
        let text = pattern.as_str();
        match text.find('*') {
            None => Self::Exact(text.into()),
            Some(0) => Self::Everywhere,
            Some(wildcard) => Self::Prefix(text[..wildcard - 1].into()),
        }
    }
}

type Listeners<H> = Vec<Arc<Listener<H>>>;
type Index<H> = DashMap<Box<str>, Arc<Listeners<H>>, RandomState>;

/// All who listen.
pub(crate) struct Subscriptions<H> {
    exact: Index<H>,
    prefixed: Index<H>,
    everywhere: ArcSwap<Listeners<H>>,
    count: AtomicUsize,
}

impl<H> Subscriptions<H> {
    pub(crate) fn new() -> Self {
        Self {
            exact: DashMap::default(),
            prefixed: DashMap::default(),
            everywhere: ArcSwap::default(),
            count: AtomicUsize::new(0),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Calls `tell` with each that listens to the event: those who named it,
    /// then those whose pattern begins alike, then the rest.
    pub(crate) fn each(&self, event: &EventName, mut tell: impl FnMut(&Arc<Listener<H>>)) {
        let name = event.as_str();
        // The list is cloned, one count, so that no shard stays locked.
        let snapshot = |index: &Index<H>, key: &str| index.get(key).map(|list| Arc::clone(&list));
        if let Some(list) = snapshot(&self.exact, name) {
            list.iter().for_each(&mut tell);
        }
        let ends = name.match_indices(':').map(|(end, _)| end).chain([name.len()]);
        for list in ends.filter_map(|end| snapshot(&self.prefixed, &name[..end])) {
            list.iter().filter(|one| one.pattern.matches(name)).for_each(&mut tell);
        }
        self.everywhere.load().iter().filter(|one| one.pattern.matches(name)).for_each(&mut tell);
    }

    pub(crate) fn add(
        &self,
        port: &Arc<Port<H>>,
        id: Id,
        pattern: Pattern,
        class: Class,
    ) -> Result<(), Refusal> {
        let mut own = port.subscriptions();
        if !port.is_open() {
            return Err(refusals::detached());
        }
        let limit = port.quota.subscriptions;
        let full = own.len() >= limit as usize;
        match own.entry(id) {
            hash_map::Entry::Occupied(_) => return Err(refusals::duplicate_subscription(id)),
            hash_map::Entry::Vacant(_) if full => return Err(refusals::too_many_subscriptions(limit)),
            hash_map::Entry::Vacant(entry) => entry.insert(pattern.clone()),
        };
        let place = Place::of(&pattern);
        let one = Arc::new(Listener { port: Arc::clone(port), sub: id, class, pattern });
        match place {
            Place::Exact(name) => Arc::make_mut(&mut self.exact.entry(name).or_default()).push(one),
            Place::Prefix(prefix) => Arc::make_mut(&mut self.prefixed.entry(prefix).or_default()).push(one),
            Place::Everywhere => {
                self.everywhere.rcu(|list| list.iter().chain([&one]).cloned().collect::<Vec<_>>());
            }
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn remove(&self, port: &Port<H>, id: Id) -> Result<(), Refusal> {
        let mut own = port.subscriptions();
        let pattern = own.remove(&id).ok_or_else(|| refusals::no_subscription(id))?;
        self.clear(&Place::of(&pattern), |one| one.sub == id && one.port.id == port.id);
        self.count.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }

    /// Removes all of a closed port, each list once however often it is in it.
    pub(crate) fn remove_all(&self, port: &Port<H>) {
        let mut own = port.subscriptions();
        for place in own.values().map(Place::of).collect::<HashSet<_>>() {
            self.clear(&place, |one| one.port.id == port.id);
        }
        self.count.fetch_sub(own.len(), Ordering::Relaxed);
        own.clear();
    }

    fn clear(&self, place: &Place, gone: impl Fn(&Listener<H>) -> bool) {
        let (index, key) = match place {
            Place::Exact(name) => (&self.exact, name),
            Place::Prefix(prefix) => (&self.prefixed, prefix),
            Place::Everywhere => {
                self.everywhere.rcu(|list| list.iter().filter(|one| !gone(one)).cloned().collect::<Vec<_>>());
                return;
            }
        };
        if let entry::Entry::Occupied(mut list) = index.entry(key.clone()) {
            Arc::make_mut(list.get_mut()).retain(|one| !gone(one));
            if list.get().is_empty() {
                list.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests;
