//! The models of a provider.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// List the models.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListModels {}

/// The models.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Models {
    /// The one that is meant where a request names none comes first.
    pub models: Vec<Model>,
}

/// A model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Model {
    /// Its name: what `model` of a request says.
    pub name: String,
    /// Tokens of input and answer together, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_length: Option<u64>,
    /// What it can do, as far as is known.
    #[serde(default)]
    pub capabilities: Vec<Capability>,
    /// Whether it is a toy, whose answers are often wrong.
    #[serde(default)]
    pub toy: bool,
}

/// What a model can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Capability {
    /// Go on with a conversation.
    Chat,
    /// Call tools.
    Tools,
    /// Answer in JSON by a schema.
    JsonSchema,
    /// Make several answers of one input.
    Choices,
    /// Turn texts into vectors.
    Embeddings,
    /// Look at images.
    Vision,
}
