//! A plugin in this process: a mailbox, and whoever fills it runs it.
//!
//! There is no thread behind an actor. The task that puts the first job into
//! an empty mailbox runs the plugin until the mailbox is empty again; others
//! only add to it. So the plugin is handled by one thread at a time, and a
//! request is answered without a switch of tasks.
//!
//! # Failure
//!
//! A panic poisons the instance. A call that does not come back within the
//! hang limit is given up by the [`Watchdog`]: the thread that is in it is
//! lost, and with it the task that made the call, everything else goes on, and
//! the runner starts the plugin again in a child process. So that nothing else
//! is lost, what the daemon itself lives by is wrapped in [`apart`], and a
//! plugin loses one thread at most: see [`Actor::is_stuck`].

use std::{
    cell::Cell,
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use ksi_host::{Host, Instance, Output};
use ksi_kernel::{Delivery, Token};
use ksi_protocol::Frame;
use tokio::task::AbortHandle;

use super::guest::{Guest, Life};
use crate::{
    hub::{Hub, Turn},
    session::outbox::Outbox,
    woken,
};

/// Outputs that one call may make before the plugin is told that it says too
/// much.
const OUTPUTS_MAX: usize = 64 * 1024;

/// Events that wait for a plugin that listens; more are dropped, and the log
/// says so once.
const EVENTS_MAX: usize = 64 * 1024;

/// Jobs in one run after which sockets are written in between, so that others
/// whose answers are ready do not wait for a slow plugin.
const FLUSH_EVERY: usize = 64;

/// Jobs after which whoever runs a plugin leaves it to a task of its own.
const RUN_MAX: usize = 1024;

/// Jobs that may wait for a plugin; more requests are refused `busy`.
const JOBS_MAX: usize = 64 * 1024;

/// How often the watchdog looks while a plugin is at work.
const WATCH: Duration = Duration::from_millis(100);

thread_local! {
    /// The actor that this thread is running, by address.
    static DRIVING: Cell<usize> = const { Cell::new(0) };
}

tokio::task_local! {
    /// Set in tasks that must not be lost.
    static APART: ();
}

/// A task that must not be lost to a plugin that hangs: plugins that it gives
/// something to do run in tasks of their own.
pub async fn apart<F: Future>(task: F) -> F::Output {
    APART.scope((), task).await
}

/// What became of a delivery to an actor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It waits, and nobody runs the plugin: the caller must [`Actor::run`] it.
    Run,
    /// It waits, and somebody sees to it; or nobody would.
    Queued,
    /// There is no room for this request.
    Full(Token),
}

enum Job {
    Deliver(Delivery),
    Drain,
    Fire(u64),
    Poll,
    Collect,
}

