//! What the daemon answers on its own namespaces, typed for the client
//! library, the CLI and the monitor.

mod config;
mod discovery;
mod facts;

use serde::{Deserialize, Serialize};

use crate::descriptor::{FactSpec, RequestSpec};

pub use config::{ConfigChanges, ConfigShown};
pub use discovery::{Describe, Discover, Discovery, EventInfo, EventKind};
pub use facts::{PluginBorn, PluginNamed, PluginTrouble, Reason, Started};

/// The payload of what takes nothing, answers nothing or says nothing but its
/// name: `{}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// The request of `system:ready`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Ready {
    /// Longest wait, milliseconds; 60,000 without it.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
}

/// `system:health`: is it alive, ready, whole?
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Health {
    /// The worst of all components, or `stopping`.
    pub status: HealthStatus,
    /// Whether it serves: nothing that should run is starting any more, and the
    /// daemon does not stop. That it answers at all shows that it is alive.
    #[serde(default)]
    pub ready: bool,
    /// Why it is not `ok`, one sentence each.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// Its parts, by name: every plugin that should run, and what of the daemon
    /// itself can fail.
    #[serde(default)]
    pub components: Vec<Component>,
    /// Why and since when only reading and administration go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<Frozen>,
    /// `ksid` version.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Milliseconds since the daemon started.
    pub uptime_ms: u64,
    /// Plugins that are ready.
    pub plugins_ready: usize,
    /// Plugins that should be ready.
    pub plugins_total: usize,
}

/// A freeze that is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Frozen {
    /// Why, one sentence.
    pub reason: String,
    /// Since when, milliseconds since 1970.
    pub since_ms: u64,
}

/// The request of `system:freeze`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Freeze {
    /// Whether to freeze or to go on.
    pub on: bool,
    /// Why, one sentence; whoever is stopped by it hears it.
    #[serde(default)]
    pub reason: Option<String>,
}

/// The answer of `system:freeze`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Freezing {
    /// Whether KSI is frozen now.
    pub frozen: bool,
    /// Requests that were under way and go on to their end.
    pub in_flight: usize,
}

/// One part of the whole in `system:health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Component {
    /// Name of a plugin, `log` for the daemon's own log, or `freeze` while that is
    /// on.
    pub name: String,
    /// How it does.
    pub status: HealthStatus,
    /// Why it is not `ok`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// How something does, from well to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// Everything that should run is ready.
    Ok,
    /// Some plugins have not reported ready yet.
    Starting,
    /// Everything runs, but something says of itself that it cannot do all that
    /// it is there for.
    Degraded,
    /// Something that should run does not; the rest serves.
    Unhealthy,
    /// Draining.
    Stopping,
}

impl HealthStatus {
    /// As it is written on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Starting => "starting",
            Self::Degraded => "degraded",
            Self::Unhealthy => "unhealthy",
            Self::Stopping => "stopping",
        }
    }
}

/// `system:status`: health and figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Status {
    /// As `system:health`.
    pub health: Health,
    /// Path of the socket.
    pub socket: String,
    /// Directory of logs, plugin state and the like.
    pub state_dir: String,
    /// Changes with every start.
    pub boot: String,
    /// Resident memory of the daemon, bytes.
    pub rss_bytes: u64,
    /// Connected clients.
    pub sessions: usize,
    /// Active subscriptions.
    pub subscriptions: usize,
    /// Requests under way.
    pub in_flight: usize,
    /// Totals since the start.
    pub counters: Counters,
    /// All plugins.
    pub plugins: Vec<PluginStatus>,
}

/// Totals since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Counters {
    /// Requests routed.
    pub requests: u64,
    /// Events emitted.
    pub emits: u64,
    /// Events handed to subscriptions.
    pub deliveries: u64,
    /// Requests refused, whatever the code.
    pub refusals: u64,
    /// Live events dropped because their reader was slow.
    pub dropped: u64,
}

