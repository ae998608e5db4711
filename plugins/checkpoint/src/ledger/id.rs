//! Names of work: UUIDs of version 7, whose order is the order of acceptance.

use std::fmt;

use ksi_sdk::protocol::{Bytes, Refusal};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::record::keys;

/// Name of a piece of work. On the wire it is the usual text of a UUID.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Id(#[serde(with = "serde_bytes")] [u8; 16]);

impl Id {
    /// A name that was never given before.
    #[must_use]
    pub fn fresh() -> Self {
        Self(Uuid::now_v7().into_bytes())
    }

    /// The name with this number; for tests and models.
    #[must_use]
    pub fn from_u128(number: u128) -> Self {
        Self(number.to_be_bytes())
    }

    /// Reads the text of a name.
    ///
    /// # Errors
    ///
    /// `not_found`: nothing can have a name that is none.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        Uuid::try_parse(text).map(|uuid| Self(uuid.into_bytes())).map_err(|_| not_found(text))
    }

    /// The name itself, or the smallest after `last` where it is not greater:
    /// the clock that names are made from may have been put back.
    #[must_use]
    pub(super) fn after(self, last: Option<Self>) -> Self {
        match last {
            Some(last) if self <= last => Self((u128::from_be_bytes(last.0) + 1).to_be_bytes()),
            _ => self,
        }
    }

    /// Key of the entry.
    #[must_use]
    pub fn work_key(self) -> Bytes {
        self.key(keys::WORK)
    }

    /// Key of what was asked.
    #[must_use]
    pub fn payload_key(self) -> Bytes {
        self.key(keys::PAYLOAD)
    }

    /// Key of what was answered.
    #[must_use]
    pub fn result_key(self) -> Bytes {
        self.key(keys::RESULT)
    }

    /// Key of the mark that only the end of it is kept.
    #[must_use]
    pub fn mark_key(self) -> Bytes {
        self.key(keys::MARK)
    }

    /// The name in the key of an entry.
    #[must_use]
    pub fn of_work_key(key: &[u8]) -> Option<Self> {
        Self::of_key(keys::WORK, key)
    }

    /// The name in the key of a mark.
    #[must_use]
    pub fn of_mark_key(key: &[u8]) -> Option<Self> {
        Self::of_key(keys::MARK, key)
    }

    fn of_key(of: u8, key: &[u8]) -> Option<Self> {
        let (&table, id) = key.split_first()?;
        (table == of).then_some(Self(id.try_into().ok()?))
    }

    fn key(self, table: u8) -> Bytes {
        let mut key = [table; 17];
        key[1..].copy_from_slice(&self.0);
        Bytes::copy_from_slice(&key)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Uuid::from_bytes(self.0), f)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// No work has this name, or it is forgotten.
pub(crate) fn not_found(request_id: &str) -> Refusal {
    // A name comes from outside, and may be anything.
    let short: String = request_id.chars().take(64).collect();
    Refusal::not_found("work", &short.escape_debug().to_string())
        .hint("`ksi work list` shows what is known; results are kept for a limited time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_written_as_it_is_read_and_found_in_its_key() {
        let id = Id::fresh();
        assert_eq!(Id::parse(&id.to_string()).unwrap(), id);
        assert_eq!(Id::of_work_key(&id.work_key()), Some(id));
        assert_eq!(Id::of_work_key(&id.payload_key()), None);
        assert!(Id::parse("nonsense").is_err());
    }

    #[test]
    fn names_rise_also_where_the_clock_falls() {
        let (old, new) = (Id::from_u128(7), Id::from_u128(9));
        assert_eq!(new.after(None), new);
        assert_eq!(new.after(Some(old)), new);
        assert_eq!(old.after(Some(new)), Id::from_u128(10));
        assert_eq!(new.after(Some(new)), Id::from_u128(10));
    }
}
