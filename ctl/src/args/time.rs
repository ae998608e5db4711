//! Times on the command line.

use std::time::Duration;

/// Reads `30s`, `1m 30s`, or a bare number of seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string());
    }
    humantime::parse_duration(text).map_err(|error| format!("{error}; for example 500ms, 30s, 5m"))
}

/// Reads a duration after which something ends: it must not be over at once.
pub(crate) fn lasting(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        time if time < Duration::from_millis(1) => Err("it would be over at once".to_owned()),
        time => Ok(time),
    }
}
