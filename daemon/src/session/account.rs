//! Accounts: what all connections of one user have open and waiting, charged
//! to that user, so that many connections are worth no more than one. A token
//! of the owner's has an account of its own, so that whoever has it takes nothing
//! from the owner; those that others make are charged to their makers.
//!
//! Whoever has used up the user's share is refused `busy` with a time after
//! which to try again; other users do not notice. While more than one user is
//! connected, no one's connections are served by all threads at once, each of
//! their turns is short, and who is served all the time pauses, so that another's
//! request finds a thread and a processor.
//!
//! # Invariants
//!
//! - All that a connection is charged for is given back when its queue is gone.
//! - A user who is alone pays nothing for the others who are not there.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicIsize, AtomicU64, AtomicUsize, Ordering},
    },
};

use ksi_kernel::Rate;
use ksi_protocol::{Code, Refusal, limits};
use tokio::runtime::Handle;

use super::{
    pace::Lately,
    place::{Place, Places, Tenure},
};
use crate::{
    config::Share,
    lanes::{Assignment, Lanes},
};

/// Milliseconds after which to try again what found no room.
const RETRY_MS: u64 = 100;

/// Subscriptions of one user where the configuration does not say: whoever tells
/// what they all listen to pays for each.
const SUBSCRIPTIONS: usize = 4096;

/// The same of the daemon's owner, who holds up nobody but himself.
const SUBSCRIPTIONS_OF_OWNER: usize = 65_536;

/// Bytes that may wait for a connection however many others its user has.
const PART_MIN: usize = 64 * 1024;

/// Shares that may wait for one user before those are cut off who leave the most
/// unread: answers to what was asked before.
const SHARES_MAX: usize = 4;

/// The accounts of all users who are connected.
#[derive(Debug)]
pub struct Accounts {
    share: Share,
    /// Connections of one user that are served at once beside others.
    places: usize,
    open: Mutex<HashMap<String, Weak<Account>>>,
    /// Users who are connected.
    users: Arc<AtomicIsize>,
    lately: Arc<Lately>,
    /// Users so far; each has a number.
    count: AtomicU64,
}

impl Accounts {
    /// No user yet, on so many processors.
    #[must_use]
    pub fn new(share: Share, processors: usize) -> Self {
        let places = processors.saturating_sub(1).max(1);
        Self {
            share,
            places,
            open: Mutex::default(),
            users: Arc::default(),
            lately: Arc::default(),
            count: AtomicU64::new(0),
        }
    }

    /// The account of a user, whatever a user is called.
    #[must_use]
    pub fn of(&self, user: &str) -> Arc<Account> {
        self.open(user, SUBSCRIPTIONS)
    }

    /// The account of the daemon's owner.
    #[must_use]
    pub fn of_owner(&self, user: &str) -> Arc<Account> {
        self.open(user, SUBSCRIPTIONS_OF_OWNER)
    }

    fn open(&self, user: &str, subscriptions: usize) -> Arc<Account> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = open.get(user).and_then(Weak::upgrade) {
            return account;
        }
        open.retain(|_, account| account.strong_count() > 0);
        let account = Arc::new(Account {
            user: user.to_owned(),
            share: self.share,
            subscriptions_max: self.share.subscriptions.unwrap_or(subscriptions),
            users: self.users.clone(),
            lane: OnceLock::new(),
            places: Places::new(
                self.places,
                self.count.fetch_add(1, Ordering::Relaxed) + 1,
                self.lately.clone(),
            ),
            connections: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            subscriptions: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            sent: Rate::default(),
            connected: Rate::default(),
        });
        open.insert(user.to_owned(), Arc::downgrade(&account));
        account
    }
}

/// The account of one user.
#[derive(Debug)]
pub struct Account {
    user: String,
    share: Share,
    subscriptions_max: usize,
    users: Arc<AtomicIsize>,
    lane: OnceLock<Assignment>,
    places: Places,
    connections: AtomicUsize,
    in_flight: AtomicUsize,
    subscriptions: AtomicUsize,
    bytes: AtomicUsize,
    sent: Rate,
    connected: Rate,
}

impl Account {
    fn busy(&self, what: &str, most: usize) -> Refusal {
        let message = format!("`{}` has {most} {what}, and that is the share of one user", self.user);
        Refusal::new(Code::Busy, message)
            .retry_after_ms(RETRY_MS)
            .hint("wait for answers, read what was asked for, or close connections; [limits] sets the share")
            .details(serde_json::json!({ "blame": "sender", "limit": what, "most": most }))
    }

