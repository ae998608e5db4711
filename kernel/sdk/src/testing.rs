//! A fake host: runs a plugin in a test, without a daemon, a process or a
//! clock.
//!
//! Everything is driven by the test: messages go in by calls, what the plugin
//! says is taken out by calls, time moves by [`FakeHost::advance`]. Only
//! threads of [`crate::Ctx::spawn_blocking`] run by themselves; waiting for
//! them has a deadline.
//!
//! What a plugin keeps is in a [`FakeSpace`], which is answered without the
//! test's doing and survives into the next host:
//!
//! ```
//! use ksi_sdk::{prelude::*, testing::{FakeHost, FakeSpace}};
//!
//! /// Counts its starts.
//! struct Starts;
//!
//! impl Plugin for Starts {
//!     const NAME: &'static str = "starts";
//!     const ABOUT: &'static str = "Counts its starts";
//!     const STATE_VERSION: u32 = 1;
//!     fn start(_ctx: &Ctx) -> Result<Self, Refusal> {
//!         Ok(Self)
//!     }
//!     fn register(_on: &mut Register<Self>) {}
//!     async fn open(self: Rc<Self>, ctx: Ctx) -> Result<(), Refusal> {
//!         let state = ctx.state();
//!         let starts = state.get::<u64>("starts").await?.unwrap_or_default().value;
//!         state.put("starts", &(starts + 1)).await.map(drop)
//!     }
//! }
//!
//! let host = FakeHost::<Starts>::start(json!({})).unwrap();
//! let host = host.restart(json!({})).unwrap();
//! assert_eq!(host.space().get("starts"), Some(json!(2)));
//!
//! // A plugin does not touch what a newer release of it has written.
//! let newer = FakeSpace::new();
//! newer.set_state_version(2);
//! let refusal = FakeHost::<Starts>::start_on(&newer, json!({})).err().unwrap();
//! assert_eq!(refusal.code, Code::Conflict);
//! ```

mod asked;
mod space;
mod start;
mod wire;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use ksi_abi::Kind;
use ksi_protocol::{
    Bytes, Code, Descriptor, Refusal, json,
    meta::Meta,
    work::{Accepted, Policy},
};
use serde_json::Value;

pub use self::{asked::Asked, space::FakeSpace};
use self::{
    asked::Script,
    start::Dir,
    wire::{FakeLink, Sent},
};
use crate::{
    instance::{Instance, Message},
    plugin::Plugin,
    register::Register,
};

/// How long the test waits for a thread of the plugin.
const DEADLINE: Duration = Duration::from_secs(60);

/// Who asks where the test does not say.
const ORIGIN: &str = "session:1";

/// A request that a test has opened at the plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call(u64);

/// What the plugin answered.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The one answer.
    Reply(Value),
    /// A part.
    Chunk(Value),
    /// The last part.
    End(Value),
    /// A durable request is safe.
    Accepted(Accepted),
    /// A refusal.
    Refusal(Refusal),
}

/// Runs a plugin in a test.
pub struct FakeHost<P: Plugin> {
    instance: RefCell<Instance<P>>,
    link: Arc<FakeLink>,
    next: Cell<u64>,
    space: FakeSpace,
    scripts: RefCell<HashMap<String, Script>>,
    dir: Dir,
}

impl<P: Plugin> FakeHost<P> {
    /// What the plugin declares.
    #[must_use]
    pub fn descriptor() -> Descriptor {
        Register::<P>::descriptor("0.0.0-test")
    }

    /// Asks and waits for the end, dropping chunks.
    ///
    /// # Errors
    ///
    /// The plugin's refusal.
    pub fn request(&self, event: &str, data: Value) -> Result<Value, Refusal> {
        let call = self.open(event, data);
        loop {
            match self.next(&call) {
                Answer::Reply(value) | Answer::End(value) => return Ok(value),
                Answer::Refusal(refusal) => return Err(refusal),
                Answer::Accepted(Accepted { request_id, seq }) => {
                    return Ok(serde_json::json!({ "request_id": request_id, "seq": seq }));
                }
                Answer::Chunk(_) => {}
            }
        }
    }

