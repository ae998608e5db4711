//! What travels: the requests of the plugin, their chunks and their answers.
//!
//! Doc comments here are the help that users see. Limits that do not depend on
//! the model are checked here too, before anything is loaded for a request.

use ksi_sdk::prelude::{Code, Deserialize, JsonSchema, Refusal, Serialize, json};

/// Most messages of one request.
pub const MESSAGES_MAX: usize = 1024;
/// Most stop strings of one request; each is looked for after every character.
pub const STOPS_MAX: usize = 16;
/// Longest stop string, in bytes.
pub const STOP_BYTES_MAX: usize = 256;

/// List the models: the built-in one and every file in the models directory.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListModels {}

/// The models.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Models {
    /// In the order of their names, the built-in model first.
    pub models: Vec<ModelEntry>,
}

/// A model.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct ModelEntry {
    /// Its name: the name of the file without `.gguf`.
    pub name: String,
    /// Where the file is.
    pub path: String,
    /// Whether it ships with the plugin.
    pub builtin: bool,
    /// Whether it is a toy: it shows that everything works, and is often wrong.
    pub toy: bool,
    /// Whether it is in memory now.
    pub loaded: bool,
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
    /// What is wrong with the file; such a model cannot be loaded.
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
    /// Tokens of context for each conversation.
    #[serde(default)]
    pub context: Option<u32>,
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
    /// Where the chat template is from: `model`, or `chatml (fallback)` and why.
    pub template: String,
    /// Whether the model is a toy.
    pub toy: bool,
    /// What was decided differently from the configuration, and why.
    pub notes: Vec<String>,
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

/// Who says a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Role {
    System,
    User,
    Assistant,
    Tool,
}

impl Role {
    /// The name that chat templates know.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
}

/// Let a model continue a conversation or a text. Give either `messages` or
/// `prompt`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Generate {
    /// Name of the model; the default model if left out.
    #[serde(default)]
    pub model: Option<String>,
    /// The conversation so far; the model's own chat template is applied.
    #[serde(default)]
    pub messages: Option<Vec<Message>>,
    /// A text to be continued as it is, without a chat template.
    #[serde(default)]
    pub prompt: Option<String>,
    /// Most tokens to generate; the toy model never generates more than 200.
    #[serde(default)]
    pub max_tokens: Option<u32>,
    /// Randomness, 0 to 5: 0 always takes the likeliest token. Default 0.8.
    #[serde(default)]
    pub temperature: Option<f32>,
    /// Keep the likeliest tokens that together have this probability, above 0
    /// to 1. Default 0.95.
    #[serde(default)]
    pub top_p: Option<f32>,
    /// Keep this many of the likeliest tokens; 0 keeps all. Default 40.
    #[serde(default)]
    pub top_k: Option<u32>,
    /// Drop tokens less likely than this share of the likeliest, 0 to below 1.
    /// Default 0.05.
    #[serde(default)]
    pub min_p: Option<f32>,
    /// How much less likely a repeated token becomes, 0.1 to 10; 1 is not at
    /// all. Default 1.
    #[serde(default)]
    pub repetition_penalty: Option<f32>,
    /// The same seed gives the same text. Random if left out.
    #[serde(default)]
    pub seed: Option<u32>,
    /// End before any of these strings, at most 16 of 256 bytes.
    #[serde(default)]
    pub stop: Option<Vec<String>>,
    /// Higher goes first among those that wait, -10 to 10. Default 0.
    #[serde(default)]
    pub priority: Option<i8>,
    /// Time from the arrival of the request to the end of the answer, waiting
    /// included. Then it is refused with `timeout`.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
}

/// A piece of the answer.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Delta {
    /// The text that is new.
    pub text: String,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The model ended its turn.
    Stop,
    /// The limit of tokens or the end of the context was reached.
    Length,
    /// One of the stop strings would have come next.
    StopString,
}

/// The whole answer.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Generated {
    /// The model that answered.
    pub model: String,
    /// The text: all pieces joined.
    pub text: String,
    /// Why it ended.
    pub stop_reason: StopReason,
    /// Whether the model is a toy, whose answers are often wrong.
    pub toy: bool,
    /// The seed that was used; the same one gives the same text again.
    pub seed: u32,
    /// Exact counts.
    pub usage: Usage,
    /// Measured times.
    pub timings: Timings,
}

