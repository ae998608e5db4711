//! The store: the keyspace as of the last checkpoint, on disk.
//!
//! Behind two traits, so that nothing else knows which database it is: a
//! [`Store`] is one keyspace, a [`Shelf`] the place where stores stand by
//! name and take each other's place. It knows nothing of the journal, and it
//! is not the truth: whatever is wrong with it, it is thrown away and
//! rebuilt from an export and the journal. So it may refuse anything, but it
//! may never be silently wrong.
//!
//! # Invariants
//!
//! - `apply` is atomic: all changes of a call are found after a crash, or none.
//! - What was applied before `checkpoint` was called is durable once it has
//!   returned.
//! - Nothing is returned that was not written: damage is an error.
//!
//! # Failure
//!
//! An error of `apply` or `checkpoint` leaves the store in an unknown state:
//! it is to be opened again, or rebuilt.

pub mod export;
pub mod memory;
mod sled;
#[cfg(test)]
pub mod simulated;
#[cfg(test)]
mod conformance;

use std::{io, path::PathBuf};

use ksi_sdk::protocol::{Bytes, Code, Refusal, limits::NAME_BYTES_MAX, space::KEY_BYTES_MAX};

pub use self::sled::SledShelf;
use crate::record::Change;

/// Bytes that one key may have: what a key of a plugin may, and what stands before that, its table, the name of the
/// plugin and a NUL. Sled keeps many keys in a page, and a page that is too large would become a file that sled
/// never syncs.
pub const KEY_MAX: usize = 1 + NAME_BYTES_MAX + 1 + KEY_BYTES_MAX;

/// Keys that are read at once of what takes long, and bytes of them: who reads meanwhile waits that long.
pub const PAGE: usize = 512;
/// See [`PAGE`].
pub const PAGE_BYTES: usize = 1 << 20;

/// One keyspace.
pub trait Store: Send {
    /// Changes keys, all or none of them. Not durable yet. Where a key is there twice, the last counts.
    ///
    /// # Errors
    ///
    /// What the disk said, or that the store is damaged.
    fn apply(&mut self, changes: &[Change]) -> Result<(), StoreError>;

    /// The value of a key.
    ///
    /// # Errors
    ///
    /// As [`Store::apply`].
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// Keys from `from` on, before `until`, in order. Ends after `limit` keys, or where `bytes` are reached, but not
    /// before the first.
    ///
    /// # Errors
    ///
    /// As [`Store::apply`].
    fn range(
        &self,
        from: &[u8],
        until: Option<&[u8]>,
        limit: usize,
        bytes: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError>;

    /// Makes everything durable that was applied.
    ///
    /// # Errors
    ///
    /// As [`Store::apply`]; nothing may be taken for durable then.
    fn checkpoint(&mut self) -> Result<(), StoreError>;

    /// Reads everything and compares it with what was written. `between` is called after each page, to serve who
    /// reads meanwhile.
    ///
    /// # Errors
    ///
    /// `Damaged` with what is wrong.
    fn verify(&self, between: &mut dyn FnMut(&dyn Store)) -> Result<Stat, StoreError>;

    /// How large it is.
    ///
    /// # Errors
    ///
    /// What the disk said.
    fn stat(&self) -> Result<Stat, StoreError>;

    /// Checkpoints and closes, so that the next opening need not look for damage of a crash.
    ///
    /// # Errors
    ///
    /// As [`Store::checkpoint`].
    fn close(self: Box<Self>) -> Result<(), StoreError>;
}

/// A place where stores stand by name.
pub trait Shelf: Send {
    /// Whether a store of this name is there.
    ///
    /// # Errors
    ///
    /// What the disk said; so everywhere here.
    fn has(&self, name: &str) -> Result<bool, StoreError>;

    /// Opens a store, or makes an empty one.
    fn open(&mut self, name: &str) -> Result<Shelved, StoreError>;

    /// Gives a store another name, durably. The new name must be free.
    fn rename(&mut self, from: &str, to: &str) -> Result<(), StoreError>;

    /// Deletes a store, if it is there.
    fn remove(&mut self, name: &str) -> Result<(), StoreError>;

    /// Moves a store that cannot be used out of the way, and says where to.
    fn put_aside(&mut self, name: &str) -> Result<Option<PathBuf>, StoreError>;
}

/// A store that was opened, and what that took.
pub struct Shelved {
    /// The store.
    pub store: Box<dyn Store>,
    /// Repairs, a sentence each.
    pub repairs: Vec<String>,
    /// Whether its content was compared with what was written. Where not, it was closed in order and is
    /// large: whoever has time should call [`Store::verify`].
    pub verified: bool,
}

/// How large a store is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stat {
    /// Keys.
    pub keys: u64,
    /// Bytes of keys and values.
    pub live_bytes: u64,
    /// Bytes on the disk.
    pub disk_bytes: u64,
}

/// Why a store cannot do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system refused.
    #[error("cannot {doing} the store: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// What is there is not what was written.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// A key is longer than [`KEY_MAX`].
    #[error("a key of {0} bytes is too long, the limit is {KEY_MAX}")]
    KeyTooLong(usize),
    /// A file is not an export, or a damaged one.
    #[error("{0} is not a whole export: {1}")]
    NotAnExport(String, &'static str),
}

impl StoreError {
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }

    /// The refusal that a client gets, with what to do next.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        let (code, hint) = match self {
            Self::Io { .. } => {
                (Code::Unavailable, "look at the disk; nothing is lost, the journal has it all")
            }
            Self::Damaged(_) => {
                (Code::Unavailable, "it is rebuilt from the last export and the journal at the next start")
            }
            Self::KeyTooLong(_) => (Code::TooLarge, "choose a shorter key"),
            Self::NotAnExport(..) => {
                (Code::InvalidPayload, "nothing was changed; give a file that `ksi checkpoint export` wrote")
            }
        };
        Refusal::new(code, self.to_string()).hint(hint)
    }
}
