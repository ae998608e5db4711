//! Providers: who makes the text.
//!
//! A model is named `provider/model`. Each provider turns an order into a
//! [`Stream`] of pieces with an answer at its end; dropping the stream stops
//! the work at the provider. A provider never stands in for another one.

use std::fmt;

use ksi_sdk::prelude::{Code, Ctx, Duration, Refusal, json};

use crate::{
    order::{Order, invalid},
    payload::{ModelName, Timings, Usage},
};

pub(crate) mod llama;
pub(crate) mod mock;

/// Longest name of a model.
const MODEL_BYTES_MAX: usize = 256;

/// Who makes the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Provider {
    Llama,
    Mock,
}

impl Provider {
    /// Every provider; a provider's place is its lane in the scheduler.
    pub(crate) const ALL: [Self; 2] = [Self::Llama, Self::Mock];

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|provider| provider.name() == name)
    }

    /// Every name, for hints.
    pub(crate) fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mock => "mock",
        }
    }

    pub(crate) fn about(self) -> &'static str {
        match self {
            Self::Llama => "Models on this machine, through the llama plugin",
            Self::Mock => "Scripted answers for tests; no model at all",
        }
    }

    pub(crate) fn default_concurrency(self) -> usize {
        match self {
            Self::Llama => 4,
            Self::Mock => 16,
        }
    }

    pub(crate) fn lane(self) -> usize {
        self as usize
    }
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Model {
    /// A model of the llama plugin; `default` is whichever it prefers.
    Llama(String),
    Mock(mock::Script),
}

/// How a request came to its model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chosen {
    ByName,
    ByDefault,
}

impl Model {
    /// Reads `provider/model`.
    pub(crate) fn parse(text: &str) -> Result<Self, Refusal> {
        let Some((provider, model)) = text.split_once('/') else {
            return Err(invalid("model", "must be written provider/model")
                .hint(format!("providers: {}; for example `llama/default`", Provider::names())));
        };
        if model.is_empty() || model.len() > MODEL_BYTES_MAX {
            let why = format!("must name a model of 1 to {MODEL_BYTES_MAX} bytes after the `/`");
            return Err(invalid("model", &why));
        }
        match Provider::named(provider) {
            Some(Provider::Llama) => Ok(Self::Llama(model.to_owned())),
            Some(Provider::Mock) => mock::Script::parse(model).map(Self::Mock),
            None => Err(Refusal::not_found("provider", &provider.escape_debug().to_string())
                .hint(format!("providers: {}", Provider::names()))
                .details(json!({ "path": "model", "known": Provider::ALL.map(Provider::name) }))),
        }
    }

    pub(crate) fn provider(&self) -> Provider {
        match self {
            Self::Llama(_) => Provider::Llama,
            Self::Mock(_) => Provider::Mock,
        }
    }

    /// The name as it was asked for.
    pub(crate) fn name(&self) -> ModelName {
        let model = match self {
            Self::Llama(name) => name.clone(),
            Self::Mock(script) => script.to_string(),
        };
        ModelName { provider: self.provider().name().into(), model }
    }

    /// Why the model called `answered` answered.
    pub(crate) fn why(&self, chosen: Chosen, answered: &str) -> String {
        match self {
            _ if chosen == Chosen::ByDefault => "default model".into(),
            Self::Llama(name) if name == llama::DEFAULT => "default model".into(),
            Self::Llama(name) if name != answered => format!("llama calls `{name}` so"),
            _ => "as requested".into(),
        }
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ModelName { provider, model } = self.name();
        write!(f, "{provider}/{model}")
    }
}

/// How a provider ends its text.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The model that answered.
    pub(crate) model: String,
    pub(crate) text: String,
    pub(crate) stop_reason: String,
    pub(crate) toy: bool,
    pub(crate) seed: Option<u32>,
    pub(crate) usage: Usage,
    pub(crate) timings: Timings,
}

/// What a stream gives.
#[derive(Debug)]
pub(crate) enum Piece {
    Text(String),
    Last(Box<Answer>),
}

/// One attempt at an order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attempt {
    /// Its number; the first is 1.
    pub(crate) number: u32,
    /// Time that is left.
    pub(crate) left: Duration,
}

/// Text on its way from a provider. Dropping it stops the provider.
pub(crate) enum Stream {
    Llama(llama::Stream),
    Mock(Box<mock::Stream>),
}

impl Stream {
    /// Asks the provider of the order.
    pub(crate) fn open(ctx: &Ctx, order: &Order, attempt: Attempt) -> Result<Self, Refusal> {
        match &order.model {
            Model::Llama(name) => llama::Stream::open(ctx, name, order, attempt).map(Self::Llama),
            Model::Mock(script) => Ok(Self::Mock(Box::new(mock::Stream::open(ctx, script, order, attempt)))),
        }
    }

    /// The next piece; not to be called after the last.
    pub(crate) async fn next(&mut self) -> Result<Piece, Refusal> {
        match self {
            Self::Llama(stream) => stream.next().await,
            Self::Mock(stream) => stream.next().await,
        }
    }
}

/// A provider's refusal as that of the request. Two codes would be misread by
/// whoever asked for a completion: that the provider's event is unknown, and
/// that somebody else cancelled the provider's work.
pub(crate) fn blame(provider: Provider, refusal: Refusal) -> Refusal {
    let name = provider.name();
    match refusal.code {
        Code::UnknownEvent | Code::NoOwner => Refusal {
            retryable: false,
            ..Refusal::new(Code::Unavailable, format!("provider `{name}` is not loaded"))
                .hint("`ksi plugin list` shows why")
        },
        Code::Cancelled => Refusal {
            retryable: false,
            ..Refusal::new(Code::Unavailable, format!("provider `{name}` gave up: {}", refusal.message))
        },
        _ => refusal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_provider_is_not_found_and_the_known_ones_are_named() {
        let refusal = Model::parse("openai/gpt").unwrap_err();
        assert_eq!(refusal.code, Code::NotFound);
        assert_eq!(refusal.details.unwrap()["known"], json!(["llama", "mock"]));
    }

    #[test]
    fn lanes_are_the_places_in_the_list() {
        for (place, provider) in Provider::ALL.into_iter().enumerate() {
            assert_eq!(provider.lane(), place);
        }
    }

    #[test]
    fn names_are_written_as_they_are_read() {
        for name in ["llama/default", "llama/a/b.gguf", "mock/echo", "mock/slow:5", "mock/fixed:a b"] {
            assert_eq!(Model::parse(name).unwrap().to_string(), name);
        }
    }

    #[test]
    fn an_answer_says_why_its_model_answered() {
        let model = Model::parse("llama/tiny").unwrap();
        assert_eq!(model.why(Chosen::ByName, "tiny"), "as requested");
        assert_eq!(model.why(Chosen::ByDefault, "tiny"), "default model");
        assert_eq!(model.why(Chosen::ByName, "ksi-tiny"), "llama calls `tiny` so");
        assert_eq!(Model::parse("llama/default").unwrap().why(Chosen::ByName, "x"), "default model");
    }
}
