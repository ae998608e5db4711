//! When a server wants to be asked again: `Retry-After`, in seconds or as a
//! date, and `retry-after-ms`, which some send besides.

use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};

/// Longest wish that is passed on: who is told more may as well give up.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// How long to wait, as of `now`; `None` where the server does not say, or not
/// in a way that can be read. A date that has passed is no time at all.
pub(crate) fn read(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    if let Some(ms) = text("retry-after-ms").and_then(|ms| ms.parse::<f64>().ok()) {
        return seconds(ms / 1000.0);
    }
    let told = text(RETRY_AFTER.as_str())?;
    match told.parse::<f64>() {
        Ok(told) => seconds(told),
        Err(_) => {
            let date = httpdate::parse_http_date(told).ok()?;
            Some(date.duration_since(now).unwrap_or_default().min(LONGEST))
        }
    }
}

fn seconds(told: f64) -> Option<Duration> {
    let told = Duration::try_from_secs_f64(told).ok()?;
    Some(told.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;

    fn told(name: &'static str, value: &str, now: SystemTime) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        read(&headers, now)
    }

    #[test]
    fn seconds_dates_and_milliseconds_are_understood() {
        let now = httpdate::parse_http_date("Wed, 21 Oct 2015 07:28:00 GMT").unwrap();
        for (name, value, expected) in [
            ("retry-after", "2", Some(Duration::from_secs(2))),
            ("retry-after", " 0.5 ", Some(Duration::from_millis(500))),
            ("retry-after", "0", Some(Duration::ZERO)),
            ("retry-after", "Wed, 21 Oct 2015 07:28:05 GMT", Some(Duration::from_secs(5))),
            ("retry-after", "Wed, 21 Oct 2015 07:27:00 GMT", Some(Duration::ZERO)),
            ("retry-after", "99999999999", Some(LONGEST)),
            ("retry-after", "-1", None),
            ("retry-after", "NaN", None),
            ("retry-after", "soon", None),
            ("retry-after-ms", "250", Some(Duration::from_millis(250))),
        ] {
            assert_eq!(told(name, value, now), expected, "{name}: {value}");
        }
        assert_eq!(read(&HeaderMap::new(), now), None);
    }
}
