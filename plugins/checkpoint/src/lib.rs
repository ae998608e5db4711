//! The journal, checkpoints, durable work and the state of plugins.
//!
//! What is accepted here survives `kill -9`, power loss and plugins that
//! crash: every change is a record of an append-only journal that is synced
//! before anybody is told, and everything else can be rebuilt from it.
//!
//! This file ties the parts together: the engine keeps, `work` carries out
//! what was accepted, `space` is what other plugins keep, `facts` what was told
//! and is told again, `checkpoint` the copies.
//!
//! # Failure
//!
//! When the journal or the store cannot be written any more, the plugin stays
//! up, refuses with the reason, and opens everything again from the disk until
//! that works. What was not synced by then was never accepted. Attempts that run
//! meanwhile go on, and their answers are heard after the opening.

pub mod record;
pub mod disk;
pub mod journal;
pub mod facts;
pub mod store;
pub mod overlay;
pub mod engine;
pub mod ledger;
pub mod work;
pub mod space;
pub mod checkpoint;
pub mod outgoing;
mod audit;
pub mod trail;
mod config;
mod status;
#[cfg(test)]
mod testing;

use std::{
    cell::{Cell, RefCell},
    path::{Path, PathBuf},
    pin::pin,
    rc::Rc,
    time::Duration,
};

use futures_channel::oneshot;
use futures_util::future::{Either, select};
use ksi_sdk::{
    Chunks, Ctx, Event, Plugin, Register,
    prelude::{Code, Deserialize, Refusal},
    protocol::{
        self,
        checkpoint::{
            Checkpoint as Made, Checkpoints, Consumer, Consumers, Create, Export, Exported, Forget, Restore,
            Restored, Verified,
        },
        space::{Applied, Apply, Get, Got, Page, Scan},
        work::{Ack, Follow, Followed},
    },
};

use checkpoint::Shelf;
use config::Config;
use engine::{Engine, Recovery};
use facts::{Acknowledged, Facts, Unfollowed};
use outgoing::Outgoing;
use record::Fact;
use space::{Space, Spaces};
use status::{ConsumersRequest, Damage, ListRequest, Opened, Status, StatusRequest, Stopped, VerifyRequest};
use trail::Trail;
use work::{Attempts, Work};

/// Longest time in which no work that was found is begun, where nobody says that the daemon knows of this
/// plugin.
const KNOWN: Duration = Duration::from_secs(1);

/// First and longest pause before everything is opened again.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// The plugin.
pub struct Checkpoint {
    config: Config,
    shelf: Shelf,
    outgoing: Outgoing,
    spaces: Spaces,
    trail: Trail,
    /// Files of it that are damaged and lie aside, as it was found.
    trail_aside: RefCell<Vec<String>>,
    /// What is being carried out, whatever is open.
    attempts: Rc<Attempts>,
    /// Whether a task waits to sign what has no head.
    signing: Cell<bool>,
    /// What is open, or why nothing is.
    open: RefCell<Result<Open, Refusal>>,
}

/// What is heard of a plugin that is ready.
#[derive(Deserialize)]
struct Ready {
    name: String,
}

/// What stands on one opening of the directory.
#[derive(Clone)]
struct Open {
    engine: Rc<Engine>,
    work: Rc<Work>,
    facts: Rc<Facts>,
    /// What was found.
    found: Rc<Recovery>,
}

impl Open {
    fn status(&self, dir: &Path, trail_aside: &[String]) -> Status {
        let damage = Damage { found: &self.found, trail_aside, unreadable: self.work.unreadable() };
        Status::of(dir, damage, &self.engine.health(), self.work.figures())
    }

    /// Says what somebody should see to, or that there is nothing; of one that takes nothing more others tell.
    fn tell_health(&self, ctx: &Ctx, trail_aside: &[String]) {
        let status = self.status(ctx.dir(), trail_aside);
        match &*status.troubles {
            _ if !status.accepting => {}
            [] => ctx.healthy(),
            troubles => ctx.degraded(&troubles.join("; ")),
        }
    }

    /// Ends what has stopped, or is to be opened anew. What it says to that is known.
    async fn end(&self) {
        self.work.end();
        let _ = self.engine.close().await;
    }
}

impl Plugin for Checkpoint {
    const NAME: &'static str = "checkpoint";
    const ABOUT: &'static str =
        "Keeps what must not be lost: durable work, plugins' state, facts, checkpoints";

