//! What is open on a connection: requests, streams and subscriptions, by id.
//!
//! A table with reused places: finding, opening and closing cost the same
//! however much is open, and a request in flight allocates nothing of its own.
//! The generation of its place is part of an id, so an answer that comes late,
//! after its asker gave up, meets nobody.
//!
//! It does no I/O and wakes nobody: whoever must be woken is handed to the
//! caller, who does so after unlocking.

use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use ksi_protocol::{
    Code, Frame, Refusal,
    frame::{Class, Id, Subscribe},
    work::Accepted,
};

use crate::{
    Error, Part,
    incoming::Kind,
    keep_waker,
    stream::Queue,
    subscription::ring::{Entry, Ring},
};

/// Bits of an id that say the place; the others are its generation. Small ids
/// are short on the wire.
const PLACE_BITS: u32 = 20;

/// Everything that is open.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    slots: Vec<Slot>,
    /// Places in `slots` that hold nothing.
    free: Vec<usize>,
}

#[derive(Debug)]
struct Slot {
    generation: u64,
    open: Option<Open>,
}

/// One thing that is open.
#[derive(Debug)]
pub(crate) enum Open {
    /// A request for one answer.
    Request(Request),
    /// A request for a stream.
    Stream { queue: Arc<Queue> },
    /// A subscription.
    Subscription(Box<Subscribed>),
}

/// A request for one answer.
#[derive(Debug, Default)]
pub(crate) struct Request {
    waker: Option<Waker>,
    answer: Option<Result<Answered, Error>>,
}

/// How a request for one answer was answered.
#[derive(Debug, PartialEq)]
pub(crate) enum Answered {
    /// With its answer.
    Reply(Bytes),
    /// It is durable, and safe.
    Accepted(Accepted),
}

/// A subscription, as long as its handle lives.
#[derive(Debug)]
pub(crate) struct Subscribed {
    /// What is asked for; its id is that of its place here.
    pub(crate) wish: Subscribe,
    pub(crate) ring: Arc<Ring>,
    /// Epoch of the connection on which it was asked for; 0 before.
    pub(crate) told: u64,
    /// The daemon's word on it.
    pub(crate) confirmed: Option<Result<(), Error>>,
    /// Who waits for that word.
    pub(crate) waker: Option<Waker>,
}

/// What must be done after unlocking.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// To be woken.
    pub(crate) wake: Vec<Waker>,
    /// To be cancelled in the daemon.
    pub(crate) cancel: Vec<Id>,
}

impl Pending {
    /// Opens `open`.
    pub(crate) fn insert(&mut self, open: Open) -> Result<Id, Error> {
        let place = match self.free.pop() {
            Some(place) => place,
            None if self.slots.len() < 1 << PLACE_BITS => {
                self.slots.push(Slot { generation: 0, open: None });
                self.slots.len() - 1
            }
            None => return Err(Error::Full { open: self.slots.len() }),
        };
        let slot = &mut self.slots[place];
        slot.generation += 1;
        slot.open = Some(open);
        Ok(slot.generation << PLACE_BITS | place as u64)
    }

    fn slot(&mut self, id: Id) -> Option<&mut Slot> {
        let place = usize::try_from(id & ((1 << PLACE_BITS) - 1)).ok()?;
        self.slots.get_mut(place).filter(|slot| slot.generation == id >> PLACE_BITS)
    }

    fn get(&mut self, id: Id) -> Option<&mut Open> {
        self.slot(id)?.open.as_mut()
    }

    /// Closes `id`, if it is open.
    pub(crate) fn remove(&mut self, id: Id) -> Option<Open> {
        let open = self.slot(id)?.open.take()?;
        self.free.push((id & ((1 << PLACE_BITS) - 1)) as usize);
        Some(open)
    }

    /// The subscription `id`.
    pub(crate) fn subscription(&mut self, id: Id) -> Option<&mut Subscribed> {
        match self.get(id)? {
            Open::Subscription(subscribed) => Some(subscribed),
            _ => None,
        }
    }

    /// The answer to the request `id`, which it closes. The second value is to
    /// be dropped after unlocking.
    pub(crate) fn poll_answer(
        &mut self,
        id: Id,
        cx: &Context<'_>,
    ) -> (Poll<Result<Answered, Error>>, Option<Waker>) {
        let Some(Open::Request(request)) = self.get(id) else {
            return (Poll::Ready(Err(Error::Closed)), None);
        };
        match request.answer.take() {
            Some(answer) => {
                let waker = request.waker.take();
                self.remove(id);
                (Poll::Ready(answer), waker)
            }
            None => (Poll::Pending, keep_waker(&mut request.waker, cx)),
        }
    }

