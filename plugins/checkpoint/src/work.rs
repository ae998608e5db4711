//! Durable work at work: takes it in, has it done, and answers for it.
//!
//! The [`Ledger`] decides, the [`Engine`] keeps, this module carries out: it
//! commits what a [`Step`] changes, waits until that is durable, then does what
//! the step says. An attempt is an ordinary request to the owner of the event,
//! in the name of whoever asked first, with the work's name as its idempotency
//! key. Nothing is begun, answered or told before it is durable.
//!
//! It never looks into what is asked or answered, and no log has it.
//!
//! # Invariants
//!
//! - Steps are journaled in the order in which the ledger made them. While
//!   memory is full they wait in that order, and nothing new is taken in.
//! - An accepted request is carried out whether its asker is still there or not.
//! - What came of an attempt is remembered until the end of its work is durable.
//!
//! # Failure
//!
//! When the journal stops, nothing is begun, told or accepted any more: what
//! this start did since the last sync may not be there after the next one, so
//! nobody may hear of it. What runs goes on, and who waits is to ask again: the
//! next [`Work`] of the plugin, over the journal as it is then, has the same
//! [`Attempts`]. An entry or a key that cannot be read is left alone, and counted.

mod alarm;
mod attempt;
mod events;
pub mod payload;
mod recovery;
mod sweep;

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    pin::pin,
    rc::Rc,
    time::Duration,
};

use futures_channel::oneshot;
use futures_util::future::select;
use ksi_sdk::{
    Ctx, Kept, Plugin, Register, Signal,
    prelude::{Code, Refusal},
    protocol::{Bytes, work::Accepted},
    yield_now,
};

use crate::{
    engine::Engine,
    ledger::{Admission, Effect, Ended, Figures, Id, Key, Ledger, Limits, Order, Remembered, Step},
    record::Seq,
};
use alarm::Alarm;
pub use attempt::Attempts;
use attempt::Start;

/// Entries that are read at a time.
const PAGE: usize = 1_000;

/// Pause before a step that found memory full is tried again.
const FULL_PAUSE: Duration = Duration::from_millis(50);

/// Durable work, for as long as one journal is open.
pub struct Work {
    /// The plugin's own, not one of a request: attempts outlive requests.
    ctx: Ctx,
    engine: Rc<Engine>,
    ledger: RefCell<Ledger>,
    attempts: Rc<Attempts>,
    /// Attempts that are to begin, in order; as many as may run at most.
    starts: RefCell<VecDeque<Start>>,
    /// Rings for whoever begins them.
    bell: Alarm,
    /// Those who wait for an end. Dropping the senders wakes them.
    waiters: RefCell<HashMap<Id, Vec<oneshot::Sender<()>>>>,
    /// Told when the daemon stops, and then of each attempt that ends.
    halted: Signal,
    /// Steps that found memory full.
    backlog: RefCell<VecDeque<Step>>,
    /// Entries that could not be read.
    unreadable: usize,
    /// Set once the journal has stopped.
    stopped: Cell<bool>,
    alarm: Alarm,
}

/// Registers `work:*`, the keeping of durable requests and what goes with them.
/// `of` finds the work in a plugin; it refuses while there is none.
pub fn register<P: Plugin>(on: &mut Register<P>, of: fn(&P) -> Result<Rc<Work>, Refusal>) {
    on.keep(move |plugin: Rc<P>, ctx, kept| {
        let work = of(&plugin);
        async move { work?.keep(ctx, kept).await }
    });
    on.event("system:stopping", move |plugin: Rc<P>, _, _| {
        if let Ok(work) = of(&plugin) {
            work.stop();
        }
        std::future::ready(())
    });
    on.event("system:thawed", move |plugin: Rc<P>, _, _| {
        if let Ok(work) = of(&plugin) {
            work.hurry();
        }
        std::future::ready(())
    });
    events::register(on, of);
}

