//! One piece of work: what is known of it, in memory and in the keyspace.
//!
//! The same type lives in both, so that what is read back is what was there.
//! It is stored as MessagePack with names of one letter, since it is written
//! again at every transition; what was asked and what was answered stand under
//! keys of their own and are not.

use std::rc::Rc;

use ksi_sdk::protocol::{
    Bytes, EventName, Refusal,
    work::{Policy, WorkInfo, WorkState},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    digest::{self, Digest},
    id::Id,
};
use crate::record::{Seq, keys};

/// Where an entry stands. [`WorkState`] is what is said of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Waits for its turn.
    #[serde(rename = "a")]
    Accepted,
    /// Ran when a daemon died, and waits for its turn alone.
    #[serde(rename = "s")]
    Suspect,
    /// An attempt is under way.
    #[serde(rename = "l")]
    Leased {
        /// Start of the daemon that runs it.
        #[serde(rename = "e")]
        epoch: u64,
        /// When it is given up without a word from its handler.
        #[serde(rename = "u")]
        until_ms: u64,
        /// Whether it runs alone of all suspects: if the daemon dies now, this
        /// is whom to blame.
        #[serde(rename = "s")]
        suspect: bool,
    },
    /// The next attempt is due then.
    #[serde(rename = "w")]
    Waiting {
        /// Milliseconds since 1970.
        #[serde(rename = "u")]
        until_ms: u64,
    },
    /// It is over.
    #[serde(rename = "z")]
    Ended {
        /// How.
        #[serde(rename = "h")]
        how: Ending,
        /// When, milliseconds since 1970.
        #[serde(rename = "t")]
        at_ms: u64,
    },
}

/// How work ends. The meanings are those of [`WorkState`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Ending {
    #[serde(rename = "o")]
    Done,
    #[serde(rename = "f")]
    Failed,
    #[serde(rename = "e")]
    Expired,
    #[serde(rename = "c")]
    Cancelled,
    #[serde(rename = "d")]
    Dead,
    #[serde(rename = "u")]
    Unknown,
}

impl Ending {
    /// As it is said to the world.
    #[must_use]
    pub fn state(self) -> WorkState {
        match self {
            Self::Done => WorkState::Done,
            Self::Failed => WorkState::Failed,
            Self::Expired => WorkState::Expired,
            Self::Cancelled => WorkState::Cancelled,
            Self::Dead => WorkState::Dead,
            Self::Unknown => WorkState::Unknown,
        }
    }

    /// Whether what was asked is still needed: an operator may have it done
    /// again.
    #[must_use]
    pub fn keeps_payload(self) -> bool {
        !matches!(self, Self::Done | Self::Cancelled)
    }
}

/// An idempotency key, and what was asked under it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// The asker's text.
    #[serde(rename = "k")]
    pub text: String,
    /// What the payload is known by.
    #[serde(rename = "h", with = "serde_bytes")]
    pub payload: Digest,
}

impl Key {
    /// The key for this payload.
    #[must_use]
    pub fn new(text: &str, payload: &[u8]) -> Self {
        Self { text: text.to_owned(), payload: digest::of_meaning(payload) }
    }

    /// What the key is found by: it belongs to the event and the tenant.
    #[must_use]
    pub fn hash(&self, event: &EventName, tenant: Option<&str>) -> KeyHash {
        let mut hasher = Sha256::new();
        hasher.update(event.as_str());
        // No event has a zero or one in its name, and a tenant is preceded by its
        // length, so no two of these are one text.
        hasher.update([u8::from(tenant.is_some())]);
        if let Some(tenant) = tenant {
            hasher.update(tenant.len().to_le_bytes());
            hasher.update(tenant);
        }
        hasher.update(&self.text);
        KeyHash(head(hasher.finalize().as_slice()))
    }
}

/// An event with an idempotency key, shortened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash([u8; 16]);

impl KeyHash {
    /// Key of what is remembered of it.
    #[must_use]
    pub fn table_key(self) -> Bytes {
        let mut key = [keys::KEY; 17];
        key[1..].copy_from_slice(&self.0);
        Bytes::copy_from_slice(&key)
    }
}

pub(super) fn head(digest: &[u8]) -> Digest {
    digest[..16].try_into().expect("a SHA-256 has 32 bytes")
}

/// What is remembered of an idempotency key after its work ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Whose it was.
    #[serde(rename = "i")]
    pub id: Id,
    /// Its position in the journal.
    #[serde(rename = "n")]
    pub seq: Seq,
    /// What the payload is known by.
    #[serde(rename = "h", with = "serde_bytes")]
    pub payload: Digest,
    /// From when on it is forgotten, milliseconds since 1970.
    #[serde(rename = "x")]
    pub until_ms: u64,
}

impl Remembered {
    /// Reads what is stored.
    ///
    /// # Errors
    ///
    /// What does not fit, where another release wrote it.
    pub fn decode(bytes: &[u8]) -> Result<Self, Refusal> {
        ksi_sdk::protocol::decode(bytes)
    }
}

/// What went wrong with an entry so far; most have none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Trouble {
    /// When its handler crashed over it, milliseconds since 1970; only what
    /// still counts.
    #[serde(rename = "x", default, skip_serializing_if = "Vec::is_empty")]
    pub crashes: Vec<u64>,
    /// Whether a daemon or its handler's plugin has died while it ran beside others: the next time it is
    /// looked at more closely.
    #[serde(rename = "d", default, skip_serializing_if = "std::ops::Not::not")]
    pub seen_death: bool,
    /// Why the last attempt failed, or why it ended.
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
}

