//! The state of plugins: payloads of `space:get`, `space:apply` and
//! `space:scan`.
//!
//! Each plugin has a space of its own, ordered keys with values and versions.
//! Whose space is meant is never in a payload: it is the asker's, as the daemon
//! knows it. Keys and values are opaque bytes here.
//!
//! The version of a value is the position in the journal of the change that
//! wrote it, so it only rises; 0 is the version of what is not there.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Code, Pattern, Refusal};

/// Longest key in bytes.
pub const KEY_BYTES_MAX: usize = 1024;

/// Largest value in bytes. What is larger belongs in a file.
pub const VALUE_BYTES_MAX: usize = 1024 * 1024;

/// Most bytes of keys and values that change together, and of a page of a
/// scan: far below a frame.
pub const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Most changes and checks in one batch.
pub const BATCH_CHANGES_MAX: usize = 4096;

/// Most entries of one page of a scan.
pub const SCAN_ENTRIES_MAX: u32 = 1000;

/// First byte of keys that are not the plugin's to use.
pub const RESERVED: u8 = 0;

/// Where the version of the plugin's state is kept, a MessagePack number.
pub const STATE_VERSION_KEY: &[u8] = b"\0version";

/// The events of this: what a plugin keeps is its own, so it may ask for them
/// without being granted it.
#[must_use]
pub fn events() -> Pattern {
    Pattern::parse("space:*").expect("it is a pattern")
}

/// Read one value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Get {
    /// Where.
    pub key: Bytes,
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Got {
    /// The value, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Bytes>,
    /// Its version; 0 where there is none.
    pub version: u64,
}

/// Change values together: all checks hold and all changes are made, or none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Apply {
    /// Versions that must still be so. A check that fails is refused
    /// `conflict`, with the [`Conflict`] as its details.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
    /// What changes, in order.
    pub changes: Vec<Change>,
}

/// A version that must still be so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Where.
    pub key: Bytes,
    /// The version; 0: nothing may be there.
    pub version: u64,
}

/// A new value, or none any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Where.
    pub key: Bytes,
    /// What; absent: delete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Bytes>,
}

/// The changes are made, and safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Applied {
    /// The version of all values that were written.
    pub version: u64,
}

/// Which check of an [`Apply`] failed: the details of its refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// Its place among the checks, from 0.
    pub check: usize,
    /// The version that is there; 0 where nothing is.
    pub version: u64,
}

impl Apply {
    /// Whether it keeps to the limits of keys, values and batches.
    ///
    /// # Errors
    ///
    /// `too_large` or, for a key that is empty, `invalid_payload`.
    pub fn check_limits(&self) -> Result<(), Refusal> {
        let too_large = |what: &str, is: usize, most: usize| {
            let message = format!("{what} {is}, and the limit is {most}");
            Err(Refusal::new(Code::TooLarge, message))
        };
        let count = self.checks.len() + self.changes.len();
        if count > BATCH_CHANGES_MAX {
            return too_large("changes and checks of the batch are", count, BATCH_CHANGES_MAX);
        }
        let mut bytes = 0;
        for (key, value) in self
            .checks
            .iter()
            .map(|check| (&check.key, None))
            .chain(self.changes.iter().map(|change| (&change.key, change.value.as_ref())))
        {
            check_key(key)?;
            let value = value.map_or(0, Bytes::len);
            if value > VALUE_BYTES_MAX {
                return too_large("bytes of the value are", value, VALUE_BYTES_MAX);
            }
            bytes += key.len() + value;
        }
        match bytes > BATCH_BYTES_MAX {
            true => too_large("bytes of the batch are", bytes, BATCH_BYTES_MAX),
            false => Ok(()),
        }
    }
}

/// Whether a key keeps to its limits.
///
/// # Errors
///
/// `too_large`, or `invalid_payload` where it is empty.
pub fn check_key(key: &[u8]) -> Result<(), Refusal> {
    match key.len() {
        0 => Err(Refusal::new(Code::InvalidPayload, "a key of a plugin's state must not be empty")),
        1..=KEY_BYTES_MAX => Ok(()),
        is => Err(Refusal::new(
            Code::TooLarge,
            format!("bytes of the key are {is}, and the limit is {KEY_BYTES_MAX}"),
        )),
    }
}

