//! The hub: the kernel, its clock, and the way from a decision of the kernel
//! to the queue of whoever is meant.
//!
//! Everything that has an envelope (a session, a plugin's link, a timer) opens
//! a [`Turn`], calls the kernel through it, and ends it. A turn first fills all
//! queues, then writes each touched socket once, then lets the plugins in this
//! process run, whose answers go the same way. So a request to an in-process
//! plugin is answered by the task that read it, without a switch, and a batch
//! of requests costs one write.
//!
//! What stands behind a port is an enum, [`Handle`], and not a trait object: so a
//! turn knows which queues are sockets, to be written once, and which are plugins,
//! to be run after that. For this the hub, its clients and its plugins name each
//! other, and they are the only modules of the daemon that do.
//!
//! # Invariants
//!
//! - A socket is written before a plugin runs, so that a plugin that hangs
//!   holds up nobody but whoever called it.
//! - Nothing in a turn waits.

mod asks;
mod clock;
mod desk;
mod instead;
mod telling;
#[cfg(test)]
pub(crate) mod testing;

use std::{
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use ksi_identity::Authority;
use ksi_kernel::{Answer, Ask, Chains, Delivery, Effects, Emission, Envelope, Kernel, Role, Token, Verdict};
use ksi_protocol::{Bytes, Code, EventName, Refusal, encode, frame::Id};
use serde::Serialize;
use tokio::sync::Notify;

use crate::{
    identity::Identity,
    lanes::Lanes,
    own::{self, Fact},
    plugin::{
        actor::{Actor, Pushed},
        link::Link,
    },
    session::outbox::Outbox,
    wire::check_size,
    woken,
};

pub use instead::{Instead, busy};

/// An endpoint of the kernel, as the daemon knows it.
pub type Port = ksi_kernel::Port<Handle>;

/// What stands behind a port.
#[derive(Clone)]
pub enum Handle {
    /// The daemon itself: `system:*`, `plugin:*`, `config:*`.
    Daemon,
    /// A client.
    Session(Arc<Outbox>),
    /// A plugin in this process.
    Actor(Arc<Actor>),
    /// A plugin in a child process.
    Link(Arc<Link>),
}

/// A request to the daemon itself.
#[derive(Debug)]
pub struct SystemRequest {
    /// Names it in its answer.
    pub token: Token,
    /// What is asked.
    pub envelope: Box<Envelope>,
}

/// The kernel and what surrounds it.
pub struct Hub {
    /// The routing machine.
    pub kernel: Kernel<Handle>,
    /// Whom the daemon knows, and what each may do.
    pub identity: Identity,
    /// Changes with every start.
    pub boot: String,
    /// Told when the earliest deadline has come nearer.
    pub deadline: Notify,
    /// Told when the last request has ended while the daemon stops.
    pub idle: Notify,
    /// Told when a plugin begins to keep work.
    pub kept: Notify,
    /// The threads that clients are served by.
    pub lanes: Lanes,
    /// Live events dropped at slow readers.
    pub dropped: Arc<AtomicU64>,
    clock: clock::Started,
    closing: AtomicBool,
    turns: AtomicU64,
    daemon: OnceLock<Arc<Port>>,
    asks: asks::Asks,
    desk: desk::Desk<SystemRequest>,
    myself: Weak<Self>,
}

impl Hub {
    /// A hub.
    #[must_use]
    pub fn new(runtime: tokio::runtime::Handle, identity: Identity, chains: Chains) -> Arc<Self> {
        let clock = clock::Started::now();
        Arc::new_cyclic(|myself| Self {
            kernel: Kernel::with(chains),
            desk: desk::Desk::new(&identity),
            identity,
            boot: format!("{:x}-{:x}", clock.now_ms(), std::process::id()),
            deadline: Notify::new(),
            idle: Notify::new(),
            kept: Notify::new(),
            lanes: Lanes::new(runtime),
            dropped: Arc::default(),
            clock,
            closing: AtomicBool::new(false),
            turns: AtomicU64::new(1),
            daemon: OnceLock::new(),
            asks: asks::Asks::default(),
            myself: myself.clone(),
        })
    }

    /// Milliseconds since 1970 that never run backwards: the wall clock of the
    /// start plus the time since, in which the machine may have slept.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// Time since the start.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.clock.elapsed()
    }

    /// The port of the daemon itself.
    #[must_use]
    pub fn daemon(&self) -> &Arc<Port> {
        self.daemon.get_or_init(|| {
            let authority = Authority::full("daemon");
            self.kernel.attach(Role::Daemon, Handle::Daemon, ksi_kernel::Quota::default(), authority)
        })
    }

    /// The runtime, for work that must go on elsewhere.
    #[must_use]
    pub fn runtime(&self) -> &tokio::runtime::Handle {
        self.lanes.home()
    }

    /// Opens a turn of a client's own task.
    #[must_use]
    pub fn turn_of(&self, caller: &Arc<Outbox>) -> Turn<'_> {
        Turn { caller: Some(caller.clone()), ..self.turn() }
    }

    /// Opens a turn.
    #[must_use]
    pub fn turn(&self) -> Turn<'_> {
        let number = self.turns.fetch_add(1, Ordering::Relaxed);
        let now_ms = self.now_ms();
        Turn {
            hub: self,
            caller: None,
            number,
            now_ms,
            effects: Effects::new(),
            late: telling::Late::default(),
            sockets: Vec::new(),
            actors: Vec::new(),
        }
    }

    /// An owned handle of this hub.
    #[must_use]
    pub fn arc(&self) -> Arc<Self> {
        self.myself.upgrade().expect("a hub is only ever made inside an Arc, and `self` keeps it")
    }

    /// Tells a fact of the daemon's own.
    pub fn tell<T: Serialize>(&self, fact: Fact<T>, says: &T) {
        let mut turn = self.turn();
        turn.say(fact, says);
        turn.end();
    }

    /// The next request to the daemon itself.
    pub async fn asked(&self) -> SystemRequest {
        self.desk.next().await
    }

    /// Answers a request to the daemon itself.
    pub fn reply(&self, token: Token, answer: Result<Bytes, Refusal>) {
        let mut turn = self.turn();
        turn.answer(self.daemon(), token, answer.map_or_else(Answer::from, Answer::Reply));
        turn.end();
    }

    /// From now on clients get `shutting_down`, and `idle` is told when nothing
    /// is in flight.
    pub fn close(&self) {
        self.kernel.close();
        self.closing.store(true, Ordering::Release);
        self.check_idle();
    }

    /// Whether the daemon stops.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Refuses what clients still wait for.
    pub fn refuse_clients(&self) {
        let reason = Refusal::new(Code::ShuttingDown, "the daemon stops, and its grace is over")
            .hint("ask again once it runs");
        let mut turn = self.turn();
        self.kernel.refuse_clients(&reason, &mut turn.effects);
        turn.end();
    }

    /// Ends what clients wait for and may not ask any more, once rights were taken
    /// away.
    pub fn end_revoked(&self) {
        let mut turn = self.turn();
        self.kernel.end_revoked(self.now_ms(), &mut turn.effects);
        turn.end();
    }

    fn check_idle(&self) {
        if self.is_closing() && self.kernel.in_flight() == 0 {
            self.idle.notify_one();
            woken::note();
        }
    }

    /// Times out what is due, for ever. Sleeps while nothing has a deadline.
    ///
    /// The runtime's timers stand still while the machine sleeps, and the clock does not: what is due
    /// by then ends late, by no more than what was left when the machine fell asleep.
    pub async fn keep_deadlines(self: Arc<Self>) {
        loop {
            let mut turn = self.turn();
            let next = self.kernel.expire(self.now_ms(), &mut turn.effects);
            turn.end();
            match next {
                None => self.deadline.notified().await,
                Some(at) => {
                    let left = Duration::from_millis(at.saturating_sub(self.now_ms()).max(1));
                    tokio::select! {
                        () = tokio::time::sleep(left) => {}
                        () = self.deadline.notified() => {}
                    }
                }
            }
        }
    }
}

