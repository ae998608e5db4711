//! The store on sled 0.34.7, with a guard for each of its measured traps.
//!
//! No type of sled leaves this module. Everything here blocks, and is called
//! from one thread.
//!
//! | trap of sled | guard |
//! |---|---|
//! | `flush` does not sync the device | `fdatasync` on a descriptor of our own |
//! | its own `fsync` fails silently | our descriptor is open all the time, so the kernel tells it too |
//! | large values leak, or become files that are never synced | [`value`]: small entries, own files |
//! | a kill during start leaves `snap.*.generating`, which bricks it | [`shelf`] removes them |
//! | opening a damaged file hangs or panics | [`shelf`] opens on a thread that is watched |
//! | opening a damaged file loses keys silently | [`value::Sum`] is compared with what is there |
//! | a flipped bit goes unnoticed | every value has a checksum |
//! | dropping it after a panic may hang | a broken one is leaked |
//! | a cache of 1 GiB | a few MiB |
//!
//! # Invariants
//!
//! - The file of a value is durable before the entry that names it is
//!   written, and is deleted after its absence is durable.
//!
//! # Failure
//!
//! After an error of writing, and after damage, every call fails: sled
//! itself remembers some errors and not others, so nothing is asked of it.

mod shelf;
mod value;

use std::{
    cell::Cell,
    collections::{BTreeMap, HashSet},
    fs, io,
    os::unix::fs::OpenOptionsExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use ksi_sdk::protocol::Bytes;

pub use self::shelf::SledShelf;
use self::value::{Body, Head, PIECE, SUM, Sum, is_piece, piece_key, value_key};
use super::{KEY_MAX, PAGE, PAGE_BYTES, Stat, Store, StoreError};
use crate::record::Change;

/// Sled's directory in that of the store.
const TREE: &str = "tree";
/// Files of large values.
const VALUES: &str = "values";
/// Present while the store is closed in order; holds the figures of then.
const CLEAN: &str = "clean";

struct SledStore {
    /// Taken only to be leaked.
    db: Option<sled::Db>,
    /// Our own descriptor of sled's file, for `fdatasync` and its errors.
    file: fs::File,
    dir: PathBuf,
    sum: Sum,
    /// Files of values that are gone; deleted once that is durable.
    unused: HashSet<String>,
    broken: Cell<bool>,
    panicked: Cell<bool>,
}

impl SledStore {
    fn db(&self) -> Result<&sled::Db, StoreError> {
        match &self.db {
            Some(db) if !self.broken.get() => Ok(db),
            _ => Err(StoreError::Damaged("an earlier error has closed it".into())),
        }
    }

    /// Calls sled; what it says or does wrong ends the use of this store.
    fn call<T>(
        &self,
        doing: &'static str,
        call: impl FnOnce(&sled::Db) -> sled::Result<T>,
    ) -> Result<T, StoreError> {
        let db = self.db()?;
        guarded(doing, || call(db)).map_err(|failure| {
            self.broken.set(true);
            self.panicked.set(matches!(failure, Failure::Panic));
            failure.into()
        })
    }

    fn damaged(&self, what: impl Into<String>) -> StoreError {
        self.broken.set(true);
        StoreError::Damaged(what.into())
    }

    /// The value behind an entry, checked.
    fn load(&self, key: &[u8], entry: &[u8]) -> Result<Bytes, StoreError> {
        let Some(head) = Head::read(entry) else { return Err(self.damaged("an entry has no head")) };
        let value = match &head.body {
            Body::Inline(value) => value.to_vec(),
            Body::Pieces(count) => {
                let mut value = Vec::with_capacity(head.length as usize);
                for number in 0..*count {
                    let piece = self.call("read", |db| db.get(piece_key(key, number)))?;
                    value.extend_from_slice(
                        &piece.ok_or_else(|| self.damaged("a piece of a value is missing"))?,
                    );
                }
                value
            }
            Body::File(name) => match fs::read(self.dir.join(VALUES).join(name)) {
                Ok(value) => value,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(self.damaged("the file of a value is missing"));
                }
                Err(source) => return Err(StoreError::Io { doing: "read", source }),
            },
        };
        match value::crc(key, &value) == head.crc && value.len() == head.length as usize {
            true => Ok(value.into()),
            false => Err(self.damaged("the checksum of a value does not fit")),
        }
    }

    /// Writes the file of a value, durably but for its name.
    fn write_file(&self, name: &str, value: &[u8]) -> io::Result<()> {
        use io::Write;
        let values = self.dir.join(VALUES);
        let temporary = values.join(format!("{name}.new"));
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(value)?;
        file.sync_data()?;
        fs::rename(temporary, values.join(name))
    }

    /// Takes what an old value occupies out of the store.
    fn forget(
        &mut self,
        key: &[u8],
        old: &[u8],
        batch: &mut sled::Batch,
        gone: &mut Vec<String>,
    ) -> Result<(), StoreError> {
        let Some(head) = Head::read(old) else { return Err(self.damaged("an entry has no head")) };
        self.sum.take(head.sum(key));
        match head.body {
            Body::Inline(_) => {}
            Body::Pieces(count) => (0..count).for_each(|number| batch.remove(piece_key(key, number))),
            Body::File(name) => gone.push(name),
        }
        Ok(())
    }

    /// Compares everything with what was written; `deep` reads the files of large values too. Returns the names of
    /// those. `between` is called after each page.
    fn check(&self, deep: bool, between: &mut dyn FnMut(&dyn Store)) -> Result<HashSet<String>, StoreError> {
        let db = self.db()?;
        let mut found = Sum::default();
        let mut files = HashSet::new();
        let (mut pieces, mut pieces_found) = (0_u64, 0_u64);
        let (mut read, mut bytes) = (0, 0);
        let mut entries = db.iter();
        while let Some((entry_key, entry)) = self.call("read", |_| entries.next().transpose())? {
            read += 1;
            if read >= PAGE || bytes >= PAGE_BYTES {
                between(self);
                (read, bytes) = (0, 0);
            }
            if is_piece(&entry_key) {
                pieces_found += 1;
            }
            if entry_key.first() != Some(&value::VALUE) {
                continue;
            }
            let key = &entry_key[1..];
            let Some(head) = Head::read(&entry) else { return Err(self.damaged("an entry has no head")) };
            found.add(head.sum(key));
            match &head.body {
                Body::Pieces(count) => pieces += u64::from(*count),
                Body::File(name) => {
                    let length = fs::metadata(self.dir.join(VALUES).join(name)).map(|file| file.len());
                    if length.ok() != Some(u64::from(head.length)) {
                        return Err(self.damaged("the file of a value is missing or cut"));
                    }
                    files.insert(name.clone());
                    if !deep {
                        continue;
                    }
                }
                Body::Inline(_) => {}
            }
            bytes += self.load(key, &entry)?.len();
        }
        match found == self.sum && pieces == pieces_found {
            true => Ok(files),
            false => Err(self.damaged(format!(
                "it has {} keys and {} pieces of values, where {} and {pieces} were written",
                found.keys, pieces_found, self.sum.keys
            ))),
        }
    }

    /// Deletes files of values that no entry names: a crash came between.
    fn collect(&self, used: &HashSet<String>) -> io::Result<usize> {
        let mut collected = 0;
        for entry in fs::read_dir(self.dir.join(VALUES))? {
            let entry = entry?;
            if !entry.file_name().to_str().is_some_and(|name| used.contains(name)) {
                fs::remove_file(entry.path())?;
                collected += 1;
            }
        }
        Ok(collected)
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        let failed = StoreError::io("sync");
        let files = || -> io::Result<()> {
            self.file.sync_data()?;
            // Entries are small enough that there are none; were one to come all the same, it would be synced.
            let blobs = self.dir.join(TREE).join("blobs");
            if blobs.exists() {
                let mut any = false;
                for blob in fs::read_dir(&blobs)? {
                    fs::File::open(blob?.path())?.sync_data()?;
                    any = true;
                }
                if any {
                    sync_dir(&blobs)?;
                }
            }
            sync_dir(&self.dir.join(TREE))
        };
        files().map_err(failed)
    }
}