/// A plugin in this process.
pub struct Actor {
    /// Who it is.
    pub guest: Guest,
    hub: Weak<Hub>,
    watchdog: Arc<Watchdog>,
    /// Time that one call may take.
    limit: Duration,
    instance: Mutex<Option<Instance>>,
    mailbox: Mutex<VecDeque<Job>>,
    outputs: Mutex<Vec<Output>>,
    /// Jobs in the mailbox and in work. Whoever raises it from 0 must run.
    pending: AtomicUsize,
    poll_queued: AtomicBool,
    collect_queued: AtomicBool,
    /// Calls so far; only the one who runs the plugin counts.
    calls: AtomicU64,
    /// The number of the call under way; 0 for none. The watchdog tells a long
    /// call by it, so that no call needs to read a clock.
    call: AtomicU64,
    /// The number of the last call that was under way for longer than `limit`.
    overdue: AtomicU64,
    /// Timers that are pending, so that one that is given up goes at once.
    timers: Mutex<HashMap<u64, AbortHandle>>,
    /// The client whose task runs the plugin, or ran it last.
    caller: Mutex<Option<Weak<Outbox>>>,
    dead: AtomicBool,
    overrun: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Actor {
    /// An actor without its instance yet.
    #[must_use]
    pub fn new(guest: Guest, hub: &Arc<Hub>, watchdog: &Arc<Watchdog>, limit: Duration) -> Arc<Self> {
        let actor = Arc::new(Self {
            guest,
            hub: Arc::downgrade(hub),
            watchdog: watchdog.clone(),
            limit,
            instance: Mutex::new(None),
            mailbox: Mutex::default(),
            outputs: Mutex::default(),
            pending: AtomicUsize::new(0),
            poll_queued: AtomicBool::new(false),
            collect_queued: AtomicBool::new(false),
            calls: AtomicU64::new(0),
            call: AtomicU64::new(0),
            overdue: AtomicU64::new(0),
            timers: Mutex::default(),
            caller: Mutex::default(),
            dead: AtomicBool::new(false),
            overrun: AtomicBool::new(false),
        });
        watchdog.watch(&actor);
        actor
    }

    /// Gives the actor its instance, and handles what it said while it started.
    pub fn begin(self: &Arc<Self>, instance: Instance) {
        *lock(&self.instance) = Some(instance);
        self.add(Job::Poll);
    }

    /// Queues a delivery.
    #[must_use]
    pub fn push(&self, delivery: Delivery) -> Pushed {
        if self.dead.load(Ordering::Acquire) {
            return Pushed::Queued;
        }
        let mut mailbox = lock(&self.mailbox);
        // Requests that are open are bounded elsewhere; this bounds those that
        // were given up before they were looked at.
        if mailbox.len() >= JOBS_MAX {
            match delivery {
                // A fact to be kept has been promised a place.
                Delivery::Request { token, ref envelope } if envelope.deadline_ms.is_some() => {
                    return Pushed::Full(token);
                }
                Delivery::Credit { .. } => return Pushed::Queued,
                _ => {}
            }
        }
        if matches!(delivery, Delivery::Event { .. }) && mailbox.len() >= EVENTS_MAX {
            if !self.overrun.swap(true, Ordering::Relaxed) {
                tracing::warn!(plugin = self.guest.name, "events are dropped: the plugin is too slow");
            }
            return Pushed::Queued;
        }
        mailbox.push_back(Job::Deliver(delivery));
        // Counted under the lock, so that no job is done before it counts.
        if self.pending.fetch_add(1, Ordering::AcqRel) == 0 { Pushed::Run } else { Pushed::Queued }
    }

    /// Asks the plugin to finish.
    pub fn drain(self: &Arc<Self>) {
        self.add(Job::Drain);
    }

    /// Whether a call is under way: where it was given up, whether its thread
    /// is still lost.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        self.call.load(Ordering::Acquire) != 0
    }

    /// Whether the call under way has passed the limit. One that has not may end
    /// by itself.
    fn is_overdue(&self) -> bool {
        let call = self.call.load(Ordering::Acquire);
        call != 0 && call == self.overdue.load(Ordering::Acquire)
    }

    /// Where a call is under way that has passed the limit: ends the connection
    /// of the client whose task is lost in it.
    pub fn cut_off_caller(&self) {
        if self.is_overdue()
            && let Some(caller) = lock(&self.caller).take().and_then(|caller| caller.upgrade())
        {
            caller.cut_off();
        }
    }

    /// Lets no more calls in. The instance goes, or never does where a call does
    /// not come back.
    pub fn stop(&self) {
        // Exchanged, and not set: whoever comes second, this or the watchdog, sees
        // what the first has done, and cuts off the caller of a lost call.
        self.dead.swap(true, Ordering::AcqRel);
        // Where a call is under way, its own runner drops the instance. A
        // destructor may hang like any call, so it runs on a thread that
        // nobody waits for.
        if let Ok(mut slot) = self.instance.try_lock()
            && let (Some(instance), Some(hub)) = (slot.take(), self.hub.upgrade())
        {
            drop(hub.runtime().spawn_blocking(move || drop(instance)));
        }
    }

    /// Queues a job from outside a turn, and has it run.
    fn add(self: &Arc<Self>, job: Job) {
        if self.dead.load(Ordering::Acquire) {
            return;
        }
        let first = {
            let mut mailbox = lock(&self.mailbox);
            mailbox.push_back(job);
            self.pending.fetch_add(1, Ordering::AcqRel) == 0
        };
        if first {
            self.run_soon();
        }
    }

