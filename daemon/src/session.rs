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

use ksi_kernel::{Grant, Quota, Role};
use ksi_protocol::{Code, Pattern, Refusal};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::account::{Accounts, Connection, Share};
use crate::hub::Hub;

/// What sessions may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// What each may have open.
    pub quota: Quota,
    /// Users besides the daemon's own who may connect.
    pub allow_uids: Vec<u32>,
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
    accounts: Accounts,
    next: AtomicU64,
    open: AtomicUsize,
    tracker: TaskTracker,
    closing: CancellationToken,
}

impl Sessions {
    /// No session yet.
    #[must_use]
    pub fn new(hub: Arc<Hub>, limits: Limits) -> Arc<Self> {
        let threads = hub.runtime().metrics().num_workers();
        Arc::new(Self {
            accounts: Accounts::new(limits.share, threads),
            hub,
            limits,
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
                Ok((stream, _)) => self.clone().admit(stream),
                Err(error) => {
                    // Out of descriptors, most likely: clients that leave free some.
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Closes what is open, after it was written.
    pub async fn close(&self) {
        self.closing.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }

    fn admit(self: Arc<Self>, stream: UnixStream) {
        let connection = match self.check(&stream) {
            Ok(connection) => connection,
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
            reader::run(&sessions, stream, number, &connection.0).await;
        });
    }

    /// Charges the user at the other end for the connection.
    fn check(&self, stream: &UnixStream) -> Result<Connection, Refusal> {
        let peer = getsockopt(stream, PeerCredentials).map_err(|errno| {
            Refusal::new(Code::Denied, format!("the kernel does not tell who you are: {errno}"))
        })?;
        may_enter(peer.uid(), nix::unistd::geteuid().as_raw(), &self.limits.allow_uids)?;
        if self.count() >= self.limits.connections {
            let message = format!("{} connections are open, the limit", self.limits.connections);
            return Err(Refusal::new(Code::Busy, message).retry_after_ms(1000));
        }
        self.accounts.of(&format!("uid:{}", peer.uid())).connect()
    }

    fn attach(&self, handle: crate::hub::Handle, number: u64) -> Arc<crate::hub::Port> {
        let origin = format!("session:{number}");
        // What plugins keep is theirs alone.
        let grant = Grant::AllBut { may_not_call: Pattern::parse("space:**").into_iter().collect() };
        self.hub.kernel.attach(&origin, Role::Client, handle, self.limits.quota, grant)
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

/// Whether a user may use the daemon of another.
fn may_enter(peer: u32, owner: u32, allowed: &[u32]) -> Result<(), Refusal> {
    if peer == owner || allowed.contains(&peer) {
        return Ok(());
    }
    Err(Refusal::new(Code::Denied, format!("user {peer} may not use the daemon of user {owner}"))
        .hint("its owner can allow you: daemon.allow_uids in ksi.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owner_and_whom_he_allows_may_enter() {
        assert!(may_enter(1000, 1000, &[]).is_ok());
        assert!(may_enter(1001, 1000, &[1001]).is_ok());
        let refusal = may_enter(1002, 1000, &[1001]).unwrap_err();
        assert_eq!(refusal.code, Code::Denied);
        assert!(refusal.message.contains("1002") && refusal.message.contains("1000"), "{refusal}");
        assert!(may_enter(0, 1000, &[]).is_err(), "not even root: he has other ways");
    }
}
