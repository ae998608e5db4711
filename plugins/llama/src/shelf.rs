//! The shelf: which models are in memory, loading them one at a time, and
//! making room.
//!
//! Everything here may block and belongs on a thread of its own, except
//! [`Shelf::ticket`] and [`Shelf::loaded`], which only look.
//!
//! # Invariants
//!
//! - At most `max_loaded` models are in memory; the idle one that was used
//!   longest ago makes room, and one in use never does.
//! - Loads happen one after another, so the check of free memory is not
//!   overtaken by another load.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ksi_sdk::prelude::{CancelToken, Code, Refusal, json};

use crate::config::{CONTEXT_DEFAULT, CONTEXT_MIN, Config};
use crate::engine::model::{self, Model};
use crate::engine::{Engine, RETRY_AFTER_MS, Setup, Ticket};
use crate::gguf::Header;
use crate::models::{Library, is_toy};
use crate::payload::LoadReport;
use crate::vetting::{Source, Vetting};

/// Memory that a context takes besides the conversations, a guess on the safe
/// side.
const OVERHEAD_BYTES: u64 = 64 * 1024 * 1024;

/// A model in memory.
struct Shelved {
    engine: Arc<Engine>,
    report: LoadReport,
    used: Instant,
}

/// What came of a load.
pub struct Loaded {
    /// The right to use the model.
    pub ticket: Ticket,
    /// How it runs.
    pub report: LoadReport,
    /// Warnings of llama.cpp, for the log.
    pub warnings: Vec<String>,
    /// Whether it was loaded just now.
    pub fresh: bool,
}

/// The models in memory.
pub struct Shelf {
    config: Config,
    library: Library,
    vetting: Option<Vetting>,
    models: Mutex<HashMap<String, Shelved>>,
    /// Held through a load.
    loading: Mutex<()>,
}

impl Shelf {
    /// An empty shelf.
    #[must_use]
    pub fn new(config: Config, library: Library) -> Self {
        let vetting = Vetting::of(&config);
        Self { config, library, vetting, models: Mutex::default(), loading: Mutex::default() }
    }

    /// The models that there are.
    #[must_use]
    pub fn library(&self) -> &Library {
        &self.library
    }

    fn models(&self) -> MutexGuard<'_, HashMap<String, Shelved>> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names of the models in memory.
    #[must_use]
    pub fn loaded(&self) -> Vec<String> {
        self.models().keys().cloned().collect()
    }

    /// A ticket for a model that is in memory; `None` where it is not.
    ///
    /// # Errors
    ///
    /// `busy` where too many wait for it.
    pub fn ticket(&self, name: &str) -> Result<Option<Ticket>, Refusal> {
        let mut models = self.models();
        let Some(shelved) = models.get_mut(name).filter(|shelved| shelved.engine.is_alive()) else {
            return Ok(None);
        };
        shelved.used = Instant::now();
        shelved.engine.ticket().map(Some)
    }

    /// Loads a model, unless it is in memory already with this context.
    ///
    /// # Errors
    ///
    /// `not_found`, `denied` where it is not signed and must be, `unavailable`
    /// with what is wrong with file, memory or processor, `busy` where all
    /// models in memory are in use, `cancelled`.
    pub fn load(
        &self,
        name: &str,
        context: Option<u32>,
        cancel: &CancelToken,
        progress: impl FnMut(f32) -> bool + 'static,
    ) -> Result<Loaded, Refusal> {
        let _loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if cancel.is_cancelled() {
            return Err(Refusal::new(Code::Cancelled, "loading was cancelled"));
        }
        if let Some(loaded) = self.as_it_is(name, context)? {
            return Ok(loaded);
        }
        let (entry, header) = self.library.find(name)?;
        // Before others have to make room.
        let source = match &self.vetting {
            Some(vetting) => vetting.open(&entry, self.library.models_dir(), cancel)?,
            None => Source::unchecked(entry, header),
        };
        let header = &source.header;
        let context = self.context_for(name, context, header)?;
        self.make_room(name)?;
        let began = Instant::now();
        let mut notes = Vec::new();
        let setup = self.fit(name, context, header, available_bytes(), &mut notes)?;
        let gpu_layers = self.config.gpu_layer_count();
        let model = Model::load(&source.path, header, gpu_layers, progress)?;
        let template = model.template_origin().to_owned();
        if template != "model" {
            notes.push(format!("chat template: {template}"));
        }
        let engine = Engine::start(model, setup)?;
        let report = LoadReport {
            model: name.to_owned(),
            load_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            context: setup.context,
            slots: setup.slots,
            threads: setup.threads,
            gpu_layers,
            template,
            toy: is_toy(header),
            notes,
        };
        let ticket = engine.ticket()?;
        let shelved = Shelved { engine, report: report.clone(), used: Instant::now() };
        let replaced = self.models().insert(name.to_owned(), shelved);
        // Outside of the lock: dropping an engine waits for its thread.
        drop(replaced);
        Ok(Loaded { ticket, report, warnings: model::warnings(), fresh: true })
    }

