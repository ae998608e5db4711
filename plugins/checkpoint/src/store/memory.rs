//! A store in memory: what a store means, without a disk.
//!
//! Nothing survives it. The tests compare the others with it.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use ksi_sdk::protocol::Bytes;

use super::{Shelf, Shelved, Stat, Store, StoreError};
use crate::record::Change;

/// Keys and values in order.
pub(super) type Map = BTreeMap<Bytes, Bytes>;

/// A store in memory; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Memory(Arc<Mutex<Map>>);

impl Memory {
    fn map(&self) -> std::sync::MutexGuard<'_, Map> {
        // Every change is a single call on the map, so it is whole also where a panic came between.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Applies changes in order.
pub(super) fn apply(map: &mut Map, changes: &[Change]) {
    for Change { key, value } in changes {
        match value {
            Some(value) => map.insert(key.clone(), value.clone()),
            None => map.remove(key),
        };
    }
}

/// A page of a map; see [`Store::range`].
pub(super) fn range(
    map: &Map,
    from: &[u8],
    until: Option<&[u8]>,
    limit: usize,
    bytes: usize,
) -> Vec<(Bytes, Bytes)> {
    let mut page = Vec::new();
    let mut size = 0;
    let bounds = (Bound::Included(from), until.map_or(Bound::Unbounded, Bound::Excluded));
    if until.is_some_and(|until| until <= from) {
        return page;
    }
    for (key, value) in map.range::<[u8], _>(bounds).take(limit) {
        size += key.len() + value.len();
        page.push((key.clone(), value.clone()));
        if size >= bytes {
            break;
        }
    }
    page
}

/// The size of a map.
pub(super) fn stat(map: &Map) -> Stat {
    let live_bytes = map.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum();
    Stat { keys: map.len() as u64, live_bytes, disk_bytes: 0 }
}

impl Store for Memory {
    fn apply(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        apply(&mut self.map(), changes);
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.map().get(key).cloned())
    }

    fn range(
        &self,
        from: &[u8],
        until: Option<&[u8]>,
        limit: usize,
        bytes: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        Ok(range(&self.map(), from, until, limit, bytes))
    }

    fn checkpoint(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    fn verify(&self, between: &mut dyn FnMut(&dyn Store)) -> Result<Stat, StoreError> {
        between(self);
        self.stat()
    }

    fn stat(&self) -> Result<Stat, StoreError> {
        Ok(stat(&self.map()))
    }

    fn close(self: Box<Self>) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Stores in memory by name.
#[derive(Debug, Default)]
pub struct MemoryShelf(HashMap<String, Memory>);

impl Shelf for MemoryShelf {
    fn has(&self, name: &str) -> Result<bool, StoreError> {
        Ok(self.0.contains_key(name))
    }

    fn open(&mut self, name: &str) -> Result<Shelved, StoreError> {
        let store = Box::new(self.0.entry(name.to_owned()).or_default().clone());
        Ok(Shelved { store, repairs: Vec::new(), verified: true })
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), StoreError> {
        if let Some(store) = self.0.remove(from) {
            self.0.insert(to.to_owned(), store);
        }
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<(), StoreError> {
        self.0.remove(name);
        Ok(())
    }

    fn put_aside(&mut self, name: &str) -> Result<Option<PathBuf>, StoreError> {
        self.0.remove(name);
        Ok(None)
    }
}
