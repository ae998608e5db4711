//! What is in memory: changes that the store does not have yet.
//!
//! Two layers. The *active* one takes changes; a checkpoint *freezes* it, writes the frozen one to the store
//! while a new active one takes changes, and lets it go when the store has it for certain. Knows nothing of journal and store.
//!
//! # Invariants
//!
//! - What is found in a layer is newer than what the store has.
//! - `seq` is the position of the last record that is contained, facts
//!   included.

use std::{
    collections::{BTreeMap, btree_map},
    ops::Bound,
    sync::Arc,
};

use ksi_sdk::protocol::Bytes;

use crate::record::{Batch, Change, Seq};

/// What each key of a layer costs beside its bytes: the node of the map, and two handles.
const ENTRY: usize = 96;

/// A key's newest change: where it was made, and the value, or none any more.
pub type Found = (Seq, Option<Bytes>);

/// Changes by key.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    changes: BTreeMap<Bytes, Found>,
    bytes: usize,
    /// Bytes of all records contained, those too that later ones replaced: so much is in the journal.
    journaled: usize,
    /// Last record contained.
    seq: Seq,
}

impl Layer {
    fn put(&mut self, seq: Seq, Change { key, value }: Change) {
        let size = |value: &Option<Bytes>| value.as_ref().map_or(0, Bytes::len);
        self.bytes += size(&value);
        match self.changes.entry(key) {
            btree_map::Entry::Occupied(mut entry) => {
                let old = std::mem::replace(entry.get_mut(), (seq, value));
                self.bytes -= size(&old.1);
            }
            btree_map::Entry::Vacant(entry) => {
                self.bytes += entry.key().len() + ENTRY;
                entry.insert((seq, value));
            }
        }
    }

    /// Last record contained.
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// Keys that changed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether no key changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The changes in order of their keys.
    pub fn changes(&self) -> impl Iterator<Item = Change> + '_ {
        self.changes.iter().map(|(key, (_, value))| Change { key: key.clone(), value: value.clone() })
    }
}

/// All layers.
#[derive(Debug, Default)]
pub struct Overlay {
    active: Layer,
    frozen: Option<Arc<Layer>>,
    /// Rises whenever a layer is let go: whoever read the store meanwhile reads again.
    generation: u64,
}

impl Overlay {
    /// Nothing in memory; the store covers `seq`.
    #[must_use]
    pub fn new(seq: Seq) -> Self {
        Self { active: Layer { seq, ..Layer::default() }, ..Self::default() }
    }

    /// Takes a record's changes; empty ones for a fact. `journaled` is the length of the record.
    pub fn apply(&mut self, seq: Seq, batch: Batch, journaled: usize) {
        self.active.seq = seq;
        self.active.journaled += journaled;
        for change in batch {
            self.active.put(seq, change);
        }
    }

    /// The newest change of a key; `None` where only the store knows.
    #[must_use]
    pub fn find(&self, key: &[u8]) -> Option<&Found> {
        let frozen = || self.frozen.as_ref().and_then(|layer| layer.changes.get(key));
        self.active.changes.get(key).or_else(frozen)
    }

    /// Changes of keys from `from` on, before `until`, the newest of each, in order: the first `limit` of them.
    #[must_use]
    pub fn range(&self, from: &[u8], until: Option<&[u8]>, limit: usize) -> BTreeMap<Bytes, Found> {
        if until.is_some_and(|until| until <= from) {
            return BTreeMap::new();
        }
        let bounds = || (Bound::Included(from), until.map_or(Bound::Unbounded, Bound::Excluded));
        let copy = |(key, found): (&Bytes, &Found)| (key.clone(), found.clone());
        let frozen =
            self.frozen.iter().flat_map(|layer| layer.changes.range::<[u8], _>(bounds()).take(limit));
        let mut all: BTreeMap<_, _> = frozen.map(copy).collect();
        all.extend(self.active.changes.range::<[u8], _>(bounds()).take(limit).map(copy));
        // The first of both together are among the first of each.
        while all.len() > limit {
            all.pop_last();
        }
        all
    }

    /// Bytes in memory of all layers.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.active.bytes + self.frozen.as_ref().map_or(0, |layer| layer.bytes)
    }

    /// Bytes of the journal that the store does not cover yet: at least what recovery has to read.
    #[must_use]
    pub fn journaled(&self) -> usize {
        self.active.journaled + self.frozen.as_ref().map_or(0, |layer| layer.journaled)
    }

    /// Bytes in memory that no checkpoint has begun to write, or half of those in the journal where that is more: keys
    /// that are overwritten again and again take no memory, but the journal grows.
    #[must_use]
    pub fn due(&self) -> usize {
        self.active.bytes.max(self.active.journaled / 2)
    }

    /// Last record contained.
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.active.seq
    }

    /// See the field.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Makes the active layer the frozen one, to be written. One that was frozen and could not be written is in it.
    pub fn freeze(&mut self) -> Arc<Layer> {
        let active = std::mem::take(&mut self.active);
        self.active.seq = active.seq;
        let frozen = match self.frozen.take() {
            None => active,
            Some(old) => {
                let mut merged = Arc::unwrap_or_clone(old);
                merged.seq = active.seq;
                merged.journaled += active.journaled;
                for (key, (seq, value)) in active.changes {
                    merged.put(seq, Change { key, value });
                }
                merged
            }
        };
        let frozen = Arc::new(frozen);
        self.frozen = Some(frozen.clone());
        frozen
    }

    /// Lets the frozen layer go: the store has it for certain.
    pub fn thaw(&mut self) {
        self.frozen = None;
        self.generation += 1;
    }

    /// Forgets everything: the keyspace was replaced.
    pub fn reset(&mut self) {
        *self = Self { generation: self.generation + 1, ..Self::new(self.active.seq) };
    }
}

