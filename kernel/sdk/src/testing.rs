//! A fake host: runs a plugin in a test, without a daemon, a process or a
//! clock.
//!
//! Everything is driven by the test: messages go in by calls, what the plugin
//! says is taken out by calls, time moves by [`FakeHost::advance`]. Only
//! threads of [`crate::Ctx::spawn_blocking`] run by themselves; waiting for
//! them has a deadline.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use ksi_abi::{Kind, OK};
use ksi_protocol::{Bytes, Code, Descriptor, Refusal, json, meta::Meta};
use serde_json::Value;

use crate::{
    instance::{Instance, Message},
    link::{Link, Outgoing},
    plugin::Plugin,
    register::Register,
};

/// How long the test waits for a thread of the plugin.
const DEADLINE: Duration = Duration::from_secs(60);

/// One message that the plugin sent.
#[derive(Debug, Clone)]
struct Sent {
    kind: Kind,
    id: u64,
    arg: u64,
    name: String,
    payload: Bytes,
}

#[derive(Default)]
struct Outbox {
    sent: VecDeque<Sent>,
    timers: Vec<(Duration, u64)>,
    now: Duration,
    woken: bool,
}

#[derive(Default)]
struct FakeLink {
    outbox: Mutex<Outbox>,
    changed: Condvar,
}

impl FakeLink {
    fn lock(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Link for FakeLink {
    fn send(&self, message: &Outgoing<'_>) -> u32 {
        let mut outbox = self.lock();
        if message.kind == Kind::Timer {
            let due = outbox.now.saturating_add(Duration::from_millis(message.arg));
            outbox.timers.push((due, message.id));
        } else if message.kind == Kind::Cancel && outbox.timers.iter().any(|(_, id)| *id == message.id) {
            outbox.timers.retain(|(_, id)| *id != message.id);
        } else {
            outbox.sent.push_back(Sent {
                kind: message.kind,
                id: message.id,
                arg: message.arg,
                name: message.name.to_owned(),
                payload: Bytes::copy_from_slice(message.payload),
            });
        }
        self.changed.notify_all();
        OK
    }

    fn wake(&self) {
        self.lock().woken = true;
        self.changed.notify_all();
    }
}

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
    /// A refusal.
    Refusal(Refusal),
}

/// A request that the plugin asked of somebody else.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    id: u64,
    /// What was asked.
    pub event: String,
    /// The payload.
    pub data: Value,
}

/// Runs a plugin in a test.
pub struct FakeHost<P: Plugin> {
    instance: RefCell<Instance<P>>,
    link: Arc<FakeLink>,
    next: Cell<u64>,
    dir: Option<std::path::PathBuf>,
}

impl<P: Plugin> FakeHost<P> {
    /// Starts the plugin with this configuration, in a fresh directory of its
    /// own that goes with the host.
    ///
    /// # Errors
    ///
    /// The refusal of the plugin's `start`.
    ///
    /// # Panics
    ///
    /// Where no directory can be made.
    pub fn start(config: Value) -> Result<Self, Refusal> {
        use std::hash::{BuildHasher, RandomState};
        let unique = RandomState::new().hash_one(std::time::SystemTime::now());
        let dir = std::env::temp_dir().join(format!("ksi-{}-{unique:x}", P::NAME));
        std::fs::create_dir_all(&dir)
            .unwrap_or_else(|error| panic!("cannot make {}: {error}", dir.display()));
        let mut host = Self::start_in(&dir, config)?;
        host.dir = Some(dir);
        Ok(host)
    }

    /// Starts the plugin in a directory that the test keeps.
    ///
    /// # Errors
    ///
    /// The refusal of the plugin's `start`.
    pub fn start_in(dir: &Path, config: Value) -> Result<Self, Refusal> {
        let link = Arc::new(FakeLink::default());
        let config = json::from_json(&config)?;
        let instance = Instance::start(link.clone(), config, dir.to_owned(), "0.0.0-test")?;
        let host = Self { instance: RefCell::new(instance), link, next: Cell::new(1), dir: None };
        host.take_kind(Kind::Ready);
        host.run();
        Ok(host)
    }

