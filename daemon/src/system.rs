//! What the daemon answers itself: `system:*`, `plugin:*`, `config:*` and
//! `token:*`.
//!
//! One task takes these requests in turn; those that wait for a plugin go on
//! in tasks of their own. None of them is lost to a plugin that hangs.

mod catalog;
mod health;
mod specs;

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError},
    time::Duration,
};

use ksi_kernel::{Declared, Envelope};
use ksi_protocol::{
    Bytes, Code, EventName, Refusal, decode, encode,
    system::{
        Counters, Describe, Discover, Freeze, Freezing, Frozen, Health, PluginList, PluginLoad, PluginName,
        PluginState, PluginStatus, Quarantine, Shutdown, Status, StopInstance,
    },
    token::{CreateToken, RevokeToken, Tokens},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;

use crate::{
    config::{Config, Current},
    hub::{Hub, SystemRequest},
    memory::resident_bytes,
    orders::{self, Order},
    plugin::{actor::apart, fleet::Fleet, supervisor::Input},
    redaction,
    session::Sessions,
    takeover::Program,
    trail::Trail,
};

/// Namespaces in which only the daemon answers and speaks.
pub const NAMESPACES: [&str; 4] = ["system", "plugin", "config", "token"];

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

/// The request of `system:ready`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ready {
    #[serde(default)]
    timeout_ms: Option<u64>,
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
            let SystemRequest { token, envelope } = self.hub.asked().await;
            let event = envelope.event.as_str();
            match event {
                "system:ready" | "system:restart" | "system:freeze" | "config:reload" => {
                    self.later(token, envelope);
                }
                _ if event.starts_with("plugin:") || event.starts_with("token:") => {
                    self.later(token, envelope);
                }
                _ => self.hub.reply(token, self.now(event, &envelope.data)),
            }
            tokio::task::coop::consume_budget().await;
        }
    }

    fn later(self: &Arc<Self>, token: u64, envelope: Box<Envelope>) {
        let system = self.clone();
        let answering = async move {
            let answer = match envelope.event.namespace() {
                "token" => system.tokens(envelope).await,
                _ if envelope.event.as_str().starts_with("plugin:instance:") => {
                    system.instances(&envelope).await
                }
                _ => system.wait_for(envelope.event.as_str(), &envelope.data).await,
            };
            system.hub.reply(token, answer);
        };
        self.waiting.spawn(apart(answering));
    }

    /// `token:*`, which read and write a file.
    async fn tokens(&self, envelope: Box<Envelope>) -> Result<Bytes, Refusal> {
        let hub = self.hub.clone();
        let takes_away = envelope.event.as_str() == "token:revoke";
        let work = move || {
            let (identity, now_ms) = (&hub.identity, hub.now_ms());
            let (data, asker) = (&envelope.data, &envelope.caller.principal);
            match envelope.event.as_str() {
                "token:create" => answer(&identity.create(asker, decode::<CreateToken>(data)?, now_ms)?),
                "token:list" => {
                    nothing(data)?;
                    answer(&Tokens { tokens: identity.list(asker, now_ms)? })
                }
                "token:revoke" => {
                    answer(&identity.revoke(asker, &decode::<RevokeToken>(data)?.id, now_ms)?)
                }
                event => {
                    Err(Refusal::new(Code::UnknownEvent, format!("the daemon does not answer `{event}`")))
                }
            }
        };
        let done = tokio::task::spawn_blocking(work).await;
        if takes_away && matches!(done, Ok(Ok(_))) {
            self.hub.end_revoked();
        }
        done.unwrap_or_else(|_| Err(Refusal::new(Code::Internal, "it panicked; the log says more")))
    }

    /// What can be answered at once.
    fn now(&self, event: &str, data: &[u8]) -> Result<Bytes, Refusal> {
        match event {
            "system:health" => {
                nothing(data)?;
                self.fleet.look();
                answer(&self.health())
            }
            "system:status" => {
                nothing(data)?;
                self.fleet.look();
                answer(&self.status())
            }
            "system:discover" => {
                let discover: Discover = decode(data)?;
                answer(&catalog::discover(&self.fleet, &self.config(), &discover)?)
            }
            "system:describe" => {
                let describe: Describe = decode(data)?;
                answer(&catalog::describe(&self.fleet, &self.config(), &describe.event)?)
            }
            "system:shutdown" => {
                let shutdown: Shutdown = decode(data)?;
                let stop = Stop {
                    reason: "system:shutdown was asked for".into(),
                    grace: shutdown.grace_ms.map(Duration::from_millis),
                    again: false,
                };
                // A stop that is under way already is as good.
                let _ = self.stop.try_send(stop);
                Ok(ksi_protocol::empty())
            }
            "config:show" => {
                nothing(data)?;
                let config = self.config();
                answer(&json!({"config": config.as_json(), "sources": config.origins()}))
            }
            _ => Err(Refusal::new(Code::UnknownEvent, format!("the daemon does not answer `{event}`"))),
        }
    }

    /// `plugin:instance:*`: what a plugin asks of instances of its own. Whose they
    /// are, the daemon knows.
    async fn instances(&self, envelope: &Envelope) -> Result<Bytes, Refusal> {
        let Some(manager) = envelope.origin.strip_prefix("plugin:") else {
            return Err(Refusal::new(Code::Denied, format!("only a plugin asks `{}`", envelope.event)));
        };
        let data = &envelope.data;
        match envelope.event.as_str() {
            "plugin:instance:start" => answer(&self.fleet.start_instance(manager, decode(data)?).await?),
            "plugin:instance:stop" => {
                answer(&self.fleet.stop_instance(manager, &decode::<StopInstance>(data)?.key).await?)
            }
            _ => {
                nothing(data)?;
                answer(&PluginList { plugins: self.fleet.instances(manager)? })
            }
        }
    }

    /// What takes its time.
    async fn wait_for(&self, event: &str, data: &[u8]) -> Result<Bytes, Refusal> {
        let name = || decode::<PluginName>(data).map(|request| request.name);
        match event {
            "system:ready" => {
                let Ready { timeout_ms } = decode(data)?;
                self.ready(timeout_ms.map(Duration::from_millis)).await
            }
            "system:restart" => {
                let Shutdown { grace_ms } = decode(data)?;
                self.program.check().await?;
                let (reason, grace) = ("system:restart was asked for", grace_ms.map(Duration::from_millis));
                // A stop that is under way already is refused to clients anyway.
                let _ = self.stop.try_send(Stop { reason: reason.into(), grace, again: true });
                Ok(ksi_protocol::empty())
            }
            "system:freeze" => answer(&self.freeze(decode(data)?).await?),
            "config:reload" => {
                nothing(data)?;
                self.reload().await
            }
            "plugin:list" => {
                nothing(data)?;
                answer(&PluginList { plugins: self.fleet.list() })
            }
            "plugin:inspect" => answer(&self.fleet.inspect(&name()?)?),
            "plugin:probe" => answer(&self.fleet.probe(&name()?).await?),
            "plugin:load" => answer(&self.fleet.load(decode::<PluginLoad>(data)?).await?),
            "plugin:unload" => answer(&self.fleet.unload(&name()?).await?),
            "plugin:quarantine" => {
                let Quarantine { name, reason } = decode(data)?;
                let reason = reason.unwrap_or_else(|| "no reason was given".into());
                answer(&self.fleet.quarantine(&name, reason).await?)
            }
            "plugin:release" => answer(&self.fleet.release(&name()?).await?),
            "plugin:reload" => answer(&self.fleet.command(&name()?, Input::Restart, true).await?),
            "plugin:restart" => answer(&self.fleet.command(&name()?, Input::Restart, false).await?),
            _ => Err(Refusal::new(Code::UnknownEvent, format!("the daemon does not answer `{event}`"))),
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

    fn status(&self) -> Status {
        let figures = self.hub.kernel.figures();
        Status {
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
        }
    }

    /// Answers once no plugin is starting any more.
    async fn ready(&self, timeout: Option<Duration>) -> Result<Bytes, Refusal> {
        let deadline = tokio::time::Instant::now() + timeout.unwrap_or(Duration::from_secs(60));
        loop {
            let changed = self.fleet.changed();
            let health = self.health();
            if !self.fleet.list().iter().any(is_starting) {
                return answer(&health);
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
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
    async fn freeze(&self, Freeze { on, reason }: Freeze) -> Result<Freezing, Refusal> {
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
            self.hub.tell("system:frozen", &json!({ "reason": reason }));
        } else {
            self.hub.kernel.freeze(None);
            if was {
                tracing::warn!("frozen no longer");
                self.hub.tell("system:thawed", &json!({}));
            }
        }
        Ok(Freezing { frozen: on, in_flight: self.hub.kernel.in_flight() })
    }

    async fn reload(&self) -> Result<Bytes, Refusal> {
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
        answer(&json!({
            "changed": changes.changed,
            "needs_restart": changes.needs_restart,
            "plugins": changes.plugins,
        }))
    }
}

/// What those hear who are stopped by a freeze.
pub(crate) fn frozen(reason: &str) -> Refusal {
    Refusal::new(Code::Unavailable, format!("KSI is frozen: {reason}"))
        .retry_after_ms(1000)
        .hint("only reading and administration go on; `ksi thaw` ends it")
        .details(json!({ "frozen": true }))
}

/// Whether the daemon itself answers requests for an event.
pub(crate) fn answers(event: &str) -> bool {
    specs::requests().any(|spec| spec.event == event)
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
        specs::requests().filter_map(|spec| EventName::parse(spec.event).ok()).collect();
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
        .filter(|name| !of_a_plugin(name.namespace()) && !answers(name.as_str()))
        .map(|name| hub.identity.declared(config, name.clone(), name.as_str()))
        .collect();
    // Who asks for one waits until it expires: nobody may ever answer it.
    hub.kernel.declare("config", &facts, Refusal::new(Code::NoOwner, "no plugin answers this event"));
}

fn answer<T: Serialize>(value: &T) -> Result<Bytes, Refusal> {
    encode(value).map_err(|error| Refusal::new(Code::Internal, format!("cannot encode the answer: {error}")))
}

/// The payload of an event that takes nothing.
fn nothing(data: &[u8]) -> Result<(), Refusal> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}
    decode::<Nothing>(data).map(|Nothing {}| ())
}
