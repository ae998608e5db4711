//! What the engine says of itself: what was found at the start, how it is now,
//! what a checkpoint, an export, a restore or a verification did.
//!
//! Plain data. The events that carry it to a client have their own shapes.

use std::{fmt, path::PathBuf};

use crate::record::{Fact, Seq};

/// What an opening found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Number of this start; the first is 1.
    pub epoch: u64,
    /// Last position that was found, before the record of this start.
    pub last_seq: Seq,
    /// Position that the store covered.
    pub store_seq: Seq,
    /// Records that were replayed over the store.
    pub replayed: u64,
    /// Bytes of a torn tail that were cut from the journal.
    pub torn_bytes: u64,
    /// First and last position that the store covers and the journal has no more, where it ended too early.
    /// Their facts are gone; what they changed is there.
    pub lost: Option<(Seq, Seq)>,
    /// Keys with which the store was rebuilt, where it had to be.
    pub rebuilt: Option<Rebuilt>,
    /// Damage and repairs, a sentence each, for a person. Empty is the rule.
    pub notes: Vec<String>,
    /// Milliseconds that it took.
    pub took_ms: u64,
}

impl Recovery {
    /// All that a person should hear of, a sentence each.
    pub fn words(&self) -> Vec<String> {
        let lost = self.lost.map(|(from, to)| {
            format!(
                "the store covers position {to}, the journal ends at {}: records of the journal are lost, their \
                 effects are in the store, and positions go on after it",
                from - 1
            )
        });
        let rebuilt = self.rebuilt.iter().map(ToString::to_string);
        rebuilt.chain(lost).chain(self.notes.iter().cloned()).collect()
    }
}

/// A store that could not be opened and was made anew.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Why the old one was given up.
    pub why: String,
    /// Where it was moved.
    pub aside: Option<PathBuf>,
    /// Keys that came from the export.
    pub from_export: u64,
    /// Position that the export covered; 0 where there was none.
    pub export_seq: Seq,
}

impl fmt::Display for Rebuilt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.from_export, self.export_seq) {
            (_, 0) => write!(f, "the store was made anew from the journal alone")?,
            (keys, seq) => write!(f, "the store was made anew of {keys} keys that were exported at {seq}")?,
        }
        write!(f, ", since {}", self.why)?;
        self.aside.as_ref().map_or(Ok(()), |aside| write!(f, "; the old one is in {}", aside.display()))
    }
}

/// Whether work is taken, and how large everything is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Whether commits are taken.
    pub accepting: bool,
    /// Why not, for a person; empty while accepting.
    pub reason: String,
    /// Number of this start.
    pub epoch: u64,
    /// Last position given out.
    pub last_seq: Seq,
    /// Last position that is synced.
    pub synced_seq: Seq,
    /// Position that the store covers.
    pub store_seq: Seq,
    /// Position that the last export covers; 0 where there is none.
    pub export_seq: Seq,
    /// First position that the journal still has.
    pub first_seq: Seq,
    /// Bytes of keys and values in memory that the store does not have yet.
    pub overlay_bytes: u64,
    /// Journal segments on disk.
    pub segments: u64,
    /// Bytes of all journal segments.
    pub journal_bytes: u64,
    /// Keys in the store.
    pub store_keys: u64,
    /// Bytes of the store on disk.
    pub store_bytes: u64,
    /// Milliseconds since the last checkpoint of this start; none yet is `None`.
    pub checkpoint_age_ms: Option<u64>,
    /// Checkpoints of this start.
    pub checkpoints: u64,
    /// Why the last checkpoint failed; empty where it did not.
    pub checkpoint_error: String,
    /// Files of the journal with damage that lie aside, by name.
    pub quarantined: Vec<String>,
}

/// What a checkpoint did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckpointReport {
    /// Position that the store now covers.
    pub seq: Seq,
    /// Keys that were written or removed.
    pub keys: u64,
    /// Bytes of keys and values that were written.
    pub bytes: u64,
    /// Journal segments that were let go.
    pub retired: u64,
    /// Milliseconds that it took.
    pub took_ms: u64,
}

/// What an export wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExportReport {
    /// Where.
    pub path: PathBuf,
    /// Position that it covers.
    pub seq: Seq,
    /// Keys in it.
    pub keys: u64,
    /// Size of the file.
    pub bytes: u64,
    /// SHA-256 of all before it, in hexadecimal.
    pub sha256: String,
    /// Milliseconds that it took.
    pub took_ms: u64,
}

/// What a restore did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RestoreReport {
    /// The export that was read.
    pub path: PathBuf,
    /// Position that the export covered when it was written.
    pub export_seq: Seq,
    /// Position of the restore itself in the journal.
    pub seq: Seq,
    /// Keys that are there now.
    pub keys: u64,
    /// Milliseconds that it took.
    pub took_ms: u64,
}

/// What a walk over everything on disk found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Journal segments that were read.
    pub segments: u64,
    /// Records that are intact.
    pub records: u64,
    /// First and last position that the journal has.
    pub first_seq: Seq,
    /// Last position that the journal has.
    pub last_seq: Seq,
    /// Bytes of the journal that were read.
    pub bytes: u64,
    /// Keys in the store, all of which were read.
    pub store_keys: u64,
    /// The chain's last link, in hexadecimal: what an auditor notes down.
    pub head: String,
    /// What is wrong. Empty means intact.
    pub damage: Vec<Flaw>,
    /// Milliseconds that it took.
    pub took_ms: u64,
}

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// The file of the journal; empty where it is the store.
    pub segment: String,
    /// The first record that is lost, where one is.
    pub seq: Option<Seq>,
    /// A sentence.
    pub what: String,
}

/// Facts in the order in which they happened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FactPage {
    /// Position and fact.
    pub facts: Vec<(Seq, Fact)>,
    /// First and last position of what is damaged between them, in order.
    pub holes: Vec<(Seq, Seq)>,
    /// Where the next page begins: after the last record that was looked at.
    pub next: Seq,
    /// Whether all that is synced was looked at. Where not, more may follow
    /// even after an empty page.
    pub end: bool,
    /// First position that is still kept. Where it is above what was asked for,
    /// facts between may be gone.
    pub first_kept: Seq,
}

/// What is known of a key without asking the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peek {
    /// Its newest value, durable or not.
    Value(Seq, ksi_sdk::protocol::Bytes),
    /// It was removed.
    Absent(Seq),
    /// Only the store knows.
    Store,
}