/// Lays changes over a page of the store. The page and the changes are of the same range.
#[must_use]
pub fn merge(page: Vec<(Bytes, Bytes)>, changes: BTreeMap<Bytes, Found>) -> Vec<(Bytes, Bytes)> {
    let mut merged = Vec::with_capacity(page.len() + changes.len());
    let mut page = page.into_iter().peekable();
    for (key, (_, value)) in changes {
        while let Some(before) = page.next_if(|(stored, _)| *stored < key) {
            merged.push(before);
        }
        page.next_if(|(stored, _)| *stored == key);
        if let Some(value) = value {
            merged.push((key, value));
        }
    }
    merged.extend(page);
    merged
}

/// The first key after one.
#[must_use]
pub fn successor(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}

/// The first key after all that begin with a prefix; `None` where there is none.
#[must_use]
pub fn next_prefix(prefix: &[u8]) -> Option<Bytes> {
    let end = prefix.iter().rposition(|byte| *byte < u8::MAX)?;
    let mut next = prefix[..=end].to_vec();
    next[end] += 1;
    Some(next.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Apply(Vec<(u8, Option<u8>)>),
        Freeze,
        Written,
    }

    fn step() -> impl Strategy<Value = Step> {
        let change = (0..12_u8, proptest::option::of(any::<u8>()));
        prop_oneof![
            4 => proptest::collection::vec(change, 0..5).prop_map(Step::Apply),
            1 => Just(Step::Freeze),
            1 => Just(Step::Written),
        ]
    }

    proptest! {
        #[test]
        fn the_layers_and_the_store_together_are_one_map(steps in proptest::collection::vec(step(), 0..30), from in 0..12_u8, until in 0..13_u8) {
            let mut model = BTreeMap::<Bytes, Bytes>::new();
            let mut store = BTreeMap::<Bytes, Bytes>::new();
            let mut overlay = Overlay::new(0);
            let mut frozen: Option<Arc<Layer>> = None;
            let bytes = |byte: u8| Bytes::copy_from_slice(&[byte]);
            for (seq, step) in (1..).zip(steps) {
                match step {
                    Step::Apply(changes) => {
                        let mut batch = Batch::new();
                        for (key, value) in changes {
                            match value {
                                Some(value) => { batch.put(bytes(key), bytes(value)); model.insert(bytes(key), bytes(value)); }
                                None => { batch.delete(bytes(key)); model.remove(&bytes(key)); }
                            }
                        }
                        overlay.apply(seq, batch, 1);
                        prop_assert_eq!(overlay.seq(), seq);
                    }
                    Step::Freeze => frozen = Some(overlay.freeze()),
                    Step::Written => if let Some(layer) = frozen.take() {
                        for change in layer.changes() {
                            match change.value {
                                Some(value) => store.insert(change.key, value),
                                None => store.remove(&change.key),
                            };
                        }
                        overlay.thaw();
                    }
                }
                for key in 0..12 {
                    let found = overlay.find(&[key]).map_or_else(|| store.get(&[key][..]).cloned(), |found| found.1.clone());
                    prop_assert_eq!(found.as_ref(), model.get(&[key][..]));
                }
                let within = |map: &BTreeMap<Bytes, Bytes>| -> Vec<_> {
                    map.iter().filter(|(key, _)| key[0] >= from && key[0] < until).map(|(key, value)| (key.clone(), value.clone())).collect()
                };
                let all = overlay.range(&[from], Some(&[until]), usize::MAX);
                let first: BTreeMap<_, _> = all.clone().into_iter().take(3).collect();
                prop_assert_eq!(overlay.range(&[from], Some(&[until]), 3), first);
                prop_assert_eq!(merge(within(&store), all), within(&model));
            }
            overlay.reset();
            prop_assert_eq!(overlay.bytes(), 0);
        }

        #[test]
        fn bytes_are_those_of_what_is_there(changes in proptest::collection::vec((0..4_u8, proptest::option::of(0..50_usize)), 0..30)) {
            let mut overlay = Overlay::new(0);
            for (key, value) in changes {
                let value = value.map(|length| Bytes::from(vec![0; length]));
                overlay.active.put(1, Change { key: Bytes::copy_from_slice(&[key]), value });
            }
            let exact: usize = overlay.active.changes.values().map(|(_, value)| 1 + ENTRY + value.as_ref().map_or(0, Bytes::len)).sum();
            prop_assert_eq!(overlay.bytes(), exact);
        }
    }
}