    /// The model as it is in memory. One with another context is dropped if it
    /// is idle.
    fn as_it_is(&self, name: &str, context: Option<u32>) -> Result<Option<Loaded>, Refusal> {
        let mut models = self.models();
        let Some(shelved) = models.get_mut(name) else { return Ok(None) };
        let fits = context.is_none_or(|context| context == shelved.report.context);
        if shelved.engine.is_alive() && fits {
            shelved.used = Instant::now();
            let report = LoadReport { load_ms: 0, ..shelved.report.clone() };
            let ticket = shelved.engine.ticket()?;
            return Ok(Some(Loaded { ticket, report, warnings: Vec::new(), fresh: false }));
        }
        if shelved.engine.is_alive() && shelved.engine.in_use() > 0 {
            return Err(in_use(name));
        }
        let gone = models.remove(name);
        drop(models);
        drop(gone);
        Ok(None)
    }

    /// Takes a model out of memory; whether it was there.
    ///
    /// # Errors
    ///
    /// `not_found` for an unknown model, `busy` for one in use.
    pub fn unload(&self, name: &str) -> Result<bool, Refusal> {
        let _loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        let mut models = self.models();
        match models.get(name) {
            None => {
                drop(models);
                // A broken file is not in memory either, so only an unknown
                // name is worth a refusal.
                match self.library.find(name) {
                    Err(refusal) if refusal.code == Code::NotFound => Err(refusal),
                    _ => Ok(false),
                }
            }
            Some(shelved) if shelved.engine.is_alive() && shelved.engine.in_use() > 0 => Err(in_use(name)),
            Some(_) => {
                let gone = models.remove(name);
                drop(models);
                drop(gone);
                Ok(true)
            }
        }
    }

    /// Unloads idle models until one more may be loaded.
    fn make_room(&self, name: &str) -> Result<(), Refusal> {
        loop {
            let mut models = self.models();
            if models.len() < self.config.max_loaded as usize {
                return Ok(());
            }
            let idle = models
                .iter()
                .filter(|(_, shelved)| shelved.engine.in_use() == 0 || !shelved.engine.is_alive())
                .min_by_key(|(_, shelved)| shelved.used)
                .map(|(name, _)| name.clone());
            let Some(idle) = idle else {
                let loaded: Vec<&String> = models.keys().collect();
                return Err(Refusal::new(
                    Code::Busy,
                    format!("no room for model `{name}`: all {} models in memory are in use", loaded.len()),
                )
                .hint("ask again later, or raise `max_loaded` of the llama plugin")
                .details(json!({ "loaded": loaded }))
                .retry_after_ms(RETRY_AFTER_MS));
            };
            let gone = models.remove(&idle);
            drop(models);
            drop(gone);
        }
    }

    /// Tokens of context for each conversation.
    fn context_for(&self, name: &str, asked: Option<u32>, header: &Header) -> Result<u32, Refusal> {
        let trained = u32::try_from(header.context_length).unwrap_or(u32::MAX);
        match asked {
            Some(context) if context < CONTEXT_MIN || context > trained => {
                let message =
                    format!("a context of {context} tokens; model `{name}` takes {CONTEXT_MIN} to {trained}");
                Err(Refusal::new(Code::InvalidPayload, message)
                    .hint("leave `context` out for the default")
                    .details(json!({ "context": context, "min": CONTEXT_MIN, "max": trained })))
            }
            Some(context) => Ok(context),
            None => Ok(self.config.context.unwrap_or(CONTEXT_DEFAULT).min(trained)),
        }
    }

