//! Records of the archive, one after the other.

use std::sync::Arc;

use ksi_sdk::protocol::Bytes;

use super::{
    archive::Archive,
    error::JournalError,
    format::{self, Chain, FRAME, FRAMES, Frame, Key, Opening},
    report::Damage,
};
use crate::{disk::File, record::Seq};

/// Bytes that are read at once.
const WINDOW: u64 = 256 << 10;

/// Records in order; see [`Archive::read`].
pub struct Records {
    archive: Archive,
    /// Position of the next record.
    next: Seq,
    ended: bool,
    cursor: Option<Cursor>,
    /// The chain after the last frame, and before it.
    chain: Chain,
    before: Chain,
}

/// A place in a segment.
struct Cursor {
    index: u64,
    name: String,
    file: Arc<dyn File>,
    key: Key,
    at: u64,
    /// Where the synced frames end, as far as is known.
    end: u64,
    window: Vec<u8>,
    window_at: u64,
}

/// What is at a place.
enum Step {
    Frame(Frame),
    Bad,
    End,
}

impl Records {
    pub(crate) fn new(archive: Archive, from: Seq) -> Self {
        let unknown = Chain::default();
        Self { archive, next: from.max(1), ended: false, cursor: None, chain: unknown, before: unknown }
    }

    /// The chain's value after the record that came last.
    #[must_use]
    pub fn chain_after(&self) -> Chain {
        self.chain
    }

    /// The chain's value before the record that came last.
    #[must_use]
    pub fn chain_before(&self) -> Chain {
        self.before
    }

    fn pass(&mut self, frame: &Frame) {
        self.before = std::mem::replace(&mut self.chain, frame.chain);
    }

    /// Finds the segment with the next record.
    fn seek(&mut self) -> bool {
        let segments = self.archive.segments();
        let mut with_records = segments.iter().filter(|segment| segment.next > segment.first).enumerate();
        let Some((at, segment)) = with_records.find(|(_, segment)| segment.next > self.next) else {
            return false;
        };
        if at == 0 {
            // What is missing before the oldest was retired, and is no hole.
            self.next = self.next.max(segment.first);
        }
        self.cursor = Some(Cursor {
            index: segment.index,
            name: segment.name.clone(),
            file: segment.file.clone(),
            key: segment.key,
            // From the opening, which has the chain before the first record.
            at: if self.next <= segment.first { FRAMES as u64 } else { segment.place(self.next) },
            end: segment.end,
            window: Vec::new(),
            window_at: 0,
        });
        true
    }

    /// At the end of what was known of a segment: whether there is more.
    fn go_on(&mut self) -> Option<Result<(), JournalError>> {
        let cursor = self.cursor.as_mut()?;
        let known = {
            let segments = self.archive.segments();
            let segment = segments.iter().find(|segment| segment.index == cursor.index);
            segment.map(|segment| (segment.end, segment.next))
        };
        match known {
            Some((end, _)) if end > cursor.end => cursor.end = end,
            Some((_, next)) if next > self.next => {
                // The segment has more records than can be read.
                let damage = cursor.hole(self.next, next - 1);
                self.cursor = None;
                self.next = next;
                return Some(Err(JournalError::Damaged(damage)));
            }
            _ => {
                self.cursor = None;
                return self.seek().then_some(Ok(()));
            }
        }
        Some(Ok(()))
    }

    /// The record of a frame, unless something is missing before it.
    fn give(&mut self, frame: &Frame) -> Result<(Seq, Bytes), JournalError> {
        let cursor = self.cursor.as_mut().expect("the frame was found at the cursor");
        if frame.seq > self.next {
            let damage = cursor.hole(self.next, frame.seq - 1);
            self.next = frame.seq;
            return Err(JournalError::Damaged(damage));
        }
        let payload = Bytes::copy_from_slice(&cursor.seen()[frame.payload.clone()]);
        cursor.at += frame.len() as u64;
        self.next = frame.seq + 1;
        self.pass(frame);
        Ok((frame.seq, payload))
    }
}

impl Iterator for Records {
    type Item = Result<(Seq, Bytes), JournalError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended || (self.cursor.is_none() && !self.seek()) {
            return None;
        }
        loop {
            let cursor = self.cursor.as_mut()?;
            let step = cursor.step().and_then(|step| match step {
                Step::Bad => cursor.resync(self.next).map(|()| Step::Bad),
                step => Ok(step),
            });
            match step {
                Ok(Step::Frame(frame)) if frame.opening || frame.seq < self.next => {
                    let opening = || Opening::decode(&cursor.seen()[frame.payload.clone()]);
                    if frame.opening
                        && opening().is_some_and(|opening| opening.follows(frame.seq) <= self.next)
                    {
                        // What was skipped is no hole.
                        self.next = self.next.max(frame.seq);
                    }
                    cursor.at += frame.len() as u64;
                    self.pass(&frame);
                }
                Ok(Step::Frame(frame)) => return Some(self.give(&frame)),
                Ok(Step::Bad) => {}
                Ok(Step::End) => match self.go_on()? {
                    Ok(()) => {}
                    Err(damage) => return Some(Err(damage)),
                },
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
    }
}

impl Cursor {
    fn hole(&self, from: Seq, to: Seq) -> Damage {
        Damage { segment: self.name.clone(), from, to, offset: self.at, what: "checksum, order or chain" }
    }

    /// What was read from the place on.
    fn seen(&self) -> &[u8] {
        let skip = self.at.checked_sub(self.window_at).and_then(|skip| usize::try_from(skip).ok());
        skip.and_then(|skip| self.window.get(skip..)).unwrap_or_default()
    }

    /// Sees to it that so many bytes from the place on are there, or all.
    fn fill(&mut self, wanted: u64) -> Result<(), JournalError> {
        let left = self.end.saturating_sub(self.at);
        if self.seen().len() as u64 >= wanted.min(left) {
            return Ok(());
        }
        let length = wanted.max(WINDOW).min(left);
        self.window.resize(usize::try_from(length).expect("a segment fits into memory"), 0);
        self.window_at = self.at;
        let io = |error| JournalError::io("read", &self.name, error);
        // A file that was shortened is damaged, not unreadable: what is missing is zeros.
        let there = self.file.length().map_err(io)?.saturating_sub(self.at).min(length);
        let there = usize::try_from(there).expect("not more than the length");
        self.window[there..].fill(0);
        self.file.read_at(&mut self.window[..there], self.at).map_err(io)
    }

    fn step(&mut self) -> Result<Step, JournalError> {
        if self.at >= self.end {
            return Ok(Step::End);
        }
        self.fill(FRAME as u64)?;
        if let Some(length) = format::frame_len(self.seen(), self.key) {
            self.fill(length as u64)?;
        }
        Ok(format::frame(self.seen(), self.key).map_or(Step::Bad, Step::Frame))
    }

    /// Goes to the next record that can be read, or to the end.
    fn resync(&mut self, next: Seq) -> Result<(), JournalError> {
        self.fill(self.end - self.at)?;
        let seen = self.seen();
        let mut from = 1;
        while let Some((place, frame)) = format::find(seen, from, self.key) {
            if !frame.opening && frame.seq >= next {
                self.at += place as u64;
                return Ok(());
            }
            from = place + 1;
        }
        self.at = self.end.max(FRAMES as u64);
        Ok(())
    }
}
