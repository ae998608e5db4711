//! A reading position that knows the size of the file and refuses to read or
//! allocate past it.

use std::io::Read;

use super::{Error, kinds};

/// Reads little-endian values from the start of a file.
pub(super) struct Cursor<R> {
    reader: R,
    /// Bytes read so far.
    at: u64,
    /// Size of the whole file; no length from the file is believed beyond it.
    size: u64,
}

impl<R: Read> Cursor<R> {
    pub(super) fn new(reader: R, size: u64) -> Self {
        Self { reader, at: 0, size }
    }

    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Fails unless `bytes` more bytes can follow.
    pub(super) fn need(&self, bytes: u64) -> Result<(), Error> {
        let left = self.size.saturating_sub(self.at);
        if bytes > left { Err(Error::Truncated { missing: bytes - left }) } else { Ok(()) }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        self.need(buffer.len() as u64)?;
        self.reader.read_exact(buffer).map_err(|error| match error.kind() {
            // The file shrank between the look at its size and now.
            std::io::ErrorKind::UnexpectedEof => Error::Truncated { missing: buffer.len() as u64 },
            _ => Error::Read(error),
        })?;
        self.at += buffer.len() as u64;
        Ok(())
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut buffer = [0; N];
        self.fill(&mut buffer)?;
        Ok(buffer)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Error> {
        self.array().map(u64::from_le_bytes)
    }

    /// An integer of the given value type; `None` where the type is not one.
    pub(super) fn integer(&mut self, kind: u32) -> Result<Option<i64>, Error> {
        Ok(Some(match kind {
            kinds::UINT8 => i64::from(self.array::<1>()?[0]),
            kinds::INT8 => i64::from(i8::from_le_bytes(self.array()?)),
            kinds::UINT16 => i64::from(u16::from_le_bytes(self.array()?)),
            kinds::INT16 => i64::from(i16::from_le_bytes(self.array()?)),
            kinds::UINT32 => i64::from(self.u32()?),
            kinds::INT32 => i64::from(i32::from_le_bytes(self.array()?)),
            // Nothing that is read by name is larger; a number that does not
            // fit turns negative here and is refused where it is used.
            kinds::UINT64 => self.u64()?.try_into().unwrap_or(-1),
            kinds::INT64 => i64::from_le_bytes(self.array()?),
            _ => return Ok(None),
        }))
    }

    /// The length of a string that follows, checked against the limit and the
    /// rest of the file.
    pub(super) fn text_length(&mut self, what: &'static str, max: u64) -> Result<u64, Error> {
        let bytes = self.u64()?;
        if bytes > max {
            return Err(Error::Long { what, bytes, max });
        }
        self.need(bytes)?;
        Ok(bytes)
    }

    pub(super) fn text(&mut self, what: &'static str, max: u64) -> Result<Vec<u8>, Error> {
        let bytes = self.text_length(what, max)?;
        let mut buffer = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)];
        self.fill(&mut buffer)?;
        Ok(buffer)
    }

    /// A string that names something: UTF-8 and not empty. Nor has it a NUL, at
    /// which it would end for llama.cpp, and be another name.
    pub(super) fn name(&mut self, what: &'static str, max: u64) -> Result<String, Error> {
        let bytes = self.text(what, max)?;
        String::from_utf8(bytes)
            .ok()
            .filter(|name| !name.is_empty() && !name.contains('\0'))
            .ok_or(Error::Name)
    }

    pub(super) fn skip(&mut self, bytes: u64) -> Result<(), Error> {
        self.need(bytes)?;
        let mut left = bytes;
        let mut buffer = [0; 4096];
        while left > 0 {
            let part = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            self.fill(&mut buffer[..part])?;
            left -= part as u64;
        }
        Ok(())
    }
}
