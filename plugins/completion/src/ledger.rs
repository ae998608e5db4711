//! The ledger: every request that is open, and what became of the others.
//!
//! It decides when a request starts and remembers how it ended; it does no
//! work itself. The tasks that do wait on their entry's signal. It never
//! reads a clock: the time is an argument, in milliseconds since 1970.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, HashMap},
    rc::Rc,
};

use ksi_sdk::{
    Ctx, Signal,
    prelude::{Code, Refusal, json},
};

use crate::{
    books::Who,
    config::Config,
    order::{Order, scoped},
    payload::{Completed, Load, Open, State, Status},
    provider::{Provider, Providers, Target},
    queue::{Asker, Error, Job, Scheduler, Ticket},
    results::Results,
    size,
};

/// Bounds of what a refused client is told to wait, milliseconds.
const RETRY_MS: std::ops::RangeInclusive<u64> = 100..=30_000;
/// How long a request takes, as long as nothing is known, milliseconds.
const FIRST_GUESS_MS: u64 = 1000;

/// Where an open request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Queued,
    Running,
    Ended,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Ended {
    Done(Box<Completed>),
    Failed(Refusal),
    Cancelled,
}

impl Ended {
    pub(crate) fn state(&self) -> State {
        match self {
            Self::Done(_) => State::Done,
            Self::Failed(_) => State::Failed,
            Self::Cancelled => State::Cancelled,
        }
    }

    fn bytes(&self) -> usize {
        512 + match self {
            Self::Done(completed) => size::of_completed(completed),
            Self::Failed(refusal) => refusal.message.len() + refusal.hint.len(),
            Self::Cancelled => 0,
        }
    }
}

/// One open request, shared between the ledger and the task that carries it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: String,
    ticket: Ticket,
    /// Whose turn it waits for or has.
    pub(crate) lane: Cell<usize>,
    model: RefCell<String>,
    conversation: Option<String>,
    /// Whose it is; others do not see it.
    pub(crate) tenant: Option<String>,
    priority: i8,
    pub(crate) accepted_ms: u64,
    /// When its turn first came.
    pub(crate) started_ms: Cell<Option<u64>>,
    pub(crate) phase: Cell<Phase>,
    /// Why its task shall stop.
    pub(crate) stop: RefCell<Option<Refusal>>,
    /// Says that `phase` or `stop` changed.
    pub(crate) changed: Signal,
}

/// All requests.
pub(crate) struct Ledger {
    scheduler: Scheduler,
    open: BTreeMap<Ticket, Rc<Entry>>,
    tickets: HashMap<String, Ticket>,
    /// With whose each is.
    results: Results<(Option<String>, Ended)>,
    /// How long a request of each provider takes, a moving mean.
    mean_ms: Vec<u64>,
    names: Vec<String>,
}

impl Ledger {
    pub(crate) fn new(config: &Config, providers: &Providers) -> Self {
        let limits: Vec<_> = providers.all().iter().map(|provider| provider.concurrency).collect();
        Self {
            scheduler: Scheduler::new(config.queue_bounds(), &limits),
            open: BTreeMap::new(),
            tickets: HashMap::new(),
            results: Results::new(config.result_bounds()),
            mean_ms: vec![FIRST_GUESS_MS; limits.len()],
            names: providers.all().iter().map(|provider: &Provider| provider.name.clone()).collect(),
        }
    }

    /// Takes an order in, and starts it where it may start at once.
    pub(crate) fn admit(
        &mut self,
        id: String,
        (who, whole_lane): (Who, bool),
        order: &Order,
        target: &Target,
        now_ms: u64,
    ) -> Result<Rc<Entry>, Refusal> {
        let tenant = who.tenant;
        let job = Job {
            lane: target.lane,
            asker: Asker { principal: who.principal, agent: who.agent.unwrap_or_default() },
            conversation: order.conversation.as_deref().map(|name| scoped(tenant.as_deref(), name)),
            priority: order.priority,
            bytes: order.bytes(),
            whole_lane,
        };
        let ticket = self.scheduler.push(job).map_err(|error| self.refusal(target.lane, error))?;
        let entry = Rc::new(Entry {
            id: id.clone(),
            ticket,
            lane: Cell::new(target.lane),
            model: RefCell::new(self.name(target)),
            conversation: order.conversation.clone(),
            tenant,
            priority: order.priority,
            accepted_ms: now_ms,
            started_ms: Cell::new(None),
            phase: Cell::new(Phase::Queued),
            stop: RefCell::new(None),
            changed: Signal::default(),
        });
        self.open.insert(ticket, entry.clone());
        self.tickets.insert(id, ticket);
        self.start(now_ms);
        Ok(entry)
    }

    fn name(&self, target: &Target) -> String {
        format!("{}/{}", self.names[target.lane], target.model)
    }

    /// Lets a request go on with another model, where it has to wait for its turn
    /// (again, if it runs) if that is another provider's.
    pub(crate) fn go_on_with(&mut self, entry: &Entry, target: &Target, now_ms: u64) {
        *entry.model.borrow_mut() = self.name(target);
        if entry.lane.replace(target.lane) != target.lane {
            entry.phase.set(Phase::Queued);
            self.scheduler.transfer(entry.ticket, target.lane);
            self.start(now_ms);
        }
    }

