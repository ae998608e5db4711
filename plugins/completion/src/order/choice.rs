//! Which models a request may be answered by, and in which order.
//!
//! A *tier* is a model, or the models of an alias, which are equals: the router
//! takes the one that is best at the time. The first tier is what was asked for;
//! the others are its fallbacks, one after the other.

use std::collections::HashSet;

use ksi_sdk::prelude::Refusal;

use super::invalid;
use crate::{
    config::Config,
    payload::{ModelName, Request},
    provider::{Providers, Target},
};

/// Most fallbacks of a request: each may cost attempts.
const FALLBACKS_MAX: usize = 8;

/// What stands for the provider in the name of an alias.
const ALIAS: &str = "alias";

/// How a request came to its model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chosen {
    ByName,
    ByDefault,
}

/// The models that a request may be answered by.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    pub(crate) requested: ModelName,
    pub(crate) chosen: Chosen,
    /// No model is in it twice.
    pub(crate) tiers: Vec<Vec<Target>>,
}

impl Choice {
    pub(super) fn new(request: &Request, config: &Config, providers: &Providers) -> Result<Self, Refusal> {
        let chosen = if request.model.is_some() { Chosen::ByName } else { Chosen::ByDefault };
        let name = request.model.as_deref().unwrap_or(&config.default_model);
        let fallbacks = request.fallbacks.as_ref().unwrap_or(&config.fallbacks);
        if fallbacks.len() > FALLBACKS_MAX {
            let why = format!("has {} models, of {FALLBACKS_MAX} allowed", fallbacks.len());
            return Err(invalid("fallbacks", &why));
        }
        let mut tiers = vec![tier(name, "model", config, providers)?];
        for (index, fallback) in fallbacks.iter().enumerate() {
            tiers.push(tier(fallback, &format!("fallbacks[{index}]"), config, providers)?);
        }
        let requested = match config.aliases.contains_key(name) {
            true => ModelName { provider: ALIAS.into(), model: name.into() },
            false => providers.name(&tiers[0][0]),
        };
        let mut seen = HashSet::new();
        for tier in &mut tiers {
            tier.retain(|target| seen.insert(target.clone()));
        }
        Ok(Self { requested, chosen, tiers })
    }

    pub(crate) fn is_alias(&self) -> bool {
        self.requested.provider == ALIAS
    }
}

/// The models that a name stands for.
pub(crate) fn tier(
    name: &str,
    path: &str,
    config: &Config,
    providers: &Providers,
) -> Result<Vec<Target>, Refusal> {
    match config.aliases.get(name) {
        Some(models) => models.all().map(|model| providers.target(model, path)).collect(),
        None => Ok(vec![providers.target(name, path)?]),
    }
}
