//! The audit trail: a journal of its own, with signed heads beside it.
//!
//! It has the form of the journal (`journal/format.rs`), so every record hangs
//! on all before it, and other files, so that it can be kept for years while the
//! journal lets go of what the store has. The payload of a record is JSON, as
//! it is exported. Every 1,000 records, and within a minute of any, the chain's
//! value is signed and written to a second file.
//!
//! Everything here blocks and belongs on a thread that may.
//!
//! # Invariants
//!
//! - Records that were appended are on the disk when that is told.
//! - Nothing is let go without a record that says so.
//!
//! # Failure
//!
//! After an error of the disk the trail is opened again by the next call. What
//! the disk says then is refused with the reason; nothing else of the plugin
//! depends on it.

mod export;
mod heads;
mod key;
mod query;
mod verify;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use ksi_sdk::{
    prelude::{Code, Refusal},
    protocol::{
        Bytes,
        audit::{Appended, Record, Retired},
    },
    trust::{Digest, audit::Head},
};

use nix::sys::statvfs::statvfs;

use crate::{
    disk::Directory,
    journal::{self, Archive, Journal, JournalError},
    record::Seq,
};
use heads::Heads;
use key::Signer;

/// Records after which a head is signed, without waiting for its time.
const HEAD_RECORDS: u64 = 1_000;
/// Longest time, in milliseconds, for which a record has no head.
pub const HEAD_MS: u64 = 60_000;
/// Smallest file of the trail.
const SEGMENT_BYTES: u64 = 1 << 20;
/// Files that it has where it is as large as it may be: each is kept open.
const SEGMENTS: u64 = 64;
const DAY_MS: u64 = 24 * 3_600_000;
/// Part of what is free for it on the disk that the trail may take for records that
/// are young ...
const DISK_PART: u64 = 4;
/// ... and how many times its size, at most.
const YOUNG_MAX: u64 = 4;

/// How long the trail is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Days; whole files whose records are all older go.
    pub days: u64,
    /// Bytes; the oldest files go beyond it ...
    pub bytes: u64,
    /// ... but for those with records that are no older than so many days, as far
    /// as the disk allows, and up to four times the bytes: so nobody makes what was
    /// done lately go by doing a little much.
    pub days_min: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { days: 365, bytes: 512 << 20, days_min: 7 }
    }
}

/// The audit trail. Cheap to clone.
#[derive(Clone)]
pub struct Trail(Arc<Shared>);

struct Shared {
    dir: PathBuf,
    retention: Retention,
    segment_bytes: u64,
    open: Mutex<Option<Open>>,
    /// Its owner has panicked: nobody may use it any more.
    abandoned: AtomicBool,
}

/// What is open.
struct Open {
    journal: Journal,
    archive: Archive,
    heads: Heads,
    signer: Signer,
    /// The chain's value after the last record.
    chain: Digest,
    /// Records without a head, and when the first of them was appended.
    unsigned: u64,
    unsigned_since_ms: u64,
}

impl Trail {
    /// The trail in a directory; opened by its first use.
    #[must_use]
    pub fn new(dir: PathBuf, retention: Retention) -> Self {
        Self::with_segments(dir, retention, SEGMENT_BYTES.max(retention.bytes / SEGMENTS))
    }

    fn with_segments(dir: PathBuf, retention: Retention, segment_bytes: u64) -> Self {
        let (open, abandoned) = (Mutex::new(None), AtomicBool::new(false));
        Self(Arc::new(Shared { dir, retention, segment_bytes, open, abandoned }))
    }

    /// Opens the trail, and says what was found damaged.
    ///
    /// # Errors
    ///
    /// `unavailable`, with what the disk said.
    pub fn open(&self, now_ms: u64) -> Result<Vec<String>, Refusal> {
        let mut slot = self.lock()?;
        if slot.is_some() {
            return Ok(Vec::new());
        }
        let (open, notes) = Open::new(&self.0, now_ms)?;
        *slot = Some(open);
        Ok(notes)
    }

    /// Files of it that are damaged and lie aside; none where it is not open.
    ///
    /// # Errors
    ///
    /// `unavailable` while it is being opened anew.
    pub fn aside(&self) -> Result<Vec<String>, Refusal> {
        Ok(self.lock()?.as_ref().map_or_else(Vec::new, |open| open.archive.stat().aside))
    }

