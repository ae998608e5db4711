//! Integration tests: a real daemon, real plugins, real sockets.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

mod lifecycle;
mod restart;
mod signing;
mod skipped;
mod canary;
mod audit;
mod durable;
mod kills;
mod wire;
mod limits;
mod configuration;
mod faults;
mod supervision;
mod conformance;
mod plugins;
mod identity;
mod interception;
mod completions;
mod model;
mod providers;
mod cli;
mod monitor;
mod readme;