/// One plugin in `system:status` and `plugin:list`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PluginStatus {
    /// Name in the manifest.
    pub name: String,
    /// Version, once known.
    #[serde(default)]
    pub version: String,
    /// What it does, once known.
    #[serde(default)]
    pub about: String,
    /// Where its supervisor stands.
    pub state: PluginState,
    /// Whether it should run: enabled, and not stopped by an operator.
    #[serde(default)]
    pub wanted: bool,
    /// `in-process` or `child`.
    pub placement: Placement,
    /// Sandbox level in force for a child (`L0` to `L5`), as its host has tried;
    /// `none` in-process, empty while it is not known.
    pub sandbox: String,
    /// Layers that are off or incomplete, as `layer: why`.
    #[serde(default)]
    pub sandbox_lacks: Vec<String>,
    /// Process id of the child.
    #[serde(default)]
    pub pid: Option<u32>,
    /// Counts starts; part of the plugin's identity in routing.
    pub generation: u32,
    /// Restarts since the daemon started.
    pub restarts: u32,
    /// Milliseconds since it became ready.
    #[serde(default)]
    pub ready_ms: Option<u64>,
    /// Resident memory of the child, bytes.
    #[serde(default)]
    pub rss_bytes: Option<u64>,
    /// Requests it holds.
    pub in_flight: usize,
    /// Requests it has answered.
    pub handled: u64,
    /// Library file.
    pub library: String,
    /// Why it died last, or why it is held.
    #[serde(default)]
    pub last_error: Option<String>,
    /// What it says that it cannot do at present.
    #[serde(default)]
    pub degraded: Option<String>,
    /// Why an operator has quarantined it.
    #[serde(default)]
    pub quarantined: Option<String>,
    /// What its library asks to hear or to have a word on and the manifest does
    /// not grant, as `listens test:*`: it runs without. A library that is not in
    /// the manifest is granted its own events alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_granted: Vec<String>,
}

/// Where a plugin's supervisor stands. Up is not ready: `starting` means that
/// it runs, `ready` that it said so itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it, and the supervisor documents the table")]
pub enum PluginState {
    Stopped,
    Starting,
    Ready,
    Draining,
    Backoff,
    Held,
    Quarantined,
}

impl PluginState {
    /// As it is written on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Backoff => "backoff",
            Self::Held => "held",
            Self::Quarantined => "quarantined",
        }
    }
}

/// Where a plugin runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// Inside the daemon: trusted, fastest.
    InProcess,
    /// In a supervised process of its own.
    Child,
}

impl Placement {
    /// As it is written in the manifest.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InProcess => "in-process",
            Self::Child => "child",
        }
    }
}

/// `plugin:list`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PluginList {
    /// All plugins, by name.
    pub plugins: Vec<PluginStatus>,
}

/// Names a plugin: the request of `plugin:inspect|unload|reload|restart|release`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PluginName {
    /// Name in the manifest.
    pub name: String,
}

/// `plugin:load`: a library that is not in the manifest, or a manifest plugin
/// that was unloaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PluginLoad {
    /// Absolute path of a library, or the name of a plugin of the manifest.
    pub library: String,
    /// Where it shall run; a library that is not in the manifest defaults to
    /// `child`.
    #[serde(default)]
    pub placement: Option<Placement>,
}

/// `plugin:instance:start`, which a plugin asks for an instance of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct StartInstance {
    /// Which one, 1 to 48 lower-case letters, digits, `_` and `-`: its name is that
    /// of the plugin, `@` and this.
    pub key: String,
    /// Takes the place of keys of the plugin's own configuration; `null` takes
    /// a key away.
    #[serde(default)]
    pub config: serde_json::Map<String, serde_json::Value>,
}

/// `plugin:instance:stop`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct StopInstance {
    /// Which one.
    pub key: String,
}

/// Whether a text can be the key of an instance: 1 to 48 lower-case letters,
/// digits, `_` and `-`.
#[must_use]
pub fn is_instance_key(text: &str) -> bool {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
    (1..=48).contains(&text.len()) && text.bytes().all(allowed)
}

/// The request of `plugin:quarantine`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Quarantine {
    /// Name of the plugin.
    pub name: String,
    /// Why, one sentence; whoever asks it for something hears it.
    #[serde(default)]
    pub reason: Option<String>,
}

/// `plugin:inspect`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PluginInspection {
    /// As in the list.
    pub status: PluginStatus,
    /// Requests that it answers.
    pub requests: Vec<RequestSpec>,
    /// Facts that it emits.
    pub emits: Vec<FactSpec>,
    /// Patterns that it listens to.
    pub listens: Vec<String>,
    /// Patterns of what it may request.
    pub may_call: Vec<String>,
    /// The last deaths, newest last.
    pub deaths: Vec<Death>,
}

/// One death of a plugin.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Death {
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// Signal, exit code, panic, hang or broken contract.
    pub reason: String,
    /// Which of its starts this was.
    #[serde(default)]
    pub generation: u32,
    /// The signal that ended its process, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// The exit code of its process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// Whether the system has killed it for lack of memory, as far as that can
    /// be told.
    #[serde(default)]
    pub out_of_memory: bool,
    /// The most memory that its process ever had, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_bytes: Option<u64>,
    /// The last lines that it logged or wrote to its standard error.
    #[serde(default)]
    pub last_words: Vec<String>,
}

/// The request of `system:shutdown` and `system:restart`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Shutdown {
    /// Time that requests in flight may take to finish, milliseconds.
    #[serde(default)]
    pub grace_ms: Option<u64>,
}
