//! Providers: who makes the text.
//!
//! A provider is a name and a namespace: the plugin there answers `NS:generate`
//! and `NS:models` by the contract of `ksi-provider`. Some are known by
//! themselves; the configuration adds others. `mock` alone is inside this plugin.
//! A provider never stands in for another one: the router chooses, and says so.

use std::collections::BTreeMap;

use ksi_provider::{Delta, Generated, Model};
use ksi_sdk::prelude::{Code, Ctx, Duration, Refusal, json};

use crate::{
    config::{ModelConfig, ProviderConfig},
    order::{Order, invalid},
    payload::ModelName,
    route::pace,
};

pub(crate) mod mock;
mod remote;

/// Longest name of a model.
const MODEL_BYTES_MAX: usize = 256;

/// The model that stands for the provider's own choice.
pub(crate) const DEFAULT: &str = "default";

/// Providers that need no configuration: name, what it is, concurrency, whether
/// nothing leaves this machine.
const KNOWN: [(&str, &str, usize, bool); 5] = [
    ("llama", "Models on this machine, through llama.cpp", 4, true),
    ("openai", "OpenAI, or whoever speaks its protocol", 8, false),
    ("anthropic", "Anthropic's models", 8, false),
    ("claude-cli", "The command claude of this machine", 2, false),
    ("mock", "Scripted answers for tests; no model at all", 16, true),
];

/// A provider as it is configured.
#[derive(Debug, Clone)]
pub(crate) struct Provider {
    pub(crate) name: String,
    pub(crate) about: String,
    /// Where it is asked; `None` for the mock.
    pub(crate) namespace: Option<String>,
    pub(crate) concurrency: usize,
    pub(crate) limits: pace::Limits,
    pub(crate) local: bool,
    pub(crate) weight: f64,
    models: BTreeMap<String, ModelConfig>,
}

impl Provider {
    fn new(name: &str, config: &ProviderConfig) -> Self {
        let known = KNOWN.iter().find(|(known, ..)| *known == name);
        let (about, concurrency, local) = match known {
            Some((_, about, concurrency, local)) => (*about, *concurrency, *local),
            None => ("Added by the configuration", 4, false),
        };
        let namespace = config.namespace.clone().unwrap_or_else(|| name.into());
        Self {
            name: name.into(),
            about: about.into(),
            namespace: (name != "mock").then_some(namespace),
            concurrency: config.concurrency.unwrap_or(concurrency),
            limits: pace::Limits { requests: config.requests_per_minute, tokens: config.tokens_per_minute },
            local: config.local.unwrap_or(local),
            weight: config.weight.unwrap_or(1.0),
            models: config.models.clone(),
        }
    }

    /// What the configuration says of a model.
    pub(crate) fn model(&self, name: &str) -> ModelConfig {
        self.models.get(name).or_else(|| self.models.get("*")).copied().unwrap_or_default()
    }

    /// Names of models that the configuration speaks of.
    pub(crate) fn configured_models(&self) -> impl Iterator<Item = &String> {
        self.models.keys().filter(|name| *name != "*")
    }

    /// The names of its models, and what it says of them.
    pub(crate) async fn ask_models(&self, ctx: &Ctx) -> Result<Vec<Model>, Refusal> {
        match &self.namespace {
            Some(namespace) => remote::models(ctx, namespace).await.map_err(|refusal| self.blame(refusal)),
            None => Ok(mock::models()),
        }
    }

    /// Its refusal as that of the request. Two codes would be misread by whoever
    /// asked for a completion: that the provider's event is unknown, and that
    /// somebody else cancelled the provider's work.
    pub(crate) fn blame(&self, refusal: Refusal) -> Refusal {
        let name = &self.name;
        match refusal.code {
            Code::UnknownEvent | Code::NoOwner => {
                let plugin = self.namespace.as_deref().unwrap_or(name);
                Refusal {
                    retryable: false,
                    ..Refusal::new(Code::Unavailable, format!("provider `{name}` is not loaded"))
                        .hint(format!(
                            "`ksi plugin load {plugin}` starts it; `ksi config set plugins.{plugin}.enabled \
                             true` starts it with the daemon; `ksi plugin list` shows what is wrong"
                        ))
                        .details(json!({ "not_loaded": true }))
                }
            }
            Code::Cancelled => Refusal {
                retryable: false,
                ..Refusal::new(Code::Unavailable, format!("provider `{name}` gave up: {}", refusal.message))
            },
            _ => refusal,
        }
    }
}

/// Whether a refusal of [`Provider::blame`] says that nobody answers at all.
pub(crate) fn is_absent(refusal: &Refusal) -> bool {
    refusal.details.as_ref().is_some_and(|details| details["not_loaded"] == true)
}

/// A model at a provider.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Target {
    /// Place of the provider in the list, which is its lane in the scheduler.
    pub(crate) lane: usize,
    pub(crate) model: String,
}

/// All providers, in the order of their lanes: those known by themselves, then
/// those of the configuration by name.
#[derive(Debug)]
pub(crate) struct Providers(Vec<Provider>);

