//! Journals on a simulated disk, and what they are compared with.

mod damage;
mod crashes;
mod reading;
mod committing;

use std::sync::Arc;

use ksi_sdk::protocol::Bytes;

use super::*;
use crate::disk::sim::{Chance, SimDisk};

/// When everything is written.
const NOW: u64 = 1_800_000_000_000;

/// A journal whose segments have so many bytes.
fn open_with(disk: &SimDisk, segment_bytes: u64) -> Result<(Journal, Opened), JournalError> {
    Journal::open(Arc::new(disk.clone()), Options { segment_bytes, ..Options::default() })
}

/// Payloads that say which they are, of lengths by chance below a limit.
fn payloads(chance: &mut Chance, count: u64, below: u64) -> Vec<Bytes> {
    let payload = |_| {
        let length = usize::try_from(chance.below(below)).unwrap();
        // Stretches of zeros too: they must not be taken for what was lost.
        let filler = u8::try_from(chance.below(3)).unwrap() * 0x55;
        let mut payload = vec![filler; length];
        let label = chance.below(u64::MAX).to_le_bytes();
        let labelled = length.min(8);
        payload[..labelled].copy_from_slice(&label[..labelled]);
        Bytes::from(payload)
    };
    (0..count).map(payload).collect()
}

/// All records that can be read, and the damage in between.
fn all(archive: &Archive) -> (Vec<(Seq, Bytes)>, Vec<Damage>) {
    let (mut records, mut damage) = (Vec::new(), Vec::new());
    for item in archive.read(1) {
        match item {
            Ok(record) => records.push(record),
            Err(JournalError::Damaged(hole)) => damage.push(hole),
            Err(error) => panic!("{error}"),
        }
    }
    (records, damage)
}
