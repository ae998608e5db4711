//! The committer: one thread that writes what many submit.
//!
//! While it syncs one batch the next one gathers, so the more is submitted at
//! once the fewer syncs each record costs. What nobody waits for goes with the
//! next batch that somebody waits for, see [`Committer::hurry`]. It neither
//! reads nor retires: that is done with the [`Archive`], on other threads.
//!
//! On a disk that is swift the two switches of threads cost more than the sync,
//! so whoever has submitted may write by himself while the thread has nothing
//! to do: see [`Desk::write_here`].
//!
//! # Invariants
//!
//! - The order of submissions is the order in the journal: what is written is
//!   taken out of the line under the lock of the journal.
//! - Nothing waits longer than [`LAZY`](super::queue::LAZY) to be written, besides the writes
//!   before it.
//! - Whoever submits waits for no lock that is held while the disk works.
//! - One wake for each batch, whatever its length.
//!
//! # Failure
//!
//! The first error stops it for good, wherever it was written: what waits is
//! dropped, every submission is refused with that error, and there is one last
//! wake.

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, TryRecvError, sync_channel},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use ksi_sdk::protocol::Bytes;

use super::{
    Journal,
    archive::Archive,
    error::JournalError,
    queue::{Queue, SubmitError},
    segment::{Preparation, Spare},
};
use crate::record::Seq;

/// A batch of several waits this part of the last write for those that were
/// in the last one: who was just woken is about to submit again.
const GATHER: u32 = 8;

/// Longest last write after which whoever has submitted may write by himself:
/// on a slower disk a switch of threads does not show, and he has other things
/// to do.
pub const SWIFT: Duration = Duration::from_millis(1);

/// Most bytes that he writes by himself.
const HERE_MAX: usize = 64 << 10;

/// The handle of the journal that is written, and of the thread that does so. `Send + Sync`; dropping it
/// closes without waiting.
pub struct Committer {
    desk: Desk,
    archive: Archive,
    thread: Option<thread::JoinHandle<()>>,
}

/// Where one writes what is in line: the thread, or whoever has submitted.
#[derive(Clone)]
pub struct Desk(Arc<Place>);

struct Place {
    queue: Queue,
    writer: Mutex<Writer>,
    /// Told of each batch.
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Committer {
    /// Starts the thread. `wake` is called after every synced batch (once
    /// each), once when the journal stops, on the thread that wrote it, and must
    /// not block.
    ///
    /// # Errors
    ///
    /// Where no thread can be started.
    pub fn start(journal: Journal, wake: Box<dyn Fn() + Send + Sync>) -> std::io::Result<Self> {
        let archive = journal.archive();
        let place = Arc::new(Place {
            queue: Queue::new(journal.next_seq(), journal.queue_bytes),
            writer: Mutex::new(Writer { journal, preparing: None, batch: Vec::new(), took: Duration::MAX }),
            wake,
        });
        let own = place.clone();
        let thread = thread::Builder::new().name("journal".into()).spawn(move || own.run())?;
        Ok(Self { desk: Desk(place), archive, thread: Some(thread) })
    }

    /// Puts a payload in line and says which position it has. The order of
    /// calls is the order in the journal. It is durable once
    /// [`Committer::synced`] has reached that position.
    ///
    /// # Errors
    ///
    /// See [`SubmitError`].
    pub fn submit(&self, payload: impl Into<Bytes>) -> Result<Seq, SubmitError> {
        self.queue().submit(payload.into())
    }

    /// So many wait for what is in line up to a position: it is written as soon
    /// as may be. Without that it is written with what comes next, or within
    /// [`LAZY`](super::queue::LAZY).
    pub fn hurry(&self, seq: Seq, waiting: usize) {
        self.queue().hurry(seq, waiting);
    }

    fn queue(&self) -> &Queue {
        &self.desk.0.queue
    }

    /// Where whoever has submitted may write by himself.
    #[must_use]
    pub fn desk(&self) -> Desk {
        self.desk.clone()
    }

    /// Position that the next [`Committer::submit`] returns.
    #[must_use]
    pub fn next_seq(&self) -> Seq {
        self.queue().next()
    }

    /// Position up to which everything is on the disk. Never goes back.
    #[must_use]
    pub fn synced(&self) -> Seq {
        self.archive.synced()
    }

    /// Bytes that wait to be written, or are being written.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.queue().bytes()
    }

