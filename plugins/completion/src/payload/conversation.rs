//! Payloads about what a model reads, and what is remembered.

use ksi_provider::Message;
use ksi_sdk::prelude::{Deserialize, JsonSchema, Serialize};

/// Something that the model shall know, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// What it is about; the model reads it as a headline.
    #[schemars(length(min = 1, max = 128))]
    pub name: String,
    /// The text.
    pub text: String,
}

/// Show what is remembered of a conversation.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HistoryRequest {
    /// The conversation.
    #[schemars(length(min = 1, max = 128))]
    pub conversation_id: String,
}

/// What is remembered of a conversation.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct HistoryAnswer {
    /// What was said, oldest first; the last 400 messages.
    pub messages: Vec<Message>,
}

/// Forget a conversation.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Forget {
    /// The conversation.
    #[schemars(length(min = 1, max = 128))]
    pub conversation_id: String,
}

/// What was forgotten.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Forgotten {
    /// How many messages.
    pub messages: usize,
}
