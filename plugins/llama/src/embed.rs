//! `llama:embed`: texts in, vectors out.

use std::time::{Duration, Instant};

use futures_channel::oneshot;
use ksi_provider::Capability;
use ksi_provider::request::invalid;
use ksi_sdk::prelude::{Bytes, Code, Ctx, Rc, Refusal, json};
use ksi_sdk::protocol::decode;
use llama_cpp_2::token::LlamaToken;

use crate::engine::embedder::Texts;
use crate::engine::model::Model;
use crate::payload::{Embed, Embedded, check_bytes};
use crate::tuning::Tuning;
use crate::workers::encoded;
use crate::{Llama, capabilities};

/// Most texts of one request.
const TEXTS_MAX: usize = 2048;
/// Most numbers of one answer: it must fit a frame of the wire, where each
/// takes 5 bytes.
const NUMBERS_MAX: usize = 3_000_000;

impl Llama {
    pub(crate) async fn asked_to_embed(self: Rc<Self>, ctx: Ctx, data: Bytes) -> Result<Bytes, Refusal> {
        let received = Instant::now();
        let mut ask: Embed = decode(&data)?;
        if !(1..=TEXTS_MAX).contains(&ask.texts.len()) {
            let message = format!("{} texts; 1 to {TEXTS_MAX} are accepted", ask.texts.len());
            return Err(invalid("texts", message, "give more or fewer at once"));
        }
        check_bytes(ask.texts.iter().map(String::len).sum(), self.config.input_bytes_max)?;
        let name = self.embedding_model(&ctx, ask.model.take()).await?;
        match &self.workers {
            Some(workers) => workers.ask(&ctx, &name, "embed", &data).await,
            None => encoded(&self.embed(ctx, ask, name, received).await?),
        }
    }

    async fn embed(
        self: Rc<Self>,
        ctx: Ctx,
        ask: Embed,
        name: String,
        received: Instant,
    ) -> Result<Embedded, Refusal> {
        let ticket = match self.shelf.ticket(&name)? {
            Some(ticket) => ticket,
            None => self.load_model(&ctx, name.clone(), Tuning::default(), |_| true).await?.ticket,
        };
        let engine = ticket.engine();
        let (model, context) = (engine.model().clone(), engine.setup().context as usize);
        let Some(pooling) = model.pooling() else {
            let message = format!("model `{name}` makes text and no vectors");
            let hint = "use a model for embeddings, all-MiniLM for example: ksi model add PATH.gguf";
            return Err(invalid("model", message, hint));
        };
        let dimensions = model.dimensions();
        if ask.texts.len().saturating_mul(dimensions) > NUMBERS_MAX {
            let most = NUMBERS_MAX / dimensions.max(1);
            let message =
                format!("{} vectors of {dimensions} numbers do not fit one answer", ask.texts.len());
            return Err(
                Refusal::new(Code::TooLarge, message).hint(format!("give at most {most} texts at once"))
            );
        }
        let (texts, truncate) = (ask.texts, ask.truncate);
        let tokens = ctx.spawn_blocking(move || read(&model, &texts, context, truncate)).await??;
        let prompt_tokens = tokens.iter().map(|text| text.len() as u64).sum();
        let (answer, answered) = oneshot::channel();
        let time = ask.timeout_ms.map(Duration::from_millis).into_iter().chain(ctx.deadline()).min();
        let deadline = time.and_then(|time| received.checked_add(time));
        let cancel = ctx.cancel_token();
        ticket.embed(answer, |asker| Texts { texts: tokens, cancel, deadline, received, asker })?;
        let failed = |_| Refusal::new(Code::Internal, "the engine failed while it read the texts");
        let mut vectors = answered.await.map_err(failed)??;
        if ask.normalize {
            vectors.iter_mut().for_each(|vector| normalize(vector));
        }
        Ok(Embedded {
            model: name,
            embeddings: vectors,
            dimensions: dimensions as u64,
            pooling: pooling.to_owned(),
            normalized: ask.normalize,
            prompt_tokens,
        })
    }

    /// The model that is meant: the one that is named, or configured, or the
    /// first that can, for as long as that is in memory.
    async fn embedding_model(&self, ctx: &Ctx, asked: Option<String>) -> Result<String, Refusal> {
        if let Some(name) = asked.or_else(|| self.config.embedding_model.clone()) {
            return Ok(name);
        }
        // While it is in memory it stays the one: vectors of different models cannot be compared, and
        // the directory need not be looked at for each request.
        let known = self.embedder.borrow().clone().filter(|name| self.has_loaded(name));
        if let Some(name) = known {
            return Ok(name);
        }
        let shelf = self.shelf.clone();
        let entries = ctx.spawn_blocking(move || shelf.library().list()).await?;
        let able = entries
            .into_iter()
            .find(|entry| capabilities(entry.header.as_ref().ok()).contains(&Capability::Embeddings));
        let able = able.map(|entry| entry.name);
        self.embedder.replace(able.clone());
        able.ok_or_else(|| {
            Refusal::not_found("model", "for embeddings")
                .hint("add one, all-MiniLM for example: ksi model add PATH.gguf")
        })
    }
}

/// The tokens of each text. One that is too long is refused, or trimmed to its
/// start where that was asked for.
fn read(
    model: &Model,
    texts: &[String],
    context: usize,
    truncate: bool,
) -> Result<Vec<Vec<LlamaToken>>, Refusal> {
    let mut all = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let mut tokens = model.tokens_to_embed(text)?;
        if tokens.is_empty() {
            return Err(invalid(&format!("texts[{index}]"), "the text has no tokens", "leave it out"));
        }
        if tokens.len() > context {
            if !truncate {
                let message =
                    format!("text {index} has {} tokens; the model reads at most {context}", tokens.len());
                return Err(Refusal::new(Code::TooLarge, message)
                    .hint("split it, or have it cut: `truncate`")
                    .details(
                        json!({ "path": format!("texts[{index}]"), "tokens": tokens.len(), "max": context }),
                    ));
            }
            // The last token says that the text ends.
            let last = tokens[tokens.len() - 1];
            tokens.truncate(context);
            tokens[context - 1] = last;
        }
        all.push(tokens);
    }
    Ok(all)
}

/// Gives a vector the length 1; one without a length stays.
fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|number| f64::from(*number).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 && length.is_finite() {
        for number in vector {
            #[expect(clippy::cast_possible_truncation, reason = "of a unit vector")]
            let scaled = (f64::from(*number) / length) as f32;
            *number = scaled;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_gets_the_length_one() {
        let mut vector = [3.0, 4.0];
        normalize(&mut vector);
        assert_eq!(vector, [0.6, 0.8]);
        let mut nothing = [0.0; 3];
        normalize(&mut nothing);
        assert_eq!(nothing, [0.0; 3]);
    }
}
