//! One of every frame, at its smallest and at its fullest, and the list of
//! all kinds as the decoder itself knows it.

use std::fmt;

use ksi_protocol::{
    Bytes, Code, Descriptor, EventName, Frame, Pattern, Refusal,
    descriptor::{FactSpec, InterceptSpec, RequestSpec},
    frame::{
        Caller, Class, Emit, Event, Gap, Hello, Intercept, Request, Setup, Stage, Subscribe, Verdict, Welcome,
    },
    sandbox::{Act, Cgroup, Finding, Layer, Limits, Network, Report, Sandbox, Standing, Targets},
    token::Token,
    work::Policy,
};
use serde::{
    Deserialize, Deserializer,
    de::{Error, Visitor},
    forward_to_deserialize_any,
};
use serde_json::{Value, json};

/// The names of all kinds, as the decoder declares them.
pub(crate) fn kinds() -> &'static [&'static str] {
    match Frame::<Bytes>::deserialize(Variants) {
        Err(Names(names)) => names,
        Ok(_) => unreachable!("the deserializer only asks for names"),
    }
}

/// The name under which a frame is on the wire.
pub(crate) fn kind(frame: &Frame) -> String {
    match serde_json::to_value(frame).unwrap() {
        Value::String(name) => name,
        Value::Object(map) => map.keys().next().unwrap().clone(),
        other => unreachable!("{other} is no frame"),
    }
}

/// A deserializer that does nothing but ask an enum for its variants.
struct Variants;

