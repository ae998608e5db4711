//! The clock: milliseconds since 1970 that never go backwards and never leap.
//!
//! The wall clock of the first look plus the time since, in which the machine may have slept. So whoever
//! sets the wall clock neither holds up nor ends what waits for a time.

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::time::{ClockId, clock_gettime};

/// That of this process or, inside the daemon, of this library.
static CLOCK: LazyLock<Clock> = LazyLock::new(|| Clock::set(SystemTime::now(), since_boot()));

/// What the time is.
pub(crate) fn now_ms() -> u64 {
    CLOCK.at(since_boot())
}

/// Time since the machine was started, asleep or not; nobody can set it.
fn since_boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

struct Clock {
    started: Duration,
    started_unix: Duration,
}

impl Clock {
    /// One that shows this time at this moment.
    fn set(wall: SystemTime, started: Duration) -> Self {
        Self { started, started_unix: wall.duration_since(UNIX_EPOCH).unwrap_or_default() }
    }

    fn at(&self, moment: Duration) -> u64 {
        let time = self.started_unix.saturating_add(moment.saturating_sub(self.started));
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_shows_the_wall_clock_of_the_start_and_what_has_passed_since() {
        let started = since_boot();
        let after = |ms| started + Duration::from_millis(ms);
        let clock = Clock::set(UNIX_EPOCH + Duration::from_secs(1_000), after(50));
        let shown = [0, 50, 51, 3_600_050].map(|ms| clock.at(after(ms)));
        assert_eq!(shown, [1_000_000, 1_000_000, 1_000_001, 4_600_000]);
        let early = Clock::set(UNIX_EPOCH - Duration::from_secs(1), started);
        assert_eq!(early.at(after(7)), 7, "a wall clock before all time is taken for its beginning");
    }

    #[test]
    fn it_begins_with_the_time_of_the_machine() {
        let wall =
            |time: SystemTime| u64::try_from(time.duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
        let before = wall(SystemTime::now());
        let shown = now_ms();
        assert!(shown + 1 >= before && shown <= wall(SystemTime::now()) + 1, "{before} {shown}");
        assert!(now_ms() >= shown);
    }
}
