//! What the daemon answers on `config:*`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// `config:show`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ConfigShown {
    /// The configuration in force in the shape of its files, every value present
    /// and secrets masked.
    pub config: serde_json::Value,
    /// Where each value comes from: `daemon.log_level` → `ksi.toml:3`.
    pub sources: BTreeMap<String, String>,
}

/// `config:reload`: what differs between the configuration of before and the new
/// one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ConfigChanges {
    /// Keys whose value differs, `plugins.echo.config.greeting` for example.
    pub changed: Vec<String>,
    /// Those among them that take effect only when the daemon is restarted.
    pub needs_restart: Vec<String>,
    /// Plugins that must be reloaded, loaded or unloaded for the rest.
    pub plugins: BTreeSet<String>,
}
