//! What tests of the hub and of its plugins begin with: who there is, and a hub
//! that nobody is connected to.

use std::sync::Arc;

use ksi_kernel::Chains;

use super::Hub;
use crate::{
    config::{Config, Sources},
    identity::Identity,
};

/// The user who runs the daemon.
pub(crate) const OWNER_UID: u32 = 1000;

/// Who there is by the configuration of a file.
pub(crate) fn identity(file: &str) -> Identity {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ksi.toml");
    std::fs::write(&path, file).unwrap();
    let config = Config::load(&Sources::file(&path)).unwrap_or_else(|errors| panic!("{errors}"));
    Identity::new(&config, OWNER_UID, dir.path().join("tokens.json"))
}

/// A hub that knows those who are there.
pub(crate) fn hub_of(identity: Identity) -> Arc<Hub> {
    Hub::new(tokio::runtime::Handle::current(), identity, Chains::default())
}

/// A hub that knows nobody but the owner.
pub(crate) fn hub() -> Arc<Hub> {
    hub_of(identity(""))
}
