//! The way out: frames of all tasks, in order, in as few writes as possible.
//!
//! A frame is encoded into one shared buffer. If nobody is writing and the
//! connection was quiet, its sender writes at once: a lone request costs no
//! hop through another task. If frames come in quick succession, the writing
//! task takes over; it lets every task that is ready run first, and then
//! writes all they had to say in one go.
//!
//! # Invariants
//!
//! - At most one of senders and writing task writes at a time ([`Writer`]), so
//!   frames never interleave.
//! - `rest` was begun before anything in `waiting`, and goes out first.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use bytes::{Buf, BytesMut};
use ksi_protocol::Frame;
use tokio::{net::unix::OwnedWriteHalf, sync::Notify};

use crate::{Error, Loss, lock};

/// Two frames within this time are the beginning of many. A request and the
/// next one after its answer are further apart than this on any machine.
const BURST: Duration = Duration::from_micros(12);

/// Bytes that may wait to be written before senders wait too.
const WAITING_BYTES_MAX: usize = 1024 * 1024;

/// A buffer that grew beyond this for one large frame is not kept.
const SPARE_BYTES_MAX: usize = 256 * 1024;

/// The way out of one client, over all of its connections.
#[derive(Debug)]
pub(crate) struct Output {
    state: Mutex<State>,
    /// Wakes the writing task.
    work: Notify,
    /// Wakes senders that wait for room or for a connection.
    change: Notify,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Counts connections, so that who worked on an old one can tell.
    epoch: u64,
    /// Encoded frames that nobody has begun to write.
    waiting: BytesMut,
    /// What is left of frames that a sender could not write whole.
    rest: BytesMut,
    /// An empty buffer, kept for its memory.
    spare: BytesMut,
    writer: Writer,
    /// When a sender last wrote, or handed over to the writing task.
    last: Instant,
}

#[derive(Debug)]
enum Phase {
    Up(Arc<OwnedWriteHalf>),
    Down,
    /// What waits is still written, then the connection is shut.
    Finishing,
    Closed(Error),
}

/// Who writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writer {
    Nobody,
    Sender,
    Task,
}

impl State {
    fn check(&self) -> Result<(), Error> {
        match &self.phase {
            Phase::Up(_) => Ok(()),
            Phase::Down => Err(Error::Lost(Loss::Down)),
            Phase::Finishing => Err(Error::Closed),
            Phase::Closed(error) => Err(error.clone()),
        }
    }

    fn keep(&mut self, mut buffer: BytesMut) {
        if buffer.capacity() <= SPARE_BYTES_MAX {
            buffer.clear();
            self.spare = buffer;
        }
    }
}