    /// Runs the plugin on a thread that nothing else lives by. Unlike a task of
    /// the runtime that costs one wake: a worker that finds a task wakes the next
    /// one to look for more.
    pub fn run_soon(self: &Arc<Self>) {
        let (actor, Some(hub)) = (self.clone(), self.hub.upgrade()) else { return };
        let runtime = hub.runtime().clone();
        runtime.spawn_blocking(move || {
            woken::without_slot(|| {
                let mut turn = hub.turn();
                actor.run(&mut turn);
                turn.end();
            });
        });
    }

    /// Runs the plugin until its mailbox is empty. Only for the one who was
    /// told to.
    pub fn run(self: &Arc<Self>, turn: &mut Turn<'_>) {
        if APART.try_with(|()| ()).is_ok() {
            return self.run_soon();
        }
        *lock(&self.caller) = turn.caller().map(Arc::downgrade);
        let mut worked = 0;
        loop {
            let jobs = std::mem::take(&mut *lock(&self.mailbox));
            let done = jobs.len();
            for job in jobs {
                self.work(job, turn);
                worked += 1;
                if worked % FLUSH_EVERY == 0 {
                    turn.flush();
                }
            }
            if self.pending.fetch_sub(done, Ordering::AcqRel) == done {
                return;
            }
            turn.flush();
            if worked >= RUN_MAX {
                // The task that runs this has other things to do; the count is
                // above 0, so nobody else begins meanwhile.
                return self.run_soon();
            }
        }
    }

    fn work(self: &Arc<Self>, job: Job, turn: &mut Turn<'_>) {
        match job {
            Job::Poll => self.poll_queued.store(false, Ordering::Release),
            Job::Collect => self.collect_queued.store(false, Ordering::Release),
            _ => {}
        }
        if self.dead.load(Ordering::Acquire) {
            return;
        }
        turn.let_go();
        woken::free();
        let mut slot = lock(&self.instance);
        let Some(instance) = slot.as_mut() else { return };
        let call = self.calls.load(Ordering::Relaxed) + 1;
        self.calls.store(call, Ordering::Relaxed);
        self.call.store(call, Ordering::Release);
        self.watchdog.begin();
        DRIVING.set(Arc::as_ptr(self) as usize);
        let called = match job {
            Job::Deliver(delivery) => instance.deliver(&self.guest.frame(delivery, turn.now_ms())),
            Job::Drain => instance.deliver(&Frame::Drain),
            Job::Fire(timer) => instance.fire(timer),
            Job::Poll => instance.poll(),
            Job::Collect => Ok(()),
        };
        DRIVING.set(0);
        self.call.store(0, Ordering::Release);
        if self.dead.load(Ordering::Acquire) {
            // Given up while it ran: what it says now comes too late, and its
            // destructors are not to be trusted.
            std::mem::forget(slot.take());
            return;
        }
        if called.is_err() {
            slot.take();
        }
        drop(slot);
        self.collect(turn);
        if let Err(fault) = called {
            self.give_up(&fault.to_string());
        }
    }

    /// Has its runner told that it is over; `false` where it was before.
    fn give_up(&self, reason: &str) -> bool {
        // What waits in the mailbox is passed over by whoever runs it: taken
        // out here, it would be counted for ever.
        let is_first = !self.dead.swap(true, Ordering::AcqRel);
        if is_first {
            self.guest.tell(Life::Died(reason.into()));
        }
        is_first
    }

    /// Gives up a timer; `false` where the id is none of one that is pending.
    fn forget_timer(&self, id: u64) -> bool {
        lock(&self.timers).remove(&id).map(|timer| timer.abort()).is_some()
    }

    fn collect(self: &Arc<Self>, turn: &mut Turn<'_>) {
        let outputs = std::mem::take(&mut *lock(&self.outputs));
        for output in outputs {
            match output {
                Output::Frame(Frame::Cancel { id }) if self.forget_timer(id) => {}
                Output::Frame(frame) => self.guest.hear(turn, frame),
                // At the end of the turn: behind all that has come by now.
                Output::Timer { id, delay_ms: 0 } => self.add(Job::Fire(id)),
                Output::Timer { id, delay_ms } => {
                    let actor = Arc::downgrade(self);
                    woken::note();
                    let timer = turn.hub().runtime().spawn(async move {
                        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
                        if let Some(actor) = actor.upgrade() {
                            lock(&actor.timers).remove(&id);
                            actor.add(Job::Fire(id));
                        }
                    });
                    lock(&self.timers).insert(id, timer.abort_handle());
                }
            }
        }
    }
}

