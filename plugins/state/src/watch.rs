//! Following keys: what is there first, then every change.
//!
//! A watch begins to listen before it reads what is there, so that nothing
//! falls between; what it reads and hears of one key it tells once, in order.

mod mailbox;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    pin::pin,
    rc::Rc,
};

use futures_util::{StreamExt, future::select, stream};
use ksi_sdk::{
    Chunks, Ctx, Signal,
    prelude::{Code, Refusal},
};

pub(crate) use crate::record::Stored;
use crate::{
    StatePlugin,
    change::READS,
    index::expired,
    payload::{Watch, WatchEnd, WatchKind, WatchPart},
    place::{Place, invalid},
    record::value_key,
};
use mailbox::Mailbox;

/// A change of one key, safe by now.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) place: Place,
    pub(crate) version: u64,
    pub(crate) kind: WatchKind,
    /// What was set.
    pub(crate) stored: Option<Rc<Stored>>,
}

impl Change {
    /// Bytes that it keeps in memory.
    fn bytes(&self) -> u64 {
        self.stored.as_ref().map_or(0, |stored| stored.value.0.len() as u64)
    }

    fn part(&self) -> WatchPart {
        part(self.kind, &self.place, self.version, self.stored.as_deref())
    }
}

fn part(kind: WatchKind, place: &Place, version: u64, stored: Option<&Stored>) -> WatchPart {
    WatchPart {
        key: Some(place.name().to_owned()),
        version: Some(version),
        value: stored.map(|stored| stored.value.clone()),
        metadata: stored.map(|stored| stored.metadata.clone()),
        expires_at_ms: stored.map(|stored| stored.expires_at_ms).filter(|at| *at != 0),
        ..bare(kind)
    }
}

fn bare(kind: WatchKind) -> WatchPart {
    WatchPart { kind, key: None, version: None, value: None, metadata: None, expires_at_ms: None }
}

/// Which keys a watch follows.
#[derive(Debug)]
enum Scope {
    Key(Place),
    Prefix(Place),
}

impl Scope {
    fn new(tenant: Option<&str>, ask: &Watch) -> Result<Self, Refusal> {
        match (&ask.key, &ask.prefix) {
            (Some(key), None) => Place::new(tenant, &ask.namespace, "key", key).map(Self::Key),
            (None, Some(prefix)) => Place::prefix(tenant, &ask.namespace, prefix).map(Self::Prefix),
            (Some(_), Some(_)) => Err(invalid("key", "and `prefix` exclude each other: give one")),
            (None, None) => Err(invalid("key", "is missing, and so is `prefix`: give one")),
        }
    }

    fn has(&self, place: &Place) -> bool {
        match self {
            Self::Key(key) => key == place,
            Self::Prefix(prefix) => place.as_str().starts_with(prefix.as_str()),
        }
    }
}

/// One watch.
#[derive(Debug)]
struct Watcher {
    scope: Scope,
    mailbox: RefCell<Mailbox>,
    news: Signal,
}

/// All watches that are open.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    open: RefCell<BTreeMap<u64, Rc<Watcher>>>,
    next: Cell<u64>,
}

impl Watches {
    /// Tells all whom it concerns.
    pub(crate) fn tell(&self, change: &Rc<Change>) {
        self.concerned(&change.place, |mailbox| mailbox.hear(change));
    }

    /// Lets all whom a key concerns begin anew.
    pub(crate) fn begin_anew(&self, place: &Place) {
        self.concerned(place, Mailbox::fall_behind);
    }

    fn concerned(&self, place: &Place, tell: impl Fn(&mut Mailbox)) {
        for watcher in self.open.borrow().values().filter(|watcher| watcher.scope.has(place)) {
            tell(&mut watcher.mailbox.borrow_mut());
            watcher.news.notify();
        }
    }

    /// Lets every watch look whether the plugin stops.
    pub(crate) fn wake(&self) {
        self.open.borrow().values().for_each(|watcher| watcher.news.notify());
    }

