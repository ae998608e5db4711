//! The scan: what a segment holds, what is torn, what is damaged.
//!
//! Given the bytes of a segment and what is known from those before, it finds
//! every record that is as it was written. It changes nothing.
//!
//! # What is bad
//!
//! Everything that is not a frame with the next seq and the chain that follows
//! from the record before. A write that a crash cut short was never
//! acknowledged and may be cut off; anything else that is bad may have been,
//! and must be reported. So a bad place is *torn* only where all of this
//! holds:
//!
//! - it is in the newest segment;
//! - no later frame was written after it had been synced (each frame says what
//!   was synced when it was written; one write at a time is not);
//! - zeros where bytes were written explain it: a disk writes a sector or does
//!   not.
//!
//! # Invariants
//!
//! - No record is given that differs in one bit from what was written.
//! - No frame that is right is left out, except the torn ones.

use super::{
    format::{self, Chain, FRAME, FRAMES, Frame, Key, Opening, find, frame, frame_len, is_zero},
    report::Damage,
};
use crate::record::Seq;

/// Bytes between the places that are remembered for finding a record.
pub(crate) const MARK_BYTES: u64 = 16 << 10;

/// What is known before a segment is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    pub(crate) key: Key,
    /// Next seq, and the chain before it; `None` in the oldest segment, which
    /// is believed.
    pub(crate) next: Option<(Seq, Chain)>,
    /// Whether a later segment has records: all of this one was synced then.
    pub(crate) sealed: bool,
    /// Seq after the last record here, if that segment's opening can be read: it says so.
    pub(crate) until: Option<Seq>,
}

/// Records that are missing: `from..=to`, fewer than one where only something
/// between them is bad.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hole {
    pub(crate) from: Seq,
    pub(crate) to: Seq,
    pub(crate) offset: u64,
    pub(crate) what: &'static str,
}

impl Hole {
    /// As it is told of the file that has it.
    pub(crate) fn of(self, segment: &str) -> Damage {
        let Self { from, to, offset, what } = self;
        Damage { segment: segment.to_owned(), from, to, offset, what }
    }
}

/// What a segment holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scan {
    /// Seq of the first record.
    pub(crate) first: Seq,
    /// Seq after the last record, or after the last hole.
    pub(crate) next: Seq,
    /// Chain after the last record.
    pub(crate) chain: Chain,
    /// What the opening says, if it can be read.
    pub(crate) opening: Option<Opening>,
    pub(crate) records: u64,
    pub(crate) payload_bytes: u64,
    pub(crate) kinds: u64,
    /// Where the frames end.
    pub(crate) end: usize,
    /// Where the last write begins, of which nothing proves that it was synced.
    pub(crate) unproven: usize,
    /// Length of what is torn, from `end` on.
    pub(crate) torn: usize,
    pub(crate) holes: Vec<Hole>,
    /// Some records and where they are.
    pub(crate) marks: Vec<(Seq, u64)>,
}

/// Scans a segment. `None` where there is nothing in it but its head.
pub(crate) fn scan(bytes: &[u8], expected: Expected) -> Option<Scan> {
    if bytes.get(FRAMES..).is_none_or(is_zero) {
        return None;
    }
    let (next, chain) = expected.next.unwrap_or_default();
    let found = Scan {
        first: next,
        next,
        chain,
        opening: None,
        records: 0,
        payload_bytes: 0,
        kinds: 0,
        end: FRAMES,
        unproven: FRAMES,
        torn: 0,
        holes: Vec::new(),
        marks: Vec::new(),
    };
    let mut walk = Walk { bytes, expected, found, known: expected.next.is_some(), proven: 0, last_synced: 0 };
    walk.run();
    Some(walk.found)
}

struct Walk<'a> {
    bytes: &'a [u8],
    expected: Expected,
    found: Scan,
    /// Whether the next seq and the chain are known: not at the beginning of
    /// all, and not after a hole.
    known: bool,
    /// Highest position that some frame says was synced.
    proven: Seq,
    last_synced: Seq,
}

