//! What travels besides what all providers have: the requests of the plugin,
//! their chunks and their answers. Doc comments here are the help that users
//! see.

use ksi_provider::request::invalid;
use ksi_provider::{Capability, Generate, Message, Tool, ToolChoice};
use ksi_sdk::prelude::{Code, Deserialize, JsonSchema, Refusal, Serialize, json};
use serde_json::{Map, Value};

use crate::tuning::{Setting, Tuning};

/// The models.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Models {
    /// The default model first, then the built-in one, then by their names.
    pub models: Vec<ModelEntry>,
    /// What of the models directory was not looked at, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A model.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct ModelEntry {
    /// Its name: the path of the file in the models directory, without `.gguf`.
    pub name: String,
    /// Where the file is.
    pub path: String,
    /// Whether it ships with the plugin.
    pub builtin: bool,
    /// Whether it is a toy: it shows that everything works, and is often wrong.
    pub toy: bool,
    /// Whether it is in memory now.
    pub loaded: bool,
    /// What it runs with where it is in memory, and who says so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settings: Vec<Setting>,
    /// What it can do.
    pub capabilities: Vec<Capability>,
    /// The family of the model.
    pub architecture: Option<String>,
    /// Number of weights.
    pub parameters: Option<u64>,
    /// How the weights are stored.
    pub quantization: Option<String>,
    /// Number of tokens that it was trained to attend to.
    pub context_length: Option<u64>,
    /// Size of the file.
    pub size_bytes: u64,
    /// Whether it is no model but an adapter, which `lora` of a model may name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub adapter: bool,
    /// What is wrong with the file, or why it is quarantined; such a model cannot
    /// be loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Load a model into memory. Loading happens by itself when a model is asked
/// for; this does it ahead of time, and shows how far it is.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// Name of the model; the default model if left out.
    #[serde(default)]
    pub model: Option<String>,
    /// Tokens of context for each conversation; the same as `context` of `settings`.
    #[serde(default)]
    pub context: Option<u32>,
    /// How it is to run, under the names of the configuration: these go over what
    /// is set there, until the model is unloaded or makes room. A model that is in
    /// memory with others is loaded again, unless it is in use.
    #[serde(default)]
    #[schemars(with = "Tuning")]
    pub settings: Map<String, Value>,
}

impl Load {
    /// The settings that are asked for.
    ///
    /// # Errors
    ///
    /// `invalid_payload` with all that is wrong with them.
    pub fn asked(&self) -> Result<Tuning, Refusal> {
        let tuning = Tuning::read("settings.", &self.settings)?;
        match (self.context, tuning.context) {
            (Some(one), Some(other)) if one != other => {
                let message = format!("`context` is {one}, and `settings.context` is {other}");
                Err(invalid("context", message, "give one of the two"))
            }
            (one, other) => Ok(Tuning { context: one.or(other), ..tuning }),
        }
    }
}

/// How far a model is loaded.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct LoadProgress {
    /// From 0 to 1.
    pub progress: f32,
}

/// A model in memory.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct LoadReport {
    /// Its name.
    pub model: String,
    /// Time that it took; 0 where it was loaded already.
    pub load_ms: u64,
    /// Tokens of context for each conversation.
    pub context: u32,
    /// Conversations that generate at the same time.
    pub slots: u32,
    /// Processor threads.
    pub threads: u32,
    /// Layers asked to be on a graphics card.
    pub gpu_layers: u32,
    /// Adapters that are laid over it, as the configuration names them.
    #[serde(default)]
    pub lora: Vec<String>,
    /// Memory of the machine that it takes, estimated before it was loaded.
    pub memory_bytes: u64,
    /// Memory of graphics cards that it takes, an estimate.
    #[serde(default)]
    pub card_bytes: u64,
    /// Where the chat template is from: `model`, or `chatml (fallback)` and why.
    pub template: String,
    /// Whether the model is a toy.
    pub toy: bool,
    /// What is set, and by whom.
    #[serde(default)]
    pub settings: Vec<Setting>,
    /// What was decided differently from the configuration, and why.
    pub notes: Vec<String>,
}

