//! One running instance: messages in, handlers run, answers out.
//!
//! A small local executor. A handler is polled once where it arrives, since
//! most answer without waiting; one that waits joins the tasks that are polled
//! when their waker calls.
//!
//! Until the plugin has opened, what comes for its handlers is held back, and
//! only answers to what it asks itself, and its timers, get through.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    path::PathBuf,
    pin::Pin,
    ptr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::{
    FutureExt, StreamExt,
    future::{AbortHandle, Abortable, LocalBoxFuture},
    stream::FuturesUnordered,
};
use ksi_abi::{INVALID, Kind, OK};
use ksi_protocol::{Bytes, Code, EventName, Refusal, meta::Meta, work::Accepted};

use crate::{
    cancel::{CancelOnDrop, CancelToken},
    context::{Ctx, EnvelopeFacts},
    core::{Core, Incoming, Will},
    link::{Link, Outgoing, encode},
    plugin::Plugin,
    register::{Event, Handled, Intercepted, Kept, Outcome, Register},
    state::version,
};

/// One message from the host, safe to look at.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) kind: Kind,
    pub(crate) id: u64,
    pub(crate) arg: u64,
    pub(crate) name: String,
    pub(crate) payload: Bytes,
    pub(crate) meta: Bytes,
}

pub(crate) struct Instance<P> {
    core: Rc<Core>,
    plugin: Rc<P>,
    register: Register<P>,
    tasks: FuturesUnordered<LocalBoxFuture<'static, ()>>,
    alarm: Arc<Alarm>,
    waker: Waker,
    /// Requests and interceptions whose handlers wait, by token, so that a
    /// cancel finds them.
    running: Rc<RefCell<HashMap<u64, (AbortHandle, CancelToken)>>>,
    phase: Phase,
    draining: Option<LocalBoxFuture<'static, ()>>,
    drain_asked: bool,
}

/// How far the plugin is.
enum Phase {
    Opening {
        future: LocalBoxFuture<'static, Result<(), Refusal>>,
        /// What is for its handlers, in the order in which it came.
        held: VecDeque<Message>,
    },
    Open,
    /// It could not open, or was told to stop before it had: it does nothing
    /// any more.
    Closed,
}

/// What comes between `start` and the first event.
async fn open<P: Plugin>(plugin: Rc<P>, ctx: Ctx) -> Result<(), Refusal> {
    if P::STATE_VERSION > 0 {
        version::settle::<P>(ctx.state()).await?;
    }
    plugin.open(ctx).await
}

/// Rounds over the tasks that are ready, in one call of the host: a task that
/// wakes itself for ever leaves room for what comes meanwhile.
const ROUNDS: usize = 4;

thread_local! {
    /// The alarm of the instance that this thread runs.
    static RUNNING: Cell<*const Alarm> = const { Cell::new(ptr::null()) };
}

/// What is woken: the host, unless the call that wakes is one of the instance's
/// own, which looks again before it returns.
struct Alarm {
    link: Arc<dyn Link>,
    rung: AtomicBool,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if ptr::eq(RUNNING.get(), Arc::as_ptr(self)) {
            self.rung.store(true, Ordering::Relaxed);
        } else {
            self.link.wake();
        }
    }
}

/// For as long as it lives, this thread runs the instance of an alarm.
struct Run;

impl Run {
    fn begin(alarm: &Arc<Alarm>) -> Self {
        RUNNING.set(Arc::as_ptr(alarm));
        Self
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        RUNNING.set(ptr::null());
    }
}

