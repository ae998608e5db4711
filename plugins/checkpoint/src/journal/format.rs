//! The bytes of a segment.
//!
//! A segment is a file of a fixed size that was filled with zeros and synced
//! before its first record: writing into it changes no metadata. It begins
//! with two copies of a head of one sector, written when the file is made.
//! Frames follow, without gaps, then zeros. Numbers are little-endian.
//!
//! | head | bytes | |
//! |---|---|---|
//! | 0 | 8 | `KSIJRNL1` |
//! | 8 | 8 | index of the segment |
//! | 16 | 8 | size of the file |
//! | 24 | 16 | identity of the journal, random |
//! | 508 | 4 | CRC-32 of all before; what lies between is zero |
//!
//! | frame | bytes | |
//! |---|---|---|
//! | 0 | 4 | magic: an opening or a record |
//! | 4 | 4 | length of the payload |
//! | 8 | 8 | seq; of an opening, that of the first record after it |
//! | 16 | 8 | position that was synced when this was written |
//! | 24 | 32 | chain: SHA-256 of the chain before, seq and payload; of an opening, the chain before |
//! | 56 | 4 | CRC-32 of the payload |
//! | 60 | 4 | CRC-32 of identity, index and the 60 bytes before |
//! | 64 | | payload |
//! | | 4 | end mark |
//!
//! The first frame of a segment is its opening, with `begun_ms` and the kinds
//! of payloads in the segment before and, where positions were skipped, how
//! many; it goes out in one write with the first records. No byte of a mark is
//! zero, so that a write that a crash cut short can be told from damage.

use crc32fast::Hasher;
use ksi_sdk::protocol::Bytes;
use sha2::{Digest, Sha256};

use crate::record::Seq;

/// The unit in which a disk writes or does not write.
pub(crate) const SECTOR: usize = 512;
/// Where the first frame is.
pub(crate) const FRAMES: usize = 2 * SECTOR;
/// Bytes of a frame besides its payload.
pub(crate) const FRAME: usize = HEAD + MARK.len();
/// Bytes before the payload.
const HEAD: usize = 64;

const SEGMENT: &[u8; 8] = b"KSIJRNL1";
const RECORD: [u8; 4] = *b"\xf5KSr";
const OPENING: [u8; 4] = *b"\xf5KSo";
const MARK: [u8; 4] = *b"\x9aend";

/// Value of the chain after a record.
pub type Chain = [u8; 32];

/// What a segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) index: u64,
    pub(crate) size: u64,
    pub(crate) identity: [u8; 16],
}

impl Head {
    /// Both copies.
    pub(crate) fn encode(&self) -> [u8; FRAMES] {
        let mut out = [0; FRAMES];
        out[..8].copy_from_slice(SEGMENT);
        out[8..16].copy_from_slice(&self.index.to_le_bytes());
        out[16..24].copy_from_slice(&self.size.to_le_bytes());
        out[24..40].copy_from_slice(&self.identity);
        let crc = crc32fast::hash(&out[..SECTOR - 4]);
        out[SECTOR - 4..SECTOR].copy_from_slice(&crc.to_le_bytes());
        out.copy_within(..SECTOR, SECTOR);
        out
    }

    /// The head, and whether both copies are whole.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Self, bool)> {
        let mut copies = (0..2).map(|copy| {
            let sector = bytes.get(copy * SECTOR..(copy + 1) * SECTOR)?;
            let crc = u32::from_le_bytes(array(sector, SECTOR - 4));
            let whole = crc == crc32fast::hash(&sector[..SECTOR - 4]) && sector.starts_with(SEGMENT);
            whole.then(|| Self {
                index: u64::from_le_bytes(array(sector, 8)),
                size: u64::from_le_bytes(array(sector, 16)),
                identity: array(sector, 24),
            })
        });
        let (one, other) = (copies.next().flatten(), copies.next().flatten());
        one.or(other).map(|head| (head, one == other))
    }

    /// What the frames of this segment are checked with: a frame of another
    /// segment or journal is none of this one.
    pub(crate) fn key(&self) -> Key {
        let mut hasher = Hasher::new();
        hasher.update(&self.identity);
        hasher.update(&self.index.to_le_bytes());
        Key(hasher.finalize())
    }

    /// The chain before the first record of all.
    pub(crate) fn origin(&self) -> Chain {
        origin(&self.identity)
    }
}

