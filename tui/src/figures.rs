//! Figures as people read them: counts, bytes, spans, moments.
//!
//! Times of day are UTC, as everywhere in KSI, so that a line of the monitor
//! can be found in a log.

use ksi_protocol::json;

/// `1234567` → `1,234,567`.
pub(crate) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `12897485` → `12.3 MiB`.
pub(crate) fn bytes(value: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if value < 1024 {
        return format!("{value} B");
    }
    let mut tenths = u128::from(value) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// Milliseconds as their two largest units: `11520000` → `3h 12m`.
pub(crate) fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms} ms"),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// Microseconds of a round trip: `210 µs`, `1.2 ms`, `3.4 s`.
pub(crate) fn micros(us: u64) -> String {
    match us {
        0..1000 => format!("{us} µs"),
        1000..1_000_000 => format!("{}.{} ms", us / 1000, us / 100 % 10),
        _ => format!("{}.{} s", us / 1_000_000, us / 100_000 % 10),
    }
}

/// Milliseconds since 1970 as date and time.
pub(crate) fn moment(at_ms: u64) -> String {
    json::timestamp(at_ms.min(MOMENT_MAX_MS))
}

/// Milliseconds since 1970 as time of day, `17:03:22.123`.
pub(crate) fn clock(at_ms: u64) -> String {
    moment(at_ms).get(11..23).unwrap_or("??:??:??.???").to_owned()
}

/// The last moment that has a date with four digits for its year: a daemon
/// with a broken clock must not break the monitor.
const MOMENT_MAX_MS: u64 = 253_402_300_799_999;

/// A text without its control characters, which could command a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A text, or `-` where there is none.
pub(crate) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_never_lie_about_their_unit() {
        assert_eq!([count(0), count(999), count(1000), count(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([bytes(1023), bytes(1024), bytes(12_897_485)], ["1023 B", "1.0 KiB", "12.3 MiB"]);
        assert_eq!(bytes(u64::MAX), "16777215.9 TiB");
        assert_eq!([span(999), span(59_999), span(61_000)], ["999 ms", "59s", "1m 1s"]);
        assert_eq!([span(11_520_000), span(90_000_000)], ["3h 12m", "1d 1h"]);
        assert_eq!([micros(999), micros(1234), micros(3_456_789)], ["999 µs", "1.2 ms", "3.4 s"]);
        assert_eq!(clock(0), "00:00:00.000");
        assert_eq!(moment(u64::MAX), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn what_could_command_a_terminal_is_taken_out() {
        assert_eq!(printable("a\u{1b}[31mb\nc"), "a [31mb c");
    }
}
