//! What keeps a plugin from running although it should: an operator's
//! quarantine, and the hold after too many failures; and how that ends.

use ksi_protocol::{
    Code, Refusal,
    system::{PluginState, PluginStatus},
};

use super::{Fleet, settled_after};
use crate::{
    orders::{self, Order},
    plugin::{board::with, runner::Command, supervisor::Input},
};

impl Fleet {
    /// Stops a plugin at once, and keeps it from running until it is released,
    /// also over restarts of the daemon.
    ///
    /// # Errors
    ///
    /// `not_found`, or `unavailable` where the order cannot be written down;
    /// then nothing has changed.
    pub async fn quarantine(&self, name: &str, reason: String) -> Result<PluginStatus, Refusal> {
        let found = self.lock().get(name).map(|kept| kept.commands.clone());
        let Some(commands) = found else { return Err(self.unknown(name)) };
        let order = Order { reason: reason.clone(), since_ms: self.means.hub.now_ms() };
        let (orders, plugin) = (self.means.orders.clone(), name.to_owned());
        orders::given(move || orders.quarantine(&plugin, order)).await?;
        tracing::warn!(plugin = name, "quarantined: {reason}");
        let (mut command, settled) = Command::new(Some(Input::Quarantine));
        command.quarantine = Some(reason);
        settled_after(&commands, command, settled).await
    }

    /// Lets a plugin go on that is quarantined or held; one that should run is
    /// started.
    ///
    /// # Errors
    ///
    /// `not_found`, `conflict` where nothing holds it, or the reason why it does
    /// not run although it should.
    pub async fn release(&self, name: &str) -> Result<PluginStatus, Refusal> {
        let found = self.lock().get(name).map(|kept| {
            let status = with(&kept.board, |board| board.status.clone());
            (kept.commands.clone(), status)
        });
        let Some((commands, status)) = found else { return Err(self.unknown(name)) };
        if status.state == PluginState::Held {
            return self.command(name, Input::Start, false).await;
        }
        if status.quarantined.is_none() {
            let message = format!("plugin {name} is {}, and nothing holds it", status.state.as_str());
            return Err(Refusal::new(Code::Conflict, message)
                .hint(format!("`ksi plugin restart {name}` starts it anew")));
        }
        let (orders, plugin) = (self.means.orders.clone(), name.to_owned());
        orders::given(move || orders.release(&plugin)).await?;
        let (command, settled) = Command::new(Some(Input::Release));
        let released = settled_after(&commands, command, settled).await?;
        if status.wanted { self.command(name, Input::Start, true).await } else { Ok(released) }
    }
}
