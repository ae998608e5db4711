//! The keeper of one plugin: carries out what its supervisor decides.
//!
//! One task for each plugin. It launches generations, gives them their events
//! once they are ready, refuses what they held when they die, and answers the
//! operator's commands when the plugin has settled.

use std::{
    collections::VecDeque,
    path::PathBuf,
    process::ExitStatus,
    sync::{Arc, Mutex, PoisonError, atomic::{AtomicU32, Ordering}},
    time::Duration,
};

use ksi_host::{Image, Instance, Library, sandbox};
use ksi_kernel::{Declared, Grant, Quota, Role};
use ksi_protocol::{
    Code, Descriptor, EventName, Frame, PROTOCOL_VERSION, Refusal,
    frame::{Class, Setup},
    json,
    system::{Death, Placement, PluginState, PluginStatus},
};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Child,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use super::{
    actor::{Actor, ActorHost, Watchdog},
    guest::{Alias, Guest, Life, SUBS_FROM},
    link::Link,
    spawner::Spawner,
    supervisor::{Action, Input, Policy, Supervisor},
};
use crate::{
    config,
    hub::{Handle, Hub, Port},
};

/// Deaths that are kept for `plugin:inspect`.
const DEATHS_MAX: usize = 32;
/// Lines of a child's standard error that are kept as its last words.
const WORDS_MAX: usize = 12;
/// Longest line of a child's standard error that is kept.
const WORD_BYTES_MAX: u64 = 4096;

/// What all keepers share.
#[derive(Clone)]
pub struct Means {
    /// The hub.
    pub hub: Arc<Hub>,
    /// Starts children.
    pub spawner: Spawner,
    /// Watches actors.
    pub watchdog: Arc<Watchdog>,
    /// Told whenever a plugin changes its state.
    pub changed: Arc<tokio::sync::Notify>,
    /// The default timeout of an event and whether it is durable, by the name
    /// that others use and the one that the plugin declares.
    pub policies: Arc<dyn Fn(&str, &str) -> (Option<Duration>, bool) + Send + Sync>,
}

/// One plugin, as it is to be run.
#[derive(Debug, Clone)]
pub struct Spec {
    /// From the manifest, or made up for a library that is not in it.
    pub plugin: config::Plugin,
    /// Where the library was found.
    pub library: PathBuf,
    /// A directory of its own.
    pub dir: PathBuf,
    /// Events that the manifest names; they exist before the plugin runs.
    pub known: Vec<EventName>,
}

/// An operator's word. Answered when the plugin has settled.
#[derive(Debug)]
pub struct Command {
    /// What is wanted; `None` to declare the events anew, after their policies
    /// have changed.
    pub input: Option<Input>,
    /// With another specification than before.
    pub spec: Option<Box<Spec>>,
    /// Hears the outcome.
    pub done: oneshot::Sender<PluginStatus>,
}

/// What others may know of a plugin without asking its keeper.
pub struct Board {
    /// State and figures, but for those that the kernel counts.
    pub status: PluginStatus,
    /// What it says of itself, once known.
    pub descriptor: Option<Descriptor>,
    /// How it died, oldest first.
    pub deaths: VecDeque<Death>,
    /// The port of the present generation.
    pub port: Option<Arc<Port>>,
    /// Since when it is ready.
    pub ready_at_ms: Option<u64>,
}

/// A board that many may look at.
pub type Shared = Arc<Mutex<Board>>;

