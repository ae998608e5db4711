//! `space:*`: what plugins keep, each in a space of its own.
//!
//! Whose space is meant comes from the origin that the daemon has put on the
//! request, never from the payload, so no plugin reads another's.
//!
//! # Invariants
//!
//! - A value stands under its version, the position of the record that wrote
//!   it; so of two values of one key the newer has the higher version, over
//!   restarts too.
//! - Between the checks of a batch and its commit nothing changes in any space.

#[cfg(test)]
mod tests;

use futures_util::lock::Mutex;
use ksi_sdk::{
    prelude::{Code, Refusal},
    protocol::{
        Bytes,
        space::{Applied, Apply, BATCH_BYTES_MAX, Conflict, Entry, Get, Got, Page, SCAN_ENTRIES_MAX, Scan},
    },
};

use crate::{
    engine::Engine,
    record::{Batch, Seq, keys},
};

/// Entries that are read at a time for a page: with values of the largest size
/// a few pages' worth of memory.
const SCAN_STEP: usize = 16;

/// The spaces of all plugins.
#[derive(Default)]
pub struct Spaces {
    /// Held from the first check of a batch to its commit.
    applying: Mutex<()>,
}

/// One plugin's space: the prefix of its keys.
pub struct Space(Vec<u8>);

impl Space {
    /// The space of whoever sent a request.
    ///
    /// # Errors
    ///
    /// `denied` to whoever is not a plugin.
    pub fn of(origin: &str) -> Result<Self, Refusal> {
        let name = origin.strip_prefix("plugin:").filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| {
            Refusal::new(Code::Denied, "only plugins have a space of their own")
                .hint("the events `state:*` keep values for everybody")
        })?;
        // Names of plugins have no NUL, so no space is a prefix of another.
        Ok(Self([&[keys::SPACE], name.as_bytes(), &[0]].concat()))
    }

    fn key(&self, key: &[u8]) -> Vec<u8> {
        [&self.0, key].concat()
    }
}

impl Spaces {
    /// Reads one value.
    ///
    /// # Errors
    ///
    /// `unavailable` where it cannot be read.
    pub async fn get(&self, engine: &Engine, space: &Space, ask: Get) -> Result<Got, Refusal> {
        let stored = engine.get(&space.key(&ask.key)).await?;
        let (version, value) = split(stored);
        Ok(Got { value, version })
    }

    /// Checks and changes values, all or none; answers once it is safe.
    ///
    /// # Errors
    ///
    /// `conflict` where a check fails, `too_large` above a limit, `busy` or
    /// `unavailable` where nothing can be written.
    pub async fn apply(&self, engine: &Engine, space: &Space, ask: Apply) -> Result<Applied, Refusal> {
        ask.check_limits()?;
        let seq = {
            let _no_other = self.applying.lock().await;
            for (index, check) in ask.checks.iter().enumerate() {
                let (version, _) = split(engine.latest(&space.key(&check.key)).await?);
                if version != check.version {
                    return Err(Conflict { check: index, version }.refusal(check.version));
                }
            }
            let version = engine.next_seq();
            let mut batch = Batch::new();
            for change in ask.changes {
                match change.value {
                    Some(value) => batch.put(space.key(&change.key), join(version, &value)),
                    None => batch.delete(space.key(&change.key)),
                };
            }
            engine.commit(batch)?
        };
        engine.durable(seq).await?;
        Ok(Applied { version: seq })
    }

    /// Reads a page.
    ///
    /// # Errors
    ///
    /// `unavailable` where it cannot be read.
    pub async fn scan(&self, engine: &Engine, space: &Space, ask: Scan) -> Result<Page, Refusal> {
        let limit = if ask.limit == 0 { SCAN_ENTRIES_MAX } else { ask.limit.min(SCAN_ENTRIES_MAX) } as usize;
        let prefix = space.key(&ask.prefix);
        let mut after = ask.after.map(|after| space.key(&after));
        let mut page = Page::default();
        let mut bytes = 0;
        loop {
            // One more than is wanted tells whether there are more.
            let step = (limit + 1 - page.entries.len()).min(SCAN_STEP);
            let found = engine.scan(&prefix, after.as_deref(), step).await?;
            let is_last = found.len() < step;
            for (key, stored) in found {
                bytes += key.len() + stored.len();
                page.more =
                    page.entries.len() == limit || (bytes > BATCH_BYTES_MAX && !page.entries.is_empty());
                if page.more {
                    return Ok(page);
                }
                after = Some(key.to_vec());
                let (version, value) = split(Some(stored));
                let value = value.unwrap_or_default();
                page.entries.push(Entry { key: key.slice(space.0.len()..), value, version });
            }
            if is_last {
                return Ok(page);
            }
        }
    }
}

/// A value as it is stored: its version before it.
fn join(version: Seq, value: &[u8]) -> Vec<u8> {
    [&version.to_le_bytes(), value].concat()
}

fn split(stored: Option<Bytes>) -> (Seq, Option<Bytes>) {
    let Some(stored) = stored else { return (0, None) };
    match stored.split_first_chunk::<8>() {
        Some((version, _)) => (Seq::from_le_bytes(*version), Some(stored.slice(8..))),
        // Only `join` writes here.
        None => (0, None),
    }
}
