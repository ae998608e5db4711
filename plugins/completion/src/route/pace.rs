//! The pace of one provider: how many requests and tokens may begin in any
//! minute, and until when it asked to be left alone.
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

/// The pace of one provider.
#[derive(Debug)]
pub struct Pace {
    limits: Limits,
    /// What began in the last minute: its number, when, how many tokens.
    recent: VecDeque<(u64, u64, u64)>,
    next: u64,
    paused_until_ms: u64,
}

impl Pace {
    /// Nothing has begun.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, recent: VecDeque::new(), next: 0, paused_until_ms: 0 }
    }

    /// How long a request of about so many tokens has to wait. One that is larger
    /// than the limit waits until nothing else is in the minute.
    #[must_use]
    pub fn wait_ms(&self, tokens: u64, now_ms: u64) -> u64 {
        let pause = self.pause_ms(now_ms);
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

    /// For how long the provider asked not to be asked.
    #[must_use]
    pub fn pause_ms(&self, now_ms: u64) -> u64 {
        self.paused_until_ms.saturating_sub(now_ms)
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

    /// The provider asked not to be asked for so long.
    pub fn pause(&mut self, ms: u64, now_ms: u64) {
        self.paused_until_ms = self.paused_until_ms.max(now_ms.saturating_add(ms));
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
        pace.pause(500, 100);
        pace.pause(100, 200);
        assert_eq!((pace.wait_ms(1, 200), pace.wait_ms(1, 600)), (400, 0));
    }
}
