//! What has ended and is still kept, in the order in which it is forgotten.
//!
//! Only names, times and sizes; what goes first when there is too much is what
//! would go first anyway.

use std::collections::BTreeMap;

use super::{
    entry::{Ending, Entry, State},
    id::Id,
};

/// What an entry takes beside its payload and result, bytes.
const ENTRY_BYTES: u64 = 256;

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) count: usize,
    pub(super) bytes: u64,
    pub(super) dead_ms: u64,
}

/// The index of ended entries.
#[derive(Debug)]
pub(super) struct Retention {
    bounds: Bounds,
    by_time: BTreeMap<(u64, Id), u64>,
    bytes: u64,
}

impl Retention {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, by_time: BTreeMap::new(), bytes: 0 }
    }

    /// When an entry is forgotten; `None` while it lives.
    fn until_ms(&self, entry: &Entry) -> Option<u64> {
        let State::Ended { how, at_ms } = entry.state else { return None };
        let kept_ms = match how {
            // Somebody is meant to look at these.
            Ending::Dead | Ending::Unknown => entry.policy.keep_ms.max(self.bounds.dead_ms),
            _ => entry.policy.keep_ms,
        };
        Some(at_ms.saturating_add(kept_ms))
    }

    /// Takes an entry in; nothing where it still lives.
    pub(super) fn insert(&mut self, id: Id, entry: &Entry) {
        if let Some(until_ms) = self.until_ms(entry) {
            let size = ENTRY_BYTES + u64::from(entry.result_bytes) + u64::from(entry.payload_bytes);
            self.bytes += size - self.by_time.insert((until_ms, id), size).unwrap_or(0);
        }
    }

    /// Takes an entry out; whether it was there.
    pub(super) fn remove(&mut self, id: Id, entry: &Entry) -> bool {
        let size = self.until_ms(entry).and_then(|until_ms| self.by_time.remove(&(until_ms, id)));
        self.bytes -= size.unwrap_or(0);
        size.is_some()
    }

    /// Takes out the next to be forgotten, if its time has come or there is too
    /// much.
    pub(super) fn pop(&mut self, now_ms: u64) -> Option<Id> {
        let first = self.by_time.first_entry()?;
        let (until_ms, id) = *first.key();
        if until_ms > now_ms && !self.over_bounds() {
            return None;
        }
        let (_, size) = self.by_time.pop_first()?;
        self.bytes -= size;
        Some(id)
    }

    /// When to look again: at once where there is too much.
    pub(super) fn due_ms(&self) -> Option<u64> {
        let (until_ms, _) = *self.by_time.first_key_value()?.0;
        Some(if self.over_bounds() { 0 } else { until_ms })
    }

    pub(super) fn count(&self) -> usize {
        self.by_time.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn over_bounds(&self) -> bool {
        self.by_time.len() > self.bounds.count || self.bytes > self.bounds.bytes
    }
}
