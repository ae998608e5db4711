//! What plugins there are, and what is known of each: this only looks.

use std::sync::Arc;

use ksi_protocol::{
    Descriptor, Refusal,
    system::{PluginInspection, PluginStatus},
};

use super::{Fleet, instances::Ward};
use crate::plugin::board::{figures, with};

impl Fleet {
    /// All plugins, by name.
    #[must_use]
    pub fn list(&self) -> Vec<PluginStatus> {
        let now_ms = self.means.hub.now_ms();
        self.lock().values().map(|kept| with(&kept.board, |board| figures(board, now_ms))).collect()
    }

    /// What plugins say of themselves, but for instances, which say what their
    /// managers do.
    #[must_use]
    pub fn descriptors(&self) -> Vec<(PluginStatus, Option<Arc<Descriptor>>, Option<String>)> {
        let config = self.config();
        let now_ms = self.means.hub.now_ms();
        let alias = |name: &str| config.plugins.get(name).and_then(|plugin| plugin.namespace.clone());
        self.lock()
            .values()
            .filter(|kept| kept.ward.is_none())
            .map(|kept| {
                with(&kept.board, |board| {
                    (figures(board, now_ms), board.descriptor.clone(), alias(&board.status.name))
                })
            })
            .collect()
    }

    /// Everything about one plugin.
    ///
    /// # Errors
    ///
    /// `not_found`.
    pub fn inspect(&self, name: &str) -> Result<PluginInspection, Refusal> {
        let now_ms = self.means.hub.now_ms();
        let config = self.config();
        let ward = self.lock().get(name).and_then(|kept| kept.ward.clone());
        let entry = config.plugins.get(ward.as_ref().map_or(name, Ward::manager));
        let may_call = entry.map(|plugin| plugin.may_call.clone()).unwrap_or_default();
        let inspection = self.lock().get(name).map(|kept| {
            with(&kept.board, |board| {
                let descriptor = board.descriptor.clone();
                PluginInspection {
                    status: figures(board, now_ms),
                    requests: descriptor.as_ref().map(|d| d.requests.clone()).unwrap_or_default(),
                    emits: descriptor.as_ref().map(|d| d.emits.clone()).unwrap_or_default(),
                    listens: descriptor
                        .map(|d| d.listens.iter().map(ToString::to_string).collect())
                        .unwrap_or_default(),
                    may_call: may_call.iter().map(ToString::to_string).collect(),
                    deaths: board.deaths.iter().cloned().collect(),
                }
            })
        });
        inspection.ok_or_else(|| self.unknown(name))
    }
}
