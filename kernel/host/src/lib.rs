//! Loads one plugin library and drives its instances.
//!
//! A library is checked before a line of it runs ([`image`]), then loaded for
//! good ([`library`]), and driven through messages that are the frames of the
//! wire ([`instance`]). The daemon does so in its own process for trusted
//! plugins; the binary `ksi-plugin-host` does so in a child, after it has put
//! itself into a sandbox ([`sandbox`]) and speaks the same frames over a
//! socket ([`child`]). What only the start needed is given back ([`memory`]), and
//! what a child has used, its parent asks ([`usage`]). What another program has
//! left open for this one is taken up by its number ([`descriptor`]).
//!
//! # Invariants
//!
//! - A library is never unloaded: there is no sound way to unload Rust code
//!   whose thread-locals may be alive.
//! - A poisoned instance is never called again, and leaked rather than
//!   destroyed.

pub mod image;
pub mod library;
pub mod instance;
pub mod sandbox;
pub mod child;
pub mod descriptor;
pub mod memory;
pub mod usage;

pub use image::Image;
pub use instance::{Fault, Host, Instance, Output};
pub use library::Library;
