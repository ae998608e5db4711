//! The plugin's configuration, and the checks that name the key that is wrong.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ksi_sdk::prelude::{Deserialize, Refusal};
use ksi_sdk::trust::Key;

use crate::tuning::{self, Preset, Setting, Tuning};

/// Most conversations that one model may serve at once.
pub const SLOTS_MAX: u32 = 64;
/// ... where nothing else is said.
const SLOTS_DEFAULT: u32 = 4;
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
/// Least memory for all models that may be configured, in MiB.
pub const MEMORY_MB_MIN: u64 = 64;
/// Largest input that may be configured: it must fit a frame of the wire.
const INPUT_BYTES_MAX: usize = 15 * 1024 * 1024;

/// Keys that an operator sets, besides settings.
const KEYS: [&str; 12] = [
    "default_model",
    "embedding_model",
    "input_bytes_max",
    "max_loaded",
    "max_memory_mb",
    "max_tokens_default",
    "models",
    "models_dir",
    "preload",
    "preset",
    "queue",
    "ttl_seconds",
];

/// The `config` table of the plugin.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Where GGUF files are looked for, in directories below and behind links as
    /// well; a folder of the plugin's own if left out.
    pub models_dir: Option<PathBuf>,
    /// The model for requests that name none.
    pub default_model: String,
    /// The model for embeddings of requests that name none; the first that can,
    /// if left out.
    pub embedding_model: Option<String>,
    /// Requests that may wait for a slot of a model; more are refused `busy`.
    pub queue: u32,
    /// Models in memory at once; the one unused for longest makes room.
    pub max_loaded: u32,
    /// Tokens to generate where the request does not say.
    pub max_tokens_default: u32,
    /// Largest input of a request, in bytes.
    pub input_bytes_max: usize,
    /// Whether only models are loaded that `models.lock` lists. The daemon sets
    /// it, by its `security.require_signed`.
    pub require_signed: bool,
    /// The public key under `models.lock`. The daemon sets it.
    pub models_key: Option<String>,
    /// Whether each model runs in a process of its own. The daemon sets it, where
    /// the plugin may have instances.
    pub instances: bool,
    /// The key of the instance that this is; `None` for the plugin itself. The
    /// daemon sets it.
    pub instance: Option<String>,
    /// Where the built-in model lies, for an instance: the plugin's own folder.
    pub home: Option<PathBuf>,
    /// Memory for all models together, in MiB, estimated before they are
    /// loaded; what the machine has free, if left out.
    pub max_memory_mb: Option<u64>,
    /// Seconds after which a model that nobody asks is let go; never, if left
    /// out.
    pub ttl_seconds: Option<u64>,
    /// Models to load when the plugin starts.
    pub preload: Vec<String>,
    /// Settings that go together.
    pub preset: Preset,
    /// Settings of models whose names, with the directories in them, fit a
    /// pattern.
    pub models: BTreeMap<String, Tuning>,
    /// Settings of all models.
    #[serde(flatten)]
    pub tuning: Tuning,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            models_dir: None,
            default_model: crate::models::BUILTIN_NAME.to_owned(),
            embedding_model: None,
            queue: 64,
            max_loaded: 2,
            max_tokens_default: 2048,
            input_bytes_max: 1024 * 1024,
            require_signed: false,
            models_key: None,
            instances: false,
            instance: None,
            home: None,
            max_memory_mb: None,
            ttl_seconds: None,
            preload: Vec::new(),
            preset: Preset::default(),
            models: BTreeMap::new(),
            tuning: Tuning::default(),
        }
    }
}

impl Config {
    /// Checks the values against each other and their limits.
    ///
    /// # Errors
    ///
    /// Names each key that is wrong, its value and what is accepted.
    pub fn check(&self) -> Result<(), Refusal> {
        let bytes_max = u64::try_from(self.input_bytes_max).unwrap_or(u64::MAX);
        let limit = INPUT_BYTES_MAX as u64;
        let mut problems = Vec::new();
        for (key, value, min, max) in [
            ("queue", u64::from(self.queue), 0, u64::from(QUEUE_MAX)),
            ("max_loaded", u64::from(self.max_loaded), 1, 16),
            ("max_tokens_default", u64::from(self.max_tokens_default), 1, 1 << 20),
            ("max_memory_mb", self.max_memory_mb.unwrap_or(MEMORY_MB_MIN), MEMORY_MB_MIN, 1 << 40),
            ("ttl_seconds", self.ttl_seconds.unwrap_or(1), 1, 1 << 32),
            ("input_bytes_max", bytes_max, 1, limit),
        ] {
            if !(min..=max).contains(&value) {
                problems.push(format!("`{key}` is {value}; accepted is {min} to {max}"));
            }
        }
        problems.extend(self.tuning.problems("", &KEYS));
        for (pattern, tuning) in &self.models {
            problems.extend(tuning.problems(&format!("models.{pattern:?}."), &[]));
        }
        let mut hint = "`ksi config show` prints the configuration with its sources";
        if let Some(Err(error)) = self.models_key.as_deref().map(str::parse::<Key>) {
            problems.push(format!("`models_key` cannot be used: {error}"));
            hint = "`ksi key show models` prints it";
        }
        tuning::refusal(problems, hint).map_or(Ok(()), Err)
    }

