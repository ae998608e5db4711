//! A provider that is a plugin: asked by the contract of `ksi-provider`.
//!
//! A prompt goes as a message of the user, so that the model's own chat
//! template is used.

use ksi_provider::{Delta, Generate, Generated, ListModels, Model, Models};
use ksi_sdk::{
    Answers,
    prelude::{CallOptions, Code, Ctx, Duration, Part, Refusal},
};
use serde_json::Value;

use super::{Attempt, DEFAULT, Piece};
use crate::order::Order;

/// What the plugin is given beyond the request's own deadline, so that the
/// deadline is always this plugin's to tell.
const SLACK: Duration = Duration::from_secs(5);

/// Time to ask which models there are.
const MODELS_TIMEOUT: Duration = Duration::from_secs(2);

/// Text on its way.
pub(crate) struct Stream(Answers);

impl Stream {
    pub(super) fn open(
        ctx: &Ctx,
        namespace: &str,
        order: &Order,
        attempt: Attempt<'_>,
    ) -> Result<Self, Refusal> {
        let model = &attempt.target.model;
        let left_ms = u64::try_from(attempt.left.as_millis()).unwrap_or(u64::MAX);
        let ask = Generate {
            model: (model != DEFAULT).then(|| model.clone()),
            messages: Some(order.messages.clone()),
            priority: (order.priority != 0).then_some(order.priority),
            timeout_ms: Some(left_ms.max(1)),
            tokens_left: attempt.tokens_left,
            conversation_id: order.scoped_conversation(ctx),
            ..order.settings.clone()
        };
        let options = CallOptions { timeout: Some(attempt.left + SLACK), ..CallOptions::default() };
        ctx.stream(&format!("{namespace}:generate"), &ask, options).map(Self)
    }

    pub(super) async fn next(&mut self) -> Result<Piece, Refusal> {
        match self.0.next::<Delta, Value>().await {
            Some(Ok(Part::Chunk(delta))) => Ok(Piece::Delta(delta)),
            Some(Ok(Part::End(end))) => read(end).map(|answer| Piece::Last(Box::new(answer))),
            Some(Err(refusal)) => Err(refusal),
            None => Err(Refusal::new(Code::Internal, "the provider's answer has no end")),
        }
    }
}

/// Reads the end apart from the request, so that what is wrong with it is not
/// mistaken for an `invalid_payload` of the asker's.
fn read(end: Value) -> Result<Generated, Refusal> {
    serde_json::from_value(end).map_err(|error| {
        Refusal::new(Code::Internal, format!("the provider's answer cannot be read: {error}"))
    })
}

/// The models that the plugin has.
pub(super) async fn models(ctx: &Ctx, namespace: &str) -> Result<Vec<Model>, Refusal> {
    let options = CallOptions { timeout: Some(MODELS_TIMEOUT), ..CallOptions::default() };
    let event = format!("{namespace}:models");
    let listed: Models = ctx.request_with(&event, &ListModels::default(), options).await?;
    Ok(listed.models)
}
