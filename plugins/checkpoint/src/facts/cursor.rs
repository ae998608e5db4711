//! Cursors: how far each consumer is, when it was last heard of, and whose it is.
//!
//! Cursors of earlier releases have no time, which the next walk gives them, and
//! are nobody's.

use ksi_sdk::{Ctx, prelude::Refusal, protocol::Bytes};

use crate::{
    engine::Engine,
    record::{Batch, Seq, keys},
};

/// Longest name of a consumer, in bytes.
const NAME_BYTES_MAX: usize = 128;

/// Cursors that are read at a time.
pub(super) const PAGE: usize = 1_000;

/// A time that is not older is not written anew.
const REFRESH_MS: u64 = 3600 * 1000;

/// How far a consumer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cursor {
    /// The position up to which it has dealt with every fact.
    pub(super) seq: Seq,
    /// When it was last there, milliseconds since 1970.
    pub(super) seen_ms: Option<u64>,
    /// Who made it, and is charged for it.
    pub(super) principal: Option<Box<str>>,
}

impl Cursor {
    /// That of whoever asks, who is there now.
    pub(super) fn of(ctx: &Ctx, seq: Seq) -> Self {
        Self { seq, seen_ms: Some(ctx.now_ms()), principal: Some(ctx.principal().into()) }
    }

    /// The same of one who is there now.
    pub(super) fn seen(self, now_ms: u64) -> Self {
        // A clock that is behind makes nobody older.
        Self { seen_ms: self.seen_ms.max(Some(now_ms)), ..self }
    }

    /// Reads what is stored. Only this file writes there.
    pub(super) fn decode(value: &[u8]) -> Option<Self> {
        let (seq, rest) = value.split_first_chunk()?;
        let (seen_ms, principal) = match rest.split_first_chunk() {
            Some((seen_ms, principal)) => (Some(u64::from_le_bytes(*seen_ms)), principal),
            None if rest.is_empty() => (None, rest),
            None => return None,
        };
        let principal = Some(std::str::from_utf8(principal).ok()?).filter(|name| !name.is_empty());
        Some(Self { seq: Seq::from_le_bytes(*seq), seen_ms, principal: principal.map(Into::into) })
    }

    /// The change that stores it.
    pub(super) fn put(&self, key: impl Into<Vec<u8>>) -> Batch {
        let mut value = self.seq.to_le_bytes().to_vec();
        if let Some(seen_ms) = self.seen_ms {
            value.extend(seen_ms.to_le_bytes());
            value.extend(self.principal.as_deref().unwrap_or_default().as_bytes());
        }
        let mut batch = Batch::new();
        batch.put(key.into(), value);
        batch
    }

    /// Whether its time is to be written anew where its consumer is there.
    pub(super) fn is_stale(&self, now_ms: u64) -> bool {
        self.seen_ms.is_none_or(|seen_ms| now_ms.saturating_sub(seen_ms) >= REFRESH_MS)
    }

    /// Notes that its consumer is there. What finds no room is noted the next time.
    pub(super) fn refresh(self, engine: &Engine, key: Vec<u8>, now_ms: u64) {
        if self.is_stale(now_ms) {
            let _ = engine.commit(self.seen(now_ms).put(key));
        }
    }
}

/// All that are stored, with their keys, in order.
pub(super) async fn all(engine: &Engine) -> Result<Vec<(Bytes, Cursor)>, Refusal> {
    let mut cursors: Vec<(Bytes, Cursor)> = Vec::new();
    let mut after = None;
    loop {
        let page = engine.scan(&[keys::CURSOR], after.as_deref(), PAGE).await?;
        let Some((last, _)) = page.last() else { return Ok(cursors) };
        after = Some(last.clone());
        cursors.extend(page.into_iter().filter_map(|(key, value)| Some((key, Cursor::decode(&value)?))));
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

/// The tenant and the name of which this is the key.
pub(super) fn named(key: &[u8]) -> Option<(Option<&str>, &str)> {
    let key = std::str::from_utf8(key.strip_prefix(&[keys::CURSOR])?).ok()?;
    let Some(rest) = key.strip_prefix('\0') else { return Some((None, key)) };
    let (length, rest) = rest.as_bytes().split_first_chunk()?;
    let rest = std::str::from_utf8(rest).ok()?;
    let (tenant, name) = rest.split_at_checked(usize::try_from(u64::from_be_bytes(*length)).ok()?)?;
    Some((Some(tenant), name))
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
    fn a_cursor_is_read_as_it_was_written_and_one_of_before_is_nobodys() {
        let cursor = Cursor { seq: 7, seen_ms: Some(9), principal: Some("user:a".into()) };
        let stored = |cursor: &Cursor| cursor.put(*b"c").changes()[0].value.clone().unwrap();
        assert_eq!(Cursor::decode(&stored(&cursor)), Some(cursor.clone()));
        let nobodys = Cursor { principal: None, ..cursor.clone() };
        assert_eq!((stored(&nobodys).len(), Cursor::decode(&stored(&nobodys))), (16, Some(nobodys)));
        let old = Cursor { seq: 7, seen_ms: None, principal: None };
        assert_eq!((stored(&old).len(), Cursor::decode(&stored(&old))), (8, Some(old.clone())));
        assert!(old.is_stale(9) && !cursor.is_stale(9) && cursor.is_stale(9 + REFRESH_MS));
        for length in [0, 7, 9, 15] {
            assert_eq!(Cursor::decode(&vec![1; length]), None, "{length} bytes");
        }
        assert_eq!(Cursor::decode(&[0xff; 17]), None, "a name that is no text");
    }

    #[test]
    fn a_key_says_whose_consumer_it_is() {
        for (tenant, name) in [(None, "c"), (Some("a"), "bc"), (Some("ab"), "c"), (Some("ab"), "\u{e4}")] {
            assert_eq!(named(&key(tenant, name).unwrap()), Some((tenant, name)));
        }
        for wrong in [&b""[..], b"x", b"c\0", b"c\0\0\0\0\0\0\0\0\x02a", b"c\xff"] {
            assert_eq!(named(wrong), None, "{wrong:?}");
        }
    }
}
