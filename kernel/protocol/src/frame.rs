//! Frames: what is on a wire, as MessagePack.
//!
//! A frame is a map of one entry, kind to fields: `{"request":{"id":1,…}}`; a
//! kind without fields is its name alone. Unknown fields are skipped, so a
//! newer peer may add some. Payloads are MessagePack of their own inside a
//! `bin`, so a router need not look into them: decoding a frame takes slices
//! of the buffer it arrived in.
//!
//! On a socket a frame is preceded by its length, u32 big-endian. Sessions and
//! plugin links speak the same frames; those marked *link* are refused from a
//! session.
// tidy: long because all frames of the wire stand here.

mod codec;

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    descriptor::Descriptor,
    limits::FRAME_BYTES_MAX,
    name::EventName,
    pattern::Pattern,
    refusal::{Code, Refusal},
    sandbox::{Finding, Report, Sandbox, Targets},
    token::Token,
    work::Policy,
};

use codec::{payload, payload_option};

/// Id of a request or subscription, chosen by whoever sends it and unique
/// among what that side has open on the connection.
pub type Id = u64;

/// One frame. `P` is how payloads are held: owned [`Bytes`] everywhere, a
/// borrowed slice only during decoding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[serde(bound(serialize = "P: AsRef<[u8]>", deserialize = "P: From<&'de [u8]>"))]
pub enum Frame<P = Bytes> {
    /// First frame of a client.
    Hello(Hello),
    /// The daemon's answer to `hello`.
    Welcome(Welcome),
    /// Asks the owner of an event for one answer.
    Request(Request<P>),
    /// Tells whoever listens; nobody answers. With an `id`, the daemon says
    /// how many were told.
    Emit(Emit<P>),
    /// Asks for the events that match a pattern.
    Subscribe(Subscribe),
    /// Ends the subscription `id`.
    Unsubscribe {
        /// The subscription.
        id: Id,
    },
    /// Gives up the request `id`; a `cancelled` refusal ends it.
    Cancel {
        /// The request.
        id: Id,
    },
    /// Allows `n` more chunks of a stream whose request asked for flow control.
    Credit {
        /// The request or subscription.
        id: Id,
        /// How many more.
        n: u32,
    },
    /// The one answer to a request.
    Reply {
        /// The request.
        id: Id,
        /// The answer.
        #[serde(with = "payload")]
        data: P,
    },
    /// A part of a streamed answer.
    Chunk {
        /// The request.
        id: Id,
        /// The part.
        #[serde(with = "payload")]
        data: P,
    },
    /// The last part of a streamed answer: its summary.
    End {
        /// The request.
        id: Id,
        /// The summary.
        #[serde(with = "payload")]
        data: P,
    },
    /// A durable request is safe; its result can be fetched by `request_id`.
    Accepted {
        /// The request.
        id: Id,
        /// Name of the work, valid on every connection and after a restart.
        request_id: String,
        /// Its position in the journal.
        seq: u64,
    },
    /// The request `id`, or without one the connection, is refused.
    Refusal {
        /// The request, where one is meant.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<Id>,
        /// Why.
        refusal: Refusal,
    },
    /// An event for a subscription.
    Event(Event<P>),
    /// Events that a subscription lost because its reader was too slow.
    Gap(Gap),
    /// *Link*: to the plugin host, what to load.
    Setup(Setup<P>),
    /// *Link*: from the plugin host, what of its sandbox is in force.
    Sandboxed {
        /// Every layer.
        report: Report,
    },
    /// *Link*: from the plugin host, what came of a probe.
    Probed {
        /// Every act.
        findings: Vec<Finding>,
    },
    /// *Link*: from the plugin host, what the library declares.
    Described {
        /// The plugin's descriptor.
        descriptor: Box<Descriptor>,
    },
    /// *Link*: from the plugin, it can answer now.
    Ready,
    /// *Link*: to the plugin, finish what you have and say `drained`.
    Drain,
    /// *Link*: from the plugin, nothing is in flight any more.
    Drained,
    /// *Link*: from the plugin, a line for the daemon's log.
    Log {
        /// `error`, `warn`, `info`, `debug` or `trace`.
        level: String,
        /// The line; never a prompt or a secret.
        message: String,
    },
    /// *Link*: from the plugin, whether it can do all that it is there for.
    Health {
        /// What it cannot do at present, one sentence; absent where it is well.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        degraded: Option<String>,
    },
    /// *Link*: to the plugin, are you alive?
    Ping {
        /// Comes back in `pong`.
        id: Id,
    },
    /// *Link*: from the plugin's own loop, yes.
    Pong {
        /// As in `ping`.
        id: Id,
    },
    /// *Link*: to an interceptor, may this pass?
    Intercept(Intercept<P>),
    /// *Link*: the interceptor's word on `intercept`.
    Verdict(Verdict<P>),
}

