//! What the plugin's thread and the checkpointer's share: memory, the way into the journal, figures.
//!
//! # Invariants
//!
//! - A record is put in line for the journal and into memory under one lock,
//!   so both have the same order.
//! - The lock is never held while anything blocks.

use std::{
    future::poll_fn,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Instant,
};

use futures_util::task::AtomicWaker;
use ksi_sdk::protocol::{Bytes, Code, Refusal};

use super::options::Size;
use crate::{
    journal::{Archive, Committer, Desk, JournalError, SubmitError},
    overlay::Overlay,
    record::{Batch, Record, Seq},
    store::KEY_MAX,
};

/// The way into the journal.
pub(super) trait Log: Send {
    /// Puts a record in line.
    fn submit(&mut self, payload: Bytes) -> Result<Seq, SubmitError>;
    /// Position that the next one gets.
    fn next_seq(&self) -> Seq;
    /// Why nothing is taken any more, if so.
    fn stopped(&self) -> Option<Arc<JournalError>>;
    /// Writes everything up to a position soon: so many wait for it.
    fn hurry(&mut self, seq: Seq, waiting: usize);
    /// Where the caller may write by himself, if anywhere.
    fn desk(&self) -> Option<Desk> {
        None
    }
    /// Writes what waits, and takes nothing more.
    fn close(self: Box<Self>) -> Result<(), Arc<JournalError>>;
}

impl Log for Committer {
    fn submit(&mut self, payload: Bytes) -> Result<Seq, SubmitError> {
        Self::submit(self, payload)
    }

    fn hurry(&mut self, seq: Seq, waiting: usize) {
        Self::hurry(self, seq, waiting);
    }

    fn desk(&self) -> Option<Desk> {
        Some(Self::desk(self))
    }

    fn next_seq(&self) -> Seq {
        Self::next_seq(self)
    }

    fn stopped(&self) -> Option<Arc<JournalError>> {
        Self::stopped(self)
    }

    fn close(self: Box<Self>) -> Result<(), Arc<JournalError>> {
        Self::close(*self)
    }
}

/// What the lock guards.
pub(super) struct State {
    pub(super) overlay: Overlay,
    /// None once closed.
    pub(super) log: Option<Box<dyn Log>>,
    /// Why the store is of no use any more, if so: nothing is taken then, since memory would only grow. Or it was
    /// replaced, and what is still to come belongs to what was before.
    pub(super) failed: Option<Refusal>,
    /// For what size a checkpoint was asked for that has not begun.
    pub(super) asked: Size,
    pub(super) figures: Figures,
}

/// What `health` shows beside positions.
#[derive(Debug, Clone, Default)]
pub(super) struct Figures {
    pub(super) store_seq: Seq,
    pub(super) export_seq: Seq,
    pub(super) store_bytes: u64,
    pub(super) store_keys: u64,
    pub(super) checkpointed: Option<Instant>,
    pub(super) checkpoints: u64,
    pub(super) checkpoint_error: String,
}

/// See the module.
pub(super) struct Shared {
    pub(super) archive: Archive,
    state: Mutex<State>,
    wakes: Arc<Wakes>,
    abandoned: AtomicBool,
    /// Whoever is told of a failure.
    fallen: AtomicWaker,
}

/// Who is told of a sync: one task of the plugin's thread, and the checkpointer.
#[derive(Default)]
pub(super) struct Wakes {
    pub(super) waker: AtomicWaker,
    /// Whether the checkpointer waits.
    gate: Mutex<bool>,
    synced: Condvar,
}

impl Wakes {
    /// Called after each sync by whoever wrote, and when the journal stops.
    pub(super) fn wake(&self) {
        // Taken, so that the checkpointer does not miss it between a look and a wait.
        let waits = *self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        if waits {
            self.synced.notify_all();
        }
        self.waker.wake();
    }
}

