//! One running instance: messages in, handlers run, answers out.
//!
//! A small local executor. A handler is polled once where it arrives, since
//! most answer without waiting; one that waits joins the tasks that are polled
//! when their waker calls.

use std::{
    cell::RefCell,
    collections::HashMap,
    path::PathBuf,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

use futures_util::{
    FutureExt, StreamExt,
    future::{AbortHandle, Abortable, LocalBoxFuture},
    stream::FuturesUnordered,
};
use ksi_abi::{INVALID, Kind, OK};
use ksi_protocol::{Bytes, Code, EventName, Refusal, frame::Stage, meta::Meta};

use crate::{
    cancel::{CancelOnDrop, CancelToken},
    context::{Ctx, EnvelopeFacts},
    core::{Core, Incoming},
    link::{Link, Outgoing, encode},
    plugin::Plugin,
    register::{Event, Intercepted, Outcome, Register},
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
    waker: Waker,
    /// Requests and interceptions whose handlers wait, by token, so that a
    /// cancel finds them.
    running: Rc<RefCell<HashMap<u64, (AbortHandle, CancelToken)>>>,
    draining: Option<LocalBoxFuture<'static, ()>>,
    drain_asked: bool,
}

struct WakeHost(Arc<dyn Link>);

impl Wake for WakeHost {
    fn wake(self: Arc<Self>) {
        self.0.wake();
    }
}

impl<P: Plugin> Instance<P> {
    /// Starts the plugin; it is ready when this returns.
    pub(crate) fn start(
        link: Arc<dyn Link>,
        config: Bytes,
        dir: PathBuf,
        version: &str,
    ) -> Result<Self, Refusal> {
        let core = Rc::new(Core::new(link.clone(), config, dir));
        let ctx = Ctx::new(core.clone(), EnvelopeFacts::default());
        let plugin = Rc::new(P::start(&ctx)?);
        link.send(&Outgoing::new(Kind::Ready, 0));
        // What `start` spawned is polled by the first call of the host.
        link.wake();
        Ok(Self {
            core,
            plugin,
            register: Register::collect(version),
            tasks: FuturesUnordered::new(),
            waker: Waker::from(Arc::new(WakeHost(link))),
            running: Rc::default(),
            draining: None,
            drain_asked: false,
        })
    }

    /// Takes one message and runs until everything waits.
    pub(crate) fn deliver(&mut self, message: Message) -> u32 {
        let status = self.take(message);
        self.run();
        status
    }

    /// Runs until everything waits.
    pub(crate) fn run(&mut self) {
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
        self.finish_drain();
    }

    fn take(&mut self, message: Message) -> u32 {
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
            // Flow control is kept by the daemon's session, so a plugin that
            // does not care is not flooded with it either.
            Kind::Credit => {}
            Kind::Drain => self.drain_asked = true,
            _ => return INVALID,
        }
        OK
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
        let Some(handler) = self.register.requests.get(name.as_str()) else {
            let refusal = Refusal::new(Code::UnknownEvent, format!("{} does not answer `{name}`", P::NAME));
            return answer(&self.core, id, Outcome::Refusal(refusal));
        };
        let handled = handler(self.plugin.clone(), Ctx::new(self.core.clone(), facts), payload, id);
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
        let handler = handler.clone();
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
        let stage = if arg == 0 { Stage::Before } else { Stage::After };
        let Ok(event) = EventName::parse(&name) else { return INVALID };
        let found = self
            .register
            .interceptors
            .iter()
            .find(|(pattern, at, _)| *at == stage && pattern.matches(event.as_str()));
        let Some((_, _, handler)) = found else { return INVALID };
        let handler = handler.clone();
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
        Outcome::Reply(data) => (Kind::Reply, data),
        Outcome::End(data) => (Kind::End, data),
        Outcome::Refusal(refusal) => (Kind::Refusal, encode(&refusal).unwrap_or_default()),
    };
    core.link.send(&Outgoing { payload: &data, ..Outgoing::new(kind, id) });
}
