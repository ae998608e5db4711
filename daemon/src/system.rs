//! What the daemon answers itself: `system:*`, `plugin:*`, `config:*` and
//! `token:*`.
//!
//! One task takes these requests in turn; those that wait for a plugin go on
//! in tasks of their own. None of them is lost to a plugin that hangs.

mod answers;
mod catalog;
mod health;
mod plugins;
mod tokens;

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError},
    time::Duration,
};

use ksi_kernel::Declared;
use ksi_protocol::{
    Code, EventName, Refusal,
    system::{
        ConfigChanges, ConfigShown, Counters, Describe, Discover, Discovery, EventInfo, Freeze, Freezing,
        Frozen, Health, Nothing, PluginState, PluginStatus, Ready, Reason, Shutdown, Status,
    },
};
use serde_json::json;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout_at},
};
use tokio_util::task::TaskTracker;

use crate::{
    config::{Config, Current},
    hub::Hub,
    memory::resident_bytes,
    orders::{self, Order},
    own::{self, Request},
    plugin::fleet::Fleet,
    redaction,
    session::Sessions,
    takeover::Program,
    trail::Trail,
};

/// Time that the others still have to start where the plugin that keeps work does not: those that
/// need it will not either.
const KEPT_BACK: Duration = Duration::from_secs(5);

/// Why the daemon shall stop, and how long requests may take to finish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// Who wants it.
    pub reason: String,
    /// Instead of the configured grace.
    pub grace: Option<Duration>,
    /// Whether the program is executed anew then, in the same process.
    pub again: bool,
}

/// Reads the configuration again; what the daemon was started with decides
/// how.
pub type Reread = Box<dyn Fn() -> Result<Config, String> + Send + Sync>;

/// Carries a new configuration to what can change while the daemon runs.
pub type Apply = Box<dyn Fn(&Config) + Send + Sync>;

/// The daemon's own namespaces.
pub struct System {
    hub: Arc<Hub>,
    fleet: Arc<Fleet>,
    sessions: Arc<Sessions>,
    config: Current,
    reread: Reread,
    apply: Apply,
    socket: PathBuf,
    state_dir: PathBuf,
    stop: mpsc::Sender<Stop>,
    program: Arc<Program>,
    stopping: watch::Receiver<bool>,
    trail: Arc<Trail>,
    waiting: TaskTracker,
}

/// What a [`System`] is made of.
#[expect(missing_docs, reason = "the fields are those of the system")]
pub struct Parts {
    pub hub: Arc<Hub>,
    pub fleet: Arc<Fleet>,
    pub sessions: Arc<Sessions>,
    pub config: Current,
    pub reread: Reread,
    pub apply: Apply,
    pub socket: PathBuf,
    pub state_dir: PathBuf,
    pub stop: mpsc::Sender<Stop>,
    pub program: Arc<Program>,
    pub stopping: watch::Receiver<bool>,
    pub trail: Arc<Trail>,
}

impl System {
    /// Declares and owns the daemon's events.
    ///
    /// # Errors
    ///
    /// Never in practice: nobody else owns them yet.
    pub fn new(parts: Parts) -> Result<Arc<Self>, Refusal> {
        let Parts { hub, fleet, sessions, config, reread, apply, .. } = parts;
        let Parts { socket, state_dir, stop, program, stopping, trail, .. } = parts;
        let policies = config.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let names = declare(&hub, &policies);
        hub.kernel.own(hub.daemon(), &names)?;
        Ok(Arc::new(Self {
            hub,
            fleet,
            sessions,
            config,
            reread,
            apply,
            socket,
            state_dir,
            stop,
            program,
            stopping,
            trail,
            waiting: TaskTracker::new(),
        }))
    }

    fn config(&self) -> Arc<Config> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes requests, for ever.
    pub async fn run(self: Arc<Self>) {
        loop {
            self.answer(self.hub.asked().await);
            tokio::task::coop::consume_budget().await;
        }
    }

