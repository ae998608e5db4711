//! The client against a scripted daemon: a real Unix socket, and full control
//! over what is sent on it and when.

#![expect(clippy::unwrap_used, reason = "a test stops where something unforeseen happens, its helpers too")]

mod failures;
mod fake;
mod follow;
mod reconnect;
mod requests;
mod start;
mod streams;
mod subscriptions;
mod work;