impl<P: Plugin> Instance<P> {
    /// Starts the plugin. One that has nothing to wait for is ready when this
    /// returns.
    pub(crate) fn start(link: Arc<dyn Link>, config: Bytes, dir: PathBuf) -> Result<Self, Refusal> {
        let core = Rc::new(Core::new(link.clone(), config, dir));
        let ctx = Ctx::new(core.clone(), EnvelopeFacts::default());
        let plugin = Rc::new(P::start(&ctx)?);
        let future = open(plugin.clone(), ctx).boxed_local();
        let alarm = Arc::new(Alarm { link: link.clone(), rung: AtomicBool::new(false) });
        let mut instance = Self {
            core,
            plugin,
            register: Register::handlers(),
            tasks: FuturesUnordered::new(),
            waker: Waker::from(alarm.clone()),
            alarm,
            running: Rc::default(),
            phase: Phase::Opening { future, held: VecDeque::new() },
            draining: None,
            drain_asked: false,
        };
        instance.go_on_opening()?;
        // What `start` spawned is polled by the first call of the host.
        link.wake();
        Ok(instance)
    }

    /// What is still done after a panic.
    pub(crate) fn will(&self) -> Will {
        self.core.will.clone()
    }

    /// Takes one message and runs until everything waits.
    pub(crate) fn deliver(&mut self, message: Message) -> u32 {
        let _run = Run::begin(&self.alarm);
        let status = self.take(message);
        self.run_rounds();
        status
    }

    /// Runs until everything waits.
    pub(crate) fn run(&mut self) {
        let _run = Run::begin(&self.alarm);
        self.run_rounds();
    }

    fn run_rounds(&mut self) {
        for _ in 0..ROUNDS {
            self.alarm.rung.store(false, Ordering::Relaxed);
            self.run_round();
            if !self.alarm.rung.load(Ordering::Relaxed) && self.core.spawned.borrow().is_empty() {
                return;
            }
        }
        self.alarm.link.wake();
    }

    fn run_round(&mut self) {
        self.run_tasks();
        if let Err(refusal) = self.go_on_opening() {
            let payload = encode(&refusal).unwrap_or_default();
            self.core.link.send(&Outgoing { payload: &payload, ..Outgoing::new(Kind::Refusal, 0) });
        }
        self.finish_drain();
    }

    /// Polls what the plugin does to become ready. Once it is, it says so, and
    /// what was held back begins.
    fn go_on_opening(&mut self) -> Result<(), Refusal> {
        let Phase::Opening { future, held } = &mut self.phase else { return Ok(()) };
        let Poll::Ready(opened) = future.as_mut().poll(&mut Context::from_waker(&self.waker)) else {
            return Ok(());
        };
        self.core.opening.set(false);
        let held = std::mem::take(held);
        self.phase = if opened.is_ok() { Phase::Open } else { Phase::Closed };
        opened?;
        self.core.link.send(&Outgoing::new(Kind::Ready, 0));
        for message in held {
            self.take(message);
        }
        self.run_tasks();
        Ok(())
    }

    fn run_tasks(&mut self) {
        let mut cx = Context::from_waker(&self.waker);
        loop {
            let spawned = std::mem::take(&mut *self.core.spawned.borrow_mut());
            self.tasks.extend(spawned);
            match self.tasks.poll_next_unpin(&mut cx) {
                Poll::Ready(Some(())) => {}
                Poll::Ready(None) | Poll::Pending if self.core.spawned.borrow().is_empty() => break,
                Poll::Ready(None) | Poll::Pending => {}
            }
        }
    }

    fn take(&mut self, message: Message) -> u32 {
        let Some(message) = self.hold_back(message) else { return OK };
        let Message { kind, id, arg, payload, .. } = &message;
        match kind {
            Kind::Request => self.begin_request(message),
            Kind::Event => return self.begin_event(message),
            Kind::Intercept => return self.begin_intercept(message),
            Kind::Cancel => self.cancel(*id),
            Kind::Reply => self.core.answered(*id, Incoming::Reply(payload.clone())),
            Kind::Chunk => self.core.answered(*id, Incoming::Chunk(payload.clone())),
            Kind::End => self.core.answered(*id, Incoming::End(payload.clone())),
            Kind::Accepted => {
                self.core.answered(*id, Incoming::Accepted(message.name.clone(), *arg));
            }
            Kind::Refusal => {
                let refusal = ksi_protocol::decode(payload).unwrap_or_else(|refusal| refusal);
                self.core.answered(*id, Incoming::Refusal(refusal));
            }
            Kind::Timer => self.core.fired(*id),
            Kind::Credit => self.core.allow(*id, *arg),
            Kind::Drain => {
                self.drain_asked = true;
                self.core.begin_drain();
            }
            _ => return INVALID,
        }
        OK
    }