impl Shared {
    pub(super) fn new(
        overlay: Overlay,
        archive: Archive,
        log: Box<dyn Log>,
        wakes: Arc<Wakes>,
        figures: Figures,
    ) -> Self {
        let state = State { overlay, log: Some(log), failed: None, asked: Size::Little, figures };
        Self {
            archive,
            state: Mutex::new(state),
            wakes,
            abandoned: AtomicBool::new(false),
            fallen: AtomicWaker::new(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // A panic under the lock would be one of the map itself; what it left is as whole as before.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn waker(&self) -> &AtomicWaker {
        &self.wakes.waker
    }

    /// Blocks until a position is synced. For the checkpointer's thread.
    pub(super) fn wait_synced(&self, seq: Seq) -> Result<(), Refusal> {
        self.hurry(seq, 1);
        let mut gate = self.wakes.gate.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if self.archive.synced() >= seq {
                return Ok(());
            }
            if let Some(refusal) = self.stopped() {
                return Err(refusal);
            }
            *gate = true;
            gate = self.wakes.synced.wait(gate).unwrap_or_else(PoisonError::into_inner);
            *gate = false;
        }
    }

    /// So many wait for a position.
    pub(super) fn hurry(&self, seq: Seq, waiting: usize) {
        if let Some(log) = &mut self.state().log {
            log.hurry(seq, waiting);
        }
    }

    /// Writes on this thread, where that is best; whether it did.
    pub(super) fn write_here(&self) -> bool {
        let desk = self.state().log.as_ref().and_then(|log| log.desk());
        desk.is_some_and(|desk| desk.write_here())
    }

    /// Why the journal takes nothing any more, if so.
    pub(super) fn stopped(&self) -> Option<Refusal> {
        match &self.state().log {
            Some(log) => log.stopped().map(|error| error.refusal()),
            None => Some(closed()),
        }
    }

    /// The store is of no use any more, or not the one that goes with what is in memory.
    pub(super) fn fail(&self, refusal: Refusal) {
        self.state().failed.get_or_insert(refusal);
        self.fallen.wake();
    }

    /// Resolves with the reason once nothing is committed any more because of the store.
    pub(super) async fn failed(&self) -> Refusal {
        poll_fn(|cx| {
            self.fallen.register(cx.waker());
            self.state().failed.clone().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Nobody uses the engine any more.
    pub(super) fn abandon(&self) {
        self.fail(closed());
        self.abandoned.store(true, Ordering::Release);
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }
}

impl State {
    /// The size that the checkpointer is to be told of: only what it does not know.
    pub(super) fn asks(&mut self, size: Size) -> Size {
        if size <= self.asked {
            return Size::Little;
        }
        self.asked = size;
        size
    }

    /// Journals changes and takes them into memory; leaves what is refused where it is.
    pub(super) fn commit(&mut self, record: &mut Record, payload: Bytes) -> Result<Seq, Refusal> {
        let Some(log) = &mut self.log else { return Err(closed()) };
        let length = payload.len();
        let seq = log.submit(payload).map_err(|error| match error {
            SubmitError::Busy(_) => Refusal::new(Code::Busy, error.to_string()).retry_after_ms(20),
            SubmitError::TooLarge { .. } => Refusal::new(Code::TooLarge, error.to_string()),
            SubmitError::Stopped(why) => why.refusal(),
        })?;
        let batch = match record {
            Record::Changes(batch) => std::mem::take(batch),
            Record::Fact(_) => Batch::new(),
        };
        self.overlay.apply(seq, batch, length);
        Ok(seq)
    }
}

/// Refuses a key that no store would take.
pub(super) fn check_keys(batch: &Batch) -> Result<(), Refusal> {
    match batch.changes().iter().find(|change| change.key.len() > KEY_MAX) {
        None => Ok(()),
        Some(change) => {
            let message = format!("a key of {} bytes is too long, the limit is {KEY_MAX}", change.key.len());
            Err(Refusal::new(Code::TooLarge, message).hint("choose a shorter key"))
        }
    }
}

/// What is refused while memory is full.
pub(super) fn crowded() -> Refusal {
    Refusal::new(Code::Busy, "changes come faster than the disk takes them").retry_after_ms(100)
}

/// What is refused after the end.
pub(super) fn closed() -> Refusal {
    Refusal::new(Code::ShuttingDown, "the journal is closed").hint("ask again after the start")
}
