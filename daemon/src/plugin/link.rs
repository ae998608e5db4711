//! A plugin in a child process: the daemon's end of its socket.

use std::{
    os::unix::net::UnixStream as StdStream,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::BytesMut;
use ksi_kernel::{Delivery, Token};
use ksi_protocol::{Code, Frame, Refusal, limits};
use tokio::{net::UnixStream, sync::Notify};

use super::guest::{Guest, Life};
use crate::{
    hub::Hub,
    wire::{Wire, write_when_full},
    woken,
};

/// Unread bytes beyond which requests are refused.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// Unread bytes beyond which events for a listener are dropped. Requests are
/// bounded by what the plugin may hold.
const EVENT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The daemon's end of a child's socket.
#[derive(Debug)]
pub struct Link {
    /// Who it is.
    pub guest: Guest,
    /// Told when the child was at rest and is given something, so that its
    /// keeper sees to its heartbeat.
    pub busy: Notify,
    rests: AtomicBool,
    socket: UnixStream,
    writer: Notify,
    wire: Mutex<Wire>,
    dropped: AtomicU64,
}

impl Link {
    /// Takes the daemon's end.
    ///
    /// # Errors
    ///
    /// Where the runtime cannot watch the socket.
    pub fn new(guest: Guest, socket: StdStream) -> std::io::Result<Arc<Self>> {
        socket.set_nonblocking(true)?;
        Ok(Arc::new(Self {
            guest,
            busy: Notify::new(),
            rests: AtomicBool::new(true),
            socket: UnixStream::from_std(socket)?,
            writer: Notify::new(),
            wire: Mutex::default(),
            dropped: AtomicU64::new(0),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Wire> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a delivery; it is written by the next flush. A request that fits
    /// no frame, or for which there is no room, comes back with its refusal.
    #[must_use]
    pub fn push(&self, delivery: Delivery, now_ms: u64) -> Option<(Token, Refusal)> {
        let refused = self.queue(delivery, now_ms);
        // Only now: whoever pings says first that the child is at rest, so that
        // what a ping did not follow ends the rest.
        self.stir();
        refused
    }

    fn queue(&self, delivery: Delivery, now_ms: u64) -> Option<(Token, Refusal)> {
        let event = matches!(delivery, Delivery::Event { .. });
        let (request, answer) = match &delivery {
            Delivery::Request { token, .. } => (Some(*token), None),
            Delivery::Answer { id, .. } => (None, Some(*id)),
            _ => (None, None),
        };
        let frame = self.guest.frame(delivery, now_ms);
        let mut wire = self.lock();
        if wire.is_dead() {
            return None;
        }
        if wire.buffer.len() > BYTES_MAX {
            // Requests that are open are bounded elsewhere; this bounds those
            // that were given up before the child has read them.
            match &frame {
                Frame::Request(_) => return Some((request?, busy())),
                Frame::Credit { .. } => return None,
                _ => {}
            }
        }
        if event && wire.buffer.len() > EVENT_BYTES_MAX {
            if self.dropped.fetch_add(1, Ordering::Relaxed) == 0 {
                tracing::warn!(plugin = self.guest.name, "events are dropped: the plugin is too slow");
            }
            return None;
        }
        let Err(error) = frame.encode(&mut wire.buffer) else { return None };
        tracing::warn!(plugin = self.guest.name, "{error}");
        if let Some(id) = answer {
            // A refusal of a few words always fits.
            let _ = Frame::Refusal { id: Some(id), refusal: too_large() }.encode(&mut wire.buffer);
        }
        Some((request?, too_large()))
    }

    /// Says something of the daemon's own.
    pub fn send(&self, frame: &Frame) {
        // Frames of the daemon's own are small.
        let _ = frame.encode(&mut self.lock().buffer);
        self.flush();
    }

    /// The child is at rest until it is given something.
    pub fn rest(&self) {
        self.rests.store(true, Ordering::Release);
    }

    /// Ends that rest: its keeper asks whether it still answers. Costs no write
    /// to what others share while it is over already.
    pub fn stir(&self) {
        if self.rests.load(Ordering::Relaxed) && self.rests.swap(false, Ordering::AcqRel) {
            self.busy.notify_one();
            woken::note();
        }
    }

    /// Writes as much as the socket takes now.
    pub fn flush(&self) {
        self.lock().flush(&self.socket, &self.writer);
    }

    /// Drops everything: the child is gone.
    pub fn kill(&self) {
        self.lock().kill();
    }

    /// Reads what the child says until it is gone, for the life of the link.
    /// Also writes where the socket was full.
    pub async fn serve(self: Arc<Self>, hub: Arc<Hub>) {
        let writing = write_when_full(&self.socket, &self.writer, limits::REQUEST_TIMEOUT_MAX, || {
            let mut wire = self.lock();
            wire.unblock();
            wire.flush(&self.socket, &self.writer)
        });
        tokio::pin!(writing);
        let reading = self.read(&hub);
        tokio::pin!(reading);
        let reason = tokio::select! {
            reason = &mut reading => reason,
            // It takes nothing more, but what it has said still counts.
            _ = &mut writing => reading.await,
        };
        self.kill();
        if let Some(reason) = reason {
            self.guest.tell(Life::Died(reason));
        }
    }

    /// Why the child must be given up; `None` where it closed its end, since
    /// its exit status will say more.
    async fn read(&self, hub: &Hub) -> Option<String> {
        let mut input = BytesMut::with_capacity(64 * 1024);
        loop {
            self.socket.readable().await.ok()?;
            input.reserve(64 * 1024);
            match self.socket.try_read_buf(&mut input) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(_) => return None,
            }
            let mut turn = hub.turn();
            loop {
                match Frame::split(&mut input) {
                    Ok(Some(frame)) => self.guest.hear(&mut turn, frame),
                    Ok(None) => break,
                    Err(error) => {
                        turn.end();
                        return Some(format!("broke the contract: {error}"));
                    }
                }
            }
            turn.end();
            tokio::task::coop::consume_budget().await;
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let dropped = self.dropped.load(Ordering::Relaxed);
        if dropped > 0 {
            tracing::warn!(plugin = self.guest.name, dropped, "events were dropped: the plugin was too slow");
        }
    }
}

/// What becomes of a request for which its owner has no room.
#[must_use]
pub fn busy() -> Refusal {
    Refusal::new(Code::Busy, "the plugin does not keep up with what it is asked").retry_after_ms(200)
}

/// What becomes of an envelope that fits no frame.
fn too_large() -> Refusal {
    let limit = limits::FRAME_BYTES_MAX;
    Refusal::new(Code::TooLarge, format!("the payload does not fit a frame of {limit} bytes"))
        .hint("pass large data by a file, and its path in the payload")
}
