//! What the daemon tells of its own accord.

use serde::{Deserialize, Serialize};

use super::Placement;

/// `system:started`: the daemon accepts clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Started {
    /// Names this start.
    pub boot: String,
}

/// Why the whole stops or is frozen: `system:stopping`, `system:frozen`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Reason {
    /// Why, one sentence.
    pub reason: String,
}

/// A generation of a plugin that runs or is ready: `plugin:started`,
/// `plugin:ready`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PluginBorn {
    /// Name of the plugin.
    pub name: String,
    /// Counts the starts of this plugin.
    pub generation: u32,
    /// Where it runs.
    pub placement: Placement,
    /// Sandbox level in force: `L0` to `L5`, `none` in-process.
    pub sandbox: String,
    /// Layers that are off or incomplete, each with its reason.
    pub sandbox_lacks: Vec<String>,
    /// Process id of the child.
    #[serde(default)]
    pub pid: Option<u32>,
}

/// What is wrong with a plugin: `plugin:died`, `plugin:held`,
/// `plugin:quarantined`, `plugin:degraded`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PluginTrouble {
    /// Name of the plugin.
    pub name: String,
    /// Why, one sentence.
    pub reason: String,
}

/// A plugin of which there is nothing more to say: `plugin:stopped`,
/// `plugin:released`, `plugin:recovered`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PluginNamed {
    /// Name of the plugin.
    pub name: String,
}
