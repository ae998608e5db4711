//! Figures over time: rates from the daemon's counters, gauges, and the round
//! trip of the monitor's own requests.
//!
//! One sample comes with every `system:status`. A rate is the difference of
//! two samples by the time between them; where there is none (the first
//! sample, a restart, an interruption) the sample is absent rather than zero.

use std::{collections::VecDeque, time::Duration};

use ksi_protocol::system::{Counters, Status};

/// Samples that are kept: five minutes at one a second.
pub(crate) const SAMPLES_MAX: usize = 300;

/// Samples that the percentiles speak of: the last minute.
pub(crate) const PERCENTILE_SAMPLES: usize = 60;

/// One figure over time, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Series(VecDeque<Option<u64>>);

impl Series {
    fn push(&mut self, value: Option<u64>) {
        if self.0.len() == SAMPLES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(value);
    }

    /// The newest value, where the last sample has one.
    pub(crate) fn last(&self) -> Option<u64> {
        self.0.back().copied().flatten()
    }

    /// The last `count` samples, oldest first, filled up in front.
    pub(crate) fn tail(&self, count: usize) -> impl Iterator<Item = Option<u64>> + '_ {
        let missing = count.saturating_sub(self.0.len());
        let skipped = self.0.len().saturating_sub(count);
        std::iter::repeat_n(None, missing).chain(self.0.iter().skip(skipped).copied())
    }

    /// The value that this many percent of the last minute's do not exceed.
    pub(crate) fn percentile(&self, percent: usize) -> Option<u64> {
        let mut values: Vec<u64> = self.tail(PERCENTILE_SAMPLES).flatten().collect();
        values.sort_unstable();
        let rank = (values.len() * percent).div_ceil(100);
        values.get(rank.saturating_sub(1)).copied()
    }
}

/// All figures over time.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    /// Events emitted, per second.
    pub(crate) events: Series,
    /// Requests routed, per second.
    pub(crate) requests: Series,
    /// Requests refused, per second.
    pub(crate) refusals: Series,
    /// Live events dropped for any slow reader, per second.
    pub(crate) dropped: Series,
    /// Connected clients.
    pub(crate) sessions: Series,
    /// Requests under way.
    pub(crate) in_flight: Series,
    /// Round trip of `system:health`, microseconds.
    pub(crate) latency_us: Series,
    /// The sample before: boot, milliseconds, counters.
    before: Option<(String, u64, Counters)>,
}

impl Rates {
    /// Takes the daemon's figures of this moment.
    pub(crate) fn sample(&mut self, status: &Status, at_ms: u64) {
        let now = status.counters;
        let before = self.before.replace((status.boot.clone(), at_ms, now));
        let rate = |of: fn(&Counters) -> u64| {
            let (boot, then_ms, then) = before.as_ref()?;
            let elapsed_ms = at_ms.checked_sub(*then_ms).filter(|ms| *ms > 0)?;
            let grown = of(&now).checked_sub(of(then)).filter(|_| *boot == status.boot)?;
            Some((grown.saturating_mul(1000) + elapsed_ms / 2) / elapsed_ms)
        };
        self.events.push(rate(|c| c.emits));
        self.requests.push(rate(|c| c.requests));
        self.refusals.push(rate(|c| c.refusals));
        self.dropped.push(rate(|c| c.dropped));
        self.sessions.push(u64::try_from(status.sessions).ok());
        self.in_flight.push(u64::try_from(status.in_flight).ok());
    }

    /// Takes a round trip, or the lack of one.
    pub(crate) fn latency(&mut self, latency: Option<Duration>) {
        self.latency_us.push(latency.and_then(|latency| u64::try_from(latency.as_micros()).ok()));
    }

    /// The daemon went away: a hole in every series, and no rate across it.
    pub(crate) fn interrupted(&mut self) {
        self.before = None;
        for series in [
            &mut self.events,
            &mut self.requests,
            &mut self.refusals,
            &mut self.dropped,
            &mut self.sessions,
            &mut self.in_flight,
            &mut self.latency_us,
        ] {
            series.push(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tests::status;

    fn sample(rates: &mut Rates, boot: &str, at_ms: u64, requests: u64) -> Option<u64> {
        let mut status = status();
        status.boot = boot.into();
        status.counters.requests = requests;
        rates.sample(&status, at_ms);
        rates.requests.last()
    }

    #[test]
    fn a_rate_is_growth_by_time_and_absent_where_nothing_can_be_said() {
        let mut rates = Rates::default();
        assert_eq!(sample(&mut rates, "a", 0, 100), None, "one sample is no rate");
        assert_eq!(sample(&mut rates, "a", 2000, 300), Some(100));
        assert_eq!(sample(&mut rates, "a", 3001, 301), Some(1), "rounded, not cut");
        assert_eq!(sample(&mut rates, "a", 3001, 400), None, "no time passed");
        assert_eq!(sample(&mut rates, "b", 4000, 500), None, "another boot");
        assert_eq!(sample(&mut rates, "b", 5000, 10), None, "a counter went back");
        assert_eq!(sample(&mut rates, "b", 6000, 10), Some(0));
        rates.interrupted();
        assert_eq!(sample(&mut rates, "b", 7000, 20), None, "not across an interruption");
    }

    #[test]
    fn a_series_is_bounded_and_its_tail_is_filled_up_in_front() {
        let mut series = Series::default();
        for value in 0..1000 {
            series.push(Some(value));
        }
        assert_eq!(series.0.len(), SAMPLES_MAX);
        assert_eq!(series.tail(2).collect::<Vec<_>>(), [Some(998), Some(999)]);
        let mut short = Series::default();
        short.push(Some(7));
        assert_eq!(short.tail(3).collect::<Vec<_>>(), [None, None, Some(7)]);
    }

    #[test]
    fn percentiles_are_of_the_last_minute_and_skip_what_is_absent() {
        let mut rates = Rates::default();
        assert_eq!(rates.latency_us.percentile(50), None);
        for us in 1..=100 {
            rates.latency(Some(Duration::from_micros(us)));
        }
        assert_eq!(rates.latency_us.percentile(50), Some(70));
        assert_eq!(rates.latency_us.percentile(95), Some(97));
        rates.latency(None);
        assert_eq!(rates.latency_us.last(), None);
        assert_eq!(rates.latency_us.percentile(100), Some(100));
    }
}
