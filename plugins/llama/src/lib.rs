//! Local models through llama.cpp.
//!
//! Owns the model files, loads and unloads them, and generates text for many
//! conversations at once. A toy model is built in, so this works without a
//! download. What it does not do: it keeps no conversations, queues nothing
//! beyond its slots and a short line, and never answers with anything that a
//! model did not say; the completion plugin is above it.
//!
//! Always runs in a child process: llama.cpp may abort on a bad file or for
//! lack of memory. Where the daemon lets it have instances, each model that is
//! loaded has a process of its own, too: this library in another role, which
//! knows one model and does with it what the plugin does with all where it is
//! alone. The plugin itself then chooses, plans, routes and counts (`workers`),
//! and never calls llama.cpp.
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
pub mod plan;
pub mod profile;
pub mod progress;
pub mod selftest;
pub mod shelf;
pub mod template;
pub mod text;
mod sending;
mod tools;
pub mod tuning;
pub mod vetting;
mod workers;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ksi_provider::{Capability, Delta, Generate, Generated, ListModels};
use ksi_sdk::prelude::{Bytes, Chunks, Code, Ctx, Event, Plugin, Rc, Refusal, Register};
use ksi_sdk::protocol::decode;

use config::Config;
use gguf::{Header, Pooling};
use models::{BUILTIN_NAME, Entry, Library};
use payload::{
    Embed, Embedded, Load, LoadProgress, LoadReport, ModelEntry, Models, Tokenize, Tokenized, Unload,
    Unloaded,
};
use progress::{Meter, Progress, told};
use shelf::{Loaded, Shelf};
use tuning::{Setting, Tuning};
use workers::{Workers, encoded};

/// Name under which requests may ask for the default model.
const DEFAULT_NAME: &str = "default";

/// How often models are looked at that may have to go, at most and at least.
const EXPIRY_LOOKS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The plugin.
pub struct Llama {
    config: Config,
    shelf: Arc<Shelf>,
    /// Where models have processes of their own.
    workers: Option<Rc<Workers>>,
    /// What was logged last of what was left out of the models directory.
    left_out: RefCell<Vec<String>>,
    /// The model that was found last for embeddings that name none.
    embedder: RefCell<Option<String>>,
}

impl Plugin for Llama {
    const NAME: &'static str = "llama";
    const ABOUT: &'static str = "Runs local models (GGUF files) through llama.cpp";
    const CHILD_ONLY: bool = true;

    fn start(ctx: &Ctx) -> Result<Self, Refusal> {
        let config: Config = ctx.config()?;
        config.check()?;
        let models_dir = config.models_dir.clone().unwrap_or_else(|| ctx.dir().join("models"));
        let home = config.home.as_deref().unwrap_or(ctx.dir());
        let library = Library::new(models_dir, home);
        let shelf = Arc::new(Shelf::new(config.clone(), library));
        let workers = config.instances.then(|| Workers::new(&config, &shelf, home));
        Ok(Self { config, shelf, workers, left_out: RefCell::default(), embedder: RefCell::default() })
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
        on.stream_raw::<Generate, Delta, Generated, _>("llama:generate", Self::asked_to_generate);
        on.request_raw::<Tokenize, Tokenized, _>("llama:tokenize", Self::asked_to_tokenize);
        on.request_raw::<Embed, Embedded, _>("llama:embed", Self::asked_to_embed);
        on.request("llama:profile", Self::profile);
        on.request("llama:metrics", Self::metrics);
        on.stream("llama:selftest", Self::selftest);
        on.emits::<Progress>("llama:progress");
        on.calls("plugin:instance:*");
        for fact in ["plugin:ready", "plugin:died", "plugin:held", "plugin:stopped"] {
            on.event(fact, Self::heard);
        }
    }
}

impl Llama {
    async fn models(self: Rc<Self>, ctx: Ctx, _ask: ListModels) -> Result<Models, Refusal> {
        let shelf = self.shelf.clone();
        let looked = ctx.spawn_blocking(move || (shelf.library().list(), shelf.library().notes()));
        let (entries, notes) = looked.await?;
        self.warn_of(&ctx, &notes);
        let mut loaded = self.loaded();
        let mut builtin_seen = false;
        let mut models: Vec<ModelEntry> = entries
            .into_iter()
            .map(|entry| {
                let is_other = builtin_seen && entry.name == BUILTIN_NAME;
                let in_memory = if is_other { None } else { loaded.remove(&entry.name) };
                builtin_seen |= entry.builtin;
                let quarantined = self.workers.as_ref().and_then(|workers| workers.quarantined(&entry));
                let listed = model_entry(entry, in_memory);
                ModelEntry { error: listed.error.or(quarantined), ..listed }
            })
            .collect();
        // A stable sort: the others stay as they are.
        models.sort_by_key(|model| model.name != self.config.default_model);
        Ok(Models { models, notes })
    }

    /// The models in memory by name, and what each runs with.
    fn loaded(&self) -> BTreeMap<String, Vec<Setting>> {
        self.workers.as_ref().map_or_else(|| self.shelf.loaded(), |workers| workers.loaded())
    }

    /// Whether a model is in memory.
    fn has_loaded(&self, name: &str) -> bool {
        self.workers.as_ref().map_or_else(|| self.shelf.has(name), |workers| workers.has(name))
    }

