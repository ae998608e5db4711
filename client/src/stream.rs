//! A streamed answer: its parts, in order, as they come.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use ksi_protocol::{Frame, frame::Id};
use serde::de::DeserializeOwned;
use tokio::time::Sleep;

use crate::{Error, connection::Handle, keep_waker, lock};

/// Parts that may wait for the consumer of one stream.
const CHUNKS_MAX: usize = 64 * 1024;

/// Bytes that may wait for the consumer of one stream. One part always may.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// One part of an answer. Payloads are MessagePack; [`Part::decode`] makes a
/// value of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// A part of the answer; more follow.
    Chunk(Bytes),
    /// The last part, a summary.
    End(Bytes),
    /// The whole answer: the event does not stream.
    Reply(Bytes),
    /// The request was durable and is safe; nothing follows. Its result can be
    /// fetched by `request_id`, also on another connection: see
    /// [`crate::Client::wait`].
    Accepted {
        /// Name of the work.
        request_id: String,
        /// Its position in the journal.
        seq: u64,
    },
}

impl Part {
    /// The payload; empty for [`Part::Accepted`].
    #[must_use]
    pub fn data(&self) -> &[u8] {
        match self {
            Self::Chunk(data) | Self::End(data) | Self::Reply(data) => data,
            Self::Accepted { .. } => &[],
        }
    }

    /// The payload as a value.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`] where it does not fit.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, Error> {
        ksi_protocol::decode(self.data())
            .map_err(|refusal| Error::Decode { event: "stream".into(), reason: refusal.message })
    }

    /// Whether nothing follows.
    #[must_use]
    pub fn is_last(&self) -> bool {
        matches!(self, Self::End(_) | Self::Reply(_) | Self::Accepted { .. })
    }
}

/// Parts on their way from the connection to one [`Stream`].
#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    parts: VecDeque<Part>,
    bytes: usize,
    /// Why no more will come; told after the parts.
    failed: Option<Error>,
    waker: Option<Waker>,
}

impl Queue {
    /// Adds a part. `Err` when the consumer is too far behind: the queue has
    /// then failed. Either way, whom to wake.
    pub(crate) fn push(&self, part: Part) -> Result<Option<Waker>, Option<Waker>> {
        let mut state = lock(&self.state);
        let (chunks, bytes) = (state.parts.len(), state.bytes + part.data().len());
        if chunks >= CHUNKS_MAX || (bytes > BYTES_MAX && chunks > 0) {
            state.failed = Some(Error::Overrun { chunks, bytes: state.bytes });
            return Err(state.waker.take());
        }
        state.bytes = bytes;
        state.parts.push_back(part);
        Ok(state.waker.take())
    }

    /// Nothing more will come. Returns whom to wake.
    pub(crate) fn fail(&self, error: Error) -> Option<Waker> {
        let mut state = lock(&self.state);
        state.failed.get_or_insert(error);
        state.waker.take()
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<Result<Part, Error>> {
        let mut state = lock(&self.state);
        if let Some(part) = state.parts.pop_front() {
            state.bytes -= part.data().len();
            return Poll::Ready(Ok(part));
        }
        if let Some(error) = &state.failed {
            return Poll::Ready(Err(error.clone()));
        }
        let old = keep_waker(&mut state.waker, cx);
        drop(state);
        drop(old);
        Poll::Pending
    }
}

/// A streamed answer, from [`crate::Client::stream`]. Dropping it before its
/// end cancels the request in the daemon.
///
/// Also a [`futures_util::Stream`].
///
/// ```
/// # use ksi_client::{CallOptions, Client, Error, Options, Part, testing::Echo};
/// # use std::collections::HashMap;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// # let daemon = Echo::start()?;
/// # let client = Client::connect(Options::new(daemon.socket())).await?;
/// let to = HashMap::from([("to", 3)]);
/// let mut stream = client.stream("echo:count", &to, CallOptions::default()).await?;
/// let mut counted = Vec::new();
/// while let Some(part) = stream.next().await {
///     let part = part?;
///     if let Part::Chunk(_) = part {
///         counted.push(part.decode::<HashMap<String, u64>>()?["n"]);
///     }
/// }
/// assert_eq!(counted, [1, 2, 3]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Stream {
    handle: Arc<Handle>,
    id: Id,
    queue: Arc<Queue>,
    /// Chunks that may be on the way, where the caller asked for flow control.
    window: Option<u32>,
    /// Chunks that were taken since the last credit.
    taken: u32,
    /// The guard of the timeout, and the timeout.
    deadline: Option<(Pin<Box<Sleep>>, Duration)>,
    done: bool,
}

