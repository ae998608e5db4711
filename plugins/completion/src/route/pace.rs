//! The pace of one provider: how many requests and tokens may begin in any
//! minute, and until when it asked to be left alone. What is no more than a model's own
//! wish ([`Pause`]) holds for that alone.
//!
//! Exact: what began is remembered for a minute, so no minute, wherever it
//! begins, has more than the limit. Time is an argument, in milliseconds.

use std::collections::VecDeque;

const MINUTE_MS: u64 = 60_000;

/// What may begin in a minute; without a number, any.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// Requests.
    pub requests: Option<u32>,
    /// Their tokens, read and made.
    pub tokens: Option<u64>,
}

/// Names something that began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun(u64);

/// A wish to be left alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pause {
    /// Until when it is fulfilled.
    until_ms: u64,
    /// Until when it was wished: later, where that is more than is believed.
    wished_ms: u64,
    why: String,
}

impl Pause {
    /// Somebody wishes, and says why, to be left alone for so long, of which no more is
    /// believed than this. What ends before what was wished earlier changes nothing.
    pub fn wish(&mut self, ms: u64, believed_ms: u64, why: &str, now_ms: u64) {
        let until_ms = now_ms.saturating_add(ms.min(believed_ms));
        if until_ms > self.until_ms {
            *self = Self { until_ms, wished_ms: now_ms.saturating_add(ms), why: why.into() };
        }
    }

    /// For how long it is to be left alone.
    #[must_use]
    pub fn left_ms(&self, now_ms: u64) -> u64 {
        self.until_ms.saturating_sub(now_ms)
    }

    /// For how long it wished that, where that is longer.
    #[must_use]
    pub fn wished_ms(&self, now_ms: u64) -> Option<u64> {
        (self.wished_ms > self.until_ms).then(|| self.wished_ms.saturating_sub(now_ms))
    }

    /// Why.
    #[must_use]
    pub fn why(&self) -> &str {
        &self.why
    }
}

/// The pace of one provider.
#[derive(Debug)]
pub struct Pace {
    /// Until when it wishes to be left alone.
    pub pause: Pause,
    limits: Limits,
    /// What began in the last minute: its number, when, how many tokens.
    recent: VecDeque<(u64, u64, u64)>,
    next: u64,
}

impl Pace {
    /// Nothing has begun.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { pause: Pause::default(), limits, recent: VecDeque::new(), next: 0 }
    }

    /// How long a request of about so many tokens has to wait. One that is larger
    /// than the limit waits until nothing else is in the minute.
    #[must_use]
    pub fn wait_ms(&self, tokens: u64, now_ms: u64) -> u64 {
        let pause = self.pause.left_ms(now_ms);
        let recent = || self.recent.iter().filter(|(_, at, _)| at + MINUTE_MS > now_ms);
        let until = |at: u64| (at + MINUTE_MS).saturating_sub(now_ms);
        let requests = self.limits.requests.map_or(0, |limit| {
            let over = (recent().count() + 1).saturating_sub(limit as usize);
            over.checked_sub(1).and_then(|last| recent().nth(last)).map_or(0, |(_, at, _)| until(*at))
        });
        let tokens = self.limits.tokens.map_or(0, |limit| {
            let mut held: u64 = recent().map(|(_, _, tokens)| tokens).sum();
            let mut wait = 0;
            for (_, at, gone) in recent() {
                if held.saturating_add(tokens) <= limit {
                    break;
                }
                held -= gone;
                wait = until(*at);
            }
            wait
        });
        pause.max(requests).max(tokens)
    }

    /// Counts what begins now.
    pub fn begin(&mut self, tokens: u64, now_ms: u64) -> Begun {
        while self.recent.front().is_some_and(|(_, at, _)| at + MINUTE_MS <= now_ms) {
            self.recent.pop_front();
        }
        self.next += 1;
        if self.limits.requests.is_some() || self.limits.tokens.is_some() {
            self.recent.push_back((self.next, now_ms, tokens));
        }
        Begun(self.next)
    }

    /// Puts the tokens that it really had in the place of the guess.
    pub fn correct(&mut self, begun: Begun, tokens: u64) {
        if let Some(entry) = self.recent.iter_mut().find(|(number, ..)| *number == begun.0) {
            entry.2 = tokens;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_minute_has_more_requests_than_the_limit() {
        let mut pace = Pace::new(Limits { requests: Some(3), tokens: None });
        let (mut now, mut began) = (0, Vec::new());
        for round in 0..50 {
            now += pace.wait_ms(1, now);
            pace.begin(1, now);
            began.push(now);
            now += (round * 7919) % 20_000;
        }
        for (place, at) in began.iter().enumerate() {
            let within = began[place..].iter().filter(|other| **other < at + MINUTE_MS).count();
            assert!(within <= 3, "{within} in the minute from {at}");
        }
        let spread = began.windows(4).filter(|four| four[3] == four[0] + MINUTE_MS).count();
        assert!(spread > 0, "nobody ever waited as short as possible");
    }

    #[test]
    fn tokens_count_and_are_corrected() {
        let mut pace = Pace::new(Limits { requests: None, tokens: Some(100) });
        let first = pace.begin(80, 0);
        assert_eq!(pace.wait_ms(20, 10), 0);
        assert_eq!(pace.wait_ms(21, 10), 59_990);
        pace.correct(first, 10);
        assert_eq!(pace.wait_ms(90, 10), 0);
        assert_eq!(pace.wait_ms(500, 10), 59_990, "a giant waits for an empty minute");
        assert_eq!(pace.wait_ms(500, 60_001), 0);
    }

    #[test]
    fn a_wish_to_be_left_alone_is_kept() {
        let mut pace = Pace::new(Limits::default());
        pace.pause.wish(500, 10_000, "first", 100);
        pace.pause.wish(100, 10_000, "second", 200);
        assert_eq!((pace.wait_ms(1, 200), pace.wait_ms(1, 600)), (400, 0));
        assert_eq!((pace.pause.why(), pace.pause.wished_ms(200)), ("first", None));
    }

    #[test]
    fn of_a_wish_beyond_belief_a_part_is_kept_and_the_whole_told() {
        let mut pause = Pause::default();
        pause.wish(u64::MAX, 1000, "for ever", 100);
        assert_eq!((pause.left_ms(100), pause.left_ms(1099), pause.left_ms(1100)), (1000, 1, 0));
        assert_eq!(pause.wished_ms(100), Some(u64::MAX - 100));
        pause.wish(1000, 1000, "a second", 200);
        assert_eq!((pause.left_ms(200), pause.wished_ms(200), pause.why()), (1000, None, "a second"));
    }
}
