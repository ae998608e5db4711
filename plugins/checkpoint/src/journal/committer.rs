//! The committer: one thread that writes what many submit.
//!
//! While it syncs one batch the next one gathers, so the more is submitted at
//! once the fewer syncs each record costs. What nobody waits for goes with the
//! next batch that somebody waits for, see [`Committer::hurry`]. It neither
//! reads nor retires: that is done with the [`Archive`], on other threads.
//!
//! # Invariants
//!
//! - The order of submissions is the order in the journal.
//! - Nothing waits longer than [`LAZY`] to be written, besides the writes
//!   before it.
//! - No lock is held while the disk works.
//! - One wake for each batch, whatever its length.
//!
//! # Failure
//!
//! The first error stops it for good: what waits is dropped, every submission
//! is refused with that error, and there is one last wake.

use std::{
    mem,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, TryRecvError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use ksi_sdk::protocol::Bytes;

use super::{
    Journal, PAYLOAD_MAX, WRITE_MAX,
    archive::Archive,
    error::JournalError,
    format::FRAME,
    segment::{Preparation, Spare},
};
use crate::record::Seq;

/// A batch of several waits this part of the last write for those that were
/// in the last one: who was just woken is about to submit again.
const GATHER: u32 = 8;

/// Longest time for which a record waits that nobody waits for.
pub const LAZY: Duration = Duration::from_millis(5);

/// Why a payload was not taken. Nothing of it is or will be in the journal.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SubmitError {
    /// More waits to be written than memory may hold; ask again after the
    /// next wake.
    #[error("{0} bytes wait to be written")]
    Busy(usize),
    /// One record may not be that long.
    #[error("a record of {bytes} bytes is too large, the limit is {limit}")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// What a record may have.
        limit: usize,
    },
    /// The journal stopped after an error, or was closed.
    #[error("{0}")]
    Stopped(Arc<JournalError>),
}

/// The handle of the thread that owns the journal. `Send + Sync`; dropping it
/// closes without waiting.
pub struct Committer {
    queue: Arc<Queue>,
    archive: Archive,
    thread: Option<thread::JoinHandle<()>>,
}

struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    stopped: AtomicBool,
    limit: usize,
}

struct State {
    waiting: Vec<Bytes>,
    /// Bytes that wait or are being written, with their frames.
    bytes: usize,
    /// Position of the next submission.
    next: Seq,
    /// Somebody waits for everything up to here.
    wanted: Seq,
    /// How many wait, of those in line.
    urgent: usize,
    sleep: Sleep,
    closing: bool,
    stopped: Option<Arc<JournalError>>,
}

/// What the thread is woken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sleep {
    /// It is not asleep.
    Awake,
    /// Anything.
    Sound,
    /// That somebody waits for something.
    Light,
    /// That so many wait for what is in line.
    Gathering(usize),
}

impl State {
    /// Whether somebody waits for what waits here.
    fn is_urgent(&self) -> bool {
        self.wanted + (self.waiting.len() as Seq) >= self.next && !self.waiting.is_empty()
    }

    /// Whether the thread is to be woken; it is awake then.
    fn rouses(&mut self) -> bool {
        let rouses = match self.sleep {
            Sleep::Awake => false,
            Sleep::Sound => true,
            Sleep::Light => self.is_urgent(),
            Sleep::Gathering(count) => self.urgent >= count,
        };
        if rouses {
            self.sleep = Sleep::Awake;
        }
        rouses
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self, error: Arc<JournalError>) {
        let dropped = {
            let mut state = self.lock();
            state.stopped.get_or_insert(error);
            state.bytes = 0;
            mem::take(&mut state.waiting)
        };
        self.stopped.store(true, Ordering::Release);
        drop(dropped);
    }

    /// Waits for something to write; `false` once there will be nothing.
    /// `before` is how many waited for the last batch, and becomes how many
    /// wait for this one; `patience` how long as many are waited for.
    fn take(&self, batch: &mut Vec<Bytes>, before: &mut usize, patience: Duration) -> bool {
        let mut state = self.lock();
        // What comes meanwhile, and nobody waits for, needs not wake the thread.
        state = self.sleep(state, Sleep::Light, Some(LAZY), |state| state.is_urgent());
        if state.waiting.is_empty() {
            state = self.sleep(state, Sleep::Sound, None, |state| !state.waiting.is_empty());
            state = self.sleep(state, Sleep::Light, Some(LAZY), |state| state.is_urgent());
        }
        if *before > 1 {
            let enough = |state: &State| state.urgent >= *before;
            state = self.sleep(state, Sleep::Gathering(*before), Some(patience), enough);
        }
        *before = mem::take(&mut state.urgent);
        mem::swap(batch, &mut state.waiting);
        !batch.is_empty()
    }