    /// Why nothing is accepted any more, if so. What is not synced by then may
    /// or may not be there after the next open.
    #[must_use]
    pub fn stopped(&self) -> Option<Arc<JournalError>> {
        self.queue().stopped()
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
        self.queue().close();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has stopped the queue.
            let _ = thread.join();
        }
        self.stopped().map_or(Ok(()), Err)
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.queue().close();
    }
}

impl Desk {
    /// Writes and syncs what is in line on the calling thread, and says whether
    /// it did. It does not while the thread is at it, nor after a write that took
    /// long, nor where there is much to write or a new file to make; then
    /// [`Committer::hurry`] has it done.
    ///
    /// It may block for as long as the disk takes. An error stops the journal.
    #[must_use]
    pub fn write_here(&self) -> bool {
        // Whoever panicked with it has stopped the queue.
        let Ok(mut writer) = self.0.writer.try_lock() else { return false };
        let bytes = self.0.queue.bytes();
        let fits = (1..=HERE_MAX).contains(&bytes) && writer.journal.has_room_for(bytes);
        let writes = fits && writer.took <= SWIFT;
        if writes {
            self.0.write(&mut writer);
        }
        writes
    }
}

impl Place {
    fn lock(&self) -> MutexGuard<'_, Writer> {
        // Whoever panicked with it has stopped the queue, and nothing more is written.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the thread does.
    fn run(&self) {
        let (mut before, mut patience) = (0, Duration::ZERO);
        while self.queue.wait(before, patience) {
            let mut writer = self.lock();
            before = self.write(&mut writer);
            patience = writer.took / GATHER;
        }
        // A segment that is half made is of no use, but its thread must not outlive the lock.
        if let Some((_, spare)) = self.lock().preparing.take() {
            let _ = spare.recv();
        }
    }

    /// Writes what is in line; how many waited for it.
    fn write(&self, writer: &mut Writer) -> usize {
        let mut guard = Guard { place: self, ended: false };
        let waited = self.queue.take(&mut writer.batch);
        if !writer.batch.is_empty() {
            let begun = Instant::now();
            if let Err(error) = writer.write(self) {
                self.queue.stop(error);
                (self.wake)();
            }
            writer.took = begun.elapsed();
        }
        guard.ended = true;
        waited
    }
}

/// Who has it writes.
struct Writer {
    journal: Journal,
    /// The next segment, while another thread makes it.
    preparing: Option<(u64, Receiver<Option<Spare>>)>,
    batch: Vec<Bytes>,
    /// How long the last write took.
    took: Duration,
}

impl Writer {
    fn write(&mut self, place: &Place) -> Result<(), Arc<JournalError>> {
        let mut batch = mem::take(&mut self.batch);
        let mut left = &batch[..];
        while !left.is_empty() {
            self.prepare(left[0].len());
            let written = self.journal.write(left, wall_ms())?;
            let (done, rest) = left.split_at(written);
            left = rest;
            place.queue.written(super::format::frames_len(done));
            (place.wake)();
        }
        batch.clear();
        self.batch = batch;
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

/// When a segment begins, as the wall clock says, whatever it is set to: no thread here has the plugin's, and
/// nothing is decided by how old these segments are.
fn wall_ms() -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Stops the queue where a write ends by a panic, so that nobody waits for
/// ever.
struct Guard<'a> {
    place: &'a Place,
    ended: bool,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.place.queue.stop(Arc::new(JournalError::Panicked));
            (self.place.wake)();
        }
    }
}
