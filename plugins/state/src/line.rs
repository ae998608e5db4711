//! One queue as a state machine: which items stand in it, who may have them,
//! and when something happens by itself. No I/O, no clock: time is an
//! argument, and what has to be written its callers write.
//!
//! An item that somebody is writing to is *held*: nobody else can have it, and
//! it is let go with what was written, or as it was.
//!
//! # Invariants
//!
//! - An item that is not held stands in exactly one of `ready`, `gone`, the
//!   dead ones, and those that wait for a time.
//! - Items leave in the order of their numbers: none overtakes one that is
//!   still being pushed.

use std::collections::{BTreeMap, BTreeSet};

use ksi_sdk::prelude::{Deserialize, Serialize};

use crate::{index::expired, payload::queue::ItemState};

/// What is kept of an item beside its data, in memory and in the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Item {
    /// Bytes of its data.
    pub(crate) size: u64,
    /// Milliseconds since 1970.
    pub(crate) pushed_at_ms: u64,
    /// When it is dropped if nobody has it; 0: never.
    pub(crate) expires_at_ms: u64,
    /// How often it was handed out under a lease.
    pub(crate) deliveries: u64,
    /// The lease under which it was handed out last; 0: none.
    pub(crate) lease: u64,
    /// Until when nobody else may have it.
    pub(crate) hidden_until_ms: u64,
    /// Set aside, having been handed out too often.
    pub(crate) dead: bool,
}

impl Item {
    /// Where it stands.
    pub(crate) fn state(&self, now_ms: u64) -> ItemState {
        match (self.dead, self.hidden_until_ms > now_ms, self.lease) {
            (true, ..) => ItemState::Dead,
            (false, false, _) => ItemState::Ready,
            (false, true, 0) => ItemState::Delayed,
            (false, true, _) => ItemState::Leased,
        }
    }

    /// Whether it is to be dropped: its time is over, and nobody has it.
    fn is_gone(&self, now_ms: u64) -> bool {
        expired(self.expires_at_ms, now_ms) && self.state(now_ms) != ItemState::Leased
    }

    /// When it has to be looked at again.
    fn due(&self, now_ms: u64) -> Option<u64> {
        let back = (!self.dead && self.hidden_until_ms > now_ms).then_some(self.hidden_until_ms);
        let over = (self.expires_at_ms != 0).then_some(self.expires_at_ms);
        match self.state(now_ms) {
            ItemState::Leased => back,
            _ => back.into_iter().chain(over).min(),
        }
    }
}

#[derive(Debug)]
struct Slot {
    item: Item,
    held: bool,
}

/// What a queue has, by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) length: u64,
    pub(crate) ready: u64,
    pub(crate) dead: u64,
    pub(crate) bytes: u64,
}

/// What was taken out of the line, all of it held.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// To be handed out.
    pub(crate) items: Vec<(u64, Item)>,
    /// To be set aside.
    pub(crate) dead: Vec<(u64, Item)>,
}

/// A queue.
#[derive(Debug, Default)]
pub(crate) struct Line {
    items: BTreeMap<u64, Slot>,
    ready: BTreeSet<u64>,
    /// Items whose time is over.
    gone: BTreeSet<u64>,
    /// When to look at an item again.
    due: BTreeSet<(u64, u64)>,
    pushing: BTreeSet<u64>,
    dead: u64,
    bytes: u64,
}

impl Line {
    /// An item is being pushed: those after it wait for it.
    pub(crate) fn announce(&mut self, id: u64) {
        self.pushing.insert(id);
    }

    /// A push has ended, with or without an item. Answers with what was there.
    pub(crate) fn land(&mut self, id: u64, item: Option<Item>, now_ms: u64) -> Option<Item> {
        self.pushing.remove(&id);
        self.settle(id, item, now_ms)
    }

    /// Takes items from the front and holds them.
    pub(crate) fn take(&mut self, now_ms: u64, count: usize, bytes_max: u64, deliveries_max: u64) -> Taken {
        self.turn(now_ms);
        let barrier = self.pushing.first().copied().unwrap_or(u64::MAX);
        let mut taken = Taken::default();
        let mut bytes = 0;
        while let Some(id) = self.ready.first().copied().filter(|id| *id < barrier) {
            let item = self.items[&id].item.clone();
            if item.deliveries >= deliveries_max {
                taken.dead.push((id, item));
            } else {
                bytes += item.size;
                if taken.items.len() == count || (bytes > bytes_max && !taken.items.is_empty()) {
                    break;
                }
                taken.items.push((id, item));
            }
            self.grip(id);
        }
        taken
    }

    /// Holds one item, if it is there, nobody holds it, and it is under this
    /// lease, where one is named.
    pub(crate) fn hold(&mut self, id: u64, lease: Option<u64>, now_ms: u64) -> Option<Item> {
        self.turn(now_ms);
        let slot = self.items.get(&id).filter(|slot| !slot.held)?;
        let item = slot.item.clone();
        let under = |lease| item.lease == lease && item.state(now_ms) == ItemState::Leased;
        if item.is_gone(now_ms) || lease.is_some_and(|lease| !under(lease)) {
            return None;
        }
        self.grip(id);
        Some(item)
    }

