//! The shelf: which models are in memory, loading them one at a time, and
//! making room.
//!
//! Everything here may block and belongs on a thread of its own, except
//! [`Shelf::ticket`] and [`Shelf::loaded`], which only look.
//!
//! # Invariants
//!
//! - At most `max_loaded` models are in memory, which take at most
//!   `max_memory_mb` by the estimate; the idle one that was used longest ago
//!   makes room, and one in use never does.
//! - Loads happen one after another, so the check of free memory is not
//!   overtaken by another load.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ksi_sdk::prelude::{CancelToken, Code, Refusal};

use crate::config::{Config, gpu_layer_count};
use crate::engine::model::{self, Model};
use crate::engine::{Engine, RETRY_AFTER_MS, Ticket, backend};
use crate::gguf::{Adapter, Header};
use crate::models::{Entry, Library, is_toy};
use crate::payload::LoadReport;
use crate::plan::{Occupant, Plan, Step};
use crate::tuning::{Lora, Setting, Tuning};
use crate::vetting::{Overlay, Source, Vetting};

/// Said where layers are to be on a graphics card, and none is seen.
const NO_CARD: &str = "no graphics card is seen, and all layers are on the processor: it takes a build for cards \
                       (--features cuda, vulkan or metal), a driver, and `sandbox.gpu = true` for this plugin";

/// A model in memory.
struct Shelved {
    engine: Arc<Engine>,
    report: LoadReport,
    used: Instant,
    /// Memory that it takes, an estimate.
    bytes: u64,
}

impl Shelved {
    fn is_idle(&self) -> bool {
        self.engine.in_use() == 0 || !self.engine.is_alive()
    }
}

/// What has come and gone since the start.
#[derive(Debug, Default)]
pub struct Moves {
    /// Models that were loaded.
    pub loads: AtomicU64,
    /// Loads that were refused or failed.
    pub load_failures: AtomicU64,
    /// Models that made room for others.
    pub evictions: AtomicU64,
    /// Models that nobody asked for long.
    pub expirations: AtomicU64,
}

/// A model in memory, as it is seen from outside.
pub struct Resident {
    /// Its engine.
    pub engine: Arc<Engine>,
    /// How it was loaded.
    pub report: LoadReport,
    /// Memory that it takes, an estimate.
    pub bytes: u64,
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
    moves: Moves,
}

impl Shelf {
    /// An empty shelf.
    #[must_use]
    pub fn new(config: Config, library: Library) -> Self {
        let vetting = Vetting::of(&config);
        Self {
            config,
            library,
            vetting,
            models: Mutex::default(),
            loading: Mutex::default(),
            moves: Moves::default(),
        }
    }

    /// The models that there are.
    #[must_use]
    pub fn library(&self) -> &Library {
        &self.library
    }

    fn models(&self) -> MutexGuard<'_, HashMap<String, Shelved>> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file of a model, as it may be loaded, with the adapters of the
    /// configuration or those that are asked for.
    ///
    /// # Errors
    ///
    /// `not_found`, `denied` where it is not signed and must be, `unavailable`
    /// with what is wrong with the file, `cancelled`.
    pub fn vet(&self, name: &str, asked: &Tuning, cancel: &CancelToken) -> Result<Source, Refusal> {
        let (entry, header) = self.library.find(name)?;
        let mut source = match &self.vetting {
            Some(vetting) => vetting.open(&entry, self.library.models_dir(), cancel)?,
            None => Source::unchecked(entry, header),
        };
        for (lora, entry, adapter) in self.adapters(name, asked, &source.header)? {
            source.adapters.push(match &self.vetting {
                Some(vetting) => vetting.open_adapter(lora, &entry, self.library.models_dir(), cancel)?,
                None => Overlay::unchecked(lora, entry, adapter),
            });
        }
        Ok(source)
    }

    /// Bytes of the adapters that are named for a model.
    ///
    /// # Errors
    ///
    /// As they would be refused with the model.
    pub fn adapter_bytes(&self, name: &str, asked: &Tuning, header: &Header) -> Result<u64, Refusal> {
        let adapters = self.adapters(name, asked, header)?;
        Ok(adapters.iter().map(|(.., adapter)| adapter.size_bytes).sum())
    }

    /// The adapters that are named for a model, each as wanted and as found.
    fn adapters(
        &self,
        name: &str,
        asked: &Tuning,
        header: &Header,
    ) -> Result<Vec<(Lora, Entry, Adapter)>, Refusal> {
        let (tuning, _) = self.config.tuning_of(name, asked);
        tuning.lora.iter().flatten().map(|text| self.adapter(text, name, header)).collect()
    }

