//! A simulated disk: loses, tears and reorders what was not synced.
//!
//! Every change is one step; a test can have any step fail, or the power go
//! there. The same seed gives the same disk. Writes that were not synced
//! survive sector by sector, by chance, and so do changes of names, each for
//! itself: that is harsher than a file system with a journal.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Disk, File, Lock};

/// The unit in which a disk writes or does not write.
const SECTOR: usize = 512;

/// What happens at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The power goes. The step may or may not be done; nothing is after it.
    Power,
    /// The system reports an error. Of a write half is done; of a sync some is
    /// lost, and the next one lies that all is well.
    Io,
    /// There is no space. Of a write half is done.
    Full,
}

/// A simulated disk; clones are the same one.
#[derive(Clone, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

#[derive(Clone, Default)]
struct State {
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// Changes of names that are not synced.
    renames: Vec<Rename>,
    files: Vec<Content>,
    protected: BTreeSet<usize>,
    steps: u64,
    fault: Option<(u64, Fault)>,
    dead: bool,
    /// Who opened before a restart has nothing any more.
    boot: u64,
    locked: bool,
    chance: Chance,
}

#[derive(Clone)]
struct Rename {
    from: Option<String>,
    to: Option<(String, usize)>,
}

#[derive(Clone, Default)]
struct Content {
    cache: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<(usize, Vec<u8>)>,
}

/// Numbers that look random and are not.
#[derive(Clone, Default)]
pub struct Chance(u64);

impl Chance {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit.max(1)
    }
}

impl Content {
    /// Makes some of what is pending durable, each sector with a chance of
    /// `percent`.
    fn settle(&mut self, percent: u64, chance: &mut Chance) {
        for (offset, bytes) in std::mem::take(&mut self.pending) {
            let mut at = 0;
            while at < bytes.len() {
                let end = (at + SECTOR - (offset + at) % SECTOR).min(bytes.len());
                if chance.below(100) < percent {
                    let range = offset + at..offset + end;
                    if self.durable.len() < range.end {
                        self.durable.resize(range.end, 0);
                    }
                    self.durable[range].copy_from_slice(&bytes[at..end]);
                }
                at = end;
            }
        }
    }

    fn write(&mut self, bytes: &[u8], offset: usize) {
        if self.cache.len() < offset + bytes.len() {
            self.cache.resize(offset + bytes.len(), 0);
        }
        self.cache[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.pending.push((offset, bytes.to_vec()));
    }
}

impl State {
    /// One change; whether it fails. The power goes after it.
    fn step(&mut self) -> io::Result<Option<Fault>> {
        if self.dead {
            return Err(io::Error::other("the power is off"));
        }
        self.steps += 1;
        let fault = self.fault.filter(|(step, _)| *step == self.steps).map(|(_, fault)| fault);
        self.dead = fault == Some(Fault::Power);
        Ok(fault)
    }

    fn change(&mut self, rename: Rename) -> io::Result<()> {
        match self.step()? {
            Some(fault @ (Fault::Io | Fault::Full)) => return Err(failure(fault)),
            Some(Fault::Power) | None => {}
        }
        apply(&mut self.names, &rename);
        self.renames.push(rename);
        self.alive()
    }

    fn alive(&self) -> io::Result<()> {
        if self.dead { Err(io::Error::other("the power went")) } else { Ok(()) }
    }