    fn open(&self, scope: Scope, max: usize) -> Result<Open<'_>, Refusal> {
        if self.open.borrow().len() >= max {
            return Err(Refusal::new(Code::Busy, format!("{max} watches are open, and no more are allowed"))
                .hint("watch a prefix instead of single keys, or raise plugins.state.config.watches_max"));
        }
        let id = self.next.get();
        self.next.set(id + 1);
        let watcher = Rc::new(Watcher { scope, mailbox: RefCell::default(), news: Signal::default() });
        self.open.borrow_mut().insert(id, watcher.clone());
        Ok(Open { watches: self, id, watcher })
    }
}

/// A watch that listens; until it is dropped.
struct Open<'a> {
    watches: &'a Watches,
    id: u64,
    watcher: Rc<Watcher>,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.watches.open.borrow_mut().remove(&self.id);
    }
}

impl StatePlugin {
    pub(crate) async fn watch(
        self: Rc<Self>,
        ctx: Ctx,
        ask: Watch,
        out: Chunks<WatchPart>,
    ) -> Result<WatchEnd, Refusal> {
        let open = self.watches.open(Scope::new(ctx.tenant(), &ask)?, self.config.watches_max)?;
        let watcher = &open.watcher;
        self.tell_all(watcher, &out).await?;
        loop {
            let news = || self.stopping.get() || watcher.mailbox.borrow().has_news();
            watcher.news.until(news).await;
            // What is told is chosen once there is room for it, and is the
            // latest then.
            self.room_in(watcher, &out).await;
            if self.stopping.get() {
                return Ok(WatchEnd { reason: "stopping".into() });
            }
            if watcher.mailbox.borrow_mut().begin_anew() {
                out.send(&bare(WatchKind::Reset))?;
                self.tell_all(watcher, &out).await?;
                continue;
            }
            let change = watcher.mailbox.borrow_mut().next();
            if let Some(change) = change {
                out.send(&change.part())?;
            }
        }
    }

    /// Waits until the asker has room, or the plugin stops.
    async fn room_in(&self, watcher: &Watcher, out: &Chunks<WatchPart>) {
        let stopping = pin!(watcher.news.until(|| self.stopping.get()));
        select(pin!(out.ready()), stopping).await;
    }

    /// Tells what is there.
    async fn tell_all(&self, watcher: &Watcher, out: &Chunks<WatchPart>) -> Result<(), Refusal> {
        let mut places = match &watcher.scope {
            Scope::Key(key) => vec![key.clone()],
            Scope::Prefix(prefix) => self.places_after(prefix, None),
        };
        while let Some(last) = places.last().cloned() {
            self.tell_values(&places, watcher, out).await?;
            places = match &watcher.scope {
                Scope::Key(_) => Vec::new(),
                Scope::Prefix(prefix) => self.places_after(prefix, Some(&last)),
            };
        }
        self.room_in(watcher, out).await;
        out.send(&bare(WatchKind::Current))
    }

    fn places_after(&self, prefix: &Place, after: Option<&Place>) -> Vec<Place> {
        let index = self.index.borrow();
        index.range(prefix, after).take(READS).map(|(place, _)| place.clone()).collect()
    }

    async fn tell_values(
        &self,
        places: &[Place],
        watcher: &Watcher,
        out: &Chunks<WatchPart>,
    ) -> Result<(), Refusal> {
        let read = |place| async move { (place, self.state.get::<Stored>(value_key(place)).await) };
        let mut reads = pin!(stream::iter(places).map(read).buffered(READS));
        while let Some((place, found)) = reads.next().await {
            let Some(found) = found? else { continue };
            if expired(found.value.expires_at_ms, self.now_ms()) {
                continue;
            }
            self.room_in(watcher, out).await;
            out.send(&part(WatchKind::Value, place, found.version, Some(&found.value)))?;
            let in_flight = self.index.borrow().in_flight(place);
            watcher.mailbox.borrow_mut().told(place, found.version, in_flight);
        }
        Ok(())
    }
}
