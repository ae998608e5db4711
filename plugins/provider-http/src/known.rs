//! What the operator knows of models, beside what their server tells.

use std::collections::BTreeMap;

use ksi_provider::{Capability, Model, Models};
use ksi_sdk::prelude::Deserialize;

/// What the configuration says of a model.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Known {
    /// Tokens of input and answer together.
    pub context_length: Option<u64>,
    /// What it can do; what the provider's models mostly can if left out.
    pub capabilities: Option<Vec<Capability>>,
}

/// The models of a server by their names, with the context that it told of
/// each; the default first.
#[must_use]
pub fn list(
    told: impl Iterator<Item = (String, Option<u64>)>,
    known: &BTreeMap<String, Known>,
    capabilities: &[Capability],
    default: Option<&str>,
) -> Models {
    let mut models: Vec<Model> = told
        .map(|(name, context)| {
            let known = known.get(&name).cloned().unwrap_or_default();
            Model {
                context_length: known.context_length.or(context),
                capabilities: known.capabilities.unwrap_or_else(|| capabilities.to_vec()),
                name,
                toy: false,
            }
        })
        .collect();
    models.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(first) = models.iter().position(|model| Some(&*model.name) == default) {
        models[..=first].rotate_right(1);
    }
    Models { models }
}
