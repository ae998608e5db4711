//! Sessions: one client connection each, in either encoding.
//!
//! The first byte decides: `{` begins JSON lines, a zero the length of a
//! MessagePack frame. Requests are handed to the hub in batches, as many as one
//! read brought. A client may close its sending side and still gets its
//! answers; one that is gone altogether has its requests cancelled.

pub mod account;
mod credit;
pub mod face;
pub mod body;
pub mod outbox;
mod reader;
mod socket;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use ksi_identity::{Authority, Principal};
use ksi_kernel::{Quota, Role};
use ksi_protocol::{Code, Refusal};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::account::{Accounts, Connection, Share};
use crate::{
    hub::{Handle, Hub, Port},
    plugin::offspring::Offspring,
};

/// What sessions may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// What each may have open.
    pub quota: Quota,
    /// What all connections of one user may have.
    pub share: Share,
    /// Time a new connection has to say its first whole frame.
    pub handshake_timeout: Duration,
    /// Time for which a client may leave its socket unread while data waits.
    pub write_deadline: Duration,
}

/// All sessions.
pub struct Sessions {
    hub: Arc<Hub>,
    limits: Limits,
    offspring: Offspring,
    accounts: Accounts,
    next: AtomicU64,
    open: AtomicUsize,
    tracker: TaskTracker,
    closing: CancellationToken,
}

impl Sessions {
    /// No session yet.
    #[must_use]
    pub fn new(hub: Arc<Hub>, limits: Limits, offspring: Offspring) -> Arc<Self> {
        let threads = hub.runtime().metrics().num_workers();
        Arc::new(Self {
            accounts: Accounts::new(limits.share, threads),
            hub,
            limits,
            offspring,
            next: AtomicU64::new(1),
            open: AtomicUsize::new(0),
            tracker: TaskTracker::new(),
            closing: CancellationToken::new(),
        })
    }

    /// How many are open.
    #[must_use]
    pub fn count(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Accepts clients until `stop`.
    pub async fn accept(self: Arc<Self>, listener: UnixListener, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
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
                    self.clone().admit(stream, checked);
                }
                Err(error) => wait_after(&error).await,
            }
        }
    }

    /// Closes what is open, after it was written.
    pub async fn close(&self) {
        self.closing.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }

    fn admit(self: Arc<Self>, stream: UnixStream, checked: Result<(Arc<Principal>, Connection), Refusal>) {
        let (principal, connection) = match checked {
            Ok(admitted) => admitted,
            Err(refusal) => {
                tracing::warn!("connection refused: {refusal}");
                // The peer has not said which encoding it speaks; a line is
                // readable for a person at least.
                let line = ksi_protocol::json::refusal_line(None, &refusal);
                let _ = stream.try_write(format!("{line}\n").as_bytes());
                return;
            }
        };
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let open = Open::new(&self);
        let sessions = self.clone();
        self.tracker.spawn(async move {
            let _open = open;
            reader::run(&sessions, stream, number, principal, &connection.0).await;
        });
    }

    /// Whether a client may come in, and as whom, where that can be found out. Its
    /// user's account is charged for the connection.
    fn check(&self, stream: &UnixStream) -> std::io::Result<Result<(Arc<Principal>, Connection), Refusal>> {
        match self.principal(stream) {
            Ok(principal) => Ok(self.offspring.admit(stream)?.and_then(|()| {
                let connection = self.accounts.of(&principal.name).connect()?;
                Ok((principal, connection))
            })),
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

    fn attach(&self, handle: Handle, number: u64, principal: Arc<Principal>) -> Arc<Port> {
        let origin = format!("session:{number}");
        let authority = Authority::of(&origin, principal);
        self.hub.kernel.attach(Role::Client, handle, self.limits.quota, authority)
    }
}

/// Counts a session as long as it lives, however it ends.
struct Open(Arc<Sessions>);

impl Open {
    fn new(sessions: &Arc<Sessions>) -> Self {
        sessions.open.fetch_add(1, Ordering::Relaxed);
        Self(sessions.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Out of descriptors, most likely: clients that leave free some.
async fn wait_after(error: &std::io::Error) {
    tracing::warn!("cannot accept a connection: {error}");
    tokio::time::sleep(Duration::from_millis(50)).await;
}
