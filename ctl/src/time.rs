//! Times as they travel: whole milliseconds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A duration; one that has no room in 64 bits is as good as the longest.
pub(crate) fn whole_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A moment, since 1970; one before that is the beginning of it.
pub(crate) fn unix_ms(moment: SystemTime) -> u64 {
    whole_ms(moment.duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// This moment, since 1970.
pub(crate) fn now_ms() -> u64 {
    unix_ms(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_cut_to_whole_milliseconds_and_to_what_has_room() {
        assert_eq!(whole_ms(Duration::from_micros(2_999)), 2);
        assert_eq!(whole_ms(Duration::MAX), u64::MAX);
        assert_eq!(unix_ms(UNIX_EPOCH - Duration::from_secs(1)), 0);
        assert_eq!(unix_ms(UNIX_EPOCH + Duration::from_millis(1_500)), 1_500);
    }
}