impl Stream {
    pub(crate) fn new(
        handle: Arc<Handle>,
        id: Id,
        queue: Arc<Queue>,
        window: Option<u32>,
        deadline: Option<(Pin<Box<Sleep>>, Duration)>,
    ) -> Self {
        Self { handle, id, queue, window, taken: 0, deadline, done: false }
    }

    /// The next part. `None` after the last part, or after an error. Nothing
    /// is lost if the future is dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] when the daemon or the handler gave up,
    /// [`Error::Lost`] when the connection broke, [`Error::Overrun`] when this
    /// side was too slow, [`Error::TimedOut`] when even the daemon's refusal
    /// did not come.
    pub async fn next(&mut self) -> Option<Result<Part, Error>> {
        std::future::poll_fn(|cx| self.poll_part(cx)).await
    }

    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Part, Error>>> {
        if self.done {
            return Poll::Ready(None);
        }
        let result = match (self.queue.poll(cx), &mut self.deadline) {
            (Poll::Ready(result), _) => result,
            (Poll::Pending, None) => return Poll::Pending,
            (Poll::Pending, Some((sleep, after))) => {
                std::task::ready!(sleep.as_mut().poll(cx));
                self.handle.core.give_up(self.id);
                Err(Error::TimedOut { after: *after })
            }
        };
        match &result {
            Ok(Part::Chunk(_)) => self.renew_credit(),
            Ok(_) | Err(_) => self.done = true,
        }
        Poll::Ready(Some(result))
    }

    /// Tells the daemon how many chunks were taken, each time that it is half
    /// of the window.
    fn renew_credit(&mut self) {
        let Some(window) = self.window else { return };
        self.taken += 1;
        if self.taken >= (window / 2).max(1) {
            // Where the connection is lost, the next part says so.
            let _ = self.handle.core.output.send(&Frame::Credit { id: self.id, n: self.taken });
            self.taken = 0;
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.done {
            self.handle.core.give_up(self.id);
        }
    }
}

impl futures_util::Stream for Stream {
    type Item = Result<Part, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_part(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll(queue: &Queue) -> Poll<Result<Part, Error>> {
        queue.poll(&Context::from_waker(Waker::noop()))
    }

    #[test]
    fn an_error_is_told_after_the_parts_that_came_before_it() {
        let queue = Queue::default();
        queue.push(Part::Chunk("a".into())).unwrap();
        queue.fail(Error::Closed);
        queue.fail(Error::TooLarge { bytes: 1 });
        assert!(matches!(poll(&queue), Poll::Ready(Ok(Part::Chunk(_)))));
        assert!(matches!(poll(&queue), Poll::Ready(Err(Error::Closed))));
    }

    #[test]
    fn a_queue_that_nobody_empties_fails_at_its_limit() {
        let queue = Queue::default();
        for _ in 0..CHUNKS_MAX {
            queue.push(Part::Chunk("a".into())).unwrap();
        }
        assert!(queue.push(Part::Chunk("a".into())).is_err());
        let queue = Queue::default();
        let large = Bytes::from(vec![0; BYTES_MAX / 4]);
        for _ in 0..4 {
            queue.push(Part::Chunk(large.clone())).unwrap();
        }
        assert!(queue.push(Part::Chunk("a".into())).is_err());
    }
}
