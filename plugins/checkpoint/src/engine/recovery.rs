//! Opening: from what a crash left to an engine that goes on.
//!
//! The store as it is, or rebuilt from the last export; over it, in memory, the
//! journal from the position that the store covers. All that is odd is told
//! in [`Recovery`], a sentence each.

use std::{sync::Arc, time::Instant};

use ksi_sdk::protocol::{Bytes, Code, Refusal};

use super::{
    checkpointer::{
        COVERED, Checkpointer, EPOCH, GIVEN, LINEAGE, RESTORED, STORE, covered, finish_restore, number,
        read_number,
    },
    exports::{Exports, Import},
    options::Options,
    report::{Rebuilt, Recovery},
    shared::{Figures, Log, Shared, Wakes},
};
use crate::{
    disk::Disk,
    journal::{self, Archive, Journal, JournalError, Opened},
    overlay::Overlay,
    record::{Batch, Record, Seq},
    store::{Shelf, Store, StoreError},
};

/// Name of a store that is being rebuilt.
const REBUILT: &str = "rebuilt";

/// Where everything is.
pub(super) struct Places {
    pub(super) journal: Arc<dyn Disk>,
    pub(super) exports: Arc<dyn Disk>,
    pub(super) shelf: Box<dyn Shelf>,
}

/// How the journal is written from then on.
pub(super) type Start = dyn FnOnce(Journal, Arc<Wakes>) -> std::io::Result<Box<dyn Log>>;

/// An engine that was opened.
pub(super) struct Opening {
    pub(super) checkpointer: Checkpointer,
    pub(super) shared: Arc<Shared>,
    pub(super) recovery: Recovery,
}

/// Opens, or recovers. Blocks.
pub(super) fn recover(places: Places, options: Options, start: Box<Start>) -> Result<Opening, Refusal> {
    let begun = Instant::now();
    let mut recovery = Recovery::default();
    let refuse = |error: StoreError| error.refusal();
    let mut shelf = places.shelf;
    let exports =
        Exports::new(places.exports).map_err(|error| refuse(StoreError::io("look for exports of")(error)))?;
    shelf.remove(REBUILT).map_err(refuse)?;
    let found = open_found(&mut *shelf, &mut recovery)?;
    let check_from = found.as_ref().map_or(1, |found| found.seq + 1);
    let settings =
        journal::Options { segment_bytes: options.segment_bytes, check_from, ..Default::default() };
    let (mut journal, opened) = Journal::open(places.journal, settings).map_err(|error| error.refusal())?;
    (recovery.last_seq, recovery.torn_bytes) = (opened.last, opened.torn_bytes);
    recovery.notes.extend(opened.damage.iter().map(ToString::to_string));
    let archive = journal.archive();
    let mut base = Base { shelf: &mut *shelf, exports: &exports, archive: &archive, opened: &opened };
    let found = base.finish_restore(found, &mut recovery)?;
    let (store, store_seq) = base.choose(found, &mut recovery)?;
    recovery.store_seq = store_seq;
    let overlay = replay(&archive, store_seq, opened.last, &mut recovery)?;
    let kept = |key| match overlay.find(key) {
        Some((_, value)) => Ok(read_number(value.as_ref())),
        None => store.get(key).map(|value| read_number(value.as_ref())).map_err(refuse),
    };
    recovery.epoch = kept(EPOCH)? + 1;
    // Versions and cursors in the keyspace are positions: what is there already is never given out once more.
    journal.skip_to(kept(GIVEN)?.max(store_seq) + 1);
    let export_seq = exports.list().ok().and_then(|list| list.first().copied()).unwrap_or(0).min(store_seq);
    let figures = Figures { store_seq, export_seq, ..Figures::default() };
    let wakes = Arc::new(Wakes::default());
    let log = start(journal, wakes.clone()).map_err(|error| {
        Refusal::new(Code::Unavailable, format!("cannot start the journal's thread: {error}"))
    })?;
    let shared = Arc::new(Shared::new(overlay, archive, log, wakes, figures));
    let mut batch = Batch::new();
    batch.put(Bytes::from_static(EPOCH), number(recovery.epoch));
    let mut record = Record::Changes(batch);
    let payload = record.encode().into();
    let seq = shared.state().commit(&mut record, payload)?;
    shared.wait_synced(seq)?;
    let store = Some(store);
    let checkpointer =
        Checkpointer { options, shelf, store, exports, shared: shared.clone(), store_seq, export_seq };
    checkpointer.note_sizes();
    recovery.took_ms = super::millis(begun);
    Ok(Opening { checkpointer, shared, recovery })
}

