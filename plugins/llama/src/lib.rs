//! Local models through llama.cpp.
//!
//! Owns the model files, loads and unloads them, and generates text for many
//! conversations at once. A toy model is built in, so this works without a
//! download. What it does not do: it keeps no conversations, queues nothing
//! beyond its slots and a short line, and never answers with anything that a
//! model did not say; the completion plugin is above it.
//!
//! Always runs in a child process: llama.cpp may abort on a bad file or for
//! lack of memory.
//!
//! # Failure
//!
//! Every refusal names what was wrong, with the numbers in its details. A
//! broken model file is listed with its error and does not disturb the others.

pub mod config;
pub mod engine;
pub mod gguf;
pub mod models;
pub mod payload;
pub mod shelf;
pub mod template;
pub mod text;
pub mod vetting;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_channel::oneshot;
use ksi_sdk::prelude::{Chunks, Code, Ctx, Plugin, Rc, Refusal, Register, json};

use config::Config;
use engine::model::Model;
use engine::sampler::Settings;
use engine::{Job, Outcome};
use models::{BUILTIN_NAME, Entry, Library};
use payload::{
    Delta, Generate, Generated, ListModels, Load, LoadProgress, LoadReport, ModelEntry, Models, Timings,
    Tokenize, Tokenized, Unload, Unloaded, Usage,
};
use shelf::{Loaded, Shelf};

/// Most tokens that the toy model generates: its longest answers have about
/// 120, and beyond that it only repeats itself.
const TOY_TOKENS_MAX: u32 = 200;
/// Name under which requests may ask for the default model.
const DEFAULT_NAME: &str = "default";

/// The plugin.
pub struct Llama {
    config: Config,
    shelf: Arc<Shelf>,
}

impl Plugin for Llama {
    const NAME: &'static str = "llama";
    const ABOUT: &'static str = "Runs local models (GGUF files) through llama.cpp";
    const CHILD_ONLY: bool = true;

    fn start(ctx: &Ctx) -> Result<Self, Refusal> {
        let config: Config = ctx.config()?;
        config.check()?;
        let models_dir = config.models_dir.clone().unwrap_or_else(|| ctx.dir().join("models"));
        let library = Library::open(models_dir, ctx.dir())?;
        Ok(Self { shelf: Arc::new(Shelf::new(config.clone(), library)), config })
    }

    fn register(on: &mut Register<Self>) {
        on.request("llama:models", Self::models);
        on.stream("llama:load", Self::load);
        on.request("llama:unload", Self::unload);
        on.stream("llama:generate", Self::generate);
        on.request("llama:tokenize", Self::tokenize);
    }
}

impl Llama {
    async fn models(self: Rc<Self>, ctx: Ctx, _ask: ListModels) -> Result<Models, Refusal> {
        let shelf = self.shelf.clone();
        let (entries, loaded) = ctx.spawn_blocking(move || (shelf.library().list(), shelf.loaded())).await?;
        let mut builtin_seen = false;
        let models = entries
            .into_iter()
            .map(|entry| {
                let in_memory = loaded.contains(&entry.name) && !(builtin_seen && entry.name == BUILTIN_NAME);
                builtin_seen |= entry.builtin;
                model_entry(entry, in_memory)
            })
            .collect();
        Ok(Models { models })
    }

    async fn load(
        self: Rc<Self>,
        ctx: Ctx,
        ask: Load,
        out: Chunks<LoadProgress>,
    ) -> Result<LoadReport, Refusal> {
        let name = self.resolve(ask.model);
        let mut shown = -1.0;
        let loaded = self
            .load_model(&ctx, name, ask.context, move |progress| {
                if progress - shown < 0.01 && progress < 1.0 {
                    return true;
                }
                shown = progress;
                match out.send(&LoadProgress { progress }) {
                    Ok(()) => true,
                    // Progress that does not fit the queue is not worth the load.
                    Err(refusal) => refusal.code != Code::Cancelled,
                }
            })
            .await?;
        Ok(loaded.report)
    }

