//! Who speaks, and what it may: principals, permissions and capabilities.
//!
//! A *permission* is a name such as `completion.use`; each event takes one. A
//! *capability* is a pattern over such names, `completion.*` or `*.read`, and
//! what roles and tokens are made of. A *principal* is somebody who holds some:
//! a user, a token. The [`Directory`] turns capabilities into one bit for each
//! permission, so that the kernel, which asks about every event, looks at a bit
//! and at nothing else. A plugin has no permissions; its [`Authority`] is what
//! the manifest grants it and it has asked for, in patterns over events.
//!
//! Pure: where principals come from (a user's number, a token, a file) is the
//! daemon's matter.
//!
//! # Invariants
//!
//! - Whoever holds what somebody else gave it holds no more than its giver does,
//!   at any time: what the giver loses, it loses.
//! - What is taken away is gone before the call that takes it returns.
//! - No principal ever holds [`Permission::PLUGINS`], or a permission that there
//!   is no bit for.

#![forbid(unsafe_code)]

mod authority;
mod caller;
mod capability;
mod directory;
mod principal;

pub use authority::{Authority, Right, Rights};
pub use caller::{Caller, Decision, Witness};
pub use capability::{Capability, InvalidCapability, is_permission};
pub use directory::{Directory, Member};
pub use principal::{PERMISSIONS_MAX, Permission, Principal, is_tenant};
