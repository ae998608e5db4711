//! Payloads of the `state:*` events that have to do with values, as they
//! travel; those of queues stand in [`queue`].
//!
//! The doc comments are what users read in `ksi describe`. Numbers are wide
//! here and checked where they are used, so that one out of range is refused
//! with the path of its field.

use ksi_sdk::{
    prelude::{Deserialize, JsonSchema, Serialize, schemars},
    protocol::Payload,
};

use crate::value::Metadata;

pub mod queue;

/// The namespace of a request that names none.
pub(crate) fn global() -> String {
    "global".into()
}

/// Keep a value under a key. It is safe when this is answered. With
/// `expected_version` it is only kept if nobody changed the key meanwhile.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Set {
    /// The namespace of the key.
    #[serde(default = "global")]
    #[schemars(length(min = 1, max = 128))]
    pub namespace: String,
    /// The key: any text, at most 512 bytes.
    #[schemars(length(min = 1, max = 512))]
    pub key: String,
    /// The value: anything, `null` too; at most 1,024,000 bytes and 48 levels deep.
    pub value: Payload,
    /// The version that the key must still have; 0: it must not exist. Otherwise `conflict`, with the version that it has.
    pub expected_version: Option<u64>,
    /// The value is gone after this time. Without it the value stays, also where the one before had such a time.
    #[schemars(range(min = 1, max = 315_360_000))]
    pub ttl_seconds: Option<i64>,
    /// What is kept beside the value, in place of what was there.
    #[serde(default)]
    pub metadata: Metadata,
}

/// The value is kept.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct SetAnswer {
    /// Its version: larger than that of every change before.
    pub version: u64,
    /// When it will be gone, milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<u64>,
}

/// Read a value.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Get {
    /// The namespace of the key.
    #[serde(default = "global")]
    #[schemars(length(min = 1, max = 128))]
    pub namespace: String,
    /// The key.
    #[schemars(length(min = 1, max = 512))]
    pub key: String,
}

/// What is kept under a key.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct GetAnswer {
    /// Whether there is a value; `null` is one.
    pub found: bool,
    /// The value; `null` where there is none.
    pub value: Payload,
    /// The version of the value; 0 where there is none.
    pub version: u64,
    /// What was kept beside it.
    pub metadata: Metadata,
    /// When it will be gone, milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<u64>,
}

/// Remove a value.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Delete {
    /// The namespace of the key.
    #[serde(default = "global")]
    #[schemars(length(min = 1, max = 128))]
    pub namespace: String,
    /// The key.
    #[schemars(length(min = 1, max = 512))]
    pub key: String,
    /// The version that the key must still have. Otherwise `conflict`, with the version that it has.
    pub expected_version: Option<u64>,
}

/// The key has no value any more.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct DeleteAnswer {
    /// Whether it had one.
    pub deleted: bool,
}

/// List the keys of a namespace, in the order of their bytes, page by page.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct List {
    /// The namespace.
    #[serde(default = "global")]
    #[schemars(length(min = 1, max = 128))]
    pub namespace: String,
    /// Only keys that begin so.
    #[serde(default)]
    #[schemars(length(max = 512))]
    pub prefix: String,
    /// Only keys like this, where `*` is any text, `?` any one character, and `\` takes the next as it is.
    #[schemars(length(min = 1, max = 512))]
    pub pattern: Option<String>,
    /// Keys on one page; 100 if left out. A page may have fewer, or none, and still not be the last.
    #[schemars(range(min = 1, max = 1000))]
    pub limit: Option<i64>,
    /// Only keys after this one: `next` of the page before.
    #[schemars(length(max = 512))]
    pub after: Option<String>,
    /// Whether to read the values too.
    #[serde(default)]
    pub values: bool,
}

/// A page of keys.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
pub struct ListAnswer {
    /// The keys in their order.
    pub items: Vec<ListItem>,
    /// Where the next page begins, for `after`; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A key of a page.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ListItem {
    /// The key.
    pub key: String,
    /// The version of its value.
    pub version: u64,
    /// Bytes of value and metadata.
    pub size: u64,
    /// When it will be gone, milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<u64>,
    /// The value, where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Payload>,
    /// What was kept beside it, where the value was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Metadata>,
}

/// Make several changes together: all of them, or, where an expected version
/// is not there, none. Each key may be changed once.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// The changes; together at most 3 MiB.
    #[schemars(length(min = 1, max = 256))]
    pub operations: Vec<Operation>,
}

/// One change, or a condition of all of them: `{"set": {…}}`, `{"delete": {…}}` or `{"check": {…}}`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// As `state:set`.
    Set(Set),
    /// As `state:delete`.
    Delete(Delete),
    /// Nothing is done unless this key has this version.
    Check(Check),
}

/// A condition.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// The namespace of the key.
    #[serde(default = "global")]
    #[schemars(length(min = 1, max = 128))]
    pub namespace: String,
    /// The key.
    #[schemars(length(min = 1, max = 512))]
    pub key: String,
    /// The version that it must have; 0: it must not exist.
    pub version: u64,
}

/// All changes are made.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct BatchAnswer {
    /// The version of all values that were set; 0 where nothing changed.
    pub version: u64,
    /// How many of the deleted keys had a value.
    pub deleted: u64,
}

/// Follow a key, or all keys with a prefix: first the values that are there,
/// then `current`, then every change as it becomes safe. Goes on until it is
/// cancelled. Who reads slowly is told only the latest of each key, and where
/// too many have changed: `reset`, and all values anew.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// The namespace.
    #[serde(default = "global")]
    #[schemars(length(min = 1, max = 128))]
    pub namespace: String,
    /// The key to follow. Either this or `prefix`.
    #[schemars(length(min = 1, max = 512))]
    pub key: Option<String>,
    /// Follow all keys that begin so; empty: the whole namespace.
    #[schemars(length(max = 512))]
    pub prefix: Option<String>,
}

/// What a part of `state:watch` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WatchKind {
    /// The key has this value.
    Value,
    /// The key was deleted.
    Deleted,
    /// The key's time was over.
    Expired,
    /// All values that were there have been told; what follows are changes.
    Current,
    /// Too much was missed: forget the values; those that are there follow.
    Reset,
}

/// One part of `state:watch`.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct WatchPart {
    /// What it tells.
    pub kind: WatchKind,
    /// The key; absent with `current` and `reset`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The version of the change: larger than all before of this key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// The value, with `value`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Payload>,
    /// What was kept beside it, with `value`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Metadata>,
    /// When the value will be gone, milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<u64>,
}

/// The end of `state:watch`: the plugin stops. Ask again later.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct WatchEnd {
    /// Always `stopping`.
    pub reason: String,
}

/// A value was set, deleted, or its time was over. Says nothing of the value
/// itself but its size.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Changed {
    /// The namespace of the key.
    pub namespace: String,
    /// The key.
    pub key: String,
    /// The version of the change.
    pub version: u64,
    /// Whether the key has no value any more.
    pub deleted: bool,
    /// Bytes of value and metadata.
    pub size: u64,
}