    async fn unload(self: Rc<Self>, ctx: Ctx, ask: Unload) -> Result<Unloaded, Refusal> {
        let model = self.resolve(Some(ask.model));
        let shelf = self.shelf.clone();
        ctx.spawn_blocking(move || shelf.unload(&model).map(|unloaded| Unloaded { model, unloaded })).await?
    }

    async fn generate(
        self: Rc<Self>,
        ctx: Ctx,
        mut ask: Generate,
        out: Chunks<Delta>,
    ) -> Result<Generated, Refusal> {
        let received = Instant::now();
        let settings = Settings::of(&ask)?;
        let stops = ask.take_stops()?;
        let input = ask.take_input(self.config.input_bytes_max)?;
        let name = self.resolve(ask.model.take());
        let max_tokens = self.max_tokens(ask.max_tokens)?;
        let priority = ask.take_priority()?;
        let deadline = deadline(received, ask.timeout_ms, ctx.deadline());
        let (ticket, load_time) = match self.shelf.ticket(&name)? {
            Some(ticket) => (ticket, None),
            None => {
                let loaded = self.load_model(&ctx, name.clone(), None, |_| true).await?;
                (loaded.ticket, loaded.fresh.then(|| received.elapsed()))
            }
        };
        let model = ticket.engine().model().clone();
        let context = ticket.engine().setup().context as usize;
        let toy = model.is_toy();
        let max_tokens = if toy { max_tokens.min(TOY_TOKENS_MAX) } else { max_tokens };
        let prompt = if Model::is_small(&input) {
            model.read(&input)?
        } else {
            ctx.spawn_blocking(move || model.read(&input)).await??
        };
        check_length(prompt.len(), context)?;
        let seed = settings.seed();
        let cancel = ctx.cancel_token();
        let (answer, answered) = oneshot::channel();
        let rest = out.clone();
        ticket.submit(|ticket| Job {
            prompt,
            max_tokens,
            settings,
            stops,
            priority,
            deadline,
            cancel,
            out,
            answer,
            received,
            ticket,
        })?;
        let mut outcome = answered
            .await
            .map_err(|_| Refusal::new(Code::Internal, "the engine failed while it generated"))??;
        send_rest(&ctx, &rest, std::mem::take(&mut outcome.unsent)).await?;
        Ok(generated(name, toy, seed, load_time, outcome))
    }

    async fn tokenize(self: Rc<Self>, ctx: Ctx, ask: Tokenize) -> Result<Tokenized, Refusal> {
        payload::check_bytes(ask.text.len(), self.config.input_bytes_max)?;
        let name = self.resolve(ask.model);
        let ticket = match self.shelf.ticket(&name)? {
            Some(ticket) => ticket,
            None => self.load_model(&ctx, name, None, |_| true).await?.ticket,
        };
        let text = ask.text;
        let tokens = ctx.spawn_blocking(move || ticket.engine().model().tokens_of(&text)).await??;
        let count = tokens.len() as u64;
        Ok(Tokenized { tokens: tokens.into_iter().map(|token| token.0).collect(), count })
    }

    /// The name of the model that is meant.
    fn resolve(&self, name: Option<String>) -> String {
        match name {
            Some(name) if name != DEFAULT_NAME => name,
            _ => self.config.default_model.clone(),
        }
    }

    fn max_tokens(&self, asked: Option<u32>) -> Result<u32, Refusal> {
        let tokens = asked.unwrap_or(self.config.max_tokens_default);
        if tokens == 0 {
            let message = "`max_tokens` is 0; at least 1 is accepted";
            return Err(payload::invalid("max_tokens", message, "leave it out for the default"));
        }
        Ok(tokens)
    }

