//! The wire as a client meets it, in both faces.

mod frames;
mod framing;
mod lines;
mod malformed;
mod subscriptions;