    /// Alive, ready, whole?
    #[must_use]
    pub fn health(&self) -> Health {
        let stopping = *self.stopping.borrow();
        let frozen =
            self.fleet.orders().frozen().map(|Order { reason, since_ms }| Frozen { reason, since_ms });
        let parts = [
            ("log", crate::log::health()),
            ("trail", self.trail.trouble()),
            ("tokens", self.hub.identity.trouble()),
        ];
        health::of(&self.fleet.list(), parts, frozen, stopping, self.hub.uptime())
    }

    fn look(&self, Nothing {}: Nothing) -> Result<Health, Refusal> {
        self.fleet.look();
        Ok(self.health())
    }

    fn status(&self, Nothing {}: Nothing) -> Result<Status, Refusal> {
        self.fleet.look();
        let figures = self.hub.kernel.figures();
        Ok(Status {
            health: self.health(),
            socket: self.socket.display().to_string(),
            state_dir: self.state_dir.display().to_string(),
            boot: self.hub.boot.clone(),
            rss_bytes: resident_bytes(std::process::id()).unwrap_or(0),
            sessions: self.sessions.count(),
            subscriptions: figures.subscriptions,
            in_flight: figures.in_flight,
            counters: Counters {
                requests: figures.requests,
                emits: figures.emits,
                deliveries: figures.deliveries,
                refusals: figures.refusals,
                dropped: self.hub.dropped.load(std::sync::atomic::Ordering::Relaxed),
            },
            plugins: self.fleet.list(),
        })
    }

    fn discover(&self, ask: Discover) -> Result<Discovery, Refusal> {
        catalog::discover(&self.fleet, &self.config(), &ask)
    }

    fn describe(&self, Describe { event }: Describe) -> Result<EventInfo, Refusal> {
        catalog::describe(&self.fleet, &self.config(), &event)
    }

    fn shutdown(&self, Shutdown { grace_ms }: Shutdown) -> Result<Nothing, Refusal> {
        // A stop that is under way already is as good.
        self.stop("system:shutdown was asked for", grace_ms, false);
        Ok(Nothing {})
    }

    async fn restart(self: Arc<Self>, Shutdown { grace_ms }: Shutdown) -> Result<Nothing, Refusal> {
        self.program.check().await?;
        // A stop that is under way already is refused to clients anyway.
        self.stop("system:restart was asked for", grace_ms, true);
        Ok(Nothing {})
    }

    fn stop(&self, reason: &str, grace_ms: Option<u64>, again: bool) {
        let grace = grace_ms.map(Duration::from_millis);
        let _ = self.stop.try_send(Stop { reason: reason.into(), grace, again });
    }

    fn show(&self, Nothing {}: Nothing) -> Result<ConfigShown, Refusal> {
        let config = self.config();
        Ok(ConfigShown { config: config.as_json(), sources: config.origins() })
    }

    /// Answers once no plugin is starting any more.
    async fn ready(self: Arc<Self>, Ready { timeout_ms }: Ready) -> Result<Health, Refusal> {
        let timeout = timeout_ms.map_or(Duration::from_secs(60), Duration::from_millis);
        let deadline = Instant::now() + timeout;
        let mut kept_back = None;
        loop {
            let changed = self.fleet.changed();
            let (health, plugins) = (self.health(), self.fleet.list());
            if !plugins.iter().any(is_starting) {
                return Ok(health);
            }
            let config = self.config();
            let keeps_work =
                |plugin: &&PluginStatus| config.plugins.get(&plugin.name).is_some_and(|one| one.keeps_work);
            kept_back = match plugins.iter().find(keeps_work) {
                Some(keeper) if keeper.last_error.is_some() && keeper.state != PluginState::Ready => {
                    kept_back.or_else(|| Some(Instant::now() + KEPT_BACK))
                }
                _ => None,
            };
            let until = kept_back.map_or(deadline, |until| until.min(deadline));
            if timeout_at(until, changed).await.is_err() {
                if until < deadline {
                    return Ok(self.health());
                }
                let Health { plugins_ready, plugins_total, reasons, .. } = health;
                let ready = format!("{plugins_ready} of {plugins_total} plugins are ready");
                let message = [&[ready], &reasons[..]].concat().join("; ");
                return Err(
                    Refusal::new(Code::Timeout, message).hint("`ksi plugin list` shows which are not")
                );
            }
        }
    }

