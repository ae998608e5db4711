//! What can be checked without trusting whoever wrote it: lock files that say
//! which bytes may be loaded, the audit trail, the signatures under both, and
//! the digests of files.
//!
//! Everything here verifies and nothing signs: no secret key comes near this
//! crate. Keys and signatures are those of minisign, so that its tool reads and
//! makes them as well.

pub mod audit;
mod digest;
mod key;
mod lock;

pub use digest::{Digest, Digests, NotADigest, is_guarded};
pub use key::{Key, NotAKey, Unverified};
pub use lock::{Entry, Kind, Lock, LockError, Mistrust, Unusable, signature_path};