impl Work {
    /// Reads what there is, goes on with it, and takes work in from now on.
    /// `attempts` are those of the plugin, from one opening to the next.
    ///
    /// # Errors
    ///
    /// What the engine refuses.
    pub async fn open(
        ctx: &Ctx,
        engine: Rc<Engine>,
        limits: Limits,
        attempts: &Rc<Attempts>,
    ) -> Result<Rc<Self>, Refusal> {
        let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), engine.epoch());
        let mut ledger = Ledger::new(limits, engine.epoch(), seed);
        let unreadable = recovery::load(ctx, &engine, &mut ledger).await?;
        let work = Rc::new(Self {
            ctx: ctx.clone(),
            engine,
            ledger: RefCell::new(ledger),
            attempts: attempts.clone(),
            starts: RefCell::default(),
            bell: Alarm::default(),
            waiters: RefCell::default(),
            halted: Signal::default(),
            backlog: RefCell::default(),
            unreadable,
            stopped: Cell::new(false),
            alarm: Alarm::default(),
        });
        let begun = attempts.go_on(&work);
        let step = work.ledger.borrow_mut().recover(work.now(), &begun);
        let unheard = attempts.review(|id, lease| work.ledger.borrow().holds(id, lease));
        // A refusal is dealt with where it comes from: the step waits, or the journal has stopped.
        let _ = work.carry(step);
        for (id, lease, answer) in unheard {
            work.hear(id, lease, answer);
        }
        ctx.spawn(work.clone().begin_attempts());
        ctx.spawn(work.clone().keep_time());
        ctx.spawn(sweep::keys(Rc::downgrade(&work), ctx.clone()));
        Ok(work)
    }

    /// Takes a durable request in; answers once it is safe.
    ///
    /// # Errors
    ///
    /// `conflict` for a key that was used for another payload, `busy` when too
    /// much waits, `unavailable` once the journal has stopped.
    pub async fn keep(self: Rc<Self>, ctx: Ctx, kept: Kept) -> Result<Accepted, Refusal> {
        let Kept { event, data, policy } = kept;
        let key = ctx.idempotency_key().map(|text| Key::new(text, &data));
        let remembered = match &key {
            Some(key) => self.remembered(&key.hash(&event, ctx.tenant()).table_key()).await?,
            None => None,
        };
        // From here to the commit nothing waits, so what is remembered holds.
        self.check_open()?;
        let order = Order {
            id: Id::fresh(),
            seq: self.engine.next_seq(),
            event,
            origin: ctx.origin().to_owned(),
            principal: Some(ctx.principal().to_owned()),
            tenant: ctx.tenant().map(str::to_owned),
            correlation_id: ctx.correlation_id().map(str::to_owned),
            policy,
            key,
        };
        let admission =
            self.ledger.borrow_mut().accept(self.now(), order, data.clone(), remembered.as_ref())?;
        let (id, seq) = match admission {
            Admission::Same { id, seq } => (id, seq),
            Admission::New { id, step } => (id, self.take_in(id, step, data)?),
        };
        self.engine.durable(seq).await?;
        Ok(Accepted { request_id: id.to_string(), seq })
    }

    /// Begins nothing from now on; what runs goes on.
    pub fn stop(&self) {
        self.ledger.borrow_mut().stop();
        self.halted.notify();
    }

    /// Resolves once the daemon stops. It gives what is under way its time before it
    /// stops any plugin, and what has no end by itself would use that up.
    pub async fn stopping(&self) {
        self.halted.until(|| self.ledger.borrow().is_stopping()).await;
    }

    /// Resolves once this will not end before the next start.
    async fn rests(&self, id: Id) {
        self.halted.until(|| self.ledger.borrow().rests(id)).await;
    }

    /// Tries at once what waits for its next attempt.
    fn hurry(self: &Rc<Self>) {
        let step = self.ledger.borrow_mut().hurry(self.now());
        // As at every tick: what finds no room waits in the backlog.
        let _ = self.carry(step);
    }

    /// Hands back what still runs, so that the next start goes on with it as if
    /// nothing was. To be called at a planned end, before the engine's close;
    /// nothing is taken in or told after it.
    ///
    /// # Errors
    ///
    /// What the journal refuses; then the next start finds attempts that were
    /// broken off.
    pub async fn close(self: &Rc<Self>) -> Result<(), Refusal> {
        let step = self.ledger.borrow_mut().close();
        // Where it finds no room it is the last that waits.
        let _ = self.carry(step);
        while !self.flush() && !self.stopped.get() {
            self.ctx.sleep(FULL_PAUSE).await;
        }
        self.end();
        self.engine.durable(self.engine.next_seq() - 1).await
    }

    /// Nothing is begun, told or taken in from now on. What runs goes on: the
    /// next opening hears of it. Who waits for an end is sent to ask that one.
    pub fn end(&self) {
        if self.stopped.replace(true) {
            return;
        }
        self.ledger.borrow_mut().stop();
        self.attempts.keep_begun();
        self.starts.take();
        self.backlog.take();
        self.waiters.take();
        self.alarm.ring();
        self.bell.ring();
    }

    /// Figures for a status.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.ledger.borrow().figures()
    }

    /// Entries that could not be read, and are left as they are.
    #[must_use]
    pub fn unreadable(&self) -> usize {
        self.unreadable
    }

    /// Journals an acceptance, and begins it where there was room.
    fn take_in(self: &Rc<Self>, id: Id, step: Step, payload: Bytes) -> Result<Seq, Refusal> {
        let Step { batch, effects } = step;
        match self.engine.commit(batch) {
            Ok(seq) => {
                self.perform(seq, effects, Some(payload));
                Ok(seq)
            }
            Err(refusal) => {
                self.ledger.borrow_mut().withdraw(id);
                Err(refusal)
            }
        }
    }

    /// Journals a step and waits until it is durable.
    async fn settle(self: &Rc<Self>, step: Step) -> Result<(), Refusal> {
        match self.carry(step)? {
            Some(seq) => self.engine.durable(seq).await,
            None => Ok(()),
        }
    }

    /// Journals a step and sees to what it says; where it stands in the journal,
    /// if it changes anything.
    fn carry(self: &Rc<Self>, mut step: Step) -> Result<Option<Seq>, Refusal> {
        // Who is given up needs not wait for the disk.
        step.effects.retain(|effect| match effect {
            Effect::Abandon { id, lease } => {
                self.attempts.abandon(*id, *lease);
                false
            }
            Effect::Run(_) | Effect::Ended(_) => true,
        });
        if step.batch.is_empty() {
            self.rearm();
            return Ok(None);
        }
        if let Err(full) = self.check_room() {
            self.backlog.borrow_mut().push_back(step);
            return Err(full);
        }
        self.commit(step).map(Some)
    }

    /// Journals a step whose turn it is. Where memory is full, it is the first
    /// to be tried again.
    fn commit(self: &Rc<Self>, mut step: Step) -> Result<Seq, Refusal> {
        match self.engine.try_commit(&mut step.batch) {
            Ok(seq) => {
                self.perform(seq, step.effects, None);
                Ok(seq)
            }
            Err(refusal) if refusal.code == Code::Busy => {
                self.backlog.borrow_mut().push_front(step);
                self.rearm();
                Err(refusal)
            }
            Err(refusal) => {
                self.journal_stopped(&refusal);
                Err(refusal)
            }
        }
    }

    /// Does what a step says, once it is durable.
    fn perform(self: &Rc<Self>, seq: Seq, effects: Vec<Effect>, mut payload: Option<Bytes>) {
        let mut ended = Vec::new();
        for effect in effects {
            match effect {
                Effect::Run(run) => {
                    let abandoned = self.attempts.plan(run.id, run.lease);
                    // The payload that comes with an acceptance is its own.
                    let payload = payload.take();
                    self.starts.borrow_mut().push_back(Start { run, seq, payload, abandoned });
                    self.engine.hurry(seq);
                    self.bell.ring();
                }
                Effect::Ended(one) => {
                    if self.waiters.borrow().contains_key(&one.id) {
                        self.engine.hurry(seq);
                    }
                    ended.push(one);
                }
                Effect::Abandon { id, lease } => self.attempts.abandon(id, lease),
            }
        }
        if !ended.is_empty() {
            self.ctx.spawn(self.clone().announce(seq, ended));
        }
        self.rearm();
    }

    /// Tells of ends: those who wait, and whoever listens.
    async fn announce(self: Rc<Self>, seq: Seq, ended: Vec<Ended>) {
        if let Err(refusal) = self.engine.settled(seq).await {
            return self.journal_stopped(&refusal);
        }
        for one in ended {
            self.attempts.ended(one.id);
            self.waiters.borrow_mut().remove(&one.id);
            let ctx = self.ctx.of_tenant(one.tenant.as_deref());
            let (event, fact) = payload::fact(one);
            if let Err(refusal) = ctx.emit(event, &fact) {
                self.ctx.warn(&format!("cannot tell {event}: {}", refusal.message));
            }
        }
    }

    /// Refuses when nothing is taken in.
    fn check_open(&self) -> Result<(), Refusal> {
        match self.stopped.get() {
            true => Err(Refusal::new(Code::Unavailable, "durable work has stopped").hint(
                "it goes on by itself once the journal is open again; `ksi doctor` shows why it is not",
            )),
            false => self.check_room(),
        }
    }

    /// Refuses while steps wait for memory.
    fn check_room(&self) -> Result<(), Refusal> {
        match self.backlog.borrow().len() {
            0 => Ok(()),
            waiting => {
                let message = format!("{waiting} changes of work wait for room in memory");
                Err(Refusal::new(Code::Busy, message).retry_after_ms(1_000))
            }
        }
    }

    fn journal_stopped(&self, refusal: &Refusal) {
        if !self.stopped.get() {
            self.ctx.error(&format!("durable work has stopped: {}", refusal.message));
            self.end();
        }
    }

    /// What is remembered of a key at this moment.
    async fn remembered(&self, key: &[u8]) -> Result<Option<Remembered>, Refusal> {
        let stored = self.engine.latest(key).await?;
        stored.map(|bytes| Remembered::decode(&bytes).map_err(|refusal| unreadable(&refusal))).transpose()
    }

    /// The time for the ledger.
    fn now(&self) -> u64 {
        self.ctx.now_ms()
    }

    /// Wakes who keeps the time, if he sleeps too long.
    fn rearm(&self) {
        self.alarm.needed_by(self.due_ms());
    }

    fn due_ms(&self) -> Option<u64> {
        match self.backlog.borrow().is_empty() {
            true => self.ledger.borrow().due_ms(),
            false => Some(0),
        }
    }

    /// Ticks whenever something is due.
    async fn keep_time(self: Rc<Self>) {
        while !self.stopped.get() {
            let due_ms = self.due_ms();
            self.alarm.set(due_ms);
            let now = self.now();
            let Some(due_ms) = due_ms else {
                self.alarm.rung().await;
                continue;
            };
            let pause = Duration::from_millis(due_ms.saturating_sub(now));
            if !pause.is_zero() {
                select(pin!(self.ctx.sleep(pause)), pin!(self.alarm.rung())).await;
                continue;
            }
            if self.flush() {
                let step = self.ledger.borrow_mut().tick(now);
                // A step that found no room waits in the backlog; what else can
                // be refused stops this loop.
                let _ = self.carry(step);
                // Much may be due at once, and others want to live too.
                yield_now().await;
            } else {
                self.ctx.sleep(FULL_PAUSE).await;
            }
        }
    }

    /// Tries what waits for memory; whether nothing waits any more.
    fn flush(self: &Rc<Self>) -> bool {
        loop {
            let Some(step) = self.backlog.borrow_mut().pop_front() else { return true };
            if self.commit(step).is_err() {
                return false;
            }
        }
    }
}

/// What is stored was written by another release, or is damaged in a way that
/// no checksum shows.
fn unreadable(why: &Refusal) -> Refusal {
    Refusal::new(Code::Internal, format!("stored work cannot be read: {}", why.message))
        .hint("run the release that wrote it, or `ksi checkpoint verify`")
}

#[cfg(test)]
mod tests;
