//! Forgets idempotency keys whose time has passed, in the background. What is
//! asked for a key does not depend on it.

use std::{rc::Weak, time::Duration};

use ksi_sdk::{Ctx, prelude::Refusal};

use super::{PAGE, Work};
use crate::{
    engine::Peek,
    ledger::Remembered,
    record::{Batch, keys},
};

/// Pause between two walks.
const PAUSE: Duration = Duration::from_secs(3600);

/// Walks now and then, for as long as the journal is open; keeps nothing of the
/// work alive.
pub(super) async fn keys(work: Weak<Work>, ctx: Ctx) {
    loop {
        ctx.sleep(PAUSE).await;
        let Some(work) = work.upgrade().filter(|work| !work.stopped.get()) else { return };
        if let Err(refusal) = work.sweep_once().await {
            ctx.warn(&format!("cannot forget old idempotency keys: {}", refusal.message));
        }
    }
}

impl Work {
    async fn sweep_once(&self) -> Result<(), Refusal> {
        let mut after = None;
        loop {
            let page = self.engine.scan(&[keys::KEY], after.as_deref(), PAGE).await?;
            let now = self.now();
            let mut batch = Batch::new();
            for (key, value) in &page {
                // Newer than what was read: used again meanwhile.
                let value = match self.engine.peek(key) {
                    Peek::Value(_, newer) => newer,
                    _ => value.clone(),
                };
                if Remembered::decode(&value).is_ok_and(|remembered| remembered.until_ms <= now) {
                    batch.delete(key.clone());
                }
            }
            if !batch.is_empty() {
                self.engine.commit(batch)?;
            }
            match page.into_iter().next_back() {
                Some((last, _)) => after = Some(last),
                None => return Ok(()),
            }
        }
    }
}
