//! `llama:metrics`: what the models have done, and what they cost.

use std::sync::atomic::{AtomicU64, Ordering};

use ksi_sdk::prelude::{Ctx, Deserialize, JsonSchema, Rc, Refusal, Serialize};

use crate::Llama;
use crate::budget::resident_bytes;
use crate::engine::backend;
use crate::shelf::Resident;

/// Show what the models in memory have done since each was loaded, and what
/// they cost.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AskMetrics {}

/// Figures of the plugin.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Metrics {
    /// Of each model in memory, by name.
    pub models: Vec<ModelMetrics>,
    /// Models that were loaded since the plugin started.
    pub loads: u64,
    /// Loads that were refused or failed.
    pub load_failures: u64,
    /// Models that made room for others.
    pub evictions: u64,
    /// Models that were let go because nobody asked them for `ttl_seconds`.
    pub expirations: u64,
    /// Memory of all models in memory, estimated before they were loaded.
    pub memory_bytes: u64,
    /// Memory that the plugin and its instances have now, where the system tells.
    pub resident_bytes: Option<u64>,
    /// Graphics cards that the models may use.
    #[serde(default)]
    pub cards: Vec<Card>,
}

/// A graphics card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Card {
    /// As llama.cpp calls it: `CUDA0`.
    pub name: String,
    /// As its maker calls it.
    pub about: String,
    /// Its memory.
    pub memory_bytes: u64,
    /// What of it nobody uses now.
    pub free_bytes: u64,
    /// Whether that is the memory of the machine, as for those inside a processor.
    #[serde(default)]
    pub shared: bool,
}

/// Figures of one model. Means are over all of its answers; 0 before the first.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct ModelMetrics {
    /// Its name.
    pub model: String,
    /// Conversations that it serves at once.
    pub slots: u32,
    /// Requests that have a slot now.
    pub running: u64,
    /// Requests that wait for one now.
    pub waiting: u64,
    /// Requests that were answered.
    pub answered: u64,
    /// Requests that nobody waited for any more, or whose time was over.
    pub given_up: u64,
    /// Times that one was moved beside others, to be computed with them.
    #[serde(default)]
    pub moved: u64,
    /// Tokens of all inputs.
    pub prompt_tokens: u64,
    /// Those of them that did not have to be read again.
    pub cached_tokens: u64,
    /// Tokens of all answers.
    pub completion_tokens: u64,
    /// Input tokens read per second, per conversation.
    pub prompt_per_second: f64,
    /// Answer tokens per second, per conversation.
    pub generate_per_second: f64,
    /// Mean time from the arrival of a request to its first token, or its vectors.
    pub first_token_ms: f64,
    /// Time that loading took.
    pub load_ms: u64,
    /// Memory of the machine that it takes, estimated before it was loaded.
    pub memory_bytes: u64,
    /// Memory of graphics cards that it takes, an estimate.
    #[serde(default)]
    pub card_bytes: u64,
}

impl Llama {
    pub(crate) async fn metrics(self: Rc<Self>, ctx: Ctx, _ask: AskMetrics) -> Result<Metrics, Refusal> {
        if let Some(workers) = &self.workers {
            return workers.metrics(&ctx).await;
        }
        let residents = self.shelf.residents();
        let moves = self.shelf.moves();
        Ok(Metrics {
            memory_bytes: residents.values().map(|resident| resident.bytes).sum(),
            models: residents.iter().map(|(name, resident)| of(name, resident)).collect(),
            loads: get(&moves.loads),
            load_failures: get(&moves.load_failures),
            evictions: get(&moves.evictions),
            expirations: get(&moves.expirations),
            resident_bytes: resident_bytes(),
            cards: backend::cards().unwrap_or_default(),
        })
    }
}

fn of(name: &str, resident: &Resident) -> ModelMetrics {
    let figures = resident.engine.figures();
    let (answered, prompt, cached) =
        (get(&figures.answered), get(&figures.prompt_tokens), get(&figures.cached_tokens));
    let completion = get(&figures.completion_tokens);
    ModelMetrics {
        model: name.to_owned(),
        slots: resident.report.slots,
        running: get(&figures.running),
        waiting: get(&figures.waiting),
        answered,
        given_up: get(&figures.given_up),
        moved: get(&figures.moved),
        prompt_tokens: prompt,
        cached_tokens: cached,
        completion_tokens: completion,
        prompt_per_second: ratio(prompt - cached.min(prompt), get(&figures.prompt_us)) * 1e6,
        // The first token of each answer belongs to the reading of its input.
        generate_per_second: ratio(completion.saturating_sub(answered), get(&figures.generate_us)) * 1e6,
        first_token_ms: ratio(get(&figures.first_token_us), answered) / 1e3,
        load_ms: resident.report.load_ms,
        memory_bytes: resident.bytes,
        card_bytes: resident.report.card_bytes,
    }
}

pub(crate) fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}
