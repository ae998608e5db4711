//! Models whose processes die: what their callers hear, and which are not tried
//! again.
//!
//! A model that was loaded comes back by itself: its supervisor starts the
//! process again, and it is told to load. Where that fails too often the
//! supervisor holds it, and the model is quarantined. A file that kills the
//! process that loads it is tried a few times more when it is asked for, until it
//! is quarantined as well. Either ends when the file changes, when it is unloaded,
//! or when an operator starts its process or the plugin anew.

use std::path::Path;
use std::time::SystemTime;

use ksi_sdk::prelude::{Code, Ctx, Deserialize, Event, Rc, Refusal, json};
use ksi_sdk::protocol::system::PluginStatus;

use super::Workers;
use crate::models::Entry;
use crate::vetting::Source;

/// Processes that a file may kill before it is not loaded any more.
const CRASHES_MAX: u32 = 3;

/// How the process of a model does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Health {
    /// It has its model.
    Up,
    /// It has died, and comes back.
    Down,
    /// It has died too often, for this reason.
    Held(String),
}

/// Processes that died while they loaded a file.
#[derive(Debug, Clone)]
pub(super) struct Crashes {
    count: u32,
    /// Why the last one did.
    why: String,
    stamp: Stamp,
}

/// What tells one content of a file from another: its size, and when it changed.
type FileStamp = Option<(u64, Option<SystemTime>)>;

/// The same of all files that are loaded together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    model: FileStamp,
    adapters: Vec<FileStamp>,
}

impl Stamp {
    /// That of a model with its adapters.
    pub(super) fn of(source: &Source) -> Self {
        let adapters = source.adapters.iter().map(|overlay| stamp(&overlay.path)).collect();
        Self { model: stamp(&source.path), adapters }
    }
}

fn stamp(path: &Path) -> FileStamp {
    std::fs::metadata(path).ok().map(|metadata| (metadata.len(), metadata.modified().ok()))
}

/// What the daemon tells of a plugin.
#[derive(Deserialize)]
struct Told {
    name: String,
    #[serde(default)]
    reason: String,
}

impl Workers {
    /// Hears what becomes of processes.
    pub(crate) fn heard(self: &Rc<Self>, ctx: &Ctx, fact: &Event) {
        let Ok(Told { name: plugin, reason }) = fact.decode() else { return };
        let health = self.wards.borrow().values().find_map(|ward| {
            let theirs = ward.process.plugin == plugin;
            theirs.then(|| ward.health.clone())
        });
        let Some(health) = health else { return };
        match fact.event.as_str() {
            "plugin:ready" if health != Health::Up => {
                let (workers, own) = (self.clone(), ctx.clone());
                ctx.spawn(async move { workers.reload(&own, &plugin).await });
            }
            "plugin:ready" => {}
            "plugin:held" => {
                ctx.error(&format!("{plugin} is held, and its model quarantined: {reason}"));
                self.set_health(&plugin, Health::Held(reason));
            }
            _ => self.set_health(&plugin, Health::Down),
        }
    }

    pub(super) fn set_health(&self, plugin: &str, health: Health) {
        let mut wards = self.wards.borrow_mut();
        if let Some(ward) = wards.values_mut().find(|ward| ward.process.plugin == plugin) {
            ward.health = health;
        }
    }

    /// Why a model is not loaded any more, where that is so.
    pub(crate) fn quarantined(&self, entry: &Entry) -> Option<String> {
        if let Some(Health::Held(why)) = self.wards.borrow().get(&entry.name).map(|ward| &ward.health) {
            return Some(format!("is quarantined: its process died too often: {why}"));
        }
        let crashes = self.crashes.borrow();
        let crashes = crashes.get(&entry.name)?;
        (crashes.is_too_many() && crashes.stamp.model == stamp(&entry.path)).then(|| crashes.describe())
    }

    /// Refuses files that have killed too many processes.
    pub(super) fn has_not_crashed(&self, name: &str, stamp: &Stamp) -> Result<(), Refusal> {
        let crashes = self.crashes.borrow();
        match crashes.get(name).filter(|known| known.is_too_many() && known.stamp == *stamp) {
            Some(known) => Err(refused(name, &known.describe(), &known.why)),
            None => Ok(()),
        }
    }

    /// What is said of a load that failed. Where its process died over it, that is
    /// counted.
    pub(super) fn not_loaded(
        &self,
        name: &str,
        stamp: Stamp,
        refusal: Refusal,
        status: Option<PluginStatus>,
    ) -> Refusal {
        let planned = refusal.details.as_ref().is_some_and(|details| details["planned"] == true);
        if refusal.code != Code::PluginRestarted || planned {
            return refusal;
        }
        let why = status.and_then(|status| status.last_error).unwrap_or(refusal.message);
        let mut crashes = self.crashes.borrow_mut();
        let known = crashes.get(name).filter(|known| known.stamp == stamp).map_or(0, |known| known.count);
        let now = Crashes { count: known + 1, why: why.clone(), stamp };
        let told = match now.count {
            CRASHES_MAX.. => now.describe(),
            _ => format!("killed the process that loaded it: {why}"),
        };
        crashes.insert(name.to_owned(), now);
        refused(name, &told, &why)
    }
}

impl Crashes {
    /// Whether what did it is not loaded any more.
    fn is_too_many(&self) -> bool {
        self.count >= CRASHES_MAX
    }

    fn describe(&self) -> String {
        format!(
            "is quarantined: it killed {} processes that loaded it, the last one so: {}",
            self.count, self.why
        )
    }
}

fn refused(name: &str, what: &str, why: &str) -> Refusal {
    let mut refusal = Refusal::new(Code::Unavailable, format!("model `{name}` {what}"))
        .hint(format!(
            "get the file again, or another one of the model; where the cause is gone, `ksi model unload {name}` \
             lets it be tried anew"
        ))
        .details(json!({ "model": name, "error": why }));
    refusal.retryable = false;
    refusal
}

/// What is said of a model whose process is held.
pub(super) fn held(name: &str, plugin: &str, why: &str) -> Refusal {
    let message = format!("model `{name}` is quarantined: its process died too often: {why}");
    let mut refusal = Refusal::new(Code::Unavailable, message)
        .hint(format!(
            "`ksi plugin inspect {plugin}` shows how it died; `ksi plugin restart {plugin}` or \
             `ksi model unload {name}` lets it be tried anew"
        ))
        .details(json!({ "model": name, "error": why }));
    refusal.retryable = false;
    refusal
}

/// What those hear whose request a process has taken with it.
pub(super) fn lost(name: &str, refusal: &Refusal) -> Refusal {
    let planned = refusal.details.as_ref().is_some_and(|details| details["planned"] == true);
    let details = if planned { json!({"model": name, "planned": true}) } else { json!({ "model": name }) };
    Refusal::new(Code::PluginRestarted, format!("model `{name}` was lost: {}", refusal.message))
        .hint("it is loaded again by itself; ask again for the answer")
        .retry_after_ms(200)
        .details(details)
}
