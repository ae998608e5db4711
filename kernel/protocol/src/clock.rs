//! The clock that deadlines and tokens are measured by: milliseconds since 1970 that
//! never go backwards and never leap.
//!
//! The wall clock of the first look plus the time since, by a clock that nobody can
//! set and that goes on while the machine sleeps. So whoever sets the wall clock
//! neither holds up nor ends what waits for a time. Whoever has a clock reads it;
//! here it is only told what that showed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// One that was set once.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Duration,
    started_unix: Duration,
}

impl Clock {
    /// One that shows this time at this moment, which is the time since the machine was started.
    #[must_use]
    pub fn set(wall: SystemTime, moment: Duration) -> Self {
        Self { started: moment, started_unix: wall.duration_since(UNIX_EPOCH).unwrap_or_default() }
    }

    /// What it shows at a moment.
    #[must_use]
    pub fn at(&self, moment: Duration) -> u64 {
        let time = self.started_unix.saturating_add(self.since(moment));
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
    }

    /// Time from when it was set to a moment.
    #[must_use]
    pub fn since(&self, moment: Duration) -> Duration {
        moment.saturating_sub(self.started)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_shows_the_wall_clock_of_the_start_and_what_has_passed_since() {
        let started = Duration::from_secs(7_000_000);
        let after = |ms| started + Duration::from_millis(ms);
        let clock = Clock::set(UNIX_EPOCH + Duration::from_secs(1_000), after(50));
        let shown = [0, 50, 51, 3_600_050].map(|ms| clock.at(after(ms)));
        assert_eq!(shown, [1_000_000, 1_000_000, 1_000_001, 4_600_000]);
        assert_eq!([0, 51].map(|ms| clock.since(after(ms)).as_millis()), [0, 1]);
        let early = Clock::set(UNIX_EPOCH - Duration::from_secs(1), started);
        assert_eq!(early.at(after(7)), 7, "a wall clock before all time is taken for its beginning");
    }
}
