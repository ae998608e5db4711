//! Models in processes of their own: which there are, and how they come and go.
//!
//! Each loaded model runs in an instance of this plugin, `llama@KEY`. What is
//! kept of it here is what the choice of models needs: the memory that it takes,
//! who uses it, when it was used. How requests reach it is in `asking`, what
//! becomes of models whose processes die in `trouble`. llama.cpp is never called
//! here.
//!
//! # Invariants
//!
//! - At most `max_loaded` models are in memory, which take at most
//!   `max_memory_mb` by the estimate; the idle one that was used longest ago
//!   makes room, and one in use never does.
//! - Models come and go one after another, so the check of free memory is not
//!   overtaken by another load.
//! - A load that does not succeed, whatever ends it, leaves no process behind.

mod asking;
mod figures;
mod trouble;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::lock::{Mutex, OwnedMutexGuard};
use ksi_sdk::CallOptions;
use ksi_sdk::prelude::{Bytes, Chunks, Code, Ctx, Rc, Refusal, Serialize, json};
use ksi_sdk::protocol::encode;
use ksi_sdk::protocol::system::{PluginStatus, StartInstance, StopInstance};
use ksi_sdk::trust::Digest;
use serde_json::{Map, Value};

use self::trouble::{Crashes, Health};
use crate::config::{BUILT_FOR_CARDS, Config, MEMORY_MB_MIN};
use crate::payload::{LoadProgress, LoadReport};
use crate::plan::{Occupant, Plan, Short, Step, room_maker_on_cards};
use crate::progress::{Meter, told};
use crate::shelf::{Moves, Shelf, in_use};
use crate::tuning::{Setting, Tuning};

/// Longest name of a model that is its own key.
const KEY_BYTES_MAX: usize = 40;

/// A model that was loaded.
struct Ward {
    process: Rc<Process>,
    report: LoadReport,
    used: Instant,
    /// Requests that use it.
    uses: Rc<Cell<usize>>,
    health: Health,
}

impl Ward {
    fn is_idle(&self) -> bool {
        self.uses.get() == 0
    }

    /// Whether it has memory, or is about to have it again.
    fn takes_room(&self) -> bool {
        !matches!(self.health, Health::Held(_))
    }
}

/// The process of a model.
struct Process {
    /// What it is called among the plugins; the namespace of its events.
    plugin: String,
    start: StartInstance,
}

/// The right to use a model. While one exists, it stays loaded.
struct Use {
    process: Rc<Process>,
    uses: Rc<Cell<usize>>,
}

impl Use {
    fn of(ward: &mut Ward) -> Self {
        ward.used = Instant::now();
        ward.uses.set(ward.uses.get() + 1);
        Self { process: ward.process.clone(), uses: ward.uses.clone() }
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.uses.set(self.uses.get() - 1);
    }
}

/// What came of a load.
pub(crate) struct Loaded {
    using: Use,
    /// How it runs.
    pub(crate) report: LoadReport,
    /// Whether it was loaded just now.
    fresh: bool,
}

/// All models that have processes of their own.
pub(crate) struct Workers {
    config: Config,
    /// Knows the files; nothing is ever put on it.
    shelf: Arc<Shelf>,
    home: PathBuf,
    /// Held while models come and go.
    turn: Arc<Mutex<()>>,
    wards: RefCell<BTreeMap<String, Ward>>,
    crashes: RefCell<BTreeMap<String, Crashes>>,
    moves: Moves,
    /// Whether there is no graphics card with memory of its own, as processes have seen;
    /// until the first one has looked, a build for cards takes it that there is.
    cardless: Cell<bool>,
}

/// The turn of one who changes what is in memory.
type Turn = OwnedMutexGuard<()>;

impl Workers {
    /// None yet.
    pub(crate) fn new(config: &Config, shelf: &Arc<Shelf>, home: &Path) -> Rc<Self> {
        Rc::new(Self {
            config: config.clone(),
            shelf: shelf.clone(),
            home: home.to_owned(),
            turn: Arc::default(),
            wards: RefCell::default(),
            crashes: RefCell::default(),
            moves: Moves::default(),
            cardless: Cell::new(!BUILT_FOR_CARDS),
        })
    }

    /// The models in memory by name, and what each runs with.
    pub(crate) fn loaded(&self) -> BTreeMap<String, Vec<Setting>> {
        let wards = self.wards.borrow();
        let up = wards.iter().filter(|(_, ward)| matches!(ward.health, Health::Up));
        up.map(|(name, ward)| (name.clone(), ward.report.settings.clone())).collect()
    }