    /// Sleeps until something is so, for so long at most, or until the end.
    fn sleep<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        how: Sleep,
        longest: Option<Duration>,
        over: impl Fn(&State) -> bool,
    ) -> MutexGuard<'a, State> {
        let deadline = longest.map(|longest| Instant::now() + longest);
        while !over(&state) && !state.closing {
            state.sleep = how;
            state = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => break,
                Some(left) => {
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
        state.sleep = Sleep::Awake;
        state
    }
}

impl Committer {
    /// Starts the thread. `wake` is called from it after every synced batch
    /// (once each), once when the journal stops, and must not block.
    ///
    /// # Errors
    ///
    /// Where no thread can be started.
    pub fn start(journal: Journal, wake: Arc<dyn Fn() + Send + Sync>) -> std::io::Result<Self> {
        let archive = journal.archive();
        let state = State {
            waiting: Vec::new(),
            bytes: 0,
            next: journal.next_seq(),
            wanted: 0,
            urgent: 0,
            sleep: Sleep::Awake,
            closing: false,
            stopped: None,
        };
        let queue = Arc::new(Queue {
            state: Mutex::new(state),
            changed: Condvar::new(),
            stopped: AtomicBool::new(false),
            limit: journal.queue_bytes,
        });
        let mut work = Work { journal, queue: queue.clone(), wake, preparing: None };
        let thread = thread::Builder::new().name("journal".into()).spawn(move || work.run())?;
        Ok(Self { queue, archive, thread: Some(thread) })
    }

    /// Puts a payload in line and says which position it has. The order of
    /// calls is the order in the journal. It is durable once
    /// [`Committer::synced`] has reached that position.
    ///
    /// # Errors
    ///
    /// See [`SubmitError`].
    pub fn submit(&self, payload: impl Into<Bytes>) -> Result<Seq, SubmitError> {
        let payload = payload.into();
        let length = payload.len();
        if length > PAYLOAD_MAX {
            return Err(SubmitError::TooLarge { bytes: length, limit: PAYLOAD_MAX });
        }
        let (seq, wakes) = {
            let mut state = self.queue.lock();
            if let Some(error) = &state.stopped {
                return Err(SubmitError::Stopped(error.clone()));
            }
            if state.closing {
                return Err(SubmitError::Stopped(Arc::new(JournalError::Closed)));
            }
            // One that is longer than the limit is taken when nothing else waits.
            if state.bytes > 0 && state.bytes + FRAME + length > self.queue.limit {
                return Err(SubmitError::Busy(state.bytes));
            }
            state.bytes += FRAME + length;
            state.waiting.push(payload);
            let seq = state.next;
            state.next += 1;
            if state.bytes > WRITE_MAX {
                // More than one write: it is no use to let more of it gather.
                state.wanted = seq;
            }
            (seq, state.rouses())
        };
        if wakes {
            self.queue.changed.notify_one();
        }
        Ok(seq)
    }

    /// Somebody waits for a position: it is written as soon as may be. Without
    /// that it is written with what comes next, or within [`LAZY`].
    pub fn hurry(&self, seq: Seq) {
        let wakes = {
            let mut state = self.queue.lock();
            // Nobody can wait for what is not there.
            let seq = seq.min(state.next - 1);
            if seq > state.wanted {
                state.wanted = seq;
                state.urgent += 1;
            }
            state.rouses()
        };
        if wakes {
            self.queue.changed.notify_one();
        }
    }

    /// Position that the next [`Committer::submit`] returns.
    #[must_use]
    pub fn next_seq(&self) -> Seq {
        self.queue.lock().next
    }

    /// Position up to which everything is on the disk. Never goes back.
    #[must_use]
    pub fn synced(&self) -> Seq {
        self.archive.synced()
    }

    /// Bytes that wait to be written, or are being written.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.queue.lock().bytes
    }

    /// Why nothing is accepted any more, if so. What is not synced by then may
    /// or may not be there after the next open.
    #[must_use]
    pub fn stopped(&self) -> Option<Arc<JournalError>> {
        // Asked often, true once: the lock is not taken before.
        self.queue.stopped.load(Ordering::Acquire).then(|| self.queue.lock().stopped.clone())?
    }

    /// Reads, verifies and retires; to be used on a thread that may block.
    #[must_use]
    pub fn archive(&self) -> Archive {
        self.archive.clone()
    }

    /// Takes nothing more, writes and syncs what waits, and ends the thread.
    /// Blocks until then. The lock is free once all [`Archive`]s are gone too.
    ///
    /// # Errors
    ///
    /// What stopped the journal, now or before.
    pub fn close(mut self) -> Result<(), Arc<JournalError>> {
        self.closing();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has stopped the queue.
            let _ = thread.join();
        }
        self.queue.lock().stopped.clone().map_or(Ok(()), Err)
    }

    fn closing(&self) {
        self.queue.lock().closing = true;
        self.queue.changed.notify_one();
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.closing();
    }
}