    /// Finds the most slots that fit into the memory that is free.
    fn fit(
        &self,
        name: &str,
        context: u32,
        header: &Header,
        available: Option<u64>,
        notes: &mut Vec<String>,
    ) -> Result<Setup, Refusal> {
        let threads = self.config.thread_count(header.size_bytes);
        if let Some(asked) = self.config.threads.filter(|asked| *asked > threads) {
            notes.push(format!("{threads} of {asked} threads: there are no more processors"));
        }
        let wanted = self.config.slot_count();
        let fixed = header.size_bytes.saturating_add(OVERHEAD_BYTES);
        let per_slot = u64::from(context).saturating_mul(header.memory_bytes_per_token);
        let need = |slots: u32| fixed.saturating_add(per_slot.saturating_mul(u64::from(slots)));
        let available = available.unwrap_or(u64::MAX);
        let mut slots = wanted;
        while slots > 1 && need(slots) > available {
            slots /= 2;
        }
        if need(slots) > available {
            let message = format!(
                "model `{name}` needs about {} MB of memory, and {} MB are free",
                need(slots) / 1_000_000,
                available / 1_000_000
            );
            return Err(Refusal::new(Code::Unavailable, message)
                .hint("unload another model, use a smaller one, or lower `context` of the llama plugin")
                .details(json!({ "needed_bytes": need(slots), "available_bytes": available })));
        }
        if slots < wanted {
            notes.push(format!("{slots} of {wanted} slots: there is no memory for more"));
        }
        Ok(Setup { context, slots, threads, queue: self.config.queue })
    }
}

fn in_use(name: &str) -> Refusal {
    Refusal::new(Code::Busy, format!("model `{name}` is in use"))
        .hint("ask again when its requests are done")
        .retry_after_ms(RETRY_AFTER_MS)
}

/// Memory that can be used without swapping; `None` where the system does not
/// say.
fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    parse_available(&text)
}

fn parse_available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shelf(config: Config) -> (tempfile::TempDir, Shelf, Header) {
        let dir = tempfile::tempdir().unwrap();
        let library = Library::open(dir.path().join("models"), dir.path()).unwrap();
        let header = library.find("ksi-tiny").unwrap().1;
        (dir, Shelf::new(config, library), header)
    }

    #[test]
    fn free_memory_is_read_as_the_system_writes_it() {
        let text = "MemTotal: 8 kB\nMemAvailable:    2048 kB\nSwapTotal: 0 kB\n";
        assert_eq!(parse_available(text), Some(2048 * 1024));
        assert_eq!(parse_available("MemTotal: 8 kB\n"), None);
        assert_eq!(parse_available("MemAvailable: many\n"), None);
    }

    #[test]
    fn a_model_that_does_not_fit_is_refused_with_both_numbers() {
        let (_dir, shelf, header) = shelf(Config::default());
        let header = Header { size_bytes: 40_000_000_000, ..header };
        let refusal = shelf.fit("big", 1024, &header, Some(8_000_000_000), &mut Vec::new()).unwrap_err();
        assert_eq!(refusal.code, Code::Unavailable);
        assert!(refusal.message.contains("40068 MB") && refusal.message.contains("8000 MB"), "{refusal}");
        assert_eq!(refusal.details.unwrap()["available_bytes"], 8_000_000_000_u64);
    }

    #[test]
    fn slots_are_given_up_before_a_model_is_refused() {
        let (_dir, shelf, header) = shelf(Config { slots: 8, ..Config::default() });
        let header = Header { size_bytes: 0, memory_bytes_per_token: 1_000_000, ..header };
        let mut notes = Vec::new();
        let setup = shelf.fit("m", 1000, &header, Some(2_500_000_000), &mut notes).unwrap();
        assert_eq!(setup.slots, 2);
        assert_eq!(notes.len(), 1);
        let setup = shelf.fit("m", 1000, &header, None, &mut notes).unwrap();
        assert_eq!(setup.slots, 8);
    }

    #[test]
    fn the_context_is_what_was_asked_configured_or_trained() {
        let (_dir, shelf, header) = shelf(Config { context: Some(512), ..Config::default() });
        assert_eq!(shelf.context_for("m", None, &header), Ok(512));
        assert_eq!(shelf.context_for("m", Some(64), &header), Ok(64));
        let short = Header { context_length: 100, ..header.clone() };
        assert_eq!(shelf.context_for("m", None, &short), Ok(100));
        for context in [0, 15, 1025, u32::MAX] {
            let refusal = shelf.context_for("m", Some(context), &header).unwrap_err();
            assert!(refusal.message.contains("1024"), "{refusal}");
        }
    }
}