    fn find(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn apply(names: &mut BTreeMap<String, usize>, rename: &Rename) {
    if let Some(from) = &rename.from {
        names.remove(from);
    }
    if let Some((to, file)) = &rename.to {
        names.insert(to.clone(), *file);
    }
}

fn failure(fault: Fault) -> io::Error {
    match fault {
        Fault::Full => io::ErrorKind::StorageFull.into(),
        _ => io::Error::other("input/output error"),
    }
}

impl SimDisk {
    fn lock_state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another disk that is as this one is now.
    pub fn copy(&self) -> Self {
        Self(Arc::new(Mutex::new(self.lock_state().clone())))
    }

    /// Changes so far, since the last restart.
    pub fn steps(&self) -> u64 {
        self.lock_state().steps
    }

    /// A step of something else that shares the power: a store beside the files.
    pub fn tick(&self) -> io::Result<()> {
        match self.lock_state().step()? {
            None => Ok(()),
            Some(fault) => Err(failure(fault)),
        }
    }

    /// Lets a later step fail.
    pub fn fail_at(&self, step: u64, fault: Fault) {
        self.lock_state().fault = Some((step, fault));
    }

    /// The process is gone; what it wrote is in the system's cache still.
    pub fn kill(&self) {
        let mut state = self.lock_state();
        state.boot += 1;
        (state.locked, state.dead, state.steps, state.fault) = (false, false, 0, None);
    }

    /// The power went and is back. The seed says what survived of that which
    /// was not synced: nothing, everything, or parts.
    pub fn power_cycle(&self, seed: u64) {
        self.kill();
        let mut state = self.lock_state();
        let mut chance = Chance::new(seed);
        let percent = [0, 100, 10, 50, 90][usize::try_from(seed % 5).unwrap()];
        let renames = std::mem::take(&mut state.renames);
        let State { names, durable_names, files, .. } = &mut *state;
        let survivors = renames.iter().filter(|_| chance.below(100) < percent);
        survivors.for_each(|rename| apply(durable_names, rename));
        names.clone_from(durable_names);
        for file in files {
            file.settle(percent, &mut chance);
            file.cache.clone_from(&file.durable);
        }
        state.chance = chance;
    }

    /// The bytes of a file.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let state = self.lock_state();
        state.files[state.find(name).unwrap()].cache.clone()
    }

    /// Damages a file: it has these bytes now.
    pub fn overwrite(&self, name: &str, bytes: Vec<u8>) {
        let mut state = self.lock_state();
        let file = state.find(name).unwrap();
        state.files[file] = Content { durable: bytes.clone(), cache: bytes, pending: Vec::new() };
    }

    /// Whether a file may be written by nobody.
    pub fn is_protected(&self, name: &str) -> bool {
        let state = self.lock_state();
        state.protected.contains(&state.find(name).unwrap())
    }
}

impl Disk for SimDisk {
    fn place(&self) -> String {
        "the simulated disk".into()
    }

    fn lock(&self) -> io::Result<Box<dyn Lock>> {
        let mut state = self.lock_state();
        if std::mem::replace(&mut state.locked, true) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(SimLock { disk: self.clone(), boot: state.boot }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let state = self.lock_state();
        state.alive()?;
        Ok(state.names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        let mut state = self.lock_state();
        let file = state.files.len();
        state.files.push(Content::default());
        state.change(Rename { from: None, to: Some((name.into(), file)) })?;
        Ok(Box::new(SimFile { disk: self.clone(), boot: state.boot, file, write: true }))
    }

    fn open(&self, name: &str, write: bool) -> io::Result<Box<dyn File>> {
        let state = self.lock_state();
        state.alive()?;
        let file = state.find(name)?;
        if write && state.protected.contains(&file) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(Box::new(SimFile { disk: self.clone(), boot: state.boot, file, write }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.lock_state();
        let file = state.find(from)?;
        state.change(Rename { from: Some(from.into()), to: Some((to.into(), file)) })
    }

    fn protect(&self, name: &str) -> io::Result<()> {
        let mut state = self.lock_state();
        let file = state.find(name)?;
        state.protected.insert(file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.lock_state();
        state.find(name)?;
        state.change(Rename { from: Some(name.into()), to: None })
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.lock_state();
        match state.step()? {
            Some(Fault::Power) => return state.alive(),
            Some(fault) => return Err(failure(fault)),
            None => {}
        }
        let renames = std::mem::take(&mut state.renames);
        renames.iter().for_each(|rename| apply(&mut state.durable_names, rename));
        Ok(())
    }
}

struct SimLock {
    disk: SimDisk,
    boot: u64,
}

impl Lock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.disk.lock_state();
        if state.boot == self.boot {
            state.locked = false;
        }
    }
}

struct SimFile {
    disk: SimDisk,
    boot: u64,
    file: usize,
    write: bool,
}

impl SimFile {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.lock_state();
        if state.boot != self.boot {
            return Err(io::Error::other("opened before the restart"));
        }
        Ok(state)
    }
}

impl File for SimFile {
    fn length(&self) -> io::Result<u64> {
        let state = self.state()?;
        state.alive()?;
        Ok(state.files[self.file].cache.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.state()?;
        state.alive()?;
        let offset = usize::try_from(offset).unwrap();
        let bytes = state.files[self.file].cache.get(offset..offset + buffer.len());
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.state()?;
        if !self.write {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let fault = state.step()?;
        let offset = usize::try_from(offset).unwrap();
        let length = match fault {
            None | Some(Fault::Power) => bytes.len(),
            Some(_) => bytes.len() / 2,
        };
        state.files[self.file].write(&bytes[..length], offset);
        fault.map_or(Ok(()), |fault| Err(failure(fault)))
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state()?;
        let fault = state.step()?;
        if fault == Some(Fault::Power) {
            return state.alive();
        }
        let percent = if fault.is_some() { 50 } else { 100 };
        let State { files, chance, .. } = &mut *state;
        files[self.file].settle(percent, chance);
        fault.map_or(Ok(()), |fault| Err(failure(fault)))
    }
}
