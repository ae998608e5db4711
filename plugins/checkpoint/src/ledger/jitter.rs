//! How long to wait before the next attempt: exponential, with full jitter.
//!
//! Full jitter means anything between nothing and the longest pause: askers
//! that failed together do not come back together.

use ksi_sdk::protocol::work::Policy;

/// Chance, seeded by whoever makes the ledger, so that a history can be run
/// again. SplitMix64: a pause needs no better.
#[derive(Debug)]
pub(super) struct Jitter(u64);

impl Jitter {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Pause after the `lease`th lease, the first being 1, in milliseconds;
    /// never less than what the refusal asked for.
    pub(super) fn pause_ms(&mut self, policy: &Policy, lease: u32, retry_after_ms: Option<u64>) -> u64 {
        let doublings = lease.saturating_sub(1).min(63);
        let longest = policy.backoff_min_ms.saturating_mul(1 << doublings).min(policy.backoff_max_ms);
        self.up_to(longest).max(retry_after_ms.unwrap_or(0))
    }

    fn up_to(&mut self, longest: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        // The remainder favours small numbers by less than one part in a million
        // for pauses below a century.
        longest.checked_add(1).map_or(mixed, |count| mixed % count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_spread_from_nothing_to_the_longest_and_grow_with_every_lease() {
        let policy = Policy { backoff_min_ms: 100, backoff_max_ms: 1_000, ..Policy::default() };
        for (lease, longest) in [(1, 100), (2, 200), (4, 800), (5, 1_000), (200, 1_000), (u32::MAX, 1_000)] {
            let mut jitter = Jitter::new(lease.into());
            let pauses: Vec<u64> = (0..2_000).map(|_| jitter.pause_ms(&policy, lease, None)).collect();
            let (least, most) = (pauses.iter().min().unwrap(), pauses.iter().max().unwrap());
            assert!(*least <= longest / 50 && *most <= longest && *most >= longest - longest / 50);
        }
    }

    #[test]
    fn a_refusal_that_names_a_time_is_heeded() {
        let policy = Policy { backoff_min_ms: 100, backoff_max_ms: 1_000, ..Policy::default() };
        assert_eq!(Jitter::new(1).pause_ms(&policy, 1, Some(5_000)), 5_000);
        let boundless = Policy { backoff_min_ms: u64::MAX, backoff_max_ms: u64::MAX, ..policy };
        Jitter::new(1).pause_ms(&boundless, 9, None);
    }
}
