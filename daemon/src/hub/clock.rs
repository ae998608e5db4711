//! What the time is for the daemon: the clock that plugins go by, too.

use std::time::{Duration, SystemTime};

use ksi_protocol::clock::Clock;
use rustix::time::{ClockId, clock_gettime};

/// The clock of one start.
pub(super) struct Started(Clock);

impl Started {
    /// Set to the wall clock, now.
    pub(super) fn now() -> Self {
        Self(Clock::set(SystemTime::now(), since_boot()))
    }

    /// Milliseconds since 1970.
    pub(super) fn now_ms(&self) -> u64 {
        self.0.at(since_boot())
    }

    /// Time since the start.
    pub(super) fn elapsed(&self) -> Duration {
        self.0.since(since_boot())
    }
}

/// Time since the machine was started, asleep or not; nobody can set it.
fn since_boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}