impl Providers {
    pub(crate) fn new(config: &BTreeMap<String, ProviderConfig>) -> Self {
        let default = ProviderConfig::default();
        let known = KNOWN.iter().map(|(name, ..)| *name);
        let added =
            config.keys().map(String::as_str).filter(|name| KNOWN.iter().all(|known| known.0 != *name));
        let provider = |name: &str| Provider::new(name, config.get(name).unwrap_or(&default));
        Self(known.chain(added).map(provider).collect())
    }

    pub(crate) fn all(&self) -> &[Provider] {
        &self.0
    }

    pub(crate) fn of(&self, target: &Target) -> &Provider {
        &self.0[target.lane]
    }

    fn names(&self) -> Vec<&str> {
        self.0.iter().map(|provider| provider.name.as_str()).collect()
    }

    /// Reads `provider/model`; `path` is the field in which it stands.
    pub(crate) fn target(&self, text: &str, path: &str) -> Result<Target, Refusal> {
        let Some((provider, model)) = text.split_once('/') else {
            return Err(invalid(path, "must be written provider/model, or be an alias of the configuration")
                .hint(format!("providers: {}; for example `llama/default`", self.names().join(", "))));
        };
        if model.is_empty() || model.len() > MODEL_BYTES_MAX {
            let why = format!("must name a model of 1 to {MODEL_BYTES_MAX} bytes after the `/`");
            return Err(invalid(path, &why));
        }
        let Some(lane) = self.0.iter().position(|known| known.name == provider) else {
            return Err(Refusal::not_found("provider", &provider.escape_debug().to_string())
                .hint(format!("providers: {}", self.names().join(", ")))
                .details(json!({ "path": path, "known": self.names() })));
        };
        if self.0[lane].namespace.is_none() {
            mock::Script::parse(model, path)?;
        }
        Ok(Target { lane, model: model.into() })
    }

    /// The name of a target, in its two parts.
    pub(crate) fn name(&self, target: &Target) -> ModelName {
        ModelName { provider: self.of(target).name.clone(), model: target.model.clone() }
    }
}

/// What a stream gives.
#[derive(Debug)]
pub(crate) enum Piece {
    Delta(Delta),
    Last(Box<Generated>),
}

/// One attempt at an order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attempt<'a> {
    pub(crate) target: &'a Target,
    /// Its number among those at this target; the first is 1.
    pub(crate) number: u32,
    /// Time that is left.
    pub(crate) left: Duration,
    /// Most tokens of each answer that budgets allow.
    pub(crate) tokens_left: Option<u32>,
}

/// Text on its way from a provider. Dropping it stops the provider.
pub(crate) enum Stream {
    Remote(remote::Stream),
    Mock(Box<mock::Stream>),
}

impl Stream {
    /// Asks a provider.
    pub(crate) fn open(
        ctx: &Ctx,
        providers: &Providers,
        order: &Order,
        attempt: Attempt<'_>,
    ) -> Result<Self, Refusal> {
        let model = &attempt.target.model;
        match &providers.of(attempt.target).namespace {
            Some(namespace) => remote::Stream::open(ctx, namespace, order, attempt).map(Self::Remote),
            None => {
                let script = mock::Script::parse(model, "model")?;
                Ok(Self::Mock(Box::new(mock::Stream::open(ctx, &script, order, attempt))))
            }
        }
    }

    /// The next piece; not to be called after the last.
    pub(crate) async fn next(&mut self) -> Result<Piece, Refusal> {
        match self {
            Self::Remote(stream) => stream.next().await,
            Self::Mock(stream) => stream.next().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn providers(config: serde_json::Value) -> Providers {
        Providers::new(&serde_json::from_value(config).unwrap())
    }

    #[test]
    fn an_unknown_provider_is_not_found_and_the_known_ones_are_named() {
        let refusal = providers(json!({"mine": {}})).target("other/gpt", "model").unwrap_err();
        assert_eq!(refusal.code, Code::NotFound);
        let known = json!(["llama", "openai", "anthropic", "claude-cli", "mock", "mine"]);
        assert_eq!(refusal.details.unwrap()["known"], known);
    }

    #[test]
    fn a_namespace_is_the_name_unless_it_is_given() {
        let all = providers(json!({"my-own": {}, "other": {"namespace": "their-own"}}));
        let namespaces: Vec<_> = all.all().iter().map(|one| one.namespace.as_deref()).collect();
        assert_eq!(
            namespaces,
            [
                Some("llama"),
                Some("openai"),
                Some("anthropic"),
                Some("claude-cli"),
                None,
                Some("my-own"),
                Some("their-own")
            ]
        );
    }

    #[test]
    fn names_are_written_as_they_are_read() {
        let all = providers(json!({}));
        for name in ["llama/default", "openai/a/b.gguf", "mock/echo", "mock/slow:5", "mock/fixed:a b"] {
            assert_eq!(all.name(&all.target(name, "model").unwrap()).to_string(), name);
        }
    }

    #[test]
    fn a_star_stands_for_the_models_that_are_not_named() {
        let all = providers(json!({"openai": {"models": {
            "*": {"prompt_price": 1.0}, "big": {"prompt_price": 5.0}
        }}}));
        let openai = &all.all()[1];
        assert_eq!(openai.model("big").prompt_price, Some(5.0));
        assert_eq!(openai.model("small").prompt_price, Some(1.0));
    }
}