    fn start(ctx: &Ctx) -> Result<Self, Refusal> {
        let config: Config = ctx.config()?;
        config.check()?;
        let outgoing = Outgoing::new(ctx.dir().join("outgoing"));
        // Nobody exports yet. What cannot be removed is only space.
        let _ = outgoing.tidy();
        Ok(Self {
            outgoing,
            shelf: Shelf::new(ctx.dir().join("checkpoints"), config.checkpoints_kept()),
            trail: Trail::new(ctx.dir().join("audit"), config.retention()),
            trail_aside: RefCell::default(),
            attempts: Rc::new(Attempts::held()),
            signing: Cell::new(false),
            config,
            spaces: Spaces::default(),
            open: RefCell::new(Err(Refusal::new(Code::Unavailable, "the journal is being opened"))),
        })
    }

    async fn open(self: Rc<Self>, ctx: Ctx) -> Result<(), Refusal> {
        self.open_all(&ctx).await?;
        ctx.spawn(self.clone().open_trail(ctx.clone()));
        let (attempts, known) = (self.attempts.clone(), ctx.clone());
        ctx.spawn(async move {
            known.sleep(KNOWN).await;
            attempts.release();
        });
        ctx.spawn(self.clone().stay_open(ctx.clone()));
        Ok(())
    }

    fn register(on: &mut Register<Self>) {
        work::register(on, |plugin: &Self| plugin.opened().map(|open| open.work));
        on.keep_facts(Self::keep_fact);
        on.stream("checkpoint:follow", Self::follow);
        on.request("checkpoint:ack", Self::ack);
        on.request("checkpoint:consumers", Self::consumers);
        on.request("checkpoint:forget", Self::forget);
        on.request("checkpoint:status", Self::status);
        on.request("checkpoint:create", Self::create);
        on.request("checkpoint:list", Self::list);
        on.request("checkpoint:verify", Self::verify);
        on.request("checkpoint:export", Self::export);
        on.request("checkpoint:restore", Self::restore);
        on.request("audit:append", Self::audit_append);
        on.request("audit:query", Self::audit_query);
        on.request("audit:verify", Self::audit_verify);
        on.request("audit:export", Self::audit_export);
        on.request("space:get", Self::space_get);
        on.request("space:apply", Self::space_apply);
        on.request("space:scan", Self::space_scan);
        on.calls("system:restart");
        on.calls("*");
        on.event("plugin:ready", Self::known);
        on.emits::<Opened>("checkpoint:opened");
        on.emits::<Stopped>("checkpoint:stopped");
    }

    async fn drain(self: Rc<Self>, ctx: Ctx) {
        if let Err(refusal) = self.with_trail(&ctx, |trail, now_ms| trail.close(now_ms)).await {
            ctx.error(&format!("the audit trail was not closed well: {}", refusal.message));
        }
        let Ok(open) = self.opened() else { return };
        self.close(Refusal::new(Code::ShuttingDown, "the journal is closed: the daemon is stopping"));
        let closed = match open.work.close().await {
            Ok(()) => open.engine.close().await,
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = closed {
            ctx.error(&format!(
                "the journal was not closed well, the next start sees to it: {}",
                refusal.message
            ));
        }
    }
}

impl Checkpoint {
    fn opened(&self) -> Result<Open, Refusal> {
        self.open.borrow().clone()
    }

    fn close(&self, why: Refusal) {
        *self.open.borrow_mut() = Err(why);
    }

    async fn open_all(&self, ctx: &Ctx) -> Result<(), Refusal> {
        let (engine, found) = Engine::open(ctx.dir().to_owned(), self.config.options()).await?;
        let shelf = self.shelf.clone();
        let tidied = ctx.spawn_blocking(move || shelf.tidy()).await;
        if !matches!(tidied, Ok(Ok(()))) {
            // It is in nobody's way.
            ctx.warn(&format!("what a crash left among the checkpoints is still there: {tidied:?}"));
        }
        let work = match Work::open(ctx, engine.clone(), self.config.limits(), &self.attempts).await {
            Ok(work) => work,
            Err(refusal) => {
                // The reason to give up is the one that is told.
                let _ = engine.close().await;
                return Err(refusal);
            }
        };
        let leash = engine.leash();
        let trail = self.trail.clone();
        ctx.at_panic(move || {
            leash.end();
            trail.abandon();
        });
        tell(ctx, &found);
        let turns = ctx.clone();
        ctx.spawn(engine.clone().sync_at_turns_end(async move || turns.sleep(Duration::ZERO).await));
        let (facts, keep) = (Rc::<Facts>::default(), self.config.consumers_days());
        ctx.spawn(facts::sweep(facts.clone(), Rc::downgrade(&engine), keep, ctx.clone()));
        let open = Open { engine, work, facts, found: Rc::new(found) };
        open.tell_health(ctx, &self.trail_aside.borrow());
        *self.open.borrow_mut() = Ok(open);
        Ok(())
    }