    /// A `reply`, `chunk` or `end` came. One for an unknown id is late: its
    /// asker has given up.
    pub(crate) fn answer(&mut self, id: Id, kind: Kind, data: Bytes, effects: &mut Effects) {
        let last = kind != Kind::Chunk;
        match self.get(id) {
            // Who asks for one answer wants the summary of a stream, not its parts.
            Some(Open::Request(request)) if last => request.settle(Ok(Answered::Reply(data)), effects),
            Some(Open::Stream { queue }) => {
                let part = match kind {
                    Kind::Reply => Part::Reply(data),
                    Kind::Chunk => Part::Chunk(data),
                    Kind::End => Part::End(data),
                };
                let pushed = queue.push(part);
                let overrun = pushed.is_err();
                effects.wake.extend(pushed.unwrap_or_else(|waker| waker));
                if overrun {
                    effects.cancel.push(id);
                }
                if last || overrun {
                    self.remove(id);
                }
            }
            Some(Open::Subscription(subscribed)) if last => subscribed.confirm(Ok(()), effects),
            _ => {}
        }
    }

    /// A durable request is safe. Nothing more is said of it on this
    /// connection.
    pub(crate) fn accept(&mut self, id: Id, accepted: Accepted, effects: &mut Effects) {
        match self.get(id) {
            Some(Open::Request(request)) => request.settle(Ok(Answered::Accepted(accepted)), effects),
            Some(Open::Stream { queue }) => {
                let Accepted { request_id, seq } = accepted;
                let part = Part::Accepted { request_id, seq };
                effects.wake.extend(queue.push(part).unwrap_or_else(|waker| waker));
                self.remove(id);
            }
            Some(Open::Subscription(subscribed)) => subscribed.confirm(Ok(()), effects),
            None => {}
        }
    }

    /// The daemon refuses `id`. With `renews`, a subscription that comes to a
    /// daemon that is stopping is asked for again on the next connection.
    pub(crate) fn refuse(&mut self, id: Id, refusal: Refusal, renews: bool, effects: &mut Effects) {
        let stopping = refusal.code == Code::ShuttingDown;
        let error = Error::Refused(refusal);
        match self.get(id) {
            Some(Open::Request(request)) => request.settle(Err(error), effects),
            Some(Open::Subscription(subscribed)) if renews && stopping && subscribed.is_renewed() => {}
            Some(Open::Stream { queue }) => {
                effects.wake.extend(queue.fail(error));
                self.remove(id);
            }
            Some(Open::Subscription(subscribed)) => {
                effects.wake.extend(subscribed.ring.close(error.clone()));
                subscribed.confirm(Err(error), effects);
            }
            None => {}
        }
    }

    /// Events or a gap for the subscription `id`.
    pub(crate) fn event(&mut self, id: Id, entry: Entry, effects: &mut Effects) {
        if let Some(subscribed) = self.subscription(id) {
            if subscribed.confirmed.is_none() {
                subscribed.confirm(Ok(()), effects);
            }
            effects.wake.extend(subscribed.ring.push(entry));
        }
    }

    /// The connection is lost: ends every request, stream and durable
    /// subscription, and with `all` the other subscriptions too.
    pub(crate) fn lose(&mut self, cause: &Error, all: bool, effects: &mut Effects) {
        for place in 0..self.slots.len() {
            let id = self.slots[place].generation << PLACE_BITS | place as u64;
            match self.get(id) {
                Some(Open::Request(request)) => request.settle(Err(cause.clone()), effects),
                Some(Open::Stream { queue }) => {
                    effects.wake.extend(queue.fail(cause.clone()));
                    self.remove(id);
                }
                Some(Open::Subscription(subscribed)) if all || !subscribed.is_renewed() => {
                    effects.wake.extend(subscribed.ring.close(cause.clone()));
                    subscribed.confirm(Err(cause.clone()), effects);
                }
                _ => {}
            }
        }
    }

