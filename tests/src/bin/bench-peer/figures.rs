//! Figures of one measurement, and how they are printed.

use std::time::{Duration, Instant};

use serde_json::json;

/// Collects the time of each request while a measurement runs.
pub(crate) struct Figures {
    test: &'static str,
    times: Vec<Duration>,
    start: Instant,
}

impl Figures {
    /// Starts the clock.
    pub(crate) fn start(test: &'static str) -> Self {
        Self { test, times: Vec::new(), start: Instant::now() }
    }

    /// Notes the time of one request.
    pub(crate) fn note(&mut self, time: Duration) {
        self.times.push(time);
    }

    /// Stops the clock and prints the line; `count` things happened.
    pub(crate) fn print(mut self, count: usize) {
        let seconds = self.start.elapsed().as_secs_f64();
        self.times.sort_unstable();
        let at = |share: usize| {
            let time = self.times.get(self.times.len().saturating_sub(1) * share / 100)?;
            Some((time.as_secs_f64() * 1e7).round() / 10.0)
        };
        let per_s = (count as f64 / seconds).round();
        println!("{}", json!({"test": self.test, "p50_us": at(50), "p99_us": at(99), "per_s": per_s}));
    }
}
