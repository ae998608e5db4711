//! What one record of the journal says: changes of the keyspace, or a fact.
//!
//! A record is a kind byte and fields in a fixed order; numbers are
//! little-endian, byte strings are preceded by their length as a `u32`. The
//! journal around it knows lengths and checksums, so nothing is checked twice
//! here: bytes that do not decode mean a bug or a newer release, and are said
//! so.
//!
//! | kind | fields |
//! |---|---|
//! | 1 changes | count `u32`, then for each: 1 put, key, value; 0 delete, key |
//! | 2 fact | `at_ms` `u64`, event, origin, correlation id (may be empty), data |
//! | 3 fact of a tenant | `at_ms` `u64`, event, origin, correlation id (may be empty), tenant, data |
//!
//! # Invariants
//!
//! - What is decoded was encoded: `decode(encode(r)) == r`.

use ksi_sdk::protocol::{Bytes, EventName};

/// Position in the journal, from 1 on, without holes.
pub type Seq = u64;

/// Tables: the first byte of every key.
pub mod keys {
    /// Figures of the engine itself: the covered position, the epoch.
    pub const META: u8 = b'm';
    /// Entries of durable work, by request id.
    pub const WORK: u8 = b'w';
    /// Their payloads, until they end.
    pub const PAYLOAD: u8 = b'p';
    /// Their results.
    pub const RESULT: u8 = b'r';
    /// Marks of entries of which only the end is kept, by request id.
    pub const MARK: u8 = b'k';
    /// Idempotency keys.
    pub const KEY: u8 = b'i';
    /// What plugins keep: plugin name, 0, key.
    pub const SPACE: u8 = b's';
    /// Cursors of durable consumers, by name.
    pub const CURSOR: u8 = b'c';
}

/// One change of the keyspace: a new value, or none any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Where.
    pub key: Bytes,
    /// What; `None` deletes.
    pub value: Option<Bytes>,
}

/// Changes that happen together or not at all, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch(Vec<Change>);

impl Batch {
    /// No changes yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a key.
    pub fn put(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> &mut Self {
        self.0.push(Change { key: key.into(), value: Some(value.into()) });
        self
    }

    /// Removes a key; one that is not there stays so.
    pub fn delete(&mut self, key: impl Into<Bytes>) -> &mut Self {
        self.0.push(Change { key: key.into(), value: None });
        self
    }

    /// Adds the changes of another, after these.
    pub fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    /// The changes in order.
    #[must_use]
    pub fn changes(&self) -> &[Change] {
        &self.0
    }

    /// Whether nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes of keys and values.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.iter().map(|change| change.key.len() + change.value.as_ref().map_or(0, Bytes::len)).sum()
    }
}

impl IntoIterator for Batch {
    type Item = Change;
    type IntoIter = std::vec::IntoIter<Change>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// An event that was told and is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// When it passed the kernel, milliseconds since 1970.
    pub at_ms: u64,
    /// What happened.
    pub event: EventName,
    /// Who said so.
    pub origin: String,
    /// What it belongs to.
    pub correlation_id: Option<String>,
    /// Whose it is.
    pub tenant: Option<String>,
    /// The payload, opaque.
    pub data: Bytes,
}

/// What one record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Changes of the keyspace.
    Changes(Batch),
    /// A fact.
    Fact(Fact),
}

/// Why bytes are no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A kind that this release does not know.
    #[error("record kind {0} is unknown: it was written by another release")]
    Kind(u8),
    /// The fields do not fill the record, or do not fit into it.
    #[error("record is {0}")]
    Shape(&'static str),
}

/// First byte of a record of changes.
pub const CHANGES: u8 = 1;
/// First byte of a record of a fact that belongs to nobody.
pub const FACT: u8 = 2;
/// First byte of a record of a fact that belongs to a tenant.
pub const TENANTS_FACT: u8 = 3;
/// The bits of both among the kinds of records that a segment has.
pub const FACTS: u64 = 1 << FACT | 1 << TENANTS_FACT;

/// Whether a record that begins so is a fact.
#[must_use]
pub fn is_fact(first: u8) -> bool {
    matches!(first, FACT | TENANTS_FACT)
}

