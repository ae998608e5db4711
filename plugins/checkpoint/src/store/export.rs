//! Exports: one keyspace as one file that needs no database to be read.
//!
//! | part | bytes |
//! |---|---|
//! | head | `KSIEXP01`, position covered `u64` |
//! | record, many | length of the key `u32`, of the value `u32`, CRC of all of it `u32`, key, value |
//! | tail | `0xffff_ffff`, number of records `u64`, SHA-256 of everything before |
//!
//! Numbers are little-endian. Whoever reads one verifies the whole before anything is changed.

use std::io::{self, Read, Write};

use ksi_sdk::protocol::Bytes;
use sha2::{Digest, Sha256};

use super::{PAGE, PAGE_BYTES, Store, StoreError};
use crate::record::{Change, Seq};

const MAGIC: &[u8; 8] = b"KSIEXP01";
/// In place of the length of a key: no more records.
const TAIL: u32 = u32::MAX;
/// No value is longer, so a damaged length is not believed.
const VALUE_MAX: u32 = 1 << 30;

/// What an export holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Position that it covers.
    pub seq: Seq,
    /// Records.
    pub keys: u64,
    /// Length of the file.
    pub bytes: u64,
    /// SHA-256 of all but itself.
    pub sha256: [u8; 32],
}

/// Writes a store, which takes the memory of one page; `between` is called after each, to serve who reads meanwhile.
/// The caller syncs.
///
/// # Errors
///
/// What the store or the file said.
pub fn write(
    store: &dyn Store,
    seq: Seq,
    out: &mut dyn Write,
    between: &mut dyn FnMut(&dyn Store),
) -> Result<Summary, StoreError> {
    let doing = "write an export of";
    let mut out = Hashed { inner: out, hash: Sha256::new(), bytes: 0 };
    let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(StoreError::io(doing));
    put(MAGIC)?;
    put(&seq.to_le_bytes())?;
    let mut keys = 0_u64;
    let mut from = Vec::new();
    loop {
        let page = store.range(&from, None, PAGE, PAGE_BYTES)?;
        let Some((last, _)) = page.last() else { break };
        from.clear();
        from.extend_from_slice(last);
        // The smallest key after the last one.
        from.push(0);
        for (key, value) in &page {
            let head = head(key, value);
            put(&head)?;
            put(key)?;
            put(value)?;
            keys += 1;
        }
        between(store);
    }
    put(&TAIL.to_le_bytes())?;
    put(&keys.to_le_bytes())?;
    let sha256: [u8; 32] = out.hash.clone().finalize().into();
    out.write_all(&sha256).and_then(|()| out.flush()).map_err(StoreError::io(doing))?;
    Ok(Summary { seq, keys, bytes: out.bytes, sha256 })
}

/// Reads a whole export, and hands its records to `take` as they come. Where it ends in an error, what was taken is
/// worth nothing.
///
/// # Errors
///
/// `NotAnExport` with what is wrong, or what `take` said.
pub fn read(
    name: &str,
    from: &mut dyn Read,
    take: &mut dyn FnMut(Change) -> Result<(), StoreError>,
) -> Result<Summary, StoreError> {
    let mut from = Reader { name, inner: Hashed { inner: from, hash: Sha256::new(), bytes: 0 } };
    if from.array::<8>()? != *MAGIC {
        return Err(from.wrong("it begins otherwise"));
    }
    let seq = Seq::from_le_bytes(from.array()?);
    let mut keys = 0;
    loop {
        let key_len = u32::from_le_bytes(from.array()?);
        if key_len == TAIL {
            break;
        }
        let value_len = u32::from_le_bytes(from.array()?);
        let crc = from.array::<4>()?;
        if key_len > VALUE_MAX || value_len > VALUE_MAX {
            return Err(from.wrong("a length is impossible"));
        }
        let (key, value) = (from.bytes(key_len)?, from.bytes(value_len)?);
        if head(&key, &value)[8..] != crc {
            return Err(from.wrong("a checksum does not fit"));
        }
        take(Change { key, value: Some(value) })?;
        keys += 1;
    }
    if u64::from_le_bytes(from.array()?) != keys {
        return Err(from.wrong("records are missing"));
    }
    let sha256: [u8; 32] = from.inner.hash.clone().finalize().into();
    if from.array::<32>()? != sha256 {
        return Err(from.wrong("the SHA-256 does not fit"));
    }
    if from.inner.read(&mut [0]).map_err(StoreError::io("read an export for"))? != 0 {
        return Err(from.wrong("it goes on after its end"));
    }
    Ok(Summary { seq, keys, bytes: from.inner.bytes, sha256 })
}

/// Lengths and checksum, as they stand before a record.
fn head(key: &[u8], value: &[u8]) -> [u8; 12] {
    let length =
        |bytes: &[u8]| u32::try_from(bytes.len()).expect("keys and values are far below 4 GiB").to_le_bytes();
    let mut head = [0; 12];
    head[..4].copy_from_slice(&length(key));
    head[4..8].copy_from_slice(&length(value));
    let mut crc = crc32fast::Hasher::new();
    crc.update(&head[..8]);
    crc.update(key);
    crc.update(value);
    head[8..].copy_from_slice(&crc.finalize().to_le_bytes());
    head
}

/// Counts and hashes what passes.
struct Hashed<T> {
    inner: T,
    hash: Sha256,
    bytes: u64,
}

impl Write for Hashed<&mut dyn Write> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Read for Hashed<&mut dyn Read> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
}

struct Reader<'a> {
    name: &'a str,
    inner: Hashed<&'a mut dyn Read>,
}

impl Reader<'_> {
    fn wrong(&self, what: &'static str) -> StoreError {
        StoreError::NotAnExport(self.name.to_owned(), what)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), StoreError> {
        self.inner.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.wrong("it ends too early"),
            _ => StoreError::Io { doing: "read an export for", source: error },
        })
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StoreError> {
        let mut array = [0; N];
        self.fill(&mut array)?;
        Ok(array)
    }

    /// A length is believed a piece at a time, so that a damaged one costs no memory.
    fn bytes(&mut self, length: u32) -> Result<Bytes, StoreError> {
        let length = length as usize;
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let at = bytes.len();
            bytes.resize(length.min(at + PAGE_BYTES), 0);
            self.fill(&mut bytes[at..])?;
        }
        Ok(bytes.into())
    }
}
