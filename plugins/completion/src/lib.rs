//! The completion plugin: requests to models, whoever serves them.
//!
//! It queues requests (one serial queue for each conversation, a limit for
//! each provider), routes each to a model that can answer it (see `route`), passes
//! the text on as it comes, retries what may pass, falls back where that was
//! allowed, and keeps results for a while. Models are named `provider/model`;
//! a provider is a plugin that keeps the contract of `ksi-provider`, or
//! `mock/SCRIPT`, a scripted one for tests (see `provider/mock.rs`). Every answer
//! names the model that was asked for, the one that answered, and why.
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

use std::{cell::RefCell, collections::BTreeSet, pin::pin, rc::Rc, time::Duration};

use futures_channel::oneshot;
use futures_util::future::{join_all, select};
use ksi_sdk::{
    Chunks, Ctx, Intercepted, Plugin, Register, Signal,
    prelude::{Bytes, Code, Refusal, Stage},
};

mod books;
mod config;
mod context;
mod history;
mod hooks;
mod kept;
mod ledger;
mod order;
pub mod payload;
mod provider;
pub mod queue;
pub mod results;
pub mod route;
mod schema;
mod size;
mod work;

use books::{Books, Who};
use config::Config;
use history::History;
use ledger::{Ended, Entry, Ledger, Phase};
use order::{Order, integer};
use payload::{
    AsyncRequest, BreakerInfo, By, Cancel, CancelAnswer, Cancelled, Chunk, Completed, Delta, Failed, Forget,
    Forgotten, Get, GetAnswer, HistoryAnswer, HistoryRequest, PauseInfo, PostLlmResult, PreLlmPrompt,
    ProviderInfo, ProvidersRequest, Request, Route, RouteRequest, Started, State, Status, StatusRequest,
    UsageAnswer, UsageRequest, Wait,
};
use provider::Providers;
use route::{Router, View, breaker, catalogue::Catalogue, pace};
use work::{Place, Sink, Work};

/// How the names of requests begin that are not durable work.
const LIVE: &str = "cmp-";

/// After how long whoever was refused may ask again, milliseconds.
const RETRY_MS: u64 = 200;

/// The plugin.
pub struct Completion {
    /// Its own context: what it does with it belongs to nobody's request.
    ctx: Ctx,
    config: Config,
    books: Rc<Books>,
    providers: Providers,
    catalogue: Catalogue,
    router: RefCell<Router>,
    ledger: RefCell<Ledger>,
    /// Says that a request ended.
    closed: Signal,
}

impl Plugin for Completion {
    const NAME: &'static str = "completion";
    const ABOUT: &'static str = "Asks models: queues, providers, streamed answers";

    fn start(ctx: &Ctx) -> Result<Self, Refusal> {
        let config: Config = ctx.config()?;
        let providers = Providers::new(&config.providers);
        config.check(&providers)?;
        Ok(Self {
            ctx: ctx.clone(),
            books: Rc::new(Books::new(&config.budgets)),
            catalogue: Catalogue::new(&providers),
            router: RefCell::new(Router::new(&config, &providers)),
            ledger: RefCell::new(Ledger::new(&config, &providers)),
            providers,
            config,
            closed: Signal::default(),
        })
    }

    fn register(on: &mut Register<Self>) {
        on.stream("completion:request", Self::request);
        on.request("completion:async", Self::carry_out);
        on.request("completion:cancel", Self::cancel);
        on.request("completion:status", Self::status);
        on.request("completion:get", Self::get);
        on.request("completion:wait", Self::wait);
        on.request("completion:providers", Self::providers);
        on.request("completion:route", Self::route);
        on.request("completion:usage", Self::usage);
        on.request("completion:history", Self::history);
        on.request("completion:forget", Self::forget);
        // What others make of them on their way is what counts.
        on.request("completion:pre_llm_prompt", async |_: Rc<Self>, _, prompt: PreLlmPrompt| Ok(prompt));
        on.request("completion:post_llm_result", async |_: Rc<Self>, _, result: PostLlmResult| Ok(result));
        // What nobody can answer is refused before it is accepted as work. Where
        // this plugin is away, it is refused when it is carried out.
        for event in ["*:generate", "*:models", "llama:tokenize", "work:get", "work:wait", "work:cancel"] {
            on.calls(event);
        }
        on.calls(hooks::PRE);
        on.calls(hooks::POST);
        on.intercept("completion:async", Stage::Before, 0, true, Self::check);
        on.emits::<Started>("completion:started");
        on.emits::<Delta>("completion:delta");
        on.emits::<Completed>("completion:result");
        on.emits::<Failed>("completion:error");
        on.emits::<Cancelled>("completion:cancelled");
    }