/// One batch of work; see the module.
pub struct Turn<'a> {
    hub: &'a Hub,
    caller: Option<Arc<Outbox>>,
    /// Tells what this turn has touched since its last flush from what another
    /// has.
    number: u64,
    /// The time when this turn began or last wrote; precise enough for
    /// deadlines, and read once for many envelopes.
    now_ms: u64,
    effects: Effects<Handle>,
    late: telling::Late,
    sockets: Vec<Touched>,
    actors: Vec<Arc<Actor>>,
}

enum Touched {
    Outbox(Arc<Outbox>),
    Link(Arc<Link>),
}

impl Turn<'_> {
    /// The hub of this turn.
    #[must_use]
    pub fn hub(&self) -> &Hub {
        self.hub
    }

    /// The client whose own task runs this turn, where it is one.
    #[must_use]
    pub fn caller(&self) -> Option<&Arc<Outbox>> {
        self.caller.as_ref()
    }

    /// Whether this is that client's queue.
    fn is_caller(&self, outbox: &Arc<Outbox>) -> bool {
        self.caller.as_ref().is_some_and(|caller| Arc::ptr_eq(caller, outbox))
    }

    /// Milliseconds since 1970, as of the last time this turn looked.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Asks on behalf of a port.
    pub fn request(&mut self, port: &Arc<Port>, ask: Ask) {
        self.hub.kernel.request(port, ask, self.now_ms, &mut self.effects);
        self.settle();
    }

    /// Tells on behalf of a port; how many were told.
    ///
    /// # Errors
    ///
    /// `denied` where the port may not say this.
    pub fn emit(&mut self, port: &Arc<Port>, emission: Emission) -> Result<usize, Refusal> {
        if port.role == Role::Client && own::is_own(emission.event.namespace()) {
            let message = format!("only the daemon itself says `{}`", emission.event);
            return Err(Refusal::new(Code::Denied, message).hint("emit under a namespace of your own"));
        }
        check_size(&emission.data, [emission.correlation_id.as_deref(), None])?;
        let told = self.hub.kernel.emit(port, emission, self.now_ms, &mut self.effects);
        self.settle();
        told
    }

    /// Tells a fact of the daemon's own.
    pub fn say<T: Serialize>(&mut self, fact: Fact<T>, says: &T) {
        if let (Ok(event), Ok(data)) = (EventName::parse(fact.event), encode(says)) {
            // The daemon may say everything.
            let _ = self.emit(self.hub.daemon(), Emission::new(event, data));
        }
    }

    /// Answers on behalf of the owner of a request.
    pub fn answer(&mut self, port: &Arc<Port>, token: Token, answer: Answer) {
        if let Err(fault) = self.hub.kernel.answer(port, token, answer, self.now_ms, &mut self.effects) {
            tracing::warn!(origin = &*port.origin, "broke the contract: {fault}");
        }
        self.settle();
    }

    /// Gives up a request of a port.
    pub fn cancel(&mut self, port: &Arc<Port>, id: Id) {
        self.hub.kernel.cancel(port, id, &mut self.effects);
        self.settle();
    }

    /// Allows more chunks.
    pub fn credit(&mut self, port: &Arc<Port>, id: Id, n: u32) {
        self.hub.kernel.credit(port, id, n, &mut self.effects);
        self.settle();
    }

    /// An interceptor's word.
    pub fn verdict(&mut self, port: &Arc<Port>, token: Token, verdict: Verdict) {
        if let Err(fault) = self.hub.kernel.verdict(port, token, verdict, self.now_ms, &mut self.effects) {
            tracing::warn!(origin = &*port.origin, "broke the contract: {fault}");
        }
        self.settle();
    }

    /// Ends a port: what it holds is refused for `reason`.
    pub fn detach(&mut self, port: &Arc<Port>, reason: &Refusal) {
        self.hub.kernel.detach(port, reason, &mut self.effects);
        self.settle();
    }

    /// Marks a socket to be written at the end.
    pub fn touch(&mut self, outbox: &Arc<Outbox>) {
        if outbox.touched_by.swap(self.number, Ordering::Relaxed) != self.number {
            self.sockets.push(Touched::Outbox(outbox.clone()));
        }
    }

    /// Writes all touched sockets, and then tells those who hear late.
    pub fn flush(&mut self) {
        self.write();
        if !self.late.is_empty() {
            self.tell_late();
            self.write();
        }
        // What is touched from now on is written by the next flush.
        self.number = self.hub.turns.fetch_add(1, Ordering::Relaxed);
        self.now_ms = self.hub.now_ms();
    }

    fn write(&mut self) {
        for socket in self.sockets.drain(..) {
            match socket {
                Touched::Outbox(outbox) => {
                    outbox.flush();
                }
                Touched::Link(link) => link.flush(),
            }
        }
    }

    /// Before a plugin runs, which may never come back: writes what others than
    /// the caller wait for, and leaves other plugins to tasks of their own.
    pub fn let_go(&mut self) {
        let is_callers =
            |socket: &Touched| matches!(socket, Touched::Outbox(outbox) if self.is_caller(outbox));
        if !self.late.is_empty() || !self.sockets.iter().all(is_callers) {
            self.flush();
        }
        for other in self.actors.drain(..) {
            other.run_soon();
        }
    }

    /// Carries out what is left.
    pub fn end(mut self) {
        self.settle();
        loop {
            self.flush();
            let Some(actor) = self.actors.pop() else { break };
            actor.run(&mut self);
        }
        self.hub.check_idle();
    }

    /// Moves what the kernel decided into the queues.
    fn settle(&mut self) {
        if self.effects.deadline.take().is_some() {
            self.hub.deadline.notify_one();
            woken::note();
        }
        let mut facts = std::mem::take(&mut self.effects.facts);
        for fact in facts.drain(..) {
            self.tell(fact);
        }
        self.effects.facts = facts;
        if self.effects.deliveries.is_empty() {
            return;
        }
        let mut deliveries = std::mem::take(&mut self.effects.deliveries);
        for (port, delivery) in deliveries.drain(..) {
            self.deliver(&port, delivery);
        }
        // Keeps the allocation; what was decided meanwhile stays in order.
        if self.effects.deliveries.is_empty() {
            self.effects.deliveries = deliveries;
        } else {
            self.settle();
        }
    }

    fn deliver(&mut self, port: &Arc<Port>, delivery: Delivery) {
        match &port.handle {
            Handle::Daemon => self.pass_to_daemon(delivery),
            Handle::Session(outbox) => {
                self.keep_order(outbox);
                outbox.answer(delivery);
                self.touch(outbox);
            }
            Handle::Actor(actor) => match actor.push(delivery) {
                Pushed::Run => self.actors.push(actor.clone()),
                Pushed::Queued => {}
                Pushed::Full(token) => self.stand_in(port, token, Instead::Refusal(busy())),
            },
            Handle::Link(link) => {
                if let Some((token, instead)) = link.push(delivery, self.now_ms) {
                    self.stand_in(port, token, instead);
                }
                let listed = |last: &Touched| matches!(last, Touched::Link(l) if Arc::ptr_eq(l, link));
                if !self.sockets.last().is_some_and(listed) {
                    self.sockets.push(Touched::Link(link.clone()));
                }
            }
        }
    }

    /// Says what one does not that could not be handed something.
    fn stand_in(&mut self, holder: &Arc<Port>, token: Token, instead: Instead) {
        let (kernel, now_ms, effects) = (&self.hub.kernel, self.now_ms, &mut self.effects);
        // The holder holds it, since it was just entrusted with it.
        let _ = match instead {
            Instead::Refusal(refusal) => kernel.answer(holder, token, refusal.into(), now_ms, effects),
            Instead::Verdict(verdict) => kernel.verdict(holder, token, verdict, now_ms, effects),
        };
    }
}