/// First frame of a client.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::PROTOCOL_VERSION`] of the client.
    pub version: u16,
    /// What the client is, for logs and the monitor: `ksi 0.1.0`.
    pub client: String,
    /// Optional abilities of the client; unknown ones are ignored.
    #[serde(default)]
    pub features: Vec<String>,
    /// Whoever shows one speaks as its principal; without it, as the user of the
    /// system at the other end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Token>,
}

/// The daemon's answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// [`crate::PROTOCOL_VERSION`] of the daemon.
    pub version: u16,
    /// What the daemon is: `ksid 0.1.0`.
    pub server: String,
    /// Optional abilities of the daemon.
    #[serde(default)]
    pub features: Vec<String>,
    /// Name of this connection in logs and `origin`.
    pub session: String,
    /// Changes with every start of the daemon, so that a client can tell a
    /// reconnect from a restart.
    pub boot: String,
}

/// Asks for one answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(serialize = "P: AsRef<[u8]>", deserialize = "P: From<&'de [u8]>"))]
pub struct Request<P = Bytes> {
    /// Names the request in its answers.
    pub id: Id,
    /// What is asked.
    pub event: EventName,
    /// The payload.
    #[serde(with = "payload")]
    pub data: P,
    /// Time after which the asker no longer waits, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Chunks that may be sent before a `credit`; without it, any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credit: Option<u32>,
    /// Ties together all that follows from one cause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// Of a durable event, two requests with one key are one request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// Of a durable event: milliseconds after its acceptance from which it is not
    /// begun any more; at most what the event declares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_ms: Option<u64>,
    /// Who asked; set by the daemon, ignored from a client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// *Link*: in whose name it is asked. Set by the daemon, which takes it from
    /// one plugin alone: the one that keeps work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<Box<Caller>>,
    /// *Link*: from a plugin that asks whatever it is told to: what it asks is
    /// only granted where whoever asked it may ask that, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub on_behalf: bool,
    /// *Link*: the request on whose behalf a plugin asks. The new one ends with
    /// it and never outlives its deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Id>,
    /// *Link*: to the plugin that keeps work, this is durable work, to be kept
    /// by this policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work: Option<Arc<Policy>>,
    /// *Link*: to the plugin that keeps work, with a durable fact, which nobody
    /// asks for: when it passed the router, milliseconds since 1970. The plugin
    /// answers once it is written down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<u64>,
    /// *Link*: what led here, from plugin to plugin; see `PROTOCOL.md`. Ignored from
    /// a client, and never sent to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<Arc<str>>,
}

impl<P> Request<P> {
    /// A request with nothing but what it needs.
    #[must_use]
    pub fn new(id: Id, event: EventName, data: P) -> Self {
        Self {
            id,
            event,
            data,
            timeout_ms: None,
            credit: None,
            correlation_id: None,
            idempotency_key: None,
            expires_in_ms: None,
            origin: None,
            caller: None,
            on_behalf: false,
            parent: None,
            work: None,
            at_ms: None,
            chain: None,
        }
    }
}

/// In whose name something is asked or told, as the daemon knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// `user:alice`, `token:k3f9`, `plugin:agent`, `daemon`.
    pub principal: String,
    /// Whose data it is about; without one, nobody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Whether it may see what belongs to other tenants.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub every_tenant: bool,
}

/// Tells whoever listens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(serialize = "P: AsRef<[u8]>", deserialize = "P: From<&'de [u8]>"))]
pub struct Emit<P = Bytes> {
    /// With an id the daemon answers `{"delivered": n}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Id>,
    /// What happened.
    pub event: EventName,
    /// The payload.
    #[serde(with = "payload")]
    pub data: P,
    /// Ties together all that follows from one cause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// *Link*: the request on whose behalf it happened, which says whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Id>,
    /// *Link*: whose it is, where that request has ended or there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// *Link*: what led here, from plugin to plugin; see `PROTOCOL.md`. Ignored from
    /// a client, and never sent to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<Arc<str>>,
}

impl<P> Emit<P> {
    /// An emission with nothing but what it needs.
    #[must_use]
    pub fn new(event: EventName, data: P) -> Self {
        Self { id: None, event, data, correlation_id: None, parent: None, tenant: None, chain: None }
    }
}

/// How a subscription behaves when its reader is slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// A bounded ring: the oldest event is dropped, and a gap says so.
    #[default]
    Live,
    /// Only the newest event of each name waits.
    Latest,
    /// A cursor in the journal: nothing is dropped.
    Durable,
}

/// Asks for events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscribe {
    /// Names the subscription in its events; unique like a request's.
    pub id: Id,
    /// Which events.
    pub pattern: Pattern,
    /// What happens when the reader is slow.
    #[serde(default)]
    pub class: Class,
    /// Of a durable one: the first position in the journal that is wanted.
    /// Without it, where the consumer has left off; without that, from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_seq: Option<u64>,
    /// Of a durable one: the name under which the daemon keeps how far it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumer: Option<String>,
    /// Of a durable one: events that may be sent before a `credit`; without
    /// it, as many as the reader takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credit: Option<u32>,
}