    /// Whether a model is in memory.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.wards.borrow().get(name).is_some_and(Ward::takes_room)
    }

    /// Loads a model, unless it is in memory already with these settings.
    ///
    /// # Errors
    ///
    /// `not_found`, `denied` where it is not signed and must be, `unavailable`
    /// with what is wrong with file, memory, processor or process, `busy` where
    /// all models in memory are in use, `cancelled`.
    pub(crate) async fn load(
        &self,
        ctx: &Ctx,
        name: &str,
        asked: &Tuning,
        progress: Option<&Chunks<LoadProgress>>,
    ) -> Result<Loaded, Refusal> {
        let meter = Meter::default();
        let load = async {
            loop {
                let loaded = self.load_or_find(ctx, name, asked, &meter, progress).await;
                // Only its process has seen the cards: there, too, an idle one makes room.
                match loaded.as_ref().err().and_then(Short::of) {
                    Some(Short::Cards) if !self.cardless.replace(true) => {}
                    Some(Short::RoomOnCards { needed, free }) => {
                        let turn = self.turn.lock().await;
                        let Some(other) = room_maker_on_cards(&self.occupants(), needed, free) else {
                            return loaded;
                        };
                        self.evict(ctx, &other).await;
                        drop(turn);
                    }
                    _ => return loaded,
                }
            }
        };
        let loaded = told(ctx, name, &meter, load).await;
        match &loaded {
            Ok(loaded) if loaded.fresh => {
                self.moves.loads.fetch_add(1, Ordering::Relaxed);
                let report = &loaded.report;
                ctx.info(&format!(
                    "loaded model {name} in {} ms as {}: {} slots of {} tokens, {} threads",
                    report.load_ms, loaded.using.process.plugin, report.slots, report.context, report.threads
                ));
                for note in &report.notes {
                    ctx.warn(&format!("model {name}: {note}"));
                }
            }
            Ok(_) => {}
            Err(_) => drop(self.moves.load_failures.fetch_add(1, Ordering::Relaxed)),
        }
        loaded
    }

    async fn load_or_find(
        &self,
        ctx: &Ctx,
        name: &str,
        asked: &Tuning,
        meter: &Meter,
        progress: Option<&Chunks<LoadProgress>>,
    ) -> Result<Loaded, Refusal> {
        let turn = self.turn.clone().lock_owned().await;
        if let Some(loaded) = self.as_it_is(name, asked)? {
            return Ok(loaded);
        }
        let (shelf, config, cancel) = (self.shelf.clone(), self.config.clone(), ctx.cancel_token());
        let (of, asked) = (name.to_owned(), asked.clone());
        // Where nobody would have to go, its process may as well look for cards itself.
        let no_cards = (self.cardless.get() && !self.occupants().is_empty()).then_some(&[][..]);
        // Before others have to make room.
        let (mut plan, stamp) = ctx
            .spawn_blocking(move || {
                let source = shelf.vet(&of, &asked, &cancel)?;
                let stamp = trouble::Stamp::of(&source);
                Plan::of(&config, &of, &asked, &source.header, source.adapter_bytes(), no_cards)
                    .map(|plan| (plan, stamp))
            })
            .await??;
        self.has_not_crashed(name, &stamp)?;
        let began = Instant::now();
        let slots = loop {
            match plan.next(&self.occupants())? {
                Step::Run(slots) => break slots,
                Step::Evict(other) if other == name => end(ctx, self.take_out(name)?).await,
                Step::Evict(other) => self.evict(ctx, &other).await,
            }
        };
        // What it was with other settings goes last: what can be refused before, is.
        end(ctx, self.take_out(name)?).await;
        let (setup, _) = plan.settle(slots);
        let on_cards = plan.card_bytes(slots) > 0;
        // Should it see no card, all of it must fit into what is left.
        let config = self.configuration(name, &setup, self.memory_left_mb().filter(|_| on_cards));
        let start = StartInstance { key: key_of(name), config };
        let trial = Trial { ctx: ctx.clone(), key: start.key.clone(), turn: Some(turn) };
        let (plugin, mut report) = match self.bring_up(ctx, &start, meter, progress).await {
            Ok(brought) => brought,
            Err(refusal) => {
                let status = trial.fail().await;
                return Err(self.not_loaded(name, stamp, refusal, status));
            }
        };
        self.crashes.borrow_mut().remove(name);
        report.load_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        if on_cards || report.card_bytes > 0 {
            self.cardless.set(report.card_bytes == 0);
        }
        // To the process all of them are its configuration.
        report.settings = plan.settings;
        report.notes.splice(0..0, plan.notes);
        let mut ward = Ward {
            process: Rc::new(Process { plugin, start }),
            report: report.clone(),
            used: Instant::now(),
            uses: Rc::default(),
            health: Health::Up,
        };
        let using = Use::of(&mut ward);
        self.wards.borrow_mut().insert(name.to_owned(), ward);
        trial.succeed();
        Ok(Loaded { using, report, fresh: true })
    }

    /// Starts a process and has it load its model; what it is called, and how the
    /// model runs.
    async fn bring_up(
        &self,
        ctx: &Ctx,
        start: &StartInstance,
        meter: &Meter,
        progress: Option<&Chunks<LoadProgress>>,
    ) -> Result<(String, LoadReport), Refusal> {
        meter.set(0.0);
        let plugin = ctx.request::<_, PluginStatus>("plugin:instance:start", start).await?.name;
        let report = asking::load(ctx, &plugin, meter, progress).await?;
        Ok((plugin, report))
    }

    /// The model as it is in memory, where it has these settings. With others it must
    /// be idle.
    fn as_it_is(&self, name: &str, asked: &Tuning) -> Result<Option<Loaded>, Refusal> {
        let mut wards = self.wards.borrow_mut();
        let Some(ward) = wards.get_mut(name) else { return Ok(None) };
        if let Health::Held(why) = &ward.health {
            return Err(trouble::held(name, &ward.process.plugin, why));
        }
        if ward.report.has(asked) {
            let report = LoadReport { load_ms: 0, ..ward.report.clone() };
            return Ok(Some(Loaded { using: Use::of(ward), report, fresh: false }));
        }
        if ward.is_idle() { Ok(None) } else { Err(in_use(name)) }
    }

    /// Takes a model out, where there is one and it is not in use.
    fn take_out(&self, name: &str) -> Result<Option<Ward>, Refusal> {
        let mut wards = self.wards.borrow_mut();
        match wards.get(name) {
            Some(ward) if ward.takes_room() && !ward.is_idle() => Err(in_use(name)),
            _ => Ok(wards.remove(name)),
        }
    }

    /// The model, where it was loaded and may be used.
    fn find(&self, name: &str) -> Result<Option<Use>, Refusal> {
        let mut wards = self.wards.borrow_mut();
        match wards.get_mut(name) {
            Some(Ward { health: Health::Held(why), process, .. }) => {
                Err(trouble::held(name, &process.plugin, why))
            }
            ward => Ok(ward.map(Use::of)),
        }
    }

    /// Takes a model out of memory; whether it was there.
    ///
    /// # Errors
    ///
    /// `not_found` for an unknown model, `busy` for one in use.
    pub(crate) async fn unload(&self, ctx: &Ctx, name: &str) -> Result<bool, Refusal> {
        let _turn = self.turn.lock().await;
        // Whoever says so wants it tried anew.
        self.crashes.borrow_mut().remove(name);
        let gone = self.take_out(name)?;
        if gone.is_some() {
            end(ctx, gone).await;
            return Ok(true);
        }
        let (shelf, asked) = (self.shelf.clone(), name.to_owned());
        // A broken file is not in memory either, so only an unknown name is worth
        // a refusal.
        match ctx.spawn_blocking(move || shelf.library().find(&asked)).await? {
            Err(refusal) if refusal.code == Code::NotFound => Err(refusal),
            _ => Ok(false),
        }
    }

    /// Lets go of models that nobody has asked for this long; their names.
    pub(crate) async fn expire(&self, ctx: &Ctx, idle: Duration) -> Vec<String> {
        let _turn = self.turn.lock().await;
        let old = |ward: &Ward| ward.takes_room() && ward.is_idle() && ward.used.elapsed() >= idle;
        let gone: Vec<_> = self.wards.borrow_mut().extract_if(.., |_, ward| old(ward)).collect();
        self.moves.expirations.fetch_add(gone.len() as u64, Ordering::Relaxed);
        let mut names = Vec::new();
        for (name, ward) in gone {
            end(ctx, Some(ward)).await;
            names.push(name);
        }
        names
    }

    /// Unloads a model, if it is idle.
    async fn evict(&self, ctx: &Ctx, name: &str) {
        if let Ok(Some(gone)) = self.take_out(name) {
            self.moves.evictions.fetch_add(1, Ordering::Relaxed);
            end(ctx, Some(gone)).await;
        }
    }

    /// What is in memory.
    fn occupants(&self) -> Vec<Occupant> {
        let wards = self.wards.borrow();
        let there = wards.iter().filter(|(_, ward)| ward.takes_room());
        let occupant = |(name, ward): (&String, &Ward)| Occupant {
            name: name.clone(),
            bytes: ward.report.memory_bytes,
            card_bytes: ward.report.card_bytes,
            used: ward.used,
            idle: ward.is_idle(),
        };
        there.map(occupant).collect()
    }

    /// Memory that all of them take, an estimate.
    fn memory_bytes(&self) -> u64 {
        self.occupants().iter().fold(0, |sum, one| sum.saturating_add(one.bytes))
    }

    /// What of the memory for all models is left, where there is a limit.
    fn memory_left_mb(&self) -> Option<u64> {
        let taken = self.memory_bytes() >> 20;
        self.config.max_memory_mb.map(|mb| mb.saturating_sub(taken).max(MEMORY_MB_MIN))
    }

    /// What an instance is told: which model it has, how that runs, and what memory
    /// it may take where that is not known before.
    fn configuration(
        &self,
        name: &str,
        setup: &crate::engine::Setup,
        memory_mb: Option<u64>,
    ) -> Map<String, Value> {
        let mut config = match serde_json::to_value(&setup.tuning) {
            Ok(Value::Object(tuning)) => tuning,
            _ => Map::new(),
        };
        let said = json!({
            "context": setup.context,
            "slots": setup.slots,
            "default_model": name,
            "embedding_model": name,
            "models_dir": self.shelf.library().models_dir(),
            "home": self.home,
            "max_loaded": 1,
            "models": {},
            "preload": [],
            "max_memory_mb": memory_mb,
            "ttl_seconds": null,
        });
        config.extend(said.as_object().cloned().unwrap_or_default());
        config
    }
}

