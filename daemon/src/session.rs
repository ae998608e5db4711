//! Sessions: one client connection each, in either encoding.
//!
//! The first byte decides: `{` begins JSON lines, a zero the length of a
//! MessagePack frame. Requests are handed to the hub in batches, as many as one
//! read brought. A client may close its sending side and still gets its
//! answers; one that is gone altogether has its requests cancelled.

pub mod account;
mod credit;
mod gate;
mod greeting;
pub mod face;
pub mod body;
pub mod outbox;
mod pace;
pub mod place;
mod reader;
mod socket;
mod unfinished;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use ksi_identity::{Authority, Principal};
use ksi_kernel::{Quota, Role};
use ksi_protocol::{Refusal, token::Token};
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::account::{Account, Accounts, Connection};
use crate::{
    complaints::Complaints,
    config::Share,
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
    complaints: Complaints,
    next: AtomicU64,
    open: AtomicUsize,
    /// Told when one has ended.
    left: Notify,
    tracker: TaskTracker,
    closing: CancellationToken,
}

impl Sessions {
    /// No session yet.
    #[must_use]
    pub fn new(hub: Arc<Hub>, limits: Limits, offspring: Offspring) -> Arc<Self> {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Arc::new(Self {
            accounts: Accounts::new(limits.share, processors.min(hub.runtime().metrics().num_workers())),
            complaints: Complaints::default(),
            hub,
            limits,
            offspring,
            next: AtomicU64::new(1),
            open: AtomicUsize::new(0),
            left: Notify::new(),
            tracker: TaskTracker::new(),
            closing: CancellationToken::new(),
        })
    }

    /// How many are open.
    #[must_use]
    pub fn count(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Resolves when one has ended since this was asked for last.
    pub async fn left(&self) {
        self.left.notified().await;
    }

    /// Closes what is open, after it was written.
    pub async fn close(&self) {
        self.closing.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// The threads that serve somebody, for whom this account is charged.
    fn threads_of(&self, principal: &Principal, account: &Account) -> tokio::runtime::Handle {
        match self.hub.identity.is_owners(principal) {
            true => self.hub.runtime().clone(),
            false => account.lane(&self.hub.lanes).clone(),
        }
    }

    /// The account that is charged for what somebody has.
    fn account_of(&self, principal: &Principal) -> Arc<Account> {
        match self.hub.identity.is_owners(principal) {
            true => self.accounts.of_owner(&principal.payer),
            false => self.accounts.of(&principal.payer),
        }
    }

    /// Whose this token is, and the connection as that one's.
    fn of_token(&self, token: &Token) -> Result<(Arc<Principal>, Connection), Refusal> {
        let principal = self.hub.identity.of_token(token, self.hub.now_ms())?;
        let connection = self.account_of(&principal).join()?;
        Ok((principal, connection))
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
        self.0.left.notify_one();
    }
}
