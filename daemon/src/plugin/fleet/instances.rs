//! Instances of a plugin: more children of the same library, that the plugin
//! itself starts and stops, and that nobody else asks.
//!
//! An instance is kept like any plugin, under the name `NAME@KEY`: supervised,
//! restarted, held, listed. It has the manifest's entry of its manager, with what
//! that puts on top of the configuration; it hears of nothing and has a word on
//! nothing.
//!
//! # Invariants
//!
//! - An instance belongs to one generation of its manager, and ends with it.
//! - Only the plugin NAME starts, stops or sees what is called NAME@KEY here.

use std::sync::Arc;

use ksi_protocol::{
    Code, Pattern, Refusal,
    system::{Placement, PluginState, PluginStatus, StartInstance, is_instance_key},
};
use tokio::{sync::mpsc, task::JoinSet};

use super::{Fleet, Kept, settled_after};
use crate::{
    config,
    plugin::{
        board::{figures, with},
        runner::{Command, quarantined},
        spec::{Keyed, Spec},
        supervisor::Input,
    },
};

/// A plugin that has instances, in one of its generations.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Manager {
    name: String,
    generation: u32,
}

/// An instance: whose, and which.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ward {
    manager: Manager,
    keyed: Keyed,
}

impl Ward {
    /// The name of the plugin that it is an instance of.
    pub(super) fn manager(&self) -> &str {
        &self.manager.name
    }
}

impl Fleet {
    /// Starts an instance; one that is there already is waited for until it is
    /// ready or will not be.
    ///
    /// # Errors
    ///
    /// `denied` to a plugin that may have none, `invalid_payload` for a key that
    /// is none, `conflict` where it is there with another configuration, `busy`
    /// where there are as many as it may have, `unavailable` with the reason why it does not run.
    pub async fn start_instance(&self, manager: &str, ask: StartInstance) -> Result<PluginStatus, Refusal> {
        let StartInstance { key, config: on_top } = ask;
        let (_, manager) = self.manager(manager)?;
        if !is_instance_key(&key) {
            let rule = "a key has 1 to 48 lower-case letters, digits, `_` and `-`";
            return Err(Refusal::invalid_payload(rule).at("key"));
        }
        let home = self.places.state.join(&manager.name);
        let ward = Ward { manager, keyed: Keyed { key, home, on_top } };
        let name = format!("{}@{}", ward.manager.name, ward.keyed.key);
        let commands = loop {
            let changed = self.changed();
            let changing = self.changing.lock().await;
            // While this waited its turn the asker may have gone, or been granted less.
            let (plugin, now) = self.manager(&ward.manager.name)?;
            if now != ward.manager {
                return Err(not_there(&ward.manager.name));
            }
            let there = self.lock().get(&name).map(|kept| (kept.ward.clone(), kept.ending));
            match there {
                Some((_, true)) => {
                    drop(changing);
                    changed.await;
                    continue;
                }
                Some((Some(known), _)) if known == ward => {
                    drop(changing);
                    return self.settled(&name).await;
                }
                Some((Some(known), _)) if known.manager == ward.manager => {
                    return Err(Refusal::new(Code::Conflict, format!("{name} is there already"))
                        .hint("it runs with another configuration: stop it first"));
                }
                Some(_) => {
                    let ending = self.mark(&name);
                    drop(changing);
                    if let Some(commands) = ending {
                        self.end(&name, commands).await;
                    }
                    continue;
                }
                None => {}
            }
            let most = plugin.limits.instances;
            let (theirs, ending) = self.count(&ward.manager);
            if theirs < most {
                break self.keep(self.instance_spec(&plugin, &ward)?, false, Some(ward));
            }
            if ending == 0 {
                let manager = &ward.manager.name;
                return Err(Refusal::new(Code::Busy, format!("plugin {manager} has {most} instances"))
                    .hint(format!("stop one first; plugins.{manager}.limits.instances allows more")));
            }
            drop(changing);
            changed.await;
        };
        let (command, started) = Command::new(Some(Input::Start));
        let sent = commands.send(command).await;
        drop(commands);
        if sent.is_ok() {
            // Whatever came of it is on its board.
            let _ = started.await;
        }
        self.settled(&name).await
    }

    /// Waits until an instance is ready, or will not be.
    async fn settled(&self, name: &str) -> Result<PluginStatus, Refusal> {
        loop {
            let changed = self.changed();
            let found = self.lock().get(name).map(|kept| with(&kept.board, |board| board.status.clone()));
            let Some(status) = found else {
                return Err(Refusal::new(Code::Unavailable, format!("{name} was stopped meanwhile")));
            };
            let why = status.last_error.as_deref().unwrap_or("it has stopped");
            match status.state {
                PluginState::Ready => return Ok(status),
                // Its runner has yet to hear that it is to run.
                PluginState::Stopped if status.generation == 0 => changed.await,
                PluginState::Quarantined => {
                    return Err(quarantined(name, status.quarantined.as_deref().unwrap_or_default()));
                }
                PluginState::Held | PluginState::Stopped => {
                    let message = format!("plugin {name} is {}: {why}", status.state.as_str());
                    let mut refusal = Refusal::new(Code::Unavailable, message)
                        .hint(format!("`ksi plugin inspect {name}` shows how it died"));
                    refusal.retryable = false;
                    return Err(refusal);
                }
                PluginState::Starting | PluginState::Draining | PluginState::Backoff => changed.await,
            }
        }
    }

