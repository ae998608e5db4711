//! The completion plugin: requests to models, whoever serves them.
//!
//! It queues requests (one serial queue for each conversation, a limit for
//! each provider), asks the provider, passes the text on as it comes, retries
//! what may pass, and keeps results for a while. Models are named
//! `provider/model`: `llama/NAME` is a model on this machine, `mock/SCRIPT` a
//! scripted one for tests (see `provider/mock.rs`). Every answer names the
//! model that was asked for and the one that answered.
//!
//! A state machine: it owns no thread, socket or file, and runs inside the
//! daemon. Prompts and texts never reach a log.
//!
//! # Failure
//!
//! What waits or runs lives in memory and is gone with the plugin; whoever
//! waits is told so by the daemon. At a graceful stop requests that wait are
//! refused, and those that run are finished.

use std::{
    cell::{Cell, RefCell},
    pin::pin,
    rc::Rc,
    time::{Duration, Instant},
};

use futures_util::future::select;
use ksi_sdk::{
    Chunks, Ctx, Plugin, Register,
    prelude::{Code, Refusal},
};

mod config;
mod ledger;
mod order;
pub mod payload;
mod provider;
pub mod queue;
pub mod results;
mod signal;
mod work;

use config::Config;
use ledger::{Ended, Entry, Ledger, Phase};
use order::{Order, integer};
use payload::{
    Accepted, AsyncRequest, Cancel, CancelAnswer, Cancelled, Chunk, Completed, Delta, Failed, Get, GetAnswer,
    ProviderInfo, Providers, ProvidersRequest, Request, Started, State, Status, StatusRequest,
};
use provider::{Provider, llama, mock};
use signal::Signal;
use work::{Place, Sink, Work};

/// The plugin.
pub struct Completion {
    config: Config,
    ledger: RefCell<Ledger>,
    /// Says that a request ended.
    closed: Signal,
    draining: Cell<bool>,
    started: Instant,
}

impl Plugin for Completion {
    const NAME: &'static str = "completion";
    const ABOUT: &'static str = "Asks models: queues, providers, streamed answers";

    fn start(ctx: &Ctx) -> Result<Self, Refusal> {
        let config: Config = ctx.config()?;
        config.check()?;
        Ok(Self {
            ledger: RefCell::new(Ledger::new(&config)),
            config,
            closed: Signal::default(),
            draining: Cell::new(false),
            started: Instant::now(),
        })
    }

    fn register(on: &mut Register<Self>) {
        on.stream("completion:request", Self::request);
        on.request("completion:async", Self::accept);
        on.request("completion:cancel", Self::cancel);
        on.request("completion:status", Self::status);
        on.request("completion:get", Self::get);
        on.request("completion:providers", Self::providers);
        on.emits::<Started>("completion:started");
        on.emits::<Delta>("completion:delta");
        on.emits::<Completed>("completion:result");
        on.emits::<Failed>("completion:error");
        on.emits::<Cancelled>("completion:cancelled");
    }

    async fn drain(self: Rc<Self>, _ctx: Ctx) {
        self.draining.set(true);
        self.ledger.borrow().stop_queued(&shutting_down());
        self.closed.until(|| self.ledger.borrow().is_idle()).await;
    }
}

impl Completion {
    async fn request(
        self: Rc<Self>,
        ctx: Ctx,
        request: Request,
        out: Chunks<Chunk>,
    ) -> Result<Completed, Refusal> {
        let (order, entry) = self.admit(&ctx, request)?;
        let place = Place::new(self, entry);
        match (Work { place, ctx, order, sink: Sink::Chunks(out) }).carry().await {
            Ended::Done(completed) => Ok(*completed),
            Ended::Failed(refusal) => Err(refusal),
            Ended::Cancelled => Err(cancelled()),
        }
    }

    async fn accept(
        self: Rc<Self>,
        ctx: Ctx,
        AsyncRequest(request): AsyncRequest,
    ) -> Result<Accepted, Refusal> {
        let (order, entry) = self.admit(&ctx, request)?;
        let position = self.ledger.borrow().position(&entry).unwrap_or(0);
        let request_id = entry.id.clone();
        let place = Place::new(self, entry);
        ctx.spawn(Work { place, ctx: ctx.clone(), order, sink: Sink::Facts }.carry_and_tell());
        Ok(Accepted { request_id, status: "accepted".into(), position })
    }

