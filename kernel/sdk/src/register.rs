//! What a plugin answers, hears and emits: the table from event to handler,
//! and the descriptor that comes of it.

use std::{collections::HashMap, future::Future, rc::Rc};

use futures_util::future::LocalBoxFuture;
use ksi_protocol::{
    Bytes, Descriptor, EventName, Pattern, Refusal,
    descriptor::{FactSpec, InterceptSpec, RequestSpec},
    frame::Stage,
    work::{Accepted, Policy},
};
use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{chunks::Chunks, context::Ctx, core::FlowGuard, link::encode, plugin::Plugin};

/// An event that a listener hears.
#[derive(Debug, Clone)]
pub struct Event {
    /// Its name.
    pub event: EventName,
    /// Its payload, MessagePack.
    pub data: Bytes,
    /// Who said so.
    pub origin: String,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
}

impl Event {
    /// The payload as a type.
    ///
    /// # Errors
    ///
    /// `invalid_payload` where it does not fit.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        ksi_protocol::decode(&self.data)
    }
}

/// A request for a durable event, as the plugin that keeps work is handed it.
/// Who asked, with which key and what it belongs to are in the context.
#[derive(Debug, Clone)]
pub struct Kept {
    /// What is asked.
    pub event: EventName,
    /// The payload, MessagePack, as it is to be passed on.
    pub data: Bytes,
    /// How it is to be carried out.
    pub policy: Policy,
}

/// An envelope that an interceptor may edit, refuse or pass.
#[derive(Debug, Clone)]
pub struct Intercepted {
    /// The event under way.
    pub event: EventName,
    /// Its payload, or the reply's.
    pub data: Bytes,
    /// Who sent it.
    pub origin: String,
    /// Before or after.
    pub stage: Stage,
}

impl Intercepted {
    /// The payload as a type.
    ///
    /// # Errors
    ///
    /// `invalid_payload` where it does not fit.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        ksi_protocol::decode(&self.data)
    }
}

/// The end of a handled request.
pub(crate) enum Outcome {
    Reply(Bytes),
    End(Bytes),
    Accepted(Accepted),
    Refusal(Refusal),
}

pub(crate) type Handled = LocalBoxFuture<'static, Outcome>;
/// `u64` is the token of the request, for its chunks.
pub(crate) type RequestHandler<P> = Box<dyn Fn(Rc<P>, Ctx, Bytes, u64) -> Handled>;
pub(crate) type KeepHandler<P> = Box<dyn Fn(Rc<P>, Ctx, Kept) -> Handled>;
pub(crate) type FactHandler<P> = Box<dyn Fn(Rc<P>, Ctx, Event) -> Handled>;
pub(crate) type EventHandler<P> = Rc<dyn Fn(Rc<P>, Ctx, Event) -> LocalBoxFuture<'static, ()>>;
pub(crate) type InterceptHandler<P> =
    Rc<dyn Fn(Rc<P>, Ctx, Intercepted) -> LocalBoxFuture<'static, Result<Option<Bytes>, Refusal>>>;

/// Collects the events of a plugin.
pub struct Register<P> {
    /// What the plugin says of itself. Complete only where `describes`: schemas
    /// take most of the time of a start, and an instance has no use for them.
    descriptor: Descriptor,
    describes: bool,
    pub(crate) requests: HashMap<EventName, RequestHandler<P>>,
    pub(crate) listeners: Vec<(Pattern, EventHandler<P>)>,
    pub(crate) interceptors: Vec<(Stage, InterceptHandler<P>)>,
    pub(crate) keep: Option<KeepHandler<P>>,
    pub(crate) keep_facts: Option<FactHandler<P>>,
}

impl<P: Plugin> Register<P> {
    /// What the plugin of this version says of itself.
    pub(crate) fn descriptor(version: &str) -> Descriptor {
        let register = Self::collect(version, true);
        Descriptor { keeps_work: register.keeps_work(), ..register.descriptor }
    }

    /// What an instance answers, hears and has a word in.
    pub(crate) fn handlers() -> Self {
        Self::collect("", false)
    }

    fn collect(version: &str, describes: bool) -> Self {
        let mut register = Self {
            descriptor: Descriptor {
                name: P::NAME.into(),
                version: version.into(),
                about: P::ABOUT.into(),
                requests: Vec::new(),
                emits: Vec::new(),
                calls: Vec::new(),
                listens: Vec::new(),
                intercepts: Vec::new(),
                state_version: P::STATE_VERSION,
                child_only: P::CHILD_ONLY,
                keeps_work: false,
            },
            describes,
            requests: HashMap::new(),
            listeners: Vec::new(),
            interceptors: Vec::new(),
            keep: None,
            keep_facts: None,
        };
        P::register(&mut register);
        register
    }