    /// Opens a request; its answers are taken with [`FakeHost::next`].
    pub fn open(&self, event: &str, data: Value) -> Call {
        self.open_as(event, data, &Meta { origin: Some(ORIGIN.into()), ..Meta::default() })
    }

    /// The same with facts about the envelope; its `timeout_ms` is the time that the handler is told of.
    ///
    /// # Panics
    ///
    /// On a payload that MessagePack cannot hold.
    pub fn open_as(&self, event: &str, data: Value, meta: &Meta) -> Call {
        let id = self.next.replace(self.next.get() + 1);
        let payload = json::from_json(&data).unwrap_or_else(|refusal| panic!("{refusal}"));
        let arg = meta.timeout_ms.unwrap_or_default();
        let meta = ksi_protocol::encode(meta).unwrap_or_else(|error| panic!("{error}"));
        self.deliver(Message { kind: Kind::Request, id, arg, name: event.into(), payload, meta });
        Call(id)
    }

    /// Hands a request for a durable event to the plugin that keeps work, as
    /// the daemon does. With more facts about it: [`FakeHost::open_as`], whose
    /// meta has the policy as its `work`.
    ///
    /// # Panics
    ///
    /// As [`FakeHost::open_as`].
    pub fn keep(&self, event: &str, data: Value, policy: Policy) -> Call {
        let meta = Meta { origin: Some(ORIGIN.into()), work: Some(policy), ..Meta::default() };
        self.open_as(event, data, &meta)
    }

    /// Hands a durable fact to the plugin that keeps work, as the daemon does.
    ///
    /// # Panics
    ///
    /// As [`FakeHost::open_as`].
    pub fn keep_fact(&self, event: &str, data: Value, at_ms: u64) -> Call {
        let work = Some(Policy::default());
        let meta = Meta { origin: Some(ORIGIN.into()), at_ms: Some(at_ms), work, ..Meta::default() };
        self.open_as(event, data, &meta)
    }

    /// Allows more parts of an answer whose request said how many it takes.
    pub fn credit(&self, call: &Call, parts: u32) {
        self.deliver(Message { arg: parts.into(), ..message(Kind::Credit, call.0, Bytes::new()) });
    }

    /// The next answer to a request.
    ///
    /// # Panics
    ///
    /// Where none comes before the deadline.
    pub fn next(&self, call: &Call) -> Answer {
        let sent = self.wait(|sent| answers(sent, call));
        let sent = sent.unwrap_or_else(|| panic!("the plugin did not answer call {}", call.0));
        match sent.kind {
            Kind::Reply => Answer::Reply(value(&sent.payload)),
            Kind::Chunk => Answer::Chunk(value(&sent.payload)),
            Kind::End => Answer::End(value(&sent.payload)),
            Kind::Accepted => Answer::Accepted(Accepted { request_id: sent.name, seq: sent.arg }),
            _ => Answer::Refusal(ksi_protocol::decode(&sent.payload).unwrap_or_else(|refusal| refusal)),
        }
    }

    /// The next answer, if the plugin has given one already.
    pub fn try_next(&self, call: &Call) -> Option<Answer> {
        self.run();
        let waiting = self.link.has(|sent| answers(sent, call));
        waiting.then(|| self.next(call))
    }

    /// Cancels a request, as the daemon does when its asker goes.
    pub fn cancel(&self, call: &Call) {
        self.deliver(message(Kind::Cancel, call.0, Bytes::new()));
    }

    /// Lets the plugin hear an event, if it listens to it.
    ///
    /// # Panics
    ///
    /// On a payload that MessagePack cannot hold.
    pub fn emit(&self, event: &str, data: Value) {
        let payload = json::from_json(&data).unwrap_or_else(|refusal| panic!("{refusal}"));
        for (index, pattern) in Self::descriptor().listens.iter().enumerate() {
            if pattern.matches(event) {
                let name = event.to_owned();
                self.deliver(Message { name, ..message(Kind::Event, index as u64, payload.clone()) });
            }
        }
    }