impl Walk<'_> {
    fn run(&mut self) {
        loop {
            let at = self.found.end;
            if let Some(frame) = self.next_frame(at) {
                self.take(at, &frame);
            } else if is_zero(&self.bytes[at..]) || !self.skip(at) {
                break;
            }
        }
        if let Some(until) = self.expected.until {
            // Records that the next segment begins after are missing here.
            let next = self.found.next;
            if until != next {
                let offset = self.found.end as u64;
                let what = "records are missing before the next file";
                self.found.holes.push(Hole { from: next, to: until.saturating_sub(1), offset, what });
                self.found.next = until;
            }
        }
    }

    /// The frame at a place, if it is the one that has to be there.
    fn next_frame(&self, at: usize) -> Option<Frame> {
        let frame = frame(&self.bytes[at..], self.expected.key)?;
        if frame.opening {
            let opening = Opening::decode(&self.bytes[at..][frame.payload.clone()])?;
            let follows = (opening.follows(frame.seq), frame.chain);
            let fits = !self.known || follows == (self.found.next, self.found.chain);
            return (at == FRAMES && fits).then_some(frame);
        }
        let payload = &self.bytes[at..][frame.payload.clone()];
        // The opening is not left out: a record in its place is bad.
        let fits = at != FRAMES
            && frame.seq == self.found.next
            && frame.chain == format::link(&self.found.chain, frame.seq, payload);
        fits.then_some(frame)
    }

    fn take(&mut self, at: usize, frame: &Frame) {
        let found = &mut self.found;
        if frame.synced != self.last_synced || at == FRAMES {
            found.unproven = at;
            self.last_synced = frame.synced;
        }
        self.proven = self.proven.max(frame.synced);
        found.chain = frame.chain;
        found.end = at + frame.len();
        if frame.opening {
            found.opening = Opening::decode(&self.bytes[at..][frame.payload.clone()]);
            (found.first, found.next) = (frame.seq, frame.seq);
            self.known = true;
            return;
        }
        let payload = &self.bytes[at..][frame.payload.clone()];
        found.records += 1;
        found.payload_bytes += payload.len() as u64;
        found.kinds |= format::kind(payload);
        if found.marks.last().is_none_or(|(_, mark)| at as u64 - mark >= MARK_BYTES) {
            found.marks.push((frame.seq, at as u64));
        }
        found.next = frame.seq + 1;
    }

    /// Decides what a bad place is, and goes on behind it; whether there is
    /// anything.
    fn skip(&mut self, at: usize) -> bool {
        let later = self.later(at + 1);
        let limit = self.bytes.iter().rposition(|byte| *byte != 0).map_or(at, |last| last + 1);
        let stretch_end = later.as_ref().map_or(limit, |(place, _)| *place);
        // The position of what is bad: nothing may say that it was synced.
        let bad = match &later {
            Some((_, frame)) if !self.known => frame.seq,
            _ => self.found.next.max(1),
        };
        let key = self.expected.key;
        if !self.expected.sealed
            && self.proven_after(at) < bad
            && format::is_cut_short(self.bytes, at, stretch_end, later.is_none(), key)
        {
            self.found.torn = limit - at;
            return false;
        }
        let Some((place, frame)) = later else {
            self.lose_the_end(at, limit);
            return false;
        };
        if !self.known {
            // The opening of the oldest segment: the first record that can be read begins it.
            self.found.first = frame.seq;
            self.found.next = frame.seq;
        }
        let from = self.found.next;
        let what = if frame.seq == from { "what lies between records" } else { "checksum, order or chain" };
        self.found.holes.push(Hole { from, to: frame.seq - 1, offset: at as u64, what });
        self.known = true;
        self.take(place, &frame);
        true
    }

    /// The next record that is right and not one of those before.
    fn later(&self, mut from: usize) -> Option<(usize, Frame)> {
        loop {
            let (at, frame) = find(self.bytes, from, self.expected.key)?;
            let fits = !frame.opening
                && frame.seq >= self.found.next.max(1)
                && self.expected.until.is_none_or(|until| frame.seq < until);
            if fits {
                return Some((at, frame));
            }
            from = at + 1;
        }
    }

    /// Highest position that any frame from a place on says was synced.
    fn proven_after(&self, at: usize) -> Seq {
        let mut proven = self.proven;
        let mut from = at;
        while let Some((place, frame)) = find(self.bytes, from, self.expected.key) {
            proven = proven.max(frame.synced);
            from = place + frame.len();
        }
        proven
    }

    /// Damage after which nothing can be read.
    fn lose_the_end(&mut self, at: usize, limit: usize) {
        let from = self.found.next;
        let to = match self.expected.until {
            Some(until) => until.saturating_sub(1),
            None => {
                // The head of the first bad one may tell how long it is.
                let whole = frame_len(&self.bytes[at..], self.expected.key).map_or(at, |length| at + length);
                let counted = u64::from(whole > at);
                let rest = limit.saturating_sub(whole).div_ceil(FRAME) as u64;
                from + (counted + rest).max(1) - 1
            }
        };
        let what = if to < from { "what lies after the last record" } else { "checksum, order or chain" };
        self.found.holes.push(Hole { from, to, offset: at as u64, what });
        self.found.next = to + 1;
        self.found.end = limit.min(self.bytes.len());
    }
}
