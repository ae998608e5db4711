//! The journal: records that survive, in the order in which they were made.
//!
//! Files of a fixed size, filled with zeros before they are used
//! (`journal/format.rs` has the bytes). [`Journal`] opens and writes them,
//! [`Committer`] has it done for many, [`Archive`] reads, verifies and retires
//! what is written. Payloads are opaque: what a record says is in `record.rs`.
//!
//! # Invariants
//!
//! - A position is told to be synced only after `fdatasync` returned without
//!   an error.
//! - Nothing is written or synced after an error. Only an open, which reads
//!   from the disk and syncs anew, makes a journal that goes on.
//! - Positions are never used twice, and have no hole but what was damaged, and
//!   what was skipped on purpose, which the opening of a segment says.
//! - The head of the chain depends on every byte of every record before.

pub mod error;
pub mod report;
pub mod archive;
pub mod records;
pub mod committer;
pub mod queue;
pub(crate) mod format;
mod scan;
mod segment;
mod recovery;
#[cfg(test)]
mod tests;

use std::{io, sync::Arc, time::Duration};

use ksi_sdk::protocol::Bytes;

pub use archive::Archive;
pub use committer::{Committer, Desk};
pub use error::JournalError;
pub use format::Chain;
pub use queue::SubmitError;
pub use records::Records;
pub use report::{Damage, Opened, Retired, SegmentStat, Stat, VerifyReport};

use crate::{
    disk::{self, Disk, File},
    record::Seq,
};
use format::{FRAME, FRAMES, Head, Key, Opening, Writer};
use segment::{Preparation, Segment, Spare};

/// How a journal is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Size of a file; the first ones are smaller, and one with a longer record is
    /// as long as that needs.
    pub segment_bytes: u64,
    /// Bytes that may wait for the committer before it says `busy`.
    pub queue_bytes: usize,
    /// Files whose records all lie before this position are not read at the
    /// opening. The caller has checkpointed them.
    pub check_from: Seq,
    /// How long an opening waits for whoever has the directory.
    pub lock_wait: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { segment_bytes: 16 << 20, queue_bytes: 64 << 20, check_from: 0, lock_wait: disk::PATIENCE }
    }
}

/// Payload bytes that one record may have: several frames of the wire.
pub const PAYLOAD_MAX: usize = 64 << 20;
/// Bytes that one write has at most: the next commit waits no longer than that
/// takes, and recovery knows how far one can have reached. A record that is
/// longer is the first one of a segment, and written alone.
const WRITE_MAX: usize = 2 << 20;

/// An open journal; whoever has it writes. Not more than one at a time has the
/// directory.
pub struct Journal {
    archive: Archive,
    disk: Arc<dyn Disk>,
    segment_bytes: u64,
    queue_bytes: usize,
    identity: [u8; 16],
    /// The segment that is written, once there is one.
    active: Option<Active>,
    spare: Option<Spare>,
    /// The next segment could not be made ahead of time: it is made when it is needed.
    unprepared: bool,
    /// Index of the next segment to be made.
    next_index: u64,
    next: Seq,
    chain: Chain,
    buffer: Vec<u8>,
    failed: Option<Arc<JournalError>>,
}

struct Active {
    index: u64,
    file: Arc<dyn File>,
    name: String,
    key: Key,
    size: u64,
    end: u64,
}

