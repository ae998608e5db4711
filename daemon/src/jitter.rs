//! Chance, so that what fails at once is not tried again at once by all.

use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU32, Ordering},
};

/// A number that nobody guesses, from the hasher's random keys.
pub(crate) fn number() -> u64 {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    RandomState::new().hash_one(CALLS.fetch_add(1, Ordering::Relaxed))
}

/// A number from 0 to 1.
pub(crate) fn fraction() -> f64 {
    (number() >> 11) as f64 / (1_u64 << 53) as f64
}
