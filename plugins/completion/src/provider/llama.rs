//! The provider `llama`: models on this machine, through the llama plugin.
//!
//! `llama/default` leaves the choice to that plugin. A prompt goes as a
//! message of the user, so that the model's own chat template is used.

use ksi_sdk::{
    Answers,
    prelude::{CallOptions, Code, Ctx, Deserialize, Duration, Part, Refusal, json},
};
use serde_json::Value;

use super::{Answer, Attempt, Piece, Provider, blame};
use crate::{
    order::Order,
    payload::{Chunk, Timings, Usage},
};

/// The model that stands for the llama plugin's own choice.
pub(super) const DEFAULT: &str = "default";

/// What the llama plugin is given beyond the request's own deadline, so that
/// the deadline is always this plugin's to tell.
const SLACK: Duration = Duration::from_secs(5);

/// Time to ask which models there are.
const MODELS_TIMEOUT: Duration = Duration::from_secs(2);

/// The end of `llama:generate`.
#[derive(Deserialize)]
struct End {
    model: String,
    text: String,
    stop_reason: String,
    #[serde(default)]
    toy: bool,
    #[serde(default)]
    seed: Option<u32>,
    #[serde(default)]
    usage: Usage,
    #[serde(default)]
    timings: Timings,
}

/// Text on its way from the llama plugin.
pub(crate) struct Stream(Answers);

impl Stream {
    pub(super) fn open(ctx: &Ctx, name: &str, order: &Order, attempt: Attempt) -> Result<Self, Refusal> {
        let mut ask = json!(order.sampling);
        ask["messages"] = json!(order.messages);
        if name != DEFAULT {
            ask["model"] = json!(name);
        }
        let options = CallOptions { timeout: Some(attempt.left + SLACK), ..CallOptions::default() };
        ctx.stream("llama:generate", &ask, options).map(Self)
    }

    pub(super) async fn next(&mut self) -> Result<Piece, Refusal> {
        match self.0.next::<Chunk, Value>().await {
            Some(Ok(Part::Chunk(chunk))) => Ok(Piece::Text(chunk.text)),
            Some(Ok(Part::End(end))) => read(end).map(|answer| Piece::Last(Box::new(answer))),
            Some(Err(refusal)) => Err(blame(Provider::Llama, refusal)),
            None => Err(Refusal::new(Code::Internal, "llama's answer has no end")),
        }
    }
}

/// Reads the end apart from the request, so that what is wrong with it is not
/// mistaken for an `invalid_payload` of the asker's.
fn read(end: Value) -> Result<Answer, Refusal> {
    let End { model, text, stop_reason, toy, seed, usage, timings } = serde_json::from_value(end)
        .map_err(|error| Refusal::new(Code::Internal, format!("llama's answer cannot be read: {error}")))?;
    Ok(Answer { model, text, stop_reason, toy, seed, usage, timings })
}

/// The answer to `llama:models`, as far as it matters here.
#[derive(Deserialize)]
struct Models {
    models: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    name: String,
}

/// Names of the models that the llama plugin has.
pub(crate) async fn models(ctx: &Ctx) -> Result<Vec<String>, Refusal> {
    let options = CallOptions { timeout: Some(MODELS_TIMEOUT), ..CallOptions::default() };
    let listed: Models = ctx
        .request_with("llama:models", &json!({}), options)
        .await
        .map_err(|refusal| blame(Provider::Llama, refusal))?;
    Ok(listed.models.into_iter().map(|model| model.name).collect())
}