    /// Takes what the plugin has emitted so far.
    pub fn emitted(&self) -> Vec<(String, Value)> {
        self.run();
        let mut facts = Vec::new();
        while let Some(sent) = self.take_kind(Kind::Emit) {
            facts.push((sent.name, value(&sent.payload)));
        }
        facts
    }

    /// Waits until the plugin emits this event, and takes it.
    ///
    /// # Panics
    ///
    /// Where it does not before the deadline.
    pub fn expect_emitted(&self, event: &str) -> Value {
        let sent = self.wait(|sent| sent.kind == Kind::Emit && sent.name == event);
        value(&sent.unwrap_or_else(|| panic!("the plugin did not emit {event}")).payload)
    }

    /// Moves the time; timers that are due fire in their order.
    pub fn advance(&self, by: Duration) {
        self.run();
        let until = self.link.now() + by;
        while let Some(due) = self.link.next_timer(until) {
            self.deliver(message(Kind::Timer, due, Bytes::new()));
        }
    }

    /// Asks the plugin to drain; whether it has said that it is done.
    pub fn drain(&self) -> bool {
        self.deliver(message(Kind::Drain, 0, Bytes::new()));
        self.drained()
    }

    /// Whether a drain that was asked for has finished.
    pub fn drained(&self) -> bool {
        self.run();
        self.take_kind(Kind::Drained).is_some()
    }

    /// What the plugin says that it cannot do, where it has said so last.
    pub fn degraded(&self) -> Option<String> {
        self.run();
        let said = self.link.last(|sent| sent.kind == Kind::Health)?;
        (said.arg > 0).then(|| String::from_utf8_lossy(&said.payload).into_owned())
    }

    /// Takes the lines that the plugin has logged, with their levels.
    pub fn logged(&self) -> Vec<(u64, String)> {
        let mut lines = Vec::new();
        while let Some(sent) = self.take_kind(Kind::Log) {
            lines.push((sent.arg, String::from_utf8_lossy(&sent.payload).into_owned()));
        }
        lines
    }

    fn deliver(&self, message: Message) {
        self.instance.borrow_mut().deliver(message);
        self.run();
    }

    /// Runs the plugin until it waits for the test, for the time or for a
    /// thread. Who waits for no time at all comes last.
    fn run(&self) {
        loop {
            while self.link.take_woken() {
                self.instance.borrow_mut().run();
            }
            let now = |id| message(Kind::Timer, id, Bytes::new());
            let due = || self.link.next_timer(self.link.now()).map(now);
            let Some(next) = self.answer_by_itself().or_else(due) else { return };
            self.instance.borrow_mut().deliver(next);
        }
    }

    fn take_kind(&self, kind: Kind) -> Option<Sent> {
        self.link.take(|sent| sent.kind == kind)
    }

    fn wait(&self, wanted: impl Fn(&Sent) -> bool) -> Option<Sent> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            self.run();
            if let Some(sent) = self.link.take(&wanted) {
                return Some(sent);
            }
            if !self.link.wait(&wanted, deadline) {
                return None;
            }
        }
    }
}

fn answers(sent: &Sent, call: &Call) -> bool {
    let answer = matches!(sent.kind, Kind::Reply | Kind::Chunk | Kind::End | Kind::Accepted | Kind::Refusal);
    answer && sent.id == call.0
}

fn message(kind: Kind, id: u64, payload: Bytes) -> Message {
    Message { kind, id, arg: 0, name: String::new(), payload, meta: Bytes::new() }
}

fn value(payload: &[u8]) -> Value {
    json::to_json(payload).unwrap_or_else(|refusal| serde_json::json!({ "undecodable": refusal.message }))
}

/// A refusal in few words, for assertions: `(code, message)`.
#[must_use]
pub fn refused(answer: Answer) -> (Code, String) {
    match answer {
        Answer::Refusal(refusal) => (refusal.code, refusal.message),
        other => (Code::Internal, format!("not refused: {other:?}")),
    }
}
