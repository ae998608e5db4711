//! The audit trail: what was allowed and what was denied, by whom, of what.
//! Payloads of `audit:*`.
//!
//! A record says who asked which event, what that takes and whether it was
//! given, with the size and the digest of what came along; never the payload.

use serde::{Deserialize, Serialize};

/// One record of the trail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// Somebody was let do something, or not.
    Decision(Decision),
    /// The same was denied again, or told again by a plugin, so often that it was
    /// counted.
    Repeated(Repeated),
    /// Decisions that found no room to be written down, by their exact number.
    Lost(Lost),
    /// The oldest records were let go by the rules of retention.
    Retired(Retired),
}

/// Somebody was let do something, or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Decision {
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// In whose name.
    pub principal: String,
    /// The tenant of that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Who sent it: `session:7`, `plugin:agent`.
    pub origin: String,
    /// On whose behalf, where that is another: who asked in the first place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behalf: Option<String>,
    /// What was asked or told.
    pub event: String,
    /// Whether it was told and not asked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub emitted: bool,
    /// What it takes: a permission; `may_call` or `emits` of a plugin that lacks
    /// that.
    pub permission: String,
    /// Whether it was allowed.
    pub allowed: bool,
    /// What ties it to its cause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// SHA-256 of the payload, hexadecimal.
    pub sha256: String,
    /// Size of the payload, bytes.
    pub size: u64,
}

/// The same was denied again, or told again by a plugin: the first of an event and
/// a principal are written down one by one, those that follow soon are counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Repeated {
    /// When the first of these was decided, milliseconds since 1970 ...
    pub at_ms: u64,
    /// ... and the last.
    pub until_ms: u64,
    /// In whose name.
    pub principal: String,
    /// The tenant of that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// What was asked or told.
    pub event: String,
    /// What it takes.
    pub permission: String,
    /// How often it was allowed, besides those that are written down ...
    #[serde(default, skip_serializing_if = "is_zero")]
    pub allowed: u64,
    /// ... or denied.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub denied: u64,
}

/// One of the two counts is always zero.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Decisions that found no room to be written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Lost {
    /// When the first of them was taken, milliseconds since 1970.
    pub at_ms: u64,
    /// How many were allowed.
    pub allowed: u64,
    /// How many were denied.
    pub denied: u64,
}

/// Records that were let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Retired {
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// All records before this one may be gone.
    pub before_seq: u64,
}

impl Record {
    /// When it happened, milliseconds since 1970.
    #[must_use]
    pub fn at_ms(&self) -> u64 {
        match self {
            Self::Decision(decision) => decision.at_ms,
            Self::Repeated(repeated) => repeated.at_ms,
            Self::Lost(lost) => lost.at_ms,
            Self::Retired(retired) => retired.at_ms,
        }
    }

    /// The record as the trail keeps it: one line of JSON.
    #[must_use]
    pub fn line(&self) -> String {
        serde_json::to_string(self).expect("texts and numbers have a form in JSON")
    }
}

/// Write records down. Only the daemon may ask; answered with [`Appended`] when
/// they are on the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Append {
    /// Each as [`Record::line`] gives it, in the order in which they were taken. They are kept as they
    /// are, so that those who write many need not have them read and written once more.
    pub records: Vec<String>,
}

/// The answer to `audit:append`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Appended {
    /// Position of the last record.
    pub last_seq: u64,
}

/// Read the audit trail, oldest first, a page at a time: who was let do what,
/// and who was not. Answered with [`Page`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// Nothing older, milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
    /// Nothing newer, milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<u64>,
    /// Only of this principal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// Only events that match this pattern.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// Only what was allowed, or only what was denied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed: Option<bool>,
    /// Only records after this position: `next` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_seq: Option<u64>,
    /// At most so many, 1 to 1000; 100 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// The answer to `audit:query`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Page {
    /// What was found, oldest first.
    pub records: Vec<Entry>,
    /// Where the next page goes on; absent where there is nothing more now. A
    /// page may be empty and have a next one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// A record with its position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Entry {
    /// Its position.
    pub seq: u64,
    /// What it says.
    pub record: Record,
}

/// The answer to `audit:verify`, which is asked with `{}`: a walk along the
/// whole chain and all heads, from the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Verified {
    /// Whether nothing is wrong.
    pub ok: bool,
    /// Records that were read.
    pub records: u64,
    /// The first record; 0 where there is none.
    pub first_seq: u64,
    /// The last record; 0 where there is none.
    pub last_seq: u64,
    /// Signed heads that were checked.
    pub heads: u64,
    /// The last record that a head covers; 0 where there is none.
    pub signed_seq: u64,
    /// The chain's value after the last record.
    pub chain: String,
    /// The key that heads are signed with.
    pub public_key: String,
    /// All that is wrong, the first record first.
    #[serde(default)]
    pub problems: Vec<Problem>,
}

/// Something that is wrong with the trail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Problem {
    /// The record, or the last one that a head covers, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// A sentence.
    pub what: String,
}

/// Write the whole audit trail to a file that can be checked without the
/// daemon. Answered with [`Exported`].
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

/// The answer to `audit:export`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Exported {
    /// The file, which its owner alone may read.
    pub path: String,
    /// Records in it.
    pub records: u64,
    /// The first of them; 0 where there is none.
    pub first_seq: u64,
    /// The last of them; 0 where there is none.
    pub last_seq: u64,
    /// Its size.
    pub bytes: u64,
    /// The key that its heads are signed with.
    pub public_key: String,
}
