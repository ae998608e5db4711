//! Forgets consumers of which nothing was heard for long, in the background.

use std::{
    rc::{Rc, Weak},
    time::Duration,
};

use ksi_sdk::{Ctx, prelude::Refusal};

use super::{Facts, cursor::Cursor};
use crate::{
    engine::Engine,
    record::{Batch, keys},
};

/// Pause between two walks.
const PAUSE: Duration = Duration::from_secs(3600);

/// Cursors that are read at a time.
const PAGE: usize = 1_000;

/// Walks now and then, for as long as this journal is open; holds it during a
/// walk only.
pub async fn sweep(facts: Rc<Facts>, engine: Weak<Engine>, keep: Duration, ctx: Ctx) {
    loop {
        let Some(engine) = engine.upgrade().filter(|engine| engine.health().accepting) else { return };
        if let Err(refusal) = facts.sweep_once(&engine, keep, &ctx).await {
            ctx.warn(&format!("cannot forget old consumers: {}", refusal.message));
        }
        drop(engine);
        ctx.sleep(PAUSE).await;
    }
}

impl Facts {
    pub(super) async fn sweep_once(&self, engine: &Engine, keep: Duration, ctx: &Ctx) -> Result<(), Refusal> {
        let (mut after, mut known) = (None, 0);
        loop {
            let page = engine.scan(&[keys::CURSOR], after.as_deref(), PAGE).await?;
            for (key, value) in &page {
                known += 1;
                if self.fate(key, value, keep, ctx.now_ms()).is_none() {
                    continue;
                }
                // It may have moved since it was read. Nothing does between this look and the commit.
                let newest = engine.latest(key).await?;
                if let Some(batch) = newest.and_then(|value| self.fate(key, &value, keep, ctx.now_ms())) {
                    known -= batch.changes().iter().filter(|change| change.value.is_none()).count();
                    engine.commit(batch)?;
                }
            }
            match page.into_iter().next_back() {
                Some((last, _)) => after = Some(last),
                None => break,
            }
        }
        self.known.set(Some(known));
        Ok(())
    }

    /// What is to be changed about a cursor, if anything: one that is held counts
    /// as seen now, and so does one that has no time yet.
    fn fate(&self, key: &[u8], value: &[u8], keep: Duration, now_ms: u64) -> Option<Batch> {
        let cursor = Cursor::decode(value)?;
        let is_held = self.consumers.borrow().contains_key(key);
        match cursor.seen_ms.filter(|_| !is_held) {
            Some(seen_ms) if u128::from(now_ms.saturating_sub(seen_ms)) >= keep.as_millis() => {
                let mut batch = Batch::new();
                batch.delete(key.to_vec());
                Some(batch)
            }
            Some(_) => None,
            None => cursor.is_stale(now_ms).then(|| Cursor::at(cursor.seq, now_ms).put(key)),
        }
    }
}
