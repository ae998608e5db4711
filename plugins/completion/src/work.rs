//! The life of one accepted request: it waits for its turn, is carried out by
//! [`run`], passes the text on, and ends.
//!
//! # Invariants
//!
//! - A request that was accepted ends exactly once in the ledger, whatever
//!   happens to its task: [`Place`] sees to it when it is dropped.
//! - The provider is stopped before the place is free, so that its limit
//!   holds.

use std::{pin::pin, rc::Rc, time::Duration};

use futures_util::{
    FutureExt,
    future::{Either, select},
};
use ksi_provider::Delta as Provided;
use ksi_sdk::{
    Chunks,
    prelude::{Code, Ctx, Refusal, Serialize, json},
};
use serde_json::Value;

use crate::{
    Completion,
    ledger::{Ended, Entry, Phase},
    order::Order,
    payload::{Cancelled, Chunk, Completed, Delta, Failed, Restarted, Started},
    route,
};

mod prepare;
mod run;
mod trail;

use run::Run;
use trail::Trail;

/// Time that a fact may wait for room in the daemon.
const TELL_LIMIT: Duration = Duration::from_secs(5);

/// Wait before something is sent again that the daemon had no room for.
const FULL_WAIT: Duration = Duration::from_millis(50);

/// Where the text goes.
pub(crate) enum Sink {
    /// To the one who waits for the answer.
    Chunks(Chunks<Chunk>),
    /// To whoever listens, as facts.
    Facts,
}

/// The place of a request in the ledger. Dropped before it is closed, the
/// request counts as cancelled.
pub(crate) struct Place {
    plugin: Rc<Completion>,
    entry: Rc<Entry>,
}

impl Place {
    pub(crate) fn new(plugin: Rc<Completion>, entry: Rc<Entry>) -> Self {
        Self { plugin, entry }
    }

    /// Once; what comes later is ignored.
    fn close(&self, ended: Ended) {
        if self.entry.phase.get() == Phase::Ended {
            return;
        }
        let now_ms = self.plugin.now_ms();
        // What is tried again goes on with what its last attempt has reserved; so does what a drain cuts off.
        let goes_on = match &ended {
            Ended::Done(_) => false,
            Ended::Failed(refusal) => refusal.retryable,
            Ended::Cancelled => self.plugin.ctx.draining().now_or_never().is_some(),
        };
        if !goes_on {
            self.plugin.books.ends(&self.entry.id, now_ms);
        }
        self.plugin.ledger.borrow_mut().close(&self.entry, ended, now_ms);
        self.plugin.books.write_on(&self.plugin.ctx);
        self.plugin.closed.notify();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.close(Ended::Cancelled);
    }
}

/// An accepted request.
pub(crate) struct Work {
    place: Place,
    ctx: Ctx,
    order: Order,
    sink: Sink,
    trail: Trail,
}

impl Work {
    pub(crate) fn new(place: Place, ctx: Ctx, order: Order, sink: Sink) -> Self {
        Self { place, ctx, order, sink, trail: Trail::default() }
    }

    /// Carries the request to its end, and writes that down.
    pub(crate) async fn carry(self) -> Ended {
        let ended = self.outcome().await;
        self.place.close(ended.clone());
        ended
    }

    async fn outcome(&self) -> Ended {
        let result = {
            let stopped = pin!(self.stopped());
            let performed = pin!(self.perform());
            // `stopped` is looked at first: a request that was told to be
            // cancelled must not end as done.
            match select(stopped, performed).await {
                Either::Left((why, _)) => Err(self.with_id(self.cut_off(why))),
                Either::Right((result, _)) => result,
            }
        };
        match result {
            Ok(completed) => Ended::Done(Box::new(completed)),
            Err(refusal) if refusal.code == Code::Cancelled => Ended::Cancelled,
            Err(refusal) => Ended::Failed(refusal),
        }
    }

    /// What ends a request in the middle of its attempts. Where its time was over, that
    /// alone says nothing about what was wrong; the last refusal does.
    fn cut_off(&self, why: Refusal) -> Refusal {
        self.trail.give_up(why.code, self.place.plugin.now_ms());
        let Some(last) = self.trail.last().filter(|_| why.code == Code::Timeout) else { return why };
        let message = format!("{}; the last refusal was: {}", why.message, last.message);
        let refusal = Refusal { message, ..why };
        match last.retry_after_ms {
            Some(ms) => refusal.retry_after_ms(ms),
            None => refusal,
        }
    }

    /// Carries the request to its end as well, and tells that as a fact. It is told before the place is
    /// given up, so that a daemon without room for facts gets no new work, and
    /// a drain waits until the last one is told.
    pub(crate) async fn carry_and_tell(self) -> Ended {
        let (ctx, request_id) = (&self.ctx, self.place.entry.id.clone());
        let ended = self.outcome().await;
        let plugin = &self.place.plugin;
        plugin.books.flush(&plugin.ctx).await;
        match &ended {
            Ended::Done(completed) => tell(ctx, "completion:result", completed).await,
            Ended::Failed(refusal) => {
                let refusal = refusal.clone();
                tell(ctx, "completion:error", &Failed { request_id, refusal }).await;
            }
            Ended::Cancelled => tell(ctx, "completion:cancelled", &Cancelled { request_id }).await,
        }
        self.place.close(ended.clone());
        ended
    }

