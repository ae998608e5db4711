//! The configuration of the daemon: four layers, one result, and for every
//! value where it comes from.
//!
//! Layers, later ones win: the manifest `events.toml` that is compiled in (or
//! the file that replaces it), the user's `ksi.toml`, environment variables
//! `KSI_SECTION__KEY`, and `--set section.key=value`. Tables are merged key by
//! key; everything else, lists too, is replaced as a whole.
//!
//! What is not understood is refused, never ignored: unknown keys, wrong types
//! and bad values of all layers, and broken syntax, are reported at once, each
//! with its place and a hint. Plugin files are not looked at here, nor is the
//! free-form `config` table of a plugin, which the plugin itself checks.
//!
//! # Invariants
//!
//! * A [`Config`] exists only where every layer was understood completely.
//! * A value under a key that sounds like a secret leaves this module only in
//!   [`Plugin::config`], never in [`Config::as_json`], an error or `Debug`.

mod frozen;
mod identity;
mod layer;
mod manifest;
mod problem;
mod restart;
mod section;
mod share;
mod show;
mod tree;
mod value;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use ksi_kernel::Chains;
use ksi_protocol::{
    Pattern, limits,
    paths::Paths,
    sandbox::{Layer, Network},
    system::Placement,
    work::Policy,
};
use ksi_trust::Key;

pub use frozen::Frozen;
pub use identity::{Identity, User};
pub use problem::{Invalid, Origin, Problem};
pub use restart::{Restart, RestartPolicy};
pub use share::Share;
pub(crate) use show::is_secret;

use crate::{log, own};
use section::Effective;

/// The manifest that is compiled in, so that the daemon needs no file to
/// start.
pub const SHIPPED: &str = include_str!("../../events.toml");

/// How [`SHIPPED`] is named in messages and origins.
pub const SHIPPED_NAME: &str = "events.toml";

/// Where the layers come from.
#[derive(Debug, Clone)]
pub struct Sources {
    /// A manifest in place of the shipped one; must exist.
    pub events: Option<PathBuf>,
    /// The user's file; may be absent.
    pub file: PathBuf,
    /// Environment variables. Only names of the form `KSI_SECTION__KEY` are
    /// looked at.
    pub variables: Vec<(String, String)>,
    /// `section.key=value`, as given with `--set`, in order.
    pub sets: Vec<String>,
}

impl Sources {
    /// The sources of this process: the user's file from `paths`, the
    /// environment, and what the command line said. `KSI_EVENTS` names the
    /// manifest where the command line does not.
    #[must_use]
    pub fn of_process(paths: &Paths, events: Option<PathBuf>, sets: Vec<String>) -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
        };
        let named = || std::env::var_os("KSI_EVENTS").filter(|path| !path.is_empty()).map(PathBuf::from);
        Self {
            events: events.or_else(named),
            file: paths.config_file.clone(),
            variables: std::env::vars_os()
                .filter_map(text)
                .filter(|(name, _)| layer::is_variable(name))
                .collect(),
            sets,
        }
    }

    /// The shipped manifest and one file, nothing of the environment.
    #[must_use]
    pub fn file(path: &Path) -> Self {
        Self { events: None, file: path.to_owned(), variables: Vec::new(), sets: Vec::new() }
    }
}

/// The whole configuration.
#[derive(Clone)]
pub struct Config {
    /// The daemon itself.
    pub daemon: Daemon,
    /// What may be loaded.
    pub security: Security,
    /// Who may connect, and what each may do.
    pub identity: Identity,
    /// What one user may have, over all connections.
    pub limits: Share,
    /// Plugins by their name in the manifest.
    pub plugins: BTreeMap<String, Plugin>,
    /// Policy by event.
    pub events: BTreeMap<String, EventPolicy>,
    /// Every value with its origin, by path.
    effective: Effective,
}

/// Leaves out the values by path, among which secrets may be.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("daemon", &self.daemon)
            .field("security", &self.security)
            .field("identity", &self.identity)
            .field("limits", &self.limits)
            .field("plugins", &self.plugins)
            .field("events", &self.events)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// Reads and merges all layers.
    ///
    /// # Errors
    ///
    /// Every problem of every layer at once.
    pub fn load(sources: &Sources) -> Result<Self, Invalid> {
        layer::load(sources)
    }

    /// The policy of an event; `None` where the manifest says nothing.
    ///
    /// A plugin that runs under another namespace has its events renamed:
    /// `named` is what others call the event, `declared` what the plugin calls
    /// it. The policy of the former goes first.
    #[must_use]
    pub fn policy(&self, named: &str, declared: &str) -> Option<&EventPolicy> {
        self.events.get(named).or_else(|| self.events.get(declared))
    }
}

