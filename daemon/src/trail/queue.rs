//! The queue of decisions: what waits, whose share of it each takes, and what
//! finds no room.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use foldhash::fast::RandomState;
use ksi_identity::Decision;
use ksi_protocol::{
    audit::{Lost, Repeated},
    limits,
};

use super::{note::Note, repeats::Repeats};

/// Decisions that may wait.
pub(super) const NOTES_MAX: usize = 16_384;
/// Bytes of their texts that may wait with them.
pub(super) const BYTES_MAX: usize = 32 << 20;
/// Bytes of payloads that may wait beside those, where it is more than one payload:
/// others are digested at once, by whoever sends them.
pub(super) const WHOLE_BYTES_MAX: usize = 8 << 20;

#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) waiting: VecDeque<Waiting>,
    /// Bytes of all that waits, but for payloads.
    pub(super) bytes: usize,
    /// Bytes of payloads.
    pub(super) whole_bytes: usize,
    /// Decisions that wait, by those whose share they take; nobody with none.
    pub(super) by: HashMap<Arc<str>, usize, RandomState>,
    denials: Repeats,
    /// What plugins tell, each in its own name.
    facts: Repeats,
    /// A batch is being written.
    pub(super) writing: bool,
    /// Why that does not work, where it has not for long.
    pub(super) trouble: Option<String>,
}

#[derive(Debug)]
pub(super) enum Waiting {
    /// A decision, and what it weighs without its payload.
    Note(Note, usize),
    Repeated(Repeated),
    /// Those that found no room, between what was before and after.
    Lost(Lost),
}

/// What became of a decision that was to be put into the queue. One that is not
/// there comes back, so that nothing is freed under the lock.
pub(super) enum Pushed {
    Waits,
    /// It found no room, and is counted.
    Lost(Note),
    /// There is room, but not for its payload.
    Heavy(Note),
}

impl Queue {
    /// Has those told that were counted; all of them with `None`.
    pub(super) fn end_repeats(&mut self, now_ms: Option<u64>) {
        let counted = [&mut self.denials, &mut self.facts].map(|repeats| repeats.end(now_ms));
        self.waiting.extend(counted.into_iter().flatten().map(Waiting::Repeated));
    }

    /// Whether a decision that may repeat is to be written down whole; it is counted
    /// otherwise.
    pub(super) fn admit(&mut self, decision: &Decision<'_>) -> bool {
        let repeats = if decision.allowed { &mut self.facts } else { &mut self.denials };
        repeats.admit(decision)
    }

    pub(super) fn counts(&self) -> bool {
        !self.denials.is_empty() || !self.facts.is_empty()
    }

    /// The first that waits, which nobody is charged for any more; and what it
    /// weighs, its payload with it.
    pub(super) fn pop(&mut self) -> Option<(Waiting, usize)> {
        let first = self.waiting.pop_front()?;
        let Waiting::Note(note, weight) = &first else { return Some((first, 0)) };
        let (weight, whole) = (*weight, note.payload.weight());
        self.bytes -= weight;
        self.whole_bytes -= whole;
        if let Some(own) = self.by.get_mut(&note.payer) {
            *own -= 1;
            if *own == 0 {
                self.by.remove(&note.payer);
            }
        }
        Some((first, weight + whole))
    }

    /// Puts a decision of that weight at the end, or counts it there.
    pub(super) fn push(&mut self, note: Note, weight: usize) -> Pushed {
        let (notes_max, bytes_max) = match note.allowed {
            true => (NOTES_MAX / 4 * 3, BYTES_MAX / 4 * 3),
            false => (NOTES_MAX, BYTES_MAX),
        };
        let payer = self.by.get_mut(&note.payer);
        let own = payer.as_deref().copied().unwrap_or(0);
        let share = limits::fair_share(notes_max, self.waiting.len().saturating_sub(own));
        if own >= share || self.bytes + weight > bytes_max {
            self.lose(&note);
            return Pushed::Lost(note);
        }
        let whole = note.payload.weight();
        if whole > 0 && self.whole_bytes > 0 && self.whole_bytes + whole > WHOLE_BYTES_MAX {
            return Pushed::Heavy(note);
        }
        match payer {
            Some(own) => *own += 1,
            None => drop(self.by.insert(note.payer.clone(), 1)),
        }
        self.bytes += weight;
        self.whole_bytes += whole;
        self.waiting.push_back(Waiting::Note(note, weight));
        Pushed::Waits
    }

    fn lose(&mut self, note: &Note) {
        if !matches!(self.waiting.back(), Some(Waiting::Lost(_))) {
            self.waiting.push_back(Waiting::Lost(Lost { at_ms: note.at_ms, allowed: 0, denied: 0 }));
        }
        if let Some(Waiting::Lost(lost)) = self.waiting.back_mut() {
            match note.allowed {
                true => lost.allowed += 1,
                false => lost.denied += 1,
            }
        }
    }
}
