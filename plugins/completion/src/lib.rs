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
//! What waits or runs lives in memory and is gone with the plugin. Whoever
//! waits for `completion:request` is told so by the daemon; `completion:async`
//! is durable work, which is handed over again, in the order in which it was
//! accepted. A graceful stop finishes what it can in its time; what is left then
//! is refused by the daemon, and durable work is handed over again.

use std::{
    cell::RefCell,
    pin::pin,
    rc::Rc,
    time::{Duration, Instant},
};

use futures_channel::oneshot;
use futures_util::future::select;
use ksi_sdk::{
    Chunks, Ctx, Intercepted, Plugin, Register,
    prelude::{Bytes, Code, Refusal, Stage},
};

mod config;
mod kept;
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
    AsyncRequest, Cancel, CancelAnswer, Cancelled, Chunk, Completed, Delta, Failed, Get, GetAnswer,
    ProviderInfo, Providers, ProvidersRequest, Request, Started, State, Status, StatusRequest,
};
use provider::{Provider, llama, mock};
use signal::Signal;
use work::{Place, Sink, Work};

/// How the names of requests begin that are not durable work.
const LIVE: &str = "cmp-";

/// The plugin.
pub struct Completion {
    config: Config,
    ledger: RefCell<Ledger>,
    /// Says that a request ended.
    closed: Signal,
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
            started: Instant::now(),
        })
    }

    fn register(on: &mut Register<Self>) {
        on.stream("completion:request", Self::request);
        on.request("completion:async", Self::carry_out);
        on.request("completion:cancel", Self::cancel);
        on.request("completion:status", Self::status);
        on.request("completion:get", Self::get);
        on.request("completion:providers", Self::providers);
        // What nobody can answer is refused before it is accepted as work. Where
        // this plugin is away, it is refused when it is carried out.
        for event in ["llama:generate", "llama:models", "work:get", "work:wait", "work:cancel"] {
            on.calls(event);
        }
        on.intercept("completion:async", Stage::Before, 0, true, Self::check);
        on.emits::<Started>("completion:started");
        on.emits::<Delta>("completion:delta");
        on.emits::<Completed>("completion:result");
        on.emits::<Failed>("completion:error");
        on.emits::<Cancelled>("completion:cancelled");
    }

    /// The requests are over by now; what is left is to tell how they ended.
    async fn drain(self: Rc<Self>, _ctx: Ctx) {
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
        let id = format!("{LIVE}{}", ctx.unique_id());
        let (order, entry) = self.admit(&ctx, id, request)?;
        let place = Place::new(self, entry);
        match (Work { place, ctx, order, sink: Sink::Chunks(out) }).carry().await {
            Ended::Done(completed) => Ok(*completed),
            Ended::Failed(refusal) => Err(refusal),
            Ended::Cancelled => Err(cancelled()),
        }
    }

    /// Nobody waits at the other end of a durable request, so all that happens
    /// is told as facts. The work is a task beside the handler: where the
    /// handler is cancelled, it is told to stop, and says so.
    async fn carry_out(
        self: Rc<Self>,
        ctx: Ctx,
        AsyncRequest(request): AsyncRequest,
    ) -> Result<Completed, Refusal> {
        // The keeper of work hands a request over under the name that its asker
        // knows; without a keeper it has no name yet.
        let id = ctx.idempotency_key().map_or_else(|| format!("{LIVE}{}", ctx.unique_id()), str::to_owned);
        let (order, entry) = self.admit(&ctx, id, request)?;
        let place = Place::new(self, entry.clone());
        let work = Work { place, ctx: ctx.clone(), order, sink: Sink::Facts };
        let (tell, ended) = oneshot::channel();
        ctx.spawn(async move {
            let ended = work.carry_and_tell().await;
            // Nobody wants it where the handler was cancelled.
            let _ = tell.send(ended);
        });
        let _stops_with_this = StopOnDrop(entry);
        match ended.await {
            Ok(Ended::Done(completed)) => Ok(*completed),
            Ok(Ended::Failed(refusal)) => Err(refusal),
            Ok(Ended::Cancelled) | Err(oneshot::Canceled) => Err(cancelled()),
        }
    }

    async fn check(self: Rc<Self>, _ctx: Ctx, asked: Intercepted) -> Result<Option<Bytes>, Refusal> {
        let AsyncRequest(request) = asked.decode()?;
        Order::new(request, &self.config).map(|_| None)
    }

    async fn cancel(self: Rc<Self>, ctx: Ctx, ask: Cancel) -> Result<CancelAnswer, Refusal> {
        let Cancel { request_id } = ask;
        if !is_live(&request_id) {
            let status = kept::cancel(&ctx, &request_id).await?;
            return Ok(CancelAnswer { request_id, status });
        }
        let now_ms = self.now_ms();
        let mut ledger = self.ledger.borrow_mut();
        let open = ledger.visible(&ctx, &request_id).cloned();
        let status = match open {
            Some(entry) => {
                entry.stop(cancelled());
                State::Cancelled
            }
            None => ledger.ended(&ctx, &request_id, now_ms).ok_or_else(|| unknown(&request_id))?.state(),
        };
        Ok(CancelAnswer { request_id, status })
    }

    async fn status(self: Rc<Self>, ctx: Ctx, ask: StatusRequest) -> Result<Status, Refusal> {
        let now_ms = self.now_ms();
        let ledger = self.ledger.borrow();
        match ask.request_id {
            None => Ok(ledger.status(&ctx, None, now_ms)),
            Some(id) => {
                let entry = ledger.visible(&ctx, &id).ok_or_else(|| {
                    Refusal::not_found("open request", &id)
                        .hint("`completion:get` knows those that have ended")
                })?;
                Ok(ledger.status(&ctx, Some(entry), now_ms))
            }
        }
    }

    async fn get(self: Rc<Self>, ctx: Ctx, ask: Get) -> Result<GetAnswer, Refusal> {
        let Get { request_id, wait_ms } = ask;
        let wait_ms = integer("wait_ms", wait_ms, 0, order::TIMEOUT_MS_MAX)?.unwrap_or(0_u64);
        if !is_live(&request_id) {
            return kept::get(&ctx, request_id, wait_ms).await;
        }
        let open = self.ledger.borrow().visible(&ctx, &request_id).cloned();
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
        let ended = ledger.ended(&ctx, &request_id, now_ms).ok_or_else(|| unknown(&request_id))?;
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
    fn admit(&self, ctx: &Ctx, id: String, request: Request) -> Result<(Order, Rc<Entry>), Refusal> {
        let order = Order::new(request, &self.config)?;
        if self.ledger.borrow().open(&id).is_some() {
            let message = format!("the request {} is under way already", id.escape_debug());
            return Err(Refusal::new(Code::Conflict, message));
        }
        let entry = self.ledger.borrow_mut().admit(id, ctx.tenant(), &order, self.now_ms())?;
        Ok((order, entry))
    }

    /// Milliseconds since the start.
    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// A durable request whose handler is gone stops.
struct StopOnDrop(Rc<Entry>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop(cancelled());
    }
}

/// Whether a request is one of those that live here alone; the others are
/// durable work, and known by the name that they were accepted under.
fn is_live(request_id: &str) -> bool {
    request_id.starts_with(LIVE)
}

fn cancelled() -> Refusal {
    Refusal::new(Code::Cancelled, "the request was cancelled")
}

fn unknown(request_id: &str) -> Refusal {
    Refusal::not_found("request", &request_id.escape_debug().to_string())
        .hint("results are kept for a limited time and number, and not over a restart")
}

ksi_sdk::export!(Completion);
