//! The checkpointer: makes checkpoints, exports and restores, and says what the journal may let go.
//!
//! Owns the store. Everything here blocks and runs on a thread of its own (`engine/thread.rs`); it is called
//! step by step in the crash tests.
//!
//! # Invariants
//!
//! - The store says that it covers a position only when everything up to
//!   there is durable in it, and in the journal.
//! - The newest export and what is left of the journal rebuild the store. An
//!   export is made only of a store that was read whole and is as it was written.
//!
//! # Failure
//!
//! A store that fails is not asked again: commits are refused, and the next
//! start opens it anew, or rebuilds it.

use std::{cmp::Ordering, fs, io, os::unix::fs::OpenOptionsExt, path::Path, sync::Arc, time::Instant};

use ksi_sdk::{
    protocol::{Bytes, Code, Refusal},
    trust::Digest,
};
use nix::fcntl::OFlag;

use super::{
    exports::{self, Exports, Import},
    facts,
    options::{Options, Size},
    report::{CheckpointReport, ExportReport, Flaw, RestoreReport, VerifyReport},
    shared::Shared,
};
use crate::{
    journal::Damage,
    overlay::Layer,
    record::{Batch, Change, Record, Seq, keys},
    store::{Shelf, Store, StoreError, export::Summary},
};

/// Name of the store on its shelf.
pub(super) const STORE: &str = "store";
/// Name of the one that is to take its place.
pub(super) const RESTORED: &str = "restored";
/// Keys of an export that are taken at once, and bytes that are ever written at once.
pub(super) const BATCH: usize = 512;
pub(super) const BATCH_BYTES: usize = 1 << 20;

/// Where the store keeps the position that it covers. Not journaled.
pub(super) const COVERED: &[u8] = &[keys::META, b'c'];
/// The number of the start.
pub(super) const EPOCH: &[u8] = &[keys::META, b'e'];
/// Which restore the keyspace comes from: the record that changes it is the moment of the restore.
pub(super) const LINEAGE: &[u8] = &[keys::META, b'l'];

/// A position that was given out elsewhere, where the keyspace comes from there: the journal goes on after
/// it.
pub(super) const GIVEN: &[u8] = &[keys::META, b'p'];

/// Highest position that an export may say it covers: no journal comes as far, and every number in JSON
/// holds it.
const POSITION_MAX: Seq = 1 << 53;

/// See the module.
pub(super) struct Checkpointer {
    pub(super) options: Options,
    pub(super) shelf: Box<dyn Shelf>,
    /// None after a failure.
    pub(super) store: Option<Box<dyn Store>>,
    pub(super) exports: Exports,
    pub(super) shared: Arc<Shared>,
    pub(super) store_seq: Seq,
    pub(super) export_seq: Seq,
}

/// A number as it stands in the keyspace.
pub(super) fn number(value: u64) -> Bytes {
    Bytes::copy_from_slice(&value.to_le_bytes())
}

