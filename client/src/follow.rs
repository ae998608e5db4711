//! Durable facts: read from the journal, on over lost connections and restarts
//! of the daemon.
//!
//! A [`Follower`] asks for a subscription of one connection, and for the next
//! one from where its consumer has come to. What waits for the consumer is
//! bounded by credit, so nothing is ever dropped on the way.
//!
//! # Invariants
//!
//! - Positions that are handed out only rise, over all connections.
//! - A consumer's position in the daemon never is beyond what was dealt with:
//!   whoever asks for the next item has dealt with the one before.
//!
//! # Failure
//!
//! What passes (a lost connection, a daemon or plugin that restarts) is waited
//! for as long as the follower lives; everything else ends it.

use std::{
    fmt,
    task::{Poll, ready},
    time::Duration,
};

use ksi_protocol::{
    EventName, Pattern,
    checkpoint::Checkpoints,
    frame::{Class, Subscribe},
    work::Ack,
};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    CallOptions, Client, Empty, Error, Item, Subscription,
    client::encode,
    connection::{BACKOFF, BACKOFF_MAX, jittered},
};

/// The event that moves a consumer on.
const ACK: &str = "checkpoint:ack";

/// The event that says how far the journal goes.
const LIST: &str = "checkpoint:list";

/// Facts after which a consumer's position is told.
const ACK_EVERY: u32 = 256;

/// Time after which it is told, however few they were.
const ACK_PAUSE: Duration = Duration::from_millis(100);

/// How to follow durable facts; see [`Client::follow`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FollowOptions {
    since_seq: Option<u64>,
    consumer: Option<String>,
    window: u32,
}

impl Default for FollowOptions {
    fn default() -> Self {
        Self { since_seq: None, consumer: None, window: 256 }
    }
}

impl FollowOptions {
    /// From now on, without a name.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The first position in the journal that is wanted; 0 is all that is kept.
    #[must_use]
    pub fn since(mut self, seq: u64) -> Self {
        self.since_seq = Some(seq);
        self
    }

    /// The name under which the daemon keeps how far this consumer has come. It
    /// goes on there when it comes again, unless [`FollowOptions::since`] says
    /// where. Of two that use one name the later has it, and the other ends.
    #[must_use]
    pub fn consumer(mut self, name: impl Into<String>) -> Self {
        self.consumer = Some(name.into());
        self
    }

    /// Facts that may be on the way or wait here at once; 256 by default, at
    /// least 1.
    #[must_use]
    pub fn window(mut self, facts: u32) -> Self {
        self.window = facts.max(1);
        self
    }
}

/// Durable facts that match a pattern, in the order of the journal, from
/// [`Client::follow`].
///
/// `seq` of an event is its position in the journal: positions rise, and have
/// holes where something else is written down. [`Item::Gap`] comes only where
/// the journal no longer keeps what was asked for; [`Item::Reconnected`] never
/// comes, for nothing was missed.
///
/// With a consumer's name, an event counts as dealt with when the next item is
/// asked for, and the daemon is told so now and then; [`Follower::ack`] tells
/// it at once and for all that was taken. An event that was taken and not dealt
/// with when the program died comes again.
///
/// ```
/// # use std::collections::HashMap;
/// # use ksi_client::{Client, Error, FollowOptions, Item, Options, testing::Echo};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// # let daemon = Echo::start()?;
/// # let client = Client::connect(Options::new(daemon.socket())).await?;
/// client.emit("order:placed", &HashMap::from([("n", 1)])).await?;
/// let options = FollowOptions::new().since(0).consumer("billing");
/// let mut orders = client.follow("order:*", options).await?;
/// let Some(Item::Event(order)) = orders.next().await else { panic!("an order was placed") };
/// assert_eq!(order.event.as_str(), "order:placed");
/// orders.ack().await?;
/// # Ok(())
/// # }
/// ```
pub struct Follower {
    client: Client,
    pattern: Pattern,
    options: FollowOptions,
    live: Option<Subscription>,
    /// The first position that is still wanted, where it is known.
    from: Option<u64>,
    progress: Progress,
    /// Since when `live` is there.
    since: Instant,
    /// When it is asked for again, and the pause after that.
    due: Instant,
    pause: Duration,
    error: Option<Error>,
}

/// How far a consumer is; positions in the journal.
#[derive(Debug)]
struct Progress {
    taken: u64,
    dealt: u64,
    told: u64,
    /// Facts that were dealt with since the daemon was told.
    count: u32,
    told_at: Instant,
}

impl Progress {
    fn owes(&self) -> bool {
        self.dealt > self.told
    }

    fn is_due(&self) -> bool {
        self.owes() && (self.count >= ACK_EVERY || self.told_at.elapsed() >= ACK_PAUSE)
    }

    fn told(&mut self, seq: u64) {
        (self.told, self.count, self.told_at) = (seq, 0, Instant::now());
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pattern, options, from, error, .. } = self;
        f.debug_struct("Follower")
            .field("pattern", pattern)
            .field("options", options)
            .field("from", from)
            .field("error", error)
            .finish_non_exhaustive()
    }
}