/// A store that was opened, and the position that it says it covers.
struct Found {
    store: Box<dyn Store>,
    seq: Seq,
}

/// Opens the store, if there is one. A damaged one is put aside.
fn open_found(shelf: &mut dyn Shelf, recovery: &mut Recovery) -> Result<Option<Found>, Refusal> {
    let refuse = |error: StoreError| error.refusal();
    if !shelf.has(STORE).map_err(refuse)? {
        return Ok(None);
    }
    let opened = shelf.open(STORE).and_then(|shelved| {
        let seq = read_number(shelved.store.get(COVERED)?.as_ref());
        // One that is large and was closed in order may be damaged all the same; whoever exports it reads it whole.
        Ok((shelved, seq))
    });
    match opened {
        Ok((shelved, seq)) => {
            recovery.notes.extend(shelved.repairs);
            Ok(Some(Found { store: shelved.store, seq }))
        }
        Err(StoreError::Damaged(why)) => {
            let aside = shelf.put_aside(STORE).map_err(refuse)?;
            recovery.rebuilt = Some(Rebuilt { why, aside, ..Rebuilt::default() });
            Ok(None)
        }
        Err(error) => Err(refuse(error)),
    }
}

struct Base<'a> {
    shelf: &'a mut dyn Shelf,
    exports: &'a Exports,
    archive: &'a Archive,
    opened: &'a Opened,
}