impl Conflict {
    /// The refusal of an [`Apply`] whose check of this version failed.
    #[must_use]
    pub fn refusal(self, expected: u64) -> Refusal {
        let version = |version| match version {
            0 => "no value".to_owned(),
            version => format!("version {version}"),
        };
        let message =
            format!("the state has changed: expected {}, found {}", version(expected), version(self.version));
        Refusal::new(Code::Conflict, message)
            .hint("read the value again, and decide again")
            .details(serde_json::json!({ "check": self.check, "version": self.version }))
    }

    /// What a refusal says about the check that failed, where it is one of
    /// these.
    #[must_use]
    pub fn of(refusal: &Refusal) -> Option<Self> {
        let details = refusal.details.as_ref().filter(|_| refusal.code == Code::Conflict)?;
        Self::deserialize(details).ok()
    }
}

/// Read the entries whose keys begin with a prefix, in the order of the keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Scan {
    /// The prefix; empty for everything.
    pub prefix: Bytes,
    /// Only keys after this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Bytes>,
    /// At most so many entries; 0: as many as a page may have.
    pub limit: u32,
}

/// A page of a scan: as many entries as were asked for, unless they are too
/// large for one answer or there are no more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Page {
    /// In the order of their keys.
    pub entries: Vec<Entry>,
    /// Whether there are more after the last.
    pub more: bool,
}

/// One value and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Entry {
    /// Where.
    pub key: Bytes,
    /// What.
    pub value: Bytes,
    /// Its version.
    pub version: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_may_ask_for_its_space_and_for_nothing_below_it() {
        assert!(["space:get", "space:apply", "space:scan"].iter().all(|event| events().matches(event)));
        assert!(!["space:get:all", "spaces:get"].iter().any(|event| events().matches(event)));
    }

    #[test]
    fn keys_and_values_travel_as_bytes() {
        let apply = Apply {
            checks: vec![Check { key: Bytes::from_static(b"\xff\0"), version: 3 }],
            changes: vec![
                Change { key: Bytes::from_static(b"k"), value: Some(Bytes::from_static(&[0; 3])) },
                Change { key: Bytes::from_static(b"gone"), value: None },
            ],
        };
        let wire = crate::encode(&apply).unwrap();
        assert_eq!(crate::decode::<Apply>(&wire).unwrap(), apply);
        assert!(wire.windows(5).any(|part| part == [0xc4, 3, 0, 0, 0]), "a value is a bin: {wire:?}");
    }

    #[test]
    fn what_is_beyond_a_limit_is_refused_with_both_numbers() {
        let put = |key: usize, value: usize| Change {
            key: vec![b'k'; key].into(),
            value: Some(vec![0; value].into()),
        };
        let of = |changes| Apply { checks: Vec::new(), changes };
        for (apply, code, part) in [
            (of(vec![put(0, 1)]), Code::InvalidPayload, "empty"),
            (of(vec![put(1025, 1)]), Code::TooLarge, "1025, and the limit is 1024"),
            (of(vec![put(1, VALUE_BYTES_MAX + 1)]), Code::TooLarge, "1048577, and the limit is 1048576"),
            (of(vec![put(1, VALUE_BYTES_MAX); 4]), Code::TooLarge, "4194308, and the limit is 4194304"),
            (of(vec![put(1, 0); 4097]), Code::TooLarge, "4097, and the limit is 4096"),
        ] {
            let refusal = apply.check_limits().unwrap_err();
            assert_eq!(refusal.code, code);
            assert!(refusal.message.contains(part), "{}", refusal.message);
        }
        let largest = of(vec![put(KEY_BYTES_MAX, VALUE_BYTES_MAX); 3]);
        assert_eq!(largest.check_limits(), Ok(()));
    }

    #[test]
    fn a_conflict_tells_which_check_failed() {
        let conflict = Conflict { check: 1, version: 9 };
        let refusal = conflict.refusal(0);
        assert_eq!(refusal.message, "the state has changed: expected no value, found version 9");
        assert_eq!(Conflict::of(&refusal), Some(conflict));
        assert_eq!(Conflict::of(&Refusal::new(Code::Conflict, "another")), None);
    }

    #[test]
    fn an_empty_question_scans_everything() {
        assert_eq!(crate::decode::<Scan>(&crate::empty()).unwrap(), Scan::default());
    }
}
