//! What a plugin answers, hears and emits: the table from event to handler,
//! and the descriptor that comes of it.

use std::{collections::HashMap, future::Future, rc::Rc};

use futures_util::future::LocalBoxFuture;
use ksi_protocol::{
    Bytes, Descriptor, EventName, Pattern, Refusal,
    descriptor::{FactSpec, InterceptSpec, RequestSpec},
    frame::Stage,
};
use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{chunks::Chunks, context::Ctx, link::encode, plugin::Plugin};

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

/// The end of a handled request.
pub(crate) enum Outcome {
    Reply(Bytes),
    End(Bytes),
    Refusal(Refusal),
}

type Handled = LocalBoxFuture<'static, Outcome>;
/// `u64` is the token of the request, for its chunks.
pub(crate) type RequestHandler<P> = Box<dyn Fn(Rc<P>, Ctx, Bytes, u64) -> Handled>;
pub(crate) type EventHandler<P> = Rc<dyn Fn(Rc<P>, Ctx, Event) -> LocalBoxFuture<'static, ()>>;
pub(crate) type InterceptHandler<P> =
    Rc<dyn Fn(Rc<P>, Ctx, Intercepted) -> LocalBoxFuture<'static, Result<Option<Bytes>, Refusal>>>;

/// Collects the events of a plugin.
pub struct Register<P> {
    pub(crate) descriptor: Descriptor,
    pub(crate) requests: HashMap<EventName, RequestHandler<P>>,
    pub(crate) listeners: Vec<(Pattern, EventHandler<P>)>,
    pub(crate) interceptors: Vec<(Pattern, Stage, InterceptHandler<P>)>,
}

impl<P: Plugin> Register<P> {
    pub(crate) fn collect(version: &str) -> Self {
        let mut register = Self {
            descriptor: Descriptor {
                name: P::NAME.into(),
                version: version.into(),
                about: P::ABOUT.into(),
                requests: Vec::new(),
                emits: Vec::new(),
                listens: Vec::new(),
                intercepts: Vec::new(),
                state_version: P::STATE_VERSION,
                child_only: P::CHILD_ONLY,
            },
            requests: HashMap::new(),
            listeners: Vec::new(),
            interceptors: Vec::new(),
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
        self.add::<Q, A>(event, None, run);
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
                    let chunks = Chunks::new(ctx.core().link.clone(), token, ctx.cancel_token());
                    let answer = handler(plugin, ctx, ask, chunks);
                    Box::pin(async move { outcome(answer.await, Outcome::End) })
                }
                Err(refusal) => Box::pin(std::future::ready(Outcome::Refusal(refusal))),
            });
        self.add::<Q, A>(event, Some(schema::<C>()), run);
    }

    fn add<Q: JsonSchema, A: JsonSchema>(
        &mut self,
        event: &str,
        chunk: Option<Value>,
        run: RequestHandler<P>,
    ) {
        let name = EventName::parse(event).unwrap_or_else(|error| panic!("{error}"));
        let request = schema::<Q>();
        let spec =
            RequestSpec { event: name.clone(), about: about(&request), request, reply: schema::<A>(), chunk };
        self.descriptor.requests.push(spec);
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

    /// Declares a fact that the plugin emits. The doc comment of `T` is its
    /// help.
    ///
    /// # Panics
    ///
    /// On a name that is no event name.
    pub fn emits<T: JsonSchema>(&mut self, event: &str) {
        let event = EventName::parse(event).unwrap_or_else(|error| panic!("{error}"));
        let schema = schema::<T>();
        self.descriptor.emits.push(FactSpec { event, about: about(&schema), schema });
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
        self.descriptor.intercepts.push(InterceptSpec { pattern: pattern.clone(), stage, order, fail_open });
        let run: InterceptHandler<P> = Rc::new(move |plugin, ctx, what| Box::pin(handler(plugin, ctx, what)));
        self.interceptors.push((pattern, stage, run));
    }
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
