//! The plugin's configuration.

use std::collections::BTreeMap;

use ksi_provider::Capability;
use ksi_provider_http::{Limits, Server, Timeouts, known::Known, server::unusable};
use ksi_sdk::{
    Secret,
    prelude::{Deserialize, Refusal},
};

/// Where Anthropic itself is.
const ANTHROPIC: &str = "https://api.anthropic.com";
/// The version of the API that this plugin speaks.
const VERSION: &str = "2023-06-01";

/// What a model can do of which nothing else is known.
pub(crate) const CAPABILITIES: [Capability; 3] =
    [Capability::Chat, Capability::Tools, Capability::JsonSchema];

/// The `config` table of the plugin.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the API is: what stands before `/v1/messages`.
    pub base_url: String,
    /// The key; may be left out where a server in between adds it.
    pub api_key: Option<Secret>,
    /// The model of requests that name none.
    pub default_model: Option<String>,
    /// Tokens to generate where the request does not say; the API insists.
    pub max_tokens_default: u32,
    /// Whether what a conversation has so far is put into the provider's cache.
    /// Writing it costs more than reading, and reading it again far less.
    pub prompt_cache: bool,
    /// What is known of models, by their names.
    pub models: BTreeMap<String, Known>,
    /// How long the server may take.
    pub timeouts: Timeouts,
    /// How much the server may send.
    pub limits: Limits,
    /// A proxy, `http://HOST:PORT`; none is taken from the environment.
    pub proxy: Option<String>,
    /// Whether the key may go over plain HTTP to another machine.
    pub allow_http: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            base_url: ANTHROPIC.into(),
            api_key: None,
            default_model: None,
            max_tokens_default: 4096,
            prompt_cache: true,
            models: BTreeMap::new(),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            proxy: None,
            allow_http: false,
        }
    }
}

impl Config {
    /// The server that it describes.
    ///
    /// # Errors
    ///
    /// Refuses Anthropic without a key, which could never answer, and a limit of
    /// no tokens.
    pub(crate) fn server(&self) -> Result<Server, Refusal> {
        let key = self.api_key.as_ref().filter(|key| !key.expose().trim().is_empty());
        if key.is_none() && self.base_url.starts_with(ANTHROPIC) {
            let hint = "`ksi secret set anthropic`, then `api_key = \"secret:anthropic\"` under \
                        [plugins.anthropic.config]";
            let why = "is missing, and Anthropic answers nobody without";
            return Err(unusable(crate::NAME, "api_key", why, hint));
        }
        if self.max_tokens_default == 0 {
            return Err(unusable(crate::NAME, "max_tokens_default", "is 0", "leave it out for 4096"));
        }
        Ok(Server {
            plugin: crate::NAME,
            base_url: self.base_url.clone(),
            key: key.map(|key| ("x-api-key", Secret::from(key.expose().trim().to_owned()))),
            headers: vec![("anthropic-version", VERSION.to_owned())],
            timeouts: self.timeouts,
            limits: self.limits,
            proxy: self.proxy.clone(),
            allow_http: self.allow_http,
        })
    }
}
