//! All plugins together: starts and stops them, and carries out what is wanted of each.

mod confinement;
mod inspection;
mod instances;
mod unlisted;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ksi_host::Image;
use ksi_protocol::{
    Code, EventName, Refusal,
    sandbox::Probe,
    system::{Placement, PluginState, PluginStatus},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};

use self::instances::Ward;
pub(super) use self::unlisted::unlisted;
use super::{
    actor::apart,
    board::{Board, Shared, with},
    grants::{self, Granted},
    probe,
    runner::{Command, Means, Runner, quarantined},
    spec::Spec,
    supervisor::Input,
};
use crate::{
    config::{self, Config, Current},
    hub::Handle,
    orders::Orders,
};

/// Time that a runner may take to end what still runs. A child that it has not
/// reaped by then was killed all the same, and dies with the daemon at the
/// latest.
const RUNNER_GRACE: Duration = Duration::from_secs(2);

/// Time that plugins of this process leave to the others to get a process.
const HEAD_START: Duration = Duration::from_millis(50);

/// Where libraries are looked for, and where plugins keep their own.
#[derive(Debug, Clone)]
pub struct Places {
    /// Directories of libraries, in order.
    pub libraries: Vec<PathBuf>,
    /// Parent of the plugins' own directories.
    pub state: PathBuf,
    /// The user's models; handed to plugins that have a `models_dir`.
    pub models: PathBuf,
    /// Where the control socket lies; hidden from every child.
    pub runtime: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
}

impl Places {
    /// The first place that has the library; the first place of all where none
    /// has, so that the error names a path.
    #[must_use]
    pub fn find(&self, library: &str) -> PathBuf {
        let path = Path::new(library);
        if path.is_absolute() {
            return path.into();
        }
        let mut candidates = self.libraries.iter().map(|dir| dir.join(path));
        let first = candidates.next().unwrap_or_else(|| path.into());
        if first.exists() {
            return first;
        }
        candidates.find(|candidate| candidate.exists()).unwrap_or(first)
    }
}

struct Kept {
    commands: mpsc::Sender<Command>,
    board: Shared,
    task: JoinHandle<()>,
    in_manifest: bool,
    /// Where it is an instance.
    ward: Option<Ward>,
    /// Whether it is an instance that is being ended, by one who waits for that.
    ending: bool,
}

/// Has plugins started. Those with a process of their own come first: it comes up
/// while the others are loaded here.
async fn begin(children: Vec<mpsc::Sender<Command>>, here: Vec<mpsc::Sender<Command>>) {
    // A runner that is gone, or quarantined, does nothing.
    let mut launched = Vec::new();
    for commands in &children {
        let _ = commands.send(Command::new(Some(Input::Start)).0).await;
        // One after the other: the second is heard once the process is there.
        let (look, seen) = Command::new(None);
        let _ = commands.send(look).await;
        launched.push(seen);
    }
    let all = async {
        for seen in launched {
            let _ = seen.await;
        }
    };
    let _ = timeout(HEAD_START, all).await;
    for commands in here {
        let _ = commands.send(Command::new(Some(Input::Start)).0).await;
    }
}

/// All runners.
pub struct Fleet {
    means: Means,
    places: Places,
    config: Current,
    kept: Mutex<BTreeMap<String, Kept>>,
    /// Held while it is decided which instances come and go, and never until they
    /// have: a reload takes rights away, and waits for nobody to end.
    changing: tokio::sync::Mutex<()>,
}

