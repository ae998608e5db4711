//! The live stream: what was heard, what of it is shown, and where the person
//! is in it.
//!
//! Events are kept as they came, payloads undecoded; only the rows on the
//! screen and the one opened event are ever turned into text.
//!
//! # Invariants
//!
//! - An entry keeps its serial number for as long as it is kept, so the cursor
//!   stays on its event while others arrive and the oldest go.
//! - While paused the shown entries do not change: arrivals wait in a second
//!   ring of the same bounds, and what does not fit there is counted.

mod detail;
mod ring;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use ksi_protocol::frame::{Event, Gap};

use super::filter::Filter;
use crate::figures;
pub(crate) use detail::Detail;
pub(crate) use ring::EVENTS_MAX;
use ring::Ring;

/// One line of the stream.
#[derive(Debug)]
pub(crate) enum Entry {
    /// An event.
    Event(Event),
    /// Something that happened to the stream itself: a gap, a restart.
    Mark {
        /// What happened.
        text: String,
        /// When, milliseconds since 1970; 0 where that is not known.
        at_ms: u64,
    },
}

/// What is shown in a window of some height.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// Position of the first row among those that the filter lets through.
    pub(crate) start: usize,
    /// The row with the cursor.
    pub(crate) selected: Option<usize>,
}

/// The live stream.
#[derive(Debug, Default)]
pub(crate) struct Events {
    /// The opened event.
    pub(crate) detail: Option<Detail>,
    /// Events heard since the monitor started.
    pub(crate) heard: u64,
    /// Gaps in what was heard.
    pub(crate) gaps: u64,
    /// Events lost in those gaps.
    pub(crate) missed: u64,
    ring: Ring,
    /// What arrived during a pause; none while the stream flows.
    waiting: Option<Waiting>,
    filter: Filter,
    /// Serials of the entries that the filter lets through, ascending. Unused
    /// while it lets all through.
    shown: VecDeque<u64>,
    /// Serial of the entry under the cursor; none follows the newest.
    cursor: Option<u64>,
}

#[derive(Debug, Default)]
struct Waiting {
    ring: Ring,
    /// Events that arrived.
    arrived: u64,
    /// Entries that did not fit and are gone.
    pushed_out: u64,
}

impl Events {
    /// Takes an event.
    pub(crate) fn push(&mut self, event: Event) {
        self.heard += 1;
        self.add(Entry::Event(event));
    }

    /// Takes the notice of a gap.
    pub(crate) fn gap(&mut self, gap: &Gap) {
        self.gaps += 1;
        self.missed = self.missed.saturating_add(gap.missed);
        let text = format!(
            "{} events were lost, the monitor was too slow (seq {} to {})",
            figures::count(gap.missed),
            gap.from_seq,
            gap.to_seq
        );
        self.add(Entry::Mark { text, at_ms: 0 });
    }

    /// Notes what happened to the stream itself.
    pub(crate) fn mark(&mut self, text: String, at_ms: u64) {
        self.add(Entry::Mark { text, at_ms });
    }

    fn add(&mut self, entry: Entry) {
        match &mut self.waiting {
            Some(waiting) => {
                waiting.arrived += u64::from(matches!(entry, Entry::Event(_)));
                waiting.pushed_out += waiting.ring.push(entry);
            }
            None => self.keep(entry),
        }
    }

    /// Puts an entry into the shown ring.
    fn keep(&mut self, entry: Entry) {
        let shown = self.lets_through(&entry);
        self.ring.push(entry);
        let serials = self.ring.serials();
        if shown && !self.filter.is_all() {
            self.shown.push_back(serials.end - 1);
        }
        while self.shown.front().is_some_and(|serial| *serial < serials.start) {
            self.shown.pop_front();
        }
    }

    fn lets_through(&self, entry: &Entry) -> bool {
        match entry {
            Entry::Event(event) => self.filter.shows(event),
            Entry::Mark { .. } => true,
        }
    }

    /// The filter in force.
    pub(crate) fn filter(&self) -> &Filter {
        &self.filter
    }