    /// What the plugin declares.
    #[must_use]
    pub fn descriptor() -> Descriptor {
        Register::<P>::collect("0.0.0-test").descriptor
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
                Answer::Chunk(_) => {}
            }
        }
    }

    /// Opens a request; its answers are taken with [`FakeHost::next`].
    pub fn open(&self, event: &str, data: Value) -> Call {
        self.open_as(event, data, &Meta { origin: Some("session:1".into()), ..Meta::default() })
    }

    /// The same with facts about the envelope.
    ///
    /// # Panics
    ///
    /// On a payload that MessagePack cannot hold.
    pub fn open_as(&self, event: &str, data: Value, meta: &Meta) -> Call {
        let id = self.next.replace(self.next.get() + 1);
        let payload = json::from_json(&data).unwrap_or_else(|refusal| panic!("{refusal}"));
        let meta = ksi_protocol::encode(meta).unwrap_or_else(|error| panic!("{error}"));
        self.deliver(Message { kind: Kind::Request, id, arg: 0, name: event.into(), payload, meta });
        Call(id)
    }

    /// The next answer to a request.
    ///
    /// # Panics
    ///
    /// Where none comes before the deadline.
    pub fn next(&self, call: &Call) -> Answer {
        let sent = self.wait(|sent| {
            sent.id == call.0 && matches!(sent.kind, Kind::Reply | Kind::Chunk | Kind::End | Kind::Refusal)
        });
        let sent = sent.unwrap_or_else(|| panic!("the plugin did not answer call {}", call.0));
        match sent.kind {
            Kind::Reply => Answer::Reply(value(&sent.payload)),
            Kind::Chunk => Answer::Chunk(value(&sent.payload)),
            Kind::End => Answer::End(value(&sent.payload)),
            _ => Answer::Refusal(ksi_protocol::decode(&sent.payload).unwrap_or_else(|refusal| refusal)),
        }
    }

    /// The next answer, if the plugin has given one already.
    pub fn try_next(&self, call: &Call) -> Option<Answer> {
        self.run();
        let waiting = self.link.lock().sent.iter().any(|sent| {
            sent.id == call.0 && matches!(sent.kind, Kind::Reply | Kind::Chunk | Kind::End | Kind::Refusal)
        });
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

    /// Waits until the plugin asks for this event.
    ///
    /// # Panics
    ///
    /// Where it does not before the deadline.
    pub fn expect(&self, event: &str) -> Asked {
        let sent = self.wait(|sent| sent.kind == Kind::Request && sent.name == event);
        let sent = sent.unwrap_or_else(|| panic!("the plugin did not ask for {event}"));
        Asked { id: sent.id, event: sent.name, data: value(&sent.payload) }
    }

    /// Whether the plugin has asked for anything that was not taken yet.
    pub fn has_asked(&self) -> bool {
        self.run();
        self.link.lock().sent.iter().any(|sent| sent.kind == Kind::Request)
    }

    /// Whether the plugin has given up a request of its own.
    pub fn has_cancelled(&self, asked: &Asked) -> bool {
        self.run();
        self.link.lock().sent.iter().any(|sent| sent.kind == Kind::Cancel && sent.id == asked.id)
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
        let payload = ksi_protocol::encode(&refusal).unwrap_or_else(|error| panic!("{error}"));
        self.deliver(message(Kind::Refusal, asked.id, payload));
    }

    /// Moves the time; timers that are due fire in their order.
    pub fn advance(&self, by: Duration) {
        self.run();
        let until = self.link.lock().now + by;
        loop {
            let due = {
                let mut outbox = self.link.lock();
                let next = (0..outbox.timers.len()).min_by_key(|&i| outbox.timers[i]);
                match next.filter(|&i| outbox.timers[i].0 <= until) {
                    Some(i) => {
                        let (at, id) = outbox.timers.remove(i);
                        outbox.now = at;
                        id
                    }
                    None => {
                        outbox.now = until;
                        break;
                    }
                }
            };
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

    /// Takes the lines that the plugin has logged, with their levels.
    pub fn logged(&self) -> Vec<(u64, String)> {
        let mut lines = Vec::new();
        while let Some(sent) = self.take_kind(Kind::Log) {
            lines.push((sent.arg, String::from_utf8_lossy(&sent.payload).into_owned()));
        }
        lines
    }

    fn answer(&self, kind: Kind, asked: &Asked, data: &Value) {
        let payload = json::from_json(data).unwrap_or_else(|refusal| panic!("{refusal}"));
        self.deliver(message(kind, asked.id, payload));
    }

    fn deliver(&self, message: Message) {
        self.instance.borrow_mut().deliver(message);
        self.run();
    }

    fn run(&self) {
        while std::mem::take(&mut self.link.lock().woken) {
            self.instance.borrow_mut().run();
        }
    }

    fn take_kind(&self, kind: Kind) -> Option<Sent> {
        let mut outbox = self.link.lock();
        let at = outbox.sent.iter().position(|sent| sent.kind == kind)?;
        outbox.sent.remove(at)
    }

    fn wait(&self, wanted: impl Fn(&Sent) -> bool) -> Option<Sent> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            self.run();
            let mut outbox = self.link.lock();
            if let Some(at) = outbox.sent.iter().position(&wanted) {
                return outbox.sent.remove(at);
            }
            if outbox.woken {
                continue;
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            drop(self.link.changed.wait_timeout(outbox, left));
        }
    }
}

impl<P: Plugin> Drop for FakeHost<P> {
    fn drop(&mut self) {
        if let Some(dir) = &self.dir {
            // A directory that cannot be removed is the temporary directory's.
            let _ = std::fs::remove_dir_all(dir);
        }
    }
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
