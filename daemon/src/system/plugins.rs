//! `plugin:*`: what is asked of plugins, and what a plugin asks of instances of its
//! own.

use std::sync::Arc;

use ksi_protocol::{
    Code, Refusal,
    sandbox::Probe,
    system::{
        Nothing, PluginInspection, PluginList, PluginLoad, PluginName, PluginStatus, Quarantine,
        StartInstance, StopInstance,
    },
};

use super::System;
use crate::plugin::supervisor::Input;

impl System {
    pub(super) async fn list_plugins(self: Arc<Self>, Nothing {}: Nothing) -> Result<PluginList, Refusal> {
        Ok(PluginList { plugins: self.fleet.list() })
    }

    pub(super) async fn inspect_plugin(
        self: Arc<Self>,
        ask: PluginName,
    ) -> Result<PluginInspection, Refusal> {
        self.fleet.inspect(&ask.name)
    }

    pub(super) async fn probe_plugin(self: Arc<Self>, ask: PluginName) -> Result<Probe, Refusal> {
        self.fleet.probe(&ask.name).await
    }

    pub(super) async fn load_plugin(self: Arc<Self>, ask: PluginLoad) -> Result<PluginStatus, Refusal> {
        self.fleet.load(ask).await
    }

    pub(super) async fn unload_plugin(self: Arc<Self>, ask: PluginName) -> Result<PluginStatus, Refusal> {
        self.fleet.unload(&ask.name).await
    }

    pub(super) async fn reload_plugin(self: Arc<Self>, ask: PluginName) -> Result<PluginStatus, Refusal> {
        self.fleet.command(&ask.name, Input::Restart, true).await
    }

    pub(super) async fn restart_plugin(self: Arc<Self>, ask: PluginName) -> Result<PluginStatus, Refusal> {
        self.fleet.command(&ask.name, Input::Restart, false).await
    }

    pub(super) async fn quarantine_plugin(self: Arc<Self>, ask: Quarantine) -> Result<PluginStatus, Refusal> {
        let reason = ask.reason.unwrap_or_else(|| "no reason was given".into());
        self.fleet.quarantine(&ask.name, reason).await
    }

    pub(super) async fn release_plugin(self: Arc<Self>, ask: PluginName) -> Result<PluginStatus, Refusal> {
        self.fleet.release(&ask.name).await
    }

    pub(super) async fn start_instance(
        self: Arc<Self>,
        origin: Arc<str>,
        ask: StartInstance,
    ) -> Result<PluginStatus, Refusal> {
        self.fleet.start_instance(manager(&origin)?, ask).await
    }

    pub(super) async fn stop_instance(
        self: Arc<Self>,
        origin: Arc<str>,
        ask: StopInstance,
    ) -> Result<PluginStatus, Refusal> {
        self.fleet.stop_instance(manager(&origin)?, &ask.key).await
    }

    pub(super) async fn list_instances(
        self: Arc<Self>,
        origin: Arc<str>,
        Nothing {}: Nothing,
    ) -> Result<PluginList, Refusal> {
        Ok(PluginList { plugins: self.fleet.instances(manager(&origin)?)? })
    }
}

/// The plugin that asks. Whose instances it is about, nobody needs to say.
fn manager(origin: &str) -> Result<&str, Refusal> {
    let plugin = origin.strip_prefix("plugin:");
    plugin.ok_or_else(|| Refusal::new(Code::Denied, "only a plugin has instances of its own"))
}
