//! Integration tests: a real daemon, real plugins, real sockets.

mod lifecycle;
mod wire;
mod limits;
mod configuration;
mod faults;
mod conformance;
mod plugins;
mod interception;
mod model;
mod cli;
