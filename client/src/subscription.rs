//! A subscription: the events that match a pattern, as they come.

pub(crate) mod ring;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use ksi_protocol::{
    Frame,
    frame::{Event, Gap, Id},
};

use self::ring::{Entry, Epoch, Ring};
use crate::{
    Error,
    connection::Handle,
    incoming::{Last, Run},
    lock,
    pending::{Open, Subscribed},
};

/// Items that are handed out in a row before other tasks get their turn.
const RUN_MAX: u32 = 4096;

/// What a subscription yields.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// An event.
    Event(Event),
    /// Events that were dropped because they were not taken in time, by the
    /// daemon or by this client. The count is exact.
    Gap(Gap),
    /// The connection was lost and made anew; events in between were not heard.
    /// Sequence numbers begin at 1 again.
    Reconnected {
        /// Whether it is another run of the daemon.
        restarted: bool,
    },
}

/// Events that match a pattern, from [`crate::Client::subscribe`]. Dropping it
/// unsubscribes.
///
/// Events wait here until they are taken, up to [`crate::Options::event_queue`]
/// of them and 64 MiB. Beyond that the oldest are dropped, and an
/// [`Item::Gap`] in their place says exactly how many; other requests and
/// subscriptions of the same client are never held up. Of
/// [`crate::Class::Latest`], only the newest event of each name waits, and one
/// that was replaced leaves no gap.
///
/// Also a [`futures_util::Stream`].
#[derive(Debug)]
pub struct Subscription {
    handle: Arc<Handle>,
    id: Id,
    ring: Arc<Ring>,
    /// What was taken from the ring and not handed out yet.
    now: Epoch,
    /// Events that were taken from `now`.
    run: Run,
    /// What the last event said and the next one often repeats.
    last: Last,
    /// Items handed out since the last pause.
    handed: u32,
    /// Events that may be on the way, of a durable one.
    window: Option<u32>,
    /// Events handed out since the last credit.
    taken: u32,
}

impl Subscription {
    pub(crate) fn new(handle: Arc<Handle>, id: Id, ring: Arc<Ring>, window: Option<u32>) -> Self {
        Self {
            handle,
            id,
            ring,
            now: Epoch::default(),
            run: Run::default(),
            last: Last::default(),
            handed: 0,
            window,
            taken: 0,
        }
    }

    /// Waits for the daemon's word on this subscription.
    pub(crate) async fn confirmed(&self) -> Result<(), Error> {
        std::future::poll_fn(|cx| {
            let mut pending = lock(&self.handle.core.pending);
            let Some(subscribed) = pending.subscription(self.id) else {
                return Poll::Ready(Err(Error::Closed));
            };
            if let Some(word) = &subscribed.confirmed {
                return Poll::Ready(word.clone());
            }
            let old = crate::keep_waker(&mut subscribed.waker, cx);
            drop(pending);
            drop(old);
            Poll::Pending
        })
        .await
    }

    /// The next item. `None` when nothing more will come;
    /// [`Subscription::error`] then says why. Nothing is lost if the future is
    /// dropped.
    pub async fn next(&mut self) -> Option<Item> {
        std::future::poll_fn(|cx| self.poll_item(cx)).await
    }

    /// The next item if one waits.
    pub fn try_next(&mut self) -> Option<Item> {
        self.handed = 0;
        match self.poll_item(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(item) => item,
            Poll::Pending => None,
        }
    }

    /// Why [`Subscription::next`] returned `None`: [`Error::Lost`] without
    /// `reconnect`, [`Error::Closed`], or [`Error::Refused`] when the daemon
    /// would not renew it after a reconnect.
    #[must_use]
    pub fn error(&self) -> Option<Error> {
        self.ring.closed()
    }

    pub(crate) fn poll_item(&mut self, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        self.handed += 1;
        if self.handed > RUN_MAX {
            self.handed = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            if let Some(item) = self.take() {
                if let (Some(window), Item::Event(_)) = (self.window, &item) {
                    self.renew_credit(window);
                }
                return Poll::Ready(Some(item));
            }
            match self.ring.poll(std::mem::take(&mut self.now.entries), cx) {
                Poll::Ready(Some(epoch)) => self.now = epoch,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => {
                    self.handed = 0;
                    return Poll::Pending;
                }
            }
        }
    }

    /// Tells the daemon how many events were taken, each time that it is half
    /// of the window.
    fn renew_credit(&mut self, window: u32) {
        self.taken += 1;
        if self.taken >= (window / 2).max(1) {
            // Where the connection is lost, the subscription ends with it.
            let _ = self.handle.core.output.send(&Frame::Credit { id: self.id, n: self.taken });
            self.taken = 0;
        }
    }

    /// The next item of those at hand.
    fn take(&mut self) -> Option<Item> {
        if let Some(restarted) = self.now.restarted.take() {
            return Some(Item::Reconnected { restarted });
        }
        if let Some(lost) = self.now.lost.take() {
            let gap = Gap { sub: self.id, missed: lost.missed, from_seq: lost.from, to_seq: lost.to };
            return Some(Item::Gap(gap));
        }
        loop {
            match self.run.decode(&mut self.last) {
                Some(Ok(event)) => return Some(Item::Event(event)),
                Some(Err(error)) => {
                    self.run = Run::default();
                    self.now.entries.clear();
                    self.handle.core.accuse(Error::from_decoding(error));
                    return None;
                }
                None => match self.now.entries.pop_front()? {
                    Entry::Events(run) => self.run = run,
                    Entry::Event(event) => return Some(Item::Event(*event)),
                    Entry::Gap(gap) => return Some(Item::Gap(gap)),
                },
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let core = &self.handle.core;
        let removed = lock(&core.pending).remove(self.id);
        if let Some(Open::Subscription(subscribed)) = removed
            && subscribed.told > 0
            && !matches!(subscribed.confirmed, Some(Err(_)))
        {
            // Without a connection there is nothing to unsubscribe.
            let _ = core.output.send(&Frame::Unsubscribe { id: self.id });
        }
    }
}

impl futures_util::Stream for Subscription {
    type Item = Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        self.poll_item(cx)
    }
}

/// Asks the daemon for a subscription that is in the table, on the connection
/// of now, unless a reconnect has already done so.
pub(crate) async fn announce(handle: &Handle, id: Id) -> Result<(), Error> {
    let core = &handle.core;
    loop {
        let epoch = core.ready().await?;
        let frame = {
            let mut pending = lock(&core.pending);
            match pending.subscription(id) {
                Some(subscribed)
                    if subscribed.told < epoch && !matches!(subscribed.confirmed, Some(Err(_))) =>
                {
                    subscribed.told = epoch;
                    subscribed.frame(id)
                }
                _ => return Ok(()),
            }
        };
        if core.output.send_in(epoch, &frame)? {
            return Ok(());
        }
        untell(&mut lock(&core.pending).subscription(id), epoch);
    }
}

/// The frame for `epoch` was not sent after all.
fn untell(subscribed: &mut Option<&mut Subscribed>, epoch: u64) {
    if let Some(subscribed) = subscribed
        && subscribed.told == epoch
    {
        subscribed.told = 0;
    }
}
