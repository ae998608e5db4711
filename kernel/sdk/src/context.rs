//! The context of a handler: everything that a plugin can do to the world.

use std::{
    cell::OnceCell,
    future::{Future, poll_fn},
    path::Path,
    pin::pin,
    rc::Rc,
    sync::{
        PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use futures_util::future::{Either, select};
use ksi_abi::Kind;
use ksi_protocol::{Bytes, Code, EventName, Refusal, frame::Caller, meta::Meta, work::Policy};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    call::{Answers, CallOptions, ForwardOptions},
    cancel::CancelToken,
    core::Core,
    link::{Outgoing, encode, send},
    state::State,
};

/// Blocking threads that one instance may have at once; more are refused
/// `busy`, so that a flood of requests cannot exhaust the process.
const BLOCKING_MAX: usize = 64;

/// Time that an answer is given to be with its asker before that one's deadline.
const ANSWER_MARGIN: Duration = Duration::from_millis(100);

/// How grave a line of the log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Level {
    Error = 1,
    Warn = 2,
    Info = 3,
    Debug = 4,
    Trace = 5,
}

/// What a handler is given: who asks, and everything it can do. Cheap to
/// clone; stays on the thread of the plugin.
#[derive(Clone)]
pub struct Ctx {
    core: Rc<Core>,
    envelope: Rc<EnvelopeFacts>,
}

/// Facts of the envelope under way. `meta` is decoded when first asked for.
#[derive(Default)]
pub(crate) struct EnvelopeFacts {
    pub(crate) token: Option<u64>,
    pub(crate) deadline_ms: u64,
    pub(crate) meta: Bytes,
    /// Boxed, since most handlers never ask and every request carries one.
    pub(crate) decoded: OnceCell<Box<Meta>>,
    pub(crate) cancel: CancelToken,
}

impl Ctx {
    pub(crate) fn new(core: Rc<Core>, envelope: EnvelopeFacts) -> Self {
        Self { core, envelope: Rc::new(envelope) }
    }

    pub(crate) fn core(&self) -> &Rc<Core> {
        &self.core
    }

    fn meta(&self) -> &Meta {
        let meta = &self.envelope.meta;
        self.envelope.decoded.get_or_init(|| match meta.is_empty() {
            true => Box::default(),
            false => Box::new(ksi_protocol::decode(meta).unwrap_or_default()),
        })
    }

    /// How this is to be kept, and of a fact when it passed the daemon; only in
    /// what is handed to the plugin that keeps work.
    pub(crate) fn work(&self) -> Option<(Policy, Option<u64>)> {
        let meta = self.meta();
        meta.work.map(|policy| (policy, meta.at_ms))
    }

    /// Parts that the asker has room for; `None` for any number.
    pub(crate) fn credit(&self) -> Option<u32> {
        self.meta().credit
    }

    /// Resolves once the plugin is to finish. The host waits for requests under
    /// way; one that has no end by itself is to be ended then.
    pub async fn draining(&self) {
        self.core.draining().await;
    }