impl Store for SledStore {
    fn apply(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        self.db()?;
        if let Some(long) = changes.iter().find(|change| change.key.len() > KEY_MAX) {
            return Err(StoreError::KeyTooLong(long.key.len()));
        }
        let last: BTreeMap<&[u8], Option<&Bytes>> =
            changes.iter().map(|change| (&change.key[..], change.value.as_ref())).collect();
        let mut batch = sled::Batch::default();
        let (mut gone, mut made) = (Vec::new(), HashSet::new());
        for (key, value) in last {
            let entry_key = value_key(key);
            if let Some(old) = self.call("read", |db| db.get(&entry_key))? {
                self.forget(key, &old, &mut batch, &mut gone)?;
            } else if value.is_none() {
                // Made and gone since the last checkpoint: sled need not hear of it.
                continue;
            }
            let Some(value) = value else {
                batch.remove(entry_key);
                continue;
            };
            let head = Head::of(key, value);
            self.sum.add(head.sum(key));
            match &head.body {
                Body::Inline(_) => {}
                Body::Pieces(_) => {
                    for (number, piece) in (0..).zip(value.chunks(PIECE)) {
                        batch.insert(piece_key(key, number), piece);
                    }
                }
                Body::File(name) => {
                    if !self.dir.join(VALUES).join(name).exists() {
                        self.write_file(name, value).map_err(StoreError::io("write a value of"))?;
                    }
                    made.insert(name.clone());
                }
            }
            batch.insert(entry_key, head.write());
        }
        if !made.is_empty() {
            sync_dir(&self.dir.join(VALUES)).map_err(StoreError::io("write a value of"))?;
        }
        batch.insert(SUM, &self.sum.write()[..]);
        self.call("write", |db| db.apply_batch(batch))?;
        self.unused.extend(gone);
        self.unused.retain(|name| !made.contains(name));
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let entry = self.call("read", |db| db.get(value_key(key)))?;
        entry.map(|entry| self.load(key, &entry)).transpose()
    }

