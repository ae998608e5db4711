//! What has ended and is still kept, in the order in which it is forgotten.
//!
//! It is kept in two stages. At first an entry is kept whole, with what was asked
//! or answered. When its time is over, or there is too much, it is gone, unless
//! its idempotency key is still remembered: then the end is kept for as long as
//! the key is, and where there is too much of that, the oldest goes, with its key.
//! So whoever asks again under a key gets a name that is known, or does new work.
//!
//! Only names, times, sizes and the hashes of keys; what goes first when there is
//! too much is what would go first anyway. Keys whose time is over are left to
//! [`crate::work`]: they may be another's by then.

use std::collections::BTreeMap;

use ksi_sdk::protocol::{Bytes, Code, Refusal};

use super::{
    KEY_MS, Ledger, Step,
    entry::{Ending, Entry, KeyHash, State},
    id::{Id, not_found},
    not_ended,
};
use crate::record::Batch;

/// What an entry takes beside its payload and result, bytes.
const ENTRY_BYTES: u64 = 256;

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) count: usize,
    pub(super) bytes: u64,
    pub(super) keys: usize,
    pub(super) dead_ms: u64,
}

/// The index of ended entries.
#[derive(Debug)]
pub(super) struct Retention {
    bounds: Bounds,
    whole: BTreeMap<(u64, Id), Whole>,
    bytes: u64,
    /// Those of which the end is kept, by the time when their key is forgotten.
    small: BTreeMap<(u64, Id), KeyHash>,
}

/// One that is kept whole.
#[derive(Debug)]
struct Whole {
    size: u64,
    /// Boxed, since most have none.
    key: Option<Box<KeyTime>>,
}

/// An idempotency key, and until when it is remembered.
#[derive(Debug, Clone, Copy)]
struct KeyTime {
    until_ms: u64,
    hash: KeyHash,
}

impl KeyTime {
    /// Of an entry that has ended; `None` while it lives.
    fn of(entry: &Entry) -> Option<Self> {
        let State::Ended { at_ms, .. } = entry.state else { return None };
        let hash = entry.key_hash(entry.key.as_ref()?);
        Some(Self { until_ms: at_ms.saturating_add(KEY_MS), hash })
    }
}

/// What is forgotten of an entry.
#[derive(Debug)]
pub(super) enum Gone {
    /// What was asked and answered; the end stays for its key.
    Most(Id),
    /// All of one that was whole, with its key where that is still remembered.
    All(Id, Option<KeyHash>),
    /// The end that was left, with its key.
    Rest(Id, Option<KeyHash>),
}

impl Gone {
    /// Removes what is forgotten.
    pub(super) fn erase(self, batch: &mut Batch) {
        let key = match self {
            Self::Most(id) => {
                batch.put(id.mark_key(), Bytes::new());
                batch.delete(id.payload_key()).delete(id.result_key());
                None
            }
            Self::All(id, key) => {
                batch.delete(id.work_key()).delete(id.payload_key()).delete(id.result_key());
                key
            }
            Self::Rest(id, key) => {
                batch.delete(id.work_key()).delete(id.mark_key());
                key
            }
        };
        if let Some(hash) = key {
            batch.delete(hash.table_key());
        }
    }
}

impl Retention {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, whole: BTreeMap::new(), bytes: 0, small: BTreeMap::new() }
    }

    /// Until when an entry is kept whole; `None` while it lives.
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
            let whole = Whole { size, key: KeyTime::of(entry).map(Box::new) };
            let before = self.whole.insert((until_ms, id), whole);
            self.bytes += size - before.map_or(0, |before| before.size);
        }
    }

    /// Takes out an entry that is to live again.
    ///
    /// # Errors
    ///
    /// `conflict` where what was asked is not kept any more, `not_found` where
    /// nothing is.
    pub(super) fn take_whole(&mut self, id: Id, entry: &Entry) -> Result<(), Refusal> {
        if self.remove_whole(id, entry) {
            return Ok(());
        }
        match KeyTime::of(entry) {
            Some(key) if self.small.contains_key(&(key.until_ms, id)) => {
                let message = format!("what was asked as the work {id} is not kept any more");
                Err(Refusal::new(Code::Conflict, message)
                    .hint("ask for the event again, with another idempotency key"))
            }
            _ => Err(not_found(&id.to_string())),
        }
    }

    fn remove_whole(&mut self, id: Id, entry: &Entry) -> bool {
        let whole = self.until_ms(entry).and_then(|until_ms| self.whole.remove(&(until_ms, id)));
        self.bytes -= whole.as_ref().map_or(0, |whole| whole.size);
        whole.is_some()
    }

    /// Takes out the next of which something is to be forgotten, if its time has
    /// come or there is too much.
    pub(super) fn pop(&mut self, now_ms: u64) -> Option<Gone> {
        if self.whole_due_ms().is_some_and(|due_ms| due_ms <= now_ms) {
            let ((_, id), whole) = self.whole.pop_first()?;
            self.bytes -= whole.size;
            let Some(key) = whole.key.filter(|key| key.until_ms > now_ms) else {
                return Some(Gone::All(id, None));
            };
            self.small.insert((key.until_ms, id), key.hash);
            return Some(Gone::Most(id));
        }
        self.small_due_ms().filter(|due_ms| *due_ms <= now_ms)?;
        let ((until_ms, id), hash) = self.small.pop_first()?;
        Some(Gone::Rest(id, (until_ms > now_ms).then_some(hash)))
    }

    /// When to look again: at once where there is too much.
    pub(super) fn due_ms(&self) -> Option<u64> {
        [self.whole_due_ms(), self.small_due_ms()].into_iter().flatten().min()
    }

    fn whole_due_ms(&self) -> Option<u64> {
        let (until_ms, _) = *self.whole.first_key_value()?.0;
        let too_much = self.whole.len() > self.bounds.count || self.bytes > self.bounds.bytes;
        Some(if too_much { 0 } else { until_ms })
    }

    fn small_due_ms(&self) -> Option<u64> {
        let (until_ms, _) = *self.small.first_key_value()?.0;
        Some(if self.small.len() > self.bounds.keys { 0 } else { until_ms })
    }

    pub(super) fn count(&self) -> usize {
        self.whole.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn remembered(&self) -> usize {
        self.small.len()
    }
}

impl Ledger {
    /// Puts an ended entry in of which only the end is kept, as [`Ledger::load`]
    /// the others.
    pub fn load_small(&mut self, id: Id, entry: &Entry) {
        self.last = self.last.max(Some(id));
        if let Some(key) = KeyTime::of(entry) {
            self.ended.small.insert((key.until_ms, id), key.hash);
        }
    }

    /// Forgets an ended entry, as it is stored, with its result and its
    /// idempotency key: what is asked under that is new work.
    ///
    /// # Errors
    ///
    /// `conflict` where it has not ended; `not_found` where it is forgotten.
    pub fn forget(&mut self, now_ms: u64, id: Id, entry: &Entry) -> Result<Step, Refusal> {
        if self.live.contains_key(&id) {
            return Err(not_ended(id));
        }
        let key = KeyTime::of(entry);
        let small = key.is_some_and(|key| self.ended.small.remove(&(key.until_ms, id)).is_some());
        if !small && !self.ended.remove_whole(id, entry) {
            return Err(not_found(&id.to_string()));
        }
        let remembered = key.filter(|key| key.until_ms > now_ms).map(|key| key.hash);
        let gone = if small { Gone::Rest } else { Gone::All };
        let mut step = Step::default();
        gone(id, remembered).erase(&mut step.batch);
        Ok(step)
    }
}