    /// Answers `event` with `handler`. The doc comment of `Q` is the event's
    /// help, those of its fields the help of the fields.
    ///
    /// # Panics
    ///
    /// On a name that is no event name or is registered twice: a mistake of
    /// the author that shows at the first start.
    pub fn request<Q, A, F>(&mut self, event: &str, handler: impl Fn(Rc<P>, Ctx, Q) -> F + 'static)
    where
        Q: DeserializeOwned + JsonSchema + 'static,
        A: Serialize + JsonSchema + 'static,
        F: Future<Output = Result<A, Refusal>> + 'static,
    {
        let run: RequestHandler<P> =
            Box::new(move |plugin, ctx, data, _| match ksi_protocol::decode(&data) {
                Ok(ask) => {
                    let answer = handler(plugin, ctx, ask);
                    Box::pin(async move { outcome(answer.await, Outcome::Reply) })
                }
                Err(refusal) => Box::pin(std::future::ready(Outcome::Refusal(refusal))),
            });
        self.add::<Q, A>(event, || None, run);
    }

    /// Answers `event` in parts of type `C`, ending with an `A`.
    ///
    /// # Panics
    ///
    /// As [`Register::request`].
    pub fn stream<Q, C, A, F>(
        &mut self,
        event: &str,
        handler: impl Fn(Rc<P>, Ctx, Q, Chunks<C>) -> F + 'static,
    ) where
        Q: DeserializeOwned + JsonSchema + 'static,
        C: Serialize + JsonSchema + 'static,
        A: Serialize + JsonSchema + 'static,
        F: Future<Output = Result<A, Refusal>> + 'static,
    {
        let run: RequestHandler<P> =
            Box::new(move |plugin, ctx, data, token| match ksi_protocol::decode(&data) {
                Ok(ask) => {
                    let (chunks, flow) = open_chunks(&ctx, token);
                    let answer = handler(plugin, ctx, ask, chunks);
                    Box::pin(async move {
                        let answer = answer.await;
                        drop(flow);
                        outcome(answer, Outcome::End)
                    })
                }
                Err(refusal) => Box::pin(std::future::ready(Outcome::Refusal(refusal))),
            });
        self.add::<Q, A>(event, || Some(schema::<C>()), run);
    }

    /// Answers `event` with payloads that are passed on as they are. `Q` and `A`
    /// only tell others what they look like.
    ///
    /// # Panics
    ///
    /// As [`Register::request`].
    pub fn request_raw<Q, A, F>(&mut self, event: &str, handler: impl Fn(Rc<P>, Ctx, Bytes) -> F + 'static)
    where
        Q: JsonSchema,
        A: JsonSchema,
        F: Future<Output = Result<Bytes, Refusal>> + 'static,
    {
        let run: RequestHandler<P> = Box::new(move |plugin, ctx, data, _| {
            let answer = handler(plugin, ctx, data);
            Box::pin(async move { answer.await.map_or_else(Outcome::Refusal, Outcome::Reply) })
        });
        self.add::<Q, A>(event, || None, run);
    }

    /// Answers `event` in parts with payloads that are passed on as they are,
    /// [`Chunks::send_raw`] for the parts. `Q`, `C` and `A` only tell others what
    /// they look like.
    ///
    /// # Panics
    ///
    /// As [`Register::request`].
    pub fn stream_raw<Q, C, A, F>(
        &mut self,
        event: &str,
        handler: impl Fn(Rc<P>, Ctx, Bytes, Chunks<C>) -> F + 'static,
    ) where
        Q: JsonSchema,
        C: Serialize + JsonSchema + 'static,
        A: JsonSchema,
        F: Future<Output = Result<Bytes, Refusal>> + 'static,
    {
        let run: RequestHandler<P> = Box::new(move |plugin, ctx, data, token| {
            let (chunks, flow) = open_chunks(&ctx, token);
            let answer = handler(plugin, ctx, data, chunks);
            Box::pin(async move {
                let answer = answer.await;
                drop(flow);
                answer.map_or_else(Outcome::Refusal, Outcome::End)
            })
        });
        self.add::<Q, A>(event, || Some(schema::<C>()), run);
    }

    /// Keeps work: requests for events that are declared durable are handed to
    /// this handler, whoever answers them. It returns once the request is safe;
    /// later the plugin hands it to its owner with [`Ctx::forward`]. One plugin
    /// at a time keeps work.
    ///
    /// A handler runs up to its first `await` in the order in which requests
    /// come.
    ///
    /// # Panics
    ///
    /// Where it is called twice.
    pub fn keep<F>(&mut self, handler: impl Fn(Rc<P>, Ctx, Kept) -> F + 'static)
    where
        F: Future<Output = Result<Accepted, Refusal>> + 'static,
    {
        let run: KeepHandler<P> = Box::new(move |plugin, ctx, kept| {
            let answer = handler(plugin, ctx, kept);
            Box::pin(async move { answer.await.map_or_else(Outcome::Refusal, Outcome::Accepted) })
        });
        assert!(self.keep.replace(run).is_none(), "work is kept twice");
    }

    /// Hears every fact that is declared durable, whoever emits it, in the order
    /// in which they come up to its first `await`. It returns once the fact is
    /// safe, or refuses it; the emitter is not told. The daemon hands over no
    /// more facts than the plugin may hold requests.
    ///
    /// # Panics
    ///
    /// Where it is called twice.
    pub fn keep_facts<F>(&mut self, handler: impl Fn(Rc<P>, Ctx, Event) -> F + 'static)
    where
        F: Future<Output = Result<(), Refusal>> + 'static,
    {
        let run: FactHandler<P> = Box::new(move |plugin, ctx, fact| {
            let answer = handler(plugin, ctx, fact);
            let done = |()| Outcome::Reply(ksi_protocol::empty());
            Box::pin(async move { answer.await.map_or_else(Outcome::Refusal, done) })
        });
        assert!(self.keep_facts.replace(run).is_none(), "facts are kept twice");
    }

    /// Whether durable requests or facts are handed to it.
    pub(crate) fn keeps_work(&self) -> bool {
        self.keep.is_some() || self.keep_facts.is_some()
    }

    fn add<Q: JsonSchema, A: JsonSchema>(
        &mut self,
        event: &str,
        chunk: impl FnOnce() -> Option<Value>,
        run: RequestHandler<P>,
    ) {
        let name = EventName::parse(event).unwrap_or_else(|error| panic!("{error}"));
        if self.describes {
            let (request, reply) = (schema::<Q>(), schema::<A>());
            let about = about(&request);
            self.descriptor.requests.push(RequestSpec {
                event: name.clone(),
                about,
                request,
                reply,
                chunk: chunk(),
            });
        }
        assert!(self.requests.insert(name, run).is_none(), "{event} is registered twice");
    }

    /// Hears every event that matches `pattern`.
    ///
    /// # Panics
    ///
    /// On a pattern that is none.
    pub fn event<F>(&mut self, pattern: &str, handler: impl Fn(Rc<P>, Ctx, Event) -> F + 'static)
    where
        F: Future<Output = ()> + 'static,
    {
        let pattern = Pattern::parse(pattern).unwrap_or_else(|error| panic!("{error}"));
        self.descriptor.listens.push(pattern.clone());
        let run: EventHandler<P> = Rc::new(move |plugin, ctx, event| Box::pin(handler(plugin, ctx, event)));
        self.listeners.push((pattern, run));
    }

    /// Declares that the plugin asks for events that match `pattern`: it may ask
    /// for nothing that it has not declared, and for this as far as the
    /// manifest's `may_call` grants it. What it keeps itself needs no word.
    ///
    /// # Panics
    ///
    /// On a pattern that is none.
    pub fn calls(&mut self, pattern: &str) {
        self.descriptor.calls.push(Pattern::parse(pattern).unwrap_or_else(|error| panic!("{error}")));
    }

    /// Declares a fact that the plugin emits: it may emit nothing else, and this
    /// as far as the manifest's `emits` grants it. The doc comment of `T` is its
    /// help.
    ///
    /// # Panics
    ///
    /// On a name that is no event name.
    pub fn emits<T: JsonSchema>(&mut self, event: &str) {
        let event = EventName::parse(event).unwrap_or_else(|error| panic!("{error}"));
        if self.describes {
            let schema = schema::<T>();
            self.descriptor.emits.push(FactSpec { event, about: about(&schema), schema });
        }
    }

    /// Has a word before or after events that match `pattern`: the handler
    /// answers `Ok(None)` to pass, `Ok(Some(payload))` to edit, or refuses.
    ///
    /// # Panics
    ///
    /// On a pattern that is none.
    pub fn intercept<F>(
        &mut self,
        pattern: &str,
        stage: Stage,
        order: i32,
        fail_open: bool,
        handler: impl Fn(Rc<P>, Ctx, Intercepted) -> F + 'static,
    ) where
        F: Future<Output = Result<Option<Bytes>, Refusal>> + 'static,
    {
        let pattern = Pattern::parse(pattern).unwrap_or_else(|error| panic!("{error}"));
        self.descriptor.intercepts.push(InterceptSpec { pattern, stage, order, fail_open });
        let run: InterceptHandler<P> = Rc::new(move |plugin, ctx, what| Box::pin(handler(plugin, ctx, what)));
        self.interceptors.push((stage, run));
    }
}

/// Where the parts of an answer go, and what counts the room for them.
fn open_chunks<C: Serialize>(ctx: &Ctx, token: u64) -> (Chunks<C>, Option<FlowGuard>) {
    let flow = ctx.credit().map(|room| ctx.core().open_flow(token, room));
    let room = flow.as_ref().map(|guard| guard.flow.clone());
    (Chunks::new(ctx.core().link.clone(), token, ctx.cancel_token(), room), flow)
}

fn outcome<A: Serialize>(answer: Result<A, Refusal>, end: fn(Bytes) -> Outcome) -> Outcome {
    match answer.and_then(|answer| encode(&answer)) {
        Ok(data) => end(data),
        Err(refusal) => Outcome::Refusal(refusal),
    }
}

fn schema<T: JsonSchema>() -> Value {
    schemars::schema_for!(T).to_value()
}

/// The help of a type: its doc comment, as schemars reports it.
fn about(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().to_owned()
}
