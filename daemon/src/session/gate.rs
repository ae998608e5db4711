//! The gate: lets clients in, on a thread of its own, so that a newcomer does
//! not wait behind what those do who are in already, or who want to be.
//!
//! Who comes too often or has too much open is turned away here, with a line
//! that says so, before anything is spent on it. Its socket is closed a moment
//! later, so that what the client says first does not fail before it has read
//! why.

use std::{
    collections::VecDeque,
    io::{self, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use ksi_identity::Principal;
use ksi_protocol::{Code, Refusal};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use tokio::{
    io::unix::AsyncFd,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{Open, Sessions, account::Connection, reader};

/// The stack of the thread: it looks, and decides.
const STACK_BYTES: usize = 256 * 1024;

/// Time that a client has to read why it was turned away, and how many have that
/// at once.
const LINGER: Duration = Duration::from_millis(500);
const LINGERING_MAX: usize = 256;

/// Somebody who may come in.
type Admitted = (Arc<Principal>, Connection);

impl Sessions {
    /// Accepts clients until `stop`, on another thread.
    ///
    /// # Errors
    ///
    /// Where the system has no thread or no descriptor left.
    pub fn accept(self: Arc<Self>, listener: UnixListener, stop: CancellationToken) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let entered = runtime.enter();
        #[expect(deprecated, reason = "its flaw is with types whose descriptor changes; a listener's stays")]
        let listener = AsyncFd::new(listener)?;
        drop(entered);
        let gate = async move { self.keep_gate(&listener, &stop).await };
        thread::Builder::new()
            .name("gate".into())
            .stack_size(STACK_BYTES)
            .spawn(move || runtime.block_on(gate))?;
        Ok(())
    }

    async fn keep_gate(self: &Arc<Self>, listener: &AsyncFd<UnixListener>, stop: &CancellationToken) {
        let mut lingering: VecDeque<(Instant, UnixStream)> = VecDeque::new();
        loop {
            let now = Instant::now();
            while lingering.len() > LINGERING_MAX || lingering.front().is_some_and(|(end, _)| *end <= now) {
                lingering.pop_front();
            }
            let next = lingering.front().map_or(now + LINGER, |(end, _)| *end);
            let accepting = listener.async_io(tokio::io::Interest::READABLE, UnixListener::accept);
            let accepted = tokio::select! {
                accepted = accepting => accepted,
                () = sleep_until(next), if !lingering.is_empty() => continue,
                () = stop.cancelled() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    // It is asked who it is, which takes descriptors, too.
                    let checked = loop {
                        match self.check(&stream) {
                            Ok(checked) => break checked,
                            Err(error) => wait_after(&error).await,
                        }
                        if stop.is_cancelled() {
                            return;
                        }
                    };
                    let let_in = match checked {
                        Ok(admitted) => self.admit(stream, admitted),
                        Err(refusal) => {
                            self.turn_away(&stream, &refusal);
                            lingering.push_back((Instant::now() + LINGER, stream));
                            Ok(())
                        }
                    };
                    if let Err(error) = let_in {
                        wait_after(&error).await;
                    }
                }
                Err(error) => wait_after(&error).await,
            }
        }
    }

    /// Turns a client away; it never waits for that one to read why.
    fn turn_away(&self, mut stream: &UnixStream, refusal: &Refusal) {
        if let Some(untold) = self.complaints.count(self.hub.now_ms()) {
            tracing::warn!(untold, "connection refused: {refusal}");
        }
        // The peer has not said which encoding it speaks; a line is readable
        // for a person at least.
        let line = ksi_protocol::json::refusal_line(None, refusal);
        // It may be gone already.
        let _ = stream
            .set_nonblocking(true)
            .and_then(|()| stream.write_all(format!("{line}\n").as_bytes()))
            .and_then(|()| stream.shutdown(Shutdown::Write));
    }

    /// Serves a client from here on, on the threads that serve all of them.
    fn admit(self: &Arc<Self>, stream: UnixStream, (principal, connection): Admitted) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let runtime = self.threads_of(&principal, &connection.0);
        let stream = {
            let _entered = runtime.enter();
            tokio::net::UnixStream::from_std(stream)?
        };
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let open = Open::new(self);
        let sessions = self.clone();
        let session = async move {
            let _open = open;
            reader::run(&sessions, stream, number, principal, connection).await;
        };
        self.tracker.spawn_on(session, &runtime);
        Ok(())
    }

    /// Whether a client may come in, and as whom, where that can be found out. Its
    /// user's account is charged for the connection.
    fn check(&self, stream: &UnixStream) -> io::Result<Result<Admitted, Refusal>> {
        match self.principal(stream) {
            // The account first: it costs less to refuse by it than to look whose
            // process that is.
            Ok(principal) => match self.account_of(&principal).connect(self.hub.now_ms()) {
                Ok(connection) => Ok(self.offspring.admit(stream)?.map(|()| (principal, connection))),
                Err(refusal) => Ok(Err(refusal)),
            },
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    /// Who is at the other end, as the system says.
    fn principal(&self, stream: &UnixStream) -> Result<Arc<Principal>, Refusal> {
        let peer = getsockopt(stream, PeerCredentials).map_err(|errno| {
            Refusal::new(Code::Denied, format!("the kernel does not tell who you are: {errno}"))
        })?;
        let principal = self.hub.identity.of_user(peer.uid())?;
        if self.count() >= self.limits.connections {
            let message = format!("{} connections are open, the limit", self.limits.connections);
            return Err(Refusal::new(Code::Busy, message).retry_after_ms(1000));
        }
        Ok(principal)
    }
}

/// Out of descriptors, most likely: clients that leave free some.
async fn wait_after(error: &io::Error) {
    tracing::warn!("cannot accept a connection: {error}");
    tokio::time::sleep(Duration::from_millis(50)).await;
}