/// The configuration in force, which a reload replaces.
pub type Current = Arc<Mutex<Arc<Config>>>;

/// `[daemon]`: the daemon itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Daemon {
    /// Time that requests in flight may take to finish at a stop.
    pub shutdown_grace: Duration,
    /// Level of the log, as [`log::parse_level`] takes it.
    pub log_level: String,
    /// How a line of the log looks.
    pub log_format: log::Format,
    /// Size in bytes at which the log is moved aside.
    pub log_bytes_max: u64,
    /// Older logs that are kept.
    pub log_files: usize,
    /// Users who may connect, besides the one who runs the daemon and those of
    /// `[identity.users]`. They hold nothing but what a token gives them.
    pub allow_uids: Vec<u32>,
    /// Worker threads of the runtime; `None`: one for each processor.
    pub threads: Option<usize>,
    /// Clients that may be connected at once.
    pub connections_max: u32,
    /// Requests that one connection may have in flight.
    pub in_flight_max: u32,
    /// Subscriptions that one connection may hold.
    pub subscriptions_max: u32,
    /// Time a new connection has to say its first whole frame.
    pub handshake_timeout: Duration,
    /// Time for which a client may leave its socket unread while data waits.
    pub write_deadline: Duration,
    /// How far causal chains between plugins may go.
    pub chains: Chains,
}

impl Default for Daemon {
    fn default() -> Self {
        Self {
            shutdown_grace: Duration::from_secs(5),
            log_level: "info".to_owned(),
            log_format: log::Format::Text,
            log_bytes_max: 10 * 1024 * 1024,
            log_files: 3,
            allow_uids: Vec::new(),
            threads: None,
            connections_max: 1024,
            in_flight_max: limits::IN_FLIGHT_MAX,
            subscriptions_max: limits::SUBSCRIPTIONS_MAX,
            handshake_timeout: limits::HANDSHAKE_TIMEOUT,
            write_deadline: limits::WRITE_DEADLINE,
            chains: Chains::default(),
        }
    }
}

/// `[security]`: what may be loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Security {
    /// Whether plugins and models are loaded only where a lock that is signed
    /// lists their bytes.
    pub require_signed: bool,
    /// The key under `models.lock`; `None`: the one in `models.pub`.
    pub models_key: Option<Key>,
    /// The key under `plugins.lock`; `None`: the one in `plugins.pub`.
    pub plugins_key: Option<Key>,
}

/// Namespaces that the plugin that keeps work owns, whatever its name, so that who
/// asks before it has started hears that it will.
const KEEPERS_NAMESPACES: [&str; 4] = ["checkpoint", "work", "space", "audit"];

/// `[plugins.NAME]`: one instance of a plugin.
#[derive(Clone, PartialEq)]
pub struct Plugin {
    /// Its name in the manifest.
    pub name: String,
    /// Name of a file in the plugin directories, or an absolute path.
    pub library: String,
    /// Whether it is started with the daemon.
    pub enabled: bool,
    /// Where it runs.
    pub placement: Placement,
    /// The namespace that takes the place of the declared one, so that one
    /// library can run twice. `None`: its name, which the library must have, too.
    pub namespace: Option<String>,
    /// What it may request, its own namespace included.
    pub may_call: Vec<Pattern>,
    /// What it may emit.
    pub emits: Vec<Pattern>,
    /// What it may hear of others' emissions.
    pub listens: Vec<Pattern>,
    /// What it may have a word on.
    pub intercepts: Vec<Pattern>,
    /// Whether that passes before it has been ready for the first time.
    pub fail_open: bool,
    /// Whether it may tell facts of tenants that have nothing to do with it.
    pub every_tenant: bool,
    /// What it may use.
    pub limits: Limits,
    /// When and how often it is started again.
    pub restart: Restart,
    /// What it may reach from its sandbox.
    pub sandbox: Grants,
    /// The lowest sandbox level under which it may run. `None`: whatever can be
    /// had.
    pub require: Option<Layer>,
    /// Whether it keeps work: requests for durable events, and durable facts,
    /// are handed to it. Its library must say so too.
    pub keeps_work: bool,
    /// Whether it may have instances of itself, each in a child of its own.
    pub instances: bool,
    /// Handed to the plugin as it is; always an object.
    pub config: serde_json::Value,
}