    fn refusal(&self, lane: usize, error: Error) -> Refusal {
        let name = &self.names[lane];
        match error {
            Error::TooLarge { bytes, max } => {
                Refusal::new(Code::TooLarge, error.to_string()).details(json!({ "bytes": bytes, "max": max }))
            }
            Error::Requests(_) | Error::Share(_) | Error::Bytes { .. } | Error::BytesShare { .. } => {
                let hint = match error {
                    Error::Share(_) => "wait for some of them, or ask another provider",
                    Error::Bytes { .. } | Error::BytesShare { .. } => "wait until some have ended",
                    _ => "try again later, or ask another provider",
                };
                let limit = self.scheduler.limit(lane).max(1) as u64;
                let wait = self.mean_ms[lane] / limit;
                Refusal::new(Code::Busy, format!("provider `{name}`: {error}"))
                    .hint(hint)
                    .retry_after_ms(wait.clamp(*RETRY_MS.start(), *RETRY_MS.end()))
            }
        }
    }

    /// Starts everything that may start.
    fn start(&mut self, now_ms: u64) {
        while let Some(ticket) = self.scheduler.start() {
            let entry = &self.open[&ticket];
            entry.phase.set(Phase::Running);
            entry.started_ms.update(|at| at.or(Some(now_ms)));
            entry.changed.notify();
        }
    }

    /// Writes down how a request ended, frees its place and starts others. A
    /// request ends once; what comes later is ignored.
    pub(crate) fn close(&mut self, entry: &Entry, ended: Ended, now_ms: u64) {
        if self.open.remove(&entry.ticket).is_none() {
            return;
        }
        self.tickets.remove(&entry.id);
        if matches!(ended, Ended::Done(_)) {
            let mean = &mut self.mean_ms[entry.lane.get()];
            *mean = (*mean * 7 + now_ms.saturating_sub(entry.started_ms.get().unwrap_or(now_ms))) / 8;
        }
        let bytes = ended.bytes();
        self.results.add(entry.id.clone(), (entry.tenant.clone(), ended), bytes, now_ms);
        self.scheduler.release(entry.ticket);
        entry.phase.set(Phase::Ended);
        entry.changed.notify();
        self.start(now_ms);
    }

    pub(crate) fn open(&self, id: &str) -> Option<&Rc<Entry>> {
        self.open.get(self.tickets.get(id)?)
    }

    /// An open request that whoever asks may see.
    pub(crate) fn visible(&self, ctx: &Ctx, id: &str) -> Option<&Rc<Entry>> {
        self.open(id).filter(|entry| ctx.sees(entry.tenant.as_deref()))
    }

    /// What became of a request that whoever asks may see.
    pub(crate) fn ended(&mut self, ctx: &Ctx, id: &str, now_ms: u64) -> Option<&Ended> {
        let (tenant, ended) = self.results.get(id, now_ms)?;
        ctx.sees(tenant.as_deref()).then_some(ended)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    /// The place of each request that waits for one of these lanes: 1 for the next one.
    fn positions(&self, lanes: impl Iterator<Item = usize>) -> HashMap<Ticket, usize> {
        let lanes: BTreeSet<_> = lanes.collect();
        lanes.into_iter().flat_map(|lane| self.scheduler.waiting(lane).into_iter().zip(1..)).collect()
    }

    /// Load of every provider, of all requests.
    pub(crate) fn loads(&self) -> Vec<Load> {
        let load = |(lane, name): (usize, &String)| Load {
            name: name.clone(),
            concurrency: self.scheduler.limit(lane),
            running: self.scheduler.running(lane),
            queued: self.scheduler.queued(lane),
        };
        self.names.iter().enumerate().map(load).collect()
    }

    /// Load of every provider, of the requests that whoever asks may see.
    pub(crate) fn visible_loads(&self, ctx: &Ctx) -> Vec<Load> {
        let mut loads = self.loads();
        if !ctx.sees_every_tenant() {
            for (lane, load) in loads.iter_mut().enumerate() {
                let of = |phase| {
                    let here = |entry: &&Rc<Entry>| entry.lane.get() == lane && entry.phase.get() == phase;
                    self.seen(ctx).filter(here).count()
                };
                (load.running, load.queued) = (of(Phase::Running), of(Phase::Queued));
            }
        }
        loads
    }

    fn seen(&self, ctx: &Ctx) -> impl Iterator<Item = &Rc<Entry>> {
        self.open.values().filter(|entry| ctx.sees(entry.tenant.as_deref()))
    }

    /// Everything that is open and that whoever asks may see, or the one request
    /// asked for.
    pub(crate) fn status(&self, ctx: &Ctx, only: Option<&Rc<Entry>>, now_ms: u64) -> Status {
        let providers = self.visible_loads(ctx);
        let entries: Vec<_> = match only {
            Some(entry) => vec![entry],
            None => self.seen(ctx).collect(),
        };
        let positions = self.positions(entries.iter().map(|entry| entry.lane.get()));
        let view = |entry: &&Rc<Entry>| Open {
            request_id: entry.id.clone(),
            state: entry.state(),
            conversation_id: entry.conversation.clone(),
            model: entry.model.borrow().clone(),
            position: Some(positions.get(&entry.ticket).copied().unwrap_or(0)),
            priority: entry.priority,
            age_ms: now_ms.saturating_sub(entry.accepted_ms),
        };
        Status {
            queued: providers.iter().map(|load| load.queued).sum(),
            running: providers.iter().map(|load| load.running).sum(),
            requests: entries.iter().map(view).collect(),
            providers,
        }
    }
}

impl Entry {
    /// Asks the task of the request to stop. It looks at this before anything
    /// else, so a request that waits never asks its provider any more.
    pub(crate) fn stop(&self, why: Refusal) {
        self.stop.borrow_mut().get_or_insert(why);
        self.changed.notify();
    }

    /// Where an open request is, as it is told to others.
    pub(crate) fn state(&self) -> State {
        match self.phase.get() {
            _ if self.stop.borrow().is_some() => State::Cancelled,
            Phase::Queued => State::Queued,
            Phase::Running | Phase::Ended => State::Running,
        }
    }
}
