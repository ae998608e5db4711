//! `llama:profile`: how a model would run, and who says so.

use ksi_sdk::prelude::{Ctx, Deserialize, JsonSchema, Rc, Refusal, Serialize};
use serde_json::{Map, Value};

use crate::Llama;
use crate::budget::available_bytes;
use crate::config::gpu_layer_count;
use crate::engine::backend;
use crate::plan::Plan;
use crate::tuning::{Preset, Setting, Tuning};

/// Show how a model would run if it were loaded now: what is set and where,
/// and the memory that it would take.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AskProfile {
    /// Name of the model; the default model if left out.
    #[serde(default)]
    pub model: Option<String>,
    /// What this preset would do instead of the one that is configured.
    #[serde(default)]
    pub preset: Option<Preset>,
    /// What these settings of `llama:load` would do.
    #[serde(default)]
    #[schemars(with = "Tuning")]
    pub settings: Map<String, Value>,
}

/// How a model would run.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Profile {
    /// The model.
    pub model: String,
    /// The preset.
    pub preset: Preset,
    /// What is set, and by whom. What is not in it is up to the plugin and to
    /// llama.cpp.
    pub settings: Vec<Setting>,
    /// What it runs with now, where it is in memory: that may have been loaded with
    /// other settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loaded: Option<Vec<Setting>>,
    /// Tokens of context for each conversation.
    pub context: u32,
    /// Conversations at the same time, where there is memory for them.
    pub slots: u32,
    /// Processor threads.
    pub threads: u32,
    /// Layers asked to be on a graphics card.
    pub gpu_layers: u32,
    /// Memory of the machine that it would take with its adapters: an estimate.
    pub memory_bytes: u64,
    /// Memory of graphics cards that it would take, if they have room: an estimate.
    #[serde(default)]
    pub card_bytes: u64,
    /// Memory for all models together by `max_memory_mb`, where that is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_max_bytes: Option<u64>,
    /// Memory that the machine has free, where it tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_free_bytes: Option<u64>,
}

impl Llama {
    pub(crate) async fn profile(self: Rc<Self>, ctx: Ctx, ask: AskProfile) -> Result<Profile, Refusal> {
        let asked = Tuning::read("settings.", &ask.settings)?;
        let model = self.resolve(ask.model);
        let mut config = self.config.clone();
        config.preset = ask.preset.unwrap_or(config.preset);
        let (shelf, name, lora) = (self.shelf.clone(), model.clone(), asked.clone());
        let (header, adapters) = ctx
            .spawn_blocking(move || {
                let (_, header) = shelf.library().find(&name)?;
                shelf.adapter_bytes(&name, &lora, &header).map(|bytes| (header, bytes))
            })
            .await??;
        let mut plan = Plan::of(&config, &model, &asked, &header, adapters, backend::cards().as_deref())?;
        let (setup, memory_bytes) = plan.settle(plan.wanted());
        let card_bytes = plan.card_bytes(plan.wanted());
        Ok(Profile {
            loaded: self.loaded().remove(&model),
            model,
            preset: config.preset,
            settings: plan.settings,
            context: setup.context,
            slots: setup.slots,
            threads: setup.threads,
            gpu_layers: gpu_layer_count(setup.tuning.gpu_layers),
            memory_bytes,
            card_bytes,
            memory_max_bytes: config.max_memory_mb.map(|mb| mb.saturating_mul(1024 * 1024)),
            memory_free_bytes: available_bytes(),
        })
    }
}
