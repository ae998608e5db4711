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
    /// Bytes in memory at which a checkpoint begins as soon as nothing is committed for a moment, or twice as many in
    /// the journal. Larger means fewer writes where keys are overwritten, and a longer replay after a crash.
    pub checkpoint_bytes: usize,
    /// That moment. While commits keep coming, a checkpoint waits until half of `overlay_max_bytes` is reached: what
    /// goes again meanwhile is never written, and who commits has the processor.
    pub checkpoint_pause: Duration,
    /// Time after the first change since the last checkpoint at which the next begins.
    pub checkpoint_age: Duration,
    /// Bytes in memory, or twice as many in the journal, at which commits are refused `busy`: the disk cannot
    /// keep up, and memory, the journal and the time of a recovery are bounded.
    pub overlay_max_bytes: usize,
    /// Bytes of the newest journal that are kept for the facts in them, also where recovery needs none of it.
    pub keep_facts_bytes: u64,
    /// Keys that a checkpoint writes to the store at once.
    pub batch_keys: usize,
    /// Memory of the store for what it has read.
    pub store_cache_bytes: u64,
    /// Time after which an opening of the store is given up, and it is rebuilt.
    pub open_timeout: Duration,
}

/// How much in memory is not yet in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Size {
    /// It may stay there.
    Little,
    /// Worth a checkpoint when there is time.
    Enough,
    /// A checkpoint must not wait any longer.
    Much,
}

impl Options {
    /// What so many bytes are.
    #[must_use]
    pub fn size(&self, bytes: usize) -> Size {
        match bytes {
            _ if bytes < self.checkpoint_bytes => Size::Little,
            _ if bytes < self.overlay_max_bytes / 2 => Size::Enough,
            _ => Size::Much,
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 2 << 20,
            queue_bytes: 16 << 20,
            checkpoint_bytes: 4 << 20,
            checkpoint_pause: Duration::from_millis(250),
            checkpoint_age: Duration::from_secs(60),
            overlay_max_bytes: 64 << 20,
            keep_facts_bytes: 16 << 20,
            batch_keys: 512,
            store_cache_bytes: 4 << 20,
            open_timeout: Duration::from_secs(10),
        }
    }
}
