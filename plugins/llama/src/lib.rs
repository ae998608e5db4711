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

pub mod budget;
pub mod config;
pub mod constraint;
mod embed;
pub mod engine;
mod gbnf;
mod generate;
pub mod gguf;
pub mod metrics;
pub mod models;
pub mod payload;
pub mod profile;
pub mod selftest;
pub mod shelf;
pub mod template;
pub mod text;
mod tools;
pub mod tuning;
pub mod vetting;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ksi_provider::{Capability, ListModels};
use ksi_sdk::prelude::{Chunks, Code, Ctx, Plugin, Rc, Refusal, Register};

use config::Config;
use gguf::{Header, Pooling};
use models::{BUILTIN_NAME, Entry, Library};
use payload::{Load, LoadProgress, LoadReport, ModelEntry, Models, Tokenize, Tokenized, Unload, Unloaded};
use shelf::{Loaded, Shelf};

/// Name under which requests may ask for the default model.
const DEFAULT_NAME: &str = "default";

/// How often models are looked at that may have to go, at most and at least.
const EXPIRY_LOOKS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

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

    async fn open(self: Rc<Self>, ctx: Ctx) -> Result<(), Refusal> {
        ctx.spawn(self.clone().preload(ctx.clone()));
        if let Some(seconds) = self.config.ttl_seconds {
            ctx.spawn(self.expire(ctx.clone(), Duration::from_secs(seconds)));
        }
        Ok(())
    }

    fn register(on: &mut Register<Self>) {
        on.request("llama:models", Self::models);
        on.stream("llama:load", Self::load);
        on.request("llama:unload", Self::unload);
        on.stream("llama:generate", Self::generate);
        on.request("llama:tokenize", Self::tokenize);
        on.request("llama:embed", Self::embed);
        on.request("llama:profile", Self::profile);
        on.request("llama:metrics", Self::metrics);
        on.stream("llama:selftest", Self::selftest);
    }
}

impl Llama {
    async fn models(self: Rc<Self>, ctx: Ctx, _ask: ListModels) -> Result<Models, Refusal> {
        let shelf = self.shelf.clone();
        let (entries, loaded) = ctx.spawn_blocking(move || (shelf.library().list(), shelf.loaded())).await?;
        let mut builtin_seen = false;
        let mut models: Vec<ModelEntry> = entries
            .into_iter()
            .map(|entry| {
                let in_memory = loaded.contains(&entry.name) && !(builtin_seen && entry.name == BUILTIN_NAME);
                builtin_seen |= entry.builtin;
                model_entry(entry, in_memory)
            })
            .collect();
        // A stable sort: the others stay as they are.
        models.sort_by_key(|model| model.name != self.config.default_model);
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

    /// Loads what is to be in memory from the start, beside what is asked by
    /// then.
    async fn preload(self: Rc<Self>, ctx: Ctx) {
        for name in &self.config.preload {
            if let Err(refusal) =
                self.load_model(&ctx, self.resolve(Some(name.clone())), None, |_| true).await
            {
                ctx.warn(&format!("model {name} was not preloaded: {refusal}"));
            }
        }
    }

    /// Lets go of models that nobody has asked for this long.
    async fn expire(self: Rc<Self>, ctx: Ctx, idle: Duration) {
        loop {
            ctx.sleep((idle / 4).clamp(EXPIRY_LOOKS.0, EXPIRY_LOOKS.1)).await;
            let shelf = self.shelf.clone();
            for name in ctx.spawn_blocking(move || shelf.expire(idle)).await.unwrap_or_default() {
                ctx.info(&format!("model {name} was let go: nobody asked it for {} s", idle.as_secs()));
            }
        }
    }

    /// The name of the model that is meant.
    fn resolve(&self, name: Option<String>) -> String {
        match name {
            Some(name) if name != DEFAULT_NAME => name,
            _ => self.config.default_model.clone(),
        }
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

fn capabilities(header: Option<&Header>) -> Vec<Capability> {
    match header.map(|header| header.pooling) {
        None | Some(Some(Pooling::Unsupported)) => Vec::new(),
        Some(Some(_)) => vec![Capability::Embeddings],
        Some(None) => {
            vec![Capability::Chat, Capability::Tools, Capability::JsonSchema, Capability::Choices]
        }
    }
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
        capabilities: capabilities(header.as_ref()),
        architecture: header.as_ref().map(|header| header.architecture.clone()),
        parameters: header.as_ref().map(|header| header.parameters),
        quantization: header.as_ref().map(|header| header.quantization.clone()),
        context_length: header.as_ref().map(|header| header.context_length),
        size_bytes: entry.size_bytes,
        error,
    }
}

ksi_sdk::export!(Llama);