    async fn load_model(
        &self,
        ctx: &Ctx,
        name: String,
        context: Option<u32>,
        progress: impl FnMut(f32) -> bool + Send + 'static,
    ) -> Result<Loaded, Refusal> {
        let (shelf, cancel) = (self.shelf.clone(), ctx.cancel_token());
        let mut progress = progress;
        let loaded = ctx
            .spawn_blocking(move || {
                let watched = cancel.clone();
                shelf.load(&name, context, &cancel, move |part| !watched.is_cancelled() && progress(part))
            })
            .await??;
        for warning in &loaded.warnings {
            ctx.debug(warning);
        }
        if loaded.fresh {
            let report = &loaded.report;
            ctx.info(&format!(
                "loaded model {} in {} ms: {} slots of {} tokens, {} threads",
                report.model, report.load_ms, report.slots, report.context, report.threads
            ));
            for note in &report.notes {
                ctx.warn(&format!("model {}: {note}", report.model));
            }
        }
        Ok(loaded)
    }
}

/// When an answer is of no use any more: after the asker's own time or the
/// daemon's, whichever is over first.
fn deadline(received: Instant, asked_ms: Option<u64>, left: Option<Duration>) -> Option<Instant> {
    let asked = asked_ms.map(Duration::from_millis);
    let time = asked.into_iter().chain(left).min()?;
    received.checked_add(time)
}

fn model_entry(entry: Entry, loaded: bool) -> ModelEntry {
    let path: PathBuf = entry.path;
    let (header, error) = match entry.header {
        Ok(header) => (Some(header), None),
        Err(error) => (None, Some(error)),
    };
    ModelEntry {
        name: entry.name,
        path: path.display().to_string(),
        builtin: entry.builtin,
        toy: entry.builtin || header.as_ref().is_some_and(models::is_toy),
        loaded,
        architecture: header.as_ref().map(|header| header.architecture.clone()),
        parameters: header.as_ref().map(|header| header.parameters),
        quantization: header.as_ref().map(|header| header.quantization.clone()),
        context_length: header.as_ref().map(|header| header.context_length),
        size_bytes: entry.size_bytes,
        error,
    }
}

/// Refuses a prompt that leaves no room for an answer: it is never cut in
/// silence.
fn check_length(tokens: usize, context: usize) -> Result<(), Refusal> {
    if tokens == 0 {
        return Err(payload::invalid("prompt", "the input has no tokens", "give some text"));
    }
    if tokens < context {
        return Ok(());
    }
    let message =
        format!("the input has {tokens} tokens; the context of {context} tokens must also hold the answer");
    Err(Refusal::new(Code::TooLarge, message)
        .hint("shorten the conversation, or load the model with a larger `context`")
        .details(json!({ "prompt_tokens": tokens, "context": context })))
}

/// Sends the last piece of an answer once the host's queue has room for it.
async fn send_rest(ctx: &Ctx, out: &Chunks<Delta>, text: String) -> Result<(), Refusal> {
    if text.is_empty() {
        return Ok(());
    }
    let rest = Delta { text };
    loop {
        match out.send(&rest) {
            Err(refusal) if refusal.code == Code::Busy => {
                ctx.sleep(Duration::from_millis(refusal.retry_after_ms.unwrap_or(50))).await;
            }
            sent => return sent,
        }
    }
}

fn generated(
    model: String,
    toy: bool,
    seed: u32,
    load_time: Option<Duration>,
    outcome: Outcome,
) -> Generated {
    let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
    let per_second = |count: usize, time: Duration| {
        if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
    };
    let (prompt_tokens, completion_tokens) = (outcome.prompt_tokens as u64, outcome.completion_tokens as u64);
    Generated {
        model,
        text: outcome.text,
        stop_reason: outcome.stop_reason,
        toy,
        seed,
        usage: Usage {
            prompt_tokens,
            cached_tokens: outcome.cached_tokens as u64,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
        },
        timings: Timings {
            load_ms: load_time.map(milliseconds),
            queued_ms: milliseconds(outcome.queued),
            prompt_ms: milliseconds(outcome.prompt_time),
            generate_ms: milliseconds(outcome.generate_time),
            first_token_ms: milliseconds(outcome.first_token),
            prompt_per_second: per_second(outcome.prompt_tokens - outcome.cached_tokens, outcome.prompt_time),
            // The first token belongs to the prompt's time.
            generate_per_second: per_second(
                outcome.completion_tokens.saturating_sub(1),
                outcome.generate_time,
            ),
        },
    }
}

ksi_sdk::export!(Llama);