/// Exact counts of tokens.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Tokens of the input.
    pub prompt_tokens: u64,
    /// Those of them that did not have to be read again.
    pub cached_tokens: u64,
    /// Tokens of the answer, without the one that ended the turn.
    pub completion_tokens: u64,
    /// Both together.
    pub total_tokens: u64,
}

/// Measured times and speeds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
pub struct Timings {
    /// Time to load the model, where this request had to wait for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_ms: Option<f64>,
    /// Time spent waiting for a free slot.
    pub queued_ms: f64,
    /// Time to read the input, from the start in a slot to the first token.
    pub prompt_ms: f64,
    /// Time from the first token to the end.
    pub generate_ms: f64,
    /// Time from the arrival of the request to the first token.
    pub first_token_ms: f64,
    /// Input tokens per second.
    pub prompt_per_second: f64,
    /// Answer tokens per second.
    pub generate_per_second: f64,
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

/// What a generation starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A conversation, to be rendered with the chat template.
    Messages(Vec<Message>),
    /// A text as it is.
    Prompt(String),
}

impl Input {
    /// Size of all texts together.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Messages(messages) => messages.iter().map(|message| message.content.len()).sum(),
            Self::Prompt(prompt) => prompt.len(),
        }
    }
}

impl Generate {
    /// Takes the input out of the request.
    ///
    /// # Errors
    ///
    /// Refuses none, both, too many and too large inputs.
    pub fn take_input(&mut self, bytes_max: usize) -> Result<Input, Refusal> {
        let input = match (self.messages.take(), self.prompt.take()) {
            (Some(messages), None) if messages.is_empty() => {
                return Err(invalid("messages", "`messages` is empty", "give at least one message"));
            }
            (Some(messages), None) if messages.len() > MESSAGES_MAX => {
                let refusal = Refusal::new(
                    Code::TooLarge,
                    format!("{} messages; at most {MESSAGES_MAX} are accepted", messages.len()),
                );
                return Err(refusal.details(json!({"messages": messages.len(), "max": MESSAGES_MAX})));
            }
            (Some(messages), None) => Input::Messages(messages),
            (None, Some(prompt)) if prompt.is_empty() => {
                return Err(invalid("prompt", "`prompt` is empty", "give a text to continue"));
            }
            (None, Some(prompt)) => Input::Prompt(prompt),
            (Some(_), Some(_)) => {
                return Err(invalid(
                    "messages",
                    "both `messages` and `prompt` are given",
                    "give one of the two",
                ));
            }
            (None, None) => {
                return Err(invalid(
                    "messages",
                    "neither `messages` nor `prompt` is given",
                    "give one of the two",
                ));
            }
        };
        check_bytes(input.bytes(), bytes_max)?;
        Ok(input)
    }

    /// The priority, 0 where none is given.
    ///
    /// # Errors
    ///
    /// Refuses one out of range.
    pub fn take_priority(&mut self) -> Result<i8, Refusal> {
        match self.priority.take().unwrap_or(0) {
            priority @ -10..=10 => Ok(priority),
            priority => Err(invalid(
                "priority",
                &format!("`priority` is {priority}; accepted is -10 to 10"),
                "leave it out for 0",
            )),
        }
    }

    /// Takes the stop strings out of the request.
    ///
    /// # Errors
    ///
    /// Refuses empty, too many and too long ones.
    pub fn take_stops(&mut self) -> Result<Vec<String>, Refusal> {
        let stops = self.stop.take().unwrap_or_default();
        if stops.len() > STOPS_MAX {
            return Err(invalid(
                "stop",
                &format!("{} stop strings; at most {STOPS_MAX} are accepted", stops.len()),
                "give fewer",
            ));
        }
        for (index, stop) in stops.iter().enumerate() {
            if stop.is_empty() || stop.len() > STOP_BYTES_MAX {
                return Err(invalid(
                    &format!("stop[{index}]"),
                    &format!("a stop string of {} bytes; 1 to {STOP_BYTES_MAX} are accepted", stop.len()),
                    "leave it out or shorten it",
                ));
            }
        }
        Ok(stops)
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

/// A refusal that names the field.
pub(crate) fn invalid(path: &str, message: &str, hint: &str) -> Refusal {
    Refusal::new(Code::InvalidPayload, message).hint(hint).details(json!({ "path": path }))
}