    /// Waits for the engine to stop by itself, and opens everything again.
    async fn stay_open(self: Rc<Self>, ctx: Ctx) {
        loop {
            let Ok(open) = self.opened() else { return };
            let why = open.engine.stopped().await;
            if self.opened().is_err() {
                // It was closed on purpose.
                return;
            }
            self.close(why.clone());
            ctx.degraded(&format!("nothing is accepted: {}", why.message));
            ctx.error(&format!("nothing is accepted any more: {}", why.message));
            // A fact that finds no room is in the log.
            let _ = ctx.emit("checkpoint:stopped", &Stopped { refusal: why });
            open.end().await;
            drop(open);
            let mut pause = PAUSE_MIN;
            loop {
                ctx.sleep(pause).await;
                match self.open_all(&ctx).await {
                    Ok(()) => break,
                    Err(refusal) => self.close(refusal),
                }
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }

    /// The work that was found at the start begins once the daemon knows that it is kept here.
    async fn known(self: Rc<Self>, _ctx: Ctx, event: Event) {
        let ready = protocol::decode::<Ready>(&event.data);
        if ready.is_ok_and(|ready| ready.name == Self::NAME) {
            self.attempts.release();
        }
    }

    async fn keep_fact(self: Rc<Self>, ctx: Ctx, event: Event) -> Result<(), Refusal> {
        let fact = Fact {
            at_ms: event.at_ms,
            event: event.event,
            origin: event.origin,
            correlation_id: ctx.correlation_id().map(str::to_owned),
            tenant: ctx.tenant().map(str::to_owned),
            data: event.data,
        };
        let open = self.opened()?;
        open.facts.keep(&open.engine, fact).await
    }

    async fn follow(
        self: Rc<Self>,
        ctx: Ctx,
        ask: Follow,
        out: Chunks<Followed>,
    ) -> Result<Unfollowed, Refusal> {
        let Open { engine, facts, work, .. } = self.opened()?;
        let following = pin!(facts.follow(&engine, &ctx, ask, &out));
        // It has no end by itself, and the end of the plugin waits for it, as does that of the daemon.
        match ctx.unless_draining(select(following, pin!(work.stopping()))).await {
            Some(Either::Left((ended, _))) => ended,
            Some(Either::Right(_)) | None => {
                Err(Refusal::new(Code::Unavailable, "the plugin that keeps work is being stopped")
                    .retry_after_ms(200))
            }
        }
    }

    async fn ack(self: Rc<Self>, ctx: Ctx, ask: Ack) -> Result<Acknowledged, Refusal> {
        let open = self.opened()?;
        open.facts.ack(&open.engine, &ctx, ask).await
    }

    async fn consumers(self: Rc<Self>, ctx: Ctx, _ask: ConsumersRequest) -> Result<Consumers, Refusal> {
        let open = self.opened()?;
        open.facts.list(&open.engine, &ctx).await
    }

    async fn forget(self: Rc<Self>, ctx: Ctx, ask: Forget) -> Result<Consumer, Refusal> {
        let open = self.opened()?;
        open.facts.forget(&open.engine, &ctx, ask).await
    }

    async fn status(self: Rc<Self>, ctx: Ctx, _ask: StatusRequest) -> Result<Status, Refusal> {
        Ok(match self.opened() {
            Ok(open) => open.status(ctx.dir(), &self.trail_aside.borrow()),
            Err(refusal) => Status::closed(&refusal),
        })
    }

    async fn create(self: Rc<Self>, ctx: Ctx, ask: Create) -> Result<Made, Refusal> {
        let open = self.opened()?;
        let made = checkpoint::create(&ctx, &open.engine, &self.shelf, ask, ctx.now_ms()).await;
        // What is aside may have another name now; but the journal may be another one, too, or none.
        if let Ok(open) = self.opened() {
            open.tell_health(&ctx, &self.trail_aside.borrow());
        }
        made
    }

    async fn list(self: Rc<Self>, ctx: Ctx, _ask: ListRequest) -> Result<Checkpoints, Refusal> {
        checkpoint::list(&ctx, &self.opened()?.engine, &self.shelf).await
    }

    async fn verify(self: Rc<Self>, _ctx: Ctx, _ask: VerifyRequest) -> Result<Verified, Refusal> {
        checkpoint::verify(&self.opened()?.engine).await
    }

    async fn export(self: Rc<Self>, ctx: Ctx, ask: Export) -> Result<Exported, Refusal> {
        checkpoint::export(&self.opened()?.engine, &self.outgoing, ask, ctx.now_ms()).await
    }

    /// Whoever has read anything must read it again, so the daemon starts
    /// itself anew after the answer, and until then nothing is written.
    async fn restore(self: Rc<Self>, ctx: Ctx, ask: Restore) -> Result<Restored, Refusal> {
        let open = self.opened()?;
        let path = self.shelf.find(ask)?;
        self.close(Refusal::new(Code::Unavailable, "a checkpoint is being restored").retry_after_ms(1000));
        ctx.degraded("nothing is accepted: a checkpoint is being restored");
        let (done, end) = oneshot::channel();
        // What is closed is opened again, or the daemon started anew, also where nobody waits for it any more.
        ctx.spawn(self.clone().restore_to_the_end(ctx.clone(), open, path, done));
        end.await.map_err(|_| {
            Refusal::new(Code::ShuttingDown, "the plugin stopped before the checkpoint was restored")
        })?
    }

    async fn restore_to_the_end(
        self: Rc<Self>,
        ctx: Ctx,
        open: Open,
        path: PathBuf,
        done: oneshot::Sender<Result<Restored, Refusal>>,
    ) {
        let restored = checkpoint::restore(&open.engine, &path).await;
        if restored.is_err() && open.engine.health().accepting {
            open.tell_health(&ctx, &self.trail_aside.borrow());
            *self.open.borrow_mut() = Ok(open);
            // The asker may be gone; so below.
            let _ = done.send(restored);
            return;
        }
        // What it refuses, the next start finds out; that also ends a restore that was broken off.
        open.end().await;
        let _ = done.send(restored);
        ctx.spawn(start_anew(ctx.clone()));
    }

    async fn space_get(self: Rc<Self>, ctx: Ctx, ask: Get) -> Result<Got, Refusal> {
        self.spaces.get(&self.opened()?.engine, &Space::of(ctx.origin())?, ask).await
    }

    async fn space_apply(self: Rc<Self>, ctx: Ctx, ask: Apply) -> Result<Applied, Refusal> {
        self.spaces.apply(&self.opened()?.engine, &Space::of(ctx.origin())?, ask).await
    }

    async fn space_scan(self: Rc<Self>, ctx: Ctx, ask: Scan) -> Result<Page, Refusal> {
        self.spaces.scan(&self.opened()?.engine, &Space::of(ctx.origin())?, ask).await
    }
}

async fn start_anew(ctx: Ctx) {
    let options = ksi_sdk::CallOptions { detached: true, ..ksi_sdk::CallOptions::default() };
    let asked: Result<serde_json::Value, _> =
        ctx.request_with("system:restart", &serde_json::json!({}), options).await;
    if let Err(refusal) = asked {
        let why = format!("a checkpoint was restored; start the daemon again to use it: {}", refusal.message);
        ctx.degraded(&format!("nothing is accepted: {why}"));
        ctx.error(&why);
    }
}

/// Says what an opening found. Repairs are worth a warning each.
fn tell(ctx: &Ctx, recovery: &Recovery) {
    let Recovery { epoch, last_seq, replayed, took_ms, .. } = recovery;
    ctx.info(&format!(
        "start {epoch}: journal up to {last_seq}, {replayed} records replayed in {took_ms} ms"
    ));
    for note in recovery.words() {
        ctx.warn(&note);
    }
    // Nobody may listen yet, and the log has it.
    let _ = ctx.emit("checkpoint:opened", &Opened::from(recovery));
}

ksi_sdk::export!(Checkpoint);

#[cfg(test)]
mod tests;