/// What the thread has.
struct Work {
    journal: Journal,
    queue: Arc<Queue>,
    wake: Arc<dyn Fn() + Send + Sync>,
    /// The next segment, while another thread makes it.
    preparing: Option<(u64, Receiver<Option<Spare>>)>,
}

impl Work {
    fn run(&mut self) {
        let mut guard = Guard { queue: self.queue.clone(), wake: self.wake.clone(), ended: false };
        let mut batch = Vec::new();
        let (mut before, mut patience) = (0, Duration::ZERO);
        while self.queue.take(&mut batch, &mut before, patience) {
            let begun = Instant::now();
            if let Err(error) = self.write(&mut batch) {
                self.queue.stop(error);
                (self.wake)();
                break;
            }
            patience = begun.elapsed() / GATHER;
        }
        guard.ended = true;
        // A segment that is half made is of no use, but its thread must not outlive the lock.
        if let Some((_, spare)) = self.preparing.take() {
            let _ = spare.recv();
        }
    }

    fn write(&mut self, batch: &mut Vec<Bytes>) -> Result<(), Arc<JournalError>> {
        let mut left = &batch[..];
        while !left.is_empty() {
            self.prepare(left[0].len());
            let written = self.journal.write(left)?;
            let (done, rest) = left.split_at(written);
            left = rest;
            self.queue.lock().bytes -= super::format::frames_len(done);
            (self.wake)();
        }
        batch.clear();
        Ok(())
    }

    /// Has the next segment made in good time, by a thread that lives as long
    /// as that takes.
    fn prepare(&mut self, next: usize) {
        if let Some((index, spare)) = &self.preparing {
            let index = *index;
            let made = match spare.try_recv() {
                // It is needed now; to begin another would take longer.
                Err(TryRecvError::Empty) if self.journal.is_full_for(next) => spare.recv().ok(),
                Err(TryRecvError::Empty) => return,
                made => made.ok(),
            };
            self.preparing = None;
            self.journal.prepared(index, made.flatten());
        } else if !self.journal.is_full_for(next)
            && let Some(preparation) = self.journal.preparation()
        {
            // Where one is needed at once, the write makes it; two would make the same file.
            let index = preparation.head.index;
            let (sender, receiver) = sync_channel(1);
            let making = move |preparation: Preparation| {
                // What fails here is tried again when it is needed, and told then.
                let _ = sender.send(preparation.run().ok());
            };
            let thread = thread::Builder::new().name("journal-segment".into());
            match thread.spawn(move || making(preparation)) {
                Ok(_) => self.preparing = Some((index, receiver)),
                Err(_) => self.journal.prepared(index, None),
            }
        }
    }
}

/// Stops the queue where the thread ends by a panic, so that nobody waits for
/// ever.
struct Guard {
    queue: Arc<Queue>,
    wake: Arc<dyn Fn() + Send + Sync>,
    ended: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.ended {
            self.queue.stop(Arc::new(JournalError::Panicked));
            (self.wake)();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Positions 11 to 13 wait.
    fn state(wanted: Seq, sleep: Sleep) -> State {
        let waiting = vec![Bytes::new(); 3];
        State { waiting, bytes: 0, next: 14, wanted, urgent: 3, sleep, closing: false, stopped: None }
    }

    #[test]
    fn what_is_written_already_makes_nothing_urgent() {
        assert!(!state(10, Sleep::Light).is_urgent());
        assert!(state(11, Sleep::Light).is_urgent());
        assert!(!State { waiting: Vec::new(), ..state(13, Sleep::Light) }.is_urgent());
    }

    #[test]
    fn a_light_sleeper_is_roused_only_for_what_somebody_waits_for() {
        let cases = [
            (10, Sleep::Awake, false),
            (13, Sleep::Awake, false),
            (10, Sleep::Sound, true),
            (10, Sleep::Light, false),
            (11, Sleep::Light, true),
            (13, Sleep::Gathering(4), false),
            (10, Sleep::Gathering(3), true),
        ];
        for (wanted, sleep, roused) in cases {
            let mut state = state(wanted, sleep);
            assert_eq!(state.rouses(), roused, "{wanted} {sleep:?}");
            assert!(!state.rouses(), "once is enough");
        }
    }
}