    /// Waits until the request is told to stop, or its time is over.
    async fn stopped(&self) -> Refusal {
        let entry = &self.place.entry;
        let told = pin!(entry.changed.until(|| entry.stop.borrow().is_some()));
        let time = pin!(self.ctx.sleep(self.order.timeout));
        let over = matches!(select(told, time).await, Either::Right(_));
        let why = entry.stop.borrow_mut().take().filter(|_| !over);
        why.unwrap_or_else(|| {
            let ms = self.order.timeout.as_millis();
            let doing = if entry.phase.get() == Phase::Queued { "waiting for its turn" } else { "running" };
            Refusal::new(Code::Timeout, format!("the request was still {doing} after {ms} ms"))
                .hint("`timeout_ms` allows more time")
        })
    }

    async fn perform(&self) -> Result<Completed, Refusal> {
        let (plugin, entry) = (&self.place.plugin, &self.place.entry);
        if plugin.has_to_learn(&self.order) {
            plugin.learn(&self.ctx, &self.order).await;
            let ranked = plugin.rank(&self.ctx, &self.order);
            // What nobody can answer does not wait for its turn to hear that, and
            // what another one can, waits there.
            let Some(best) = ranked.first().filter(|best| best.is_eligible()) else {
                return Err(self.with_id(route::nobody(&ranked, &self.order, &plugin.providers)));
            };
            plugin.ledger.borrow_mut().go_on_with(entry, &best.target, plugin.now_ms());
        }
        entry.changed.until(|| entry.phase.get() != Phase::Queued).await;
        Run::begin(self).await?.to_the_end().await
    }

    async fn started(&self) {
        if matches!(self.sink, Sink::Facts) {
            let request_id = self.place.entry.id.clone();
            tell(&self.ctx, "completion:started", &Started { request_id }).await;
        }
    }

    async fn pass_on(&self, delta: Provided) -> Result<(), Refusal> {
        let Provided { text, tool_calls, choice, logprobs } = delta;
        match &self.sink {
            Sink::Chunks(chunks) => {
                let chunk = Chunk { text, tool_calls, choice, logprobs, restarted: None };
                chunks.ready().await;
                patiently(&self.ctx, || chunks.send(&chunk)).await
            }
            Sink::Facts => {
                let request_id = self.place.entry.id.clone();
                let delta = Delta { request_id, text, tool_calls, choice, logprobs };
                tell(&self.ctx, "completion:delta", &delta).await;
                Ok(())
            }
        }
    }

    /// Says that all text before is void. Facts say so by telling the start again.
    async fn restarted(&self, restarted: Restarted) -> Result<(), Refusal> {
        match &self.sink {
            Sink::Chunks(chunks) => {
                let chunk = Chunk { restarted: Some(restarted), ..Chunk::default() };
                patiently(&self.ctx, || chunks.send(&chunk)).await
            }
            Sink::Facts => {
                self.started().await;
                Ok(())
            }
        }
    }

    /// Adds to a refusal which request it ended, and after which attempts.
    fn with_id(&self, mut refusal: Refusal) -> Refusal {
        let tried = self.trail.tried();
        let mut details = match refusal.details.take() {
            Some(Value::Object(details)) => details,
            None => serde_json::Map::new(),
            Some(other) => serde_json::Map::from_iter([("provider".to_owned(), other)]),
        };
        details.insert("request_id".into(), json!(self.place.entry.id));
        if !tried.is_empty() {
            details.insert("attempts".into(), json!(tried.len()));
            details.insert("tried".into(), json!(tried));
        }
        refusal.details(Value::Object(details))
    }
}

/// Tells a fact. Where that is not possible the work still goes on: its
/// result can be fetched.
async fn tell<T: Serialize>(ctx: &Ctx, event: &str, fact: &T) {
    let told = pin!(patiently(ctx, || ctx.emit(event, fact)));
    let time = pin!(ctx.sleep(TELL_LIMIT));
    let told = match select(told, time).await {
        Either::Left((told, _)) => told,
        Either::Right(_) => Err(Refusal::new(Code::Busy, "the daemon has no room for facts")),
    };
    if let Err(refusal) = told {
        ctx.warn(&format!("{event} was not told: {}", refusal.code));
    }
}

/// Sends, and waits where the daemon has no room. Bounded by the deadline of
/// the request, or by [`TELL_LIMIT`] where that is over.
async fn patiently(ctx: &Ctx, send: impl Fn() -> Result<(), Refusal>) -> Result<(), Refusal> {
    loop {
        match send() {
            Err(refusal) if refusal.code == Code::Busy => ctx.sleep(FULL_WAIT).await,
            sent => return sent,
        }
    }
}
