//! The runner of one plugin: carries out what its supervisor decides.
//!
//! One task for each plugin. It launches generations, gives them their events
//! once they are ready, refuses what they held when they die, and answers the
//! operator's commands when the plugin has settled.

mod body;
mod claims;
mod exit;
mod launch;
mod telling;

use std::sync::Arc;

use ksi_kernel::Declared;
use ksi_protocol::{
    Descriptor, EventName, Frame, Refusal,
    sandbox::Report,
    system::{Death, Placement, PluginState, PluginStatus, PluginTrouble},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use self::body::{Body, Heartbeat, Running, Sign, sign_of_child};
pub(super) use self::telling::quarantined;
use super::{
    actor::{Actor, Watchdog},
    board::{Shared, with},
    cgroup::Cgroups,
    grants::{Granted, Writable},
    guest::Life,
    spawner::Spawner,
    spec::Spec,
    supervisor::{Action, Input, Supervisor},
};
use crate::{hub::Hub, jitter, orders::Orders, own, secrets::Secrets, trust::Trust};

/// Tells how an event is declared, by the name that others use and the one that
/// the plugin declares.
pub type Policies = dyn Fn(EventName, &str) -> Declared + Send + Sync;

/// What all runners share.
#[derive(Clone)]
pub struct Means {
    /// The hub.
    pub hub: Arc<Hub>,
    /// Starts children.
    pub spawner: Spawner,
    /// Holds them to their limits.
    pub cgroups: Cgroups,
    /// Watches actors.
    pub watchdog: Arc<Watchdog>,
    /// What any of them may write.
    pub writable: Arc<Writable>,
    /// What is quarantined.
    pub orders: Arc<Orders>,
    /// Told whenever a plugin changes its state.
    pub changed: Arc<tokio::sync::Notify>,
    /// Told when a plugin that may have instances is gone.
    pub lost: Arc<tokio::sync::Notify>,
    /// How events are declared.
    pub policies: Arc<Policies>,
    /// What may be loaded.
    pub trust: Arc<Trust>,
    /// What plugins are given that others must not see.
    pub secrets: Secrets,
}

/// An operator's word. Answered when the plugin has settled.
#[derive(Debug)]
pub struct Command {
    /// What is wanted; `None` to declare the events anew, after their policies
    /// have changed.
    pub input: Option<Input>,
    /// With `None`: what it is granted from now on, where that may have changed.
    pub granted: Option<Granted>,
    /// Why it is quarantined, with [`Input::Quarantine`].
    pub quarantine: Option<String>,
    /// With another specification than before.
    pub spec: Option<Box<Spec>>,
    /// Where its placement says, also after it has failed there.
    pub anew: bool,
    /// Hears the outcome.
    pub done: oneshot::Sender<PluginStatus>,
}

impl Command {
    /// A command, and where its outcome is heard.
    #[must_use]
    pub fn new(input: Option<Input>) -> (Self, oneshot::Receiver<PluginStatus>) {
        let (done, settled) = oneshot::channel();
        (Self { input, granted: None, quarantine: None, spec: None, anew: false, done }, settled)
    }
}

pub(super) struct Runner {
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
    /// What is known of the death that comes next, besides its reason.
    death: Death,
    /// Whether the present child was killed from here.
    killed: bool,
    /// Why an operator has quarantined it.
    quarantine: Option<String>,
    /// Whether it has been ready since it was wanted: it has said what it has a word on.
    is_heard: bool,
    heartbeat: Heartbeat,
    /// What of its sandbox is in force, once its host has told.
    sandbox: Option<Report>,
    /// The last generation in this process; a thread may be lost in it.
    stuck: Option<Arc<Actor>>,
}

impl Runner {
    pub(super) fn new(means: Means, spec: Spec, board: Shared) -> Self {
        Self {
            placement: spec.plugin.placement,
            supervisor: Supervisor::new(spec.plugin.restart.policy),
            means,
            spec,
            board,
            running: None,
            life: mpsc::channel(1).1,
            timer: None,
            waiting: Vec::new(),
            reason: None,
            death: Death::default(),
            killed: false,
            quarantine: None,
            is_heard: false,
            heartbeat: Heartbeat::default(),
            sandbox: None,
            stuck: None,
        }
    }

    /// Begins quarantined, as it was when the daemon ended.
    pub(super) fn confine(&mut self, why: String) {
        self.quarantine = Some(why);
        self.supervisor.step(Input::Quarantine, self.means.hub.now_ms(), 0.0);
        self.publish();
    }

    /// Runs the plugin until the commands end.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            let step = tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => break,
                },
                Some(life) = self.life.recv() => self.hear(life).await,
                sign = sign_of_child(&mut self.running) => match sign {
                    Sign::Exited(exit) => {
                        self.child_exited(exit).await;
                        Some(Input::Died)
                    }
                    Sign::Busy => {
                        self.watch();
                        None
                    }
                },
                () = until(self.timer) => {
                    self.timer = None;
                    self.elapsed().await
                }
                () = until(self.heartbeat.next) => {
                    self.beat();
                    None
                }
            };
            if let Some(input) = step {
                self.step(input).await;
            }
            self.publish();
        }
        self.lose("the daemon stops").await;
    }

    /// Grants it this, from its next event on.
    fn grant(&mut self, Granted { rights, every_tenant, fail_open, enabled }: Granted) {
        self.spec.plugin.every_tenant = every_tenant;
        self.spec.plugin.fail_open = fail_open;
        self.spec.plugin.enabled = enabled;
        if let Some(running) = &self.running {
            running.port.authority.grant(rights.clone());
            running.guest().grant_every_tenant(self.spec.speaks_of_all());
        }
        self.means.hub.kernel.grant_interceptors(&self.origin(), &rights);
        self.spec.rights = rights;
        if with(&self.board, |board| board.status.wanted) {
            self.guard();
        }
        let described = with(&self.board, |board| board.descriptor.clone());
        if let Some(descriptor) = described {
            let not_granted = self.not_granted(&descriptor);
            with(&self.board, |board| board.status.not_granted = not_granted);
        }
    }

    /// Has all refused that it may have a word on, until it has been ready once and
    /// said which of it: a guard that does not come must not leave the gate open.
    /// From then on what it leaves when it dies does that.
    pub(super) fn guard(&self) {
        if self.is_heard {
            return;
        }
        let (origin, kernel) = (self.origin(), &self.means.hub.kernel);
        let (plugin, intercepts) = (&self.spec.plugin, &self.spec.rights.intercepts);
        if plugin.enabled && !plugin.fail_open && !intercepts.is_empty() {
            kernel.expect_interceptor(&origin, intercepts.clone());
        } else {
            // It may have been otherwise before.
            kernel.forget_interceptors(&origin);
        }
    }

    fn command(&mut self, command: Command) -> Option<Input> {
        if let Some(spec) = command.spec {
            self.spec = *spec;
        }
        if command.anew {
            self.placement = self.spec.plugin.placement;
        }
        if command.input.is_none() {
            if let Some(granted) = command.granted {
                self.grant(granted);
            }
            self.declare(self.absent());
            // Whoever asked may be gone.
            let _ = command.done.send(self.publish());
            return None;
        }
        match command.input {
            Some(Input::Quarantine) => self.quarantine = command.quarantine,
            // Whether it should run is as it was before.
            Some(Input::Release) => self.quarantine = None,
            input => {
                let wanted = input != Some(Input::Stop);
                with(&self.board, |board| board.status.wanted = wanted);
                if wanted {
                    self.guard();
                }
            }
        }
        self.waiting.push(command.done);
        command.input
    }

    /// A timer has two meanings: a start that takes too long is a death, all
    /// else is for the supervisor.
    async fn elapsed(&mut self) -> Option<Input> {
        if self.supervisor.state() != PluginState::Starting {
            return Some(Input::Elapsed);
        }
        let limit = self.spec.plugin.restart.start_timeout;
        self.reason = Some(format!("did not report ready within {} ms", limit.as_millis()));
        if matches!(self.running, Some(Running { body: Body::Child { .. }, .. })) {
            // Its exit follows.
            self.kill_child();
            return None;
        }
        self.lose("it did not start").await;
        Some(Input::Died)
    }

    async fn hear(&mut self, life: Life) -> Option<Input> {
        match life {
            Life::Sandboxed(report) => {
                self.sandboxed(report);
                None
            }
            Life::Described(descriptor) => match self.described(descriptor.into()) {
                Ok(()) => None,
                Err(refusal) => Some(self.reject(refusal, "it claims what is not its own").await),
            },
            // Said once more, or too late, it means nothing.
            Life::Ready if self.supervisor.state() != PluginState::Starting => None,
            Life::Ready => {
                self.timer = None;
                match self.open() {
                    Ok(()) => Some(Input::Ready),
                    Err(refusal) => Some(self.reject(refusal, "it cannot own its events").await),
                }
            }
            Life::Drained => Some(Input::Drained),
            Life::Pong => {
                self.pong();
                None
            }
            Life::Refused(refusal) => {
                self.reason = Some(reason_of(refusal));
                let starting = self.supervisor.state() == PluginState::Starting;
                if starting && matches!(self.running, Some(Running { body: Body::Actor(_), .. })) {
                    self.lose("it did not start").await;
                    return Some(Input::Died);
                }
                // A child ends by itself.
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

    /// Takes the host's word on its sandbox: only the first one, before the
    /// plugin could say it. From now on it is known to run.
    fn sandboxed(&mut self, report: Report) {
        if self.sandbox.is_none() {
            self.sandbox = Some(report);
            self.tell_started();
        }
    }

    /// Ends a generation that says what it may not.
    async fn reject(&mut self, refusal: Refusal, why: &str) -> Input {
        self.reason = Some(reason_of(refusal));
        self.kill_child();
        self.lose(why).await;
        Input::Died
    }

    /// Takes what it says of itself, once that is found to be its to say.
    fn described(&self, descriptor: Arc<Descriptor>) -> Result<(), Refusal> {
        if let Some(running) = &self.running {
            claims::check(&self.spec.plugin, &descriptor, |name| running.guest().outer(name))?;
        }
        with(&self.board, |board| {
            board.status.version.clone_from(&descriptor.version);
            board.status.about.clone_from(&descriptor.about);
            board.descriptor = Some(descriptor);
        });
        Ok(())
    }

    async fn step(&mut self, mut input: Input) {
        loop {
            let before = self.supervisor.state();
            let now_ms = self.means.hub.now_ms();
            let action = self.supervisor.step(input, now_ms, jitter::fraction());
            let after = self.supervisor.state();
            if input == Input::Died && before != PluginState::Draining {
                self.record_death(now_ms);
            }
            self.publish();
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
                        self.lose(self.wish()).await;
                        input = Input::Died;
                        continue;
                    }
                }
                Action::Wait(delay) => self.timer = Some(Instant::now() + delay),
                Action::Hold => {
                    let reason = self.reason.clone().unwrap_or_default();
                    tracing::error!(plugin = self.spec.plugin.name, "held after repeated failures: {reason}");
                    let name = self.spec.plugin.name.clone();
                    self.means.hub.tell(own::PLUGIN_HELD, &PluginTrouble { name, reason });
                }
            }
            self.announce(before, after);
            return;
        }
    }

    /// Why an instance ends that nothing is wrong with.
    fn wish(&self) -> &'static str {
        if self.quarantine.is_some() { "it is quarantined" } else { "it was stopped" }
    }
}

/// Why it did not start, and what can be done, where it said so.
fn reason_of(refusal: Refusal) -> String {
    match refusal.hint.is_empty() {
        true => refusal.message,
        false => format!("{}; {}", refusal.message, refusal.hint),
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