impl<'de> Deserializer<'de> for Variants {
    type Error = Names;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Names> {
        Err(Names(&[]))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Names> {
        Err(Names(variants))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

#[derive(Debug)]
struct Names(&'static [&'static str]);

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl std::error::Error for Names {}

impl Error for Names {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self(&[])
    }
}

fn name(text: &str) -> EventName {
    EventName::parse(text).unwrap()
}

fn pattern(text: &str) -> Pattern {
    Pattern::parse(text).unwrap()
}

fn data(value: &Value) -> Bytes {
    ksi_protocol::encode(value).unwrap()
}

/// Every sample with its name. Keys of JSON objects are in the order of the
/// alphabet, so that the bytes are the same whether or not `serde_json` keeps
/// the order in which they are written here.
/// A name is `KIND` or `KIND-VARIETY`.
pub(crate) fn all() -> Vec<(&'static str, Frame)> {
    let mut samples = questions();
    samples.extend(answers());
    samples.extend(link());
    samples
}

fn caller(principal: &str, every_tenant: bool) -> Box<Caller> {
    Box::new(Caller { principal: principal.into(), tenant: Some("acme".into()), every_tenant })
}

fn questions() -> Vec<(&'static str, Frame)> {
    let request = Request::new(1, name("system:health"), ksi_protocol::empty());
    let full = Request {
        timeout_ms: Some(30_000),
        credit: Some(16),
        correlation_id: Some("c-1".into()),
        idempotency_key: Some("order-7".into()),
        origin: Some("session:2".into()),
        caller: Some(caller("user:ada", true)),
        on_behalf: true,
        parent: Some(11),
        ..Request::new(u64::MAX, name("completion:request"), data(&json!({"max_tokens": 8, "prompt": "hi"})))
    };
    let expiring = Request {
        expires_in_ms: Some(600_000),
        ..Request::new(13, name("mail:send"), data(&json!({"to": "ada"})))
    };
    let kept = Request {
        timeout_ms: Some(60_000),
        origin: Some("session:2".into()),
        caller: Some(caller("token:k3f9", false)),
        work: Some(Policy { attempts: 3, repeat: true, ..Policy::default() }.into()),
        ..Request::new(12, name("mail:send"), data(&json!({"to": "ada"})))
    };
    let fact = Request { timeout_ms: None, at_ms: Some(1_763_500_000_000), ..kept.clone() };
    let emit = Emit::new(name("my:event"), data(&json!({"n": 1})));
    let chained = || Some("a:b@plugin:one c:d@plugin:two".into());
    let counted = Emit { id: Some(9), correlation_id: Some("c-1".into()), ..emit.clone() };
    let owned = Emit { parent: Some(11), tenant: Some("acme".into()), ..emit.clone() };
    vec![
        (
            "hello",
            Frame::Hello(Hello { version: 1, client: "ksi 0.1.0".into(), features: vec![], token: None }),
        ),
        (
            "hello-features",
            Frame::Hello(Hello {
                version: 1,
                client: "x".into(),
                features: vec!["later".into()],
                token: None,
            }),
        ),
        (
            "hello-token",
            Frame::Hello(Hello {
                version: 1,
                client: "x".into(),
                token: Some(Token::of("0a1b2c3d", &"0123456789abcdef".repeat(4))),
                ..Hello::default()
            }),
        ),
        ("request", Frame::Request(request)),
        ("request-chained", Frame::Request(Request { chain: chained(), ..full.clone() })),
        ("request-full", Frame::Request(full)),
        ("request-expiring", Frame::Request(expiring)),
        ("request-kept", Frame::Request(kept)),
        ("request-fact", Frame::Request(fact)),
        ("emit", Frame::Emit(emit)),
        ("emit-chained", Frame::Emit(Emit { chain: chained(), ..counted.clone() })),
        ("emit-counted", Frame::Emit(counted)),
        ("emit-owned", Frame::Emit(owned)),
        ("subscribe", Frame::Subscribe(Subscribe::new(3, pattern("agent:*"), Class::Live))),
        ("subscribe-latest", Frame::Subscribe(Subscribe::new(300, pattern("**"), Class::Latest))),
        ("subscribe-durable", Frame::Subscribe(Subscribe::new(4, pattern("a:b"), Class::Durable))),
        ("unsubscribe", Frame::Unsubscribe { id: 3 }),
        ("cancel", Frame::Cancel { id: 1 }),
        ("credit", Frame::Credit { id: 1, n: 32 }),
    ]
}

fn answers() -> Vec<(&'static str, Frame)> {
    let payload = data(&json!({"text": "hi"}));
    let full = Refusal::new(Code::TooLarge, "prompt of 5000 tokens is longer than 1024")
        .hint("shorten it")
        .retry_after_ms(250)
        .details(json!({"limit": 1024, "tokens": 5000}));
    let event = Event {
        sub: 3,
        seq: 1,
        event: name("agent:spawned"),
        data: payload.clone(),
        origin: "plugin:agent".into(),
        at_ms: 1_790_000_000_000,
        correlation_id: None,
        tenant: None,
        chain: None,
    };
    let chained = Event { chain: Some("a:b@plugin:one c:d@plugin:two".into()), ..event.clone() };
    vec![
        (
            "welcome",
            Frame::Welcome(Welcome {
                version: 1,
                server: "ksid 0.1.0".into(),
                features: vec![],
                session: "session:2".into(),
                boot: "6f1c".into(),
            }),
        ),
        ("reply", Frame::Reply { id: 1, data: payload.clone() }),
        ("reply-empty", Frame::Reply { id: 128, data: ksi_protocol::empty() }),
        ("chunk", Frame::Chunk { id: 1, data: payload.clone() }),
        ("end", Frame::End { id: 1, data: payload }),
        ("accepted", Frame::Accepted { id: 1, request_id: "r-9".into(), seq: 41 }),
        ("refusal", Frame::Refusal { id: Some(1), refusal: full }),
        (
            "refusal-connection",
            Frame::Refusal { id: None, refusal: Refusal::new(Code::InvalidFrame, "no frame") },
        ),
        ("event", Frame::Event(event.clone())),
        ("event-chained", Frame::Event(chained)),
        (
            "event-correlated",
            Frame::Event(Event { correlation_id: Some("c-1".into()), tenant: Some("acme".into()), ..event }),
        ),
        ("gap", Frame::Gap(Gap { sub: 3, missed: 70_000, from_seq: 2, to_seq: 70_001 })),
    ]
}

fn link() -> Vec<(&'static str, Frame)> {
    let verdict = Verdict { id: 5, edit: None, refuse: None };
    let edit = Verdict { edit: Some(data(&json!({"prompt": "changed"}))), ..verdict.clone() };
    let refuse = Verdict { refuse: Some(Refusal::new(Code::Denied, "not here")), ..verdict.clone() };
    let intercept = Intercept {
        id: 5,
        index: 1,
        stage: Stage::Before,
        event: name("completion:request"),
        data: data(&json!({"prompt": "hi"})),
        origin: "session:2".into(),
        caller: Some(caller("user:ada", false)),
    };
    vec![
        (
            "setup",
            Frame::Setup(Setup {
                version: 1,
                name: "echo".into(),
                library: "/opt/ksi/libplugin_echo.so".into(),
                sha256: None,
                dir: "/home/me/.local/state/ksi/plugins/echo".into(),
                sandbox: Box::new(sandbox()),
                probe: None,
                config: ksi_protocol::empty(),
            }),
        ),
        (
            "setup-probe",
            Frame::Setup(Setup {
                version: 1,
                name: "echo".into(),
                library: "/opt/ksi/libplugin_echo.so".into(),
                sha256: None,
                dir: "/home/me/.local/state/ksi/plugins/echo".into(),
                sandbox: Box::default(),
                probe: Some(Box::new(Targets {
                    outside: "/home/me/.local/state/ksi/probe-7".into(),
                    port: 40001,
                    socket: "/run/user/1000/ksi/ksid.sock".into(),
                    daemon: 4242,
                    network: "net:[4026531840]".into(),
                })),
                config: ksi_protocol::empty(),
            }),
        ),
        ("sandboxed", Frame::Sandboxed { report: report() }),
        (
            "probed",
            Frame::Probed {
                findings: vec![
                    Finding { act: Act::ReadOutside, denied: true, detail: "EACCES".into() },
                    Finding { act: Act::Memory, denied: false, detail: "there is no limit".into() },
                ],
            },
        ),
        ("described", Frame::Described { descriptor: Box::new(descriptor()) }),
        ("ready", Frame::Ready),
        ("drain", Frame::Drain),
        ("drained", Frame::Drained),
        ("log", Frame::Log { level: "info".into(), message: "model loaded".into() }),
        ("health", Frame::Health { degraded: None }),
        ("health-degraded", Frame::Health { degraded: Some("the disk is full".into()) }),
        ("ping", Frame::Ping { id: 6 }),
        ("pong", Frame::Pong { id: 6 }),
        ("intercept", Frame::Intercept(intercept.clone())),
        ("intercept-after", Frame::Intercept(Intercept { stage: Stage::After, caller: None, ..intercept })),
        ("verdict", Frame::Verdict(verdict)),
        ("verdict-edit", Frame::Verdict(edit)),
        ("verdict-refuse", Frame::Verdict(refuse)),
    ]
}

fn sandbox() -> Sandbox {
    Sandbox {
        read: vec!["/srv/models".into()],
        write: vec!["/dev/dri".into()],
        network: Network::Ports(vec![53, 443]),
        listen: vec![8080],
        unix: true,
        exec: true,
        gpu: true,
        limits: Limits {
            memory_bytes: Some(1 << 30),
            files: Some(256),
            file_bytes: Some(1 << 24),
            processes: Some(64),
            cpu_percent: Some(150),
        },
        disable: vec![Layer::Landlock],
        require: Some(Layer::Seccomp),
        writable: vec!["/dev/dri".into(), "/srv/shared".into()],
        hide: vec!["/run/user/1000/ksi".into()],
        cgroup: Cgroup::Holds("/sys/fs/cgroup/ksi/echo-1".into()),
    }
}

fn report() -> Report {
    let on = |layer| Standing { layer, on: true, why: String::new() };
    let off = Standing { layer: Layer::Cgroup, on: false, why: "not delegated".into() };
    Report { layers: vec![on(Layer::Process), on(Layer::Limits), off] }
}

fn descriptor() -> Descriptor {
    let say = RequestSpec {
        event: name("echo:say"),
        about: "Say something and get it back.".into(),
        request: json!({"required": ["text"], "type": "object"}),
        reply: json!({"type": "object"}),
        chunk: None,
    };
    let count = RequestSpec { event: name("echo:count"), chunk: Some(json!(true)), ..say.clone() };
    Descriptor {
        name: "echo".into(),
        version: "0.1.0".into(),
        about: "Answers with what it is asked".into(),
        requests: vec![say, count],
        emits: vec![FactSpec {
            event: name("echo:said"),
            about: "Something was said.".into(),
            schema: json!({}),
        }],
        calls: vec![Pattern::parse("llama:*").unwrap()],
        listens: vec![pattern("agent:*")],
        intercepts: vec![InterceptSpec {
            pattern: pattern("completion:*"),
            stage: Stage::Before,
            order: -5,
            fail_open: true,
        }],
        state_version: 2,
        child_only: true,
        keeps_work: false,
    }
}