    /// A budget that cannot be read allows nothing, so it is waited for.
    async fn open(self: Rc<Self>, ctx: Ctx) -> Result<(), Refusal> {
        let plugin = self.clone();
        ctx.spawn(async move {
            let is_open = |request: &str| plugin.ledger.borrow().open(request).is_some();
            plugin.books.sweep(&plugin.ctx, plugin.config.usage_days, is_open).await;
        });
        match self.books.has_budgets() {
            true => self.books.recover(&ctx).await,
            false => Ok(()),
        }
    }

    /// The requests are over by now; what is left is to tell how they ended, and to
    /// write down what they used.
    async fn drain(self: Rc<Self>, ctx: Ctx) {
        self.closed.until(|| self.ledger.borrow().is_idle()).await;
        self.books.flush(&ctx).await;
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
        match Work::new(place, ctx, order, Sink::Chunks(out)).carry().await {
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
        let work = Work::new(place, ctx.clone(), order, Sink::Facts);
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
        Order::new(request, &self.config, &self.providers).map(|_| None)
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
        let wait_ms = integer("wait_ms", wait_ms, 0, order::TIMEOUT_MS_MAX)?.unwrap_or(0);
        self.became(&ctx, request_id, wait_ms).await
    }

    async fn wait(self: Rc<Self>, ctx: Ctx, ask: Wait) -> Result<GetAnswer, Refusal> {
        let Wait { request_id, timeout_ms } = ask;
        let timeout_ms = integer("timeout_ms", timeout_ms, 0, order::TIMEOUT_MS_MAX)?;
        self.became(&ctx, request_id, timeout_ms.unwrap_or(order::TIMEOUT_MS_MAX)).await
    }

    /// What became of a request that may still take so long.
    async fn became(&self, ctx: &Ctx, request_id: String, wait_ms: u64) -> Result<GetAnswer, Refusal> {
        let time = ctx.time_for(Duration::from_millis(wait_ms));
        if !is_live(&request_id) {
            let end = kept::get(ctx, request_id, time);
            return match time.is_zero() {
                true => end.await,
                false => ctx.unless_draining(end).await.ok_or_else(being_stopped)?,
            };
        }
        let open = self.ledger.borrow().visible(ctx, &request_id).cloned();
        if let Some(entry) = open {
            if !time.is_zero() {
                let ended = pin!(entry.changed.until(|| entry.phase.get() == Phase::Ended));
                let late = pin!(ctx.sleep(time));
                ctx.unless_draining(select(ended, late)).await.ok_or_else(being_stopped)?;
            }
            if entry.phase.get() != Phase::Ended {
                return Ok(GetAnswer { request_id, state: entry.state(), result: None, refusal: None });
            }
        }
        let now_ms = self.now_ms();
        let mut ledger = self.ledger.borrow_mut();
        let ended = ledger.ended(ctx, &request_id, now_ms).ok_or_else(|| unknown(&request_id))?;
        let state = ended.state();
        let (result, refusal) = match ended {
            Ended::Done(completed) => (Some((**completed).clone()), None),
            Ended::Failed(refusal) => (None, Some(refusal.clone())),
            Ended::Cancelled => (None, None),
        };
        Ok(GetAnswer { request_id, state, result, refusal })
    }

    async fn providers(
        self: Rc<Self>,
        ctx: Ctx,
        _ask: ProvidersRequest,
    ) -> Result<payload::Providers, Refusal> {
        let asked = self.providers.all().iter().enumerate().map(|(lane, provider)| {
            let now_ms = self.now_ms();
            self.catalogue.ask(&ctx, provider, lane, now_ms)
        });
        let asked = join_all(asked).await;
        let loads = self.ledger.borrow().visible_loads(&ctx);
        let now_ms = self.now_ms();
        let described = self.providers.all().iter().zip(asked).zip(loads).enumerate();
        let providers = described.map(|(lane, ((provider, models), load))| ProviderInfo {
            name: load.name,
            about: provider.about.clone(),
            unavailable: models.as_ref().err().map(|refusal| refusal.message.clone()),
            hint: models.as_ref().err().map(|refusal| refusal.hint.clone()).filter(|hint| !hint.is_empty()),
            local: provider.local,
            breakers: self.router.borrow().sick(lane, now_ms).into_iter().map(breaker_info(now_ms)).collect(),
            pauses: self.router.borrow().pauses(lane, now_ms).into_iter().map(pause_info(now_ms)).collect(),
            models: models.ok().map(|models| {
                let mut names: Vec<_> = models.into_iter().map(|model| model.name).collect();
                let more = provider.configured_models().filter(|name| !names.contains(name));
                let more: Vec<_> = more.cloned().collect();
                names.extend(more);
                names
            }),
            concurrency: load.concurrency,
            running: load.running,
            queued: load.queued,
        });
        Ok(payload::Providers { providers: providers.collect() })
    }

    /// Everything that a request would go through before it is queued, without
    /// being queued.
    async fn route(self: Rc<Self>, ctx: Ctx, ask: RouteRequest) -> Result<Route, Refusal> {
        if !ask.dry_run {
            return Err(order::invalid("dry_run", "must be true: this only shows")
                .hint("ask `completion:request` for an answer"));
        }
        let order = Order::new(ask.read()?, &self.config, &self.providers)?;
        self.learn(&ctx, &order).await;
        let ranked = self.rank(&ctx, &order);
        let best = ranked.first().filter(|best| best.is_eligible());
        Ok(Route {
            chosen: best.map(|best| self.providers.name(&best.target).to_string()),
            prompt_tokens: order.needs().prompt_tokens,
            candidates: ranked.iter().map(|one| one.candidate(&self.providers)).collect(),
        })
    }

    async fn usage(self: Rc<Self>, ctx: Ctx, ask: UsageRequest) -> Result<UsageAnswer, Refusal> {
        let days = integer("days", ask.days, 1, 366)?.unwrap_or(30);
        let agent = order::name("agent", ask.agent.as_deref())?;
        let conversation = order::name("conversation_id", ask.conversation_id.as_deref())?;
        self.books.flush(&self.ctx).await;
        let rows = books::keeping::rows(&self.ctx, days).await?;
        let seen: Vec<_> = rows.into_iter().filter(|row| ctx.sees(row.tenant.as_deref())).collect();
        let (rows, total) = books::report::added_up(&seen, &ask.by.unwrap_or(vec![By::Day, By::Model]));
        let who = who(&ctx, agent.as_deref(), conversation.as_deref());
        Ok(UsageAnswer { rows, total, budgets: self.books.standing(&self.ctx, &who).await? })
    }

    async fn history(self: Rc<Self>, ctx: Ctx, ask: HistoryRequest) -> Result<HistoryAnswer, Refusal> {
        let name = order::name("conversation_id", Some(&ask.conversation_id))?.unwrap_or_default();
        let History { messages, .. } = History::read(&self.ctx, ctx.tenant(), &name, "").await?;
        Ok(HistoryAnswer { messages })
    }

    async fn forget(self: Rc<Self>, ctx: Ctx, ask: Forget) -> Result<Forgotten, Refusal> {
        let name = order::name("conversation_id", Some(&ask.conversation_id))?.unwrap_or_default();
        Ok(Forgotten { messages: history::forget(&self.ctx, ctx.tenant(), &name).await? })
    }

    /// Asks the providers that an order may go to for their models, where that was
    /// long ago. One that does not answer is ranked behind the others.
    async fn learn(&self, ctx: &Ctx, order: &Order) {
        let now_ms = self.now_ms();
        let old = self.old_lanes(order).into_iter();
        join_all(old.map(|lane| self.catalogue.ask(ctx, &self.providers.all()[lane], lane, now_ms))).await;
    }

    /// Whether models have to be asked what they can do before it is known who can
    /// answer an order.
    fn has_to_learn(&self, order: &Order) -> bool {
        order.needs().are_special() && !self.old_lanes(order).is_empty()
    }

    fn old_lanes(&self, order: &Order) -> BTreeSet<usize> {
        let now_ms = self.now_ms();
        let lanes = order.choice.tiers.iter().flatten().map(|target| target.lane);
        lanes.filter(|lane| self.catalogue.is_old(*lane, now_ms)).collect()
    }

    fn rank(&self, ctx: &Ctx, order: &Order) -> Vec<route::Ranked> {
        let view = View {
            config: &self.config,
            providers: &self.providers,
            catalogue: &self.catalogue,
            loads: &self.ledger.borrow().loads(),
            tenant: ctx.tenant(),
            spent: &[],
            needs: &[],
        };
        self.router.borrow().rank(order, &view, self.now_ms())
    }

    /// Checks a request and takes it in, in the queue of the model that is best for
    /// it as far as is known. Nothing is waited for, so that requests are queued in
    /// the order in which they came; what models can do is asked afterwards.
    fn admit(&self, ctx: &Ctx, id: String, request: Request) -> Result<(Order, Rc<Entry>), Refusal> {
        let order = Order::new(request, &self.config, &self.providers)?;
        let learns = self.has_to_learn(&order);
        if self.ledger.borrow().open(&id).is_some() {
            let message = format!("the request {} is under way already", id.escape_debug());
            return Err(Refusal::new(Code::Conflict, message));
        }
        let ranked = self.rank(ctx, &order);
        let could = |one: &&route::Ranked| learns && one.out == Some(payload::Stage::Capability);
        let Some(best) = ranked.iter().find(|one| one.is_eligible() || could(one)) else {
            return Err(route::nobody(&ranked, &order, &self.providers));
        };
        let who = who(ctx, order.agent.as_deref(), None);
        // What nobody else asks is the daemon's own.
        let whole_lane = ctx.caller().is_none_or(|caller| caller.every_tenant);
        let entry =
            self.ledger.borrow_mut().admit(id, (who, whole_lane), &order, &best.target, self.now_ms())?;
        Ok((order, entry))
    }

    fn now_ms(&self) -> u64 {
        self.ctx.now_ms()
    }
}

/// In whose name something is asked.
fn who(ctx: &Ctx, agent: Option<&str>, conversation: Option<&str>) -> Who {
    Who {
        tenant: ctx.tenant().map(str::to_owned),
        principal: ctx.principal().to_owned(),
        agent: agent.map(str::to_owned),
        conversation: conversation.map(str::to_owned),
    }
}

fn breaker_info(now_ms: u64) -> impl Fn((String, breaker::State)) -> BreakerInfo {
    move |(model, state)| {
        let (state, retry_after_ms) = match state {
            breaker::State::Open { until_ms } => ("open", Some(until_ms.saturating_sub(now_ms))),
            breaker::State::HalfOpen { .. } | breaker::State::Closed => ("half_open", None),
        };
        BreakerInfo { model, state: state.into(), retry_after_ms }
    }
}

fn pause_info(now_ms: u64) -> impl Fn((Option<&str>, &pace::Pause)) -> PauseInfo {
    move |(model, pause)| PauseInfo {
        model: model.map(str::to_owned),
        until_ms: now_ms + pause.left_ms(now_ms),
        retry_after_ms: pause.left_ms(now_ms),
        wished_ms: pause.wished_ms(now_ms),
        why: pause.why().to_owned(),
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

/// An end that may be long in coming would hold up the plugin's own.
fn being_stopped() -> Refusal {
    Refusal::new(Code::Unavailable, "the completion plugin is being stopped")
        .hint("ask again when it is back; then it knows of durable requests (`completion:async`) alone")
        .retry_after_ms(RETRY_MS)
}

fn unknown(request_id: &str) -> Refusal {
    Refusal::not_found("request", &request_id.escape_debug().to_string())
        .hint("results are kept for a limited time and number, and not over a restart")
}

ksi_sdk::export!(Completion);