impl Output {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                phase: Phase::Down,
                epoch: 0,
                waiting: BytesMut::new(),
                rest: BytesMut::new(),
                spare: BytesMut::new(),
                writer: Writer::Nobody,
                last: Instant::now(),
            }),
            work: Notify::new(),
            change: Notify::new(),
        }
    }

    /// A new connection. Returns its epoch.
    pub(crate) fn open(&self, half: Arc<OwnedWriteHalf>) -> u64 {
        let mut state = lock(&self.state);
        if !matches!(state.phase, Phase::Finishing | Phase::Closed(_)) {
            state.phase = Phase::Up(half);
        }
        state.epoch += 1;
        let epoch = state.epoch;
        drop(state);
        self.change.notify_waiters();
        epoch
    }

    /// The connection is lost: for good with an error, or for now.
    pub(crate) fn lose(&self, closed: Option<Error>) {
        let mut state = lock(&self.state);
        state.phase = match closed {
            Some(error) => Phase::Closed(error),
            None => Phase::Down,
        };
        state.epoch += 1;
        state.waiting.clear();
        state.rest.clear();
        state.writer = Writer::Nobody;
        drop(state);
        self.change.notify_waiters();
    }

    /// Takes nothing more; what waits is written, then the connection is shut.
    pub(crate) fn finish(&self) {
        let mut state = lock(&self.state);
        match state.phase {
            Phase::Up(_) => state.phase = Phase::Finishing,
            Phase::Down => state.phase = Phase::Closed(Error::Closed),
            Phase::Finishing | Phase::Closed(_) => return,
        }
        if state.writer == Writer::Nobody {
            self.hand_over(state);
        }
        self.change.notify_waiters();
    }

    /// Whether the client takes nothing more because it was closed.
    pub(crate) fn is_finishing(&self) -> bool {
        matches!(lock(&self.state).phase, Phase::Finishing | Phase::Closed(Error::Closed))
    }

    /// Whether frames can be sent now.
    pub(crate) fn is_up(&self) -> bool {
        matches!(lock(&self.state).phase, Phase::Up(_))
    }

    /// The epoch, if frames can be sent now without more waiting than is fair.
    pub(crate) fn ready_now(&self) -> Result<Option<u64>, Error> {
        let state = lock(&self.state);
        match state.check() {
            Ok(()) => Ok((state.waiting.len() < WAITING_BYTES_MAX).then_some(state.epoch)),
            Err(Error::Lost(Loss::Down)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits until there is a connection with room. Returns its epoch.
    pub(crate) async fn ready(&self) -> Result<u64, Error> {
        loop {
            let mut change = std::pin::pin!(self.change.notified());
            change.as_mut().enable();
            if let Some(epoch) = self.ready_now()? {
                return Ok(epoch);
            }
            change.await;
        }
    }

    /// Waits until frames can be sent, or cannot. For ever, where it is closed for good
    /// and a connection is waited for.
    pub(crate) async fn until(&self, up: bool) {
        loop {
            let mut change = std::pin::pin!(self.change.notified());
            change.as_mut().enable();
            if self.is_up() == up {
                return;
            }
            change.await;
        }
    }

    /// Sends a frame; never waits.
    pub(crate) fn send(&self, frame: &Frame) -> Result<(), Error> {
        let mut state = lock(&self.state);
        state.check()?;
        frame.encode(&mut state.waiting).map_err(Error::from_encoding)?;
        self.flush(state);
        Ok(())
    }

    /// Sends a frame on the connection `epoch`. Returns whether that was still
    /// there.
    pub(crate) fn send_in(&self, epoch: u64, frame: &Frame) -> Result<bool, Error> {
        let mut state = lock(&self.state);
        if state.epoch != epoch {
            return Ok(false);
        }
        state.check()?;
        frame.encode(&mut state.waiting).map_err(Error::from_encoding)?;
        self.flush(state);
        Ok(true)
    }

    /// Gives the writing to the task.
    fn hand_over(&self, mut state: MutexGuard<'_, State>) {
        state.writer = Writer::Task;
        drop(state);
        self.work.notify_one();
    }

    /// Writes what waits, or sees to it that somebody does.
    fn flush(&self, mut state: MutexGuard<'_, State>) {
        if state.writer != Writer::Nobody {
            return;
        }
        let now = Instant::now();
        let burst = now.duration_since(state.last) < BURST;
        state.last = now;
        let Phase::Up(half) = &state.phase else { return };
        if burst {
            return self.hand_over(state);
        }
        let (half, epoch) = (Arc::clone(half), state.epoch);
        state.writer = Writer::Sender;
        let spare = std::mem::take(&mut state.spare);
        let mut mine = std::mem::replace(&mut state.waiting, spare);
        drop(state);
        // Where the socket reports an error, the task will meet it again and
        // report it.
        let written = half.try_write(&mine).unwrap_or(0);
        drop(half);
        let mut state = lock(&self.state);
        if state.epoch != epoch {
            return;
        }
        if written == mine.len() {
            state.keep(mine);
            if state.waiting.is_empty() && matches!(state.phase, Phase::Up(_)) {
                state.writer = Writer::Nobody;
                return;
            }
        } else {
            mine.advance(written);
            state.rest = mine;
        }
        self.hand_over(state);
    }

    /// The writing task of one connection. Ends well when the client finishes
    /// or the connection is replaced; the socket is shut for writing when it
    /// drops `half`.
    pub(crate) async fn write(&self, epoch: u64, half: Arc<OwnedWriteHalf>) -> io::Result<()> {
        loop {
            self.work.notified().await;
            // Everybody who is ready to send may do so first.
            tokio::task::yield_now().await;
            loop {
                let mut mine = {
                    let mut state = lock(&self.state);
                    if state.epoch != epoch {
                        return Ok(());
                    }
                    if state.writer != Writer::Task {
                        break;
                    }
                    if !state.rest.is_empty() {
                        std::mem::take(&mut state.rest)
                    } else if !state.waiting.is_empty() {
                        let spare = std::mem::take(&mut state.spare);
                        std::mem::replace(&mut state.waiting, spare)
                    } else {
                        state.writer = Writer::Nobody;
                        if matches!(state.phase, Phase::Finishing) {
                            state.phase = Phase::Closed(Error::Closed);
                            return Ok(());
                        }
                        break;
                    }
                };
                write_whole(&half, &mut mine).await?;
                lock(&self.state).keep(mine);
                self.change.notify_waiters();
            }
        }
    }
}

async fn write_whole(half: &OwnedWriteHalf, buffer: &mut BytesMut) -> io::Result<()> {
    while !buffer.is_empty() {
        match half.try_write(buffer) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => buffer.advance(written),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => half.writable().await?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
