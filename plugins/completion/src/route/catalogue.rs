//! What providers said of their models when they were last asked.
//!
//! What a provider does not say is not held against it: a model is left out only
//! where it is known that it cannot.

use ksi_provider::{Capability, Model};
use ksi_sdk::prelude::{Ctx, Refusal};

use std::cell::RefCell;

use crate::{
    order::Needs,
    provider::{DEFAULT, Provider, Providers, Target},
};

/// Age at which a provider is asked anew, and at which it is not held against one
/// any more that it was not there, milliseconds.
const AGE_MS: u64 = 60_000;
const ABSENT_AGE_MS: u64 = 5_000;

#[derive(Debug, Clone, Default)]
struct Known {
    models: Option<Vec<Model>>,
    absent: Option<String>,
    at_ms: Option<u64>,
}

/// The models of all providers, by lane.
#[derive(Debug)]
pub(crate) struct Catalogue(RefCell<Vec<Known>>);

impl Catalogue {
    pub(crate) fn new(providers: &Providers) -> Self {
        Self(RefCell::new(vec![Known::default(); providers.all().len()]))
    }

    /// Asks a provider for its models, and remembers them.
    pub(crate) async fn ask(
        &self,
        ctx: &Ctx,
        provider: &Provider,
        lane: usize,
        now_ms: u64,
    ) -> Result<Vec<Model>, Refusal> {
        let asked = provider.ask_models(ctx).await;
        let known = Known {
            models: asked.as_ref().ok().cloned(),
            absent: asked.as_ref().err().map(|refusal| refusal.message.clone()),
            at_ms: Some(now_ms),
        };
        self.0.borrow_mut()[lane] = known;
        asked
    }

    /// Whether it is too long ago that a provider was asked.
    pub(crate) fn is_old(&self, lane: usize, now_ms: u64) -> bool {
        self.0.borrow()[lane].at_ms.is_none_or(|at_ms| now_ms.saturating_sub(at_ms) > AGE_MS)
    }

    /// A provider was not there when it was asked to generate.
    pub(crate) fn missed(&self, lane: usize, why: &str, now_ms: u64) {
        let known = &mut self.0.borrow_mut()[lane];
        (known.absent, known.at_ms) = (Some(why.to_owned()), Some(now_ms));
    }

    /// A provider answers, so it is there.
    pub(crate) fn found(&self, lane: usize) {
        self.0.borrow_mut()[lane].absent = None;
    }

    /// Why a provider is not there, where that is so as far as is known.
    pub(crate) fn absent(&self, lane: usize, now_ms: u64) -> Option<String> {
        let known = &self.0.borrow()[lane];
        let recent = known.at_ms.is_some_and(|at_ms| now_ms.saturating_sub(at_ms) <= ABSENT_AGE_MS);
        known.absent.clone().filter(|_| recent)
    }

    /// Tokens that question and answer may have together, where that is known.
    pub(crate) fn context_length(&self, target: &Target, provider: &Provider) -> Option<u64> {
        let said = || self.model(target).and_then(|model| model.context_length);
        provider.model(&target.model).context_length.or_else(said)
    }

    fn model(&self, target: &Target) -> Option<Model> {
        let known = self.0.borrow();
        let models = known[target.lane].models.as_ref()?;
        match target.model.as_str() {
            DEFAULT => models.first().cloned(),
            name => models.iter().find(|model| model.name == name).cloned(),
        }
    }

    /// What a model is known to lack for a request.
    pub(crate) fn lacks(&self, target: &Target, provider: &Provider, needs: &Needs) -> Option<String> {
        let config = provider.model(&target.model);
        let model = self.model(target);
        let can = |configured: Option<bool>, capability| {
            let said = || {
                let capabilities = &model.as_ref()?.capabilities;
                (!capabilities.is_empty()).then(|| capabilities.contains(&capability))
            };
            configured.or_else(said).unwrap_or(true)
        };
        if needs.tools && !can(config.tools, Capability::Tools) {
            return Some("it cannot call tools".into());
        }
        if needs.json_schema && !can(config.json_schema, Capability::JsonSchema) {
            return Some("it cannot answer by a JSON schema".into());
        }
        if needs.answers > 1 && !can(config.choices, Capability::Choices) {
            return Some("it gives one answer to a request".into());
        }
        None
    }

    /// Where question and answer hardly fit into its context; each of several
    /// answers has it for itself.
    pub(crate) fn is_tight(&self, target: &Target, provider: &Provider, needs: &Needs) -> Option<String> {
        let context = self.context_length(target, provider)?;
        let tokens = needs.prompt_tokens + needs.max_tokens.unwrap_or(0);
        (tokens > context)
            .then(|| format!("about {tokens} tokens may be needed, and its context has {context}"))
    }
}
