//! Complaints about one and the same thing, of which the log is told a few.

use std::sync::atomic::{AtomicU64, Ordering};

use ksi_kernel::Rate;

/// Complaints about one and the same thing: the log is told of a few of them, and
/// of the number of the others, since whoever is refused may come again without
/// end, and what is new in a log takes the place of what is old.
#[derive(Debug)]
pub(crate) struct Complaints {
    most: u32,
    seconds: u64,
    rate: Rate,
    untold: AtomicU64,
}

/// One a second.
impl Default for Complaints {
    fn default() -> Self {
        Self::within(1, 1)
    }
}

impl Complaints {
    /// So many are told in so many seconds, and may come at once.
    pub(crate) fn within(seconds: u64, most: u32) -> Self {
        Self { most, seconds, rate: Rate::default(), untold: AtomicU64::new(0) }
    }

    /// How many were not told since one was.
    pub(crate) fn untold(&self) -> u64 {
        self.untold.load(Ordering::Relaxed)
    }

    /// Counts one. Where it is to be told, how many before it were not.
    pub(crate) fn count(&self, now_ms: u64) -> Option<u64> {
        // A rate is one of a second; here that is as long as it is to be.
        if self.rate.take(self.most, now_ms / self.seconds).is_err() {
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

    #[test]
    fn of_a_flood_as_many_are_told_as_may_come_at_once_and_then_at_the_rate() {
        let lines = Complaints::within(60, 600);
        let told =
            |from_ms: u64, to_ms: u64| (from_ms..to_ms).filter(|&now| lines.count(now).is_some()).count();
        let minute = 1_000_000..1_060_000;
        let at_once = told(minute.start, minute.start + 1_000);
        assert!((600..=612).contains(&at_once), "{at_once}");
        let rest = told(minute.start + 1_000, minute.end);
        assert!((580..=600).contains(&rest), "{rest}");
        let untold = lines.untold();
        assert!(untold > 0 && lines.count(minute.end + 60_000) == Some(untold) && lines.untold() == 0);
    }
}