    fn adapter(&self, text: &str, model: &str, header: &Header) -> Result<(Lora, Entry, Adapter), Refusal> {
        // What is no name was refused with the configuration.
        let lora = Lora::parse(text).map_err(Refusal::invalid_payload)?;
        let (entry, adapter) = self.library.find_adapter(&lora.name)?;
        if header.quantization.contains("NVFP4") {
            let message = format!("`{model}` is stored as NVFP4, over which llama.cpp lays no adapter");
            return Err(Refusal::invalid_payload(message).hint("take another file of the model"));
        }
        let (wanted, found) = (&header.architecture, &adapter.architecture);
        if wanted != found {
            let message = format!(
                "the adapter `{}` is for models of the kind `{found}`, and `{model}` is a `{wanted}`",
                lora.name
            );
            return Err(Refusal::invalid_payload(message).hint(
                "`lora` under plugins.llama.config.models.\"PATTERN\" names adapters of some models only",
            ));
        }
        Ok((lora, entry, adapter))
    }

    /// The models in memory by name, and what each runs with.
    #[must_use]
    pub fn loaded(&self) -> BTreeMap<String, Vec<Setting>> {
        let models = self.models();
        models.iter().map(|(name, shelved)| (name.clone(), shelved.report.settings.clone())).collect()
    }

