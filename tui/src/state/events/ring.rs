//! The bounded store of the stream: the newest entries, each with a serial
//! number that it keeps.

use std::{collections::VecDeque, ops::Range};

use super::Entry;

/// Entries that are kept. Several screens of history at any rate at which a
/// person can read, and about ten megabytes of ordinary events.
pub(crate) const EVENTS_MAX: usize = 10_000;

/// Bytes of payloads and names that are kept. One event may carry nearly
/// 16 MiB, so a count alone would not bound the memory.
pub(crate) const BYTES_MAX: usize = 32 * 1024 * 1024;

/// The newest entries, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    entries: VecDeque<Entry>,
    /// Serial of the oldest entry.
    first: u64,
    /// What the entries weigh.
    bytes: usize,
}

impl Ring {
    /// Adds an entry; returns how many old ones had to go. The newest stays,
    /// whatever its size.
    pub(crate) fn push(&mut self, entry: Entry) -> u64 {
        self.bytes += weight(&entry);
        self.entries.push_back(entry);
        let mut gone = 0;
        while self.entries.len() > EVENTS_MAX || (self.bytes > BYTES_MAX && self.entries.len() > 1) {
            self.pop();
            gone += 1;
        }
        gone
    }

    /// Takes the oldest entry.
    pub(crate) fn pop(&mut self) -> Option<Entry> {
        let entry = self.entries.pop_front()?;
        self.bytes -= weight(&entry);
        self.first += 1;
        Some(entry)
    }

    /// How many are kept.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The serials that are kept.
    pub(crate) fn serials(&self) -> Range<u64> {
        self.first..self.first + self.entries.len() as u64
    }

    /// The entry with this serial, where it is still kept.
    pub(crate) fn get(&self, serial: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(serial.checked_sub(self.first)?).ok()?)
    }
}

/// Bytes that an entry holds beyond its fixed size.
fn weight(entry: &Entry) -> usize {
    match entry {
        Entry::Event(event) => {
            let id = event.correlation_id.as_ref().map_or(0, String::len);
            event.data.len() + event.event.as_str().len() + event.origin.len() + id
        }
        Entry::Mark { text, .. } => text.len(),
    }
}
