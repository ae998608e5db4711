//! Cursors: how far each consumer is, and when it was last heard of.
//!
//! Cursors of earlier releases have no time; the next walk gives them one.

use ksi_sdk::prelude::Refusal;

use crate::{
    engine::Engine,
    record::{Batch, Seq, keys},
};

/// Longest name of a consumer, in bytes.
const NAME_BYTES_MAX: usize = 128;

/// A time that is not older is not written anew.
const REFRESH_MS: u64 = 3600 * 1000;

/// How far a consumer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cursor {
    /// The position up to which it has dealt with every fact.
    pub(super) seq: Seq,
    /// When it was last there, milliseconds since 1970.
    pub(super) seen_ms: Option<u64>,
}

impl Cursor {
    /// One that is there now.
    pub(super) fn at(seq: Seq, now_ms: u64) -> Self {
        Self { seq, seen_ms: Some(now_ms) }
    }

    /// Reads what is stored. Only this file writes there.
    pub(super) fn decode(value: &[u8]) -> Option<Self> {
        let (seq, seen_ms) = value.split_first_chunk()?;
        let seen_ms = match seen_ms {
            [] => None,
            seen_ms => Some(u64::from_le_bytes(seen_ms.try_into().ok()?)),
        };
        Some(Self { seq: Seq::from_le_bytes(*seq), seen_ms })
    }

    /// The change that stores it.
    pub(super) fn put(self, key: impl Into<Vec<u8>>) -> Batch {
        let mut value = self.seq.to_le_bytes().to_vec();
        value.extend(self.seen_ms.into_iter().flat_map(u64::to_le_bytes));
        let mut batch = Batch::new();
        batch.put(key.into(), value);
        batch
    }

    /// Whether its time is to be written anew where its consumer is there.
    pub(super) fn is_stale(self, now_ms: u64) -> bool {
        self.seen_ms.is_none_or(|seen_ms| now_ms.saturating_sub(seen_ms) >= REFRESH_MS)
    }

    /// Stores it; returns once that is safe.
    pub(super) async fn write(self, engine: &Engine, key: Vec<u8>) -> Result<(), Refusal> {
        let written = engine.commit(self.put(key))?;
        engine.durable(written).await
    }

    /// Notes that its consumer is there. What finds no room is noted the next time.
    pub(super) fn refresh(self, engine: &Engine, key: Vec<u8>, now_ms: u64) {
        if self.is_stale(now_ms) {
            let _ = engine.commit(Self::at(self.seq, now_ms).put(key));
        }
    }
}

/// Where the cursor of this name is stored. Each tenant has consumers of its own. No name begins with a
/// zero, and a tenant is preceded by its length, so no two are one key.
pub(super) fn key(tenant: Option<&str>, name: &str) -> Result<Vec<u8>, Refusal> {
    check_name(name)?;
    let Some(tenant) = tenant else { return Ok([&[keys::CURSOR], name.as_bytes()].concat()) };
    let length = (tenant.len() as u64).to_be_bytes();
    Ok([&[keys::CURSOR, 0], &length[..], tenant.as_bytes(), name.as_bytes()].concat())
}

fn check_name(name: &str) -> Result<(), Refusal> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        let rule = format!("`consumer` must have 1 to {NAME_BYTES_MAX} bytes, and no control characters");
        return Err(Refusal::invalid_payload(rule));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written_and_one_of_before_has_no_time() {
        let cursor = Cursor::at(7, 9);
        let stored = |cursor: Cursor| cursor.put(*b"c").changes()[0].value.clone().unwrap();
        assert_eq!(Cursor::decode(&stored(cursor)), Some(cursor));
        let old = Cursor { seen_ms: None, ..cursor };
        assert_eq!((stored(old).len(), Cursor::decode(&stored(old))), (8, Some(old)));
        assert!(old.is_stale(9) && !cursor.is_stale(9) && cursor.is_stale(9 + REFRESH_MS));
        for length in [0, 7, 9, 15, 17] {
            assert_eq!(Cursor::decode(&vec![1; length]), None, "{length} bytes");
        }
    }
}