/// A process whose model is not loaded yet. Unless it succeeds, it is ended, also
/// where whoever waited for it has gone; nobody else loads anything before.
struct Trial {
    ctx: Ctx,
    key: String,
    turn: Option<Turn>,
}

impl Trial {
    fn succeed(mut self) {
        self.turn = None;
    }

    /// Ends it; what the daemon knew of it at last.
    async fn fail(mut self) -> Option<PluginStatus> {
        let _turn = self.turn.take();
        stop(&self.ctx, &self.key).await
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let Some(turn) = self.turn.take() else { return };
        let (ctx, key) = (self.ctx.clone(), std::mem::take(&mut self.key));
        self.ctx.spawn(async move {
            // One that never began is as good.
            let _ = stop(&ctx, &key).await;
            drop(turn);
        });
    }
}

/// Ends the process of a model that is not wanted any more.
async fn end(ctx: &Ctx, gone: Option<Ward>) {
    if let Some(ward) = gone {
        // One that is not there any more is as good.
        let _ = stop(ctx, &ward.process.start.key).await;
    }
}

/// Stops an instance, whoever waits for that; `None` where there was none.
async fn stop(ctx: &Ctx, key: &str) -> Option<PluginStatus> {
    let ask = StopInstance { key: key.to_owned() };
    let options = CallOptions { detached: true, ..CallOptions::default() };
    ctx.request_with("plugin:instance:stop", &ask, options).await.ok()
}

/// The key under which a model has its process: its own name where that can be
/// one, else what is like it, and a digest that tells it from others.
fn key_of(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=KEY_BYTES_MAX).contains(&name.len()) && name.bytes().all(plain) {
        return name.to_owned();
    }
    let like = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let likeness: String = name.chars().take(KEY_BYTES_MAX - 16).map(like).collect();
    // No plain name has an underscore, so the two never meet.
    format!("{likeness}_{:.12}", Digest::of(name.as_bytes()).to_string())
}

/// A payload.
pub(crate) fn encoded<T: Serialize>(value: &T) -> Result<Bytes, Refusal> {
    encode(value).map_err(|error| Refusal::new(Code::Internal, format!("cannot encode the payload: {error}")))
}

#[cfg(test)]
mod tests;