impl LoadReport {
    /// Whether the model runs as is asked for.
    #[must_use]
    pub(crate) fn has(&self, asked: &Tuning) -> bool {
        let runs = json!(self);
        let set = |name: &str, value: &Value| {
            // A context that is set may be more than the model has.
            name != "context" && self.settings.iter().any(|set| set.name == name && set.value == *value)
        };
        asked.entries().iter().all(|(name, value)| runs.get(name) == Some(value) || set(name, value))
    }
}

/// Take a model out of memory.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Unload {
    /// Name of the model.
    pub model: String,
}

/// A model that is not in memory.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Unloaded {
    /// Its name.
    pub model: String,
    /// Whether it was in memory before.
    pub unloaded: bool,
}

/// Count the tokens of a text.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tokenize {
    /// Name of the model; the default model if left out.
    #[serde(default)]
    pub model: Option<String>,
    /// The text.
    pub text: String,
}

/// The tokens of a text.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Tokenized {
    /// Their numbers in the model's vocabulary.
    pub tokens: Vec<i32>,
    /// How many they are.
    pub count: u64,
}

/// Turn texts into vectors: texts that mean the same have vectors that point the
/// same way.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Embed {
    /// Name of the model; if left out, `embedding_model` of the configuration,
    /// or else the first that can, which stays the one while it is in memory.
    #[serde(default)]
    pub model: Option<String>,
    /// The texts, 1 to 2048.
    #[schemars(length(min = 1, max = 2048))]
    pub texts: Vec<String>,
    /// Whether vectors get the length 1, so that their product is the cosine.
    /// Default true.
    #[serde(default = "yes")]
    pub normalize: bool,
    /// Whether a text that is too long for the model is cut; if not, it is
    /// refused. Default false.
    #[serde(default)]
    pub truncate: bool,
    /// Time from the arrival of the request to the end of the answer.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
}

fn yes() -> bool {
    true
}

/// The vectors of texts.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Embedded {
    /// The model that made them. Vectors of different models cannot be compared.
    pub model: String,
    /// A vector for each text, in their order.
    pub embeddings: Vec<Vec<f32>>,
    /// Numbers in each vector.
    pub dimensions: u64,
    /// How a vector was made of those of the tokens: `mean`, `cls` or `last`.
    pub pooling: String,
    /// Whether each has the length 1.
    pub normalized: bool,
    /// Tokens of all texts.
    pub prompt_tokens: u64,
}

/// What a generation starts from.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A conversation, to be rendered with the chat template, and the tools that
    /// the model is told of.
    Messages(Vec<Message>, Vec<Tool>),
    /// A text as it is.
    Prompt(String),
}

impl Input {
    /// Takes the input out of a request that was checked.
    #[must_use]
    pub fn take(request: &mut Generate) -> Self {
        let told = request.tool_choice != Some(ToolChoice::None);
        match (request.messages.take(), request.prompt.take()) {
            (Some(messages), _) => {
                Self::Messages(messages, if told { request.tools.clone() } else { Vec::new() })
            }
            (None, prompt) => Self::Prompt(prompt.unwrap_or_default()),
        }
    }

    /// Size of all texts together.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Messages(messages, tools) => {
                let described = tools
                    .iter()
                    .map(|tool| tool.description.len() + json!(tool.parameters).to_string().len());
                messages.iter().map(Message::bytes).sum::<usize>() + described.sum::<usize>()
            }
            Self::Prompt(prompt) => prompt.len(),
        }
    }
}

/// Refuses an input that is too large to be looked at.
pub(crate) fn check_bytes(bytes: usize, bytes_max: usize) -> Result<(), Refusal> {
    if bytes <= bytes_max {
        return Ok(());
    }
    Err(Refusal::new(
        Code::TooLarge,
        format!("the input has {bytes} bytes; at most {bytes_max} are accepted"),
    )
    .hint("shorten it, or raise `input_bytes_max` of the llama plugin")
    .details(json!({"bytes": bytes, "max": bytes_max})))
}