    /// Stops everything but reading and administration, or lets it go on. A
    /// freeze holds from the first moment, and is written down then; what goes on
    /// again is written down first.
    async fn freeze(self: Arc<Self>, Freeze { on, reason }: Freeze) -> Result<Freezing, Refusal> {
        let reason = reason.unwrap_or_else(|| "no reason was given".into());
        let order = on.then(|| Order { reason: reason.clone(), since_ms: self.hub.now_ms() });
        if on {
            self.hub.kernel.freeze(Some(frozen(&reason)));
        }
        let was = self.fleet.orders().frozen().is_some();
        let orders = self.fleet.orders().clone();
        orders::given(move || orders.freeze(order)).await?;
        if on {
            tracing::warn!("frozen: {reason}");
            self.hub.tell(own::FROZEN, &Reason { reason });
        } else {
            self.hub.kernel.freeze(None);
            if was {
                tracing::warn!("frozen no longer");
                self.hub.tell(own::THAWED, &Nothing {});
            }
        }
        Ok(Freezing { frozen: on, in_flight: self.hub.kernel.in_flight() })
    }

    async fn reload(self: Arc<Self>, Nothing {}: Nothing) -> Result<ConfigChanges, Refusal> {
        let config = (self.reread)().map_err(|errors| {
            Refusal::new(Code::InvalidPayload, format!("the configuration is not taken over:\n{errors}"))
                .hint("the daemon goes on with what it had")
        })?;
        redaction::learn(config.secret_values());
        let changes = self.config().changes(&config);
        (self.apply)(&config);
        self.hub.identity.configure(&config);
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
        declare(&self.hub, &self.config());
        // Not after what follows: a plugin that is being launched is waited for there.
        self.hub.end_revoked();
        self.fleet.reconfigure().await;
        Ok(changes)
    }
}

/// What those hear who are stopped by a freeze.
pub(crate) fn frozen(reason: &str) -> Refusal {
    Refusal::new(Code::Unavailable, format!("KSI is frozen: {reason}"))
        .retry_after_ms(1000)
        .hint("only reading and administration go on; `ksi thaw` ends it")
        .details(json!({ "frozen": true }))
}

/// Whether a plugin has yet to show whether it runs. One that starts again after it
/// has failed has shown that: nobody waits for it any more, and the health says why.
#[must_use]
pub fn is_starting(plugin: &PluginStatus) -> bool {
    let begins = match plugin.state {
        PluginState::Stopped => true,
        PluginState::Starting => plugin.last_error.is_none(),
        _ => false,
    };
    plugin.wanted && begins
}

/// Declares the daemon's own events and those that nobody owns; the requests
/// among them.
fn declare(hub: &Hub, config: &Config) -> Vec<EventName> {
    let names: Vec<EventName> =
        own::REQUESTS.iter().filter_map(|spec| EventName::parse(spec.event).ok()).collect();
    let declared: Vec<Declared> =
        names.iter().map(|name| hub.identity.declared(config, name.clone(), name.as_str())).collect();
    hub.kernel.declare("daemon", &declared, Refusal::new(Code::ShuttingDown, "the daemon is stopping"));
    declare_facts(hub, config);
    names
}

/// Declares what no plugin will: the facts of the daemon's own, and those of
/// clients. Only so does the kernel know what it takes to hear or emit them, and
/// whether they are durable.
fn declare_facts(hub: &Hub, config: &Config) {
    let of_a_plugin = |namespace: &str| config.plugins.values().any(|plugin| plugin.owns(namespace));
    let names = config.events.keys().filter_map(|name| EventName::parse(name).ok());
    let facts: Vec<Declared> = names
        .filter(|name| !of_a_plugin(name.namespace()) && Request::of(name.as_str()).is_none())
        .map(|name| hub.identity.declared(config, name.clone(), name.as_str()))
        .collect();
    // Who asks for one waits until it expires: nobody may ever answer it.
    hub.kernel.declare("config", &facts, Refusal::new(Code::NoOwner, "no plugin answers this event"));
}