    /// Charges for a connection until that is given back.
    ///
    /// # Errors
    ///
    /// `busy` where the user has too many, or opens them too fast while others
    /// are connected.
    pub fn connect(self: &Arc<Self>, now_ms: u64) -> Result<Connection, Refusal> {
        if self.has_company() {
            let rate = self.share.connects_per_second;
            self.connected.take(rate, now_ms).map_err(|wait_ms| {
                self.busy("connections opened within a second", rate as usize).retry_after_ms(wait_ms)
            })?;
        }
        self.join()
    }

    /// Charges for a connection that somebody else was charged for until now.
    ///
    /// # Errors
    ///
    /// `busy` where the user has too many.
    pub fn join(self: &Arc<Self>) -> Result<Connection, Refusal> {
        let most = self.share.connections;
        let more = |open: usize| (open < most).then_some(open + 1);
        match self.connections.fetch_update(Ordering::AcqRel, Ordering::Acquire, more) {
            Ok(open) => {
                if open == 0 {
                    self.users.fetch_add(1, Ordering::AcqRel);
                }
                Ok(Connection(self.clone()))
            }
            Err(_) => Err(self.busy("connections open", most)),
        }
    }

    /// Whether the user may ask for something, as things are. Two connections
    /// that ask in the same moment may both be let in.
    ///
    /// # Errors
    ///
    /// `busy` where too much waits, or too much was sent.
    pub fn may_ask(&self, now_ms: u64) -> Result<(), Refusal> {
        let most = self.share.in_flight;
        if self.in_flight.load(Ordering::Relaxed) >= most {
            return Err(self.busy("requests in flight", most));
        }
        self.may_send(now_ms)
    }

    /// Whether the user may send one more thing.
    ///
    /// # Errors
    ///
    /// `busy` where too much was sent of late.
    pub fn may_send(&self, now_ms: u64) -> Result<(), Refusal> {
        let Some(rate) = self.share.per_second else { return Ok(()) };
        self.sent.take(rate, now_ms).map_err(|wait_ms| {
            self.busy("requests and emissions within a second", rate as usize).retry_after_ms(wait_ms)
        })
    }

    /// Charges for a subscription; whoever ends it gives it back.
    ///
    /// # Errors
    ///
    /// `busy` where the user has too many.
    pub fn subscribe(&self) -> Result<(), Refusal> {
        let most = self.subscriptions_max;
        let more = |open: usize| (open < most).then_some(open + 1);
        match self.subscriptions.fetch_update(Ordering::AcqRel, Ordering::Acquire, more) {
            Ok(_) => Ok(()),
            Err(_) => Err(self.busy("subscriptions", most)),
        }
    }

    pub(super) fn unsubscribe(&self, n: usize) {
        self.subscriptions.fetch_sub(n, Ordering::AcqRel);
    }

