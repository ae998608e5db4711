//! Libraries that the manifest does not know: how they are loaded, and forgotten.

use std::path::PathBuf;

use ksi_host::Image;
use ksi_protocol::{
    Code, Pattern, Refusal,
    system::{Placement, PluginLoad, PluginStatus},
};

use super::{Fleet, Kept};
use crate::{
    config,
    plugin::{runner::quarantined, supervisor::Input},
};

impl Fleet {
    /// Loads a library that is not in the manifest, or a plugin of the
    /// manifest that was unloaded.
    ///
    /// # Errors
    ///
    /// Says what the file is instead of a plugin, or why it does not start.
    pub async fn load(&self, load: PluginLoad) -> Result<PluginStatus, Refusal> {
        if self.lock().contains_key(&load.library) {
            self.agrees(&load)?;
            return self.command(&load.library, Input::Start, true).await;
        }
        let path = PathBuf::from(&load.library);
        if !path.is_absolute() {
            let unknown = self.unknown(&load.library);
            let hint = format!("{}; or give the absolute path of a library", unknown.hint);
            return Err(unknown.hint(hint));
        }
        let (image, _) = self.means.trust.vouch(Image::open(&path)?).await?;
        if self.lock().contains_key(&image.name) {
            return Err(Refusal::new(Code::Conflict, format!("plugin {} is there already", image.name))
                .hint(format!("`ksi plugin unload {}` first, or give it another name", image.name)));
        }
        if let Some(owner) = self.config().plugins.values().find(|plugin| plugin.owns(&image.name)) {
            let message = format!("the namespace `{}` is plugin {}'s", image.name, owner.name);
            return Err(Refusal::new(Code::Conflict, message).hint("give the library another name"));
        }
        if let Some(order) = self.means.orders.quarantined(&image.name) {
            return Err(quarantined(&image.name, &order.reason));
        }
        let placement = load.placement.unwrap_or(Placement::Child);
        let plugin = unlisted(&image.name, load.library, placement)?;
        self.keep(self.spec(plugin), false, None);
        let loaded = self.command(&image.name, Input::Start, false).await;
        if loaded.is_err() {
            self.drop_unlisted(&image.name).await;
        }
        loaded
    }

    /// Where a plugin of the manifest runs is for the manifest to say; a wish
    /// for another place is refused and not passed over.
    fn agrees(&self, load: &PluginLoad) -> Result<(), Refusal> {
        let name = &load.library;
        let config = self.config();
        let placement = config.plugins.get(name).map(|plugin| plugin.placement);
        match (load.placement, placement) {
            (Some(wish), Some(placement)) if wish != placement => Err(Refusal::new(
                Code::Conflict,
                format!("plugin {name} runs {}, as the configuration says", placement.as_str()),
            )
            .hint(format!("set plugins.{name}.placement, then `ksi reload` and `ksi plugin reload {name}`"))),
            _ => Ok(()),
        }
    }

    /// Stops a plugin. One that is not in the manifest is forgotten.
    ///
    /// # Errors
    ///
    /// `not_found`.
    pub async fn unload(&self, name: &str) -> Result<PluginStatus, Refusal> {
        let status = self.command(name, Input::Stop, false).await?;
        self.drop_unlisted(name).await;
        Ok(status)
    }

    pub(super) async fn drop_unlisted(&self, name: &str) {
        let unlisted = {
            let mut kept = self.lock();
            match kept.get(name) {
                Some(plugin) if !plugin.in_manifest => kept.remove(name),
                _ => None,
            }
        };
        if let Some(Kept { commands, task, .. }) = unlisted {
            drop(commands);
            let _ = task.await;
            self.means.hub.kernel.forget(&format!("plugin:{name}"));
        }
    }
}

/// What a plugin gets that no configuration knows: nothing but its own events.
pub(in crate::plugin) fn unlisted(
    name: &str,
    library: String,
    placement: Placement,
) -> Result<config::Plugin, Refusal> {
    if name.contains('@') {
        let message = format!("`{name}` is the name of an instance, which only its plugin starts");
        return Err(Refusal::invalid_payload(message));
    }
    let own = Pattern::parse(&format!("{name}:**"))
        .map_err(|error| Refusal::invalid_payload(format!("name of the plugin: {error}")))?;
    Ok(config::Plugin {
        name: name.into(),
        library,
        enabled: true,
        placement,
        namespace: None,
        may_call: Vec::new(),
        emits: vec![own],
        listens: Vec::new(),
        intercepts: Vec::new(),
        fail_open: false,
        every_tenant: false,
        limits: config::Limits::default(),
        restart: config::Restart::of(placement),
        sandbox: config::Grants::default(),
        require: None,
        keeps_work: false,
        instances: false,
        config: serde_json::json!({}),
    })
}
