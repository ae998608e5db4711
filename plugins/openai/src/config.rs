//! The plugin's configuration.

use std::{collections::BTreeMap, path::PathBuf};

use ksi_provider::Capability;
use ksi_provider_http::{Limits, Server, Timeouts, known::Known, server::unusable};
use ksi_sdk::{
    Secret,
    prelude::{Deserialize, Refusal},
};

/// Where OpenAI itself is.
const OPENAI: &str = "https://api.openai.com/v1";

/// What a model can do of which nothing else is known: what the protocol has.
pub(crate) const CAPABILITIES: [Capability; 4] =
    [Capability::Chat, Capability::Tools, Capability::JsonSchema, Capability::Choices];

/// The `config` table of the plugin.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the API is: what stands before `/chat/completions`.
    pub base_url: String,
    /// The key; may be left out where the server takes none.
    pub api_key: Option<Secret>,
    /// The model of requests that name none.
    pub default_model: Option<String>,
    /// What the server calls the limit of tokens; by its host if left out.
    pub max_tokens_field: Option<MaxTokensField>,
    /// Settings beyond those of OpenAI that the server understands.
    pub settings: Vec<Setting>,
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
    /// A file of certificates (PEM) that are trusted besides the system's.
    pub ca_file: Option<PathBuf>,
}

/// The two names of the limit of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaxTokensField {
    /// What every compatible server knows.
    MaxTokens,
    /// What OpenAI's own newer models insist on.
    MaxCompletionTokens,
}

impl MaxTokensField {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::MaxTokens => "max_tokens",
            Self::MaxCompletionTokens => "max_completion_tokens",
        }
    }
}

/// Settings that OpenAI does not have and many compatible servers do, under
/// these names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "they are documented in `Generate`")]
pub enum Setting {
    TopK,
    MinP,
    RepetitionPenalty,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            base_url: OPENAI.into(),
            api_key: None,
            default_model: None,
            max_tokens_field: None,
            settings: Vec::new(),
            models: BTreeMap::new(),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            proxy: None,
            allow_http: false,
            ca_file: None,
        }
    }
}

impl Config {
    /// The server that it describes.
    ///
    /// # Errors
    ///
    /// Refuses OpenAI without a key, which could never answer.
    pub(crate) fn server(&self) -> Result<Server, Refusal> {
        let key = self.api_key.as_ref().filter(|key| !key.expose().trim().is_empty());
        if key.is_none() && self.is_openai() {
            let hint =
                "`ksi secret set openai`, then `api_key = \"secret:openai\"` under [plugins.openai.config]";
            return Err(unusable(
                crate::NAME,
                "api_key",
                "is missing, and OpenAI answers nobody without",
                hint,
            ));
        }
        Ok(Server {
            plugin: crate::NAME,
            base_url: self.base_url.clone(),
            key: key.map(|key| ("authorization", Secret::from(format!("Bearer {}", key.expose().trim())))),
            headers: Vec::new(),
            timeouts: self.timeouts,
            limits: self.limits,
            proxy: self.proxy.clone(),
            allow_http: self.allow_http,
            ca_file: self.ca_file.clone(),
        })
    }

    pub(crate) fn max_tokens_field(&self) -> MaxTokensField {
        let by_host =
            if self.is_openai() { MaxTokensField::MaxCompletionTokens } else { MaxTokensField::MaxTokens };
        self.max_tokens_field.unwrap_or(by_host)
    }

    fn is_openai(&self) -> bool {
        self.base_url.starts_with("https://api.openai.com")
    }
}
