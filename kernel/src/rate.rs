//! Rates: what happens at most so often a second.

use std::sync::atomic::{AtomicU64, Ordering};

/// How fast something happens.
#[derive(Debug, Default)]
pub struct Rate {
    /// When all that happened so far would have happened at the rate that is
    /// allowed, microseconds since 1970.
    due_us: AtomicU64,
}

impl Rate {
    /// Counts once more. A second's worth may come at once; where that is too
    /// fast, in how many milliseconds it is not.
    ///
    /// # Errors
    ///
    /// The milliseconds.
    pub fn take(&self, per_second: u32, now_ms: u64) -> Result<(), u64> {
        let second_from_now = now_ms.saturating_mul(1000) + 1_000_000;
        let each = 1_000_000 / u64::from(per_second.max(1));
        let next = |due: u64| (due <= second_from_now).then(|| due.max(second_from_now - 1_000_000) + each);
        match self.due_us.fetch_update(Ordering::AcqRel, Ordering::Acquire, next) {
            Ok(_) => Ok(()),
            Err(due) => Err(due.saturating_sub(second_from_now).div_ceil(1000).max(1)),
        }
    }
}
