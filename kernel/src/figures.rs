//! Figures: what the kernel has done, for whoever watches it.
//!
//! Counted without order between them, so two that belong together may differ
//! by what is under way.

use std::sync::atomic::{AtomicU64, Ordering};

/// A snapshot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Requests asked for, refused ones too.
    pub requests: u64,
    /// Envelopes emitted, refused ones too.
    pub emits: u64,
    /// Requests and events delivered.
    pub deliveries: u64,
    /// Requests that ended with a refusal, and emissions that were refused.
    pub refusals: u64,
    /// Answers to requests that had ended already, which were dropped.
    pub late: u64,
    /// Subscriptions that exist.
    pub subscriptions: usize,
    /// Requests that wait for an answer.
    pub in_flight: usize,
    /// Endpoints that are attached.
    pub endpoints: usize,
}

/// A number that only grows.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: usize) {
        self.0.fetch_add(n as u64, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) requests: Counter,
    pub(crate) emits: Counter,
    pub(crate) deliveries: Counter,
    pub(crate) refusals: Counter,
    pub(crate) late: Counter,
}