    /// Logs what was left out of the models directory, unless it was said already.
    fn warn_of(&self, ctx: &Ctx, notes: &[String]) {
        let mut told = self.left_out.borrow_mut();
        if *told != notes {
            notes.iter().for_each(|note| ctx.warn(note));
            notes.clone_into(&mut told);
        }
    }

    async fn load(
        self: Rc<Self>,
        ctx: Ctx,
        ask: Load,
        out: Chunks<LoadProgress>,
    ) -> Result<LoadReport, Refusal> {
        let asked = ask.asked()?;
        let name = self.resolve(ask.model);
        if let Some(workers) = &self.workers {
            return Ok(workers.load(&ctx, &name, &asked, Some(&out)).await?.report);
        }
        let mut shown = -1.0;
        let loaded = self
            .load_model(&ctx, name, asked, move |progress| {
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
        if let Some(workers) = &self.workers {
            let unloaded = workers.unload(&ctx, &model).await?;
            return Ok(Unloaded { model, unloaded });
        }
        let shelf = self.shelf.clone();
        ctx.spawn_blocking(move || shelf.unload(&model).map(|unloaded| Unloaded { model, unloaded })).await?
    }

    async fn asked_to_tokenize(self: Rc<Self>, ctx: Ctx, data: Bytes) -> Result<Bytes, Refusal> {
        let ask: Tokenize = decode(&data)?;
        payload::check_bytes(ask.text.len(), self.config.input_bytes_max)?;
        match &self.workers {
            Some(workers) => workers.ask(&ctx, &self.resolve(ask.model), "tokenize", &data).await,
            None => encoded(&self.tokenize(ctx, ask).await?),
        }
    }

    async fn tokenize(self: Rc<Self>, ctx: Ctx, ask: Tokenize) -> Result<Tokenized, Refusal> {
        let name = self.resolve(ask.model);
        let ticket = match self.shelf.ticket(&name)? {
            Some(ticket) => ticket,
            None => self.load_model(&ctx, name, Tuning::default(), |_| true).await?.ticket,
        };
        let text = ask.text;
        let tokens = ctx.spawn_blocking(move || ticket.engine().model().tokens_of(&text)).await??;
        let count = tokens.len() as u64;
        Ok(Tokenized { tokens: tokens.into_iter().map(|token| token.0).collect(), count })
    }

    /// A fact about a plugin, which may be an instance of this one.
    async fn heard(self: Rc<Self>, ctx: Ctx, fact: Event) {
        if let Some(workers) = &self.workers {
            workers.heard(&ctx, &fact);
        }
    }

    /// Loads what is to be in memory from the start, beside what is asked by
    /// then.
    async fn preload(self: Rc<Self>, ctx: Ctx) {
        for name in &self.config.preload {
            let model = self.resolve(Some(name.clone()));
            let loaded = match &self.workers {
                Some(workers) => workers.load(&ctx, &model, &Tuning::default(), None).await.map(drop),
                None => self.load_model(&ctx, model, Tuning::default(), |_| true).await.map(drop),
            };
            if let Err(refusal) = loaded {
                ctx.warn(&format!("model {name} was not preloaded: {refusal}"));
            }
        }
    }

    /// Lets go of models that nobody has asked for this long.
    async fn expire(self: Rc<Self>, ctx: Ctx, idle: Duration) {
        loop {
            ctx.sleep((idle / 4).clamp(EXPIRY_LOOKS.0, EXPIRY_LOOKS.1)).await;
            let shelf = self.shelf.clone();
            let gone = match &self.workers {
                Some(workers) => workers.expire(&ctx, idle).await,
                None => ctx.spawn_blocking(move || shelf.expire(idle)).await.unwrap_or_default(),
            };
            for name in gone {
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
        settings: Tuning,
        progress: impl FnMut(f32) -> bool + Send + 'static,
    ) -> Result<Loaded, Refusal> {
        let (shelf, cancel) = (self.shelf.clone(), ctx.cancel_token());
        let mut progress = progress;
        // Of an instance the plugin itself tells.
        let tells = self.config.instance.is_none();
        let meter = Meter::default();
        let (asked, moved) = (name.clone(), meter.clone());
        let loading = ctx.spawn_blocking(move || {
            let watched = cancel.clone();
            shelf.load(&asked, &settings, &cancel, move |part| {
                if tells {
                    moved.set(part);
                }
                !watched.is_cancelled() && progress(part)
            })
        });
        let loaded = told(ctx, &name, &meter, async { loading.await? }).await?;
        for warning in &loaded.warnings {
            ctx.debug(warning);
        }
        if loaded.fresh && tells {
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

fn model_entry(entry: Entry, loaded: Option<Vec<Setting>>) -> ModelEntry {
    let path: PathBuf = entry.path;
    let (header, error) = match entry.header {
        Ok(header) => (Some(header), None),
        Err(error) => (None, Some(error)),
    };
    ModelEntry {
        adapter: entry.adapter.is_some(),
        name: entry.name,
        path: path.display().to_string(),
        builtin: entry.builtin,
        toy: entry.builtin || header.as_ref().is_some_and(models::is_toy),
        loaded: loaded.is_some(),
        settings: loaded.unwrap_or_default(),
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