/// What an instance holds of its actor; weak, since the actor holds the
/// instance.
pub struct ActorHost(pub Weak<Actor>);

impl Host for ActorHost {
    fn output(&self, output: Output) -> bool {
        let Some(actor) = self.0.upgrade() else { return false };
        let mut outputs = lock(&actor.outputs);
        // Only facts are refused: what somebody waits for, and what the plugin
        // itself waits for, is bounded by other means.
        if outputs.len() >= OUTPUTS_MAX && matches!(&output, Output::Frame(Frame::Emit(_))) {
            return false;
        }
        outputs.push(output);
        drop(outputs);
        let driving = DRIVING.get() == Arc::as_ptr(&actor) as usize;
        if !driving && !actor.collect_queued.swap(true, Ordering::AcqRel) {
            actor.add(Job::Collect);
        }
        true
    }

    fn wake(&self) {
        let Some(actor) = self.0.upgrade() else { return };
        if !actor.poll_queued.swap(true, Ordering::AcqRel) {
            actor.add(Job::Poll);
        }
    }
}

/// Notices calls into plugins of this process that do not come back. One
/// thread for all; it sleeps while no plugin is at work.
pub struct Watchdog {
    awake: AtomicBool,
    watched: Mutex<Vec<Watched>>,
    wake: Condvar,
}

/// An actor, and since when its present call has been seen.
struct Watched {
    actor: Weak<Actor>,
    call: u64,
    since: Instant,
}

impl Watchdog {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// Where the system has no thread left.
    pub fn start() -> std::io::Result<Arc<Self>> {
        let watchdog =
            Arc::new(Self { awake: AtomicBool::new(false), watched: Mutex::default(), wake: Condvar::new() });
        let weak = Arc::downgrade(&watchdog);
        std::thread::Builder::new().name("watchdog".into()).spawn(move || {
            while let Some(watchdog) = weak.upgrade() {
                watchdog.round();
            }
        })?;
        Ok(watchdog)
    }

    fn watch(&self, actor: &Arc<Actor>) {
        let mut watched = lock(&self.watched);
        watched.retain(|watched| watched.actor.strong_count() > 0);
        watched.push(Watched { actor: Arc::downgrade(actor), call: 0, since: Instant::now() });
    }

    /// A call begins.
    fn begin(&self) {
        if !self.awake.load(Ordering::Relaxed) && !self.awake.swap(true, Ordering::AcqRel) {
            let _watched = lock(&self.watched);
            self.wake.notify_one();
        }
    }

    /// Sleeps until a plugin is at work, then for a moment, then looks who has
    /// been in the same call for too long.
    fn round(&self) {
        let mut watched = lock(&self.watched);
        while !self.awake.load(Ordering::Acquire) {
            watched = self.wake.wait(watched).unwrap_or_else(PoisonError::into_inner);
        }
        (watched, _) = self.wake.wait_timeout(watched, WATCH).unwrap_or_else(PoisonError::into_inner);
        // Lowered before the look, so that a call that begins now wakes us.
        self.awake.store(false, Ordering::Release);
        let now = Instant::now();
        let mut slow = None;
        for watched in watched.iter_mut() {
            let Some(actor) = watched.actor.upgrade() else { continue };
            let call = actor.call.load(Ordering::Acquire);
            if call == 0 || actor.is_overdue() {
                continue;
            }
            self.awake.store(true, Ordering::Release);
            if call != watched.call {
                (watched.call, watched.since) = (call, now);
                continue;
            }
            if now - watched.since >= actor.limit {
                actor.overdue.store(call, Ordering::Release);
                let reason = format!("did not come back from a call for {} ms", actor.limit.as_millis());
                if !actor.give_up(&reason) {
                    // It was stopped before, and whoever asked it has been told.
                    actor.cut_off_caller();
                }
            }
            slow = Some(actor);
        }
        // The thread that watched the sockets for all others may be the one in
        // the call, and none takes its place before it is given something to
        // do.
        if let Some(hub) = slow.and_then(|actor| actor.hub.upgrade()) {
            hub.lanes.rouse();
        }
    }
}
