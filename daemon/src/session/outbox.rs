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
//!   off. All of it is charged to the account of the client's user, and so is
//!   what is large in the socket's buffer.
//! - Nothing here waits; a full socket is the writer task's matter.

pub mod follow;
mod ring;

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

use self::{
    follow::{Follows, Said},
    ring::{Live, Sub},
};
use super::{
    account::Account,
    body::Body,
    credit::Credits,
    face::{Face, put_line},
    place::Tenure,
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
    /// Whether the socket was full when it was written last.
    full: AtomicBool,
    /// Events for this client that turns have put off.
    put_off: AtomicUsize,
    /// Whether any request has asked for flow control, so that a session
    /// without pays nothing for it.
    limited: AtomicBool,
    dropped: Arc<AtomicU64>,
    /// Who pays for what waits here.
    account: Arc<Account>,
    /// Whether the reader has one of the account's places.
    pub tenure: Tenure,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    account: Arc<Account>,
    /// Bytes that the account is charged for.
    charged: usize,
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

impl Outbox {
    /// The queue of a client that speaks `face`, paid for by `account`. `dropped` counts lost events
    /// for the whole daemon.
    #[must_use]
    pub fn new(socket: UnixStream, face: Face, account: Arc<Account>, dropped: Arc<AtomicU64>) -> Self {
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
            full: AtomicBool::new(false),
            put_off: AtomicUsize::new(0),
            limited: AtomicBool::new(false),
            dropped,
            account: account.clone(),
            tenure: Tenure::default(),
            state: Mutex::new(State {
                account,
                charged: 0,
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

    /// Who pays for what waits here.
    #[must_use]
    pub fn account(&self) -> &Arc<Account> {
        &self.account
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
        state.recharge();
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
        if self.lock().subs.remove(&id).is_some() {
            self.account().unsubscribe(1);
        }
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
        self.account().asked();
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
        state.recharge();
        if last {
            self.account().answered(1);
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
        state.recharge();
    }

    /// Whether events for this client are to be told after those for others: its
    /// socket is full, or a turn still has some for it that came before.
    #[must_use]
    pub fn hears_late(&self) -> bool {
        self.full.load(Ordering::Relaxed) || self.put_off.load(Ordering::Relaxed) > 0
    }

    /// A turn has put off an event for this client.
    pub fn put_off(&self) {
        self.put_off.fetch_add(1, Ordering::Relaxed);
    }

    /// An event that was put off is queued.
    pub fn caught_up(&self) {
        self.put_off.fetch_sub(1, Ordering::Relaxed);
    }

    /// Queues an event; whether it wants to be written, since nobody else will.
    pub fn event(&self, id: Id, class: Class, name: &str, body: &Body) -> bool {
        let mut state = self.lock();
        let dropped = state.event(id, class, name, body);
        state.recharge();
        if dropped > 0 {
            self.dropped.fetch_add(dropped, Ordering::Relaxed);
        }
        !state.wire.is_blocked()
    }

    /// Writes as much as the socket takes now.
    pub fn flush(&self) -> Flushed {
        let mut state = self.lock();
        if state.overflow {
            state.wire.kill();
        }
        loop {
            let flushed = state.wire.flush(&self.socket, &self.writer);
            self.full.store(flushed == Flushed::Blocked, Ordering::Relaxed);
            if flushed == Flushed::Dead {
                self.closing.notify_one();
                woken::note();
            }
            if flushed != Flushed::Done || !state.refill() {
                state.recharge();
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
        self.account().lose_place(&self.tenure);
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
        (state.answer_bytes, state.live_bytes) = (0, 0);
        state.credits.clear();
        state.recharge();
        let follows = state.follows.clear();
        state.account.unsubscribe(follows);
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.account.recharge(state.charged, 0);
        let subscriptions = state.subs.len() + state.follows.clear();
        state.account.unsubscribe(subscriptions);
        state.account.answered(*self.owed.get_mut());
    }
}

impl State {
    /// Bytes that wait, but for the little that the socket's buffer always may have.
    fn waiting_bytes(&self) -> usize {
        self.answer_bytes + self.live_bytes + self.credits.held_bytes() + self.large_bytes()
    }

    /// Bytes of the one large answer or event that may lie in the socket's buffer.
    fn large_bytes(&self) -> usize {
        self.wire.buffer.len().saturating_sub(2 * WIRE_BYTES)
    }

    /// Charges for what waits now. Costs a comparison where nothing does.
    fn recharge(&mut self) {
        let waits = self.waiting_bytes();
        if waits != self.charged {
            self.account.recharge(self.charged, waits);
            self.charged = waits;
        }
    }

    fn room(&self) -> bool {
        self.answers.is_empty() && self.live.is_empty() && self.wire.buffer.len() < WIRE_BYTES
    }

    fn is_congested(&self) -> bool {
        self.answer_bytes + self.wire.buffer.len() > CONGESTED_BYTES
            || (self.answer_bytes + self.large_bytes() > 0 && self.is_over_share())
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
        let waits = self.waiting_bytes();
        self.overflow |= self.answer_bytes + self.credits.held_bytes() > limits::REPLY_BYTES_MAX
            || (waits > 0 && self.account.is_far_over(self.charged, waits));
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
