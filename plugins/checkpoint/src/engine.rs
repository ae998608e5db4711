//! The engine: journal, memory and store as one ordered keyspace.
//!
//! A change is journaled, is in memory at once, and is durable when the
//! journal has synced it. A checkpoint moves it from memory to the store, and
//! the journal is let go behind it. Reading looks into memory, then into the
//! store. It knows nothing of what keys and values mean.
//!
//! The handle stays on the plugin's thread. The journal has a thread of its own, and so has the store; but where the
//! disk is swift a turn of the plugin ends with a sync on the plugin's thread, which spares a request that
//! comes alone two switches of threads: see [`Engine::sync_at_turns_end`].
//!
//! # Invariants
//!
//! - Recovered is a prefix of what was committed, with everything in it that
//!   was durable; a batch is there whole or not at all.
//! - What a reader is shown is durable, except by [`Engine::latest`] and
//!   [`Engine::peek`], which say so.
//!
//! # Failure
//!
//! After an error of the journal or the store nothing is committed any more:
//! the refusal says why, [`Engine::health`] too. Opening again, once the cause
//! is gone, goes on with all that was durable. While memory is full, commits
//! are refused `busy`.

pub mod leash;
pub mod options;
pub mod report;
mod checkpointer;
mod exports;
mod facts;
mod place;
mod recovery;
mod shared;
mod thread;
mod turn;
mod waiting;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod crash;

