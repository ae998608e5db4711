//! Bytes on their way into one socket.
//!
//! Whoever has something to say appends it to the buffer and flushes without
//! waiting; where the socket is full, a task that waits for it goes on.

use std::{io, time::Duration};

use bytes::{Buf, BytesMut};
use ksi_kernel::{Answer, Ask};
use ksi_protocol::{
    Code, Frame, Refusal,
    frame::{Id, Request},
    limits,
};
use tokio::{io::Interest, net::UnixStream, sync::Notify};

use crate::woken;

/// Capacity that an empty buffer keeps: one large answer shall not be paid for
/// as long as its client stays.
const KEPT_BYTES: usize = 256 * 1024;

/// Bytes that the daemon may add to what it passes on: origin, times, numbers
/// and the names of fields.
const ENVELOPE_BYTES: usize = 1024;

/// How a flush ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushed {
    /// Everything is in the socket.
    Done,
    /// The socket is full; the writer task goes on.
    Blocked,
    /// The peer is gone.
    Dead,
}

/// The buffer before a socket. Lives under the lock of its owner.
#[derive(Debug, Default)]
pub struct Wire {
    /// Encoded frames.
    pub buffer: BytesMut,
    /// The most that `buffer` has held since it was made.
    most: usize,
    blocked: bool,
    dead: bool,
}

impl Wire {
    /// Writes as much as the socket takes now. While the socket is full this
    /// does nothing: the writer task will.
    pub fn flush(&mut self, socket: &UnixStream, writer: &Notify) -> Flushed {
        if self.dead {
            return Flushed::Dead;
        }
        if self.blocked {
            return Flushed::Blocked;
        }
        self.most = self.most.max(self.buffer.len());
        while !self.buffer.is_empty() {
            match socket.try_write(&self.buffer) {
                Ok(written) => self.buffer.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked = true;
                    writer.notify_one();
                    woken::note();
                    return Flushed::Blocked;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.kill();
                    return Flushed::Dead;
                }
            }
        }
        if self.most > KEPT_BYTES {
            self.buffer = BytesMut::new();
            self.most = 0;
        }
        Flushed::Done
    }

    /// The socket can take more.
    pub fn unblock(&mut self) {
        self.blocked = false;
    }

    /// The peer is gone; what is said from now on is dropped.
    pub fn kill(&mut self) {
        self.dead = true;
        self.buffer = BytesMut::new();
    }

    /// Whether the socket is full.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Whether the peer is gone.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.dead
    }
}

/// The writer task of a socket: waits until `go` is told that the socket is
/// full, then for room, then lets `flush` continue. Ends when the peer is gone
/// or leaves its socket unread for longer than `deadline`; returns whether the
/// latter was the reason.
pub async fn write_when_full(
    socket: &UnixStream,
    go: &Notify,
    deadline: Duration,
    mut flush: impl FnMut() -> Flushed,
) -> bool {
    loop {
        go.notified().await;
        loop {
            match tokio::time::timeout(deadline, socket.ready(Interest::WRITABLE)).await {
                Err(_) => return true,
                Ok(Err(_)) => return false,
                Ok(Ok(_)) => {}
            }
            match flush() {
                Flushed::Done => break,
                Flushed::Blocked => {}
                Flushed::Dead => return false,
            }
        }
    }
}

/// What comes in as a frame must fit into one on its way out, with all that the
/// daemon adds: neither a plugin nor a listener can be sent anything longer.
pub fn check_size(data: &[u8], texts: [Option<&str>; 2]) -> Result<(), Refusal> {
    let bytes = data.len() + texts.into_iter().flatten().map(str::len).sum::<usize>();
    let most = limits::FRAME_BYTES_MAX - ENVELOPE_BYTES;
    if bytes <= most {
        return Ok(());
    }
    Err(Refusal::new(
        Code::TooLarge,
        format!("payload of {bytes} bytes is longer than the limit of {most} bytes"),
    )
    .hint("send less, or in parts"))
}

/// An answer as the frame that it is for whoever has asked under this id.
#[must_use]
pub fn answer(id: Id, answer: Answer) -> Frame {
    match answer {
        Answer::Reply(data) => Frame::Reply { id, data },
        Answer::Chunk(data) => Frame::Chunk { id, data },
        Answer::End(data) => Frame::End { id, data },
        Answer::Accepted { request_id, seq } => Frame::Accepted { id, request_id, seq },
        Answer::Refusal(refusal) => Frame::Refusal { id: Some(id), refusal: *refusal },
    }
}

/// A request frame as the kernel takes it.
#[must_use]
pub fn ask(request: Request) -> Ask {
    Ask {
        timeout: request.timeout_ms.map(Duration::from_millis),
        credit: request.credit,
        correlation_id: request.correlation_id.map(Into::into),
        idempotency_key: request.idempotency_key.map(Into::into),
        expires_in: request.expires_in_ms.map(Duration::from_millis),
        parent: request.parent,
        on_behalf: request.on_behalf,
        chain: request.chain,
        ..Ask::new(request.id, request.event, request.data)
    }
}