    /// Writes records down, each a [`Record::line`]; they are on the disk when this
    /// returns.
    ///
    /// # Errors
    ///
    /// `too_large` where one of them is longer than any may be, and none is written;
    /// `unavailable`, with what the disk said: it is not known then how many of
    /// them were written.
    pub fn append(&self, records: Vec<String>, now_ms: u64) -> Result<Appended, Refusal> {
        self.with(now_ms, |open, shared| {
            open.append(records, now_ms)?;
            if open.unsigned >= HEAD_RECORDS {
                open.sign(now_ms)?;
                open.retire(shared, now_ms)?;
            }
            Ok(Appended { last_seq: open.journal.next_seq() - 1 })
        })
    }

    /// Signs what has waited long enough, and lets go of what is too old; how
    /// long the next call can wait, `None` where nothing waits.
    ///
    /// # Errors
    ///
    /// `unavailable`, with what the disk said.
    pub fn tick(&self, now_ms: u64) -> Result<Option<u64>, Refusal> {
        self.with(now_ms, |open, shared| {
            let due_ms = open.unsigned_since_ms.saturating_add(HEAD_MS);
            if open.unsigned > 0 && now_ms >= due_ms {
                open.sign(now_ms)?;
                open.retire(shared, now_ms)?;
            }
            Ok((open.unsigned > 0).then(|| due_ms.saturating_sub(now_ms).max(1)))
        })
    }

    /// Signs the last head and lets go of the directory.
    ///
    /// # Errors
    ///
    /// `unavailable`, with what the disk said.
    pub fn close(&self, now_ms: u64) -> Result<(), Refusal> {
        let Some(mut open) = self.lock()?.take() else { return Ok(()) };
        let signed = if open.unsigned > 0 { open.sign(now_ms) } else { Ok(()) };
        open.archive.let_go();
        signed
    }

    /// Lets go of the directory without waiting: whoever had this panicked.
    /// Where something is being written, that lets go when it is done.
    pub fn abandon(&self) {
        self.0.abandoned.store(true, Ordering::Release);
        if let Ok(mut slot) = self.0.open.try_lock() {
            let_go(&mut slot);
        }
    }

    fn lock(&self) -> Result<MutexGuard<'_, Option<Open>>, Refusal> {
        let slot = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        match self.0.abandoned.load(Ordering::Acquire) {
            false => Ok(slot),
            true => Err(Refusal::new(Code::Unavailable, "the audit trail is being opened anew")),
        }
    }

    /// Does something with what is open, and closes it where that fails: after
    /// an error of the disk only what is read from it anew is known.
    fn with<T>(
        &self,
        now_ms: u64,
        act: impl FnOnce(&mut Open, &Shared) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let mut slot = self.lock()?;
        let open = match &mut *slot {
            Some(open) => open,
            empty => empty.insert(Open::new(&self.0, now_ms)?.0),
        };
        let done = act(open, &self.0);
        if done.is_err() || self.0.abandoned.load(Ordering::Acquire) {
            let_go(&mut slot);
        }
        done
    }

    /// What can be read while others write: the records, and the heads as they
    /// are now.
    fn view(&self, now_ms: u64) -> Result<View, Refusal> {
        self.with(now_ms, |open, shared| {
            Ok(View {
                archive: open.archive.clone(),
                heads: open.heads.read().map_err(|error| failed(&shared.dir, &error))?,
                key: open.signer.public_line(),
            })
        })
    }
}

fn let_go(slot: &mut Option<Open>) {
    if let Some(open) = slot.take() {
        open.archive.let_go();
    }
}

/// What is read without holding up those who write.
struct View {
    archive: Archive,
    heads: Vec<Result<Head, String>>,
    key: String,
}

impl Open {
    fn new(shared: &Shared, now_ms: u64) -> Result<(Self, Vec<String>), Refusal> {
        let dir = &shared.dir;
        let disk = Directory::new(dir.join("records")).map_err(|error| failed(dir, &error))?;
        let options =
            journal::Options { segment_bytes: shared.segment_bytes, check_from: 0, ..Default::default() };
        let (journal, opened) =
            Journal::open(Arc::new(disk), options).map_err(|error| failed(dir, &error))?;
        let signer = Signer::open(dir).map_err(|error| failed(dir, &error))?;
        let heads = Heads::open(dir.join("heads.jsonl")).map_err(|error| failed(dir, &error))?;
        let archive = journal.archive();
        let chain = last_chain(&archive, journal.next_seq() - 1);
        let signed = heads.last_seq().map_err(|error| failed(dir, &error))?;
        let unsigned = (journal.next_seq() - 1).saturating_sub(signed);
        let notes = opened.damage.iter().map(|damage| format!("audit trail: {damage}")).collect();
        let open = Self { journal, archive, heads, signer, chain, unsigned, unsigned_since_ms: now_ms };
        Ok((open, notes))
    }

