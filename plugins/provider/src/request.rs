//! The request: a conversation, how to continue it, and what the answer is to
//! look like.
//!
//! Doc comments here are the help that users see. [`Generate::check`] refuses
//! what no provider can do; what one of them cannot, that one refuses.

use ksi_protocol::{Code, Refusal};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

mod check;

/// Most messages of one request.
pub const MESSAGES_MAX: usize = 1024;
/// Most tools of one request.
pub const TOOLS_MAX: usize = 128;
/// Most tool calls of one message.
pub const TOOL_CALLS_MAX: usize = 128;
/// Longest name of a tool, in bytes; the characters are those that all
/// providers know: letters, digits, `_` and `-`.
pub const TOOL_NAME_BYTES_MAX: usize = 64;
/// Most stop strings of one request; each is looked for after every character.
pub const STOPS_MAX: usize = 16;
/// Longest stop string, in bytes.
pub const STOP_BYTES_MAX: usize = 256;
/// Longest name of a model, in bytes.
pub const MODEL_BYTES_MAX: usize = 256;
/// Longest name of a conversation, in bytes.
pub const CONVERSATION_BYTES_MAX: usize = 256;
/// Most answers of one request.
pub const CHOICES_MAX: u32 = 16;
/// Most alternatives that are told for a token.
pub const LOGPROBS_MAX: u32 = 20;
/// Urgency goes from the negative of this to this.
pub const PRIORITY_MAX: i8 = 10;
/// Longest time that a request may ask for: a day.
pub const TIMEOUT_MS_MAX: u64 = 86_400_000;

/// Who says a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Role {
    System,
    User,
    Assistant,
    Tool,
}

impl Role {
    /// The name as it is written, which is the one that chat templates know.
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who says it. `tool` is the result of a tool call.
    pub role: Role,
    /// What is said. May be empty, as where the assistant has said nothing but
    /// tool calls.
    #[serde(default)]
    pub content: String,
    /// Calls of tools that the assistant made with this message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Which call this is the result of; for the role `tool`, and needed there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl Message {
    /// A message that is text alone.
    #[must_use]
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), tool_calls: Vec::new(), tool_call_id: None }
    }

    /// Bytes of all texts in it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let calls = self.tool_calls.iter();
        self.content.len()
            + calls.map(|call| call.name.len() + call.arguments.to_string().len()).sum::<usize>()
    }
}

/// A call of a tool, as a model wishes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolCall {
    /// Names the call within its conversation; the result refers to it.
    pub id: String,
    /// Which tool.
    pub name: String,
    /// An object by the tool's schema. A text where the model wrote something
    /// that is no JSON object: that text.
    pub arguments: Value,
}

impl ToolCall {
    /// Reads what a model wrote as arguments; nothing at all is no arguments.
    #[must_use]
    pub fn parse_arguments(text: &str) -> Value {
        if text.trim().is_empty() {
            return Value::Object(Map::new());
        }
        match serde_json::from_str(text) {
            Ok(Value::Object(arguments)) => Value::Object(arguments),
            Ok(_) | Err(_) => Value::String(text.to_owned()),
        }
    }

    /// The arguments as JSON text, as they were written where they could not be
    /// read.
    #[must_use]
    pub fn arguments_text(&self) -> String {
        match &self.arguments {
            Value::String(text) => text.clone(),
            arguments => arguments.to_string(),
        }
    }
}

/// A tool that the model may call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// Its name: 1 to 64 letters, digits, `_` and `-`.
    #[schemars(length(min = 1, max = 64))]
    pub name: String,
    /// What it does and when to call it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// JSON schema of its arguments, an object.
    #[serde(default = "any_object")]
    pub parameters: Map<String, Value>,
}

fn any_object() -> Map<String, Value> {
    let mut schema = Map::new();
    schema.insert("type".into(), json!("object"));
    schema.insert("properties".into(), json!({}));
    schema
}

/// Whether the model calls tools.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ToolChoice {
    /// As it sees fit.
    #[default]
    Auto,
    /// It calls none.
    None,
    /// It calls at least one.
    Required,
    /// It calls the tool of this name.
    Tool(String),
}

/// What the text of the answer is to be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResponseFormat {
    /// Anything.
    #[default]
    Text,
    /// A JSON object.
    Json,
    /// JSON that fits a schema.
    JsonSchema(Schema),
}

/// A JSON schema that the answer is to fit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Schema {
    /// The schema.
    pub schema: Map<String, Value>,
    /// What it is called towards the provider: letters, digits, `_` and `-`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Let a model continue a conversation or a text. Give either `messages` or
/// `prompt`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Generate {
    /// Name of the model; the provider's default model if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The conversation so far, oldest first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages: Option<Vec<Message>>,
    /// A text to be continued as it is, without a chat template. Only `llama`
    /// can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Tools that the model may call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Tool>,
    /// Whether it calls them; default `auto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_choice: Option<ToolChoice>,
    /// What the text of the answer is to be; default `text`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_format: Option<ResponseFormat>,
    /// A GBNF grammar that the text of the answer must fit. Only `llama` can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grammar: Option<String>,
    /// Most tokens to generate; the provider's default if left out.
    #[schemars(range(min = 1))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// What whoever asks can still pay for: each answer has no more tokens than this,
    /// whatever `max_tokens` or the provider's default says.
    #[schemars(range(min = 1))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_left: Option<u32>,
    /// Randomness, 0 to 5: 0 always takes the likeliest token.
    #[schemars(range(min = 0, max = 5))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Keep the likeliest tokens that together have this probability, above 0
    /// to 1.
    #[schemars(range(min = 0, max = 1))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// Keep this many of the likeliest tokens; 0 keeps all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// Drop tokens less likely than this share of the likeliest, 0 to below 1.
    #[schemars(range(min = 0, max = 1))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f64>,
    /// How much less likely a repeated token becomes, 0.1 to 10; 1 is not at
    /// all.
    #[schemars(range(min = 0.1, max = 10))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f64>,
    /// The same seed gives the same text, where the provider can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u32>,
    /// End before any of these strings, at most 16 of 256 bytes.
    #[schemars(length(max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// How many answers to make of one input, 1 to 16; default 1. They differ
    /// where there is randomness.
    #[schemars(range(min = 1, max = 16))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choices: Option<u32>,
    /// Tell how likely each token was, and this many alternatives, 0 to 20.
    #[schemars(range(min = 0, max = 20))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<u32>,
    /// Higher goes first where the provider has a queue, -10 to 10; default 0.
    #[schemars(range(min = -10, max = 10))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i8>,
    /// Time from the arrival of the request to the end of the answer, waiting
    /// included. Then the provider stops and refuses with `timeout`.
    #[schemars(range(min = 1, max = 86_400_000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Which conversation this goes on with. Names nothing outside: a provider
    /// may find by it what it has read before, and answers the same without.
    #[schemars(length(min = 1, max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<String>,
}

/// A refusal that names the field: `invalid_payload` with the path in its
/// details.
#[must_use]
pub fn invalid(path: &str, message: impl Into<String>, hint: &str) -> Refusal {
    Refusal::new(Code::InvalidPayload, message).hint(hint).details(json!({ "path": path }))
}
