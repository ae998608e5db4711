//! How the plugin is: what `checkpoint:status` answers and what is told when
//! it opens and when it has to stop.

use std::path::Path;

use ksi_sdk::{
    prelude::{Deserialize, JsonSchema, Refusal, Serialize},
    protocol,
};
use serde_json::{Map, Value};

use crate::{
    engine::{self, Health, Recovery},
    ledger::Figures,
};

/// Show whether work is accepted and why not, how far journal and store are, and
/// how large.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StatusRequest {}

/// List checkpoints, the newest first, and what journal and store hold.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListRequest {}

/// List those whose position among durable facts is kept: how far each is, whose it
/// is, and when it was last there.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConsumersRequest {}

/// Read the whole journal and the whole store from the disk, and say what is
/// damaged.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct VerifyRequest {}

/// Walk along the whole audit trail on the disk, check every signed head, and
/// name the first record that is not as it was written.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TrailRequest {}

/// How everything that is kept is.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
pub(crate) struct Status {
    /// Whether anything is accepted.
    pub accepting: bool,
    /// Why not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// How often it was opened in all its life.
    pub epoch: u64,
    /// The newest position of the journal.
    pub last_seq: u64,
    /// The newest that is synced.
    pub synced_seq: u64,
    /// The oldest that is still there.
    pub first_seq: u64,
    /// Size of the journal.
    pub journal_bytes: u64,
    /// Size of the store.
    pub store_bytes: u64,
    /// Changes in memory that the store does not have yet; the journal has them.
    pub memory_bytes: u64,
    /// Milliseconds since the store was last brought up to date; absent before the first time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_age_ms: Option<u64>,
    /// Why that failed the last time.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub checkpoint_error: String,
    /// Files of the journal that were found damaged and set aside, until somebody takes them away.
    pub quarantined: Vec<String>,
    /// How the store was made anew at the opening, where it was damaged or lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rebuilt: Option<Rebuilt>,
    /// What the opening found damaged and what was done about it, a sentence each.
    pub notes: Vec<String>,
    /// Durable work that cannot be read, and is left as it is.
    pub unreadable: usize,
    /// What somebody should see to, and how, a sentence each.
    pub troubles: Vec<String>,
    /// Durable work that has not ended.
    pub pending: usize,
    /// Size of its payloads.
    pub pending_bytes: u64,
    /// Of that, what is being carried out.
    pub running: usize,
    /// Of that, what waits to run alone, because the daemon or a plugin may have died over it.
    pub suspects: usize,
    /// Durable work that has ended and is still kept.
    pub ended: usize,
    /// Durable work of which only the end is kept any more, for its idempotency key.
    pub remembered: usize,
}

impl Status {
    /// While it is open, in this directory.
    pub(crate) fn of(dir: &Path, damage: Damage<'_>, health: &Health, figures: Figures) -> Self {
        let Damage { found, unreadable, .. } = damage;
        Self {
            accepting: health.accepting,
            reason: health.reason.clone(),
            epoch: health.epoch,
            last_seq: health.last_seq,
            synced_seq: health.synced_seq,
            first_seq: health.first_seq,
            journal_bytes: health.journal_bytes,
            store_bytes: health.store_bytes,
            memory_bytes: health.overlay_bytes,
            checkpoint_age_ms: health.checkpoint_age_ms,
            checkpoint_error: health.checkpoint_error.clone(),
            quarantined: health.quarantined.clone(),
            rebuilt: found.rebuilt.as_ref().map(Rebuilt::from),
            notes: found.words(),
            unreadable,
            troubles: troubles(dir, damage, health),
            pending: figures.pending,
            pending_bytes: figures.pending_bytes as u64,
            running: figures.running,
            suspects: figures.suspects,
            ended: figures.kept,
            remembered: figures.remembered,
        }
    }

    /// While it is not.
    pub(crate) fn closed(why: &Refusal) -> Self {
        Self { reason: format!("{}: {}", why.message, why.hint), ..Self::default() }
    }
}