impl Fleet {
    /// No plugin yet.
    #[must_use]
    pub fn new(means: Means, places: Places, config: Current) -> Self {
        Self { means, places, config, kept: Mutex::default(), changing: tokio::sync::Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn config(&self) -> Arc<Config> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts the policies of a new configuration in force, and what plugins may ask,
    /// tell, hear and have a word on by it, and starts those that are new in it.
    /// Otherwise those that run go on as they were started, until they are
    /// reloaded.
    pub async fn reconfigure(&self) {
        let mut heard = Vec::new();
        {
            // So instances that are being started see the one or the other, and of
            // two configurations the later is told last.
            let _changing = self.changing.lock().await;
            let all: Vec<_> = self
                .lock()
                .iter()
                .map(|(name, kept)| {
                    (name.clone(), kept.ward.clone(), kept.in_manifest, kept.commands.clone())
                })
                .collect();
            for (name, ward, in_manifest, commands) in all {
                let (command, declared) = Command::new(None);
                let granted = self.granted(&name, ward.as_ref(), in_manifest);
                // A runner that is gone has nothing to declare.
                if commands.send(Command { granted, ..command }).await.is_ok() {
                    heard.push(declared);
                }
            }
        }
        for declared in heard {
            let _ = declared.await;
        }
        self.start();
    }

    /// What one is granted by the configuration as it is now: nothing where it is
    /// not in it any more. `None`: it never was.
    fn granted(&self, name: &str, ward: Option<&Ward>, in_manifest: bool) -> Option<Granted> {
        let plugin = match ward {
            Some(ward) => self.spec_of(ward).ok().map(|spec| spec.plugin),
            None if in_manifest => self.config().plugins.get(name).cloned(),
            None => return None,
        };
        Some(plugin.as_ref().map(Granted::by).unwrap_or_default())
    }

    /// Has every enabled plugin of the manifest started that is not kept yet; does
    /// not wait for them.
    pub fn start(&self) {
        let config = self.config();
        let (mut children, mut here) = (Vec::new(), Vec::new());
        // The others wait for the one that keeps work, and its disk takes a while.
        let mut plugins: Vec<_> = config.plugins.values().collect();
        plugins.sort_by_key(|plugin| !plugin.keeps_work);
        for plugin in plugins {
            if self.lock().contains_key(&plugin.name) {
                continue;
            }
            let commands = self.keep(self.spec(plugin.clone()), true, None);
            match plugin.placement {
                _ if !plugin.enabled => {}
                Placement::Child => children.push(commands),
                Placement::InProcess => here.push(commands),
            }
        }
        tokio::spawn(apart(begin(children, here)));
    }

    /// Stops every plugin, and waits until they are gone, or for `grace`. The
    /// one that keeps work goes last: until then the others may have something
    /// to keep.
    pub async fn stop(&self, grace: Duration) {
        let kept = std::mem::take(&mut *self.lock());
        let config = self.config();
        let keeps = |name: &String| config.plugins.get(name).filter(|plugin| plugin.keeps_work);
        let keepers_time = kept.keys().find_map(keeps).map(|plugin| plugin.restart.stop_timeout);
        let (last, first): (Vec<_>, Vec<_>) = kept.into_iter().partition(|(name, _)| keeps(name).is_some());
        Self::stop_all(first, grace).await;
        // In a hurry nothing is waited for: what was accepted is on the disk.
        let grace = if grace.is_zero() { grace } else { grace.max(keepers_time.unwrap_or_default()) };
        Self::stop_all(last, grace).await;
    }

    async fn stop_all(kept: Vec<(String, Kept)>, grace: Duration) {
        let stopping = kept.into_iter().map(|(_, kept)| async move {
            let (stop, stopped) = Command::new(Some(Input::Stop));
            let _ = timeout(grace, kept.commands.send(stop)).await;
            // Too late or not, the runner ends with its channel, and what
            // still runs ends with the runner.
            let _ = timeout(grace, stopped).await;
            drop(kept.commands);
            let runner = kept.task.abort_handle();
            if timeout(grace.min(RUNNER_GRACE), kept.task).await.is_err() {
                runner.abort();
            }
        });
        let tasks: Vec<_> = stopping.map(tokio::spawn).collect();
        for task in tasks {
            let _ = task.await;
        }
    }

    fn keep(&self, spec: Spec, in_manifest: bool, ward: Option<Ward>) -> mpsc::Sender<Command> {
        let name = spec.plugin.name.clone();
        let will_start = spec.plugin.enabled || !in_manifest;
        let is_wanted = in_manifest && spec.plugin.enabled;
        let board: Shared = Arc::new(Mutex::new(Board::new(&spec, is_wanted)));
        let (commands, receiver) = mpsc::channel(16);
        let mut runner = Runner::new(self.means.clone(), spec, board.clone());
        let quarantined = self.means.orders.quarantined(&name);
        let will_start = will_start && quarantined.is_none();
        if let Some(order) = quarantined {
            runner.confine(order.reason);
        }
        // Before anybody is accepted who may ask: its events are known, and
        // whoever asks too early is told to come back.
        runner.declare(if will_start { runner.starting() } else { runner.absent() });
        if is_wanted {
            runner.guard();
        }
        let task = tokio::spawn(apart(runner.run(receiver)));
        let kept = Kept { commands: commands.clone(), board, task, in_manifest, ward, ending: false };
        self.lock().insert(name, kept);
        commands
    }

    fn spec(&self, mut plugin: config::Plugin) -> Spec {
        let outer = plugin.own_namespace().to_owned();
        let library = self.places.find(&plugin.library);
        // Under an alias the events of the library's own name are known, too.
        let inner = plugin.namespace.as_ref().and_then(|_| Some(Image::open(&library).ok()?.name));
        let renamed = |name: &String| match (&inner, name.split_once(':')) {
            (Some(inner), Some((namespace, action))) if namespace == inner => format!("{outer}:{action}"),
            _ => name.clone(),
        };
        let known: BTreeSet<EventName> = self
            .config()
            .events
            .keys()
            .filter_map(|name| EventName::parse(&renamed(name)).ok())
            .filter(|name| plugin.owns(name.namespace()))
            .collect();
        // A plugin that keeps models and is not told where has the user's.
        if let Some(directory) = plugin.config.get_mut("models_dir")
            && directory.as_str() == Some("")
        {
            *directory = self.places.models.display().to_string().into();
        }
        let models = plugin.config.get("models_dir").and_then(|dir| dir.as_str()).map(PathBuf::from);
        Spec {
            rights: grants::rights(&plugin),
            library,
            models,
            runtime_dir: self.places.runtime.clone(),
            dir: self.places.state.join(&plugin.name),
            known: known.into_iter().collect(),
            instance: None,
            plugin,
        }
    }

    /// What an operator has ordered that outlasts the daemon.
    #[must_use]
    pub fn orders(&self) -> &Arc<Orders> {
        &self.means.orders
    }

    /// Resolves at the next change of a plugin's state.
    pub fn changed(&self) -> impl Future<Output = ()> + use<> {
        self.means.changed.clone().notified_owned()
    }

    fn unknown(&self, name: &str) -> Refusal {
        let names: Vec<String> = self.lock().keys().cloned().collect();
        Refusal::not_found("plugin", name).hint(format!("there are: {}", names.join(", ")))
    }

    /// Tries from inside of a plugin's sandbox, in a child of its own, what is
    /// denied there.
    ///
    /// # Errors
    ///
    /// `not_found`, `conflict` for a plugin that has no sandbox, or why there is
    /// no answer.
    pub async fn probe(&self, name: &str) -> Result<Probe, Refusal> {
        let found = self.lock().get(name).map(|kept| {
            let status = with(&kept.board, |board| board.status.clone());
            (status, kept.ward.clone())
        });
        let Some((status, ward)) = found else { return Err(self.unknown(name)) };
        if status.placement == Placement::InProcess {
            return Err(Refusal::new(
                Code::Conflict,
                format!("plugin {name} runs in the daemon, without a sandbox"),
            )
            .hint(format!("set plugins.{name}.placement = \"child\" and reload it")));
        }
        let spec = match (ward, self.config().plugins.get(name)) {
            (Some(ward), _) => self.spec_of(&ward)?,
            (None, Some(plugin)) => self.spec(plugin.clone()),
            (None, None) => self.spec(unlisted(name, status.library, Placement::Child)?),
        };
        probe::run(&self.means, &spec, &self.places).await
    }

    /// Carries out an operator's word, and waits until the plugin has settled.
    ///
    /// # Errors
    ///
    /// `not_found`, or the reason why it does not run although it should.
    pub async fn command(&self, name: &str, input: Input, fresh: bool) -> Result<PluginStatus, Refusal> {
        let found = self.lock().get(name).map(|kept| (kept.commands.clone(), kept.in_manifest));
        let Some((commands, in_manifest)) = found else { return Err(self.unknown(name)) };
        let plugin = self.config().plugins.get(name).filter(|_| fresh && in_manifest).cloned();
        let (mut command, settled) = Command::new(Some(input));
        command.spec = plugin.map(|plugin| Box::new(self.spec(plugin)));
        command.anew = fresh;
        let status = settled_after(&commands, command, settled).await?;
        if input == Input::Stop || status.state == PluginState::Ready {
            return Ok(status);
        }
        if let Some(why) = &status.quarantined {
            return Err(quarantined(name, why));
        }
        let why = status.last_error.clone().unwrap_or_else(|| "it was stopped meanwhile".into());
        // A library that was only tried is forgotten, and there is nothing to inspect.
        let hint = match in_manifest {
            true => format!("`ksi plugin inspect {name}` shows how it died, `ksi logs` what it said"),
            false => "`ksi logs` shows what it said".to_owned(),
        };
        Err(Refusal::new(Code::Unavailable, format!("plugin {name} is {}: {why}", status.state.as_str()))
            .hint(hint))
    }

    /// Has every child at rest asked whether it still answers.
    pub fn look(&self) {
        for kept in self.lock().values() {
            let port = with(&kept.board, |board| board.port.clone());
            if let Some(Handle::Link(link)) = port.as_ref().map(|port| &port.handle) {
                link.stir();
            }
        }
    }
}

/// Gives a command, and waits until the plugin has settled.
async fn settled_after(
    commands: &mpsc::Sender<Command>,
    command: Command,
    settled: oneshot::Receiver<PluginStatus>,
) -> Result<PluginStatus, Refusal> {
    let gone = || Refusal::new(Code::ShuttingDown, "the daemon is stopping");
    commands.send(command).await.map_err(|_| gone())?;
    settled.await.map_err(|_| gone())
}
