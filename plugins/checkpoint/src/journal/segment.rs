//! Segments: the files, how they are named and made, and what is known of
//! them.

use std::sync::Arc;

use super::{
    error::JournalError,
    format::{FRAMES, Head, Key},
    report::{Damage, SegmentStat},
    scan::MARK_BYTES,
};
use crate::{
    disk::{Disk, File},
    record::Seq,
};

/// The name of a file that is being made.
pub(crate) const UNFINISHED: &str = "segment.new";
/// Size of the first segment. Most journals are small, and a small one is opened
/// sooner.
const FIRST_BYTES: u64 = 256 << 10;
/// Zeros are written and synced in such steps, so that the syncs of records
/// in between do not wait for all of them.
const STEP: u64 = 1 << 20;
/// Zeros that are written at once: few, since the memory for them would stay
/// with the process.
const ZEROS: u64 = 64 << 10;

/// What a file name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Named {
    /// Part of the journal.
    Sound(u64),
    /// Part of the journal, with damage; never written again.
    Damaged(u64),
}

impl Named {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (index, ending) = name.split_once('.')?;
        let index = Some(index).filter(|digits| digits.len() == 20)?.parse().ok()?;
        match ending {
            "journal" => Some(Self::Sound(index)),
            "damaged" => Some(Self::Damaged(index)),
            _ => None,
        }
    }
}

/// The name of a segment in order.
pub(crate) fn sound(index: u64) -> String {
    format!("{index:020}.journal")
}

/// The name of one with damage.
pub(crate) fn damaged(index: u64) -> String {
    format!("{index:020}.damaged")
}

/// The name of one with damage that is no part of the journal any more.
pub(crate) fn kept(index: u64) -> String {
    format!("{index:020}.kept")
}

/// Whether a file has damage, part of the journal or not.
pub(crate) fn is_aside(name: &str) -> bool {
    let index = name.split_once('.').filter(|(_, ending)| matches!(*ending, "damaged" | "kept"));
    index.is_some_and(|(digits, _)| digits.len() == 20 && digits.parse::<u64>().is_ok())
}

/// The size of a segment: twice that of the one before, up to a limit.
pub(crate) fn size(index: u64, limit: u64) -> u64 {
    let doubled = u32::try_from(index.saturating_sub(1)).unwrap_or(u32::MAX).min(32);
    limit.min(FIRST_BYTES << doubled)
}

/// A segment that is made and has no record.
pub(crate) struct Spare {
    pub(crate) head: Head,
    pub(crate) file: Arc<dyn File>,
}

/// The making of a segment; may run on another thread.
pub(crate) struct Preparation {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) head: Head,
}

impl Preparation {
    /// Fills a file with zeros, syncs it, and gives it its name, durably.
    pub(crate) fn run(self) -> Result<Spare, JournalError> {
        let io = |doing| move |error| JournalError::io(doing, UNFINISHED, error);
        let file = self.disk.create(UNFINISHED).map_err(io("create"))?;
        let filled = fill(&*file, &self.head);
        if let Err(error) = filled {
            // It may be the space that is missing; what cannot be removed is at the next start.
            let _ = self.disk.remove(UNFINISHED);
            return Err(error);
        }
        self.disk.rename(UNFINISHED, &sound(self.head.index)).map_err(io("rename"))?;
        self.disk.sync().map_err(io("sync the directory of"))?;
        Ok(Spare { head: self.head, file: Arc::from(file) })
    }
}

fn fill(file: &dyn File, head: &Head) -> Result<(), JournalError> {
    let io = |doing| move |error| JournalError::io(doing, UNFINISHED, error);
    let mut chunk = vec![0; usize::try_from(head.size.min(ZEROS)).expect("a chunk is small")];
    chunk[..FRAMES].copy_from_slice(&head.encode());
    let mut at = 0;
    while at < head.size {
        let length = (head.size - at).min(ZEROS);
        file.write_at(&chunk[..usize::try_from(length).expect("a chunk is small")], at)
            .map_err(io("fill"))?;
        chunk[..FRAMES].fill(0);
        at += length;
        if at % STEP == 0 || at == head.size {
            file.sync().map_err(io("sync"))?;
        }
    }
    Ok(())
}

/// What is known of a segment with records.
#[derive(Clone)]
pub(crate) struct Segment {
    pub(crate) index: u64,
    pub(crate) name: String,
    pub(crate) file: Arc<dyn File>,
    pub(crate) size: u64,
    pub(crate) key: Key,
    pub(crate) first: Seq,
    /// Seq after its last synced record.
    pub(crate) next: Seq,
    /// Where its synced frames end.
    pub(crate) end: u64,
    pub(crate) kinds: u64,
    pub(crate) begun_ms: u64,
    /// Some records and where they are, so that reading need not begin at the
    /// beginning.
    pub(crate) marks: Vec<(Seq, u64)>,
    pub(crate) damage: Vec<Damage>,
}

impl Segment {
    /// Notes a record that is synced.
    pub(crate) fn mark(&mut self, seq: Seq, offset: u64) {
        if self.marks.last().is_none_or(|(_, mark)| offset - mark >= MARK_BYTES) {
            self.marks.push((seq, offset));
        }
    }

    /// Where a reader that wants a record begins: not after it.
    pub(crate) fn place(&self, seq: Seq) -> u64 {
        let before = self.marks.partition_point(|(mark, _)| *mark <= seq);
        before.checked_sub(1).map_or(FRAMES as u64, |at| self.marks[at].1)
    }

    pub(crate) fn stat(&self) -> SegmentStat {
        SegmentStat {
            name: self.name.clone(),
            first: self.first,
            last: self.next.saturating_sub(1),
            bytes: self.end,
            begun_ms: self.begun_ms,
            kinds: self.kinds,
            damaged: !self.damage.is_empty(),
        }
    }

    /// All that is in the file up to a length; zeros where it is shorter.
    pub(crate) fn read(&self, length: u64) -> Result<Vec<u8>, JournalError> {
        read_padded(&*self.file, &self.name, length)
    }
}

/// The first bytes of a file; zeros where it is shorter.
pub(crate) fn read_padded(file: &dyn File, name: &str, length: u64) -> Result<Vec<u8>, JournalError> {
    let io = |error| JournalError::io("read", name, error);
    let there = file.length().map_err(io)?.min(length);
    let size = |bytes: u64| usize::try_from(bytes).expect("a segment fits into memory");
    let mut bytes = vec![0; size(length)];
    file.read_at(&mut bytes[..size(there)], 0).map_err(io)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_begins_small_and_its_segments_grow_to_the_limit() {
        let sizes = |limit| [1, 2, 3, 4, 5, u64::MAX].map(|index| size(index, limit));
        assert_eq!(sizes(2 << 20), [256 << 10, 512 << 10, 1 << 20, 2 << 20, 2 << 20, 2 << 20]);
        assert_eq!(sizes(64 << 10), [64 << 10; 6]);
        assert_eq!(size(u64::MAX, u64::MAX), FIRST_BYTES << 32);
    }
}