impl Record {
    /// The bytes that the journal keeps.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Changes(batch) => {
                let mut out = Vec::with_capacity(5 + batch.size() + 9 * batch.0.len());
                out.push(CHANGES);
                put_length(&mut out, batch.0.len());
                for Change { key, value } in &batch.0 {
                    out.push(u8::from(value.is_some()));
                    put_bytes(&mut out, key);
                    if let Some(value) = value {
                        put_bytes(&mut out, value);
                    }
                }
                out
            }
            Self::Fact(fact) => {
                let correlation_id = fact.correlation_id.as_deref().unwrap_or_default();
                let tenant = fact.tenant.as_deref().unwrap_or_default();
                let texts =
                    fact.event.as_str().len() + fact.origin.len() + correlation_id.len() + tenant.len();
                let mut out = Vec::with_capacity(29 + texts + fact.data.len());
                out.push(if fact.tenant.is_some() { TENANTS_FACT } else { FACT });
                out.extend_from_slice(&fact.at_ms.to_le_bytes());
                put_bytes(&mut out, fact.event.as_str().as_bytes());
                put_bytes(&mut out, fact.origin.as_bytes());
                put_bytes(&mut out, correlation_id.as_bytes());
                if fact.tenant.is_some() {
                    put_bytes(&mut out, tenant.as_bytes());
                }
                put_bytes(&mut out, &fact.data);
                out
            }
        }
    }

    /// Reads a record. Keys and values share the memory of `bytes`.
    ///
    /// # Errors
    ///
    /// What is wrong, where it was not written by this release.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let mut from = Reader { bytes, at: 0 };
        let record = match from.byte()? {
            CHANGES => {
                let count = from.length()?;
                // A count is not believed further than the bytes go.
                let mut changes = Vec::with_capacity(count.min(bytes.len() / 5));
                for _ in 0..count {
                    let put = match from.byte()? {
                        0 => false,
                        1 => true,
                        _ => return Err(DecodeError::Shape("neither a put nor a delete")),
                    };
                    let key = from.slice()?;
                    let value = if put { Some(from.slice()?) } else { None };
                    changes.push(Change { key, value });
                }
                Self::Changes(Batch(changes))
            }
            kind @ (FACT | TENANTS_FACT) => {
                let at_ms = u64::from_le_bytes(from.array()?);
                let event = EventName::parse(&from.text()?)
                    .map_err(|_| DecodeError::Shape("a fact without a name"))?;
                let origin = from.text()?;
                let correlation_id = Some(from.text()?).filter(|id| !id.is_empty());
                let tenant = if kind == TENANTS_FACT { Some(from.text()?) } else { None };
                let data = from.slice()?;
                Self::Fact(Fact { at_ms, event, origin, correlation_id, tenant, data })
            }
            kind => return Err(DecodeError::Kind(kind)),
        };
        match from.at == bytes.len() {
            true => Ok(record),
            false => Err(DecodeError::Shape("longer than what it says")),
        }
    }
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    // Payloads are at most a frame, 16 MiB, and batches are made of them.
    let length = u32::try_from(length).expect("a record is far below 4 GiB");
    out.extend_from_slice(&length.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_length(out, bytes.len());
    out.extend_from_slice(bytes);
}

struct Reader<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl Reader<'_> {
    fn take(&mut self, length: usize) -> Result<std::ops::Range<usize>, DecodeError> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or(DecodeError::Shape("shorter than what it says"))?;
        let range = self.at..end;
        self.at = end;
        Ok(range)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let range = self.take(N)?;
        Ok(self.bytes[range].try_into().expect("the range has N bytes"))
    }

    fn byte(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn length(&mut self) -> Result<usize, DecodeError> {
        let length = u32::from_le_bytes(self.array()?);
        usize::try_from(length).map_err(|_| DecodeError::Shape("too long for this machine"))
    }

    fn slice(&mut self) -> Result<Bytes, DecodeError> {
        let length = self.length()?;
        let range = self.take(length)?;
        Ok(self.bytes.slice(range))
    }

    fn text(&mut self) -> Result<String, DecodeError> {
        let slice = self.slice()?;
        let text = std::str::from_utf8(&slice).map_err(|_| DecodeError::Shape("text that is not UTF-8"))?;
        Ok(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn records() -> impl Strategy<Value = Record> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
        let change = (bytes(), proptest::option::of(bytes())).prop_map(|(key, value)| Change { key, value });
        let changes = proptest::collection::vec(change, 0..8).prop_map(|list| Record::Changes(Batch(list)));
        let texts = || proptest::option::of(".{1,9}");
        let fact = (any::<u64>(), "[a-z]{1,6}:[a-z]{1,6}", ".{0,9}", texts(), texts(), bytes());
        let fact = fact.prop_map(|(at_ms, event, origin, correlation_id, tenant, data)| {
            let event = EventName::parse(&event).expect("made to fit");
            Record::Fact(Fact { at_ms, event, origin, correlation_id, tenant, data })
        });
        prop_oneof![changes, fact]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(record in records()) {
            prop_assert_eq!(Record::decode(&record.encode().into()), Ok(record));
        }

        #[test]
        fn no_prefix_and_no_garbage_is_taken_for_a_record(record in records(), extra in any::<u8>()) {
            let whole = record.encode();
            for end in 0..whole.len() {
                prop_assert!(Record::decode(&Bytes::copy_from_slice(&whole[..end])).is_err());
            }
            let mut longer = whole;
            longer.push(extra);
            prop_assert!(Record::decode(&longer.into()).is_err());
        }
    }
}
