//! What the time is for a plugin: the clock that the daemon goes by, too.

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use ksi_protocol::clock::Clock;
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

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

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