    pub(super) fn asked(&self) {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn answered(&self, n: usize) {
        self.in_flight.fetch_sub(n, Ordering::AcqRel);
    }

    /// A queue that was charged for `before` bytes has `now`.
    pub(super) fn recharge(&self, before: usize, now: usize) {
        if now >= before {
            self.bytes.fetch_add(now - before, Ordering::AcqRel);
        } else {
            self.bytes.fetch_sub(before - now, Ordering::AcqRel);
        }
    }

    /// Whether a queue that is charged for `charged` bytes and has `waits` has to
    /// give way: more waits for the user than is his share, and in this queue
    /// more than its part of that. So those pay who leave the most unread, and
    /// not their neighbour who reads.
    pub(super) fn is_over(&self, charged: usize, waits: usize) -> bool {
        let all = (self.bytes.load(Ordering::Relaxed) + waits).saturating_sub(charged);
        if all <= self.share.bytes {
            return false;
        }
        let part = self.share.bytes / self.connections.load(Ordering::Relaxed).max(1);
        waits > part.max(PART_MIN)
    }

    /// Whether nothing waits for the user but what this charge is for.
    pub(super) fn is_all(&self, charged: usize) -> bool {
        self.bytes.load(Ordering::Relaxed) <= charged
    }

    /// Whether such a queue has to go: so much waits for the user that reading no
    /// more requests was not enough, since answers were on their way.
    pub(super) fn is_far_over(&self, charged: usize, waits: usize) -> bool {
        let all = (self.bytes.load(Ordering::Relaxed) + waits).saturating_sub(charged);
        let far = self.share.bytes.saturating_mul(SHARES_MAX).max(limits::REPLY_BYTES_MAX);
        all > far && self.is_over(charged, waits)
    }

    /// What becomes of what is over the share.
    pub(super) fn full(&self) -> Refusal {
        self.busy("bytes waiting", self.share.bytes)
    }

    /// Whether others are connected, too.
    #[must_use]
    pub fn has_company(&self) -> bool {
        let own = isize::from(self.connections.load(Ordering::Relaxed) > 0);
        self.users.load(Ordering::Relaxed) > own
    }

    /// The threads that serve this user, who is not the daemon's owner.
    pub fn lane(&self, lanes: &Lanes) -> &Handle {
        &self.lane.get_or_init(|| lanes.assign()).threads
    }

    /// Waits, where others are connected, for one of the places at which this
    /// user's connections are served at once.
    pub async fn place<'a>(&'a self, tenure: &'a Tenure) -> Option<Place<'a>> {
        if !self.has_company() {
            return None;
        }
        self.places.take(tenure).await
    }

    /// A connection is lost with its task, and with its place where it has one:
    /// others get another.
    pub(super) fn lose_place(&self, tenure: &Tenure) {
        self.places.lose(tenure);
    }
}

/// A connection that is charged for.
#[derive(Debug)]
pub struct Connection(pub Arc<Account>);

impl Drop for Connection {
    fn drop(&mut self) {
        if self.0.connections.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.users.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    const NOW: u64 = 100_000;

    fn account(share: Share) -> (Accounts, Arc<Account>) {
        let accounts = Accounts::new(share, 2);
        let account = accounts.of("uid:1");
        (accounts, account)
    }

    #[test]
    fn all_connections_of_a_user_have_one_account_and_others_have_theirs() {
        let (accounts, first) = account(Share { connections: 2, ..Share::default() });
        let one = first.connect(NOW).unwrap();
        let two = accounts.of("uid:1").connect(NOW).unwrap();
        let refusal = accounts.of("uid:1").connect(NOW).unwrap_err();
        assert_eq!(refusal.code, Code::Busy);
        assert!(refusal.retry_after_ms.is_some() && refusal.message.contains("uid:1"), "{refusal}");
        accounts.of("uid:2").connect(NOW).unwrap();
        drop(one);
        let three = first.connect(NOW).unwrap();
        drop((two, three, first));
        assert!(accounts.of("uid:1").connect(NOW).is_ok());
    }

    #[test]
    fn what_waits_is_counted_over_all_and_given_back() {
        let (_accounts, account) =
            account(Share { in_flight: 2, bytes: 1_000_000, subscriptions: Some(1), ..Share::default() });
        account.asked();
        account.may_ask(NOW).unwrap();
        account.asked();
        assert!(account.may_ask(NOW).unwrap_err().message.contains("2 requests in flight"));
        account.answered(2);
        let connections: Vec<_> = (0..4).map(|_| account.connect(NOW).unwrap()).collect();
        account.recharge(0, 1_000_000);
        assert!(!account.is_over(0, 0), "who has nothing waiting pays nothing");
        assert!(!account.is_over(250_000, 250_000), "no more than the share waits");
        assert!(account.is_over(250_000, 250_001), "nor may it");
        assert!(!account.is_over(65_536, 65_537), "a small queue never does");
        account.recharge(1_000_000, 0);
        drop(connections);
        account.may_ask(NOW).unwrap();
        account.subscribe().unwrap();
        assert_eq!(account.subscribe().unwrap_err().code, Code::Busy);
        account.unsubscribe(1);
        account.subscribe().unwrap();
    }

    #[test]
    fn who_listens_has_a_few_thousand_subscriptions_the_owner_more_and_all_what_is_configured() {
        let room = |account: Arc<Account>| (0..100_000).take_while(|_| account.subscribe().is_ok()).count();
        let accounts = Accounts::new(Share::default(), 2);
        assert_eq!((room(accounts.of("token:a")), room(accounts.of_owner("user:o"))), (4096, 65_536));
        let accounts = Accounts::new(Share { subscriptions: Some(9), ..Share::default() }, 2);
        assert_eq!((room(accounts.of("token:a")), room(accounts.of_owner("user:o"))), (9, 9));
    }

    #[test]
    fn a_rate_allows_a_seconds_worth_at_once_and_then_one_by_one() {
        let (_accounts, account) = account(Share { per_second: Some(10), ..Share::default() });
        let taken = (0..100).filter(|_| account.may_send(NOW).is_ok()).count();
        assert_eq!(taken, 11);
        let refusal = account.may_send(NOW).unwrap_err();
        assert_eq!((refusal.code, refusal.retry_after_ms), (Code::Busy, Some(100)));
        account.may_send(NOW + 100).unwrap();
        assert!(account.may_send(NOW + 100).is_err());
        account.may_ask(NOW + 9000).unwrap();
    }

    #[test]
    fn only_in_company_does_it_count_how_fast_a_user_connects() {
        let (accounts, account) = account(Share { connects_per_second: 10, ..Share::default() });
        let connects = |now_ms| (0..100).filter(|_| account.connect(now_ms).is_ok()).count();
        assert_eq!(connects(NOW), 100);
        let other = accounts.of("uid:2");
        let _there = other.connect(NOW).expect("nobody is there");
        let _here = account.connect(NOW).expect("the first of a second's worth");
        assert_eq!(connects(NOW), 10);
        let refusal = account.connect(NOW).unwrap_err();
        assert_eq!((refusal.code, refusal.retry_after_ms), (Code::Busy, Some(100)));
        other.connect(NOW).expect("each user has a rate of its own");
        assert_eq!(connects(NOW + 500), 5);
    }

    /// Whether there is a place at once.
    async fn has_room(account: &Account) -> bool {
        let tenure = Tenure::default();
        tokio::time::timeout(std::time::Duration::from_millis(10), account.place(&tenure)).await.is_ok()
    }

    #[tokio::test]
    async fn only_in_company_does_a_user_wait_for_a_place() {
        let (accounts, account) = account(Share::default());
        let tenure = Tenure::default();
        let _here = account.connect(NOW).unwrap();
        assert!(account.place(&tenure).await.is_none());
        let other = accounts.of("uid:2");
        assert!(account.place(&tenure).await.is_none(), "nobody is there");
        let there = other.connect(NOW).unwrap();
        let place = account.place(&tenure).await;
        assert!(place.is_some());
        assert!(!has_room(&account).await, "there is one place on two threads");
        assert!(has_room(&other).await, "others have their own");
        drop((place, there));
        assert!(account.place(&tenure).await.is_none());
    }

    #[tokio::test]
    async fn a_place_that_is_lost_is_replaced_once_and_only_where_there_was_one() {
        let (accounts, account) = account(Share::default());
        let other = accounts.of("uid:2");
        let (_here, _there) = (account.connect(NOW).unwrap(), other.connect(NOW).unwrap());
        let (lost, tenure) = (Tenure::default(), Tenure::default());
        account.lose_place(&lost);
        let first = account.place(&lost).await;
        assert!(first.is_some() && !has_room(&account).await, "who had none loses none");
        account.lose_place(&lost);
        account.lose_place(&lost);
        let second = account.place(&tenure).await;
        assert!(second.is_some() && !has_room(&account).await);
        // Its task comes back after all.
        drop(first);
        assert!(!has_room(&account).await);
        drop(second);
        assert!(has_room(&account).await);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_served_for_long_pauses_where_somebody_else_is_served_and_holds_his_place_meanwhile() {
        const SERVED: std::time::Duration = std::time::Duration::from_millis(5);
        let (accounts, account) = account(Share::default());
        let other = accounts.of("uid:2");
        let (_here, _there) = (account.connect(NOW).unwrap(), other.connect(NOW).unwrap());
        let tenure = Tenure::default();
        let paused = async |now_ms| {
            let place = account.place(&tenure).await.unwrap();
            tokio::time::advance(SERVED).await;
            let since = Instant::now();
            let waits = async {
                tokio::task::yield_now().await;
                let _next = account.place(&tenure).await;
                since.elapsed()
            };
            tokio::join!(place.leave(now_ms), waits).1
        };
        assert!(paused(NOW).await.is_zero(), "nobody else is served");
        let others = Tenure::default();
        other.place(&others).await.unwrap().leave(NOW + 10).await;
        let pause = paused(NOW + 20).await;
        // For as long as it was served, but for a moment that is free.
        assert!(pause < SERVED && pause > SERVED / 2, "{pause:?}");
        assert!(paused(NOW + 5_000).await.is_zero(), "the other was served long ago");
    }
}
