//! The SHA-256 of a file's bytes, and a memory of those that were taken.

use std::{
    collections::HashMap,
    fmt,
    fs::{File, Metadata},
    io::{self, Read, Seek},
    os::unix::fs::MetadataExt,
    str::FromStr,
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest as _, Sha256};

/// Bytes that are read at once.
const CHUNK_BYTES: usize = 256 * 1024;
/// Digests that are remembered; beyond it the memory begins anew.
const REMEMBERED_MAX: usize = 1024;

/// A SHA-256; written as 64 hexadecimal digits in lower case.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

/// Why a text is no digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a digest is 64 hexadecimal digits in lower case")]
pub struct NotADigest;

impl Digest {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Of these parts, one after the other.
    #[must_use]
    pub fn of_parts(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(part);
        }
        Self(hash.finalize().into())
    }

    /// Of all that a reader yields, and how much that was.
    ///
    /// # Errors
    ///
    /// As the reader fails.
    pub fn read(mut reader: impl Read) -> io::Result<(Self, u64)> {
        let mut hash = Sha256::new();
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut size = 0;
        loop {
            match reader.read(&mut chunk) {
                Ok(0) => return Ok((Self(hash.finalize().into()), size)),
                Ok(read) => {
                    hash.update(&chunk[..read]);
                    size += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The bytes of the digest itself.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 64];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(NotADigest);
        }
        let value = |digit: u8| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            _ => Err(NotADigest),
        };
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = value(pair[0])? << 4 | value(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// Whether nobody but its owner may write a file.
///
/// What was checked is loaded later, through the same descriptor; in between
/// only the owner of the file, who could as well start the program that loads
/// it, can have changed it.
#[must_use]
pub fn is_guarded(metadata: &Metadata) -> bool {
    metadata.mode() & 0o022 == 0
}

/// What tells one state of a file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Digests of open files, taken once for each state of a file.
///
/// Nobody can set the time of the last change of an inode back, short of the
/// system's clock, so a file that is as it was then holds what it held then.
#[derive(Debug, Default)]
pub struct Digests(Mutex<HashMap<Identity, (Digest, u64)>>);

impl Digests {
    /// The digest and size of an open file, from its beginning. `watch` wraps
    /// the reader, so that a long reading can be ended by an error.
    ///
    /// # Errors
    ///
    /// As reading fails; `InvalidData` where the file changed meanwhile.
    pub fn of_file<'a, R: Read>(
        &self,
        file: &'a File,
        watch: impl FnOnce(&'a File) -> R,
    ) -> io::Result<(Digest, u64)> {
        let before = Identity::of(&file.metadata()?);
        let remembered = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&before).copied();
        if let Some(known) = remembered {
            return Ok(known);
        }
        (&*file).rewind()?;
        let taken = Digest::read(watch(file))?;
        (&*file).rewind()?;
        if Identity::of(&file.metadata()?) != before {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file changed while it was read"));
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED_MAX {
            known.clear();
        }
        known.insert(before, taken);
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Published with the algorithm.
    const OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_digest_is_written_and_read_as_everybody_does() {
        let digest = Digest::of(b"abc");
        assert_eq!(digest.to_string(), OF_ABC);
        assert_eq!(OF_ABC.parse(), Ok(digest));
        assert_eq!(Digest::of_parts(&[b"a", b"", b"bc"]), digest);
        assert_eq!(Digest::read(&b"abc"[..]).unwrap(), (digest, 3));
        for wrong in ["", &OF_ABC[1..], &OF_ABC.to_uppercase(), &format!("{OF_ABC}0"), &"g".repeat(64)] {
            assert_eq!(wrong.parse::<Digest>(), Err(NotADigest), "{wrong}");
        }
    }

    #[test]
    fn a_file_is_read_once_until_it_changes() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"abc").unwrap();
        let digests = Digests::default();
        let mut readings = 0;
        let mut take = |file: &File| {
            let taken = digests.of_file(file, |file| {
                readings += 1;
                file
            });
            (taken.unwrap(), readings)
        };
        assert_eq!(take(&file), ((Digest::of(b"abc"), 3), 1));
        assert_eq!(take(&file), ((Digest::of(b"abc"), 3), 1));
        file.seek(io::SeekFrom::End(0)).unwrap();
        file.write_all(b"d").unwrap();
        assert_eq!(take(&file), ((Digest::of(b"abcd"), 4), 2));
    }
}
