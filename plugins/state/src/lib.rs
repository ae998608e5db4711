//! The state plugin: values and queues that survive.
//!
//! Values lie under a namespace and a key, have versions, may expire, and can
//! be followed. Queues hand out items, for good or under a lease. Nothing is
//! answered before it is on the disk; where and how it gets there is the
//! business of whoever keeps the state of plugins.
//!
//! A state machine: it owns no thread, socket or file, and runs inside the
//! daemon. In memory is only what has to be known without reading, made anew at
//! each start. Values never reach a log.
//!
//! # Invariants
//!
//! - What was begun to be written is followed to its end, whether or not its
//!   asker still waits.
//! - Memory never shows what is not safe.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    rc::Rc,
};

use futures_channel::oneshot;
use ksi_sdk::{
    Ctx, Event, Plugin, Register, Signal,
    prelude::{Code, Deserialize, Refusal},
    state::{Batch, State},
};

mod config;
pub mod payload;
pub mod place;
pub mod value;
mod glob;
mod record;
mod room;
mod index;
mod change;
mod values;
mod watch;
mod line;
mod queues;
mod writing;
mod expiry;

use config::Config;
use index::{Entry, Index};
use line::Item;
use payload::Changed;
use queues::Queues;
use record::{BRIEF, Brief, COUNTER, ITEM, place_of_brief, place_of_item};
use room::{Charge, Room};
use watch::Watches;
use writing::{Writing, Writings};

/// Entries that are read at once at the start.
const PAGE: usize = 1000;

/// The plugin.
pub struct StatePlugin {
    config: Config,
    /// A context that belongs to no request.
    ctx: Ctx,
    state: State,
    room: Room,
    index: RefCell<Index>,
    watches: Watches,
    queues: Queues,
    writings: Writings,
    /// Says that something may be due earlier than before.
    timing: Signal,
    stopping: Cell<bool>,
}

impl Plugin for StatePlugin {
    const NAME: &'static str = "state";
    const ABOUT: &'static str = "Keeps values and queues that survive";
    const STATE_VERSION: u32 = 1;

    fn start(ctx: &Ctx) -> Result<Self, Refusal> {
        let config: Config = ctx.config()?;
        config.check()?;
        Ok(Self {
            room: Room::new(&config),
            config,
            ctx: ctx.clone(),
            state: ctx.state(),
            index: RefCell::default(),
            watches: Watches::default(),
            queues: Queues::default(),
            writings: Writings::default(),
            timing: Signal::default(),
            stopping: Cell::new(false),
        })
    }

    fn register(on: &mut Register<Self>) {
        on.request("state:set", Self::set);
        on.request("state:get", Self::get);
        on.request("state:delete", Self::delete);
        on.request("state:list", Self::list);
        on.request("state:batch", Self::batch);
        on.stream("state:watch", Self::watch);
        on.request("state:push", Self::push);
        on.request("state:pop", Self::pop);
        on.request("state:ack", Self::ack);
        on.request("state:nack", Self::nack);
        on.request("state:queue", Self::queue);
        on.request("state:purge", Self::purge);
        on.emits::<Changed>("state:changed");
        on.event("system:stopping", Self::stop);
    }

    /// State that has no version is none at all.
    async fn migrate(state: State, _from: u32) -> Result<Batch, Refusal> {
        Ok(state.batch())
    }

    async fn open(self: Rc<Self>, _ctx: Ctx) -> Result<(), Refusal> {
        self.load_values().await?;
        self.load_items().await?;
        let covered = self.state.get::<u64>(COUNTER).await?;
        self.queues.load_numbers(covered.map_or(0, |covered| covered.value));
        self.ctx.spawn(self.clone().keep_time());
        let plugin = self.clone();
        self.ctx.spawn(async move {
            plugin.ctx.draining().await;
            plugin.end_waits();
        });
        Ok(())
    }
}

impl StatePlugin {
    /// The daemon waits for what is under way before it stops any plugin.
    async fn stop(self: Rc<Self>, _ctx: Ctx, _stopping: Event) {
        self.end_waits();
    }

    /// Requests that would wait for ever end, so that the daemon can, or the plugin.
    fn end_waits(&self) {
        self.stopping.set(true);
        self.watches.wake();
        self.queues.wake();
    }

    async fn load_values(&self) -> Result<(), Refusal> {
        let load = |key: &[u8], Brief { size, expires_at_ms }, version| {
            let place = place_of_brief(key).ok_or_else(|| foreign(key))?;
            self.room.charge(&place, change::charge(&place, size));
            self.index.borrow_mut().put(&place, Some(Entry { version, size, expires_at_ms }));
            Ok(())
        };
        self.load(BRIEF, load).await
    }

    async fn load_items(&self) -> Result<(), Refusal> {
        let now_ms = self.now_ms();
        let mut nearer = Vec::new();
        let load = |key: &[u8], item: Item, _| {
            let (place, id) = place_of_item(key).ok_or_else(|| foreign(key))?;
            self.room.charge(&place, Charge::one(place.as_str().len() as u64 + item.size));
            nearer.extend(self.queues.load(place, id, item, now_ms).map(|item| (key.to_owned(), item)));
            Ok(())
        };
        self.load(ITEM, load).await?;
        // Written, so that they do not wait as long again after the next start.
        for some in nearer.chunks(PAGE) {
            let batch = some.iter().fold(self.state.batch(), |batch, (key, item)| batch.put(key, item));
            batch.commit().await?;
        }
        Ok(())
    }

    /// Reads all entries of one kind, page by page.
    async fn load<T: for<'de> Deserialize<'de>>(
        &self,
        prefix: &str,
        mut take: impl FnMut(&[u8], T, u64) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let mut after = None;
        loop {
            let page = self.state.scan::<T>(prefix, after.as_deref(), PAGE).await?;
            after = page.entries.last().map(|last| last.key.clone());
            for entry in page.entries {
                take(&entry.key, entry.value, entry.version)?;
            }
            if !page.more || after.is_none() {
                return Ok(());
            }
        }
    }

    fn now_ms(&self) -> u64 {
        self.ctx.now_ms()
    }

    /// A write that whoever is asking is charged for; to be begun before anything
    /// of it is done.
    fn begin_writing(&self, ctx: &Ctx) -> Result<Writing, Refusal> {
        self.writings.begin(ctx.principal())
    }

    /// Does work to its end, also where nobody waits for it any more.
    async fn to_the_end<T: 'static>(
        &self,
        writing: Writing,
        work: impl Future<Output = T> + 'static,
    ) -> Result<T, Refusal> {
        let (done, end) = oneshot::channel();
        self.ctx.spawn(async move {
            // The asker may be gone; what was done is done.
            let _ = done.send(work.await);
            drop(writing);
        });
        end.await.map_err(|_| Refusal::new(Code::ShuttingDown, "the plugin stopped before the work was done"))
    }
}

/// A key that this plugin did not write.
fn foreign(key: &[u8]) -> Refusal {
    Refusal::new(Code::Internal, format!("the state has a key that is none: `{}`", key.escape_ascii())).hint(
        "it was written by another release of the plugin, or is damaged: `ksi send checkpoint:verify` looks",
    )
}

ksi_sdk::export!(StatePlugin);
