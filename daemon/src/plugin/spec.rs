//! A plugin as it is to be run: what the manifest says of it, or made up for a
//! library that is not in it, and where its files lie.

use std::path::PathBuf;

use ksi_identity::Rights;
use ksi_protocol::EventName;

use crate::config;

/// One plugin, as it is to be run.
#[derive(Debug, Clone)]
pub struct Spec {
    /// From the manifest, or made up for a library that is not in it.
    pub plugin: config::Plugin,
    /// What it may ask, tell, hear and have a word on.
    pub rights: Rights,
    /// Where the library was found.
    pub library: PathBuf,
    /// A directory of its own.
    pub dir: PathBuf,
    /// The user's models, where it keeps models.
    pub models: Option<PathBuf>,
    /// Where the control socket lies.
    pub runtime_dir: PathBuf,
    /// Events that the manifest names; they exist before the plugin runs.
    pub known: Vec<EventName>,
    /// Where it is an instance of a plugin, and not the plugin itself.
    pub instance: Option<Keyed>,
}

impl Spec {
    /// Whether it may speak of every tenant. Whoever keeps work speaks of all whose
    /// work it keeps.
    pub(super) fn speaks_of_all(&self) -> bool {
        self.plugin.every_tenant || self.plugin.keeps_work
    }
}

/// What makes an instance of a plugin.
#[derive(Debug, Clone, PartialEq)]
pub struct Keyed {
    /// What tells it from the others.
    pub key: String,
    /// The directory of the plugin itself, which it may read.
    pub home: PathBuf,
    /// What its manager has put in the place of keys of the configuration.
    pub on_top: serde_json::Map<String, serde_json::Value>,
}
