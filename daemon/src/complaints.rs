//! Complaints about one and the same thing, of which the log is told a few.

use std::sync::atomic::{AtomicU64, Ordering};

use ksi_kernel::Rate;

/// Complaints of one kind that the log tells of in a second.
const COMPLAINTS_PER_SECOND: u32 = 1;

/// Complaints about one and the same thing: the log is told of a few of them, and
/// of the number of the others, since whoever is refused may come again without
/// end, and what is new in a log takes the place of what is old.
#[derive(Debug, Default)]
pub(crate) struct Complaints {
    rate: Rate,
    untold: AtomicU64,
}

impl Complaints {
    /// Counts one. Where it is to be told, how many before it were not.
    pub(crate) fn count(&self, now_ms: u64) -> Option<u64> {
        if self.rate.take(COMPLAINTS_PER_SECOND, now_ms).is_err() {
            self.untold.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.untold.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_beyond_one_a_second_are_counted_and_told_with_the_next() {
        let complaints = Complaints::default();
        let told: Vec<Option<u64>> =
            [5_000, 5_000, 5_400, 6_000, 6_500, 9_000].map(|now_ms| complaints.count(now_ms)).into();
        assert_eq!(told, [Some(0), Some(0), None, Some(1), None, Some(1)]);
    }
}
