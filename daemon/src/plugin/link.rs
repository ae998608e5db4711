//! A plugin in a child process: the daemon's end of its socket.

use std::{
    os::unix::net::UnixStream as StdStream,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::BytesMut;
use ksi_kernel::{Delivery, Token, Verdict};
use ksi_protocol::{Code, Frame, Refusal, limits};
use tokio::{net::UnixStream, sync::Notify};

use super::guest::{Guest, Life};
use crate::{
    hub::{Hub, Instead, busy},
    jitter,
    wire::{Wire, write_when_full},
    woken,
};

/// Unread bytes beyond which the child is handed no more requests, and no more
/// questions for its word.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// Unread bytes beyond which a child is given up: it asks, and does not read what
/// it is answered. It is read all the same until then, since one that waits to
/// write reads nothing, and both would wait for ever.
///
/// What it has not asked for makes [`BYTES_MAX`] and one frame of them at most, so
/// that nobody can have another's child given up by what he sends it.
const UNREAD_MAX: usize = BYTES_MAX + limits::FRAME_BYTES_MAX + ASKED_MAX;

/// Unread bytes that it has asked for, at least, where it is given up.
const ASKED_MAX: usize = 64 * 1024 * 1024;

/// Unread bytes beyond which events for a listener are dropped. Requests are
/// bounded by what the plugin may hold.
const EVENT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The daemon's end of a child's socket.
#[derive(Debug)]
pub struct Link {
    /// Who it is.
    pub guest: Guest,
    /// Told when the child was at rest and is given something, so that its
    /// runner sees to its heartbeat.
    pub busy: Notify,
    rests: AtomicBool,
    /// What a ping that waits for its answer has; 0 while none does.
    asked: AtomicU64,
    /// Told when too much waits to be read.
    overrun: Notify,
    socket: UnixStream,
    writer: Notify,
    wire: Mutex<Wire>,
    dropped: AtomicU64,
}

impl Link {
    /// Takes the daemon's end.
    ///
    /// # Errors
    ///
    /// Where the runtime cannot watch the socket.
    pub fn new(guest: Guest, socket: StdStream) -> std::io::Result<Arc<Self>> {
        socket.set_nonblocking(true)?;
        Ok(Arc::new(Self {
            guest,
            busy: Notify::new(),
            rests: AtomicBool::new(true),
            asked: AtomicU64::new(0),
            overrun: Notify::new(),
            socket: UnixStream::from_std(socket)?,
            writer: Notify::new(),
            wire: Mutex::default(),
            dropped: AtomicU64::new(0),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Wire> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a delivery; it is written by the next flush. A request or question
    /// that fits no frame, or for which there is no room, comes back with what is
    /// said instead.
    #[must_use]
    pub fn push(&self, delivery: Delivery, now_ms: u64) -> Option<(Token, Instead)> {
        let refused = self.queue(delivery, now_ms);
        // Only now: whoever pings says first that the child is at rest, so that
        // what a ping did not follow ends the rest.
        self.stir();
        refused
    }

    fn queue(&self, delivery: Delivery, now_ms: u64) -> Option<(Token, Instead)> {
        let answer = match &delivery {
            Delivery::Answer { id, .. } => Some(*id),
            _ => None,
        };
        let frame = self.guest.frame(delivery, now_ms);
        let mut wire = self.lock();
        if wire.is_dead() {
            return None;
        }
        let unread = wire.buffer.len();
        if unread > BYTES_MAX {
            // What is open is bounded elsewhere, but not in bytes; nor is what was
            // given up before the child has read it.
            match &frame {
                Frame::Request(_) | Frame::Intercept(_) => return self.instead_of(&frame, busy()),
                Frame::Credit { .. } => return None,
                _ => {}
            }
        }
        if matches!(frame, Frame::Event(_)) && unread > EVENT_BYTES_MAX {
            if self.dropped.fetch_add(1, Ordering::Relaxed) == 0 {
                tracing::warn!(plugin = self.guest.name, "events are dropped: the plugin is too slow");
            }
            return None;
        }
        if answer.is_some() && unread > UNREAD_MAX {
            wire.kill();
            self.overrun.notify_one();
            woken::note();
            return None;
        }
        let Err(error) = frame.encode(&mut wire.buffer) else { return None };
        tracing::warn!(plugin = self.guest.name, "{error}");
        if let Some(id) = answer {
            // A refusal of a few words always fits.
            let _ = Frame::Refusal { id: Some(id), refusal: too_large() }.encode(&mut wire.buffer);
        }
        self.instead_of(&frame, too_large())
    }

    /// What is said where the child is not handed a frame to which it owes
    /// something.
    fn instead_of(&self, frame: &Frame, refusal: Refusal) -> Option<(Token, Instead)> {
        match frame {
            Frame::Request(request) => Some((request.id, Instead::Refusal(refusal))),
            Frame::Intercept(question) => {
                let verdict = match self.guest.fails_open(question.index) {
                    true => Verdict::Pass,
                    false => Verdict::Refuse(refusal),
                };
                Some((question.id, Instead::Verdict(verdict)))
            }
            _ => None,
        }
    }

    /// Says something of the daemon's own.
    pub fn send(&self, frame: &Frame) {
        // Frames of the daemon's own are small.
        let _ = frame.encode(&mut self.lock().buffer);
        self.flush();
    }

    /// Asks the child's own loop whether it answers.
    pub fn ping(&self) {
        // Nobody can know it who has not read all that was said before.
        let id = jitter::number() | 1;
        self.asked.store(id, Ordering::Release);
        self.send(&Frame::Ping { id });
    }

    /// It says that it was asked. What answers no ping says nothing.
    fn pong(&self, id: u64) {
        if id != 0 && self.asked.compare_exchange(id, 0, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.guest.tell(Life::Pong);
        }
    }

    /// The child is at rest until it is given something.
    pub fn rest(&self) {
        self.rests.store(true, Ordering::Release);
    }

    /// Ends that rest: its runner asks whether it still answers. Costs no write
    /// to what others share while it is over already.
    pub fn stir(&self) {
        if self.rests.load(Ordering::Relaxed) && self.rests.swap(false, Ordering::AcqRel) {
            self.busy.notify_one();
            woken::note();
        }
    }

    /// Writes as much as the socket takes now.
    pub fn flush(&self) {
        self.lock().flush(&self.socket, &self.writer);
    }

    /// Drops everything: the child is gone.
    pub fn kill(&self) {
        self.lock().kill();
    }

    /// Reads what the child says until it is gone, for the life of the link.
    /// Also writes where the socket was full.
    pub async fn serve(self: Arc<Self>, hub: Arc<Hub>) {
        let writing = write_when_full(&self.socket, &self.writer, limits::REQUEST_TIMEOUT_MAX, || {
            let mut wire = self.lock();
            wire.unblock();
            wire.flush(&self.socket, &self.writer)
        });
        tokio::pin!(writing);
        let reading = self.read(&hub);
        tokio::pin!(reading);
        let served = async {
            tokio::select! {
                reason = &mut reading => reason,
                // It takes nothing more, but what it has said still counts.
                _ = &mut writing => reading.await,
            }
        };
        let reason = tokio::select! {
            // First, since an overrun ends the writing as if the child were gone.
            biased;
            () = self.overrun.notified() => Some("does not read what it has asked for".into()),
            reason = served => reason,
        };
        self.kill();
        if let Some(reason) = reason {
            self.guest.tell(Life::Died(reason));
        }
    }

    /// Why the child must be given up; `None` where it closed its end, since
    /// its exit status will say more.
    async fn read(&self, hub: &Hub) -> Option<String> {
        let mut input = BytesMut::with_capacity(64 * 1024);
        loop {
            self.socket.readable().await.ok()?;
            input.reserve(64 * 1024);
            match self.socket.try_read_buf(&mut input) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(_) => return None,
            }
            let mut turn = hub.turn();
            loop {
                match Frame::split(&mut input) {
                    Ok(Some(Frame::Pong { id })) => self.pong(id),
                    Ok(Some(frame)) => self.guest.hear(&mut turn, frame),
                    Ok(None) => break,
                    Err(error) => {
                        turn.end();
                        return Some(format!("broke the contract: {error}"));
                    }
                }
            }
            turn.end();
            tokio::task::coop::consume_budget().await;
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let dropped = self.dropped.load(Ordering::Relaxed);
        if dropped > 0 {
            tracing::warn!(plugin = self.guest.name, dropped, "events were dropped: the plugin was too slow");
        }
    }
}

/// What becomes of an envelope that fits no frame.
fn too_large() -> Refusal {
    let limit = limits::FRAME_BYTES_MAX;
    Refusal::new(Code::TooLarge, format!("the payload does not fit a frame of {limit} bytes"))
        .hint("pass large data by a file, and its path in the payload")
}

#[cfg(test)]
mod tests {
    use std::{io::Read, time::Duration};

    use ksi_identity::Authority;
    use ksi_kernel::{Answer, Ask, Declared, Quota, Role};
    use ksi_protocol::{Bytes, EventName, Pattern, descriptor::InterceptSpec, frame::Stage};
    use serde_json::json;
    use tokio::sync::mpsc;

    use super::*;
    use crate::hub::{Handle, Port, testing::hub};

    fn link() -> (Arc<Link>, StdStream, mpsc::Receiver<Life>) {
        let (ours, theirs) = StdStream::pair().unwrap();
        let (life, lives) = mpsc::channel(4);
        (Link::new(Guest::new("greedy", None, life, false), ours).unwrap(), theirs, lives)
    }

    #[tokio::test]
    async fn only_the_pong_of_the_ping_that_is_open_counts_and_once() {
        let (link, mut child, mut lives) = link();
        for id in [0, 1, 7] {
            link.pong(id);
        }
        assert!(lives.try_recv().is_err(), "nothing was asked");
        link.socket.writable().await.unwrap();
        link.ping();
        let mut input = BytesMut::new();
        let asked = loop {
            let mut chunk = [0; 64];
            let read = child.read(&mut chunk).unwrap();
            input.extend_from_slice(&chunk[..read]);
            if let Some(Frame::Ping { id }) = Frame::split(&mut input).unwrap() {
                break id;
            }
        };
        for id in [0, asked ^ 2] {
            link.pong(id);
        }
        assert!(lives.try_recv().is_err(), "that was another");
        link.pong(asked);
        assert!(matches!(lives.try_recv(), Ok(Life::Pong)));
        link.pong(asked);
        assert!(lives.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_child_that_asks_and_does_not_read_is_given_up_and_what_waited_for_it_is_gone() {
        const BYTES: usize = 8 << 20;
        let (link, _child, _lives) = link();
        let data = Bytes::from(vec![7; BYTES]);
        let event = EventName::parse("a:b").unwrap();
        for id in 0..64 {
            let answer = Answer::Reply(data.clone());
            let delivery =
                Delivery::Answer { id, token: 1, event: event.clone(), answer, correlation_id: None };
            assert!(link.push(delivery, 0).is_none());
            assert!(link.lock().buffer.len() <= UNREAD_MAX + BYTES + 1024);
        }
        assert!(link.lock().is_dead() && link.lock().buffer.is_empty());
        let told = tokio::time::timeout(Duration::from_secs(10), link.overrun.notified());
        assert!(told.await.is_ok(), "whoever serves it is told");
    }

    /// An end that reads nothing. Nor is anything written to it: the runtime does
    /// not look at its socket before somebody waits.
    struct Child {
        link: Arc<Link>,
        port: Arc<Port>,
        _socket: StdStream,
        _lives: mpsc::Receiver<Life>,
    }

    impl Child {
        fn new(hub: &Hub, name: &str) -> Self {
            let (link, _socket, _lives) = link();
            let authority = Authority::full(name);
            let port =
                hub.kernel.attach(Role::Plugin, Handle::Link(link.clone()), Quota::default(), authority);
            link.guest.set_port(&port);
            Self { link, port, _socket, _lives }
        }

        fn told(&self) -> Vec<Frame> {
            let mut input = self.link.lock().buffer.clone();
            std::iter::from_fn(|| Frame::split(&mut input).unwrap()).collect()
        }
    }

    /// What the asker and the owner of requests are told while a guard that reads
    /// nothing is to have a word on each.
    fn told_beside_a_guard(fail_open: bool) -> (Vec<Frame>, Vec<Frame>) {
        const ASKED: u64 = 12;
        let hub = hub();
        let [guard, owner, asker] =
            ["plugin:guard", "plugin:a", "session:1"].map(|name| Child::new(&hub, name));
        let event = EventName::parse("a:b").unwrap();
        let absent = Refusal::new(Code::Unavailable, "it is not there");
        hub.kernel.declare("plugin:a", &[Declared::new(event.clone())], absent);
        hub.kernel.own(&owner.port, std::slice::from_ref(&event)).unwrap();
        let pattern = Pattern::parse("a:*").unwrap();
        let spec = InterceptSpec { pattern, stage: Stage::Before, order: 0, fail_open };
        let descriptor = json!({"name": "guard", "version": "1.0.0", "about": "x", "intercepts": [&spec]});
        guard.link.guest.described(Box::new(serde_json::from_value(descriptor).unwrap()));
        hub.kernel.intercept(&guard.port, [spec]);
        let data = Bytes::from(vec![7; 15 << 20]);
        for id in 0..ASKED {
            let mut turn = hub.turn();
            turn.request(&asker.port, Ask::new(id, event.clone(), data.clone()));
            turn.end();
        }
        assert!(!guard.link.lock().is_dead(), "it has asked for nothing of that");
        assert_eq!((guard.told().len(), guard.port.holding()), (5, 5));
        (asker.told(), owner.told())
    }

    #[tokio::test]
    async fn a_guard_that_is_asked_too_much_is_not_given_up_and_what_it_is_not_asked_is_refused() {
        let (asker, owner) = told_beside_a_guard(false);
        let is_busy =
            |one: &Frame| matches!(one, Frame::Refusal { refusal, .. } if refusal.code == Code::Busy);
        assert!(asker.len() == 7 && asker.iter().all(is_busy), "{asker:?}");
        assert!(owner.is_empty());
    }

    #[tokio::test]
    async fn what_passes_without_its_guard_passes_where_that_is_asked_too_much() {
        let (asker, owner) = told_beside_a_guard(true);
        // The owner reads nothing either.
        assert_eq!((owner.len(), asker.len()), (5, 2));
        assert!(owner.iter().all(|one| matches!(one, Frame::Request(_))));
    }

    #[tokio::test]
    async fn a_child_is_given_up_for_what_it_asks_and_not_for_what_it_is_asked() {
        let hub = hub();
        let child = Child::new(&hub, "plugin:greedy");
        let data = Bytes::from(vec![7; 1 << 20]);
        let event = EventName::parse("a:b").unwrap();
        let answers = |n: u64| {
            for id in 0..n {
                let answer = Answer::Reply(data.clone());
                let event = event.clone();
                let _ = child
                    .link
                    .push(Delivery::Answer { id, token: id, event, answer, correlation_id: None }, 0);
            }
        };
        // The most that others can bring upon it.
        child.link.lock().buffer.extend_from_slice(&vec![0; BYTES_MAX + limits::FRAME_BYTES_MAX]);
        answers(ASKED_MAX as u64 >> 20);
        assert!(!child.link.lock().is_dead());
        assert!(child.link.push(Delivery::Cancel { token: 1 }, 0).is_none());
        answers(1);
        assert!(child.link.lock().is_dead());
    }

    #[tokio::test]
    async fn who_is_given_up_is_given_up_also_where_its_socket_takes_more_in_that_moment() {
        let hub = hub();
        for _ in 0..32 {
            let (link, _socket, mut lives) = link();
            // Nobody has looked at the socket yet, so it counts as full.
            link.send(&Frame::Ping { id: 1 });
            assert!(link.lock().is_blocked());
            link.socket.writable().await.unwrap();
            link.lock().kill();
            link.overrun.notify_one();
            let served = tokio::time::timeout(Duration::from_secs(10), link.serve(hub.clone())).await;
            assert!(served.is_ok(), "it is waited for what the child says");
            assert!(matches!(lives.try_recv(), Ok(Life::Died(reason)) if reason.contains("asked for")));
        }
    }
}
