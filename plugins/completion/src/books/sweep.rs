//! Usage of long ago is forgotten, in the background and a few rows at a time.

use std::rc::Rc;

use ksi_sdk::prelude::{Ctx, Duration, Refusal};
use serde::de::IgnoredAny;

use super::{
    Books,
    keeping::{DAY_MS, USAGE, day_key},
};

/// Rows that are forgotten together.
const ROWS: usize = 256;
/// Pause until it is looked again, and where the state could not be had.
const PAUSE: Duration = Duration::from_millis(DAY_MS);
const RETRY: Duration = Duration::from_secs(3600);

impl Books {
    /// Forgets what is older than so many days, today included, and gives up what a crash
    /// left behind: now, and every day.
    pub(crate) async fn sweep(self: &Rc<Self>, ctx: &Ctx, days: u64, is_open: impl Fn(&str) -> bool) {
        loop {
            self.give_up_old(ctx.now_ms(), &is_open);
            self.write_on(ctx);
            let pause = match forget(ctx, days).await {
                Ok(()) => PAUSE,
                Err(refusal) => {
                    ctx.debug(&format!("old usage cannot be forgotten now: {}", refusal.message));
                    RETRY
                }
            };
            ctx.sleep(pause).await;
        }
    }
}

/// The keys are in the order of their days, so what is too old comes first.
async fn forget(ctx: &Ctx, days: u64) -> Result<(), Refusal> {
    let kept = day_key((ctx.now_ms() / DAY_MS + 1).saturating_sub(days));
    let state = ctx.state();
    loop {
        let page = state.scan::<IgnoredAny>(USAGE, None, ROWS).await?;
        let old: Vec<_> = page.entries.iter().filter(|entry| &*entry.key < kept.as_bytes()).collect();
        if old.is_empty() {
            return Ok(());
        }
        old.iter().fold(state.batch(), |batch, entry| batch.delete(&entry.key)).commit().await?;
        if old.len() < page.entries.len() || !page.more {
            return Ok(());
        }
    }
}