    /// How a model of this name runs for whoever asks for these settings, and
    /// where each comes from.
    #[must_use]
    pub fn tuning_of(&self, name: &str, asked: &Tuning) -> (Tuning, Vec<Setting>) {
        let preset = self.preset.tuning();
        let fitting = self.models.iter().filter(|(pattern, _)| tuning::fits(pattern, name));
        let own = fitting.map(|(pattern, tuning)| (format!("models.{pattern:?}"), tuning));
        let base = [
            (format!("preset {}", self.preset.as_str()), &preset),
            ("configuration".to_owned(), &self.tuning),
        ];
        tuning::resolve(base.into_iter().chain(own).chain([("request".to_owned(), asked)]))
    }
}

/// Threads for a model of this size, of which `asked` are wanted: never more
/// than there are cores, since llama.cpp takes any number and hangs for minutes
/// with a large one.
#[must_use]
pub fn thread_count(asked: Option<u32>, model_bytes: u64) -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let cores = u32::try_from(cores).unwrap_or(1);
    let default = if model_bytes < ONE_THREAD_BYTES { 1 } else { cores };
    asked.unwrap_or(default).clamp(1, cores)
}

/// Whether this build knows graphics cards.
pub const BUILT_FOR_CARDS: bool = cfg!(any(feature = "cuda", feature = "vulkan", feature = "metal"));

/// Layers to put on a graphics card, of which `asked` are wanted.
#[must_use]
pub fn gpu_layer_count(asked: Option<u32>) -> u32 {
    asked.unwrap_or(if BUILT_FOR_CARDS { 999 } else { 0 })
}

/// Slots for one model, of which `asked` are wanted. A power of two, because
/// llama.cpp aborts on some other numbers of sequences.
#[must_use]
pub fn slot_count(asked: Option<u32>) -> u32 {
    asked.unwrap_or(SLOTS_DEFAULT).clamp(1, SLOTS_MAX).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuning::{CacheType, FlashAttention};
    use serde_json::Value;

    #[test]
    fn all_that_is_wrong_is_told_at_once_and_the_name_that_may_be_meant() {
        let slip = |name: &str| [(name.to_owned(), Value::Null)].into();
        let of_one = Tuning { unknown: slip("flash_atn"), ..Tuning::default() };
        let tuning = Tuning { unknown: slip("max_lodaed"), slots: Some(0), ..Tuning::default() };
        let config =
            Config { queue: 5000, tuning, models: [("x*".to_owned(), of_one)].into(), ..Config::default() };
        let message = config.check().unwrap_err().message;
        assert_eq!(
            message,
            "llama: `queue` is 5000; accepted is 0 to 4096; there is no setting `max_lodaed`; did you mean \
             `max_loaded`?; `slots` is 0; accepted is 1 to 64; there is no setting `models.\"x*\".flash_atn`; did \
             you mean `flash_attn`?"
        );
    }

    #[test]
    fn an_absurd_number_of_threads_is_clamped_to_the_cores() {
        let cores = u32::try_from(std::thread::available_parallelism().unwrap().get()).unwrap();
        for threads in [0, 1, 600, 100_000] {
            assert!((1..=cores).contains(&thread_count(Some(threads), 1 << 40)), "{threads}");
        }
        assert_eq!(thread_count(None, 1 << 30), cores);
        assert_eq!(thread_count(None, 3_000_000), 1);
    }

    #[test]
    fn the_number_of_slots_is_a_power_of_two() {
        for (slots, expected) in [(1, 1), (3, 4), (5, 8), (64, 64)] {
            assert_eq!(slot_count(Some(slots)), expected);
        }
    }

    #[test]
    fn a_bad_value_is_refused_with_its_key() {
        assert_eq!(Config::default().check(), Ok(()));
        let tuned = |tuning: Tuning| Config { tuning, ..Config::default() };
        let none = Tuning::default;
        let quantised =
            Tuning { cache_type_v: Some(CacheType::Q4_0), flash_attn: Some(FlashAttention::Off), ..none() };
        let of_one = Config { models: [("phi*".to_owned(), quantised.clone())].into(), ..Config::default() };
        for (config, key) in [
            (tuned(Tuning { slots: Some(0), ..none() }), "slots"),
            (tuned(Tuning { slots: Some(300), ..none() }), "slots"),
            (tuned(Tuning { context: Some(3), ..none() }), "context"),
            (tuned(Tuning { threads: Some(0), ..none() }), "threads"),
            (tuned(Tuning { batch_size: Some(0), ..none() }), "batch_size"),
            (tuned(Tuning { rope_freq_scale: Some(f32::NAN), ..none() }), "rope_freq_scale"),
            (tuned(Tuning { unknown: [("slot".to_owned(), Value::Null)].into(), ..none() }), "`slot`"),
            (tuned(quantised), "cache_type_v"),
            (of_one, "models.\"phi*\".cache_type_v"),
            (Config { max_loaded: 0, ..Config::default() }, "max_loaded"),
            (Config { max_tokens_default: 0, ..Config::default() }, "max_tokens_default"),
            (Config { max_memory_mb: Some(1), ..Config::default() }, "max_memory_mb"),
            (Config { ttl_seconds: Some(0), ..Config::default() }, "ttl_seconds"),
            (Config { input_bytes_max: usize::MAX, ..Config::default() }, "input_bytes_max"),
            (Config { models_key: Some("RW".into()), ..Config::default() }, "models_key"),
        ] {
            let refusal = config.check().unwrap_err();
            assert!(refusal.message.contains(key), "{refusal}");
        }
    }
}
