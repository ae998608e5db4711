//! Memory: what a model will take, estimated from its header before anything
//! is loaded, and how many conversations fit into what there is.

use ksi_sdk::prelude::{Code, Refusal, json};

use crate::gguf::Header;
use crate::metrics::Card;
use crate::tuning::CacheType;

/// Memory that a context takes whatever its size, a guess on the safe side.
const OVERHEAD_BYTES: u64 = 32 * 1024 * 1024;
/// Intermediate results for each token of a step, in multiples of the numbers
/// that stand for a token.
const STEP_FACTOR: u64 = 24;

/// What a model will take of one kind of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// Weights and intermediate results.
    pub fixed: u64,
    /// The memory of one conversation, and its scores.
    pub per_slot: u64,
}

/// The parts of which that consists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// Weights, with those of adapters.
    weights: u64,
    /// What of them stands for tokens that are read, which no card ever holds.
    embeddings: u64,
    /// Intermediate results of a step.
    steps: u64,
    /// The memory of one conversation.
    cache: u64,
    /// The scores of one conversation.
    scores: u64,
    /// Layers, at least 1.
    layers: u64,
    /// Whether what stands for tokens that are read is the output, too: where that is
    /// on a card, there is a copy.
    tied: bool,
}

impl Parts {
    /// The parts for a context of this many tokens for each conversation, and this
    /// many tokens in one step.
    #[must_use]
    pub fn of(header: &Header, context: u32, step: u32, keys: CacheType, values: CacheType) -> Self {
        // The header counts two bytes for a number, of keys and values alike.
        let numbers = header.memory_bytes_per_token / 2;
        let blocks = numbers.div_ceil(32);
        let per_token = blocks.saturating_mul(keys.block_bytes() + values.block_bytes()) / 2;
        let vocabulary = header.vocabulary as u64;
        let embeddings = vocabulary.saturating_mul(header.embedding_length).min(header.parameters);
        Self {
            weights: header.size_bytes,
            embeddings: part(header.size_bytes, embeddings, header.parameters),
            steps: u64::from(step).saturating_mul(header.embedding_length).saturating_mul(4 * STEP_FACTOR),
            cache: u64::from(context).saturating_mul(per_token),
            scores: vocabulary.saturating_mul(4),
            layers: header.block_count.max(1),
            tied: header.tied_output,
        }
    }

    /// The same with so many bytes of weights besides.
    #[must_use]
    pub fn with(self, bytes: u64) -> Self {
        Self { weights: self.weights.saturating_add(bytes), ..self }
    }

    /// What is in the memory of the machine, and what on graphics cards, with so
    /// many layers there. The output counts as one more layer, as llama.cpp has it;
    /// a layer's part of a conversation lies where the layer does.
    #[must_use]
    pub fn split(self, on_cards: u32) -> (Estimate, Estimate) {
        let blocks = self.layers + 1;
        let on = u64::from(on_cards).min(blocks);
        let movable = self.weights.saturating_sub(self.embeddings);
        let moved = match self.tied {
            true => part(movable, on.min(self.layers), self.layers),
            false => part(movable, on, blocks),
        };
        let copied = if self.tied && on == blocks { self.embeddings } else { 0 };
        let cached = part(self.cache, on.min(self.layers), self.layers);
        let steps = |wanted: bool| if wanted { self.steps } else { 0 };
        let memory = Estimate {
            fixed: (self.weights - moved).saturating_add(OVERHEAD_BYTES).saturating_add(steps(on < blocks)),
            per_slot: (self.cache - cached).saturating_add(self.scores),
        };
        let cards = match on {
            0 => Estimate { fixed: 0, per_slot: 0 },
            _ => Estimate {
                fixed: [copied, OVERHEAD_BYTES, self.steps].into_iter().fold(moved, u64::saturating_add),
                per_slot: cached,
            },
        };
        (memory, cards)
    }
}

/// So many of `all` parts of a number, rounded down; at most the number.
fn part(number: u64, of: u64, all: u64) -> u64 {
    let part = u128::from(number) * u128::from(of) / u128::from(all.max(1));
    u64::try_from(part).unwrap_or(u64::MAX).min(number)
}