/// Looks at a board, or changes it.
pub fn with<T>(board: &Shared, look: impl FnOnce(&mut Board) -> T) -> T {
    look(&mut board.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The generation that runs.
struct Running {
    port: Arc<Port>,
    body: Body,
}

enum Body {
    Actor(Arc<Actor>),
    Child { link: Arc<Link>, child: Child, serving: JoinHandle<()>, words: JoinHandle<Vec<String>> },
}

pub(super) struct Keeper {
    means: Means,
    spec: Spec,
    board: Shared,
    supervisor: Supervisor,
    /// Where the next generation runs; after a fault in this process, in a
    /// child until the operator reloads the plugin.
    placement: Placement,
    running: Option<Running>,
    life: mpsc::Receiver<Life>,
    timer: Option<Instant>,
    waiting: Vec<oneshot::Sender<PluginStatus>>,
    /// Why it died last, or is about to.
    reason: Option<String>,
    /// What the last child wrote to its standard error.
    words: Vec<String>,
    heartbeat: Heartbeat,
}

/// Whether a busy child still answers pings.
#[derive(Default)]
struct Heartbeat {
    next: Option<Instant>,
    unanswered: bool,
}

impl Keeper {
    pub(super) fn new(means: Means, spec: Spec, board: Shared) -> Self {
        let restart = &spec.plugin.restart;
        let policy = Policy {
            backoff_min: restart.backoff_min,
            backoff_max: restart.backoff_max,
            reset_after: restart.reset_after,
            failures_max: restart.failures_max as usize,
            window: restart.window,
        };
        Self {
            placement: spec.plugin.placement,
            supervisor: Supervisor::new(policy),
            means,
            spec,
            board,
            running: None,
            life: mpsc::channel(1).1,
            timer: None,
            waiting: Vec::new(),
            reason: None,
            words: Vec::new(),
            heartbeat: Heartbeat::default(),
        }
    }

    /// Keeps the plugin until the commands end.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        self.declare(self.absent());
        loop {
            let step = tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => break,
                },
                Some(life) = self.life.recv() => self.hear(life).await,
                sign = sign_of_child(&mut self.running) => match sign {
                    Sign::Exited(status) => {
                        self.child_exited(status).await;
                        Some(Input::Died)
                    }
                    Sign::Busy => {
                        let hang = self.spec.plugin.restart.hang;
                        self.heartbeat.next = Some(Instant::now() + hang / 2);
                        None
                    }
                },
                () = until(self.timer) => {
                    self.timer = None;
                    self.elapsed()
                }
                () = until(self.heartbeat.next) => self.beat(),
            };
            if let Some(input) = step {
                self.step(input).await;
            }
            self.publish();
        }
        self.lose("the daemon stops").await;
    }

    fn command(&mut self, command: Command) -> Option<Input> {
        if let Some(spec) = command.spec {
            self.spec = *spec;
            self.placement = self.spec.plugin.placement;
        }
        if command.input.is_none() {
            self.declare(self.absent());
            // Whoever asked may be gone.
            let _ = command.done.send(self.publish());
            return None;
        }
        self.waiting.push(command.done);
        command.input
    }

    /// A timer has two meanings: a start that takes too long is a death, all
    /// else is for the supervisor.
    fn elapsed(&mut self) -> Option<Input> {
        if self.supervisor.state() != PluginState::Starting {
            return Some(Input::Elapsed);
        }
        let limit = self.spec.plugin.restart.start_timeout;
        self.reason = Some(format!("did not report ready within {} ms", limit.as_millis()));
        self.kill_child();
        match &self.running {
            Some(Running { body: Body::Child { .. }, .. }) => None,
            _ => Some(Input::Died),
        }
    }

    async fn hear(&mut self, life: Life) -> Option<Input> {
        match life {
            Life::Described(descriptor) => {
                with(&self.board, |board| {
                    board.status.version.clone_from(&descriptor.version);
                    board.status.about.clone_from(&descriptor.about);
                    board.descriptor = Some(*descriptor);
                });
                None
            }
            Life::Ready => {
                self.timer = None;
                match self.open() {
                    Ok(()) => Some(Input::Ready),
                    Err(refusal) => {
                        self.reason = Some(refusal.message);
                        self.kill_child();
                        self.lose("it cannot own its events").await;
                        Some(Input::Died)
                    }
                }
            }
            Life::Drained => Some(Input::Drained),
            Life::Pong => {
                self.heartbeat.unanswered = false;
                None
            }
            Life::Refused(refusal) => {
                self.reason = Some(refusal.message);
                None
            }
            Life::Died(reason) => {
                self.reason = Some(reason);
                if matches!(self.running, Some(Running { body: Body::Child { .. }, .. })) {
                    // Its exit follows.
                    self.kill_child();
                    return None;
                }
                if self.running.is_some() {
                    // A fault in this process is not repeated in this process.
                    self.placement = Placement::Child;
                    self.lose("it failed").await;
                }
                Some(Input::Died)
            }
        }
    }

    async fn step(&mut self, mut input: Input) {
        loop {
            let before = self.supervisor.state();
            let now_ms = self.means.hub.now_ms();
            let action = self.supervisor.step(input, now_ms, jitter());
            let after = self.supervisor.state();
            self.publish();
            if input == Input::Died && before != PluginState::Draining {
                self.record_death(now_ms);
            }
            match action {
                Action::None => {}
                Action::Launch => match self.launch().await {
                    Ok(()) => self.timer = Some(Instant::now() + self.spec.plugin.restart.start_timeout),
                    Err(refusal) => {
                        self.reason = Some(refusal.message);
                        input = Input::Died;
                        continue;
                    }
                },
                Action::Drain => {
                    self.timer = Some(Instant::now() + self.spec.plugin.restart.stop_timeout);
                    match &self.running {
                        Some(Running { body: Body::Actor(actor), .. }) => actor.drain(),
                        Some(Running { body: Body::Child { link, .. }, .. }) => link.send(&Frame::Drain),
                        None => {}
                    }
                }
                Action::Kill => {
                    self.timer = None;
                    self.kill_child();
                    if matches!(self.running, Some(Running { body: Body::Actor(_), .. })) {
                        self.lose("it was stopped").await;
                        input = Input::Died;
                        continue;
                    }
                }
                Action::Wait(delay) => self.timer = Some(Instant::now() + delay),
                Action::Hold => {
                    let reason = self.reason.clone().unwrap_or_default();
                    tracing::error!(plugin = self.spec.plugin.name, "held after repeated failures: {reason}");
                    let fact = json!({"name": self.spec.plugin.name, "reason": reason});
                    self.means.hub.tell("plugin:held", &fact);
                }
            }
            self.announce(before, after);
            return;
        }
    }

    fn announce(&mut self, before: PluginState, after: PluginState) {
        if before != after {
            self.means.changed.notify_waiters();
            let name = &self.spec.plugin.name;
            tracing::info!(plugin = name, state = after.as_str(), "plugin is {}", after.as_str());
            if after == PluginState::Stopped {
                self.means.hub.tell("plugin:stopped", &json!({ "name": name }));
            }
            if after == PluginState::Ready {
                let status = self.publish();
                let fact = json!({"name": name, "generation": status.generation,
                    "placement": status.placement, "sandbox": status.sandbox, "pid": status.pid});
                self.means.hub.tell("plugin:ready", &fact);
            }
        }
        if after == PluginState::Stopped {
            // Also lets go of interceptors that refuse while their plugin is away.
            self.means.hub.kernel.forget(&self.origin());
        }
        if after != PluginState::Ready {
            self.declare(self.absent());
        }
        if !matches!(after, PluginState::Starting | PluginState::Draining) {
            let status = self.publish();
            for waiting in self.waiting.drain(..) {
                // Whoever asked may be gone.
                let _ = waiting.send(status.clone());
            }
        }
    }

    async fn launch(&mut self) -> Result<(), Refusal> {
        let image = Image::open(&self.spec.library)?;
        if image.child_only {
            self.placement = Placement::Child;
        }
        if let Some(require) = self.spec.plugin.require.as_deref().filter(|_| self.placement == Placement::Child)
            && require > sandbox::LEVEL
        {
            let message = format!("it requires sandbox {require}, and {} can be had here", sandbox::LEVEL);
            return Err(Refusal::new(Code::Unavailable, message));
        }
        std::fs::create_dir_all(&self.spec.dir).map_err(|error| {
            Refusal::new(Code::Unavailable, format!("cannot make {}: {error}", self.spec.dir.display()))
        })?;
        let (life, receiver) = mpsc::channel(64);
        self.life = receiver;
        self.heartbeat = Heartbeat::default();
        let outer = self.spec.plugin.namespace.clone();
        let alias = outer.map(|outer| Alias { inner: image.name.clone(), outer });
        let guest = Guest::new(&self.spec.plugin.name, alias, life);
        let generation = with(&self.board, |board| {
            board.status.generation += 1;
            board.status.generation
        });
        match self.placement {
            Placement::InProcess => self.launch_here(guest, image).await?,
            Placement::Child => self.launch_child(guest).await?,
        }
        let status = self.publish();
        let fact = json!({"name": status.name, "generation": generation, "placement": status.placement,
            "sandbox": status.sandbox, "pid": status.pid});
        self.means.hub.tell("plugin:started", &fact);
        Ok(())
    }

    /// How the kernel and everybody else knows the plugin.
    fn origin(&self) -> String {
        format!("plugin:{}", self.spec.plugin.name)
    }

    fn attach(&self, handle: Handle) -> Arc<Port> {
        let plugin = &self.spec.plugin;
        let quota = Quota { holding: plugin.limits.holding, ..Quota::default() };
        let grant = Grant::Only { may_call: plugin.may_call.clone(), emits: plugin.emits.clone() };
        self.means.hub.kernel.attach(&self.origin(), Role::Plugin, handle, quota, grant)
    }

    async fn launch_here(&mut self, guest: Guest, image: Image) -> Result<(), Refusal> {
        let actor = Actor::new(guest, &self.means.hub, &self.means.watchdog, self.spec.plugin.restart.hang);
        let port = self.attach(Handle::Actor(actor.clone()));
        actor.guest.set_port(&port);
        let host = Arc::new(ActorHost(Arc::downgrade(&actor)));
        let config = json::from_json(&self.spec.plugin.config)?;
        let dir = self.spec.dir.clone();
        let created = tokio::task::spawn_blocking(move || {
            let library = Library::load(&image)?;
            let instance = Instance::create(&library, host, &config, &dir)?;
            Ok::<_, Refusal>((library.descriptor, instance))
        });
        let created = match tokio::time::timeout(self.spec.plugin.restart.start_timeout, created).await {
            Ok(Ok(created)) => created,
            Ok(Err(_)) => Err(Refusal::new(Code::Internal, "loading panicked")),
            Err(_) => Err(Refusal::new(Code::Timeout, "did not start in time")),
        };
        match created {
            Ok((descriptor, instance)) => {
                actor.guest.tell(Life::Described(Box::new(descriptor)));
                actor.begin(instance);
                self.running = Some(Running { port, body: Body::Actor(actor) });
                Ok(())
            }
            Err(refusal) => {
                self.detach(&port, "it did not start");
                Err(refusal)
            }
        }
    }

    async fn launch_child(&mut self, guest: Guest) -> Result<(), Refusal> {
        let limits = &self.spec.plugin.limits;
        let limits = sandbox::Limits {
            memory_bytes: limits.memory_mb.map(|mb| mb << 20),
            files: Some(limits.files),
            file_bytes: limits.file_mb.map(|mb| mb << 20),
        };
        let failed = |error: std::io::Error| Refusal::new(Code::Unavailable, error.to_string());
        let spawned = self.means.spawner.spawn(&self.spec.dir, &limits).await.map_err(failed)?;
        let mut child = spawned.child;
        let link = Link::new(guest, spawned.link).map_err(failed)?;
        let port = self.attach(Handle::Link(link.clone()));
        link.guest.set_port(&port);
        link.send(&Frame::Setup(Setup {
            version: PROTOCOL_VERSION,
            name: self.spec.plugin.name.clone(),
            library: self.spec.library.display().to_string(),
            dir: self.spec.dir.display().to_string(),
            config: json::from_json(&self.spec.plugin.config)?,
        }));
        let name = self.spec.plugin.name.clone();
        let words = tokio::spawn(listen(name, child.stderr.take()));
        let serving = tokio::spawn(link.clone().serve(self.means.hub.clone()));
        self.running = Some(Running { port, body: Body::Child { link, child, serving, words } });
        Ok(())
    }

    /// Gives the plugin its events.
    fn open(&mut self) -> Result<(), Refusal> {
        let Some(running) = &self.running else { return Ok(()) };
        let guest = match &running.body {
            Body::Actor(actor) => &actor.guest,
            Body::Child { link, .. } => &link.guest,
        };
        let kernel = &self.means.hub.kernel;
        let Some(descriptor) = with(&self.board, |board| board.descriptor.clone()) else { return Ok(()) };
        let events: Vec<EventName> =
            descriptor.requests.iter().map(|spec| guest.outer(spec.event.clone())).collect();
        self.declare(self.absent());
        kernel.own(&running.port, &events)?;
        for (id, pattern) in (SUBS_FROM..).zip(descriptor.listens) {
            kernel.subscribe(&running.port, id, pattern, Class::Live)?;
        }
        for spec in descriptor.intercepts {
            kernel.intercept(&running.port, spec.pattern, spec.stage, spec.order, spec.fail_open);
        }
        Ok(())
    }

    /// Declares the plugin's events, with what is said while nobody answers.
    fn declare(&self, absent: Refusal) {
        let alias = self.spec.plugin.namespace.as_deref();
        let described = with(&self.board, |board| board.descriptor.clone());
        let mut names: Vec<(EventName, EventName)> =
            self.spec.known.iter().map(|name| (name.clone(), name.clone())).collect();
        for spec in described.iter().flat_map(|descriptor| &descriptor.requests) {
            let outer = match (alias, spec.event.as_str().split_once(':')) {
                (Some(outer), Some((_, action))) => EventName::parse(&format!("{outer}:{action}")).ok(),
                _ => None,
            };
            names.push((outer.unwrap_or_else(|| spec.event.clone()), spec.event.clone()));
        }
        let declared: Vec<Declared> = names
            .into_iter()
            .map(|(name, inner)| {
                let (timeout, durable) = (self.means.policies)(name.as_str(), inner.as_str());
                Declared { name, timeout, durable }
            })
            .collect();
        self.means.hub.kernel.declare(&self.origin(), &declared, absent);
    }

    /// What is said to whoever asks while the plugin does not answer.
    fn absent(&self) -> Refusal {
        let name = &self.spec.plugin.name;
        let why = self.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
        match self.supervisor.state() {
            PluginState::Starting | PluginState::Ready => {
                Refusal::new(Code::Unavailable, format!("plugin {name} is starting")).retry_after_ms(200)
            }
            PluginState::Backoff => {
                Refusal::new(Code::Unavailable, format!("plugin {name} is being restarted{why}"))
                    .retry_after_ms(500)
            }
            PluginState::Held => {
                let mut refusal = Refusal::new(Code::Unavailable, format!("plugin {name} is held after repeated failures{why}"))
                    .hint(format!("`ksi plugin inspect {name}` shows how it died, `ksi plugin restart {name}` tries again"));
                refusal.retryable = false;
                refusal
            }
            PluginState::Draining | PluginState::Stopped => {
                Refusal::new(Code::NoOwner, format!("plugin {name} is not loaded"))
                    .hint(format!("`ksi plugin load {name}` loads it"))
            }
        }
    }

    /// Detaches what runs, and refuses what it held.
    async fn lose(&mut self, why: &str) {
        let Some(running) = self.running.take() else { return };
        self.detach(&running.port, why);
        match running.body {
            Body::Actor(actor) => actor.stop(),
            Body::Child { link, mut child, serving, words } => {
                link.kill();
                // A child that is gone already is none to be killed.
                let _ = child.start_kill();
                let _ = child.wait().await;
                serving.abort();
                if let Ok(words) = words.await {
                    with(&self.board, |board| board.status.pid = None);
                    self.last_words(words);
                }
            }
        }
    }

    fn detach(&self, port: &Arc<Port>, why: &str) {
        let name = &self.spec.plugin.name;
        let reason = self.reason.as_deref().unwrap_or(why);
        let refusal = Refusal::new(Code::PluginRestarted, format!("plugin {name} is gone: {reason}"))
            .hint("whether it did what was asked is not known; ask again if that does no harm")
            .retry_after_ms(200);
        let mut turn = self.means.hub.turn();
        turn.detach(port, &refusal);
        turn.end();
    }

    async fn child_exited(&mut self, status: std::io::Result<ExitStatus>) {
        let said = self.reason.take();
        let how = match status {
            Ok(status) => describe_exit(status),
            Err(error) => format!("its exit status is unknown: {error}"),
        };
        self.reason = Some(match said {
            Some(said) => format!("{said} ({how})"),
            None => how,
        });
        self.lose("its process ended").await;
    }

    fn last_words(&mut self, words: Vec<String>) {
        if let (Some(last), Some(reason)) = (words.last(), &mut self.reason)
            && !reason.contains(last.as_str())
            && self.supervisor.state() != PluginState::Draining
        {
            *reason = format!("{reason}; it said: {last}");
        }
        self.words = words;
    }

    fn record_death(&mut self, at_ms: u64) {
        let reason = self.reason.clone().unwrap_or_else(|| "unknown".into());
        let name = self.spec.plugin.name.clone();
        tracing::warn!(plugin = name, "plugin died: {reason}");
        let last_words = std::mem::take(&mut self.words);
        with(&self.board, |board| {
            if board.deaths.len() == DEATHS_MAX {
                board.deaths.pop_front();
            }
            board.deaths.push_back(Death { at_ms, reason: reason.clone(), last_words });
            board.status.restarts += 1;
            board.status.last_error = Some(reason.clone());
        });
        self.means.hub.tell("plugin:died", &json!({"name": name, "reason": reason}));
    }

    fn kill_child(&mut self) {
        if let Some(Running { body: Body::Child { child, .. }, .. }) = &mut self.running {
            // Gone already is as good.
            let _ = child.start_kill();
        }
    }

    /// Pings a child that is busy; one that does not answer is given up.
    fn beat(&mut self) -> Option<Input> {
        self.heartbeat.next = None;
        let hang = self.spec.plugin.restart.hang;
        let Some(Running { body: Body::Child { link, .. }, port }) = &self.running else { return None };
        if self.heartbeat.unanswered {
            self.reason = Some(format!("did not answer for {} ms", hang.as_millis()));
            self.heartbeat.unanswered = false;
            self.kill_child();
            return None;
        }
        if port.holding() == 0 {
            link.rest();
            return None;
        }
        link.send(&Frame::Ping { id: 0 });
        self.heartbeat.unanswered = true;
        self.heartbeat.next = Some(Instant::now() + hang);
        None
    }

    /// Writes the board; what it now says.
    fn publish(&self) -> PluginStatus {
        let pid = match &self.running {
            Some(Running { body: Body::Child { child, .. }, .. }) => child.id(),
            _ => None,
        };
        with(&self.board, |board| {
            let status = &mut board.status;
            status.state = self.supervisor.state();
            status.placement = self.placement;
            status.sandbox =
                if self.placement == Placement::Child { sandbox::LEVEL.into() } else { "none".into() };
            status.pid = pid;
            status.library = self.spec.library.display().to_string();
            board.ready_at_ms = self.supervisor.ready_at_ms();
            board.port = self.running.as_ref().map(|running| running.port.clone());
            board.status.clone()
        })
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// What a child shows without saying it.
enum Sign {
    Exited(std::io::Result<ExitStatus>),
    /// It was idle, and has been given work.
    Busy,
}

async fn sign_of_child(running: &mut Option<Running>) -> Sign {
    match running {
        Some(Running { body: Body::Child { link, child, .. }, .. }) => tokio::select! {
            status = child.wait() => Sign::Exited(status),
            () = link.busy.notified() => Sign::Busy,
        },
        _ => std::future::pending().await,
    }
}

/// Logs what a child writes to its standard error, and keeps the last of it.
async fn listen(plugin: String, stderr: Option<tokio::process::ChildStderr>) -> Vec<String> {
    use tokio::io::AsyncReadExt;
    let mut kept = VecDeque::new();
    let Some(stderr) = stderr else { return Vec::new() };
    let mut reader = BufReader::new(stderr);
    loop {
        let mut line = Vec::new();
        match (&mut reader).take(WORD_BYTES_MAX).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return kept.into(),
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        if text.is_empty() {
            continue;
        }
        tracing::info!(plugin, "stderr: {text}");
        if kept.len() == WORDS_MAX {
            kept.pop_front();
        }
        kept.push_back(text);
    }
}

fn describe_exit(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it exited with code {code}"),
        (None, Some(signal)) => {
            let name = nix::sys::signal::Signal::try_from(signal).map_or("unknown signal", |s| s.as_str());
            format!("it was killed by {name}")
        }
        (None, None) => "it ended".into(),
    }
}

/// A number from 0 to 1, from the hasher's random keys.
fn jitter() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let hash = RandomState::new().hash_one(CALLS.fetch_add(1, Ordering::Relaxed));
    (hash >> 11) as f64 / (1_u64 << 53) as f64
}