/// Reads a number; what is not there is 0.
pub(super) fn read_number(value: Option<&Bytes>) -> u64 {
    value.and_then(|value| value[..].try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// The change that says what a store covers.
pub(super) fn covered(seq: Seq) -> Change {
    Change { key: Bytes::from_static(COVERED), value: Some(number(seq)) }
}

impl Checkpointer {
    /// The store, unless it failed.
    pub(super) fn store(&self) -> Result<&dyn Store, Refusal> {
        self.store.as_deref().ok_or_else(|| self.gone())
    }

    /// Whether there is a record after a position.
    pub(super) fn is_after(&self, seq: Seq) -> bool {
        self.shared.state().overlay.seq() > seq
    }

    fn gone(&self) -> Refusal {
        let failed = self.shared.state().failed.clone();
        failed.unwrap_or_else(super::shared::closed)
    }

    /// Gives the store up after an error. A damaged one is put aside, so that the next start rebuilds it.
    pub(super) fn fail(&mut self, error: &StoreError) -> Refusal {
        let refusal = error.refusal();
        self.shared.fail(refusal.clone());
        self.store = None;
        if matches!(error, StoreError::Damaged(_)) {
            // Where that fails too, the next start finds the damage itself.
            let _ = self.shelf.put_aside(STORE);
        }
        refusal
    }

    /// Writes memory to the store. `between` is called now and then with the store, to serve who reads.
    pub(super) fn checkpoint(
        &mut self,
        between: &mut dyn FnMut(&dyn Store),
    ) -> Result<CheckpointReport, Refusal> {
        let begun = Instant::now();
        self.store()?;
        let layer = {
            let mut state = self.shared.state();
            state.asked = Size::Little;
            state.overlay.freeze()
        };
        let result = self.write_layer(&layer, between);
        let (keys, bytes) = match result {
            Ok(written) => written,
            Err(refusal) => {
                self.shared.state().figures.checkpoint_error.clone_from(&refusal.message);
                return Err(refusal);
            }
        };
        self.shared.state().overlay.thaw();
        drop(layer);
        let retired = self.tidy(between);
        self.note_sizes();
        let mut state = self.shared.state();
        let figures = &mut state.figures;
        figures.checkpointed = Some(Instant::now());
        figures.checkpoints += 1;
        figures.checkpoint_error =
            retired.as_ref().err().map(|refusal| refusal.message.clone()).unwrap_or_default();
        drop(state);
        let retired = retired?;
        Ok(CheckpointReport { seq: self.store_seq, keys, bytes, retired, took_ms: super::millis(begun) })
    }

    /// Puts into the figures what the store covers and how large it is.
    pub(super) fn note_sizes(&self) {
        let stat = self.store.as_ref().and_then(|store| store.stat().ok()).unwrap_or_default();
        let mut state = self.shared.state();
        let figures = &mut state.figures;
        (figures.store_seq, figures.export_seq) = (self.store_seq, self.export_seq);
        (figures.store_bytes, figures.store_keys) = (stat.disk_bytes, stat.keys);
    }

    /// Makes a layer durable in the store: keys and bytes written.
    fn write_layer(
        &mut self,
        layer: &Layer,
        between: &mut dyn FnMut(&dyn Store),
    ) -> Result<(u64, u64), Refusal> {
        let seq = layer.seq();
        if layer.is_empty() && seq == self.store_seq {
            return Ok((0, 0));
        }
        self.shared.wait_synced(seq)?;
        let Some(store) = &mut self.store else { return Err(self.gone()) };
        match write_changes(&mut **store, layer, self.options.batch_keys, between) {
            Ok(bytes) => {
                self.store_seq = seq;
                Ok((layer.len() as u64, bytes))
            }
            Err(error) => Err(self.fail(&error)),
        }
    }

    /// Exports where it is time, and lets go of journal that nobody needs: files that went.
    fn tidy(&mut self, between: &mut dyn FnMut(&dyn Store)) -> Result<u64, Refusal> {
        if self.export_due()? {
            self.export_own(between)?;
        }
        let needed = self.export_seq.min(self.store_seq) + 1;
        let archive = &self.shared.archive;
        let before = needed.min(facts::floor(&archive.stat().segments, self.options.keep_facts_bytes));
        let retired = archive.retire(before).map_err(|error| error.refusal())?;
        Ok(retired.segments as u64)
    }

    /// Whether the journal since the last export is as long as half of what an export writes.
    fn export_due(&self) -> Result<bool, Refusal> {
        let live = self.store()?.stat().map_err(|error| error.refusal())?.live_bytes;
        let stat = self.shared.archive.stat();
        let since = stat
            .segments
            .iter()
            .filter(|segment| segment.last > self.export_seq)
            .map(|segment| segment.bytes);
        Ok(self.store_seq > self.export_seq
            && since.sum::<u64>() > (live / 2).max(2 * self.options.segment_bytes))
    }

    /// Reads the store whole, and makes an export of it in place of the last.
    pub(super) fn export_own(&mut self, between: &mut dyn FnMut(&dyn Store)) -> Result<Summary, Refusal> {
        let (store, seq) = (self.store()?, self.store_seq);
        match store.verify(between).and_then(|_| self.exports.write(store, seq, between)) {
            Ok(summary) => {
                self.export_seq = seq;
                Ok(summary)
            }
            Err(error @ StoreError::Damaged(_)) => Err(self.fail(&error)),
            Err(error) => Err(error.refusal()),
        }
    }

    /// Writes everything into a file of the caller's, which is not there yet.
    pub(super) fn export(
        &mut self,
        path: &Path,
        between: &mut dyn FnMut(&dyn Store),
    ) -> Result<ExportReport, Refusal> {
        let begun = Instant::now();
        if path.file_name().is_none() {
            return Err(Refusal::invalid_payload(format!("{} names no file", path.display())));
        }
        // A link that leads nowhere is there, too.
        if path.symlink_metadata().is_ok() {
            return Err(taken(path));
        }
        self.checkpoint(between)?;
        let handed = exports::hand_out(path, self.store()?, self.store_seq, between);
        let summary = handed.map_err(|error| match error {
            StoreError::Io { source, .. } if source.kind() == io::ErrorKind::AlreadyExists => taken(path),
            error => error.refusal(),
        })?;
        Ok(ExportReport {
            path: path.to_owned(),
            seq: summary.seq,
            keys: summary.keys,
            bytes: summary.bytes,
            sha256: Digest::from(summary.sha256).to_string(),
            took_ms: super::millis(begun),
        })
    }

    /// Replaces the keyspace by an export.
    pub(super) fn restore(&mut self, path: &Path, epoch: u64) -> Result<RestoreReport, Refusal> {
        let begun = Instant::now();
        let file = open_regular(path)?;
        let (summary, keys, seq) = self.restore_from(&path.display().to_string(), &file, epoch)?;
        Ok(RestoreReport {
            path: path.to_owned(),
            export_seq: summary.seq,
            seq,
            keys,
            took_ms: super::millis(begun),
        })
    }

    /// The same from an open file: what was read, keys taken, and the position of the restore.
    ///
    /// The new store stands beside the old one, durable, before the journal says that it counts; the rest can
    /// be done again by the next start.
    pub(super) fn restore_from(
        &mut self,
        name: &str,
        file: &dyn crate::disk::File,
        epoch: u64,
    ) -> Result<(Summary, u64, Seq), Refusal> {
        let refuse = |error: StoreError| error.refusal();
        let given = read_number(self.store()?.get(GIVEN).map_err(refuse)?.as_ref());
        // All of it is read once before anything is made of it.
        let read = exports::read(name, file, &mut |_| Ok(())).map_err(refuse)?;
        if read.seq > POSITION_MAX {
            return Err(refuse(StoreError::NotAnExport(name.to_owned(), "no journal has so many records")));
        }
        let mut marks = Batch::new();
        marks
            .put(Bytes::from_static(LINEAGE), Bytes::copy_from_slice(uuid::Uuid::now_v7().as_bytes()))
            .put(Bytes::from_static(EPOCH), number(epoch))
            .put(Bytes::from_static(GIVEN), number(given.max(read.seq)));
        let (summary, keys) = self.make_restored(name, file, &marks).map_err(refuse)?;
        let seq = self.commit_restore(marks)?;
        self.shared.wait_synced(seq)?;
        self.store = None;
        match finish_restore(&mut *self.shelf, &self.exports, seq) {
            Ok(store) => {
                (self.store, self.store_seq, self.export_seq) = (Some(store), seq, seq);
                self.note_sizes();
                Ok((summary, keys, seq))
            }
            Err(error) => Err(self.fail(&error)),
        }
    }

    /// Makes the store that is to take the place of this one, of an export and marks of its own: what was
    /// read, and keys taken.
    fn make_restored(
        &mut self,
        name: &str,
        file: &dyn crate::disk::File,
        marks: &Batch,
    ) -> Result<(Summary, u64), StoreError> {
        self.shelf.remove(RESTORED)?;
        let mut store = self.shelf.open(RESTORED)?.store;
        let mut import = Import::into(&mut *store);
        let summary = exports::read(name, file, &mut |change| match change.key.first() {
            Some(&keys::META) => Ok(()),
            _ => import.take(change),
        })?;
        import.flush()?;
        let keys = import.keys;
        store.apply(marks.changes())?;
        store.close()?;
        Ok((summary, keys))
    }

    /// Journals the marks of a restore, and forgets what is in memory; the position of it.
    fn commit_restore(&self, marks: Batch) -> Result<Seq, Refusal> {
        let payload = Bytes::from(Record::Changes(marks.clone()).encode());
        let mut state = self.shared.state();
        // Nothing of before is to be seen again once this is in line.
        let seq = state.commit(&mut Record::Changes(Batch::new()), payload)?;
        state.overlay.reset();
        state.overlay.apply(seq, marks, 0);
        // What is still on its way was made of what was before.
        state.failed.get_or_insert_with(restored);
        Ok(seq)
    }

    /// Walks the journal, and reads the whole store.
    pub(super) fn verify(&mut self, between: &mut dyn FnMut(&dyn Store)) -> Result<VerifyReport, Refusal> {
        let begun = Instant::now();
        let store = self.store()?;
        let journal = self.shared.archive.verify(&mut || between(store)).map_err(|error| error.refusal())?;
        let mut damage: Vec<Flaw> = journal.damage.into_iter().map(flaw).collect();
        let store_keys = match store.verify(between) {
            Ok(stat) => stat.keys,
            Err(error) => {
                damage.push(Flaw { segment: String::new(), seq: None, what: self.fail(&error).message });
                0
            }
        };
        Ok(VerifyReport {
            segments: journal.segments as u64,
            records: journal.records,
            first_seq: journal.first,
            last_seq: journal.last,
            bytes: journal.payload_bytes,
            store_keys,
            head: journal.head,
            damage,
            took_ms: super::millis(begun),
        })
    }
}

/// Damage of the journal, as it is told.
fn flaw(damage: Damage) -> Flaw {
    let Damage { segment, from, to, what, .. } = damage;
    let (seq, what) = match from.cmp(&to) {
        Ordering::Less => (Some(from), format!("records {from} to {to} cannot be read ({what})")),
        Ordering::Equal => (Some(from), format!("it cannot be read ({what})")),
        Ordering::Greater => {
            (None, format!("no record is lost, but something between them is damaged ({what})"))
        }
    };
    Flaw { segment, seq, what }
}

/// Opens a file that is to be restored. What only has the name of one, a pipe or a device, could keep
/// whoever opens it waiting, and with the checkpointer everybody who asks for what is kept.
fn open_regular(path: &Path) -> Result<fs::File, Refusal> {
    let at_once = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    let opened = fs::OpenOptions::new().read(true).custom_flags(at_once).open(path);
    let opened = opened.and_then(|file| Ok((file.metadata()?.is_file(), file)));
    let (is_regular, file) = opened.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Refusal::not_found("export", &path.display().to_string())
            .hint("`ksi checkpoint list` shows what there is"),
        _ => StoreError::io("read an export for")(error).refusal(),
    })?;
    if is_regular {
        return Ok(file);
    }
    Err(Refusal::invalid_payload(format!("{} is no file", path.display()))
        .hint("nothing was changed; give a file that `ksi checkpoint export` wrote"))
}