    /// Whether a model is in memory.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.models().contains_key(name)
    }

    /// The models in memory, by their names.
    #[must_use]
    pub fn residents(&self) -> BTreeMap<String, Resident> {
        let models = self.models();
        let resident = |shelved: &Shelved| Resident {
            engine: shelved.engine.clone(),
            report: shelved.report.clone(),
            bytes: shelved.bytes,
        };
        models.iter().map(|(name, shelved)| (name.clone(), resident(shelved))).collect()
    }

    /// What has come and gone.
    #[must_use]
    pub fn moves(&self) -> &Moves {
        &self.moves
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

    /// Loads a model, unless it is in memory already with these settings.
    ///
    /// # Errors
    ///
    /// `not_found`, `denied` where it is not signed and must be, `unavailable`
    /// with what is wrong with file, memory or processor, `busy` where all
    /// models in memory are in use, `cancelled`.
    pub fn load(
        &self,
        name: &str,
        asked: &Tuning,
        cancel: &CancelToken,
        progress: impl FnMut(f32) -> bool + 'static,
    ) -> Result<Loaded, Refusal> {
        let loaded = self.load_or_find(name, asked, cancel, progress);
        match &loaded {
            Ok(loaded) if loaded.fresh => self.moves.loads.fetch_add(1, Ordering::Relaxed),
            Ok(_) => 0,
            Err(_) => self.moves.load_failures.fetch_add(1, Ordering::Relaxed),
        };
        loaded
    }

    fn load_or_find(
        &self,
        name: &str,
        asked: &Tuning,
        cancel: &CancelToken,
        mut progress: impl FnMut(f32) -> bool + 'static,
    ) -> Result<Loaded, Refusal> {
        let _loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if cancel.is_cancelled() {
            return Err(Refusal::new(Code::Cancelled, "loading was cancelled"));
        }
        if let Some(loaded) = self.as_it_is(name, asked)? {
            return Ok(loaded);
        }
        // Before others have to make room.
        let source = self.vet(name, asked, cancel)?;
        let header = &source.header;
        // Only whoever runs llama.cpp sees the cards.
        let cards = backend::get().map(|_| backend::cards())?;
        let adapters = source.adapter_bytes();
        let mut plan = Plan::of(&self.config, name, asked, header, adapters, cards.as_deref())?;
        let began = Instant::now();
        let slots = loop {
            match plan.next(&self.occupants())? {
                Step::Run(slots) => break slots,
                // Where somebody has begun to use one, the next look says so.
                Step::Evict(other) if other == name => drop(self.take_out(name)?),
                Step::Evict(other) => self.evict(&other),
            }
            plan.look_again(backend::cards().as_deref());
        };
        drop(self.take_out(name)?);
        let (setup, bytes) = plan.settle(slots);
        let card_bytes = plan.card_bytes(slots);
        let mut notes = plan.notes;
        // Whatever comes of it, it has begun.
        if !progress(0.0) {
            return Err(Refusal::new(Code::Cancelled, "loading was cancelled"));
        }
        let model = Model::load(&source, &setup.tuning, progress)?;
        let template = model.template_origin().to_owned();
        if template != "model" {
            notes.push(format!("chat template: {template}"));
        }
        let gpu_layers = gpu_layer_count(setup.tuning.gpu_layers);
        if gpu_layers > 0 && cards.is_none_or(|cards| cards.is_empty()) {
            notes.push(NO_CARD.to_owned());
        }
        let engine = Engine::start(model, setup, cancel)?;
        let setup = engine.setup();
        let report = LoadReport {
            model: name.to_owned(),
            load_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            context: setup.context,
            slots: setup.slots,
            threads: setup.threads,
            gpu_layers,
            lora: setup.tuning.lora.clone().unwrap_or_default(),
            memory_bytes: bytes,
            card_bytes,
            template,
            toy: is_toy(header),
            settings: plan.settings,
            notes,
        };
        let ticket = engine.ticket()?;
        let shelved = Shelved { engine, report: report.clone(), used: Instant::now(), bytes };
        self.models().insert(name.to_owned(), shelved);
        Ok(Loaded { ticket, report, warnings: model::warnings(), fresh: true })
    }

    /// The model as it is in memory, where it has these settings. With others it must
    /// be idle.
    fn as_it_is(&self, name: &str, asked: &Tuning) -> Result<Option<Loaded>, Refusal> {
        let mut models = self.models();
        match models.get_mut(name) {
            Some(shelved) if shelved.engine.is_alive() && shelved.report.has(asked) => {
                shelved.used = Instant::now();
                let report = LoadReport { load_ms: 0, ..shelved.report.clone() };
                let ticket = shelved.engine.ticket()?;
                Ok(Some(Loaded { ticket, report, warnings: Vec::new(), fresh: false }))
            }
            Some(shelved) if !shelved.is_idle() => Err(in_use(name)),
            _ => Ok(None),
        }
    }

    /// Takes a model out, where it is in memory and idle. To be dropped without the
    /// lock: an engine waits for its thread.
    fn take_out(&self, name: &str) -> Result<Option<Shelved>, Refusal> {
        let mut models = self.models();
        match models.get(name) {
            Some(shelved) if !shelved.is_idle() => Err(in_use(name)),
            _ => Ok(models.remove(name)),
        }
    }

    /// Takes a model out of memory; whether it was there.
    ///
    /// # Errors
    ///
    /// `not_found` for an unknown model, `busy` for one in use.
    pub fn unload(&self, name: &str) -> Result<bool, Refusal> {
        let _loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gone) = self.take_out(name)? {
            drop(gone);
            return Ok(true);
        }
        // A broken file is not in memory either, so only an unknown name is worth a
        // refusal.
        match self.library.find(name) {
            Err(refusal) if refusal.code == Code::NotFound => Err(refusal),
            _ => Ok(false),
        }
    }

    /// Lets go of models that nobody has asked for this long; their names.
    pub fn expire(&self, idle: Duration) -> Vec<String> {
        let _loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        let mut gone = Vec::new();
        let mut models = self.models();
        let old = |shelved: &Shelved| shelved.is_idle() && shelved.used.elapsed() >= idle;
        for name in models
            .iter()
            .filter(|(_, shelved)| old(shelved))
            .map(|(name, _)| name.clone())
            .collect::<Vec<_>>()
        {
            gone.extend(models.remove_entry(&name));
        }
        drop(models);
        self.moves.expirations.fetch_add(gone.len() as u64, Ordering::Relaxed);
        // Dropping an engine waits for its thread, so without the lock.
        gone.into_iter().map(|(name, _)| name).collect()
    }

    /// Unloads a model, if it is idle.
    fn evict(&self, name: &str) {
        if let Ok(Some(gone)) = self.take_out(name) {
            drop(gone);
            self.moves.evictions.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What is in memory.
    fn occupants(&self) -> Vec<Occupant> {
        let models = self.models();
        let occupant = |(name, shelved): (&String, &Shelved)| Occupant {
            name: name.clone(),
            bytes: shelved.bytes,
            card_bytes: shelved.report.card_bytes,
            used: shelved.used,
            idle: shelved.is_idle(),
        };
        models.iter().map(occupant).collect()
    }
}

/// What is said of a model that must stay as it is.
pub(crate) fn in_use(name: &str) -> Refusal {
    Refusal::new(Code::Busy, format!("model `{name}` is in use"))
        .hint("ask again when its requests are done")
        .retry_after_ms(RETRY_AFTER_MS)
}

#[cfg(test)]
mod tests;
