//! How a value lies in sled: in one entry, in pieces, or in a file of its own.
//!
//! Sled keeps up to 17 entries in a page, and writes a page above 64 KiB (a
//! quarter of a segment) into a file that it never syncs and may never delete. So no entry is
//! larger than [`PIECE`], values above it are cut, and those above
//! [`PIECES_MAX`] are files that we write and sync ourselves. A file belongs to one key,
//! because its name is the SHA-256 of key and value: nobody has to count references.
//!
//! | entry | key | value |
//! |---|---|---|
//! | figures | 0 `sum` | keys, live bytes, sum of all checksums, `u64` each |
//! | value | 1 key | kind `u8`, CRC of key and value `u32`, length `u32`, then the value (kind 0), nothing (1), name of a file (2) |
//! | piece | 2 key number `u8` | the bytes |

use sha2::{Digest, Sha256};

/// Bytes that one entry may have.
pub(super) const PIECE: usize = 2 << 10;
/// Bytes above which a value is a file.
pub(super) const PIECES_MAX: usize = 32 << 10;
/// The key of the figures.
pub(super) const SUM: &[u8] = b"\0sum";
/// First byte of the keys of values.
pub(super) const VALUE: u8 = 1;
const PIECE_OF: u8 = 2;
const HEAD: usize = 9;

/// Where the bytes of a value are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Body<'a> {
    /// Behind the head.
    Inline(&'a [u8]),
    /// In that many entries.
    Pieces(u8),
    /// In a file of this name.
    File(String),
}

/// What the entry of a value says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head<'a> {
    pub(super) crc: u32,
    pub(super) length: u32,
    pub(super) body: Body<'a>,
}

impl<'a> Head<'a> {
    /// The head of a value that is to be written.
    pub(super) fn of(key: &[u8], value: &'a [u8]) -> Self {
        let length = u32::try_from(value.len()).expect("a value is far below 4 GiB");
        let body = if value.len() <= PIECE {
            Body::Inline(value)
        } else if value.len() <= PIECES_MAX {
            Body::Pieces(u8::try_from(value.len().div_ceil(PIECE)).expect("at most 16"))
        } else {
            Body::File(file_name(key, value))
        };
        Self { crc: crc(key, value), length, body }
    }

    /// Reads an entry; `None` where it is none.
    pub(super) fn read(entry: &'a [u8]) -> Option<Self> {
        let (head, rest) = entry.split_at_checked(HEAD)?;
        let crc = u32::from_le_bytes(head[1..5].try_into().ok()?);
        let length = u32::from_le_bytes(head[5..9].try_into().ok()?);
        let body = match head[0] {
            0 if rest.len() == length as usize => Body::Inline(rest),
            1 if rest.is_empty() => Body::Pieces(u8::try_from((length as usize).div_ceil(PIECE)).ok()?),
            2 if rest.len() == 32 => Body::File(hex(rest)),
            _ => return None,
        };
        Some(Self { crc, length, body })
    }

    /// The entry.
    pub(super) fn write(&self) -> Vec<u8> {
        let mut entry = Vec::with_capacity(HEAD + self.length.min(32 << 10) as usize);
        entry.push(match self.body {
            Body::Inline(_) => 0,
            Body::Pieces(_) => 1,
            Body::File(_) => 2,
        });
        entry.extend_from_slice(&self.crc.to_le_bytes());
        entry.extend_from_slice(&self.length.to_le_bytes());
        match &self.body {
            Body::Inline(value) => entry.extend_from_slice(value),
            Body::Pieces(_) => {}
            Body::File(name) => entry.extend(unhex(name)),
        }
        entry
    }

    /// What this value adds to the figures of a store.
    pub(super) fn sum(&self, key: &[u8]) -> Sum {
        Sum { keys: 1, bytes: key.len() as u64 + u64::from(self.length), checks: self.check() }
    }

    /// The checksum, spread over 64 bits, so that a sum of many means something.
    fn check(&self) -> u64 {
        let mut z = (u64::from(self.length) << 32 | u64::from(self.crc)).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// The key of a value.
pub(super) fn value_key(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 1);
    out.push(VALUE);
    out.extend_from_slice(key);
    out
}

/// The key of a piece.
pub(super) fn piece_key(key: &[u8], number: u8) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 2);
    out.push(PIECE_OF);
    out.extend_from_slice(key);
    out.push(number);
    out
}

/// Whether a key is one of a piece.
pub(super) fn is_piece(key: &[u8]) -> bool {
    key.first() == Some(&PIECE_OF)
}

/// The checksum of a key with its value.
pub(super) fn crc(key: &[u8], value: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&(key.len() as u64).to_le_bytes());
    crc.update(key);
    crc.update(value);
    crc.finalize()
}

/// The name of the file of a value.
pub(super) fn file_name(key: &[u8], value: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update((key.len() as u64).to_le_bytes());
    hash.update(key);
    hash.update(value);
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)]))
        .collect()
}

fn unhex(text: &str) -> impl Iterator<Item = u8> + '_ {
    text.as_bytes().chunks(2).map(|pair| {
        let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or(0) as u8;
        digit(pair[0]) << 4 | pair.get(1).map_or(0, |low| digit(*low))
    })
}

/// Figures over all values, kept with every batch: what is in a store that lost or kept something by mistake
/// does not add up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) keys: u64,
    pub(super) bytes: u64,
    pub(super) checks: u64,
}

impl Sum {
    pub(super) fn add(&mut self, other: Self) {
        self.keys = self.keys.wrapping_add(other.keys);
        self.bytes = self.bytes.wrapping_add(other.bytes);
        self.checks = self.checks.wrapping_add(other.checks);
    }

    pub(super) fn take(&mut self, other: Self) {
        self.keys = self.keys.wrapping_sub(other.keys);
        self.bytes = self.bytes.wrapping_sub(other.bytes);
        self.checks = self.checks.wrapping_sub(other.checks);
    }

    pub(super) fn write(self) -> [u8; 24] {
        let mut out = [0; 24];
        out[..8].copy_from_slice(&self.keys.to_le_bytes());
        out[8..16].copy_from_slice(&self.bytes.to_le_bytes());
        out[16..].copy_from_slice(&self.checks.to_le_bytes());
        out
    }

    pub(super) fn read(entry: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u64::from_le_bytes(entry.get(at..at + 8)?.try_into().ok()?));
        Some(Self { keys: number(0)?, bytes: number(8)?, checks: number(16)? }).filter(|_| entry.len() == 24)
    }
}