    fn append(&mut self, records: Vec<String>, now_ms: u64) -> Result<(), Refusal> {
        if records.is_empty() {
            return Ok(());
        }
        let payloads: Vec<Bytes> = records.into_iter().map(Bytes::from).collect();
        let first = self.journal.next_seq();
        self.journal.append(&payloads, now_ms).map_err(|error| {
            // Whoever asks must know that asking again is in vain.
            let never = matches!(error, JournalError::TooLarge { .. });
            let code = if never { Code::TooLarge } else { Code::Unavailable };
            Refusal::new(code, format!("the audit trail is not written: {error}"))
        })?;
        for (seq, payload) in (first..).zip(&payloads) {
            self.chain = ksi_sdk::trust::audit::link(self.chain, seq, payload);
        }
        if self.unsigned == 0 {
            self.unsigned_since_ms = now_ms;
        }
        self.unsigned += payloads.len() as u64;
        Ok(())
    }

    fn sign(&mut self, now_ms: u64) -> Result<(), Refusal> {
        let seq = self.journal.next_seq() - 1;
        let head = self.signer.sign(seq, self.chain, now_ms)?;
        let written = self.heads.append(&head);
        written.map_err(|error| Refusal::new(Code::Unavailable, format!("no head is written: {error}")))?;
        self.unsigned = 0;
        Ok(())
    }

    /// Lets go of files that are too old or too many; before that, a record
    /// says so.
    fn retire(&mut self, shared: &Shared, now_ms: u64) -> Result<(), Refusal> {
        let retention = shared.retention;
        let stat = self.archive.stat();
        let mut bytes = stat.bytes;
        let free = (bytes + free_bytes(&shared.dir)) / DISK_PART;
        let most = free.clamp(retention.bytes, retention.bytes.saturating_mul(YOUNG_MAX));
        let mut before_seq: Seq = 0;
        // The newest two stay: the one that is written, and what the chain of
        // the rest hangs on.
        for (segment, next) in stat.segments.iter().zip(stat.segments.iter().skip(1)) {
            let is_older = |days: u64| next.begun_ms.saturating_add(days * DAY_MS) < now_ms;
            let allowed = if is_older(retention.days_min) { retention.bytes } else { most };
            if !is_older(retention.days) && bytes <= allowed {
                break;
            }
            bytes -= segment.bytes;
            before_seq = next.last + 1;
        }
        if before_seq == 0 || stat.segments.len() < 3 {
            return Ok(());
        }
        self.append(vec![Record::Retired(Retired { at_ms: now_ms, before_seq }).line()], now_ms)?;
        let cannot = |why: String| Refusal::new(Code::Unavailable, format!("nothing is let go: {why}"));
        self.archive.retire(before_seq).map_err(|error| cannot(error.to_string()))?;
        let first = self.archive.stat().first;
        self.heads.let_go(first).map_err(|error| cannot(error.to_string()))
    }
}

/// Bytes that the disk has left; none where it does not say.
fn free_bytes(dir: &Path) -> u64 {
    statvfs(dir).map_or(0, |disk| disk.blocks_available().saturating_mul(disk.fragment_size()))
}

/// The chain's value after the last record; where there is none, or it cannot
/// be read, what the archive says of the chain before it.
fn last_chain(archive: &Archive, last: Seq) -> Digest {
    let mut records = archive.read(last);
    let read = records.by_ref().filter_map(Result::ok).last();
    match read {
        Some(_) => records.chain_after().into(),
        None => archive.origin().into(),
    }
}

fn failed(dir: &Path, error: &dyn std::fmt::Display) -> Refusal {
    let message = format!("the audit trail in {} cannot be used: {error}", dir.display());
    Refusal::new(Code::Unavailable, message)
        .hint("look at the disk: its space, and the rights of the directory")
}