/// One piece of work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// What was asked; shared by all entries of one event.
    #[serde(rename = "e")]
    pub event: EventName,
    /// Position of its acceptance in the journal.
    #[serde(rename = "n")]
    pub seq: Seq,
    /// When it was accepted, milliseconds since 1970.
    #[serde(rename = "a")]
    pub accepted_ms: u64,
    /// From when on it is not begun any more.
    #[serde(rename = "x")]
    pub expires_ms: u64,
    /// How it is carried out; shared by entries with the same.
    #[serde(rename = "p", with = "terms")]
    pub policy: Rc<Policy>,
    /// Who asked.
    #[serde(rename = "o")]
    pub origin: Box<str>,
    /// In whose name. Work of releases without principals has none.
    #[serde(rename = "i", default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<Box<str>>,
    /// Whose it is.
    #[serde(rename = "g", default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Box<str>>,
    /// What it belongs to.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<Box<str>>,
    /// Its idempotency key.
    #[serde(rename = "k", default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Box<Key>>,
    /// Where it stands.
    #[serde(rename = "s")]
    pub state: State,
    /// Attempts that were begun and count.
    #[serde(rename = "t")]
    pub attempts: u32,
    /// How many may.
    #[serde(rename = "m")]
    pub attempts_max: u32,
    /// Leases so far, whether they counted or not: the number of the current
    /// one, by which an answer to an older one is known.
    #[serde(rename = "l")]
    pub leases: u32,
    /// Size of what was asked, while it is kept.
    #[serde(rename = "b")]
    pub payload_bytes: u32,
    /// Size of the result, while it is kept.
    #[serde(rename = "r")]
    pub result_bytes: u32,
    /// What went wrong so far.
    #[serde(rename = "w", default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Box<Trouble>>,
    /// Where the entry stands among what is due; of this start only.
    #[serde(skip)]
    pub(super) due_ms: u64,
    /// The queue of its event; of this start only.
    #[serde(skip)]
    pub(super) lane: usize,
}

impl Entry {
    /// The bytes that are stored.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        // Texts, numbers and a refusal, whose details came out of a payload.
        ksi_sdk::protocol::encode(self).expect("an entry has nothing that MessagePack lacks")
    }

    /// Reads what is stored.
    ///
    /// # Errors
    ///
    /// What does not fit, where another release wrote it.
    pub fn decode(bytes: &[u8]) -> Result<Self, Refusal> {
        ksi_sdk::protocol::decode(bytes)
    }

    /// What is said of it, without its result.
    #[must_use]
    pub fn info(&self, id: Id) -> WorkInfo {
        let (state, until_ms, ended_ms) = match self.state {
            State::Accepted | State::Suspect => (WorkState::Accepted, None, None),
            State::Leased { until_ms, .. } => (WorkState::Leased, Some(until_ms), None),
            State::Waiting { until_ms } => (WorkState::Waiting, Some(until_ms), None),
            State::Ended { how, at_ms } => (how.state(), None, Some(at_ms)),
        };
        let trouble = self.trouble.as_deref();
        WorkInfo {
            request_id: id.to_string(),
            seq: self.seq,
            event: self.event.clone(),
            state,
            attempts: self.attempts,
            crashes: u32::try_from(self.crashes()).unwrap_or(u32::MAX),
            origin: self.origin.to_string(),
            principal: self.principal.as_deref().map(str::to_owned),
            tenant: self.tenant.as_deref().map(str::to_owned),
            correlation_id: self.correlation_id.as_deref().map(str::to_owned),
            idempotency_key: self.key.as_ref().map(|key| key.text.clone()),
            accepted_ms: self.accepted_ms,
            expires_ms: ended_ms.is_none().then_some(self.expires_ms),
            until_ms,
            ended_ms,
            result: None,
            refusal: trouble.and_then(|trouble| trouble.refusal.clone()),
        }
    }

    /// Whose share it is counted in. Work of releases without principals is in one of
    /// its own.
    pub(super) fn payer(&self) -> &str {
        self.principal.as_deref().unwrap_or_default()
    }

    /// What its idempotency key is found by.
    pub(super) fn key_hash(&self, key: &Key) -> KeyHash {
        key.hash(&self.event, self.tenant.as_deref())
    }

    pub(super) fn trouble(&mut self) -> &mut Trouble {
        self.trouble.get_or_insert_default()
    }

    pub(super) fn crashes(&self) -> usize {
        self.trouble.as_ref().map_or(0, |trouble| trouble.crashes.len())
    }
}

/// A policy as a list: its names would be half of every entry.
mod terms {
    use std::rc::Rc;

    use ksi_sdk::protocol::work::Policy;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    type Terms = (u32, u64, u64, u64, u64, u64, bool);

    pub(super) fn serialize<S: Serializer>(policy: &Policy, serializer: S) -> Result<S::Ok, S::Error> {
        let &Policy { attempts, backoff_min_ms, backoff_max_ms, timeout_ms, expires_ms, keep_ms, repeat } =
            policy;
        let terms: Terms =
            (attempts, backoff_min_ms, backoff_max_ms, timeout_ms, expires_ms, keep_ms, repeat);
        terms.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Rc<Policy>, D::Error> {
        let (attempts, backoff_min_ms, backoff_max_ms, timeout_ms, expires_ms, keep_ms, repeat) =
            Terms::deserialize(deserializer)?;
        Ok(Rc::new(Policy {
            attempts,
            backoff_min_ms,
            backoff_max_ms,
            timeout_ms,
            expires_ms,
            keep_ms,
            repeat,
        }))
    }
}