    /// There is a new connection: marks every subscription as told on it, and
    /// returns the frames that tell. Those that were told before hear of it.
    pub(crate) fn renew(&mut self, epoch: u64, restarted: bool, effects: &mut Effects) -> Vec<Frame> {
        let mut frames = Vec::new();
        for (place, slot) in self.slots.iter_mut().enumerate() {
            let Some(Open::Subscription(subscribed)) = &mut slot.open else { continue };
            if matches!(subscribed.confirmed, Some(Err(_))) || subscribed.told >= epoch {
                continue;
            }
            if subscribed.told > 0 {
                effects.wake.extend(subscribed.ring.reconnected(restarted));
            }
            subscribed.told = epoch;
            frames.push(subscribed.frame(slot.generation << PLACE_BITS | place as u64));
        }
        frames
    }
}

impl Open {
    /// Whether dropping it must be told to the daemon: not once it is answered
    /// or accepted.
    pub(crate) fn needs_cancel(&self) -> bool {
        match self {
            Self::Request(request) => request.answer.is_none(),
            Self::Stream { .. } => true,
            Self::Subscription(_) => false,
        }
    }
}

impl Request {
    fn settle(&mut self, answer: Result<Answered, Error>, effects: &mut Effects) {
        if self.answer.is_none() {
            self.answer = Some(answer);
            effects.wake.extend(self.waker.take());
        }
    }
}

impl Subscribed {
    fn confirm(&mut self, word: Result<(), Error>, effects: &mut Effects) {
        self.confirmed = Some(word);
        effects.wake.extend(self.waker.take());
    }

    /// The frame that asks for it.
    pub(crate) fn frame(&self, id: Id) -> Frame {
        Frame::Subscribe(Subscribe { id, ..self.wish.clone() })
    }

    /// Whether it is asked for again on the next connection. From where a
    /// durable one must go on, only its consumer knows, who asks anew.
    fn is_renewed(&self) -> bool {
        self.wish.class != Class::Durable
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ksi_protocol::frame::Gap;

    fn accepted() -> Accepted {
        Accepted { request_id: "work-1".into(), seq: 7 }
    }

    fn request(pending: &mut Pending) -> Id {
        pending.insert(Open::Request(Request::default())).unwrap()
    }

    #[test]
    fn a_place_is_reused_but_its_id_is_not() {
        let mut pending = Pending::default();
        let first = request(&mut pending);
        assert!(pending.remove(first).is_some());
        let second = request(&mut pending);
        assert_ne!(first, second);
        assert_eq!(pending.slots.len(), 1);
        assert!(pending.get(first).is_none(), "a late answer must meet nobody");
        assert!(pending.remove(first).is_none());
        assert!(pending.get(second).is_some());
    }

    #[test]
    fn an_unknown_id_is_ignored() {
        let mut pending = Pending::default();
        let mut effects = Effects::default();
        for id in [0, 1, 1 << PLACE_BITS, u64::MAX] {
            pending.answer(id, Kind::Reply, Bytes::new(), &mut effects);
            pending.refuse(id, Refusal::not_found("thing", "x"), false, &mut effects);
            pending.accept(id, accepted(), &mut effects);
            let gap = Gap { sub: id, missed: 1, from_seq: 1, to_seq: 1 };
            pending.event(id, Entry::Gap(gap), &mut effects);
        }
        assert!(effects.wake.is_empty());
    }

    #[test]
    fn the_first_answer_counts() {
        let mut pending = Pending::default();
        let mut effects = Effects::default();
        let id = request(&mut pending);
        pending.answer(id, Kind::Chunk, Bytes::from_static(b"part"), &mut effects);
        pending.answer(id, Kind::End, Bytes::from_static(b"sum"), &mut effects);
        pending.answer(id, Kind::Reply, Bytes::from_static(b"late"), &mut effects);
        let (answer, _) = pending.poll_answer(id, &Context::from_waker(Waker::noop()));
        let Poll::Ready(Ok(answer)) = answer else { panic!("{answer:?}") };
        assert_eq!(answer, Answered::Reply("sum".into()));
        assert!(pending.get(id).is_none());
    }

    #[test]
    fn only_what_is_unanswered_and_unaccepted_is_cancelled() {
        let mut pending = Pending::default();
        let mut effects = Effects::default();
        let (waiting, answered, safe) = (request(&mut pending), request(&mut pending), request(&mut pending));
        pending.answer(answered, Kind::Reply, Bytes::new(), &mut effects);
        pending.accept(safe, accepted(), &mut effects);
        let mut needs = |id| pending.remove(id).unwrap().needs_cancel();
        assert!(needs(waiting));
        assert!(!needs(answered));
        assert!(!needs(safe));
    }
}
