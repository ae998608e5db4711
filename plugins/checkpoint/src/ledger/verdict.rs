//! What a refusal means for the work that it answers.
//!
//! The table, first match wins:
//!
//! | refusal | means |
//! |---|---|
//! | `plugin_restarted` with `details.planned`, `shutting_down` | again, the attempt does not count |
//! | `no_owner`; `busy`, `unavailable` where retryable | again, the attempt does not count |
//! | `plugin_restarted` | a crash |
//! | `unknown`, `timeout` | again where the policy lets it be repeated, else the outcome is unknown |
//! | retryable | again |
//! | all else | failed |
//!
//! A handler that ran out of time was stopped at some point of its way, so
//! nobody knows what it had done: as after a crash, only work that may be
//! repeated is.

use ksi_sdk::protocol::{Code, Refusal};

/// Crashes of its handler after which an entry is given up…
pub const CRASHES_MAX: usize = 3;

/// …where they fall into so many milliseconds.
pub const CRASH_WINDOW_MS: u64 = 10 * 60 * 1000;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Try again; whether the attempt counts.
    Again {
        /// Whether it does.
        counts: bool,
    },
    /// The handler crashed over it.
    Crash,
    /// Nobody knows what it did, and it may not be repeated unasked.
    Unknown,
    /// For good.
    Failed,
}

impl Verdict {
    /// Of a refusal, for work that may be repeated or not.
    #[must_use]
    pub fn of(refusal: &Refusal, repeat: bool) -> Self {
        match refusal.code {
            Code::PluginRestarted if is_planned(refusal) => Self::Again { counts: false },
            Code::ShuttingDown | Code::NoOwner => Self::Again { counts: false },
            Code::Busy | Code::Unavailable if refusal.retryable => Self::Again { counts: false },
            Code::PluginRestarted => Self::Crash,
            Code::Unknown | Code::Timeout if repeat => Self::Again { counts: true },
            Code::Unknown | Code::Timeout => Self::Unknown,
            _ if refusal.retryable => Self::Again { counts: true },
            _ => Self::Failed,
        }
    }
}

/// Whether somebody wanted the handler's plugin to end.
fn is_planned(refusal: &Refusal) -> bool {
    refusal.details.as_ref().is_some_and(|details| details["planned"] == true)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_code_has_its_verdict_whether_work_may_be_repeated_or_not() {
        let (again, free) = (Verdict::Again { counts: true }, Verdict::Again { counts: false });
        for code in Code::ALL {
            let (repeated, once) = match code {
                Code::Busy | Code::Unavailable | Code::ShuttingDown | Code::NoOwner => (free, free),
                Code::PluginRestarted => (Verdict::Crash, Verdict::Crash),
                Code::Timeout | Code::Unknown => (again, Verdict::Unknown),
                _ => (Verdict::Failed, Verdict::Failed),
            };
            let refusal = Refusal::new(code, "no");
            assert_eq!(Verdict::of(&refusal, true), repeated, "{code}");
            assert_eq!(Verdict::of(&refusal, false), once, "{code}");
        }
    }

    #[test]
    fn the_word_of_the_handler_on_retrying_holds() {
        let later = Refusal::new(Code::Internal, "try later").retry_after_ms(5);
        assert_eq!(Verdict::of(&later, false), Verdict::Again { counts: true });
        let never = Refusal { retryable: false, ..Refusal::new(Code::Unavailable, "no such engine") };
        assert_eq!(Verdict::of(&never, true), Verdict::Failed);
    }

    #[test]
    fn a_planned_end_of_the_plugin_is_no_crash() {
        let refusal = Refusal::new(Code::PluginRestarted, "reloaded");
        let planned = refusal.clone().details(json!({"planned": true, "blame": "receiver"}));
        assert_eq!(Verdict::of(&planned, false), Verdict::Again { counts: false });
        let crashed = refusal.details(json!({"planned": false}));
        assert_eq!(Verdict::of(&crashed, true), Verdict::Crash);
    }
}
