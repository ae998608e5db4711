//! A circuit breaker: who fails again and again is left alone for a while,
//! then tried with one request.
//!
//! | state | lets through | leaves it by |
//! |---|---|---|
//! | closed | everything | failures in a row, all within the window: open |
//! | open | nothing | time: half-open |
//! | half-open | one probe | the probe succeeds: closed; it fails: open, twice as long |
//!
//! A success ends a row of failures. A pure state machine: time is an argument,
//! in milliseconds. What was let through before it opened does not count any
//! more when it ends.

/// When it opens, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Failures in a row that open it.
    pub failures: u32,
    /// Time within which they must lie, milliseconds.
    pub window_ms: u64,
    /// How long it is open at first, milliseconds.
    pub open_ms: u64,
    /// How long it is open at most, milliseconds.
    pub open_max_ms: u64,
}

/// Where a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Everything is let through.
    Closed,
    /// Nothing is.
    Open {
        /// Until when.
        until_ms: u64,
    },
    /// One probe is.
    HalfOpen {
        /// Whether it is under way.
        probing: bool,
    },
}

/// What was let through, to be given back with how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a probe that is never given back keeps the breaker half-open"]
pub struct Pass {
    probe: bool,
    opened: u64,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered.
    Succeeded,
    /// It failed in a way that says something about whoever answers.
    Failed,
    /// It says nothing: it was cancelled, or its asker was at fault.
    Neither,
}

/// The breaker of one model.
#[derive(Debug, Clone)]
pub struct Breaker {
    rules: Rules,
    state: State,
    /// Failures in a row, and when the first of them was.
    failures: u32,
    since_ms: u64,
    /// How often it has opened in a row, and ever.
    in_row: u32,
    opened: u64,
}

