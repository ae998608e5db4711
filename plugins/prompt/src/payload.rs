//! What travels: the requests of the plugin and their answers.

use ksi_sdk::prelude::{Deserialize, JsonSchema, Serialize};
use serde_json::{Map, Value};

/// Render a prompt: put variables into a template.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Render {
    /// Name of the prompt.
    #[schemars(length(min = 1, max = 64))]
    pub name: String,
    /// Its version; the newest if left out.
    #[schemars(range(min = 1))]
    pub version: Option<u32>,
    /// What is put in, by name; any JSON. All that it requires, and nothing that it does not know.
    #[serde(default)]
    pub variables: Map<String, Value>,
}

/// A rendered prompt.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Rendered {
    /// Which prompt.
    pub name: String,
    /// Which version of it.
    pub version: u32,
    /// The text.
    pub text: String,
}

/// List the prompts and what they require.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListPrompts {}

/// A version of a prompt.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct PromptInfo {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: u32,
    /// What it is for, where its author says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// Variables that must be given.
    pub required: Vec<String>,
    /// Variables that may be left out.
    pub optional: Vec<String>,
    /// What is wrong with it; it cannot be rendered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The prompts.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Prompts {
    /// Where they lie, each as NAME@VERSION.j2.
    pub dir: String,
    /// By name, the oldest version first.
    pub prompts: Vec<PromptInfo>,
}