/// The chain before the first record of a journal.
pub(crate) fn origin(identity: &[u8; 16]) -> Chain {
    Sha256::digest(identity).into()
}

/// What the frames of a segment are checked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key(u32);

/// What an opening says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opening {
    /// When the segment got its first record, milliseconds since 1970.
    pub(crate) begun_ms: u64,
    /// First bytes of the payloads of the segment before, as bits modulo 64.
    pub(crate) kinds_before: u64,
    /// Positions before its first one that no record ever had.
    pub(crate) skipped: u64,
}

impl Opening {
    /// Bytes of its frame, where nothing was skipped.
    pub(crate) const FRAME: usize = FRAME + 16;

    fn encode(self) -> Vec<u8> {
        let mut out = [self.begun_ms, self.kinds_before].map(u64::to_le_bytes).concat();
        // Said only where it is so: most are as they always were.
        if self.skipped > 0 {
            out.extend(self.skipped.to_le_bytes());
        }
        out
    }

    /// Bytes of its frame.
    pub(crate) fn frame_len(self) -> usize {
        FRAME + self.encode().len()
    }

    /// The opening in the payload of its frame.
    pub(crate) fn decode(payload: &[u8]) -> Option<Self> {
        matches!(payload.len(), 16 | 24).then(|| Self {
            begun_ms: u64::from_le_bytes(array(payload, 0)),
            kinds_before: u64::from_le_bytes(array(payload, 8)),
            skipped: if payload.len() == 24 { u64::from_le_bytes(array(payload, 16)) } else { 0 },
        })
    }

    /// The position after the last record before it, where this is that of its first one.
    pub(crate) fn follows(self, first: Seq) -> Seq {
        first.saturating_sub(self.skipped)
    }
}

/// A frame whose checksums are right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) opening: bool,
    pub(crate) seq: Seq,
    pub(crate) synced: Seq,
    pub(crate) chain: Chain,
    /// Where its payload begins, and ends, from the beginning of the frame.
    pub(crate) payload: std::ops::Range<usize>,
}

impl Frame {
    /// Length of the whole frame.
    pub(crate) fn len(&self) -> usize {
        self.payload.end + MARK.len()
    }
}

/// The bit of a payload in a set of kinds.
pub(crate) fn kind(payload: &[u8]) -> u64 {
    payload.first().map_or(0, |byte| 1 << (byte % 64))
}

/// The chain's value after a record.
pub(crate) fn link(before: &Chain, seq: Seq, payload: &[u8]) -> Chain {
    let mut hasher = Sha256::new();
    hasher.update(before);
    hasher.update(seq.to_le_bytes());
    hasher.update(payload);
    hasher.finalize().into()
}

/// Writes frames one after the other.
pub(crate) struct Writer<'a> {
    pub(crate) out: &'a mut Vec<u8>,
    pub(crate) key: Key,
    /// Position that is synced.
    pub(crate) synced: Seq,
}

impl Writer<'_> {
    /// Begins a segment.
    pub(crate) fn opening(&mut self, first: Seq, chain: &Chain, opening: Opening) {
        self.frame(OPENING, first, chain, &opening.encode());
    }

    /// Writes a record; the chain after it.
    pub(crate) fn record(&mut self, seq: Seq, before: &Chain, payload: &[u8]) -> Chain {
        let chain = link(before, seq, payload);
        self.frame(RECORD, seq, &chain, payload);
        chain
    }

    fn frame(&mut self, magic: [u8; 4], seq: Seq, chain: &Chain, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("the limit of a payload is below 4 GiB");
        let mut head = [0; HEAD];
        head[..4].copy_from_slice(&magic);
        head[4..8].copy_from_slice(&length.to_le_bytes());
        head[8..16].copy_from_slice(&seq.to_le_bytes());
        head[16..24].copy_from_slice(&self.synced.to_le_bytes());
        head[24..56].copy_from_slice(chain);
        head[56..60].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
        let crc = head_crc(self.key, &head);
        head[60..].copy_from_slice(&crc.to_le_bytes());
        self.out.extend_from_slice(&head);
        self.out.extend_from_slice(payload);
        self.out.extend_from_slice(&MARK);
    }
}

