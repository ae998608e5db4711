//! How a model runs: settings under the names of llama.cpp's own options, and
//! where each comes from.
//!
//! Layers, later ones win: the preset, the plugin's configuration, the entries
//! of `models` whose pattern fits the model's name, in the order of the
//! patterns, and last the request. What is wrong with any of them is told all at
//! once, by the same code (`problems`).

mod problems;

use std::collections::BTreeMap;

use ksi_sdk::prelude::{Deserialize, JsonSchema, Serialize};
use serde_json::{Map, Value, json};

pub(crate) use self::problems::refusal;

/// A set of settings that go together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// Nothing is set: what fits most machines.
    #[default]
    Balanced,
    /// The least memory: a short context, small batches, a quantised cache.
    Memory,
    /// The most tokens per second for many at once; weights stay in memory.
    Speed,
    /// The first answer soon after the start: little to set up, weights read as
    /// they are needed.
    Loading,
}

impl Preset {
    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Balanced => "balanced",
            Self::Memory => "memory",
            Self::Speed => "speed",
            Self::Loading => "loading",
        }
    }

    /// What it sets.
    #[must_use]
    pub fn tuning(self) -> Tuning {
        let none = Tuning::default();
        match self {
            Self::Balanced => none,
            Self::Memory => Tuning {
                context: Some(2048),
                slots: Some(1),
                batch_size: Some(128),
                ubatch_size: Some(128),
                flash_attn: Some(FlashAttention::On),
                cache_type_k: Some(CacheType::Q8_0),
                cache_type_v: Some(CacheType::Q8_0),
                mmap: Some(true),
                ..none
            },
            Self::Speed => Tuning {
                slots: Some(8),
                batch_size: Some(2048),
                ubatch_size: Some(512),
                mmap: Some(true),
                mlock: Some(true),
                ..none
            },
            Self::Loading => Tuning {
                context: Some(2048),
                slots: Some(2),
                batch_size: Some(256),
                ubatch_size: Some(256),
                mmap: Some(true),
                mlock: Some(false),
                ..none
            },
        }
    }
}

/// Whether attention is computed in one fused step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum FlashAttention {
    Auto,
    On,
    Off,
}

/// How the memory of conversations is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are those of llama.cpp")]
pub enum CacheType {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q5_1,
    Q5_0,
    Q4_1,
    Q4_0,
}

impl CacheType {
    /// Bytes of 32 numbers.
    #[must_use]
    pub fn block_bytes(self) -> u64 {
        match self {
            Self::F32 => 128,
            Self::F16 | Self::Bf16 => 64,
            Self::Q8_0 => 34,
            Self::Q5_1 => 24,
            Self::Q5_0 => 22,
            Self::Q4_1 => 20,
            Self::Q4_0 => 18,
        }
    }

    fn is_quantised(self) -> bool {
        !matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }
}

/// How positions beyond those of the training are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are those of llama.cpp")]
pub enum RopeScaling {
    None,
    Linear,
    Yarn,
}

/// Settings of a model; what is left out is decided by the layers below, and at
/// last by the plugin.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Tuning {
    /// Tokens of context for each conversation; what the model was trained for,
    /// but at most 4096, if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<u32>,
    /// Conversations that one model serves at once; rounded up to a power of
    /// two. 4 if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// Processor threads, never more than there are cores. If left out: all
    /// cores, but one for a model of less than 64 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// Threads while prompts are read; `threads` if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads_batch: Option<u32>,
    /// Most tokens that are decoded at once (1024).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<u32>,
    /// Most tokens that are computed in one step (512).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ubatch_size: Option<u32>,
    /// `auto`, `on` or `off`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flash_attn: Option<FlashAttention>,
    /// How the keys of conversations are stored (`f16`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_type_k: Option<CacheType>,
    /// How the values are; all but `f32`, `f16` and `bf16` need flash attention.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_type_v: Option<CacheType>,
    /// `none`, `linear` or `yarn`; as the model says if left out. With it, a
    /// context beyond that of the training may be asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
    /// The base of positions; the model's if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_freq_base: Option<f32>,
    /// By how much positions are compressed; the model's if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_freq_scale: Option<f32>,
    /// Whether weights are read from the file as they are needed (true).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mmap: Option<bool>,
    /// Whether weights are kept from being swapped out (false).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlock: Option<bool>,
    /// Layers on a graphics card; all where the build has one, if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_layers: Option<u32>,
    /// Adapters that change the model, by the names of their files, each with how
    /// much of it is laid over the model where that is not all: `["style",
    /// "terse:0.5"]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<Vec<String>>,
    /// What is none of these, to be refused.
    #[serde(flatten, skip_serializing)]
    #[schemars(skip)]
    pub(crate) unknown: BTreeMap<String, Value>,
}

