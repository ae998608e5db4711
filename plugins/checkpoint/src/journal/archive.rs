//! The archive: what has been written, to be read, verified and retired.
//!
//! Shared by the writer, which tells it what is synced, and by whoever reads.
//! It shows nothing that is not synced.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use ksi_sdk::trust::Digest;

use super::{
    error::JournalError,
    format::{Chain, FRAMES, Head},
    records::Records,
    report::{Retired, Stat, VerifyReport},
    scan::{Expected, Hole, scan},
    segment::{Segment, kept},
};
use crate::{
    disk::{Disk, Lock},
    record::Seq,
};

/// Reads and retires what is synced. `Clone + Send + Sync`; every call may
/// block on the disk, and goes on beside the committer. The directory stays
/// locked as long as one is there, or until `let_go`.
#[derive(Clone)]
pub struct Archive(Arc<Shared>);

struct Shared {
    disk: Arc<dyn Disk>,
    /// Held, not used.
    lock: Mutex<Option<Box<dyn Lock>>>,
    synced: AtomicU64,
    origin: Chain,
    /// Segments with synced records, oldest first.
    segments: Mutex<VecDeque<Segment>>,
    /// Names of the files with damage, part of the journal or not.
    aside: Mutex<Vec<String>>,
}

impl Archive {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        lock: Box<dyn Lock>,
        origin: Chain,
        segments: Vec<Segment>,
        aside: Vec<String>,
        synced: Seq,
    ) -> Self {
        let (synced, segments) = (AtomicU64::new(synced), Mutex::new(segments.into()));
        let (lock, aside) = (Mutex::new(Some(lock)), Mutex::new(aside));
        Self(Arc::new(Shared { disk, lock, synced, origin, segments, aside }))
    }

    pub(crate) fn segments(&self) -> MutexGuard<'_, VecDeque<Segment>> {
        // Whoever panicked changed one segment at most, and that in one step.
        self.0.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn aside(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.aside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_synced(&self, seq: Seq) {
        self.0.synced.store(seq, Ordering::Release);
    }

    /// Lets go of the directory although others still have this archive. For
    /// when they will never use it again.
    pub(crate) fn let_go(&self) {
        drop(self.0.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// The chain's value before the first record of all.
    #[must_use]
    pub fn origin(&self) -> Chain {
        self.0.origin
    }

    /// Position up to which everything is on the disk.
    #[must_use]
    pub fn synced(&self) -> Seq {
        self.0.synced.load(Ordering::Acquire)
    }

    /// The synced records from a position on, in order. Where they begin later
    /// (retired), the first item has a later position. Damage is one `Err`
    /// item, after which the next record that can be read follows; any other
    /// error ends the iteration. Ends at what was synced when it got there;
    /// calling `next` again later goes on with what came since.
    #[must_use]
    pub fn read(&self, from: Seq) -> Records {
        Records::new(self.clone(), from)
    }

    /// Deletes the files whose records all lie before a position, except the
    /// newest of them. Damaged files are renamed to `*.kept` instead, and are
    /// no part of the journal any more.
    ///
    /// # Errors
    ///
    /// What the disk said. The journal goes on; the next call tries again.
    pub fn retire(&self, before: Seq) -> Result<Retired, JournalError> {
        let disk = &self.0.disk;
        let mut retired = Retired::default();
        loop {
            let oldest = {
                let segments = self.segments();
                match (segments.front(), segments.get(1)) {
                    (Some(oldest), Some(next)) if next.next <= before => oldest.clone(),
                    _ => return Ok(retired),
                }
            };
            let io = |doing| {
                let name = &oldest.name;
                move |error| JournalError::io(doing, name, error)
            };
            if oldest.damage.is_empty() {
                disk.remove(&oldest.name).map_err(io("remove"))?;
                retired.bytes += oldest.size;
            } else {
                let name = kept(oldest.index);
                disk.rename(&oldest.name, &name).map_err(io("rename"))?;
                let mut aside = self.aside();
                aside.retain(|aside| *aside != oldest.name);
                aside.push(name);
            }
            // One after the other, so that no crash leaves a gap between them.
            disk.sync().map_err(io("sync the directory of"))?;
            retired.segments += 1;
            self.segments().retain(|segment| segment.index != oldest.index);
        }
    }

    /// Walks the whole chain. `between` is called before each file, for what cannot wait for the end.
    ///
    /// # Errors
    ///
    /// What the disk said; damage is part of the report.
    pub fn verify(&self, between: &mut dyn FnMut()) -> Result<VerifyReport, JournalError> {
        let segments: Vec<Segment> = self.segments().iter().cloned().collect();
        let mut report = VerifyReport { segments: segments.len(), ..VerifyReport::default() };
        let mut expected = None;
        let mut before: Option<u64> = None;
        for (at, segment) in segments.iter().enumerate() {
            between();
            let newest = at + 1 == segments.len();
            // The newest one is being written behind its end.
            let bytes = segment.read(if newest { segment.end } else { segment.size })?;
            let head = Head::decode(&bytes);
            if segment.index == 1
                && let Some((head, _)) = head
            {
                expected = Some((1, head.origin()));
            }
            if before.is_some_and(|before| before + 1 != segment.index) {
                expected = None;
            }
            before = Some(segment.index);
            let told = |hole: Hole| hole.of(&segment.name);
            if !head.is_some_and(|(head, whole)| whole && head.index == segment.index) {
                let (from, to) = (segment.first, segment.first.saturating_sub(1));
                report.damage.push(told(Hole { from, to, offset: 0, what: "the head of the file" }));
            }
            let until = Some(segment.next);
            let found = scan(&bytes, Expected { key: segment.key, next: expected, sealed: true, until });
            let Some(found) = found else {
                let (from, to, offset) = (segment.first, segment.next - 1, FRAMES as u64);
                report.damage.push(told(Hole { from, to, offset, what: "there is nothing in the file" }));
                expected = None;
                continue;
            };
            if report.first == 0 {
                report.first = found.first;
            }
            report.records += found.records;
            report.payload_bytes += found.payload_bytes;
            report.last = found.next - 1;
            report.head = Digest::from(found.chain).to_string();
            report.damage.extend(found.holes.into_iter().map(told));
            expected = Some((found.next, found.chain));
        }
        Ok(report)
    }

    /// Sizes and positions, from memory.
    #[must_use]
    pub fn stat(&self) -> Stat {
        let segments: Vec<_> = self.segments().iter().map(Segment::stat).collect();
        let mut aside = self.aside().clone();
        aside.sort_unstable();
        Stat {
            first: segments.first().map_or(0, |segment| segment.first),
            last: self.synced(),
            bytes: segments.iter().map(|segment| segment.bytes).sum(),
            segments,
            aside,
        }
    }
}
