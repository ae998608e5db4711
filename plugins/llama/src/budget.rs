//! Memory: what a model will take, estimated from its header before anything
//! is loaded, and how many conversations fit into what there is.

use ksi_sdk::prelude::{Code, Refusal, json};

use crate::gguf::Header;
use crate::tuning::CacheType;

/// Memory that a context takes whatever its size, a guess on the safe side.
const OVERHEAD_BYTES: u64 = 32 * 1024 * 1024;
/// Intermediate results for each token of a step, in multiples of the numbers
/// that stand for a token.
const STEP_FACTOR: u64 = 24;

/// What a model will take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// Weights and intermediate results.
    pub fixed: u64,
    /// The memory of one conversation, and its scores.
    pub per_slot: u64,
}

impl Estimate {
    /// The estimate for a context of this many tokens for each conversation, and
    /// this many tokens in one step.
    #[must_use]
    pub fn of(header: &Header, context: u32, step: u32, keys: CacheType, values: CacheType) -> Self {
        // The header counts two bytes for a number, of keys and values alike.
        let numbers = header.memory_bytes_per_token / 2;
        let blocks = numbers.div_ceil(32);
        let per_token = blocks.saturating_mul(keys.block_bytes() + values.block_bytes()) / 2;
        let steps = u64::from(step).saturating_mul(header.embedding_length).saturating_mul(4 * STEP_FACTOR);
        let scores = (header.vocabulary as u64).saturating_mul(4);
        Self {
            fixed: header.size_bytes.saturating_add(OVERHEAD_BYTES).saturating_add(steps),
            per_slot: u64::from(context).saturating_mul(per_token).saturating_add(scores),
        }
    }

    /// The same with so many bytes besides.
    #[must_use]
    pub fn with(self, bytes: u64) -> Self {
        Self { fixed: self.fixed.saturating_add(bytes), ..self }
    }

    /// Bytes with this many conversations.
    #[must_use]
    pub fn with_slots(self, slots: u32) -> u64 {
        self.fixed.saturating_add(self.per_slot.saturating_mul(u64::from(slots)))
    }

    /// The most slots, of `wanted` and its halves, that fit into `available`.
    ///
    /// # Errors
    ///
    /// `unavailable` with both numbers where not even one fits; `limit` says
    /// whose limit that is.
    pub fn fit(self, name: &str, wanted: u32, available: u64, limit: &str) -> Result<u32, Refusal> {
        let mut slots = wanted;
        while slots > 1 && self.with_slots(slots) > available {
            slots /= 2;
        }
        let needed = self.with_slots(slots);
        if needed <= available {
            return Ok(slots);
        }
        let message = format!(
            "model `{name}` needs about {} MB of memory, and {} MB {limit}",
            needed / 1_000_000,
            available / 1_000_000
        );
        Err(Refusal::new(Code::Unavailable, message)
            .hint("unload another model, use a smaller one, or lower `context` of the llama plugin")
            .details(json!({ "needed_bytes": needed, "available_bytes": available })))
    }
}

/// Memory that can be used without swapping; `None` where the system does not
/// say.
#[must_use]
pub fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    number_of(&text, "MemAvailable:")
}

/// Memory that this process has now; `None` where the system does not say.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    number_of(&text, "VmRSS:")
}

/// The number of a line, in bytes; the system writes kibibytes.
fn number_of(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Estimate = Estimate { fixed: 500_000_000, per_slot: 1_000_000_000 };

    #[test]
    fn free_memory_is_read_as_the_system_writes_it() {
        let text = "MemTotal: 8 kB\nMemAvailable:    2048 kB\nSwapTotal: 0 kB\n";
        assert_eq!(number_of(text, "MemAvailable:"), Some(2048 * 1024));
        assert_eq!(number_of("MemTotal: 8 kB\n", "MemAvailable:"), None);
        assert_eq!(number_of("MemAvailable: many\n", "MemAvailable:"), None);
        assert!(resident_bytes().is_some_and(|bytes| bytes > 1_000_000));
    }

    #[test]
    fn a_model_that_does_not_fit_is_refused_with_both_numbers() {
        let refusal = SMALL.fit("big", 1, 1_200_000_000, "are free").unwrap_err();
        assert_eq!(refusal.code, Code::Unavailable);
        assert!(refusal.message.contains("1500 MB") && refusal.message.contains("1200 MB"), "{refusal}");
        assert_eq!(refusal.details.unwrap()["available_bytes"], 1_200_000_000_u64);
    }

    #[test]
    fn slots_are_given_up_before_a_model_is_refused() {
        assert_eq!(SMALL.fit("m", 8, 3_000_000_000, "are free"), Ok(2));
        assert_eq!(SMALL.fit("m", 8, u64::MAX, "are free"), Ok(8));
        assert_eq!(Estimate { fixed: 1, per_slot: u64::MAX }.with_slots(64), u64::MAX);
    }
}
