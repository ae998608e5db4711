//! The plugin's configuration.

use std::{collections::BTreeMap, path::PathBuf};

use ksi_provider::Capability;
use ksi_provider_http::{known::Known, server::unusable};
use ksi_sdk::{
    Secret,
    prelude::{Deserialize, Duration, Refusal},
};

/// What the command can be asked for here.
pub(crate) const CAPABILITIES: [Capability; 1] = [Capability::Chat];
/// Names that the command has for the newest model of each family.
pub(crate) const ALIASES: [&str; 3] = ["haiku", "opus", "sonnet"];
/// Longest time that may be configured: a day.
const MS_MAX: u64 = 86_400_000;

/// The `config` table of the plugin.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The program: a name that is looked for in `path`, or where it is.
    pub command: String,
    /// Further arguments. These make it answer and do nothing else.
    pub args: Vec<String>,
    /// Directories in which programs are looked for, divided by `:`; those of
    /// the plugin's environment if left out.
    pub path: Option<String>,
    /// The home directory of the command, where its account and its sessions
    /// are; the plugin's own directory if left out.
    pub home: Option<PathBuf>,
    /// A key, in place of an account in `home`.
    pub api_key: Option<Secret>,
    /// The model of requests that name none; the command's own if left out.
    pub default_model: Option<String>,
    /// Models besides the command's own names, and what is known of them.
    pub models: BTreeMap<String, Known>,
    /// Runs at once.
    pub running_max: usize,
    /// Conversations whose sessions are known at once.
    pub sessions_max: usize,
    /// How long it may take.
    pub timeouts: Timeouts,
    /// How much it may say.
    pub limits: Limits,
}

/// How long the command may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// Silence, at the beginning or in the middle.
    pub silence_ms: u64,
    /// All together, whatever a request asks for.
    pub total_ms: u64,
}

/// How much the command may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Longest line, in bytes.
    pub line_bytes: usize,
    /// All lines of a run, in bytes.
    pub answer_bytes: usize,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { silence_ms: 300_000, total_ms: 600_000 }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { line_bytes: 4 * 1024 * 1024, answer_bytes: 32 * 1024 * 1024 }
    }
}

impl Default for Config {
    fn default() -> Self {
        let args = ["--tools", "", "--strict-mcp-config", "--setting-sources", ""];
        Self {
            command: "claude".into(),
            args: args.map(str::to_owned).to_vec(),
            path: None,
            home: None,
            api_key: None,
            default_model: None,
            models: BTreeMap::new(),
            running_max: 4,
            sessions_max: 1000,
            timeouts: Timeouts::default(),
            limits: Limits::default(),
        }
    }
}

impl Config {
    /// Checks the values against their limits.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        let wide = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        for (key, value, min, max) in [
            ("running_max", wide(self.running_max), 1, 256),
            ("sessions_max", wide(self.sessions_max), 1, 1_000_000),
            ("timeouts.silence_ms", self.timeouts.silence_ms, 1, MS_MAX),
            ("timeouts.total_ms", self.timeouts.total_ms, 1, MS_MAX),
            ("limits.line_bytes", wide(self.limits.line_bytes), 256, 1 << 30),
            ("limits.answer_bytes", wide(self.limits.answer_bytes), 256, 1 << 30),
        ] {
            if !(min..=max).contains(&value) {
                let why = format!("is {value}; accepted is {min} to {max}");
                return Err(unusable(crate::NAME, key, why, "`ksi config show` prints it with its source"));
            }
        }
        Ok(())
    }
}

impl Timeouts {
    /// Time for a request that asks for one, or that its asker will not wait for
    /// beyond one.
    pub(crate) fn total(&self, asked_ms: Option<u64>, left: Option<Duration>) -> Duration {
        let most = Duration::from_millis(self.total_ms);
        let asked = asked_ms.map_or(most, Duration::from_millis);
        most.min(asked).min(left.unwrap_or(most))
    }
}
