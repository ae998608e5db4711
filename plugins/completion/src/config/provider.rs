//! What can be configured of a provider and its models.

use std::collections::BTreeMap;

use ksi_sdk::prelude::Deserialize;

/// Settings of one provider, `[plugins.completion.config.providers.NAME]`.
/// What is left out is as the provider of that name has it by default.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ProviderConfig {
    /// The namespace of the plugin that answers; the name if left out.
    pub(crate) namespace: Option<String>,
    /// Requests that it may work on at once.
    pub(crate) concurrency: Option<usize>,
    /// Requests, and tokens of them, that may begin in any minute.
    pub(crate) requests_per_minute: Option<u32>,
    pub(crate) tokens_per_minute: Option<u64>,
    /// Whether nothing leaves this machine.
    pub(crate) local: Option<bool>,
    /// How much it is preferred among equals: at 2 it is chosen until it is
    /// expected to take twice as long.
    pub(crate) weight: Option<f64>,
    /// What is known of its models, by name; `*` stands for those not named.
    pub(crate) models: BTreeMap<String, ModelConfig>,
}

/// What is known of a model. What is left out is as its provider says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ModelConfig {
    /// Money for a million tokens that are read, and that are made.
    pub(crate) prompt_price: Option<f64>,
    pub(crate) completion_price: Option<f64>,
    /// The same for those that are read from the provider's cache, and that are put
    /// there; as others that are read if left out.
    pub(crate) cached_price: Option<f64>,
    pub(crate) cache_write_price: Option<f64>,
    /// Tokens that question and answer may have together.
    pub(crate) context_length: Option<u64>,
    /// Whether it can call tools.
    pub(crate) tools: Option<bool>,
    /// Whether it can answer in JSON by a schema.
    pub(crate) json_schema: Option<bool>,
    /// Whether it can give several answers to one request.
    pub(crate) choices: Option<bool>,
}

impl ModelConfig {
    fn prices(&self) -> [Option<f64>; 4] {
        [self.prompt_price, self.cached_price, self.cache_write_price, self.completion_price]
    }

    /// Most that a million tokens cost that are read.
    pub(crate) fn dearest_prompt_price(&self) -> Option<f64> {
        let [reading @ .., _] = self.prices();
        reading.into_iter().flatten().max_by(f64::total_cmp)
    }
}

impl ProviderConfig {
    /// The first value that makes no sense: its key and why.
    pub(super) fn fault(&self) -> Option<(String, &'static str)> {
        let namespace = |name: &String| {
            let mut bytes = name.bytes();
            let first = bytes.next().is_some_and(|byte| byte.is_ascii_lowercase());
            first
                && bytes
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte))
        };
        let checks = [
            ("concurrency", self.concurrency.is_none_or(|n| (1..=10_000).contains(&n)), "must be 1 to 10000"),
            (
                "requests_per_minute",
                self.requests_per_minute.is_none_or(|n| (1..=100_000).contains(&n)),
                "must be 1 to 100000",
            ),
            ("tokens_per_minute", self.tokens_per_minute.is_none_or(|n| n > 0), "must be at least 1"),
            ("weight", self.weight.is_none_or(|w| (0.01..=100.0).contains(&w)), "must be 0.01 to 100"),
            ("namespace", self.namespace.as_ref().is_none_or(namespace), "is no namespace"),
        ];
        let own = checks.into_iter().find(|(_, fits, _)| !fits).map(|(key, _, why)| (key.to_owned(), why));
        own.or_else(|| {
            let wrong = |price: f64| !(0.0..=1e6).contains(&price);
            let priced = |model: &ModelConfig| model.prices().into_iter().flatten().any(wrong);
            let (name, _) = self.models.iter().find(|(_, model)| priced(model))?;
            Some((format!("models.{name}"), "has a price that is not from 0 to 1000000"))
        })
    }
}
