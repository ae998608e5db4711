//! What waits to be sent to one client.
//!
//! Answers are never dropped; live events are: they wait in a bounded ring,
//! the oldest goes first, and a gap tells exactly which were lost. Both keep
//! the order in which they were said. While the socket takes everything there
//! is no queue at all: frames are encoded straight into the socket's buffer.
//!
//! # Invariants
//!
//! - Sequence numbers are given when an event enters the socket's buffer, so
//!   that they have no hole but those that a gap announces, and those of a
//!   `latest` subscription's older values.
//! - Everything that waits here is counted: events in a ring, answers and
//!   chunks without credit against one limit, beyond which the client is cut
//!   off.
//! - Nothing here waits; a full socket is the writer task's matter.

pub mod follow;

use std::{
    collections::{HashMap, VecDeque},
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use foldhash::fast::RandomState;
use ksi_kernel::Delivery;
use ksi_protocol::{
    Frame, Refusal,
    frame::{Class, Gap, Id},
    limits,
};
use nix::sys::socket::{Shutdown, shutdown};
use tokio::{net::UnixStream, sync::Notify};

use self::follow::{Follows, Said};
use super::{
    body::{Body, put_event},
    credit::Credits,
    face::{Face, put_line},
};
use crate::{
    wire::{Flushed, Wire},
    woken,
};

/// Bytes in the socket's buffer beyond which things queue, so that old live
/// events can still be dropped.
const WIRE_BYTES: usize = 128 * 1024;

/// Bytes of unread answers beyond which the session reads no more requests.
const CONGESTED_BYTES: usize = 4 * 1024 * 1024;

/// The queue of one client.
#[derive(Debug)]
pub struct Outbox {
    /// The socket, shared with the reader.
    pub socket: UnixStream,
    /// Whether events are wanted encoded.
    pub wants_tail: bool,
    /// Told when the socket is full.
    pub writer: Notify,
    /// Told when the queue has become short again.
    relieved: Notify,
    /// Requests whose last answer has not come. Counted here, and not in the
    /// kernel, which has forgotten a request before its answer is here.
    owed: AtomicUsize,
    /// Whether anyone waits for `relieved`.
    awaited: AtomicBool,
    /// Told when a durable subscription may go on.
    pub follow_up: Notify,
    /// Told when the session must end.
    pub closing: Notify,
    /// The last turn that put this outbox on its list, so that one turn does
    /// it once. Two turns may both do it; each writes what is there.
    pub touched_by: AtomicU64,
    /// Whether any request has asked for flow control, so that a session
    /// without pays nothing for it.
    limited: AtomicBool,
    dropped: Arc<AtomicU64>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    wire: Wire,
    face: Face,
    ticket: u64,
    answers: VecDeque<(u64, Said)>,
    answer_bytes: usize,
    live: VecDeque<Live>,
    live_bytes: usize,
    /// Position of the front of `live` since the session began, so that an
    /// entry keeps its position while others leave.
    live_front: u64,
    subs: HashMap<Id, Sub, RandomState>,
    /// Counts subscriptions, so that an event that waits for one is never
    /// taken for one of a later subscription with the same id.
    opened: u64,
    gapped: Vec<Id>,
    credits: Credits,
    follows: Follows,
    /// Whether the reader waits for the queue to become short again.
    held_up: bool,
    overflow: bool,
}

#[derive(Debug)]
struct Live {
    ticket: u64,
    sub: Id,
    opened: u64,
    /// Older values that this one has taken the place of.
    replaced: u64,
    body: Body,
}

#[derive(Debug, Default)]
struct Sub {
    opened: u64,
    seq: u64,
    missed: u64,
    /// For `latest`: where the newest event of each name waits. May know
    /// events that have left since.
    newest: HashMap<Box<str>, u64>,
}

impl Outbox {
    /// The queue of a client that speaks `face`. `dropped` counts lost events
    /// for the whole daemon.
    #[must_use]
    pub fn new(socket: UnixStream, face: Face, dropped: Arc<AtomicU64>) -> Self {
        Self {
            socket,
            wants_tail: matches!(face, Face::Frames),
            writer: Notify::new(),
            relieved: Notify::new(),
            owed: AtomicUsize::new(0),
            awaited: AtomicBool::new(false),
            follow_up: Notify::new(),
            closing: Notify::new(),
            touched_by: AtomicU64::new(0),
            limited: AtomicBool::new(false),
            dropped,
            state: Mutex::new(State {
                wire: Wire::default(),
                face,
                ticket: 0,
                answers: VecDeque::new(),
                answer_bytes: 0,
                live: VecDeque::new(),
                live_bytes: 0,
                live_front: 0,
                subs: HashMap::default(),
                opened: 0,
                gapped: Vec::new(),
                credits: Credits::default(),
                follows: Follows::default(),
                held_up: false,
                overflow: false,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the reader change what the face remembers.
    pub fn with_face<T>(&self, change: impl FnOnce(&mut Face) -> T) -> T {
        change(&mut self.lock().face)
    }

    /// A request begins, with flow control where it names a credit.
    ///
    /// # Errors
    ///
    /// `conflict` where chunks of an earlier request still wait under its id.
    pub fn begin(&self, id: Id, credit: Option<u32>) -> Result<(), Refusal> {
        if credit.is_none() && !self.limited.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut state = self.lock();
        state.follows.is_free(id)?;
        state.credits.begin(id, credit)?;
        self.limited.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The client can take more chunks.
    pub fn add_credit(&self, id: Id, n: u32) {
        let mut state = self.lock();
        state.follows.count_credit(id, n);
        for delivery in state.credits.add(id, n) {
            state.answer(delivery);
        }
    }

    /// A subscription begins, and is answered before its first event: until
    /// now, events found no subscription here and were passed over.
    pub fn open_sub(&self, id: Id, answer: &Frame) {
        let mut state = self.lock();
        state.opened += 1;
        let opened = state.opened;
        state.subs.insert(id, Sub { opened, ..Sub::default() });
        let State { face, wire, .. } = &mut *state;
        face.frame(answer, &mut wire.buffer);
    }

    /// A subscription ends; what waits for it is not sent any more.
    pub fn remove_sub(&self, id: Id) {
        self.lock().subs.remove(&id);
    }

    /// Queues a frame of the daemon's own.
    pub fn frame(&self, frame: &Frame) {
        let State { face, wire, .. } = &mut *self.lock();
        face.frame(frame, &mut wire.buffer);
    }

    /// Queues the refusal of something that is no request.
    pub fn refuse(&self, id: Option<Id>, refusal: Refusal) {
        self.frame(&Frame::Refusal { id, refusal });
    }

    /// Queues a line that is made already; only for the JSON face.
    pub fn line(&self, line: &str) {
        put_line(&mut self.lock().wire.buffer, line);
    }

    /// A request was asked; exactly one last answer comes for it.
    pub fn owe(&self) {
        self.owed.fetch_add(1, Ordering::AcqRel);
    }

    /// Queues an answer.
    pub fn answer(&self, delivery: Delivery) {
        let last = matches!(&delivery, Delivery::Answer { answer, .. } if answer.is_last());
        let mut state = self.lock();
        if let Some(delivery) = state.credits.limit(delivery) {
            state.answer(delivery);
        }
        state.check_overflow();
        if last {
            self.owed.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// The client gives up a request. Where its end has come already and waits
    /// for credit, only this queue knows of it.
    pub fn give_up(&self, id: Id) {
        let mut state = self.lock();
        if let Some(delivery) = state.credits.give_up(id) {
            state.answer(delivery);
        }
    }

    /// Queues an event.
    pub fn event(&self, id: Id, class: Class, name: &str, body: &Body) {
        let mut state = self.lock();
        let dropped = state.event(id, class, name, body);
        if dropped > 0 {
            self.dropped.fetch_add(dropped, Ordering::Relaxed);
        }
    }

    /// Writes as much as the socket takes now.
    pub fn flush(&self) -> Flushed {
        let mut state = self.lock();
        if state.overflow {
            state.wire.kill();
        }
        loop {
            let flushed = state.wire.flush(&self.socket, &self.writer);
            if flushed == Flushed::Dead {
                self.closing.notify_one();
                woken::note();
            }
            if flushed != Flushed::Done || !state.refill() {
                // A client that reads, but never all that it is told, is heard
                // all the same.
                let relieved = state.held_up && !state.is_congested();
                state.held_up &= !relieved;
                if state.follows.take_due() {
                    self.follow_up.notify_one();
                    woken::note();
                }
                if (flushed == Flushed::Done || relieved) && self.awaited.swap(false, Ordering::AcqRel) {
                    self.relieved.notify_one();
                    woken::note();
                }
                return flushed;
            }
        }
    }

    /// Ends the connection of a client whose task is lost: it has been told
    /// why, and would wait in vain for anything more.
    pub fn cut_off(&self) {
        self.flush();
        // A socket that is gone already is as good.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }

    /// For the writer task: the socket has room again.
    pub fn resume(&self) -> Flushed {
        self.lock().wire.unblock();
        self.flush()
    }

    /// Resolves when everything has been written once more. To be asked for
    /// before the condition that is waited for is looked at.
    pub fn relief(&self) -> impl Future<Output = ()> {
        self.awaited.store(true, Ordering::Release);
        self.relieved.notified()
    }

    /// Whether the client asks for more than it reads.
    #[must_use]
    pub fn is_congested(&self) -> bool {
        let mut state = self.lock();
        state.held_up = state.is_congested();
        state.held_up
    }

    /// Whether everything that was said is in the socket, or never will be, and
    /// no request or subscription will say more.
    #[must_use]
    pub fn is_owed_nothing(&self) -> bool {
        let state = self.lock();
        let written = state.wire.buffer.is_empty() && state.answers.is_empty() && state.live.is_empty();
        let owed = self.owed.load(Ordering::Acquire);
        state.wire.is_dead() || (written && owed == 0 && state.subs.is_empty() && state.follows.is_empty())
    }

    /// Drops everything: the client is gone.
    pub fn kill(&self) {
        let mut state = self.lock();
        state.wire.kill();
        state.answers.clear();
        state.live.clear();
        state.credits.clear();
        state.follows = Follows::default();
    }
}

impl State {
    fn room(&self) -> bool {
        self.answers.is_empty() && self.live.is_empty() && self.wire.buffer.len() < WIRE_BYTES
    }

    fn is_congested(&self) -> bool {
        self.answer_bytes + self.wire.buffer.len() > CONGESTED_BYTES
    }

    fn next_ticket(&mut self) -> u64 {
        self.ticket += 1;
        self.ticket
    }

    fn answer(&mut self, delivery: Delivery) {
        if self.wire.is_dead() {
            return;
        }
        let said = match self.followed(delivery) {
            Ok(Some(said)) => said,
            Ok(None) => return,
            Err(delivery) => Said::Answer(delivery),
        };
        if self.room() {
            return self.put(said);
        }
        self.answer_bytes += said.weight();
        let ticket = self.next_ticket();
        self.answers.push_back((ticket, said));
    }

    fn check_overflow(&mut self) {
        self.overflow |= self.answer_bytes + self.credits.held_bytes() > limits::REPLY_BYTES_MAX;
    }

    /// Returns how many older events had to go.
    fn event(&mut self, id: Id, class: Class, name: &str, body: &Body) -> u64 {
        if self.wire.is_dead() {
            return 0;
        }
        let room = self.room();
        let Some(sub) = self.subs.get_mut(&id) else { return 0 };
        if room {
            sub.seq += 1;
            put_event(&mut self.face, &mut self.wire.buffer, id, sub.seq, body);
            return 0;
        }
        let opened = sub.opened;
        if class != Class::Latest || !self.replace_latest(id, name, body) {
            let ticket = self.next_ticket();
            self.live_bytes += body.bytes();
            if class == Class::Latest {
                self.remember_latest(id, name);
            }
            self.live.push_back(Live { ticket, sub: id, opened, replaced: 0, body: body.clone() });
        }
        let mut dropped = 0;
        while self.live.len() > limits::LIVE_EVENTS_MAX
            || (self.live_bytes > limits::LIVE_BYTES_MAX && self.live.len() > 1)
        {
            dropped += u64::from(self.drop_oldest());
        }
        dropped
    }

    /// The next entry is the newest of its name.
    fn remember_latest(&mut self, id: Id, name: &str) {
        let (front, next) = (self.live_front, self.live_front + self.live.len() as u64);
        let Some(sub) = self.subs.get_mut(&id) else { return };
        if sub.newest.len() >= limits::LIVE_EVENTS_MAX {
            // Names are the client's to choose, so the list of them is bounded.
            sub.newest.retain(|_, at| *at >= front);
        }
        sub.newest.insert(name.into(), next);
    }

    /// Puts a newer value where an older one of the same name waits.
    fn replace_latest(&mut self, id: Id, name: &str, body: &Body) -> bool {
        let Some(at) = self.subs.get(&id).and_then(|sub| sub.newest.get(name)) else { return false };
        let Some(index) = at.checked_sub(self.live_front) else { return false };
        let Some(entry) = usize::try_from(index).ok().and_then(|index| self.live.get_mut(index)) else {
            return false;
        };
        self.live_bytes = self.live_bytes + body.bytes() - entry.body.bytes();
        entry.body = body.clone();
        entry.replaced += 1;
        true
    }

    fn pop_live(&mut self) -> Option<Live> {
        let entry = self.live.pop_front()?;
        self.live_front += 1;
        self.live_bytes -= entry.body.bytes();
        Some(entry)
    }

    fn drop_oldest(&mut self) -> bool {
        let Some(entry) = self.pop_live() else { return false };
        let Some(sub) = self.subs.get_mut(&entry.sub).filter(|sub| sub.opened == entry.opened) else {
            return false;
        };
        if sub.missed == 0 {
            self.gapped.push(entry.sub);
        }
        sub.missed += 1 + entry.replaced;
        true
    }

    fn put_event(&mut self, live: &Live) {
        let id = live.sub;
        let Some(sub) = self.subs.get_mut(&id).filter(|sub| sub.opened == live.opened) else { return };
        sub.seq += 1 + live.replaced;
        put_event(&mut self.face, &mut self.wire.buffer, id, sub.seq, &live.body);
    }

    /// Moves what waits into the socket's buffer, in the order in which it was
    /// said; whether there was anything.
    fn refill(&mut self) -> bool {
        for id in std::mem::take(&mut self.gapped) {
            let Some(sub) = self.subs.get_mut(&id).filter(|sub| sub.missed > 0) else { continue };
            let (from_seq, to_seq, missed) = (sub.seq + 1, sub.seq + sub.missed, sub.missed);
            sub.seq = to_seq;
            sub.missed = 0;
            let gap = Gap { sub: id, missed, from_seq, to_seq };
            self.face.frame(&Frame::Gap(gap), &mut self.wire.buffer);
        }
        while self.wire.buffer.len() < WIRE_BYTES {
            let answer = self.answers.front().map(|(ticket, _)| *ticket);
            let live = self.live.front().map(|live| live.ticket);
            match (answer, live) {
                (None, None) => break,
                (Some(answer), live) if live.is_none_or(|live| answer < live) => {
                    if let Some((_, said)) = self.answers.pop_front() {
                        self.answer_bytes -= said.weight();
                        self.put(said);
                    }
                }
                _ => {
                    if let Some(live) = self.pop_live() {
                        self.put_event(&live);
                    }
                }
            }
        }
        !self.wire.buffer.is_empty()
    }
}

#[cfg(test)]
mod tests;