impl Plugin {
    /// The namespace of its events.
    #[must_use]
    pub fn own_namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or(&self.name)
    }

    /// Whether it is the one to answer the events of a namespace.
    #[must_use]
    pub fn owns(&self, namespace: &str) -> bool {
        let kept = self.keeps_work && KEEPERS_NAMESPACES.contains(&namespace);
        (kept || self.own_namespace() == namespace) && !own::is_own(namespace)
    }
}

/// Leaves the plugin's own configuration out, which may hold secrets.
impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugin")
            .field("name", &self.name)
            .field("library", &self.library)
            .field("enabled", &self.enabled)
            .field("placement", &self.placement)
            .field("namespace", &self.namespace)
            .field("may_call", &self.may_call)
            .field("emits", &self.emits)
            .field("listens", &self.listens)
            .field("intercepts", &self.intercepts)
            .field("fail_open", &self.fail_open)
            .field("every_tenant", &self.every_tenant)
            .field("limits", &self.limits)
            .field("sandbox", &self.sandbox)
            .field("restart", &self.restart)
            .field("require", &self.require)
            .field("keeps_work", &self.keeps_work)
            .field("instances", &self.instances)
            .finish_non_exhaustive()
    }
}

/// `[plugins.NAME.sandbox]`: what a child may reach besides what every one needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    /// Files and directories that it may read, absolute.
    pub read: Vec<String>,
    /// Files and directories that it may also write, absolute.
    pub write: Vec<String>,
    /// What of the network it may reach.
    pub network: Network,
    /// TCP ports on which it may listen.
    pub listen: Vec<u16>,
    /// Whether it may open Unix sockets.
    pub unix: bool,
    /// Whether it may start programs.
    pub exec: bool,
    /// Whether it may use the graphics cards.
    pub gpu: bool,
    /// Layers that are left out, on machines where they do harm.
    pub disable: Vec<Layer>,
}

/// `[plugins.NAME.limits]`: what a plugin may use. All but the first three are
/// for a child only; inside the daemon a plugin is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Requests that it may hold; more are refused `busy`.
    pub holding: u32,
    /// Requests and emissions a second; `None`: any number.
    pub per_second: Option<u32>,
    /// Instances of it at a time.
    pub instances: usize,
    /// Address space in MiB; `None`: not limited.
    pub memory_mb: Option<u64>,
    /// Open files.
    pub files: u64,
    /// Largest file that it may write, in MiB; `None`: not limited.
    pub file_mb: Option<u64>,
    /// Processes and threads together.
    pub processes: u64,
    /// Processor time in hundredths of one processor; `None`: not limited.
    pub cpu_percent: Option<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            holding: 2048,
            per_second: None,
            instances: 16,
            memory_mb: None,
            files: 256,
            file_mb: None,
            processes: 1024,
            cpu_percent: None,
        }
    }
}

/// How an event is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// At most once; gone with the daemon.
    Live,
    /// Written to the journal before it is accepted.
    Durable,
}

impl Delivery {
    /// As it is written in the manifest.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Durable => "durable",
        }
    }
}

/// Which decisions about an event go into the audit trail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audit {
    /// All: that it was allowed, and that it was denied.
    All,
    /// That it was denied.
    Denied,
}

impl Audit {
    /// What holds where nothing else is said: what changes something is written
    /// down; what only looks (`*.read`), and what only plugins ask (`*.only`),
    /// where it is denied.
    #[must_use]
    pub fn of_permission(permission: &str) -> Self {
        let quiet = [".read", ".only"].iter().any(|end| permission.ends_with(end));
        if quiet { Self::Denied } else { Self::All }
    }

    /// As it is written in the manifest.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Denied => "denied",
        }
    }
}

/// `[events."NAMESPACE:ACTION"]`: the policy of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventPolicy {
    /// How it is delivered.
    pub delivery: Delivery,
    /// Name of the permission that it takes to ask for it or to hear of it,
    /// `system.admin` for example.
    pub permission: String,
    /// Which decisions about it go into the audit trail.
    pub audit: Audit,
    /// Whether it can be asked for while all else is frozen.
    pub frozen: Frozen,
    /// Name of the permission that it takes a client to emit it; without one,
    /// `system.admin`.
    pub emit: Option<String>,
    /// Time that a request may take where its sender names none; `None`: the
    /// general one. Of a durable event: the time of one attempt.
    pub timeout: Option<Duration>,
    /// Where it is durable: how its work is carried out and kept.
    pub work: Option<Arc<Policy>>,
}

#[cfg(test)]
mod tests;
