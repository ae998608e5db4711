//! A subscription: the events that match a pattern, as they come.

pub(crate) mod ring;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use ksi_protocol::{
    EventName, Frame,
    frame::{Event, Gap, Id},
};

use self::ring::{Entry, Epoch, Ring};
use crate::{
    Error,
    connection::Handle,
    incoming::decode_event,
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
    /// The name of the last event; the next one often has the same.
    name: Option<EventName>,
    /// Items handed out since the last pause.
    run: u32,
}

impl Subscription {
    pub(crate) fn new(handle: Arc<Handle>, id: Id, ring: Arc<Ring>) -> Self {
        Self { handle, id, ring, now: Epoch::default(), name: None, run: 0 }
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
        self.run = 0;
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

    fn poll_item(&mut self, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        self.run += 1;
        if self.run > RUN_MAX {
            self.run = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            if let Some(item) = self.take() {
                return Poll::Ready(Some(item));
            }
            match self.ring.poll(std::mem::take(&mut self.now.entries), cx) {
                Poll::Ready(Some(epoch)) => self.now = epoch,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => {
                    self.run = 0;
                    return Poll::Pending;
                }
            }
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
        match self.now.entries.pop_front()? {
            Entry::Event(event) => Some(Item::Event(*event)),
            Entry::Gap(gap) => Some(Item::Gap(gap)),
            Entry::Raw { body, .. } => match decode_event(&body, &mut self.name) {
                Ok(event) => Some(Item::Event(event)),
                Err(error) => {
                    self.now.entries.clear();
                    self.handle.core.accuse(Error::from_decoding(error));
                    None
                }
            },
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
                Some(subscribed) if subscribed.told < epoch => {
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