    /// Waits for what may be long in coming; `None` once the plugin is to finish, which it would hold up.
    pub async fn unless_draining<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        match select(pin!(wait), pin!(self.draining())).await {
            Either::Left((there, _)) => Some(there),
            Either::Right(_) => None,
        }
    }

    /// What is to be done should the plugin panic: after that nothing of it is
    /// called or dropped any more, so what others wait for (a lock, a thread) is
    /// to be let go here. The last one that was given counts. It must not wait.
    pub fn at_panic(&self, act: impl FnOnce() + Send + 'static) {
        *self.core.will.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(act));
    }

    /// Who sent the envelope: `session:7`, `plugin:agent`, `daemon`. Set by the
    /// daemon, never by the sender.
    #[must_use]
    pub fn origin(&self) -> &str {
        self.meta().origin.as_deref().unwrap_or("daemon")
    }

    /// In whose name the envelope was sent: `user:alice`, `token:k3f9`,
    /// `plugin:agent`, `daemon`. What a plugin asks while it answers somebody is
    /// asked in that one's name. Set by the daemon, never by the sender.
    #[must_use]
    pub fn principal(&self) -> &str {
        self.meta().caller.as_ref().map_or("daemon", |caller| &caller.principal)
    }

    /// In whose name the envelope was sent, for whoever keeps it and hands it over
    /// later.
    #[must_use]
    pub fn caller(&self) -> Option<Caller> {
        self.meta().caller.clone()
    }

    /// Whose data this is about; `None` for what belongs to nobody, or to the
    /// plugin itself. Set by the daemon, never by the sender.
    #[must_use]
    pub fn tenant(&self) -> Option<&str> {
        let meta = self.meta();
        meta.caller.as_ref().map_or(meta.tenant.as_deref(), |caller| caller.tenant.as_deref())
    }

    /// Whether whoever asks may see what belongs to a tenant, or to nobody.
    #[must_use]
    pub fn sees(&self, tenant: Option<&str>) -> bool {
        self.sees_every_tenant() || tenant == self.tenant()
    }

    /// Whether whoever asks may see what belongs to any tenant.
    #[must_use]
    pub fn sees_every_tenant(&self) -> bool {
        self.meta().caller.as_ref().is_some_and(|caller| caller.every_tenant)
    }

    /// The plugin's own context, for something that belongs to a tenant and goes
    /// on when the request that it came of has ended.
    #[must_use]
    pub fn of_tenant(&self, tenant: Option<&str>) -> Self {
        let meta = Meta { tenant: tenant.map(str::to_owned), ..Meta::default() };
        let decoded = OnceCell::from(Box::new(meta));
        Self::new(self.core.clone(), EnvelopeFacts { decoded, ..EnvelopeFacts::default() })
    }

    /// What ties this envelope to its cause.
    #[must_use]
    pub fn correlation_id(&self) -> Option<&str> {
        self.meta().correlation_id.as_deref()
    }

    /// The asker's key for "this is the same request as before".
    #[must_use]
    pub fn idempotency_key(&self) -> Option<&str> {
        self.meta().idempotency_key.as_deref()
    }

    /// Time that was left for the request when it was handed over.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        (self.envelope.deadline_ms > 0).then(|| Duration::from_millis(self.envelope.deadline_ms))
    }

    /// How long to wait on behalf of whoever asks and wants to wait for so long: no
    /// longer than that the answer can be there before the deadline.
    #[must_use]
    pub fn time_for(&self, wanted: Duration) -> Duration {
        time_for(wanted, self.deadline())
    }

    /// Set when the request is cancelled or its handler has ended.
    #[must_use]
    pub fn cancel_token(&self) -> CancelToken {
        self.envelope.cancel.clone()
    }

    /// The plugin's configuration: its `config` table in the manifest and the
    /// user's file.
    ///
    /// # Errors
    ///
    /// Names the key that does not fit.
    pub fn config<T: DeserializeOwned + Default>(&self) -> Result<T, Refusal> {
        match self.core.config.is_empty() {
            true => Ok(T::default()),
            false => ksi_protocol::decode(&self.core.config).map_err(|refusal| {
                let message = refusal.message.replace("payload does not fit", "configuration does not fit");
                Refusal { message, ..refusal }.hint("`ksi config show` prints it with its sources")
            }),
        }
    }

    /// A directory that is the plugin's own.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.core.dir
    }

    /// A name that no other call on any instance of any start returns.
    #[must_use]
    pub fn unique_id(&self) -> String {
        format!("{:016x}{:x}", self.core.nonce, self.core.next_id())
    }

    /// Asks the owner of an event and waits for its answer.
    ///
    /// # Errors
    ///
    /// The owner's refusal, or the daemon's where nobody answers.
    pub async fn request<Q: Serialize, A: DeserializeOwned>(
        &self,
        event: &str,
        ask: &Q,
    ) -> Result<A, Refusal> {
        self.request_with(event, ask, CallOptions::default()).await
    }

    /// The same with a timeout or key.
    ///
    /// # Errors
    ///
    /// As [`Ctx::request`].
    pub async fn request_with<Q: Serialize, A: DeserializeOwned>(
        &self,
        event: &str,
        ask: &Q,
        options: CallOptions,
    ) -> Result<A, Refusal> {
        self.stream(event, ask, options)?.last().await
    }

    /// Asks for a streamed answer.
    ///
    /// # Errors
    ///
    /// Refuses a payload that cannot be encoded, and anything while the
    /// daemon's queue for this plugin is full. What the owner says comes
    /// through the answers.
    pub fn stream<Q: Serialize>(
        &self,
        event: &str,
        ask: &Q,
        options: CallOptions,
    ) -> Result<Answers, Refusal> {
        let name = EventName::parse(event).map_err(|e| Refusal::new(Code::InvalidFrame, e.to_string()))?;
        let meta = Meta {
            correlation_id: self.meta().correlation_id.clone(),
            idempotency_key: options.idempotency_key,
            expires_in_ms: options.expires_in.map(millis),
            timeout_ms: options.timeout.map(millis),
            parent: if options.detached { None } else { self.envelope.token },
            on_behalf: options.on_behalf,
            chain: self.meta().chain.clone(),
            ..Meta::default()
        };
        Answers::open(&self.core, &name, &encode(ask)?, &encode(&meta)?)
    }

    /// Asks with a payload that is passed on as it is.
    ///
    /// # Errors
    ///
    /// As [`Ctx::stream`].
    pub fn forward(
        &self,
        event: &EventName,
        data: impl AsRef<[u8]>,
        options: ForwardOptions,
    ) -> Result<Answers, Refusal> {
        let meta = Meta {
            origin: options.origin,
            caller: options.caller,
            correlation_id: options.correlation_id.or_else(|| self.meta().correlation_id.clone()),
            idempotency_key: options.idempotency_key,
            timeout_ms: options.timeout.map(millis),
            parent: if options.detached { None } else { self.envelope.token },
            chain: self.meta().chain.clone(),
            ..Meta::default()
        };
        Answers::open(&self.core, event, data.as_ref(), &encode(&meta)?)
    }

    /// What the plugin keeps over restarts.
    #[must_use]
    pub fn state(&self) -> State {
        State::new(self.clone())
    }

    /// What the plugin keeps for the tenant that this is about: what other tenants
    /// have in it is out of reach, whatever keys are used.
    #[must_use]
    pub fn tenant_state(&self) -> State {
        self.state().of_tenant(self.tenant())
    }

    /// Tells whoever listens: of the tenant that this context is about, where it
    /// is about one.
    ///
    /// # Errors
    ///
    /// Refuses what cannot be encoded or may not be emitted, and anything
    /// while the daemon's queue for this plugin is full.
    pub fn emit<T: Serialize>(&self, event: &str, fact: &T) -> Result<(), Refusal> {
        let name = EventName::parse(event).map_err(|e| Refusal::new(Code::InvalidFrame, e.to_string()))?;
        let meta = Meta {
            correlation_id: self.meta().correlation_id.clone(),
            tenant: self.tenant().map(str::to_owned),
            parent: self.envelope.token,
            chain: self.meta().chain.clone(),
            ..Meta::default()
        };
        let meta = if meta == Meta::default() { Bytes::new() } else { encode(&meta)? };
        let payload = encode(fact)?;
        let message =
            Outgoing { name: name.as_str(), payload: &payload, meta: &meta, ..Outgoing::new(Kind::Emit, 0) };
        send(&self.core.link, &message)
    }

    /// Milliseconds since 1970, as the machine's clock says. In a test it moves
    /// with [`crate::testing::FakeHost::advance`].
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.core.link.now_ms()
    }

    /// Waits. For no time at all it waits until everything that has come by now is dealt with.
    pub fn sleep(&self, time: Duration) -> impl Future<Output = ()> + use<> {
        let core = self.core.clone();
        let id = core.next_id();
        core.timers.borrow_mut().insert(id, Default::default());
        core.link.send(&Outgoing { arg: millis(time), ..Outgoing::new(Kind::Timer, id) });
        let sleeping = Sleeping { core, id };
        poll_fn(move |cx| {
            let mut timers = sleeping.core.timers.borrow_mut();
            match timers.get_mut(&sleeping.id) {
                Some(slot) if !slot.fired => {
                    slot.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
                _ => Poll::Ready(()),
            }
        })
    }

    /// Runs a task beside the handlers. It outlives the request, and ends with
    /// the plugin.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.core.spawned.borrow_mut().push(Box::pin(task));
    }

    /// Runs what blocks on a thread of its own, and waits for it. Dropping the
    /// future does not stop the thread: give it a [`CancelToken`].
    ///
    /// # Errors
    ///
    /// `internal` where the work panicked, `busy` where too many threads run.
    pub async fn spawn_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        static RUNNING: AtomicUsize = AtomicUsize::new(0);
        struct Running;
        impl Drop for Running {
            fn drop(&mut self) {
                RUNNING.fetch_sub(1, Ordering::Relaxed);
            }
        }
        if RUNNING.fetch_add(1, Ordering::Relaxed) >= BLOCKING_MAX {
            drop(Running);
            return Err(Refusal::new(Code::Busy, format!("{BLOCKING_MAX} blocking tasks already run"))
                .retry_after_ms(100));
        }
        let running = Running;
        let (sender, receiver) = futures_channel::oneshot::channel();
        std::thread::Builder::new()
            .name("blocking".into())
            .spawn(move || {
                let _running = running;
                // The asker may be gone; then nobody wants the result.
                let _ = sender.send(work());
            })
            .map_err(|error| Refusal::new(Code::Unavailable, format!("cannot start a thread: {error}")))?;
        receiver.await.map_err(|_| Refusal::new(Code::Internal, "blocking work panicked"))
    }

    /// Says that the plugin cannot do all that it is there for, and why: one
    /// sentence. It is asked all the same; `system:health` tells it until
    /// [`Ctx::healthy`], or until the plugin is started anew.
    pub fn degraded(&self, why: &str) {
        let health = Outgoing { arg: 1, payload: why.as_bytes(), ..Outgoing::new(Kind::Health, 0) };
        self.core.link.send(&health);
    }

    /// Takes back [`Ctx::degraded`].
    pub fn healthy(&self) {
        self.core.link.send(&Outgoing::new(Kind::Health, 0));
    }

    /// Writes a line to the daemon's log. Never a prompt, never a secret.
    pub fn log(&self, level: Level, text: &str) {
        let line = Outgoing { arg: level as u64, payload: text.as_bytes(), ..Outgoing::new(Kind::Log, 0) };
        self.core.link.send(&line);
    }

    /// [`Ctx::log`] at [`Level::Error`].
    pub fn error(&self, text: &str) {
        self.log(Level::Error, text);
    }

    /// [`Ctx::log`] at [`Level::Warn`].
    pub fn warn(&self, text: &str) {
        self.log(Level::Warn, text);
    }

    /// [`Ctx::log`] at [`Level::Info`].
    pub fn info(&self, text: &str) {
        self.log(Level::Info, text);
    }

    /// [`Ctx::log`] at [`Level::Debug`].
    pub fn debug(&self, text: &str) {
        self.log(Level::Debug, text);
    }
}

fn time_for(wanted: Duration, left: Option<Duration>) -> Duration {
    left.map_or(wanted, |left| wanted.min(left.saturating_sub(ANSWER_MARGIN)))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A timer that is forgotten when its future is dropped.
struct Sleeping {
    core: Rc<Core>,
    id: u64,
}

impl Drop for Sleeping {
    fn drop(&mut self) {
        let slot = self.core.timers.borrow_mut().remove(&self.id);
        if slot.is_some_and(|slot| !slot.fired) {
            self.core.link.send(&Outgoing::new(Kind::Cancel, self.id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_waited_for_until_it_is_too_late_to_answer() {
        let ms = Duration::from_millis;
        for (wanted, left, waits) in [
            (ms(500), None, ms(500)),
            (ms(500), Some(ms(60_000)), ms(500)),
            (ms(60_000), Some(ms(500)), ms(400)),
            (ms(450), Some(ms(500)), ms(400)),
            (ms(500), Some(ms(50)), ms(0)),
            (ms(0), Some(ms(500)), ms(0)),
            (Duration::MAX, Some(ms(500)), ms(400)),
        ] {
            assert_eq!(time_for(wanted, left), waits, "{wanted:?} of {left:?}");
        }
    }
}
