//! Pace: who is served all the time pauses for as long as he is served.
//!
//! Where somebody else is served too, one user's connections together may take
//! half of the time of the threads that may serve them at once, and a moment more
//! now and then. What is beyond that waits in the sockets, so that whoever fills
//! them waits as well, and the processors that all of them share are not all at
//! work for one.
//!
//! Time that a turn takes is time that passes: where the machine is crowded, the
//! pauses are longer. It may also be that of others, whose requests a turn found
//! at a plugin and ran with its own, or of a plugin that was slow: so no pause is
//! ever long.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// Microseconds of pause that are put off until they are worth it: whoever is
/// served now and then never pauses.
const MOMENT_US: u64 = 2_000;

/// Longest pause, microseconds.
const PAUSE_MAX_US: u64 = 5_000;

/// Milliseconds for which somebody who was served counts as there.
const LATELY_MS: u64 = 1_000;

/// The pace of one user.
#[derive(Debug)]
pub(super) struct Pace {
    /// Threads that may serve him at once.
    threads: u64,
    /// When its clock began.
    began: Instant,
    /// When half of their time would have been enough for all turns so far.
    due_us: AtomicU64,
}

impl Pace {
    /// Nothing has been done yet, by so many threads at once.
    pub(super) fn new(threads: usize) -> Self {
        Self { threads: threads.max(1) as u64, began: Instant::now(), due_us: AtomicU64::new(0) }
    }

    /// A turn has taken this time; how long the user is to pause now. Two turns
    /// that end in the same moment may count as one.
    pub(super) fn charge(&self, began: Instant, ended: Instant) -> Duration {
        let us = |time: Instant| u64::try_from((time - self.began).as_micros()).unwrap_or(u64::MAX);
        let (began_us, ended_us) = (us(began), us(ended));
        let took = ended_us.saturating_sub(began_us);
        // A pause that was longer than asked for, as those of a timer are, counts for what comes.
        let since = self.due_us.load(Ordering::Relaxed).max(began_us.saturating_sub(MOMENT_US));
        let due = since.saturating_add(2 * took / self.threads).min(ended_us + PAUSE_MAX_US);
        self.due_us.store(due, Ordering::Relaxed);
        match due.saturating_sub(ended_us) {
            pause if pause > MOMENT_US => Duration::from_micros(pause),
            _ => Duration::ZERO,
        }
    }
}

/// Who was served lately.
#[derive(Debug, Default)]
pub(super) struct Lately(Mutex<Served>);

#[derive(Debug, Default)]
struct Served {
    /// The user who was served last, and when.
    last: u64,
    last_ms: u64,
    /// When somebody else was.
    other_ms: u64,
}

impl Lately {
    /// A user is served; whether somebody else was, within the last second.
    pub(super) fn serve(&self, user: u64, now_ms: u64) -> bool {
        let mut served = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if served.last != user {
            (served.last, served.other_ms) = (user, served.last_ms);
        }
        served.last_ms = now_ms;
        now_ms.saturating_sub(served.other_ms) < LATELY_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TURN: Duration = us(300);

    const fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    #[test]
    fn who_is_served_all_the_time_pauses_for_half_of_it() {
        for threads in [1, 3] {
            let pace = Pace::new(threads);
            let (mut now, mut served) = (pace.began, Duration::ZERO);
            for _ in 0..1_000 {
                // On all threads at once, which pause together.
                let pause = (0..threads).map(|_| pace.charge(now, now + TURN)).max().unwrap();
                served += TURN;
                now += TURN + pause;
            }
            let all = now - pace.began;
            assert!((2 * served).abs_diff(all) <= us(2 * MOMENT_US), "{served:?} of {all:?}");
        }
    }

    #[test]
    fn who_is_served_now_and_then_never_pauses() {
        let pace = Pace::new(1);
        let at = |time_us| pace.began + us(time_us);
        for n in 0..1_000 {
            assert_eq!(pace.charge(at(n * 2_000), at(n * 2_000 + 900)), Duration::ZERO);
        }
        // Nor is what was not used saved for later, beyond a moment.
        assert_eq!(pace.charge(at(10_000_000), at(10_004_500)), us(2_500));
    }

    #[test]
    fn no_pause_is_long_whatever_it_is_for() {
        let pace = Pace::new(1);
        let at = |time_us| pace.began + us(time_us);
        assert_eq!(pace.charge(at(0), at(60_000_000)), us(PAUSE_MAX_US));
        assert_eq!(pace.charge(at(60_000_100), at(60_000_200)), us(PAUSE_MAX_US));
        assert_eq!(pace.charge(at(60_100_000), at(60_100_100)), Duration::ZERO);
    }

    #[test]
    fn somebody_else_counts_for_a_second() {
        let lately = Lately::default();
        assert!(!lately.serve(1, 10_000), "nobody else was ever there");
        assert!(!lately.serve(1, 10_100));
        assert!(lately.serve(2, 10_200));
        assert!(lately.serve(1, 10_300));
        assert!(lately.serve(1, 11_199), "the other was served 999 ms ago");
        assert!(!lately.serve(1, 11_200));
        assert!(lately.serve(3, 11_300));
    }
}