impl Journal {
    /// Opens the journal in a directory, or makes one. Cuts a torn tail off,
    /// puts damaged files aside, and syncs what it found, so that all of it is
    /// durable when this returns. Blocks.
    ///
    /// # Errors
    ///
    /// `Locked`, or what the disk said. Damage is no error but part of
    /// [`Opened`].
    pub fn open(disk: Arc<dyn Disk>, options: Options) -> Result<(Self, Opened), JournalError> {
        let place = disk.place();
        let lock = disk::lock(&*disk, options.lock_wait).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => JournalError::Locked { place, source: error },
            _ => JournalError::io("lock", &place, error),
        })?;
        let least = (FRAMES + Opening::FRAME + FRAME + 1) as u64;
        let options = Options { segment_bytes: options.segment_bytes.max(least), ..options };
        let found = recovery::recover(&disk, &options)?;
        let active = found.segments.last().filter(|_| found.active).map(|segment| Active {
            index: segment.index,
            file: segment.file.clone(),
            name: segment.name.clone(),
            key: segment.key,
            size: segment.size,
            end: segment.end,
        });
        let journal = Self {
            archive: Archive::new(
                disk.clone(),
                lock,
                format::origin(&found.identity),
                found.segments,
                found.aside,
                found.next - 1,
            ),
            disk,
            segment_bytes: options.segment_bytes,
            queue_bytes: options.queue_bytes,
            identity: found.identity,
            active,
            spare: found.spare,
            unprepared: false,
            next_index: found.next_index,
            next: found.next,
            chain: found.chain,
            buffer: Vec::new(),
            failed: None,
        };
        Ok((journal, found.opened))
    }

    /// Writes records and syncs them; the position of the last one. A segment that
    /// begins with one of them says that it is this late. An error is final: after
    /// it every call fails.
    ///
    /// # Errors
    ///
    /// `TooLarge` before anything is written, else what the disk said.
    pub fn append(&mut self, payloads: &[Bytes], now_ms: u64) -> Result<Seq, JournalError> {
        if let Some(bytes) = payloads.iter().map(Bytes::len).find(|bytes| *bytes > PAYLOAD_MAX) {
            return Err(JournalError::TooLarge { bytes, limit: PAYLOAD_MAX });
        }
        let mut left = payloads;
        while !left.is_empty() {
            let written = self.write(left, now_ms).map_err(JournalError::Stopped)?;
            left = &left[written..];
        }
        Ok(self.next - 1)
    }

    /// Goes on at a position, if it is not as far yet: those before it have been
    /// given out by a journal that is not this one.
    pub fn skip_to(&mut self, seq: Seq) {
        if seq > self.next {
            self.next = seq;
            // Only the opening of a segment can say so.
            self.active = None;
        }
    }

    /// Reads, verifies and retires.
    #[must_use]
    pub fn archive(&self) -> Archive {
        self.archive.clone()
    }

    /// Position of the next record.
    #[must_use]
    pub fn next_seq(&self) -> Seq {
        self.next
    }

    /// One write and one sync: of as many as fit, at least one. None of them
    /// is longer than a record may be.
    fn write(&mut self, payloads: &[Bytes], now_ms: u64) -> Result<usize, Arc<JournalError>> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        self.try_write(payloads, now_ms).map_err(|error| {
            let error = Arc::new(error);
            self.failed = Some(error.clone());
            error
        })
    }

    fn try_write(&mut self, payloads: &[Bytes], now_ms: u64) -> Result<usize, JournalError> {
        let needed = payloads.first().map_or(0, Bytes::len);
        let mut begun = None;
        if self.is_full_for(needed) {
            let opening = self.opening(now_ms);
            self.active = Some(self.take_spare(opening.frame_len() + FRAME + needed)?);
            begun = Some(opening);
        }
        let active = self.active.as_mut().expect("there is one now");
        self.buffer.clear();
        let synced = self.archive.synced();
        let mut writer = Writer { out: &mut self.buffer, key: active.key, synced };
        if let Some(opening) = begun {
            writer.opening(self.next, &self.chain, opening);
        }
        let room = usize::try_from(active.size - active.end).expect("a segment fits into memory");
        let limit = room.min(WRITE_MAX);
        let (mut seq, mut chain) = (self.next, self.chain);
        let (mut marks, mut kinds, mut count) = (Vec::new(), 0, 0);
        for payload in payloads {
            if count > 0 && writer.out.len() + FRAME + payload.len() > limit {
                break;
            }
            if marks.last().is_none_or(|(_, at)| writer.out.len() as u64 - at >= scan::MARK_BYTES) {
                marks.push((seq, writer.out.len() as u64));
            }
            chain = writer.record(seq, &chain, payload);
            kinds |= format::kind(payload);
            (seq, count) = (seq + 1, count + 1);
        }
        let io = |doing| {
            let name = &active.name;
            move |error| JournalError::io(doing, name, error)
        };
        active.file.write_at(&self.buffer, active.end).map_err(io("write"))?;
        active.file.sync().map_err(io("sync"))?;
        let start = active.end;
        active.end += self.buffer.len() as u64;
        let first = self.next;
        (self.next, self.chain) = (seq, chain);
        self.note(begun.map(|opening| (first, opening)), start, kinds, marks);
        // A long record is rare; its memory is not kept.
        self.buffer.shrink_to(2 * WRITE_MAX);
        Ok(count)
    }

    /// Tells the archive what is synced now.
    fn note(&self, begun: Option<(Seq, Opening)>, start: u64, kinds: u64, marks: Vec<(Seq, u64)>) {
        let active = self.active.as_ref().expect("it was written");
        let mut segments = self.archive.segments();
        if let Some((first, opening)) = begun {
            segments.push_back(Segment {
                index: active.index,
                name: active.name.clone(),
                file: active.file.clone(),
                size: active.size,
                key: active.key,
                first,
                next: first,
                end: FRAMES as u64,
                kinds: 0,
                begun_ms: opening.begun_ms,
                marks: Vec::new(),
                damage: Vec::new(),
            });
        }
        let segment = segments.back_mut().expect("the active one is there");
        segment.next = self.next;
        segment.end = active.end;
        segment.kinds |= kinds;
        marks.into_iter().for_each(|(seq, at)| segment.mark(seq, start + at));
        drop(segments);
        self.archive.set_synced(self.next - 1);
    }

    /// What the next segment begins with.
    fn opening(&self, begun_ms: u64) -> Opening {
        let kinds_before = self.archive.segments().back().map_or(0, |segment| segment.kinds);
        let skipped = self.next - 1 - self.archive.synced();
        Opening { begun_ms, kinds_before, skipped }
    }

    /// A segment for an opening and one record that need so much. Made here only
    /// where none was prepared, or not one that long.
    fn take_spare(&mut self, needed: usize) -> Result<Active, JournalError> {
        let needed = (FRAMES + needed) as u64;
        self.unprepared = false;
        let spare = match self.spare.take() {
            Some(spare) if spare.head.size >= needed => spare,
            // Takes the place of the one that is too short, if there is one.
            short => {
                let index = short.map_or(self.next_index, |short| short.head.index);
                self.next_index = self.next_index.max(index + 1);
                let size = needed.max(segment::size(index, self.segment_bytes));
                let head = Head { index, size, identity: self.identity };
                Preparation { disk: self.disk.clone(), head }.run()?
            }
        };
        let Spare { head, file } = spare;
        let name = segment::sound(head.index);
        Ok(Active { index: head.index, file, name, key: head.key(), size: head.size, end: FRAMES as u64 })
    }

    /// Whether so many bytes of frames fit into what is left of the segment.
    fn has_room_for(&self, bytes: usize) -> bool {
        self.active.as_ref().is_some_and(|active| active.size - active.end >= bytes as u64)
    }

    /// Whether a record of that length needs another segment.
    fn is_full_for(&self, length: usize) -> bool {
        let length = FRAME + length;
        self.active
            .as_ref()
            .is_none_or(|active| length > WRITE_MAX || active.size - active.end < length as u64)
    }

    /// The making of the next segment, once it is time for it. What it makes
    /// goes to [`Journal::prepared`]; nothing else makes one meanwhile.
    fn preparation(&mut self) -> Option<Preparation> {
        let due = self.active.as_ref().is_none_or(|active| active.end > active.size / 4);
        if self.spare.is_some() || self.unprepared || !due {
            return None;
        }
        let index = self.next_index;
        self.next_index += 1;
        let head = Head { index, size: segment::size(index, self.segment_bytes), identity: self.identity };
        Some(Preparation { disk: self.disk.clone(), head })
    }

    /// Takes the next segment. Where it could not be made its index is free
    /// again, and it is made when it is needed.
    fn prepared(&mut self, index: u64, spare: Option<Spare>) {
        if spare.is_none() {
            self.next_index = index;
            self.unprepared = true;
        }
        self.spare = spare;
    }
}