/// What is not as it was left.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Damage<'a> {
    /// What the opening found.
    pub found: &'a Recovery,
    /// Files of the audit trail that lie aside.
    pub trail_aside: &'a [String],
    /// Durable work that cannot be read.
    pub unreadable: usize,
}

/// What is degraded until somebody has seen to it.
fn troubles(dir: &Path, damage: Damage<'_>, health: &Health) -> Vec<String> {
    let Damage { found, trail_aside, unreadable } = damage;
    let mut troubles = Vec::new();
    if !trail_aside.is_empty() {
        let (files, records) = (trail_aside.join(", "), dir.join("audit/records"));
        troubles.push(format!(
            "files of the audit trail are damaged and set aside: {files}; `ksi audit verify` names the first record that \
             is not as it was written; keep them as evidence: move *.damaged and *.kept out of {}, then `ksi plugin \
             restart checkpoint`",
            records.display()
        ));
    }
    if !health.quarantined.is_empty() {
        let (files, journal) = (health.quarantined.join(", "), dir.join("journal"));
        troubles.push(format!(
            "files of the journal are damaged and set aside, and records in them may be lost: {files}; \
             `ksi checkpoint verify` and `ksi logs` say which; to go on without them: `ksi checkpoint create`, \
             then move *.damaged and *.kept out of {}, then `ksi plugin restart checkpoint`",
            journal.display()
        ));
    }
    if let Some((from, to)) = found.lost {
        troubles.push(format!(
            "the journal has lost its end, records {from} to {to}: their facts are gone, what they changed up to the \
             last write of the store is there, and whatever was accepted after that is lost; look at the disk, and \
             see `ksi checkpoint list`; to go on as it is: `ksi plugin restart checkpoint`"
        ));
    }
    if unreadable > 0 {
        troubles.push(format!(
            "durable work cannot be read and is left alone, {unreadable} of it, which `ksi logs` names: run the release \
             that wrote it, or go back to a checkpoint of before (`ksi checkpoint list`)"
        ));
    }
    troubles
}

/// A store that was made anew.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct Rebuilt {
    /// What was wrong with the old one.
    pub why: String,
    /// Where the old one is, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aside: Option<String>,
    /// Keys that came from the last export; the journal has the rest.
    pub keys: u64,
    /// The position of that export; 0 where there was none.
    pub seq: u64,
}

impl From<&engine::Rebuilt> for Rebuilt {
    fn from(rebuilt: &engine::Rebuilt) -> Self {
        Self {
            why: rebuilt.why.clone(),
            aside: rebuilt.aside.as_ref().map(|aside| aside.display().to_string()),
            keys: rebuilt.from_export,
            seq: rebuilt.export_seq,
        }
    }
}

/// The journal is open, and everything in it is there.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct Opened {
    /// How often it was opened in all its life.
    pub epoch: u64,
    /// The newest position that was found.
    pub last_seq: u64,
    /// Records that were newer than the store.
    pub replayed: u64,
    /// Bytes of a record that was being written when the power went, cut off.
    pub torn_bytes: u64,
    /// How the store was made anew, where it was damaged or lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rebuilt: Option<Rebuilt>,
    /// What was damaged and what was done about it, a sentence each.
    pub notes: Vec<String>,
    /// Milliseconds that it took.
    pub took_ms: u64,
}

impl From<&Recovery> for Opened {
    fn from(recovery: &Recovery) -> Self {
        Self {
            epoch: recovery.epoch,
            last_seq: recovery.last_seq,
            replayed: recovery.replayed,
            torn_bytes: recovery.torn_bytes,
            rebuilt: recovery.rebuilt.as_ref().map(Rebuilt::from),
            notes: recovery.words(),
            took_ms: recovery.took_ms,
        }
    }
}

/// Nothing can be written any more, so nothing is accepted until that works
/// again; `checkpoint:opened` tells it.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct Stopped {
    /// Why.
    #[schemars(with = "Map<String, Value>")]
    pub refusal: protocol::Refusal,
}