    /// Stops an instance and forgets it; what it was at last.
    ///
    /// # Errors
    ///
    /// `not_found`, or `denied` to a plugin that may have none.
    pub async fn stop_instance(&self, manager: &str, key: &str) -> Result<PluginStatus, Refusal> {
        let (_, manager) = self.manager(manager)?;
        let name = format!("{}@{key}", manager.name);
        let changing = self.changing.lock().await;
        let theirs = self.lock().get(&name).is_some_and(|kept| is_of(kept, &manager));
        // One that somebody else is ending is none any more.
        let ending = if theirs { self.mark(&name) } else { None };
        drop(changing);
        let ended = match ending {
            Some(commands) => self.end(&name, commands).await,
            None => None,
        };
        ended.ok_or_else(|| Refusal::not_found("instance", &name))
    }

    /// The instances of a plugin.
    ///
    /// # Errors
    ///
    /// `denied` to a plugin that may have none.
    pub fn instances(&self, manager: &str) -> Result<Vec<PluginStatus>, Refusal> {
        let (_, manager) = self.manager(manager)?;
        let now_ms = self.means.hub.now_ms();
        let kept = self.lock();
        let theirs = kept.values().filter(|kept| is_of(kept, &manager));
        Ok(theirs.map(|kept| with(&kept.board, |board| figures(board, now_ms))).collect())
    }

    /// Ends instances whose managers are gone, for ever.
    pub async fn end_orphans(self: Arc<Self>) {
        loop {
            self.means.lost.notified().await;
            let mut ending = JoinSet::new();
            {
                let _changing = self.changing.lock().await;
                for name in self.orphans() {
                    let Some(commands) = self.mark(&name) else { continue };
                    let fleet = self.clone();
                    ending.spawn(async move { fleet.end(&name, commands).await });
                }
            }
            ending.join_all().await;
        }
    }

    fn orphans(&self) -> Vec<String> {
        let kept = self.lock();
        let is_there = |manager: &Manager| {
            kept.get(&manager.name).and_then(generation_of).is_some_and(|now| now == manager.generation)
        };
        let orphan = |kept: &Kept| kept.ward.as_ref().is_some_and(|ward| !is_there(&ward.manager));
        kept.iter().filter(|(_, kept)| orphan(kept)).map(|(name, _)| name.clone()).collect()
    }

    /// A plugin that may have instances, and its present generation.
    fn manager(&self, name: &str) -> Result<(config::Plugin, Manager), Refusal> {
        let plugin = self.config().plugins.get(name).filter(|plugin| plugin.instances).cloned();
        let plugin = plugin.ok_or_else(|| {
            Refusal::new(Code::Denied, format!("plugin {name} may have no instances"))
                .hint(format!("plugins.{name}.instances = true in the manifest allows them"))
        })?;
        let generation = self.lock().get(name).and_then(generation_of).ok_or_else(|| not_there(name))?;
        Ok((plugin, Manager { name: name.to_owned(), generation }))
    }

    /// An instance that is kept, as it would be started now.
    pub(super) fn spec_of(&self, ward: &Ward) -> Result<Spec, Refusal> {
        let (plugin, _) = self.manager(&ward.manager.name)?;
        self.instance_spec(&plugin, ward)
    }

    /// An instance, with what the manifest says of its manager.
    fn instance_spec(&self, manager: &config::Plugin, ward: &Ward) -> Result<Spec, Refusal> {
        let name = format!("{}@{}", manager.name, ward.keyed.key);
        let own = Pattern::parse(&format!("{name}:**"))
            .map_err(|error| Refusal::invalid_payload(format!("name of the instance: {error}")))?;
        let spec = self.spec(config::Plugin {
            name: name.clone(),
            namespace: Some(name),
            placement: Placement::Child,
            emits: vec![own],
            listens: Vec::new(),
            intercepts: Vec::new(),
            every_tenant: false,
            keeps_work: false,
            instances: false,
            ..manager.clone()
        });
        Ok(Spec { instance: Some(ward.keyed.clone()), ..spec })
    }

    /// Marks an instance that is there as one that ends. Whoever gets its commands is
    /// the one to [end](Self::end) it, and `None` is what all others get.
    fn mark(&self, name: &str) -> Option<mpsc::Sender<Command>> {
        let mut kept = self.lock();
        let kept = kept.get_mut(name).filter(|kept| !kept.ending)?;
        kept.ending = true;
        Some(kept.commands.clone())
    }

    /// Stops a marked instance and forgets it, with its directory where it has left
    /// nothing there.
    async fn end(&self, name: &str, commands: mpsc::Sender<Command>) -> Option<PluginStatus> {
        let (command, settled) = Command::new(Some(Input::Stop));
        let status = settled_after(&commands, command, settled).await;
        drop(commands);
        // It has stopped, so this is short; nobody takes the name before all of it is free.
        let changing = self.changing.lock().await;
        self.drop_unlisted(name).await;
        // One that is not empty stays.
        let _ = std::fs::remove_dir(self.places.state.join(name));
        drop(changing);
        // Others may have waited for the name, or for the room.
        self.means.changed.notify_waiters();
        status.ok()
    }

    /// How many instances a manager has, and how many of them are being ended.
    fn count(&self, manager: &Manager) -> (usize, usize) {
        let kept = self.lock();
        let theirs = || kept.values().filter(|kept| is_of(kept, manager));
        (theirs().count(), theirs().filter(|kept| kept.ending).count())
    }
}

fn is_of(kept: &Kept, manager: &Manager) -> bool {
    kept.ward.as_ref().is_some_and(|ward| ward.manager == *manager)
}

/// The generation of a plugin that runs.
fn generation_of(kept: &Kept) -> Option<u32> {
    with(&kept.board, |board| board.port.as_ref().map(|_| board.status.generation))
}

fn not_there(manager: &str) -> Refusal {
    Refusal::new(Code::Cancelled, format!("plugin {manager} is not there any more"))
}