impl Base<'_> {
    /// Goes on with a restore that was cut short after the journal said that it counts; forgets one that was before.
    fn finish_restore(
        &mut self,
        found: Option<Found>,
        recovery: &mut Recovery,
    ) -> Result<Option<Found>, Refusal> {
        let refuse = |error: StoreError| error.refusal();
        if !self.shelf.has(RESTORED).map_err(refuse)? {
            return Ok(found);
        }
        let lineage = self.shelf.open(RESTORED).and_then(|shelved| {
            let lineage = shelved.store.get(LINEAGE)?;
            shelved.store.close()?;
            Ok(lineage)
        });
        let marker = match lineage {
            Ok(Some(lineage)) => self.marker(&lineage)?,
            // Half made, so the journal does not know it.
            Ok(None) | Err(StoreError::Damaged(_)) => None,
            Err(error) => return Err(refuse(error)),
        };
        let Some(seq) = marker else {
            self.shelf.remove(RESTORED).map_err(refuse)?;
            return Ok(found);
        };
        drop(found);
        let store = finish_restore(self.shelf, self.exports, seq).map_err(refuse)?;
        recovery.rebuilt = None;
        recovery.notes.push(format!("finished the restore of position {seq}, which a crash had cut short"));
        Ok(Some(Found { store, seq }))
    }

    /// Where the journal says that a restore counts.
    fn marker(&self, lineage: &Bytes) -> Result<Option<Seq>, Refusal> {
        for item in self.archive.read(self.opened.first) {
            let (seq, payload) = match item {
                Ok(record) => record,
                Err(JournalError::Damaged(_)) => continue,
                Err(error) => return Err(error.refusal()),
            };
            if let Ok(Record::Changes(batch)) = Record::decode(&payload)
                && batch
                    .changes()
                    .iter()
                    .any(|change| change.key == LINEAGE && change.value.as_ref() == Some(lineage))
            {
                return Ok(Some(seq));
            }
        }
        Ok(None)
    }

    /// The store to go on with, and the position that it covers.
    fn choose(
        &mut self,
        found: Option<Found>,
        recovery: &mut Recovery,
    ) -> Result<(Box<dyn Store>, Seq), Refusal> {
        let Opened { first, last, .. } = *self.opened;
        let reaches = |seq: Seq| first == 0 || seq + 1 >= first;
        if let Some(found) = found {
            let why = match found.seq {
                seq if seq > last => match self.outlive(&found) {
                    Ok(()) => {
                        recovery.lost = Some((last + 1, seq));
                        return Ok((found.store, seq));
                    }
                    Err(StoreError::Damaged(why)) => why,
                    Err(error) => return Err(error.refusal()),
                },
                seq if reaches(seq) => return Ok((found.store, seq)),
                seq => format!("the store covers position {seq}, the journal begins at {first}"),
            };
            drop(found);
            let aside = self.shelf.put_aside(STORE).map_err(|error| error.refusal())?;
            recovery.rebuilt = Some(Rebuilt { why, aside, ..Rebuilt::default() });
        }
        let (store, seq) = self.rebuild(recovery)?;
        if seq > last {
            recovery.lost = Some((last + 1, seq));
        } else if !reaches(seq) {
            recovery.notes.push(format!("records {} to {} are lost", seq + 1, first - 1));
        }
        Ok((store, seq))
    }

    /// Exports a store that covers more than the journal has: no earlier export can be brought up to it any
    /// more.
    fn outlive(&self, found: &Found) -> Result<(), StoreError> {
        found.store.verify(&mut |_| {})?;
        self.exports.write(&*found.store, found.seq, &mut |_| {}).map(drop)
    }

    /// A new store of the newest export that is whole, or an empty one.
    fn rebuild(&mut self, recovery: &mut Recovery) -> Result<(Box<dyn Store>, Seq), Refusal> {
        let refuse = |error: StoreError| error.refusal();
        let seqs =
            self.exports.list().map_err(|error| refuse(StoreError::io("look for exports of")(error)))?;
        for seq in seqs {
            self.shelf.remove(REBUILT).map_err(refuse)?;
            let mut store = self.shelf.open(REBUILT).map_err(refuse)?.store;
            let mut import = Import::into(&mut *store);
            let read = self.exports.read(seq, &mut |change| import.take(change));
            match read.and_then(|_| import.flush()) {
                Ok(()) => {}
                Err(error @ StoreError::NotAnExport(..)) => {
                    recovery.notes.push(error.to_string());
                    continue;
                }
                Err(error) => return Err(refuse(error)),
            }
            let keys = import.keys;
            store.apply(&[covered(seq)]).map_err(refuse)?;
            store.close().map_err(refuse)?;
            self.shelf.rename(REBUILT, STORE).map_err(refuse)?;
            let rebuilt = recovery
                .rebuilt
                .get_or_insert_with(|| Rebuilt { why: "there was no store".into(), ..Rebuilt::default() });
            (rebuilt.from_export, rebuilt.export_seq) = (keys, seq);
            return Ok((self.shelf.open(STORE).map_err(refuse)?.store, seq));
        }
        self.shelf.remove(REBUILT).map_err(refuse)?;
        Ok((self.shelf.open(STORE).map_err(refuse)?.store, 0))
    }
}

/// What the journal has after the store.
fn replay(archive: &Archive, store_seq: Seq, last: Seq, recovery: &mut Recovery) -> Result<Overlay, Refusal> {
    let mut overlay = Overlay::new(store_seq);
    if last <= store_seq {
        return Ok(overlay);
    }
    for item in archive.read(store_seq + 1) {
        let (seq, payload) = match item {
            Ok(record) => record,
            // Told already: it is part of what the opening of the journal found, or is told by a verification.
            Err(JournalError::Damaged(damage)) => {
                let damage = damage.to_string();
                if !recovery.notes.contains(&damage) {
                    recovery.notes.push(damage);
                }
                continue;
            }
            Err(error) => return Err(error.refusal()),
        };
        let record = Record::decode(&payload).map_err(|error| {
            Refusal::new(
                Code::Unavailable,
                format!("record {seq} of the journal cannot be understood: {error}"),
            )
            .hint("start the release that wrote it")
        })?;
        let batch = match record {
            Record::Changes(batch) => batch,
            Record::Fact(_) => Batch::new(),
        };
        if batch.changes().iter().any(|change| change.key == LINEAGE) {
            // The store of a restore takes its place before anything is replayed, unless it was lost.
            recovery
                .notes
                .push(format!("what was restored at position {seq} is lost; what was before goes on"));
        }
        overlay.apply(seq, batch, payload.len());
        recovery.replayed += 1;
    }
    Ok(overlay)
}
