//! What the plugin under test asks of others, and what the test answers.

use ksi_abi::Kind;
use ksi_protocol::{Refusal, json, meta::Meta};
use serde_json::Value;

use super::{FakeHost, message, value, wire::Sent};
use crate::{instance::Message, plugin::Plugin};

/// A request that the plugin asked of somebody else.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    id: u64,
    /// What was asked.
    pub event: String,
    /// The payload.
    pub data: Value,
    /// What goes with it: key, timeout, on whose behalf, and of a forwarded one
    /// whose it was.
    pub meta: Meta,
}

/// What a test answers to an event, whenever it is asked.
pub(super) type Script = Box<dyn Fn(&Asked) -> Result<Value, Refusal>>;

impl<P: Plugin> FakeHost<P> {
    /// Waits until the plugin asks for this event.
    ///
    /// # Panics
    ///
    /// Where it does not before the deadline.
    pub fn expect(&self, event: &str) -> Asked {
        let sent = self.wait(|sent| sent.kind == Kind::Request && sent.name == event);
        let sent = sent.unwrap_or_else(|| panic!("the plugin did not ask for {event}"));
        Asked::from(sent)
    }

    /// Answers every request of the plugin for this event, from now on, without
    /// the test's doing. Those are not expected any more.
    pub fn script(&self, event: &str, answer: impl Fn(&Asked) -> Result<Value, Refusal> + 'static) {
        self.scripts.borrow_mut().insert(event.into(), Box::new(answer));
        self.run();
    }

    /// Whether the plugin has asked for anything that was not taken yet.
    pub fn has_asked(&self) -> bool {
        self.run();
        self.link.has(|sent| sent.kind == Kind::Request)
    }

    /// Whether the plugin has given up a request of its own.
    pub fn has_cancelled(&self, asked: &Asked) -> bool {
        self.run();
        self.link.has(|sent| sent.kind == Kind::Cancel && sent.id == asked.id)
    }

    /// Answers a request of the plugin.
    pub fn reply(&self, asked: &Asked, data: Value) {
        self.answer(Kind::Reply, asked, &data);
    }

    /// Sends a part of an answer.
    pub fn chunk(&self, asked: &Asked, data: Value) {
        self.answer(Kind::Chunk, asked, &data);
    }

    /// Ends a streamed answer.
    pub fn end(&self, asked: &Asked, data: Value) {
        self.answer(Kind::End, asked, &data);
    }

    /// Refuses a request of the plugin.
    ///
    /// # Panics
    ///
    /// Never in practice: a refusal can be encoded.
    pub fn refuse(&self, asked: &Asked, refusal: Refusal) {
        self.deliver(refused_message(asked.id, &refusal));
    }

    fn answer(&self, kind: Kind, asked: &Asked, data: &Value) {
        let payload = json::from_json(data).unwrap_or_else(|refusal| panic!("{refusal}"));
        self.deliver(message(kind, asked.id, payload));
    }

    /// The answer to a request that the test has nothing to do with.
    pub(super) fn answer_by_itself(&self) -> Option<Message> {
        let scripts = self.scripts.borrow();
        let sent = self.link.take(|sent| {
            let name = sent.name.as_str();
            let is_kept = name.starts_with("space:") && !self.space.is_stalled();
            sent.kind == Kind::Request && (is_kept || scripts.contains_key(name))
        })?;
        let id = sent.id;
        let answer = match scripts.get(&sent.name) {
            Some(script) => script(&Asked::from(sent)).and_then(|data| json::from_json(&data)),
            None => self.space.answer(&sent.name, &sent.payload),
        };
        Some(match answer {
            Ok(data) => message(Kind::Reply, id, data),
            Err(refusal) => refused_message(id, &refusal),
        })
    }
}

impl From<Sent> for Asked {
    fn from(sent: Sent) -> Self {
        let meta = ksi_protocol::decode(&sent.meta).unwrap_or_default();
        Self { id: sent.id, event: sent.name, data: value(&sent.payload), meta }
    }
}

fn refused_message(id: u64, refusal: &Refusal) -> Message {
    let payload = ksi_protocol::encode(refusal).unwrap_or_else(|error| panic!("{error}"));
    message(Kind::Refusal, id, payload)
}
