//! Descriptors: what a plugin says of itself.
//!
//! A descriptor says *what* a plugin's events are; the manifest `events.toml`
//! says *policy* (placement, permissions, timeouts). `system:discover` merges
//! the two.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, SeqAccess, Visitor},
};
use serde_json::Value;

use crate::{
    frame::Stage,
    limits::{DESCRIPTOR_LIST_MAX, DESCRIPTOR_REQUESTS_MAX},
    name::EventName,
    pattern::Pattern,
};

/// All that a plugin declares. Travels as MessagePack from library to host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Name of the plugin, its default namespace.
    pub name: String,
    /// Version of the plugin.
    pub version: String,
    /// What it does, one sentence.
    pub about: String,
    /// Requests that it answers.
    #[serde(default, deserialize_with = "bounded::<DESCRIPTOR_REQUESTS_MAX, _, _>")]
    pub requests: Vec<RequestSpec>,
    /// Facts that it emits.
    #[serde(default, deserialize_with = "bounded::<DESCRIPTOR_LIST_MAX, _, _>")]
    pub emits: Vec<FactSpec>,
    /// Events that it asks for, besides what it keeps itself. It may ask for
    /// nothing else, and for these as far as the manifest's `may_call` goes.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "bounded::<DESCRIPTOR_LIST_MAX, _, _>"
    )]
    pub calls: Vec<Pattern>,
    /// Events that it listens to.
    #[serde(default, deserialize_with = "bounded::<DESCRIPTOR_LIST_MAX, _, _>")]
    pub listens: Vec<Pattern>,
    /// Events before or after which it wants a word.
    #[serde(default, deserialize_with = "bounded::<DESCRIPTOR_LIST_MAX, _, _>")]
    pub intercepts: Vec<InterceptSpec>,
    /// Version of the state that it keeps, for migrations.
    #[serde(default)]
    pub state_version: u32,
    /// Whether the plugin needs a process of its own (sockets, a runtime, a
    /// native library that may abort).
    #[serde(default)]
    pub child_only: bool,
    /// Whether it keeps work: requests for durable events and durable facts are
    /// handed to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keeps_work: bool,
}

/// A list of at most `MAX` entries. What is longer is not even read to its end: a
/// descriptor comes from a process that may be anybody's.
fn bounded<'de, const MAX: usize, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    struct Bounded<T, const MAX: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Bounded<T, MAX> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MAX} entries")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
            let mut list = Vec::new();
            while let Some(entry) = entries.next_element()? {
                if list.len() == MAX {
                    return Err(de::Error::custom(format!(
                        "a list of a descriptor has at most {MAX} entries"
                    )));
                }
                list.push(entry);
            }
            Ok(list)
        }
    }

    deserializer.deserialize_seq(Bounded::<T, MAX>(PhantomData))
}

/// A request that a plugin answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RequestSpec {
    /// Its name.
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub event: EventName,
    /// What it does: the doc comment of the request's type.
    pub about: String,
    /// JSON schema of the payload.
    pub request: Value,
    /// JSON schema of the answer.
    pub reply: Value,
    /// JSON schema of a chunk, where the answer is streamed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk: Option<Value>,
}

/// A fact that a plugin emits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FactSpec {
    /// Its name.
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub event: EventName,
    /// What it says.
    pub about: String,
    /// JSON schema of the payload.
    pub schema: Value,
}

/// A stage at which a plugin wants a word.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InterceptSpec {
    /// Which events.
    pub pattern: Pattern,
    /// Before or after.
    pub stage: Stage,
    /// Lower goes first.
    #[serde(default)]
    pub order: i32,
    /// Whether the event goes on when the interceptor is dead or silent.
    #[serde(default)]
    pub fail_open: bool,
}