impl Follower {
    pub(crate) async fn start(
        client: Client,
        pattern: Pattern,
        options: FollowOptions,
    ) -> Result<Self, Error> {
        let from = match (&options.consumer, options.since_seq) {
            (_, Some(seq)) => Some(seq),
            // The daemon knows.
            (Some(_), None) => None,
            // "From now on" is a position, so that it holds over connections.
            (None, None) => {
                let kept: Checkpoints = client.request(LIST, &Empty {}).await?;
                Some(kept.journal.last_seq + 1)
            }
        };
        let now = Instant::now();
        let mut follower = Self {
            client,
            pattern,
            options,
            live: None,
            from,
            progress: Progress { taken: 0, dealt: 0, told: 0, count: 0, told_at: now },
            since: now,
            due: now,
            pause: BACKOFF,
            error: None,
        };
        follower.live = Some(follower.subscribe().await?);
        Ok(follower)
    }

    async fn subscribe(&self) -> Result<Subscription, Error> {
        let wish = Subscribe {
            since_seq: self.from,
            consumer: self.options.consumer.clone(),
            credit: Some(self.options.window),
            ..Subscribe::new(0, self.pattern.clone(), Class::Durable)
        };
        self.client.listen(wish).await
    }

    /// The next item. `None` when nothing more will come; [`Follower::error`]
    /// then says why. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<Item> {
        let Progress { taken, dealt, count, .. } = &mut self.progress;
        if self.options.consumer.is_some() && *taken > *dealt {
            *dealt = *taken;
            *count += 1;
        }
        while self.error.is_none() {
            if self.progress.is_due() {
                self.tell();
            }
            match &mut self.live {
                None => self.resume().await,
                Some(live) => match heard(live, self.progress.owes()).await {
                    Heard::Item(item) => {
                        if let Some(item) = self.take(item) {
                            return Some(item);
                        }
                    }
                    Heard::Quiet => self.tell(),
                    Heard::End => {
                        let error = live.error().unwrap_or(Error::Closed);
                        self.live = None;
                        self.lose(error);
                    }
                },
            }
        }
        None
    }

    /// Notes an item that came, unless it came before.
    fn take(&mut self, item: Item) -> Option<Item> {
        let last = match &item {
            Item::Event(event) => event.seq,
            Item::Gap(gap) => gap.to_seq,
            Item::Reconnected { .. } => return None,
        };
        if self.from.is_some_and(|from| last < from) {
            return None;
        }
        self.from = Some(last + 1);
        self.progress.taken = last;
        Some(item)
    }

    /// Asks for what follows, when it is time.
    async fn resume(&mut self) {
        sleep_until(self.due).await;
        match self.subscribe().await {
            Ok(live) => (self.live, self.since) = (Some(live), Instant::now()),
            Err(error) => self.lose(error),
        }
    }

    /// Decides whether to ask again, and when.
    fn lose(&mut self, error: Error) {
        if !error.may_pass() || !self.client.core().options.reconnect {
            self.error = Some(error);
            return;
        }
        if self.since.elapsed() > BACKOFF_MAX {
            self.pause = BACKOFF;
        }
        self.due = Instant::now() + jittered(self.pause);
        self.pause = (self.pause * 2).min(BACKOFF_MAX);
    }

    /// Tells the daemon what was dealt with. Where that is lost, the next time
    /// says it too.
    fn tell(&mut self) {
        let seq = self.progress.dealt;
        let Some(consumer) = &self.options.consumer else { return };
        let ack = Ack { consumer: consumer.clone(), seq };
        if let (Ok(event), Ok(data)) = (EventName::parse(ACK), encode(ACK, &ack))
            && self.client.tell(event, data)
        {
            self.progress.told(seq);
        } else {
            // Without a connection; not again at once.
            self.progress.told_at = Instant::now();
        }
    }

    /// All that was taken is dealt with; returns when the daemon has written
    /// that down. Without a consumer's name there is nothing to do.
    ///
    /// # Errors
    ///
    /// As [`Client::request`]; it may be called again.
    pub async fn ack(&mut self) -> Result<(), Error> {
        let seq = self.progress.taken;
        if let Some(consumer) = &self.options.consumer
            && seq > 0
        {
            let data = encode(ACK, &Ack { consumer: consumer.clone(), seq })?;
            self.client.request_raw(ACK, data, CallOptions::default()).await?;
        }
        self.progress.dealt = seq;
        self.progress.told(seq);
        Ok(())
    }

    /// Why [`Follower::next`] returned `None`: [`Error::Refused`],
    /// [`Error::Closed`], or whatever ended the connection where
    /// [`crate::Options::reconnect`] is off.
    #[must_use]
    pub fn error(&self) -> Option<Error> {
        self.error.clone()
    }

    /// The position from which another follower would go on after all that was
    /// taken from this one, where anything was.
    #[must_use]
    pub fn position(&self) -> Option<u64> {
        self.from
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if self.progress.owes() {
            self.tell();
        }
    }
}

/// What came of listening.
enum Heard {
    Item(Item),
    /// Nothing, for [`ACK_PAUSE`].
    Quiet,
    End,
}

/// Listens; where it is `owing`, only so long.
async fn heard(live: &mut Subscription, owing: bool) -> Heard {
    let mut pause = None;
    std::future::poll_fn(|cx| {
        if let Poll::Ready(item) = live.poll_item(cx) {
            return Poll::Ready(item.map_or(Heard::End, Heard::Item));
        }
        if !owing {
            return Poll::Pending;
        }
        let pause = pause.get_or_insert_with(|| Box::pin(sleep(ACK_PAUSE)));
        ready!(pause.as_mut().poll(cx));
        Poll::Ready(Heard::Quiet)
    })
    .await
}