/// An adapter that is laid over a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    /// The name of its file.
    pub name: String,
    /// How much of it.
    pub scale: f32,
}

impl Lora {
    /// `NAME` or `NAME:SCALE`.
    ///
    /// # Errors
    ///
    /// Says what is wrong.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (name, scale) = match text.rsplit_once(':') {
            None => (text, 1.0),
            Some((name, scale)) => {
                (name, scale.parse::<f32>().map_err(|_| "whose part after `:` is no number")?)
            }
        };
        if name.is_empty() {
            return Err("which has no name");
        }
        if !(-100.0..=100.0).contains(&scale) {
            return Err("of which more than a hundred times is wanted");
        }
        Ok(Self { name: name.to_owned(), scale })
    }
}

/// A setting, and who says so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: Value,
    /// `preset NAME`, `configuration`, `models."PATTERN"`, or `request`: `settings` of
    /// `llama:load`.
    pub from: String,
}

impl Tuning {
    /// What is set, by name.
    pub(crate) fn entries(&self) -> Map<String, Value> {
        match json!(self) {
            Value::Object(entries) => entries,
            _ => Map::new(),
        }
    }
}

/// Lays settings over each other.
#[must_use]
pub fn resolve<'a>(layers: impl IntoIterator<Item = (String, &'a Tuning)>) -> (Tuning, Vec<Setting>) {
    let mut settings: Vec<Setting> = Vec::new();
    for (from, tuning) in layers {
        for (name, value) in tuning.entries() {
            settings.retain(|setting| setting.name != name);
            settings.push(Setting { name, value, from: from.clone() });
        }
    }
    let values: Map<String, Value> =
        settings.iter().map(|setting| (setting.name.clone(), setting.value.clone())).collect();
    // Every value is one that a `Tuning` has given.
    (serde_json::from_value(Value::Object(values)).unwrap_or_default(), settings)
}

/// Whether a name fits a pattern, in which `*` stands for any text and `?` for
/// one character.
#[must_use]
pub fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut seen) = (0, 0);
    // Where the last `*` was, and how much of the name it stands for.
    let mut star: Option<(usize, usize)> = None;
    while seen < name.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, seen));
                at += 1;
            }
            Some(character) if *character == '?' || *character == name[seen] => {
                at += 1;
                seen += 1;
            }
            _ => match star {
                Some((place, taken)) => {
                    star = Some((place, taken + 1));
                    (at, seen) = (place + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|character| *character == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_as_in_a_shell() {
        for (pattern, name, expected) in [
            ("phi-3*", "phi-3-mini", true),
            ("*mini*", "phi-3-mini", true),
            ("phi-3*", "microsoft/phi-3-mini", false),
            ("*phi-3*", "microsoft/phi-3-mini", true),
            ("*-mini", "phi-3-mini-4k", false),
            ("q?en", "qwen", true),
            ("q?en", "qen", false),
            ("*", "", true),
            ("", "", true),
            ("", "x", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b", false),
            ("ä*", "äö", true),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn later_layers_win_and_say_so() {
        let config = Tuning { slots: Some(2), threads: Some(3), ..Tuning::default() };
        let over = Tuning { threads: Some(1), rope_freq_scale: Some(0.5), ..Tuning::default() };
        let layers = [
            ("preset memory".to_owned(), &Preset::Memory.tuning()),
            ("configuration".to_owned(), &config),
            ("models.\"x*\"".to_owned(), &over),
        ];
        let (tuning, settings) = resolve(layers);
        assert_eq!((tuning.slots, tuning.threads, tuning.context), (Some(2), Some(1), Some(2048)));
        assert_eq!((tuning.cache_type_k, tuning.rope_freq_scale), (Some(CacheType::Q8_0), Some(0.5)));
        let from = |name: &str| {
            settings.iter().find(|setting| setting.name == name).map(|setting| setting.from.as_str())
        };
        assert_eq!(from("slots"), Some("configuration"));
        assert_eq!(from("threads"), Some("models.\"x*\""));
        assert_eq!(from("context"), Some("preset memory"));
        assert_eq!(from("mlock"), None);
    }

    #[test]
    fn every_preset_is_one_that_would_be_accepted() {
        for preset in [Preset::Balanced, Preset::Memory, Preset::Speed, Preset::Loading] {
            assert_eq!(preset.tuning().problems("", &[]), Vec::<String>::new(), "{}", preset.as_str());
        }
    }
}
