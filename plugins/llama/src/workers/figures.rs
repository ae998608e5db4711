//! Figures of models that have processes of their own.

use std::sync::atomic::AtomicU64;

use ksi_sdk::prelude::{Ctx, Refusal, json};
use ksi_sdk::protocol::decode;
use ksi_sdk::protocol::system::PluginList;

use super::trouble::Health;
use super::{Workers, asking, encoded};
use crate::budget::resident_bytes;
use crate::metrics::{Metrics, get};

impl Workers {
    /// What the models have done, and what they cost.
    ///
    /// # Errors
    ///
    /// Those of a daemon that does not answer.
    pub(crate) async fn metrics(&self, ctx: &Ctx) -> Result<Metrics, Refusal> {
        let known: Vec<_> = {
            let wards = self.wards.borrow();
            let up = wards.values().filter(|ward| matches!(ward.health, Health::Up));
            up.map(|ward| (ward.process.clone(), ward.report.load_ms, ward.report.memory_bytes)).collect()
        };
        let nothing = encoded(&json!({}))?;
        let (mut models, mut cards) = (Vec::new(), Vec::new());
        for (process, load_ms, bytes) in known {
            // One that has died meanwhile has no figures.
            if let Ok(told) =
                asking::forward(ctx, &process.plugin, "metrics", &nothing, async |_| Ok(())).await
            {
                let Metrics { models: told, cards: seen, .. } = decode(&told)?;
                // All of them see the same.
                cards = seen;
                models.extend(told.into_iter().map(|mut model| {
                    (model.load_ms, model.memory_bytes) = (load_ms, bytes);
                    model
                }));
            }
        }
        let list: PluginList = ctx.request("plugin:instance:list", &json!({})).await?;
        let theirs: u64 = list.plugins.iter().filter_map(|plugin| plugin.rss_bytes).sum();
        let count = |counter: &AtomicU64| get(counter);
        Ok(Metrics {
            models,
            loads: count(&self.moves.loads),
            load_failures: count(&self.moves.load_failures),
            evictions: count(&self.moves.evictions),
            expirations: count(&self.moves.expirations),
            memory_bytes: self.memory_bytes(),
            resident_bytes: resident_bytes().map(|ours| ours + theirs),
            cards,
        })
    }
}