    /// What is for the handlers waits until there is a plugin to handle it.
    fn hold_back(&mut self, message: Message) -> Option<Message> {
        let handled = matches!(message.kind, Kind::Request | Kind::Event | Kind::Intercept);
        match &mut self.phase {
            Phase::Opening { held, .. } if handled => {
                held.push_back(message);
                None
            }
            Phase::Opening { held, .. } => {
                if message.kind == Kind::Cancel {
                    held.retain(|one| one.id != message.id || one.kind == Kind::Event);
                }
                Some(message)
            }
            Phase::Closed if handled => None,
            Phase::Open | Phase::Closed => Some(message),
        }
    }

    /// Begins with a request; nothing of it has run when this returns.
    fn handle(&self, ctx: Ctx, id: u64, name: &str, data: Bytes) -> Result<Handled, Refusal> {
        let plugin = self.plugin.clone();
        if self.register.keeps_work()
            && let Some((policy, at_ms)) = ctx.work()
        {
            let event = EventName::parse(name)
                .map_err(|error| Refusal::new(Code::InvalidFrame, error.to_string()))?;
            match (at_ms, &self.register.keep, &self.register.keep_facts) {
                (None, Some(keep), _) => return Ok(keep(plugin, ctx, Kept { event, data, policy })),
                (Some(at_ms), _, Some(keep)) => {
                    let origin = ctx.origin().to_owned();
                    return Ok(keep(plugin, ctx, Event { event, data, origin, at_ms }));
                }
                _ => {}
            }
        }
        match self.register.requests.get(name) {
            Some(handler) => Ok(handler(plugin, ctx, data, id)),
            None => Err(Refusal::new(Code::UnknownEvent, format!("{} does not answer `{name}`", P::NAME))),
        }
    }

    fn begin_request(&mut self, message: Message) {
        let Message { id, arg, name, payload, meta, .. } = message;
        let cancel = CancelToken::default();
        let facts = EnvelopeFacts {
            token: Some(id),
            deadline_ms: arg,
            meta,
            cancel: cancel.clone(),
            ..Default::default()
        };
        let ctx = Ctx::new(self.core.clone(), facts);
        match self.handle(ctx, id, &name, payload) {
            Ok(handled) => self.see_through(id, cancel, handled),
            Err(refusal) => answer(&self.core, id, Outcome::Refusal(refusal)),
        }
    }

    /// Runs what has begun to its end, and answers with that.
    fn see_through(&self, id: u64, cancel: CancelToken, handled: Handled) {
        let guard = CancelOnDrop(cancel.clone());
        let mut handled = async move {
            let outcome = handled.await;
            drop(guard);
            outcome
        }
        .boxed_local();
        let mut cx = Context::from_waker(&self.waker);
        if let Poll::Ready(outcome) = handled.as_mut().poll(&mut cx) {
            return answer(&self.core, id, outcome);
        }
        let (abort, registration) = AbortHandle::new_pair();
        self.running.borrow_mut().insert(id, (abort, cancel));
        let (core, running) = (self.core.clone(), self.running.clone());
        self.tasks.push(Box::pin(async move {
            let outcome = Abortable::new(handled, registration).await;
            running.borrow_mut().remove(&id);
            if let Ok(outcome) = outcome {
                answer(&core, id, outcome);
            }
        }));
    }

    fn begin_event(&mut self, message: Message) -> u32 {
        let Message { id, name, payload, meta, .. } = message;
        let listener = usize::try_from(id).ok().and_then(|index| self.register.listeners.get(index));
        let (Some((_, handler)), Ok(event)) = (listener, EventName::parse(&name)) else { return INVALID };
        let facts = EnvelopeFacts { meta, ..Default::default() };
        let meta = decode_meta(&facts.meta);
        let event = Event {
            event,
            data: payload,
            origin: meta.origin.unwrap_or_default(),
            at_ms: meta.at_ms.unwrap_or_default(),
        };
        let ctx = Ctx::new(self.core.clone(), facts);
        self.tasks.push(handler(self.plugin.clone(), ctx, event));
        OK
    }

