//! The plugin's configuration, and the checks that name the key that is wrong.

use std::path::PathBuf;

use ksi_sdk::prelude::{Code, Deserialize, Refusal};
use ksi_sdk::trust::Key;

/// Most conversations that one model may serve at once.
pub const SLOTS_MAX: u32 = 64;
/// Most requests that may wait for one model.
const QUEUE_MAX: u32 = 4096;
/// Context for each conversation where nothing else is said, in tokens. Large
/// enough for a long chat, small enough for a laptop.
pub const CONTEXT_DEFAULT: u32 = 4096;
/// Smallest context, in tokens.
pub const CONTEXT_MIN: u32 = 16;
/// Models below this size run on one thread unless told otherwise: their steps
/// are so short that threads spend more time waiting for each other than
/// working, and many times more where another process wants the cores.
const ONE_THREAD_BYTES: u64 = 64 * 1024 * 1024;
/// Largest input that may be configured: it must fit a frame of the wire.
const INPUT_BYTES_MAX: usize = 15 * 1024 * 1024;

/// The `config` table of the plugin.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where GGUF files are looked for; a folder of the plugin's own if left
    /// out.
    pub models_dir: Option<PathBuf>,
    /// The model for requests that name none.
    pub default_model: String,
    /// The model for embeddings of requests that name none; the first that can,
    /// if left out.
    pub embedding_model: Option<String>,
    /// Processor threads of one model, never more than there are cores. If
    /// left out: all cores, but one for a model of less than 64 MiB.
    pub threads: Option<u32>,
    /// Tokens of context for each conversation; what the model was trained
    /// for, but at most 4096, if left out.
    pub context: Option<u32>,
    /// Conversations that one model serves at once; rounded up to a power of
    /// two.
    pub slots: u32,
    /// Requests that may wait for a slot of a model; more are refused `busy`.
    pub queue: u32,
    /// Models in memory at once; the one unused for longest makes room.
    pub max_loaded: u32,
    /// Tokens to generate where the request does not say.
    pub max_tokens_default: u32,
    /// Layers on a graphics card; all where the build has one, if left out.
    pub gpu_layers: Option<u32>,
    /// Largest input of a request, in bytes.
    pub input_bytes_max: usize,
    /// Whether only models are loaded that `models.lock` lists. The daemon sets
    /// it, by its `security.require_signed`.
    pub require_signed: bool,
    /// The public key under `models.lock`. The daemon sets it.
    pub models_key: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            models_dir: None,
            default_model: crate::models::BUILTIN_NAME.to_owned(),
            embedding_model: None,
            threads: None,
            context: None,
            slots: 4,
            queue: 64,
            max_loaded: 2,
            max_tokens_default: 256,
            gpu_layers: None,
            input_bytes_max: 1024 * 1024,
            require_signed: false,
            models_key: None,
        }
    }
}

impl Config {
    /// Checks the values against each other and their limits.
    ///
    /// # Errors
    ///
    /// Names the key, its value and what is accepted.
    pub fn check(&self) -> Result<(), Refusal> {
        let bytes_max = u64::try_from(self.input_bytes_max).unwrap_or(u64::MAX);
        let limit = INPUT_BYTES_MAX as u64;
        for (key, value, min, max) in [
            ("slots", u64::from(self.slots), 1, u64::from(SLOTS_MAX)),
            ("queue", u64::from(self.queue), 0, u64::from(QUEUE_MAX)),
            ("max_loaded", u64::from(self.max_loaded), 1, 16),
            ("max_tokens_default", u64::from(self.max_tokens_default), 1, 1 << 20),
            ("context", u64::from(self.context.unwrap_or(CONTEXT_DEFAULT)), u64::from(CONTEXT_MIN), 1 << 24),
            // Any number: one beyond the cores is clamped, and the load says so.
            ("threads", u64::from(self.threads.unwrap_or(1)), 1, u64::from(u32::MAX)),
            ("input_bytes_max", bytes_max, 1, limit),
        ] {
            if !(min..=max).contains(&value) {
                let message = format!("llama: `{key}` is {value}; accepted is {min} to {max}");
                return Err(Refusal::new(Code::InvalidPayload, message)
                    .hint("`ksi config show` prints the configuration with its sources"));
            }
        }
        match self.models_key.as_deref().map(str::parse::<Key>) {
            Some(Err(error)) => {
                let message = format!("llama: `models_key` cannot be used: {error}");
                Err(Refusal::new(Code::InvalidPayload, message).hint("`ksi key show models` prints it"))
            }
            _ => Ok(()),
        }
    }

    /// Threads for a model of this size: never more than there are cores, since
    /// llama.cpp takes any number and hangs for minutes with a large one.
    #[must_use]
    pub fn thread_count(&self, model_bytes: u64) -> u32 {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let cores = u32::try_from(cores).unwrap_or(1);
        let default = if model_bytes < ONE_THREAD_BYTES { 1 } else { cores };
        self.threads.unwrap_or(default).clamp(1, cores)
    }

    /// Layers to put on a graphics card.
    #[must_use]
    pub fn gpu_layer_count(&self) -> u32 {
        let all = if cfg!(any(feature = "cuda", feature = "vulkan", feature = "metal")) { 999 } else { 0 };
        self.gpu_layers.unwrap_or(all)
    }

    /// Slots for one model. A power of two, because llama.cpp aborts on some
    /// other numbers of sequences.
    #[must_use]
    pub fn slot_count(&self) -> u32 {
        self.slots.clamp(1, SLOTS_MAX).next_power_of_two()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absurd_number_of_threads_is_clamped_to_the_cores() {
        let cores = u32::try_from(std::thread::available_parallelism().unwrap().get()).unwrap();
        for threads in [0, 1, 600, 100_000] {
            let config = Config { threads: Some(threads), ..Config::default() };
            assert!((1..=cores).contains(&config.thread_count(1 << 40)), "{threads}");
        }
        assert_eq!(Config::default().thread_count(1 << 30), cores);
        assert_eq!(Config::default().thread_count(3_000_000), 1);
    }

    #[test]
    fn the_number_of_slots_is_a_power_of_two() {
        for (slots, expected) in [(1, 1), (3, 4), (5, 8), (64, 64)] {
            assert_eq!(Config { slots, ..Config::default() }.slot_count(), expected);
        }
    }

    #[test]
    fn a_bad_value_is_refused_with_its_key() {
        assert_eq!(Config::default().check(), Ok(()));
        for (config, key) in [
            (Config { slots: 0, ..Config::default() }, "slots"),
            (Config { slots: 300, ..Config::default() }, "slots"),
            (Config { max_loaded: 0, ..Config::default() }, "max_loaded"),
            (Config { max_tokens_default: 0, ..Config::default() }, "max_tokens_default"),
            (Config { context: Some(3), ..Config::default() }, "context"),
            (Config { threads: Some(0), ..Config::default() }, "threads"),
            (Config { input_bytes_max: usize::MAX, ..Config::default() }, "input_bytes_max"),
            (Config { models_key: Some("RW".into()), ..Config::default() }, "models_key"),
        ] {
            let refusal = config.check().unwrap_err();
            assert!(refusal.message.contains(key), "{refusal}");
        }
    }
}