/// What is refused where an export would take the place of something.
fn taken(path: &Path) -> Refusal {
    Refusal::new(Code::Conflict, format!("{} is there already", path.display()))
        .hint("an export never overwrites: give another name")
}

/// What is refused from a restore on until the next opening.
fn restored() -> Refusal {
    Refusal::new(
        Code::Unavailable,
        "a checkpoint was restored, and nothing is taken before the daemon is started again",
    )
    .hint("`ksi restart` starts it again")
    .retry_after_ms(1000)
}

/// Applies a layer, and says last that it is covered. Bytes written.
fn write_changes(
    store: &mut dyn Store,
    layer: &Layer,
    batch_keys: usize,
    between: &mut dyn FnMut(&dyn Store),
) -> Result<u64, StoreError> {
    let (mut batch, mut size, mut total, mut whole) = (Vec::new(), 0, 0, true);
    for change in layer.changes() {
        size += change.key.len() + change.value.as_ref().map_or(0, Bytes::len);
        batch.push(change);
        if batch.len() >= batch_keys || size >= BATCH_BYTES {
            store.apply(&std::mem::take(&mut batch))?;
            (total, size, whole) = (total + size, 0, false);
            between(store);
        }
    }
    if !whole {
        // Several batches: were some of them lost, the one that covers them must be lost too.
        store.apply(&std::mem::take(&mut batch))?;
        store.checkpoint()?;
        between(store);
    }
    batch.push(covered(layer.seq()));
    store.apply(&batch)?;
    store.checkpoint()?;
    Ok((total + size) as u64)
}

/// Puts the restored store in the place of the old one. Can be done again from wherever it was cut short.
pub(super) fn finish_restore(
    shelf: &mut dyn Shelf,
    exports: &Exports,
    seq: Seq,
) -> Result<Box<dyn Store>, StoreError> {
    let mut store = shelf.open(RESTORED)?.store;
    store.apply(&[covered(seq)])?;
    store.checkpoint()?;
    exports.write(&*store, seq, &mut |_| {})?;
    store.close()?;
    shelf.remove(STORE)?;
    shelf.rename(RESTORED, STORE)?;
    Ok(shelf.open(STORE)?.store)
}
