//! How providers of completions are reached over HTTP.
//!
//! What all such plugins share: where the server is and what it may take
//! ([`server`]), asking it and reading what it streams ([`client`], [`sse`]),
//! what its errors mean ([`problem`]), passing the answer on while it comes
//! ([`output`]), and the thread on which all of that happens ([`worker`]). It
//! knows no provider's words, and retries nothing. A provider that is no server
//! takes the last two alone.
//!
//! # Invariants
//!
//! - A key goes to the one host that is configured, over TLS or to this machine
//!   unless the operator says otherwise; no redirect is followed.
//! - Everything that a server can send has a limit in size and time.
//! - Dropping the future of a request closes its connection.

pub mod server;
pub mod client;
pub mod sse;
pub mod problem;
pub mod known;
pub mod output;
pub mod worker;
mod retry_after;
pub mod testing;

pub use client::{Answered, Client, Events};
pub use output::{End, Output};
pub use server::{Limits, Server, Timeouts};
pub use worker::{Attempt, Worker};
