//! The KSI daemon: what the kernel may not know. Files, sockets, processes,
//! signals and clocks.
//!
//! [`server`] puts the parts together in the order of their start, and takes
//! them apart in the order of the stop. [`hub`] is the middle: the kernel, and
//! the way from its decisions to whoever is meant.

mod complaints;
pub mod config;
pub mod takeover;
pub mod identity;
pub mod instance;
pub mod lanes;
pub mod orders;
pub mod log;
pub mod notify;
pub mod redaction;
pub mod secrets;
pub mod wire;
pub mod woken;
mod jitter;
pub mod own;
pub mod hub;
pub mod session;
pub mod plugin;
pub mod system;
pub mod trail;
pub mod trust;
mod memory;
pub mod server;