    fn begin_intercept(&mut self, message: Message) -> u32 {
        let Message { id, arg, name, payload, meta, .. } = message;
        let found = usize::try_from(arg).ok().and_then(|index| self.register.interceptors.get(index));
        let (Some((stage, handler)), Ok(event)) = (found, EventName::parse(&name)) else { return INVALID };
        let (stage, handler) = (*stage, handler.clone());
        let cancel = CancelToken::default();
        let facts = EnvelopeFacts { meta, cancel: cancel.clone(), ..Default::default() };
        let origin = decode_meta(&facts.meta).origin.unwrap_or_default();
        let word = handler(
            self.plugin.clone(),
            Ctx::new(self.core.clone(), facts),
            Intercepted { event, data: payload, origin, stage },
        );
        let guard = CancelOnDrop(cancel.clone());
        let (abort, registration) = AbortHandle::new_pair();
        self.running.borrow_mut().insert(id, (abort, cancel));
        let (core, running) = (self.core.clone(), self.running.clone());
        let word = async move {
            let word = word.await;
            drop(guard);
            word
        };
        self.tasks.push(Box::pin(async move {
            let verdict = Outgoing::new(Kind::Verdict, id);
            let word = Abortable::new(word, registration).await;
            running.borrow_mut().remove(&id);
            // Nobody waits for a word that was given up.
            let Ok(word) = word else { return };
            match word {
                Ok(None) => core.link.send(&verdict),
                Ok(Some(data)) => core.link.send(&Outgoing { arg: 1, payload: &data, ..verdict }),
                Err(refusal) => {
                    let data = encode(&refusal).unwrap_or_default();
                    core.link.send(&Outgoing { arg: 2, payload: &data, ..verdict })
                }
            };
        }));
        OK
    }

    fn cancel(&mut self, token: u64) {
        if let Some((abort, cancel)) = self.running.borrow_mut().remove(&token) {
            cancel.cancel();
            abort.abort();
        }
    }

    /// Once a drain was asked for and no request is left, lets the plugin
    /// finish, and says so.
    fn finish_drain(&mut self) {
        if self.drain_asked && !matches!(self.phase, Phase::Open) {
            // What it has begun, it has begun for itself alone.
            self.phase = Phase::Closed;
            self.drain_asked = false;
            self.core.link.send(&Outgoing::new(Kind::Drained, 0));
        }
        if self.drain_asked && self.running.borrow().is_empty() {
            self.drain_asked = false;
            let ctx = Ctx::new(self.core.clone(), EnvelopeFacts::default());
            self.draining = Some(Box::pin(self.plugin.clone().drain(ctx)));
        }
        let Some(draining) = &mut self.draining else { return };
        let mut cx = Context::from_waker(&self.waker);
        if Pin::new(draining).poll(&mut cx).is_ready() {
            self.draining = None;
            self.core.link.send(&Outgoing::new(Kind::Drained, 0));
        }
    }
}

fn decode_meta(meta: &[u8]) -> Meta {
    match meta.is_empty() {
        true => Meta::default(),
        false => ksi_protocol::decode(meta).unwrap_or_default(),
    }
}

fn answer(core: &Core, id: u64, outcome: Outcome) {
    let (kind, data) = match outcome {
        Outcome::Accepted(Accepted { request_id, seq }) => {
            let accepted = Outgoing::new(Kind::Accepted, id);
            core.link.send(&Outgoing { arg: seq, name: &request_id, ..accepted });
            return;
        }
        Outcome::Reply(data) => (Kind::Reply, data),
        Outcome::End(data) => (Kind::End, data),
        Outcome::Refusal(refusal) => (Kind::Refusal, encode(&refusal).unwrap_or_default()),
    };
    core.link.send(&Outgoing { payload: &data, ..Outgoing::new(kind, id) });
}
