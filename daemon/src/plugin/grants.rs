//! What a plugin is granted. That of a child is made of its configuration and of
//! what the daemon knows of this machine, anew for each start.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use ksi_identity::Rights;
use ksi_protocol::{
    sandbox::{Cgroup, Layer, Limits, Sandbox},
    space,
};

use super::{
    cgroup::{Cgroups, Group},
    spec::Spec,
};
use crate::config::{Current, Plugin};

/// What any plugin may write, so that no other is led by what it puts there.
#[derive(Debug)]
pub struct Writable {
    config: Current,
    /// Parent of the plugins' own directories.
    own: PathBuf,
    /// What was ever granted: whoever runs has what it was started with, and what
    /// it has put there stays.
    granted: Mutex<BTreeSet<String>>,
}

impl Writable {
    /// What the configuration that is in force says, now and later.
    #[must_use]
    pub fn new(config: Current, own: PathBuf) -> Arc<Self> {
        Arc::new(Self { config, own, granted: Mutex::default() })
    }

    /// All of it.
    fn paths(&self) -> Vec<String> {
        let config = self.config.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut granted = self.granted.lock().unwrap_or_else(PoisonError::into_inner);
        granted.extend(config.plugins.values().flat_map(|plugin| plugin.sandbox.write.iter().cloned()));
        let own = std::fs::read_dir(&self.own).into_iter().flatten().flatten();
        granted.iter().cloned().chain(own.map(|entry| entry.path().display().to_string())).collect()
    }
}

/// What a child is granted, but for its control group.
#[must_use]
pub fn of(spec: &Spec, writable: &Writable) -> Sandbox {
    let (grants, limits) = (&spec.plugin.sandbox, &spec.plugin.limits);
    let mut read = grants.read.clone();
    read.extend(spec.instance.iter().map(|keyed| keyed.home.display().to_string()));
    if let Some(models) = &spec.models {
        // Granted even while there is none in it. Where it cannot be made,
        // nothing is in it.
        let _ = std::fs::create_dir_all(models);
        read.push(models.display().to_string());
        read.extend(links_in(models).map(|path| path.display().to_string()));
    }
    Sandbox {
        read,
        write: grants.write.clone(),
        network: grants.network.clone(),
        listen: grants.listen.clone(),
        unix: grants.unix,
        exec: grants.exec,
        gpu: grants.gpu,
        limits: Limits {
            memory_bytes: limits.memory_mb.map(|mb| mb << 20),
            files: Some(limits.files),
            file_bytes: limits.file_mb.map(|mb| mb << 20),
            processes: Some(limits.processes),
            cpu_percent: limits.cpu_percent,
        },
        disable: grants.disable.clone(),
        require: spec.plugin.require,
        writable: writable.paths(),
        hide: vec![spec.runtime_dir.display().to_string()],
        cgroup: Cgroup::default(),
    }
}

/// What is granted a plugin that runs, from its next event on.
#[derive(Debug, Clone, Default)]
pub struct Granted {
    /// What it may ask, tell, hear and have a word on.
    pub rights: Rights,
    /// Whether it may speak of tenants that it was not asked for.
    pub every_tenant: bool,
    /// Whether what it may have a word on passes before it has been ready.
    pub fail_open: bool,
    /// Whether it is enabled; one that is not guards nothing before it has been ready.
    pub enabled: bool,
}

impl Granted {
    /// What the configuration of a plugin grants it.
    #[must_use]
    pub fn by(plugin: &Plugin) -> Self {
        let &Plugin { every_tenant, fail_open, enabled, .. } = plugin;
        Self { rights: rights(plugin), every_tenant, fail_open, enabled }
    }
}

/// What a plugin may ask, tell, hear and have a word on.
#[must_use]
pub fn rights(plugin: &Plugin) -> Rights {
    Rights {
        may_call: plugin.may_call.iter().cloned().chain([space::events()]).collect(),
        emits: plugin.emits.clone(),
        listens: plugin.listens.clone(),
        intercepts: plugin.intercepts.clone(),
    }
}

/// The links in the directory of models. They are the operator's, or the plugin
/// does not start.
fn links_in(models: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(models).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink())).map(|entry| entry.path())
}

/// Puts a child that has done nothing yet into a control group of its own, where
/// there can be one, and tells its sandbox. A group that holds the child to
/// nothing only helps to end what came of it, and is not waited for.
pub async fn put_into_group(
    cgroups: &Cgroups,
    plugin: &str,
    generation: u32,
    child: Option<u32>,
    sandbox: &mut Sandbox,
) -> Option<Group> {
    if sandbox.disable.contains(&Layer::Cgroup) {
        return None;
    }
    let (group, told) = cgroups.make(plugin, generation, &sandbox.limits);
    let holds = matches!(told, Cgroup::Holds(_));
    sandbox.cgroup = told;
    let group = group?;
    let adding = group.adding(child?);
    let adding = tokio::task::spawn_blocking(adding);
    if holds {
        let added = adding.await.unwrap_or_else(|panicked| Err(std::io::Error::other(panicked)));
        if let Err(error) = added {
            sandbox.cgroup = Cgroup::Off(format!("cannot put the child into its group: {error}"));
            return None;
        }
    }
    Some(group)
}