impl Breaker {
    /// A closed one.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self { rules, state: State::Closed, failures: 0, since_ms: 0, in_row: 0, opened: 0 }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self, now_ms: u64) -> State {
        match self.state {
            State::Open { until_ms } if now_ms >= until_ms => State::HalfOpen { probing: false },
            state => state,
        }
    }

    /// Whether it would let something through; else how long not, milliseconds.
    ///
    /// # Errors
    ///
    /// The time after which it may be tried again.
    pub fn admits(&self, now_ms: u64) -> Result<(), u64> {
        match self.state(now_ms) {
            State::Closed | State::HalfOpen { probing: false } => Ok(()),
            State::Open { until_ms } => Err(until_ms - now_ms),
            State::HalfOpen { probing: true } => Err(self.rules.open_ms),
        }
    }

    /// Lets something through.
    ///
    /// # Errors
    ///
    /// As [`Self::admits`].
    pub fn begin(&mut self, now_ms: u64) -> Result<Pass, u64> {
        self.admits(now_ms)?;
        let probe = matches!(self.state(now_ms), State::HalfOpen { .. });
        if probe {
            self.state = State::HalfOpen { probing: true };
        }
        Ok(Pass { probe, opened: self.opened })
    }

    /// Hears how what was let through has ended.
    pub fn end(&mut self, pass: Pass, outcome: Outcome, now_ms: u64) {
        if pass.opened != self.opened {
            return;
        }
        match (outcome, pass.probe) {
            (Outcome::Succeeded, _) => {
                self.state = State::Closed;
                (self.failures, self.in_row) = (0, 0);
            }
            (Outcome::Failed, true) => self.open(now_ms),
            (Outcome::Failed, false) => {
                if self.failures == 0 || now_ms.saturating_sub(self.since_ms) > self.rules.window_ms {
                    (self.failures, self.since_ms) = (0, now_ms);
                }
                self.failures += 1;
                if self.failures >= self.rules.failures {
                    self.open(now_ms);
                }
            }
            (Outcome::Neither, true) => self.state = State::HalfOpen { probing: false },
            (Outcome::Neither, false) => {}
        }
    }

    fn open(&mut self, now_ms: u64) {
        let doubled = self.rules.open_ms.saturating_mul(1 << self.in_row.min(16));
        self.state = State::Open { until_ms: now_ms + doubled.min(self.rules.open_max_ms) };
        self.failures = 0;
        self.in_row += 1;
        self.opened += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { failures: 3, window_ms: 1000, open_ms: 100, open_max_ms: 300 };

    /// One step: at which time, what happens, and where the breaker stands then.
    enum Step {
        Succeed,
        Fail,
        Neither,
        /// Begins something, and leaves it under way.
        Begin,
        /// Ends what was begun first.
        End(Outcome),
        Refused(u64),
        Look,
    }
    use Outcome::{Failed, Neither as Nothing, Succeeded};
    use State::{Closed, HalfOpen, Open};
    use Step::{Begin, End, Fail, Look, Neither, Refused, Succeed};

    fn walk(name: &str, steps: &[(u64, Step, State)]) {
        let mut breaker = Breaker::new(RULES);
        let mut begun = std::collections::VecDeque::new();
        for (place, (now, step, state)) in steps.iter().enumerate() {
            let mut whole = |outcome| {
                let pass = breaker.begin(*now).unwrap_or_else(|_| panic!("{name}: step {place} is refused"));
                breaker.end(pass, outcome, *now);
            };
            match step {
                Succeed => whole(Succeeded),
                Fail => whole(Failed),
                Neither => whole(Nothing),
                Begin => begun.push_back(breaker.begin(*now).unwrap()),
                End(outcome) => breaker.end(begun.pop_front().unwrap(), *outcome, *now),
                Refused(ms) => assert_eq!(breaker.begin(*now), Err(*ms), "{name}: step {place}"),
                Look => {}
            }
            assert_eq!(breaker.state(*now), *state, "{name}: after step {place}");
        }
    }

    #[test]
    fn what_says_nothing_changes_nothing() {
        walk(
            "what says nothing changes nothing",
            &[(0, Fail, Closed), (1, Fail, Closed), (2, Neither, Closed), (3, Fail, Open { until_ms: 103 })],
        );
    }

    #[test]
    fn it_goes_from_state_to_state_as_the_table_says() {
        let half = HalfOpen { probing: false };
        walk(
            "failures in a row open it, time half-opens it, a probe closes it",
            &[
                (0, Fail, Closed),
                (1, Fail, Closed),
                (2, Fail, Open { until_ms: 102 }),
                (50, Refused(52), Open { until_ms: 102 }),
                (102, Look, half),
                (103, Begin, HalfOpen { probing: true }),
                (104, Refused(100), HalfOpen { probing: true }),
                (105, End(Succeeded), Closed),
                (106, Fail, Closed),
            ],
        );
        walk(
            "a success ends the row",
            &[
                (0, Fail, Closed),
                (1, Fail, Closed),
                (2, Succeed, Closed),
                (3, Fail, Closed),
                (4, Fail, Closed),
            ],
        );
        walk(
            "failures that lie far apart are no row",
            &[(0, Fail, Closed), (10, Fail, Closed), (1001, Fail, Closed), (1002, Fail, Closed)],
        );
        walk(
            "a probe that fails opens it for longer, up to the most",
            &[
                (0, Fail, Closed),
                (0, Fail, Closed),
                (0, Fail, Open { until_ms: 100 }),
                (100, Fail, Open { until_ms: 300 }),
                (300, Fail, Open { until_ms: 600 }),
                (600, Fail, Open { until_ms: 900 }),
                (900, Succeed, Closed),
                (901, Fail, Closed),
                (901, Fail, Closed),
                (901, Fail, Open { until_ms: 1001 }),
            ],
        );
        walk(
            "a probe that says nothing leaves room for the next one",
            &[
                (0, Fail, Closed),
                (0, Fail, Closed),
                (0, Fail, Open { until_ms: 100 }),
                (100, Neither, half),
                (101, Succeed, Closed),
            ],
        );
        walk(
            "what was begun before it opened does not count when it ends",
            &[
                (0, Begin, Closed),
                (0, Begin, Closed),
                (0, Fail, Closed),
                (0, Fail, Closed),
                (0, Fail, Open { until_ms: 100 }),
                (50, End(Succeeded), Open { until_ms: 100 }),
                (100, Begin, HalfOpen { probing: true }),
                (101, End(Failed), HalfOpen { probing: true }),
            ],
        );
    }

    #[test]
    fn failures_over_a_day_with_successes_between_never_open_it() {
        let mut breaker = Breaker::new(RULES);
        for hour in 0..24_u64 {
            for outcome in [Failed, Failed, Succeeded] {
                let pass = breaker.begin(hour * 3_600_000).unwrap();
                breaker.end(pass, outcome, hour * 3_600_000);
            }
            assert_eq!(breaker.state(hour * 3_600_000), Closed);
        }
    }
}
