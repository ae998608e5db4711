//! A store on a disk that forgets: after a loss of power, of what was applied
//! since the last checkpoint any batches may be there and any may not.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
};

use ksi_sdk::protocol::Bytes;

use super::{
    Shelf, Shelved, Stat, Store, StoreError,
    memory::{Map, apply, range, stat},
};
use crate::record::Change;

/// Counts steps, and cuts the power before one of them.
pub type Step = Arc<dyn Fn() -> std::io::Result<()> + Send + Sync>;

#[derive(Default)]
struct Content {
    /// What a crash leaves for certain.
    durable: Map,
    /// What was applied since.
    batches: Vec<Vec<Change>>,
    /// Both.
    now: Map,
}

#[derive(Clone)]
struct Simulated {
    content: Arc<Mutex<Content>>,
    step: Step,
}

/// Stores by name that survive a simulated crash as a disk would keep them. Clones share it.
#[derive(Clone)]
pub struct SimulatedShelf {
    stores: Arc<Mutex<HashMap<String, Arc<Mutex<Content>>>>>,
    step: Step,
}

impl SimulatedShelf {
    /// No stores yet.
    pub fn new(step: Step) -> Self {
        Self { stores: Arc::default(), step }
    }

    /// What a loss of power leaves; `random` says for each batch whether it got to the disk.
    pub fn crash(&self, mut random: impl FnMut() -> u64, step: Step) -> Self {
        let stores = self.stores();
        let left = stores.iter().map(|(name, content)| {
            let content = content.lock().unwrap();
            let mut durable = content.durable.clone();
            // Often a prefix, as a log leaves it; sometimes any of them.
            let (prefix, any) = (random() as usize % (content.batches.len() + 1), random().is_multiple_of(4));
            for (number, batch) in content.batches.iter().enumerate() {
                if if any { random().is_multiple_of(2) } else { number < prefix } {
                    apply(&mut durable, batch);
                }
            }
            let content = Content { now: durable.clone(), durable, batches: Vec::new() };
            (name.clone(), Arc::new(Mutex::new(content)))
        });
        Self { stores: Arc::new(Mutex::new(left.collect())), step }
    }

    fn stores(&self) -> MutexGuard<'_, HashMap<String, Arc<Mutex<Content>>>> {
        self.stores.lock().unwrap()
    }

    fn step(&self) -> Result<(), StoreError> {
        (self.step)().map_err(StoreError::io("use"))
    }
}

impl Simulated {
    fn step(&self) -> Result<(), StoreError> {
        (self.step)().map_err(StoreError::io("use"))
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap()
    }
}

impl Store for Simulated {
    fn apply(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        self.step()?;
        let mut content = self.content();
        apply(&mut content.now, changes);
        content.batches.push(changes.to_vec());
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.content().now.get(key).cloned())
    }

    fn range(
        &self,
        from: &[u8],
        until: Option<&[u8]>,
        limit: usize,
        bytes: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        Ok(range(&self.content().now, from, until, limit, bytes))
    }

    fn checkpoint(&mut self) -> Result<(), StoreError> {
        // A crash in the middle of it leaves some of the batches, one after it all.
        self.step()?;
        let mut content = self.content();
        content.durable = content.now.clone();
        content.batches.clear();
        drop(content);
        self.step()
    }

    fn verify(&self, between: &mut dyn FnMut(&dyn Store)) -> Result<Stat, StoreError> {
        between(self);
        self.stat()
    }

    fn stat(&self) -> Result<Stat, StoreError> {
        Ok(stat(&self.content().now))
    }

    fn close(mut self: Box<Self>) -> Result<(), StoreError> {
        self.checkpoint()
    }
}

impl Shelf for SimulatedShelf {
    fn has(&self, name: &str) -> Result<bool, StoreError> {
        Ok(self.stores().contains_key(name))
    }

    fn open(&mut self, name: &str) -> Result<Shelved, StoreError> {
        self.step()?;
        let content = self.stores().entry(name.to_owned()).or_default().clone();
        let store = Box::new(Simulated { content, step: self.step.clone() });
        Ok(Shelved { store, repairs: Vec::new(), verified: true })
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), StoreError> {
        self.step()?;
        let mut stores = self.stores();
        assert!(!stores.contains_key(to), "a rename onto a store that is there");
        let store = stores.remove(from).expect("what is renamed is there");
        stores.insert(to.to_owned(), store);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<(), StoreError> {
        self.step()?;
        self.stores().remove(name);
        Ok(())
    }

    fn put_aside(&mut self, name: &str) -> Result<Option<PathBuf>, StoreError> {
        self.remove(name).map(|()| None)
    }
}
