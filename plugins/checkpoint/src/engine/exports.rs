//! Exports that the engine makes for itself, and those that it is asked for.
//!
//! The newest of its own and the journal after it can always rebuild the
//! store, so an export goes only when a newer one is durable.

use std::{
    io::{self, BufWriter, Read, Write},
    path::Path,
    sync::Arc,
};

use ksi_sdk::protocol::Bytes;

use crate::{
    disk::{Directory, Disk, File, Part},
    record::{Change, Seq},
    store::{Store, StoreError, export},
};

const NEW: &str = "export.new";
const PREFIX: &str = "export-";
const SUFFIX: &str = ".ksi";

/// The engine's own exports, in a directory.
pub(super) struct Exports {
    disk: Arc<dyn Disk>,
}

impl Exports {
    /// Takes a directory, and removes what a crash left half written.
    pub(super) fn new(disk: Arc<dyn Disk>) -> io::Result<Self> {
        if disk.list()?.iter().any(|name| name == NEW) {
            disk.remove(NEW)?;
        }
        Ok(Self { disk })
    }

    /// Positions that exports cover, newest first.
    pub(super) fn list(&self) -> io::Result<Vec<Seq>> {
        let names = self.disk.list()?;
        let seq = |name: &String| name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok();
        let mut seqs: Vec<Seq> = names.iter().filter_map(seq).collect();
        seqs.sort_unstable_by(|a, b| b.cmp(a));
        Ok(seqs)
    }

    /// Writes one, and removes all others once it is durable.
    pub(super) fn write(
        &self,
        store: &dyn Store,
        seq: Seq,
        between: &mut dyn FnMut(&dyn Store),
    ) -> Result<export::Summary, StoreError> {
        let summary = write(&*self.disk, &name(seq), store, seq, between)?;
        let removed = self.list().and_then(|others| {
            others
                .into_iter()
                .filter(|other| *other != seq)
                .try_for_each(|other| self.disk.remove(&name(other)))
        });
        removed.map_err(StoreError::io("remove an export of"))?;
        Ok(summary)
    }

    /// Reads one, whole.
    pub(super) fn read(
        &self,
        seq: Seq,
        take: &mut dyn FnMut(Change) -> Result<(), StoreError>,
    ) -> Result<export::Summary, StoreError> {
        let name = name(seq);
        let file = self.disk.open(&name, false).map_err(StoreError::io("read an export for"))?;
        read(&name, &*file, take)
    }
}

fn name(seq: Seq) -> String {
    format!("{PREFIX}{seq:020}{SUFFIX}")
}

/// Writes an export to where others have files, as a whole or not at all.
pub(super) fn hand_out(
    path: &Path,
    store: &dyn Store,
    seq: Seq,
    between: &mut dyn FnMut(&dyn Store),
) -> Result<export::Summary, StoreError> {
    let failed = || StoreError::io("write an export of");
    if let Some(parent) = path.parent() {
        Directory::new(parent).map_err(failed())?;
    }
    let part = Part::beside(path).map_err(failed())?;
    let summary = export::write(store, seq, &mut BufWriter::with_capacity(64 << 10, part.file()), between)?;
    part.place(path).map_err(failed())?;
    Ok(summary)
}

/// Writes an export as a whole or not at all.
fn write(
    disk: &dyn Disk,
    name: &str,
    store: &dyn Store,
    seq: Seq,
    between: &mut dyn FnMut(&dyn Store),
) -> Result<export::Summary, StoreError> {
    let failed = || StoreError::io("write an export of");
    let file = disk.create(NEW).map_err(failed())?;
    let mut out = BufWriter::with_capacity(64 << 10, Writing { file: &*file, at: 0 });
    let summary = export::write(store, seq, &mut out, between)?;
    drop(out);
    let finish = || {
        file.sync()?;
        disk.rename(NEW, name)?;
        disk.sync()
    };
    finish().map_err(failed())?;
    Ok(summary)
}

/// Reads an export, whole.
pub(super) fn read(
    name: &str,
    file: &dyn File,
    take: &mut dyn FnMut(Change) -> Result<(), StoreError>,
) -> Result<export::Summary, StoreError> {
    let length = file.length().map_err(StoreError::io("read an export for"))?;
    let mut from = io::BufReader::with_capacity(64 << 10, Reading { file, at: 0, length });
    export::read(name, &mut from, take)
}

/// Takes the records of an export into a store, in batches.
pub(super) struct Import<'a> {
    store: &'a mut dyn Store,
    changes: Vec<Change>,
    bytes: usize,
    /// Keys taken.
    pub(super) keys: u64,
}

impl<'a> Import<'a> {
    pub(super) fn into(store: &'a mut dyn Store) -> Self {
        Self { store, changes: Vec::new(), bytes: 0, keys: 0 }
    }

    pub(super) fn take(&mut self, change: Change) -> Result<(), StoreError> {
        self.bytes += change.key.len() + change.value.as_ref().map_or(0, Bytes::len);
        self.changes.push(change);
        self.keys += 1;
        if self.changes.len() >= super::checkpointer::BATCH || self.bytes >= super::checkpointer::BATCH_BYTES
        {
            self.flush()?;
        }
        Ok(())
    }

    pub(super) fn flush(&mut self) -> Result<(), StoreError> {
        self.bytes = 0;
        self.store.apply(&std::mem::take(&mut self.changes))
    }
}

struct Writing<'a> {
    file: &'a dyn File,
    at: u64,
}

impl Write for Writing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Reading<'a> {
    file: &'a dyn File,
    at: u64,
    length: u64,
}

impl Read for Reading<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.length - self.at).unwrap_or(usize::MAX);
        let count = buffer.len().min(left);
        self.file.read_at(&mut buffer[..count], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}
