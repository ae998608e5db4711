//! Forgets consumers of which nothing was heard for long, in the background.

use std::{
    rc::{Rc, Weak},
    time::Duration,
};

use ksi_sdk::{Ctx, prelude::Refusal};

use super::{
    Facts,
    cursor::{Cursor, PAGE},
};
use crate::{engine::Engine, record::keys};

/// Pause between two walks.
const PAUSE: Duration = Duration::from_secs(3600);

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

/// What is to be done about a cursor.
enum Fate {
    /// It was seen now: its consumer follows, or it has no time yet.
    Seen,
    /// Nothing was heard for too long.
    Goes,
}

impl Facts {
    pub(super) async fn sweep_once(&self, engine: &Engine, keep: Duration, ctx: &Ctx) -> Result<(), Refusal> {
        let mut after = None;
        loop {
            let page = engine.scan(&[keys::CURSOR], after.as_deref(), PAGE).await?;
            for (key, value) in &page {
                let fate = |cursor: &Cursor| self.fate(key, cursor, keep, ctx.now_ms());
                if Cursor::decode(value).as_ref().and_then(fate).is_none() {
                    continue;
                }
                // It may have moved since it was read. Nothing does between this look and the commit.
                let newest = engine.latest(key).await?.and_then(|value| Cursor::decode(&value));
                let Some(cursor) = newest else { continue };
                match fate(&cursor) {
                    Some(Fate::Goes) => self.let_go(engine, key.to_vec(), &cursor)?,
                    Some(Fate::Seen) => engine.commit(cursor.seen(ctx.now_ms()).put(key.to_vec()))?,
                    None => continue,
                };
            }
            match page.into_iter().next_back() {
                Some((last, _)) => after = Some(last),
                None => return Ok(()),
            }
        }
    }

    fn fate(&self, key: &[u8], cursor: &Cursor, keep: Duration, now_ms: u64) -> Option<Fate> {
        let is_held = self.consumers.borrow().contains_key(key);
        match cursor.seen_ms.filter(|_| !is_held) {
            Some(seen_ms) => {
                let silent_ms = u128::from(now_ms.saturating_sub(seen_ms));
                (silent_ms >= keep.as_millis()).then_some(Fate::Goes)
            }
            None => cursor.is_stale(now_ms).then_some(Fate::Seen),
        }
    }
}
