//! What is in the state of the plugin, and under which keys.
//!
//! | key | value |
//! |---|---|
//! | `k` place | [`Brief`]: what has to be known of a value without reading it |
//! | `v` place | [`Stored`]: the value |
//! | `i` place id | [`Item`](crate::line::Item): an item of a queue, but for its data |
//! | `d` place id | its data |
//! | `c` | below which all numbers of items and leases may have been given |
//!
//! The two records of a value, and those of an item, are written together. The
//! small ones are all that a start reads. An id is 16 hexadecimal digits, so
//! that the place before it needs no end.

use ksi_sdk::{
    prelude::{Deserialize, Serialize},
    protocol::Payload,
};

use crate::{place::Place, value::Metadata};

/// First letters of keys.
pub(crate) const BRIEF: &str = "k";
const VALUE: &str = "v";
/// First letter of the keys of items.
pub(crate) const ITEM: &str = "i";
const DATA: &str = "d";
/// Where the numbers are kept.
pub(crate) const COUNTER: &str = "c";

/// Digits of an id.
const ID_DIGITS: usize = 16;

/// A value as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stored {
    pub(crate) value: Payload,
    pub(crate) metadata: Metadata,
    /// Milliseconds since 1970; 0: never.
    pub(crate) expires_at_ms: u64,
}

#[cfg(test)]
impl Stored {
    /// Some value of this many bytes.
    pub(crate) fn of_size(bytes: u64) -> Self {
        let value = Payload(vec![0; usize::try_from(bytes).unwrap()].into());
        Self { value, metadata: Metadata::new(), expires_at_ms: 0 }
    }
}

/// What is known of a value without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Brief {
    /// Bytes of value and metadata.
    pub(crate) size: u64,
    /// Milliseconds since 1970; 0: never.
    pub(crate) expires_at_ms: u64,
}

pub(crate) fn brief_key(place: &Place) -> String {
    [BRIEF, place.as_str()].concat()
}

pub(crate) fn value_key(place: &Place) -> String {
    [VALUE, place.as_str()].concat()
}

pub(crate) fn item_key(place: &Place, id: u64) -> String {
    format!("{ITEM}{}{id:016x}", place.as_str())
}

pub(crate) fn data_key(place: &Place, id: u64) -> String {
    format!("{DATA}{}{id:016x}", place.as_str())
}

/// The place of a [`brief_key`].
pub(crate) fn place_of_brief(key: &[u8]) -> Option<Place> {
    Place::stored(std::str::from_utf8(key).ok()?.strip_prefix(BRIEF)?)
}

/// Queue and id of an [`item_key`].
pub(crate) fn place_of_item(key: &[u8]) -> Option<(Place, u64)> {
    let text = std::str::from_utf8(key).ok()?.strip_prefix(ITEM)?;
    let (place, id) = text.split_at_checked(text.len().checked_sub(ID_DIGITS)?)?;
    Some((Place::stored(place)?, u64::from_str_radix(id, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_what_they_were_made_of() {
        for (namespace, name) in [("a", "b"), ("a\0", "\0/ä"), ("ä", "0123456789abcdef")] {
            let place = Place::new(None, namespace, "key", name).unwrap();
            assert_eq!(place_of_brief(brief_key(&place).as_bytes()), Some(place.clone()));
            assert_eq!(place_of_item(item_key(&place, u64::MAX).as_bytes()), Some((place.clone(), u64::MAX)));
            assert_ne!(item_key(&place, 1), data_key(&place, 1));
        }
        for broken in [&b"i"[..], b"", b"i\xff", b"iplace0123456789abcdef", b"ia\0b0123456789abcdeg"] {
            assert_eq!(place_of_item(broken), None);
        }
        assert_eq!(place_of_brief(b"vplace"), None);
    }

    #[test]
    fn the_longest_names_fit_into_a_key() {
        use crate::place::{KEY_BYTES_MAX, NAMESPACE_BYTES_MAX};
        let (namespace, name) = ("\0".repeat(NAMESPACE_BYTES_MAX), "k".repeat(KEY_BYTES_MAX));
        let place = Place::new(Some(&"t".repeat(64)), &namespace, "queue", &name).unwrap();
        assert!(item_key(&place, 1).len() <= ksi_sdk::protocol::space::KEY_BYTES_MAX);
    }
}