    async fn cancel(self: Rc<Self>, _ctx: Ctx, ask: Cancel) -> Result<CancelAnswer, Refusal> {
        let Cancel { request_id } = ask;
        let now_ms = self.now_ms();
        let mut ledger = self.ledger.borrow_mut();
        let open = ledger.open(&request_id).cloned();
        let status = match open {
            Some(entry) => {
                entry.stop(cancelled());
                State::Cancelled
            }
            None => ledger.ended(&request_id, now_ms).ok_or_else(|| unknown(&request_id))?.state(),
        };
        Ok(CancelAnswer { request_id, status })
    }

    async fn status(self: Rc<Self>, _ctx: Ctx, ask: StatusRequest) -> Result<Status, Refusal> {
        let now_ms = self.now_ms();
        let ledger = self.ledger.borrow();
        match ask.request_id {
            None => Ok(ledger.status(None, now_ms)),
            Some(id) => {
                let entry = ledger.open(&id).ok_or_else(|| {
                    Refusal::not_found("open request", &id)
                        .hint("`completion:get` knows those that have ended")
                })?;
                Ok(ledger.status(Some(entry), now_ms))
            }
        }
    }

    async fn get(self: Rc<Self>, ctx: Ctx, ask: Get) -> Result<GetAnswer, Refusal> {
        let Get { request_id, wait_ms } = ask;
        let wait_ms = integer("wait_ms", wait_ms, 0, order::TIMEOUT_MS_MAX)?.unwrap_or(0_u64);
        let open = self.ledger.borrow().open(&request_id).cloned();
        if let Some(entry) = open {
            if wait_ms > 0 {
                let ended = pin!(entry.changed.until(|| entry.phase.get() == Phase::Ended));
                select(ended, pin!(ctx.sleep(Duration::from_millis(wait_ms)))).await;
            }
            if entry.phase.get() != Phase::Ended {
                return Ok(GetAnswer { request_id, state: entry.state(), result: None, refusal: None });
            }
        }
        let now_ms = self.now_ms();
        let mut ledger = self.ledger.borrow_mut();
        let ended = ledger.ended(&request_id, now_ms).ok_or_else(|| unknown(&request_id))?;
        let state = ended.state();
        let (result, refusal) = match ended {
            Ended::Done(completed) => (Some((**completed).clone()), None),
            Ended::Failed(refusal) => (None, Some(refusal.clone())),
            Ended::Cancelled => (None, None),
        };
        Ok(GetAnswer { request_id, state, result, refusal })
    }

    async fn providers(self: Rc<Self>, ctx: Ctx, _ask: ProvidersRequest) -> Result<Providers, Refusal> {
        let mut providers = Vec::new();
        for provider in Provider::ALL {
            let models = match provider {
                Provider::Llama => llama::models(&ctx).await,
                Provider::Mock => Ok(mock::SCRIPTS.map(str::to_owned).to_vec()),
            };
            let load = self.ledger.borrow().load(provider);
            providers.push(ProviderInfo {
                name: load.name,
                about: provider.about().into(),
                unavailable: models.as_ref().err().map(|refusal| refusal.message.clone()),
                models: models.ok(),
                concurrency: load.concurrency,
                running: load.running,
                queued: load.queued,
            });
        }
        Ok(Providers { providers })
    }

    /// Checks a request and takes it in.
    fn admit(&self, ctx: &Ctx, request: Request) -> Result<(Order, Rc<Entry>), Refusal> {
        if self.draining.get() {
            return Err(shutting_down());
        }
        let order = Order::new(request, &self.config)?;
        let id = format!("cmp-{}", ctx.unique_id());
        let entry = self.ledger.borrow_mut().admit(id, &order, self.now_ms())?;
        Ok((order, entry))
    }

    /// Milliseconds since the start.
    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

fn cancelled() -> Refusal {
    Refusal::new(Code::Cancelled, "the request was cancelled")
}

fn shutting_down() -> Refusal {
    Refusal::new(Code::ShuttingDown, "completion is stopping and starts no more requests")
}

fn unknown(request_id: &str) -> Refusal {
    Refusal::not_found("request", &request_id.escape_debug().to_string())
        .hint("results are kept for a limited time and number, and not over a restart")
}

ksi_sdk::export!(Completion);