impl Subscribe {
    /// A subscription with nothing but what it needs.
    #[must_use]
    pub fn new(id: Id, pattern: Pattern, class: Class) -> Self {
        Self { id, pattern, class, since_seq: None, consumer: None, credit: None }
    }
}

/// An event for a subscription. `sub` and `seq` come first, so that the rest
/// can be encoded once for all who receive it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(serialize = "P: AsRef<[u8]>", deserialize = "P: From<&'de [u8]>"))]
pub struct Event<P = Bytes> {
    /// The subscription.
    pub sub: Id,
    /// 1, 2, 3… for each subscription; a hole is announced by a gap.
    pub seq: u64,
    /// What happened.
    pub event: EventName,
    /// The payload.
    #[serde(with = "payload")]
    pub data: P,
    /// Who said so: `session:7`, `plugin:completion`, `daemon`. Those who hear
    /// many events of one origin share it.
    pub origin: Arc<str>,
    /// When it passed the router, milliseconds since 1970.
    pub at_ms: u64,
    /// Ties together all that follows from one cause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// *Link*: whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// *Link*: what led here, from plugin to plugin; see `PROTOCOL.md`. Ignored from
    /// a client, and never sent to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<Arc<str>>,
}

/// Events that a subscription lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The subscription.
    pub sub: Id,
    /// How many: `to_seq - from_seq + 1`.
    pub missed: u64,
    /// The first that was lost.
    pub from_seq: u64,
    /// The last that was lost.
    pub to_seq: u64,
}

/// What a plugin host is to load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(serialize = "P: AsRef<[u8]>", deserialize = "P: From<&'de [u8]>"))]
pub struct Setup<P = Bytes> {
    /// [`crate::PROTOCOL_VERSION`] of the daemon.
    pub version: u16,
    /// Name of the plugin in the manifest.
    pub name: String,
    /// Absolute path of the library.
    pub library: String,
    /// Digest that the library must have, 64 hexadecimal digits; `None` where
    /// any will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Directory that the plugin may call its own.
    pub dir: String,
    /// What it is granted; everything else the host takes from itself.
    #[serde(default)]
    pub sandbox: Box<Sandbox>,
    /// Instead of loading anything: try what the sandbox denies, and end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Box<Targets>>,
    /// Its configuration, a MessagePack map.
    #[serde(with = "payload")]
    pub config: P,
}

/// Where in the life of an envelope an interceptor stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Before a request or emitted event is delivered.
    Before,
    /// Before a reply goes back.
    After,
}

/// Asks an interceptor for its verdict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(serialize = "P: AsRef<[u8]>", deserialize = "P: From<&'de [u8]>"))]
pub struct Intercept<P = Bytes> {
    /// Comes back in the verdict.
    pub id: Id,
    /// Position in the descriptor's `intercepts` of the one that is asked.
    pub index: u32,
    /// Before or after.
    pub stage: Stage,
    /// The event under way.
    pub event: EventName,
    /// Its payload, or the reply's.
    #[serde(with = "payload")]
    pub data: P,
    /// Who sent it.
    pub origin: String,
    /// In whose name it was asked or told; not known of an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<Box<Caller>>,
}

/// An interceptor's word. Neither field: pass unchanged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(serialize = "P: AsRef<[u8]>", deserialize = "P: From<&'de [u8]>"))]
pub struct Verdict<P = Bytes> {
    /// As in the question.
    pub id: Id,
    /// Go on with this payload instead.
    #[serde(default = "none", skip_serializing_if = "Option::is_none", with = "payload_option")]
    pub edit: Option<P>,
    /// Refuse the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refuse: Option<Refusal>,
}

fn none<P>() -> Option<P> {
    None
}

/// Why bytes are no frame.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not MessagePack, not a known kind, a missing field or a wrong type.
    #[error("frame is malformed: {0}")]
    Malformed(#[from] rmp_serde::decode::Error),
    /// Bytes left over after the frame.
    #[error("frame has {0} bytes too many after its end")]
    Trailing(usize),
    /// Longer than the wire allows.
    #[error("frame of {0} bytes is longer than the limit of {FRAME_BYTES_MAX} bytes")]
    TooLarge(usize),
    /// Cannot be encoded.
    #[error("frame cannot be encoded: {0}")]
    Encode(#[from] rmp_serde::encode::Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let code = match error {
            Error::TooLarge(_) => Code::TooLarge,
            _ => Code::InvalidFrame,
        };
        Self::new(code, error.to_string()).hint("PROTOCOL.md describes every frame")
    }
}
