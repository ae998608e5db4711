//! The life of one accepted request: it waits for its turn, asks its provider,
//! passes the text on, tries again where that may help, and ends.
//!
//! # Invariants
//!
//! - A request that was accepted ends exactly once in the ledger, whatever
//!   happens to its task: [`Place`] sees to it when it is dropped.
//! - The provider is stopped before the place is free, so that its limit
//!   holds.
//! - Once a piece of text was passed on, the request is never tried again:
//!   nobody sees the beginning of an answer twice.

use std::{cell::Cell, pin::pin, rc::Rc, time::Duration};

use futures_util::future::{Either, select};
use ksi_sdk::{
    Chunks,
    prelude::{Code, Ctx, Refusal, Serialize, json},
};
use serde_json::Value;

use crate::{
    Completion,
    ledger::{Ended, Entry, Phase},
    order::Order,
    payload::{Cancelled, Chunk, Completed, Delta, Failed, Started},
    provider::{Answer, Attempt, Piece, Stream, blame},
};

/// Time that a fact may wait for room in the daemon.
const TELL_LIMIT: Duration = Duration::from_secs(5);

/// Longest text of an answer: it must fit a frame together with the rest.
const TEXT_BYTES_MAX: usize = 8 * 1024 * 1024;
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

    fn close(&self, ended: Ended) {
        let now_ms = self.plugin.now_ms();
        self.plugin.ledger.borrow_mut().close(&self.entry, ended, now_ms);
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
    pub(crate) place: Place,
    pub(crate) ctx: Ctx,
    pub(crate) order: Order,
    pub(crate) sink: Sink,
}

impl Work {
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
                Either::Left((why, _)) => Err(self.with_id(why, None)),
                Either::Right((result, _)) => result,
            }
        };
        match result {
            Ok(completed) => Ended::Done(Box::new(completed)),
            Err(refusal) if refusal.code == Code::Cancelled => Ended::Cancelled,
            Err(refusal) => Ended::Failed(refusal),
        }
    }

    /// The same, and tells the end as a fact. It is told before the place is
    /// given up, so that a daemon without room for facts gets no new work, and
    /// a drain waits until the last one is told.
    pub(crate) async fn carry_and_tell(self) -> Ended {
        let (ctx, request_id) = (&self.ctx, self.place.entry.id.clone());
        let ended = self.outcome().await;
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
        let entry = &self.place.entry;
        entry.changed.until(|| entry.phase.get() != Phase::Queued).await;
        if matches!(self.sink, Sink::Facts) {
            tell(&self.ctx, "completion:started", &Started { request_id: entry.id.clone() }).await;
        }
        let mut number = 1;
        loop {
            let said = Cell::new(0);
            let refusal = match self.attempt(number, &said).await {
                Ok(answer) => return Ok(self.completed(answer, number)),
                Err(refusal) => blame(self.order.model.provider(), refusal),
            };
            let retry = &self.place.plugin.config.retry;
            if !refusal.retryable || said.get() > 0 || number > retry.attempts {
                return Err(self.with_id(refusal, Some(number)));
            }
            self.ctx.debug(&format!("{}: attempt {number} refused: {}", entry.id, refusal.code));
            self.ctx.sleep(retry.wait(number, &refusal, spread(&entry.id, number))).await;
            number += 1;
        }
    }

    /// Asks the provider once; `said` counts the bytes that were passed on.
    async fn attempt(&self, number: u32, said: &Cell<usize>) -> Result<Answer, Refusal> {
        let age_ms = self.place.plugin.now_ms().saturating_sub(self.place.entry.accepted_ms);
        let left = self.order.timeout.saturating_sub(Duration::from_millis(age_ms));
        let mut stream = Stream::open(&self.ctx, &self.order, Attempt { number, left })?;
        loop {
            match stream.next().await? {
                Piece::Text(text) => {
                    said.set(said.get() + text.len());
                    if said.get() > TEXT_BYTES_MAX {
                        return Err(too_long());
                    }
                    self.pass_on(text).await?;
                }
                Piece::Last(answer) if answer.text.len() > TEXT_BYTES_MAX => return Err(too_long()),
                Piece::Last(answer) => return Ok(*answer),
            }
        }
    }

    async fn pass_on(&self, text: String) -> Result<(), Refusal> {
        match &self.sink {
            Sink::Chunks(chunks) => {
                let chunk = Chunk { text };
                patiently(&self.ctx, || chunks.send(&chunk)).await
            }
            Sink::Facts => {
                let request_id = self.place.entry.id.clone();
                tell(&self.ctx, "completion:delta", &Delta { request_id, text }).await;
                Ok(())
            }
        }
    }

    fn completed(&self, answer: Answer, attempts: u32) -> Completed {
        let Order { model, chosen, conversation, .. } = &self.order;
        let entry = &self.place.entry;
        let Answer { model: answered, text, stop_reason, toy, seed, usage, timings } = answer;
        let requested = model.name();
        Completed {
            request_id: entry.id.clone(),
            text,
            why: model.why(*chosen, &answered),
            answered: crate::payload::ModelName { provider: requested.provider.clone(), model: answered },
            requested,
            toy,
            stop_reason,
            seed,
            usage,
            timings,
            queued_ms: entry.started_ms.get() - entry.accepted_ms,
            attempts,
            conversation_id: conversation.clone(),
        }
    }

    /// Adds to a refusal which request it ended, and after how many attempts.
    fn with_id(&self, mut refusal: Refusal, attempts: Option<u32>) -> Refusal {
        let mut details = match refusal.details.take() {
            Some(Value::Object(details)) => details,
            None => serde_json::Map::new(),
            Some(other) => serde_json::Map::from_iter([("provider".to_owned(), other)]),
        };
        details.insert("request_id".into(), json!(self.place.entry.id));
        if let Some(attempts) = attempts {
            details.insert("attempts".into(), json!(attempts));
        }
        refusal.details(Value::Object(details))
    }
}

fn too_long() -> Refusal {
    Refusal::new(Code::TooLarge, format!("the answer is longer than {TEXT_BYTES_MAX} bytes"))
        .hint("`max_tokens` limits it")
}

/// A number that differs between requests and attempts, to spread waits.
fn spread(id: &str, attempt: u32) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (id, attempt).hash(&mut hasher);
    hasher.finish()
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