use std::{
    cell::{Cell, RefCell},
    path::{Path, PathBuf},
    pin::pin,
    rc::Rc,
    sync::{
        Arc,
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    task::Waker,
    time::Instant,
};

use futures_channel::oneshot;
use futures_util::future::{Either, select};
use ksi_sdk::protocol::{Bytes, Code, Refusal};

pub use leash::Leash;
pub use options::{Options, Size};
pub use report::{
    CheckpointReport, ExportReport, FactPage, Flaw, Health, Peek, Rebuilt, Recovery, RestoreReport,
    VerifyReport,
};

use self::{
    recovery::Opening,
    shared::{Shared, check_keys},
    thread::Job,
    turn::Turn,
    waiting::Waiting,
};
use crate::{
    overlay::{merge, next_prefix, successor},
    record::{Batch, Record, Seq},
};

/// Changes in memory that a scan looks at, at least, before it asks the store for more.
const CHANGES_MIN: usize = 1_000;

/// Jobs that may wait for the checkpointer; more are refused `busy`.
const JOBS_MAX: usize = 4096;

/// The handle of the plugin's thread.
pub struct Engine {
    shared: Arc<Shared>,
    jobs: Arc<SyncSender<Job>>,
    options: Options,
    epoch: u64,
    waiting: Waiting,
    turn: Turn,
    /// Position of the newest fact; at the start the newest record, which may be one.
    last_fact: Cell<Seq>,
    /// Who waits for a fact to be told.
    fact_wakers: RefCell<Vec<Waker>>,
    /// The checkpointer knows that something has changed since the last checkpoint: the number of checkpoints
    /// then.
    told: Cell<Option<u64>>,
}

impl Engine {
    /// Opens the directory, or recovers what is in it, on the checkpointer's thread.
    ///
    /// # Errors
    ///
    /// `unavailable` where the directory is in use or cannot be read, or was written by a newer release.
    pub async fn open(dir: PathBuf, options: Options) -> Result<(Rc<Self>, Recovery), Refusal> {
        let settings = options.clone();
        Self::start(options, move || place::open_on_disk(&dir, settings)).await
    }

    /// Opens on the checkpointer's thread, which holds what `open` returns first until its end.
    async fn start<L>(
        options: Options,
        open: impl FnOnce() -> Result<(L, Opening), Refusal> + Send + 'static,
    ) -> Result<(Rc<Self>, Recovery), Refusal> {
        let (sender, receiver) = oneshot::channel();
        let (jobs, inbox) = sync_channel(JOBS_MAX);
        let keep = move || match open() {
            Ok((held, Opening { checkpointer, shared, recovery })) => {
                // Nobody is there any more where the start was given up; then there are no jobs either.
                let _ = sender.send(Ok((shared, recovery)));
                thread::run(checkpointer, &inbox);
                drop(held);
            }
            Err(refusal) => drop(sender.send(Err(refusal))),
        };
        std::thread::Builder::new().name("checkpointer".into()).spawn(keep).map_err(|error| {
            Refusal::new(Code::Unavailable, format!("cannot start the checkpointer's thread: {error}"))
        })?;
        let (shared, recovery) = receiver.await.map_err(|_| gone())??;
        Ok((Rc::new(Self::new(shared, jobs, options, &recovery)), recovery))
    }

    fn new(shared: Arc<Shared>, jobs: SyncSender<Job>, options: Options, recovery: &Recovery) -> Self {
        Self {
            shared,
            jobs: Arc::new(jobs),
            options,
            epoch: recovery.epoch,
            waiting: Waiting::default(),
            turn: Turn::default(),
            last_fact: Cell::new(recovery.last_seq),
            fact_wakers: RefCell::default(),
            told: Cell::new(None),
        }
    }

    /// For whoever ends it when its owner cannot.
    pub fn leash(&self) -> Leash {
        Leash::new(&self.shared, &self.jobs)
    }

    /// Number of this start; it is journaled before anything else of it.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Position that the next commit or fact gets, unless it is refused.
    pub fn next_seq(&self) -> Seq {
        let state = self.shared.state();
        state.log.as_ref().map_or_else(|| state.overlay.seq() + 1, |log| log.next_seq())
    }

    /// Last position that is synced.
    pub fn synced_seq(&self) -> Seq {
        self.shared.archive.synced()
    }

    /// Journals changes. The order of calls is the order in the journal.
    /// [`Engine::peek`] and [`Engine::latest`] see them at once; nobody
    /// else may be told before [`Engine::durable`].
    ///
    /// # Errors
    ///
    /// `busy` while memory is full, `too_large` above what a record or a key may have,
    /// `unavailable` after an I/O error, `shutting_down` after `close`.
    pub fn commit(&self, mut batch: Batch) -> Result<Seq, Refusal> {
        self.try_commit(&mut batch)
    }

    /// The same; leaves what is refused where it is, to be tried again.
    ///
    /// # Errors
    ///
    /// As [`Engine::commit`].
    pub fn try_commit(&self, batch: &mut Batch) -> Result<Seq, Refusal> {
        check_keys(batch)?;
        let mut record = Record::Changes(std::mem::take(batch));
        let committed = self.submit(&mut record);
        if let (Err(_), Record::Changes(refused)) = (&committed, record) {
            *batch = refused;
        }
        committed
    }

    /// Leaves what is refused where it is.
    fn submit(&self, record: &mut Record) -> Result<Seq, Refusal> {
        let payload = Bytes::from(record.encode());
        let mut state = self.shared.state();
        if let Some(refusal) = &state.failed {
            return Err(refusal.clone());
        }
        let waiting = state.overlay.bytes().max(state.overlay.journaled() / 2);
        if waiting >= self.options.overlay_max_bytes {
            let ask = state.asks(Size::Much);
            drop(state);
            self.ask_checkpoint(ask);
            return Err(shared::crowded());
        }
        let seq = state.commit(record, payload)?;
        let size = self.options.size(state.overlay.due());
        let ask = state.asks(size);
        let checkpoints = state.figures.checkpoints;
        drop(state);
        self.ask_checkpoint(ask);
        if self.told.replace(Some(checkpoints)) != Some(checkpoints)
            && self.jobs.try_send(Job::Changed).is_err()
        {
            self.told.set(None);
        }
        Ok(seq)
    }

    fn ask_checkpoint(&self, size: Size) {
        let job = match size {
            Size::Little => return,
            Size::Enough => Job::Enough,
            Size::Much => Job::Checkpoint(None),
        };
        if self.jobs.try_send(job).is_err() {
            self.shared.state().asked = Size::Little;
        }
    }

    /// Resolves when a position is synced: it survives a loss of power from then on. Has it synced soon.
    ///
    /// # Errors
    ///
    /// `unavailable` where the journal stopped before: whether it is
    /// there after a restart is then not known.
    pub async fn durable(&self, seq: Seq) -> Result<(), Refusal> {
        self.hurry(seq);
        self.settled(seq).await
    }

    /// The same for those who have time: it is synced with what others wait for, or a few milliseconds later.
    ///
    /// # Errors
    ///
    /// As [`Engine::durable`].
    pub async fn settled(&self, seq: Seq) -> Result<(), Refusal> {
        self.waiting.durable(&self.shared, seq).await
    }

    /// Resolves with the reason once nothing is committed any more. For one task alone: it is told of a store that
    /// has failed.
    pub async fn stopped(&self) -> Refusal {
        // No position is so high: this ends with the journal.
        match select(pin!(self.settled(Seq::MAX)), pin!(self.shared.failed())).await {
            Either::Left((ended, _)) => ended.err().unwrap_or_else(shared::closed),
            Either::Right((refusal, _)) => refusal,
        }
    }

    /// The value of a key. Never shows what is not yet durable: waits for it.
    ///
    /// # Errors
    ///
    /// `unavailable` where journal or store cannot be read, `busy` where too many ask.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Refusal> {
        let (seq, value) = self.find(key).await?;
        self.durable(seq).await?;
        Ok(value)
    }

    /// The newest value of a key, durable or not, for what is read, changed and committed.
    /// Nothing is committed between the return and the next `await` of the caller.
    ///
    /// # Errors
    ///
    /// As [`Engine::get`].
    pub async fn latest(&self, key: &[u8]) -> Result<Option<Bytes>, Refusal> {
        self.find(key).await.map(|(_, value)| value)
    }

    async fn find(&self, key: &[u8]) -> Result<(Seq, Option<Bytes>), Refusal> {
        loop {
            let generation = {
                let state = self.shared.state();
                if let Some(found) = state.overlay.find(key) {
                    return Ok(found.clone());
                }
                state.overlay.generation()
            };
            let value = self.ask(|answer| Job::Get(Bytes::copy_from_slice(key), answer)).await?;
            let state = self.shared.state();
            // Written meanwhile, or written and checkpointed: then what the store said may be old.
            if let Some(found) = state.overlay.find(key) {
                return Ok(found.clone());
            }
            if state.overlay.generation() == generation {
                return Ok((0, value));
            }
        }
    }

    /// What is known of a key without waiting, durable or not.
    pub fn peek(&self, key: &[u8]) -> Peek {
        match self.shared.state().overlay.find(key) {
            Some((seq, Some(value))) => Peek::Value(*seq, value.clone()),
            Some((seq, None)) => Peek::Absent(*seq),
            None => Peek::Store,
        }
    }

    /// Keys that begin with `prefix`, in order, at most `limit`, those after `after` only. Durable ones, as
    /// [`Engine::get`].
    ///
    /// # Errors
    ///
    /// As [`Engine::get`].
    pub async fn scan(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, Refusal> {
        let until = next_prefix(prefix);
        let mut from = Bytes::copy_from_slice(prefix);
        if let Some(after) = after.filter(|after| *after >= prefix) {
            from = successor(after);
        }
        let (mut found, mut seq) = (Vec::new(), 0);
        while found.len() < limit {
            let wanted = limit - found.len();
            let generation = self.shared.state().overlay.generation();
            let (asked, end) = (from.clone(), until.clone());
            let mut page =
                self.ask(move |answer| Job::Range { from: asked, until: end, limit: wanted, answer }).await?;
            let state = self.shared.state();
            if state.overlay.generation() != generation {
                continue;
            }
            // A page that is not full is the last one, unless it ended for its size.
            let size: usize = page.iter().map(|(key, value)| key.len() + value.len()).sum();
            let last = page.len() < wanted && size < thread::PAGE_BYTES;
            let border =
                page.last().filter(|_| !last).map(|(key, _)| successor(key)).or_else(|| until.clone());
            // Memory may have much more than is asked for, and what is deleted there counts for nothing.
            let most = wanted.max(CHANGES_MIN);
            let changes = state.overlay.range(&from, border.as_deref(), most);
            drop(state);
            let cut = changes.last_key_value().filter(|_| changes.len() == most);
            let cut = cut.map(|(key, _)| successor(key));
            if let Some(cut) = &cut {
                page.retain(|(key, _)| key < cut);
            }
            seq = changes.values().map(|(seq, _)| *seq).fold(seq, Seq::max);
            found.extend(merge(page, changes));
            match cut.or(border.filter(|_| !last)) {
                Some(next) => from = next,
                None => break,
            }
        }
        found.truncate(limit);
        self.durable(seq).await?;
        Ok(found)
    }

    /// Writes what is in memory to the store and lets go of journal that is not needed any more.
    ///
    /// # Errors
    ///
    /// `unavailable` where store or journal cannot be written.
    pub async fn checkpoint(&self) -> Result<CheckpointReport, Refusal> {
        self.ask(|answer| Job::Checkpoint(Some(answer))).await
    }

    /// Writes everything into one file, as it is after a checkpoint.
    ///
    /// # Errors
    ///
    /// `unavailable` where it cannot be written, `conflict` where something is there, `invalid_payload` where the
    /// path names no file.
    pub async fn export(&self, path: &Path) -> Result<ExportReport, Refusal> {
        self.ask(|answer| Job::Export(path.to_owned(), answer)).await
    }

    /// Replaces everything by what an export holds, but for the facts and the number of the start. Nothing is
    /// committed after it: whoever has read anything before must read it again, from another engine.
    ///
    /// # Errors
    ///
    /// `not_found`, or `invalid_payload` where the file is damaged; nothing has changed then.
    pub async fn restore(&self, path: &Path) -> Result<RestoreReport, Refusal> {
        self.ask(|answer| Job::Restore(path.to_owned(), self.epoch, answer)).await
    }

    /// Walks the journal's chain and reads the whole store.
    ///
    /// # Errors
    ///
    /// `unavailable` where they cannot be read; damage is part of the report.
    pub async fn verify(&self) -> Result<VerifyReport, Refusal> {
        self.ask(Job::Verify).await
    }

    /// How it is. Takes microseconds.
    pub fn health(&self) -> Health {
        let stopped = self.shared.stopped();
        let journal = self.shared.archive.stat();
        let last_seq = self.next_seq() - 1;
        let state = self.shared.state();
        let why = stopped.as_ref().or(state.failed.as_ref());
        let figures = &state.figures;
        Health {
            accepting: why.is_none(),
            reason: why.map(|why| format!("{}: {}", why.message, why.hint)).unwrap_or_default(),
            epoch: self.epoch,
            last_seq,
            synced_seq: self.shared.archive.synced(),
            store_seq: figures.store_seq,
            export_seq: figures.export_seq,
            first_seq: journal.first,
            segments: journal.segments.len() as u64,
            store_keys: figures.store_keys,
            overlay_bytes: state.overlay.bytes() as u64,
            journal_bytes: journal.bytes,
            store_bytes: figures.store_bytes,
            checkpoint_age_ms: figures.checkpointed.map(millis),
            checkpoints: figures.checkpoints,
            checkpoint_error: figures.checkpoint_error.clone(),
            quarantined: journal.aside,
        }
    }

    /// Syncs, checkpoints and ends the threads. Later commits are refused, and the directory is free for
    /// another engine.
    ///
    /// # Errors
    ///
    /// `unavailable` where the last sync or checkpoint failed; the threads are ended all the same.
    pub async fn close(&self) -> Result<(), Refusal> {
        let closed = self.ask(Job::Close).await;
        self.fact_wakers.take().into_iter().for_each(Waker::wake);
        closed
    }

    async fn ask<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, Refusal>>) -> Job,
    ) -> Result<T, Refusal> {
        let (sender, receiver) = oneshot::channel();
        self.jobs.try_send(job(sender)).map_err(|error| match error {
            TrySendError::Full(_) => {
                Refusal::new(Code::Busy, format!("{JOBS_MAX} questions wait for the store"))
                    .retry_after_ms(50)
            }
            TrySendError::Disconnected(_) => shared::closed(),
        })?;
        receiver
            .await
            .map_err(|_| if self.shared.state().log.is_none() { shared::closed() } else { gone() })?
    }
}

/// The checkpointer's thread is gone without an answer: it panicked.
fn gone() -> Refusal {
    Refusal::new(Code::Unavailable, "the store's thread is gone")
        .hint("`ksi plugin restart checkpoint` opens it again")
}

/// Milliseconds since.
fn millis(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}