/// What is free on the graphics cards that have memory of their own; `None` where
/// there is none. Without one, or with one that shares the memory of the machine,
/// a model takes that.
#[must_use]
pub fn room_on(cards: &[Card]) -> Option<u64> {
    let own = cards.iter().filter(|card| !card.shared).map(|card| card.free_bytes);
    own.reduce(u64::saturating_add)
}

impl Estimate {
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

    /// 32 layers of 1 GB, the output with 1 GB, and 1 GB that stands for tokens.
    const BIG: Parts = Parts {
        weights: 34_000_000_000,
        embeddings: 1_000_000_000,
        steps: 100,
        cache: 32_000_000,
        scores: 7,
        layers: 32,
        tied: false,
    };

    const NOTHING: Estimate = Estimate { fixed: 0, per_slot: 0 };

    #[test]
    fn without_layers_on_cards_all_is_in_the_memory_of_the_machine() {
        let all = Estimate { fixed: 34_000_000_100 + OVERHEAD_BYTES, per_slot: 32_000_007 };
        assert_eq!(BIG.split(0), (all, NOTHING));
    }

    #[test]
    fn what_is_on_cards_is_not_in_the_memory_of_the_machine() {
        let (memory, cards) = BIG.split(8);
        assert_eq!(memory, Estimate { fixed: 26_000_000_100 + OVERHEAD_BYTES, per_slot: 24_000_007 });
        assert_eq!(cards, Estimate { fixed: 8_000_000_100 + OVERHEAD_BYTES, per_slot: 8_000_000 });
        // All layers, but not the output; then the output, too, and no more than there is.
        let (memory, cards) = BIG.split(32);
        assert_eq!(memory, Estimate { fixed: 2_000_000_100 + OVERHEAD_BYTES, per_slot: 7 });
        assert_eq!(cards.per_slot, 32_000_000);
        for layers in [33, 999, u32::MAX] {
            let (memory, cards) = BIG.split(layers);
            assert_eq!(memory, Estimate { fixed: 1_000_000_000 + OVERHEAD_BYTES, per_slot: 7 });
            assert_eq!(cards, Estimate { fixed: 33_000_000_100 + OVERHEAD_BYTES, per_slot: 32_000_000 });
        }
    }

    #[test]
    fn a_card_that_has_the_output_has_a_copy_where_that_is_what_is_read() {
        let tied = Parts { weights: 33_000_000_000, tied: true, ..BIG };
        let (memory, cards) = tied.split(32);
        assert_eq!(memory.fixed, 1_000_000_100 + OVERHEAD_BYTES);
        assert_eq!(cards.fixed, 32_000_000_100 + OVERHEAD_BYTES);
        let (memory, cards) = tied.split(33);
        assert_eq!(memory.fixed, 1_000_000_000 + OVERHEAD_BYTES);
        assert_eq!(cards.fixed, 33_000_000_100 + OVERHEAD_BYTES);
    }

    #[test]
    fn each_layer_more_on_cards_leaves_more_of_the_machine_and_takes_more_of_them() {
        let mut last = BIG.split(0);
        for layers in 1..=33 {
            let now = BIG.split(layers);
            assert!(now.0.with_slots(4) < last.0.with_slots(4), "{layers}");
            assert!(now.1.with_slots(4) > last.1.with_slots(4), "{layers}");
            last = now;
        }
        let absurd = Parts { weights: u64::MAX, steps: u64::MAX, cache: u64::MAX, embeddings: 0, ..BIG };
        let (memory, cards) = absurd.split(16);
        assert_eq!((memory.with_slots(64), cards.with_slots(64)), (u64::MAX, u64::MAX));
    }

    #[test]
    fn only_cards_with_memory_of_their_own_have_room() {
        let card = |free_bytes, shared| Card {
            name: "CUDA0".into(),
            about: "a card".into(),
            memory_bytes: 100,
            free_bytes,
            shared,
        };
        assert_eq!(room_on(&[]), None);
        assert_eq!(room_on(&[card(60, true)]), None);
        assert_eq!(room_on(&[card(60, true), card(20, false), card(30, false)]), Some(50));
    }

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
