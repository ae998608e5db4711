//! What an engine has done so far: counted by its thread, read by anyone.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Outcome;

/// Weight of the last job against all before: one in eight.
const WEIGHT: u64 = 8;

/// Times of a job that made vectors.
pub(super) struct Read {
    /// From the arrival to the end.
    pub(super) from_arrival: Duration,
    /// From the start to the end.
    pub(super) from_start: Duration,
    /// A slot was its own for so long, had it not shared all of them.
    pub(super) slot: Duration,
}

/// Counts since the model was loaded. Each only grows, but for the two that
/// say how many there are now and the mean.
#[derive(Debug, Default)]
pub struct Figures {
    /// Jobs that have a slot now.
    pub running: AtomicU64,
    /// Jobs that wait for one now.
    pub waiting: AtomicU64,
    /// Jobs that were answered.
    pub answered: AtomicU64,
    /// Jobs that nobody waited for any more, or whose time was over.
    pub given_up: AtomicU64,
    /// Times that one was moved beside others, to be computed with them.
    pub moved: AtomicU64,
    /// Tokens of all inputs.
    pub prompt_tokens: AtomicU64,
    /// Those of them that did not have to be read.
    pub cached_tokens: AtomicU64,
    /// Tokens of all answers.
    pub completion_tokens: AtomicU64,
    /// Microseconds from the start in a slot to the first token, together.
    pub prompt_us: AtomicU64,
    /// Microseconds from the first token to the end, together.
    pub generate_us: AtomicU64,
    /// Microseconds from the arrival to the first token or the vectors, together.
    pub first_token_us: AtomicU64,
    /// Microseconds that a job has its slot, a sliding mean.
    slot_us: AtomicU64,
}

impl Figures {
    /// A job was answered.
    pub(super) fn count(&self, outcome: &Outcome) {
        let add = |counter: &AtomicU64, value: u64| {
            counter.fetch_add(value, Ordering::Relaxed);
        };
        add(&self.answered, 1);
        add(&self.prompt_tokens, outcome.prompt_tokens as u64);
        add(&self.cached_tokens, outcome.cached_tokens as u64);
        add(&self.completion_tokens, outcome.completion_tokens as u64);
        add(&self.prompt_us, micros(outcome.prompt_time));
        add(&self.generate_us, micros(outcome.generate_time));
        add(&self.first_token_us, micros(outcome.first_token));
        self.observe(outcome.prompt_time + outcome.generate_time);
    }

    /// A job was answered with the vectors of texts of so many tokens.
    pub(super) fn count_vectors(&self, tokens: usize, read: Read) {
        let add = |counter: &AtomicU64, value: u64| {
            counter.fetch_add(value, Ordering::Relaxed);
        };
        add(&self.answered, 1);
        add(&self.prompt_tokens, tokens as u64);
        add(&self.prompt_us, micros(read.from_start));
        add(&self.first_token_us, micros(read.from_arrival));
        self.observe(read.slot);
    }

    fn observe(&self, slot: Duration) {
        let took = micros(slot);
        // Only the engine's thread writes it.
        let before = self.slot_us.load(Ordering::Relaxed);
        let mean = if before == 0 { took } else { before - before / WEIGHT + took / WEIGHT };
        self.slot_us.store(mean, Ordering::Relaxed);
    }

    /// How long a job has its slot, as far as is known.
    #[must_use]
    pub fn slot_time(&self) -> Duration {
        Duration::from_micros(self.slot_us.load(Ordering::Relaxed))
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