    fn range(
        &self,
        from: &[u8],
        until: Option<&[u8]>,
        limit: usize,
        bytes: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let mut page = Vec::new();
        if until.is_some_and(|until| until <= from) {
            return Ok(page);
        }
        let until = until.map_or(vec![value::VALUE + 1], value_key);
        let mut size = 0;
        let mut entries = self.db()?.range(value_key(from)..until);
        while page.len() < limit && (page.is_empty() || size < bytes) {
            let Some((key, entry)) = self.call("read", |_| entries.next().transpose())? else { break };
            let key = &key[1..];
            let value = self.load(key, &entry)?;
            size += key.len() + value.len();
            page.push((Bytes::copy_from_slice(key), value));
        }
        Ok(page)
    }

    fn checkpoint(&mut self) -> Result<(), StoreError> {
        self.call("flush", |db| db.flush())?;
        if let Err(error) = self.sync() {
            self.broken.set(true);
            return Err(error);
        }
        for name in std::mem::take(&mut self.unused) {
            // One that stays is found by the check after a crash, and is only space until then.
            let _ = fs::remove_file(self.dir.join(VALUES).join(name));
        }
        Ok(())
    }

    fn verify(&self, between: &mut dyn FnMut(&dyn Store)) -> Result<Stat, StoreError> {
        self.check(true, between)?;
        self.stat()
    }

    fn stat(&self) -> Result<Stat, StoreError> {
        let disk_bytes = disk_bytes(&self.dir).map_err(StoreError::io("measure"))?;
        Ok(Stat { keys: self.sum.keys, live_bytes: self.sum.bytes, disk_bytes })
    }

    fn close(mut self: Box<Self>) -> Result<(), StoreError> {
        self.checkpoint()?;
        let mark = || -> io::Result<()> {
            let clean = self.dir.join(CLEAN);
            fs::write(&clean, self.sum.write())?;
            fs::File::open(&clean)?.sync_data()?;
            sync_dir(&self.dir)
        };
        mark().map_err(StoreError::io("close"))
    }
}

impl Drop for SledStore {
    fn drop(&mut self) {
        if self.panicked.get() {
            // Its threads may have panicked too, and then its destructor waits for them for ever. Its lock stays
            // taken, so the next opening finds the store damaged and puts it aside.
            std::mem::forget(self.db.take());
        }
    }
}

/// How a call of sled went wrong.
enum Failure {
    Said(StoreError),
    Panic,
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Said(error) => error,
            Failure::Panic => Self::Damaged("sled panicked".into()),
        }
    }
}

/// Calls sled, and takes a panic for what it is: damage.
fn guarded<T>(doing: &'static str, call: impl FnOnce() -> sled::Result<T>) -> Result<T, Failure> {
    // What a panic left half done is never looked at again: the caller gives the store up.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(sled::Error::Io(source))) => Err(Failure::Said(StoreError::Io { doing, source })),
        Ok(Err(error)) => Err(Failure::Said(StoreError::Damaged(error.to_string()))),
        Err(_) => Err(Failure::Panic),
    }
}

/// Makes names in a directory durable.
fn sync_dir(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

/// Bytes of all files below.
fn disk_bytes(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // A file may go while it is looked at: sled deletes on threads of its own.
        let Ok(metadata) = entry.metadata() else { continue };
        bytes += if metadata.is_dir() { disk_bytes(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}
