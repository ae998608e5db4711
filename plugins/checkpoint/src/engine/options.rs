//! What can be set of the engine, with defaults that hold for a desktop.

use std::time::Duration;

/// Sizes, ages and limits of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Size of a journal segment. A segment is the unit in which the journal
    /// is let go, so disk use moves in steps of it.
    pub segment_bytes: u64,
    /// Bytes that may wait for the journal's next sync; more are refused `busy`.
    pub queue_bytes: usize,
    /// Bytes in memory at which a checkpoint begins, or twice as many in the journal. Larger means fewer
    /// writes where keys are overwritten, and a longer replay after a crash.
    pub checkpoint_bytes: usize,
    /// Time after the first change since the last checkpoint at which the next begins.
    pub checkpoint_age: Duration,
    /// Bytes in memory, or twice as many in the journal, at which commits are refused `busy`: the disk cannot
    /// keep up, and memory, the journal and the time of a recovery are bounded.
    pub overlay_max_bytes: usize,
    /// Bytes of journal kept for durable subscriptions beyond what recovery needs.
    pub keep_facts_bytes: u64,
    /// Keys that a checkpoint writes to the store at once.
    pub batch_keys: usize,
    /// Memory of the store for what it has read.
    pub store_cache_bytes: u64,
    /// Time after which an opening of the store is given up, and it is rebuilt.
    pub open_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 2 << 20,
            queue_bytes: 16 << 20,
            checkpoint_bytes: 4 << 20,
            checkpoint_age: Duration::from_secs(60),
            overlay_max_bytes: 24 << 20,
            keep_facts_bytes: 16 << 20,
            batch_keys: 512,
            store_cache_bytes: 4 << 20,
            open_timeout: Duration::from_secs(10),
        }
    }
}