    /// Holds what is to be dropped.
    pub(crate) fn take_gone(&mut self, now_ms: u64, max: usize) -> Vec<(u64, Item)> {
        self.turn(now_ms);
        let gone: Vec<u64> = self.gone.iter().copied().take(max).collect();
        gone.into_iter().map(|id| (id, self.grip(id))).collect()
    }

    /// Holds everything up to an item, at most so many.
    pub(crate) fn take_all(&mut self, up_to: u64, max: usize) -> Vec<(u64, Item)> {
        let free = self.items.range(..=up_to).filter(|(_, slot)| !slot.held);
        let ids: Vec<u64> = free.map(|(id, _)| *id).take(max).collect();
        ids.into_iter().map(|id| (id, self.grip(id))).collect()
    }

    fn grip(&mut self, id: u64) -> Item {
        self.unlist(id);
        let slot = self.items.get_mut(&id).expect("who holds an item has seen it");
        slot.held = true;
        slot.item.clone()
    }

    /// Lets an item go: as it is now, or out of the queue. Answers with what it
    /// was.
    pub(crate) fn settle(&mut self, id: u64, item: Option<Item>, now_ms: u64) -> Option<Item> {
        self.unlist(id);
        let before = self.items.remove(&id).map(|slot| slot.item);
        if let Some(before) = &before {
            self.bytes -= before.size;
            self.dead -= u64::from(before.dead);
        }
        if let Some(item) = item {
            self.bytes += item.size;
            self.dead += u64::from(item.dead);
            self.items.insert(id, Slot { item, held: false });
            self.list(id, now_ms);
        }
        before
    }

    /// Lets an item go as it was.
    pub(crate) fn restore(&mut self, id: u64, now_ms: u64) {
        if let Some(slot) = self.items.get_mut(&id) {
            slot.held = false;
            self.list(id, now_ms);
        }
    }

    fn unlist(&mut self, id: u64) {
        self.ready.remove(&id);
        self.gone.remove(&id);
        if let Some(slot) = self.items.get(&id) {
            let Item { hidden_until_ms, expires_at_ms, .. } = slot.item;
            self.due.remove(&(hidden_until_ms, id));
            self.due.remove(&(expires_at_ms, id));
        }
    }

    fn list(&mut self, id: u64, now_ms: u64) {
        let item = &self.items[&id].item;
        if item.is_gone(now_ms) {
            self.gone.insert(id);
            return;
        }
        if let Some(at) = item.due(now_ms) {
            self.due.insert((at, id));
        }
        if item.state(now_ms) == ItemState::Ready {
            self.ready.insert(id);
        }
    }

    /// Lets happen what happens by itself by this time. Whether an item can be
    /// taken that could not before.
    pub(crate) fn turn(&mut self, now_ms: u64) -> bool {
        let mut back = false;
        while let Some((at, id)) = self.due.first().copied().filter(|(at, _)| *at <= now_ms) {
            self.due.remove(&(at, id));
            let was = self.ready.remove(&id);
            self.list(id, now_ms);
            back |= !was && self.ready.contains(&id);
        }
        back
    }

    /// When to call [`Line::turn`] or [`Line::take_gone`] next.
    pub(crate) fn next_due(&self) -> Option<u64> {
        match self.gone.is_empty() {
            true => self.due.first().map(|(at, _)| *at),
            false => Some(0),
        }
    }

    /// Whether something can be taken, so that a waiter should try.
    pub(crate) fn has_ready(&self) -> bool {
        let barrier = self.pushing.first().copied().unwrap_or(u64::MAX);
        self.ready.first().is_some_and(|id| *id < barrier)
    }

    /// Whether nothing is here, nor on its way.
    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty() && self.pushing.is_empty()
    }

    /// The number of the last item.
    pub(crate) fn last(&self) -> Option<u64> {
        self.items.last_key_value().map(|(id, _)| *id)
    }

    /// What is here, by kind.
    pub(crate) fn counts(&self) -> Counts {
        let present = (self.items.len() - self.gone.len()) as u64;
        Counts {
            length: present - self.dead_here(),
            ready: self.ready.len() as u64,
            dead: self.dead_here(),
            bytes: self.bytes,
        }
    }

    fn dead_here(&self) -> u64 {
        let gone = self.gone.iter().filter(|id| self.items[*id].item.dead).count();
        self.dead - gone as u64
    }

    /// Items after one of them, oldest first, but for those whose time is over.
    pub(crate) fn after(&self, id: u64, now_ms: u64) -> impl Iterator<Item = (u64, &Item)> {
        let after = self.items.range((std::ops::Bound::Excluded(id), std::ops::Bound::Unbounded));
        after.filter(move |(_, slot)| !slot.item.is_gone(now_ms)).map(|(id, slot)| (*id, &slot.item))
    }
}

#[cfg(test)]
mod tests;