    /// Puts a filter in force for what is kept and what comes. Marks are
    /// always shown: a hole in the stream concerns every filter.
    pub(crate) fn set_filter(&mut self, filter: Filter) {
        if filter == self.filter {
            return;
        }
        self.filter = filter;
        self.shown.clear();
        if !self.filter.is_all() {
            let serials = self.ring.serials();
            let through = |serial: &u64| self.ring.get(*serial).is_some_and(|entry| self.lets_through(entry));
            self.shown = serials.filter(through).collect();
        }
    }

    /// Stops the stream, or lets it flow again with what waited.
    pub(crate) fn toggle_pause(&mut self) {
        let Some(mut waiting) = self.waiting.take() else {
            self.waiting = Some(Waiting::default());
            return;
        };
        while let Some(entry) = waiting.ring.pop() {
            self.keep(entry);
        }
        // Last, because what waited may fill the whole ring.
        if waiting.pushed_out > 0 {
            let text = format!("the first {} of the pause were not kept", figures::count(waiting.pushed_out));
            self.keep(Entry::Mark { text, at_ms: 0 });
        }
    }

    /// Events that arrived during the pause; none while the stream flows.
    pub(crate) fn arrived_in_pause(&self) -> Option<u64> {
        self.waiting.as_ref().map(|waiting| waiting.arrived)
    }

    /// How many entries the filter lets through.
    pub(crate) fn len(&self) -> usize {
        if self.filter.is_all() { self.ring.len() } else { self.shown.len() }
    }

    /// How many entries are kept.
    pub(crate) fn kept(&self) -> usize {
        self.ring.len()
    }

    /// Whether the newest entry is always in sight.
    pub(crate) fn follows(&self) -> bool {
        self.cursor.is_none()
    }

    /// The entry at a position among those that the filter lets through.
    pub(crate) fn at(&self, position: usize) -> Option<&Entry> {
        self.ring.get(self.serial_at(position)?)
    }

    /// The window of this many rows: the newest ones, or those around the
    /// cursor.
    pub(crate) fn window(&self, rows: usize) -> Window {
        let last_start = self.len().saturating_sub(rows);
        match self.cursor {
            None => Window { start: last_start, selected: None },
            Some(serial) => {
                let position = self.position_of(serial);
                Window { start: position.saturating_sub(rows / 2).min(last_start), selected: Some(position) }
            }
        }
    }

    /// Moves the cursor; beyond the newest entry it follows again. An opened
    /// event changes with it.
    pub(crate) fn step(&mut self, by: isize) {
        let Some(last) = self.len().checked_sub(1) else { return };
        let position = self.cursor.map_or(last, |serial| self.position_of(serial));
        let wanted = position.saturating_add_signed(by);
        self.cursor = if wanted > last { None } else { self.serial_at(wanted) };
        if self.detail.is_some() {
            self.cursor = self.cursor.or_else(|| self.serial_at(last));
            self.show_detail();
        }
    }

    /// Opens the entry under the cursor, or the newest one. The cursor stays
    /// on it from then on.
    pub(crate) fn open(&mut self) {
        let Some(last) = self.len().checked_sub(1) else { return };
        let position = self.cursor.map_or(last, |serial| self.position_of(serial));
        self.cursor = self.serial_at(position);
        self.show_detail();
    }

    /// Scrolls the opened event.
    pub(crate) fn scroll(&mut self, by: isize) {
        if let Some(detail) = &mut self.detail {
            let last = detail.lines.len().saturating_sub(1);
            detail.scroll = detail.scroll.saturating_add_signed(by).min(last);
        }
    }

    fn show_detail(&mut self) {
        self.detail = self.cursor.and_then(|serial| self.ring.get(serial)).map(Detail::of);
    }

    fn serial_at(&self, position: usize) -> Option<u64> {
        if self.filter.is_all() {
            let serials = self.ring.serials();
            let serial = serials.start.checked_add(u64::try_from(position).ok()?)?;
            return serials.contains(&serial).then_some(serial);
        }
        self.shown.get(position).copied()
    }

    /// Position of an entry, or of the next one where it is gone or hidden.
    fn position_of(&self, serial: u64) -> usize {
        let position = if self.filter.is_all() {
            usize::try_from(serial.saturating_sub(self.ring.serials().start)).unwrap_or(usize::MAX)
        } else {
            self.shown.partition_point(|shown| *shown < serial)
        };
        position.min(self.len().saturating_sub(1))
    }
}
