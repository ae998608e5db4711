//! Payloads of the hooks: what plugins may have a word on before a model is asked
//! and after it has answered.

use ksi_provider::{Alternative, Message, StopReason, Tool, ToolCall, ToolChoice, Usage};
use ksi_sdk::prelude::{Deserialize, JsonSchema, Serialize};

use super::ModelName;

/// A model is about to be asked. Plugins that intercept this event (`before`) may
/// edit the messages, tools and settings: what they make of it is what the model
/// receives. Where another model has to answer, this is asked once more for that one,
/// with the prompt as it was before. A refusal ends the request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PreLlmPrompt {
    /// Names the request.
    pub request_id: String,
    /// The model that is asked. Cannot be edited.
    pub model: ModelName,
    /// The conversation, where the request named one. Cannot be edited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<String>,
    /// The agent, where the request named one. Cannot be edited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// All that the model reads, oldest first.
    pub messages: Vec<Message>,
    /// Tools that the model may call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Tool>,
    /// Whether it calls them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_choice: Option<ToolChoice>,
    /// Most tokens to generate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Randomness.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Texts at which the answer ends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
}

/// A model has answered. Plugins that intercept this event (`before`) may edit text
/// and tool calls, those of the alternatives too: what they make of it is the result,
/// and what is remembered of the conversation. Of a text that was edited nobody is
/// told any more how likely its tokens were. Pieces that were streamed before have
/// been read already. A refusal ends the request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PostLlmResult {
    /// Names the request.
    pub request_id: String,
    /// The model that answered. Cannot be edited.
    pub model: ModelName,
    /// The conversation, where the request named one. Cannot be edited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<String>,
    /// The agent, where the request named one. Cannot be edited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// The text.
    pub text: String,
    /// The tools that the model wishes called.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The other answers, where several were asked for. One that is not given back is
    /// left out; none can be added.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alternatives: Vec<Alternative>,
    /// Why the text ends. Cannot be edited.
    pub stop_reason: StopReason,
    /// What was used. Cannot be edited.
    #[serde(default)]
    pub usage: Usage,
}
