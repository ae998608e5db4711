//! `checkpoint:*`: what is asked of the plugin that keeps the journal and the
//! store, and what it answers.
//!
//! Sizes are bytes, times milliseconds since 1970, positions those of the
//! journal, from 1 on. What is durable work is in [`crate::work`].

use serde::{Deserialize, Serialize};

/// Write all that is kept into the store, and a copy of it to a file that
/// `checkpoint:restore` takes. Answered with a [`Checkpoint`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Create {
    /// A word of the asker's own, shown in the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// One checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Checkpoint {
    /// Its name.
    pub id: String,
    /// The file.
    pub path: String,
    /// The position that it covers: all records up to this one are in it.
    pub seq: u64,
    /// Size of the file.
    pub bytes: u64,
    /// Keys in it, where they are known without reading it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<u64>,
    /// When it was made.
    pub at_ms: u64,
    /// What its maker called it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// The answer to `checkpoint:list`, which is asked with `{}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Checkpoints {
    /// The newest first.
    pub checkpoints: Vec<Checkpoint>,
    /// What the journal holds.
    pub journal: Journal,
    /// What the store holds.
    pub store: Store,
}

/// What the journal holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Journal {
    /// Its files.
    pub segments: u64,
    /// Their size.
    pub bytes: u64,
    /// The oldest record that is still there; 0 where none is.
    pub first_seq: u64,
    /// The newest one; 0 where none is.
    pub last_seq: u64,
}

/// What the store holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Store {
    /// Keys in it.
    pub keys: u64,
    /// Its size on the disk.
    pub bytes: u64,
}

/// Put a checkpoint in the place of all that is kept. Exactly one of the two
/// names it. Answered with [`Restored`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Restore {
    /// One of the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// An exported file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// The answer to `checkpoint:restore`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Restored {
    /// The position at which the restored state is written down.
    pub seq: u64,
    /// Keys that are there now.
    pub keys: u64,
    /// Keys that were there before.
    pub replaced: u64,
}

/// The answer to `checkpoint:verify`, which is asked with `{}`: a walk along
/// the chain of the whole journal, from the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Verified {
    /// Records that were read.
    pub records: u64,
    /// Files that were read.
    pub segments: u64,
    /// Their size.
    pub bytes: u64,
    /// The first record; 0 where there is none.
    pub first_seq: u64,
    /// The last record; 0 where there is none.
    pub last_seq: u64,
    /// Whether nothing is wrong.
    pub ok: bool,
    /// All that is wrong.
    #[serde(default)]
    pub problems: Vec<Problem>,
}

/// Damage in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Problem {
    /// The file.
    pub segment: String,
    /// The record, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// A sentence.
    pub what: String,
}

/// The answer to `checkpoint:consumers`, which is asked with `{}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Consumers {
    /// All of them, at most 10,000, by their names.
    pub consumers: Vec<Consumer>,
}

/// Somebody whose position among durable facts is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Consumer {
    /// Its name.
    pub consumer: String,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The position up to which it has dealt with every fact.
    pub seq: u64,
    /// When it was last there, milliseconds since 1970, give or take an hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_ms: Option<u64>,
    /// Who made it, and is charged for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// Whether somebody follows under its name now.
    pub followed: bool,
}

/// Forget a consumer, with the position that is kept for it. Who follows under its
/// name is refused `not_found`. Answered with the [`Consumer`] as it was.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Forget {
    /// Its name.
    pub consumer: String,
    /// Whose it is; one's own tenant's where absent. Only who sees every tenant finds
    /// those of others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
}

/// Write all that is kept to a file in the format that does not depend on the
/// store. Answered with [`Exported`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// What to call the file, which lies in a directory of the plugin's own: 1 to
    /// 128 letters, digits, `.`, `_` and `-`, no sign first; after the time where
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// The answer to `checkpoint:export`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Exported {
    /// The file, which its owner alone may read.
    pub path: String,
    /// Keys in it.
    pub keys: u64,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of the file, hexadecimal.
    pub sha256: String,
}