/// The length of the frame that these bytes begin with, if its head is right:
/// so many bytes [`frame`] needs.
pub(crate) fn frame_len(bytes: &[u8], key: Key) -> Option<usize> {
    let head = bytes.get(..HEAD)?;
    let known = head.starts_with(&RECORD) || head.starts_with(&OPENING);
    if !known || u32::from_le_bytes(array(head, 60)) != head_crc(key, head) {
        return None;
    }
    usize::try_from(u32::from_le_bytes(array(head, 4))).ok()?.checked_add(FRAME)
}

/// The frame that these bytes begin with, if all of it is right.
pub(crate) fn frame(bytes: &[u8], key: Key) -> Option<Frame> {
    let whole = bytes.get(..frame_len(bytes, key)?)?;
    let payload = HEAD..whole.len() - MARK.len();
    let right = u32::from_le_bytes(array(whole, 56)) == crc32fast::hash(&whole[payload.clone()]);
    (right && whole.ends_with(&MARK)).then(|| Frame {
        opening: whole.starts_with(&OPENING),
        seq: u64::from_le_bytes(array(whole, 8)),
        synced: u64::from_le_bytes(array(whole, 16)),
        chain: array(whole, 24),
        payload,
    })
}

/// Where the next frame that is right begins, at `from` or after it.
pub(crate) fn find(bytes: &[u8], from: usize, key: Key) -> Option<(usize, Frame)> {
    (from..bytes.len().saturating_sub(FRAME - 1))
        .filter(|at| bytes[*at] == RECORD[0])
        .find_map(|at| frame(&bytes[at..], key).map(|frame| (at, frame)))
}

/// Whether what lies between `at` and `limit`, and is no frame, is what a write leaves that power loss cut
/// short: a sector that is still zero, or an end that is. `last` says that nothing but zeros follows.
///
/// A sector of a payload that was all zeros is taken for one that was lost. That can matter only in the
/// last write, of which nothing in the file proves that it was ever synced.
pub(crate) fn is_cut_short(bytes: &[u8], at: usize, limit: usize, last: bool, key: Key) -> bool {
    let claimed = frame_len(&bytes[at..], key).map(|length| at + length);
    let end = claimed.unwrap_or(limit).min(bytes.len());
    let mut sectors = (at / SECTOR..end.div_ceil(SECTOR)).map(|sector| sector * SECTOR);
    // A repair that was cut short itself leaves zeros at the beginning, of any length.
    let lost = bytes[at] == 0 || sectors.any(|from| is_zero(&bytes[from.max(at)..(from + SECTOR).min(end)]));
    let shortened = match claimed {
        Some(claimed) => claimed > bytes.len() || bytes[claimed - 1] == 0,
        None => !bytes[..limit].ends_with(&MARK),
    };
    lost || (last && shortened)
}

/// Whether there is nothing.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Words first: the tail of a segment is megabytes of zeros.
    let (words, rest) = bytes.as_chunks::<64>();
    words.iter().all(|word| word == &[0; 64]) && rest.iter().all(|byte| *byte == 0)
}

fn head_crc(key: Key, head: &[u8]) -> u32 {
    let mut hasher = Hasher::new_with_initial(key.0);
    hasher.update(&head[..60]);
    hasher.finalize()
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the caller's slice has N bytes there")
}

/// Frames of these payloads would have so many bytes.
pub(crate) fn frames_len<'a>(payloads: impl IntoIterator<Item = &'a Bytes>) -> usize {
    payloads.into_iter().map(|payload| FRAME + payload.len()).sum()
}
