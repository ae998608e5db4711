//! A plugin as its author writes it, run by the fake host: requests, streams,
//! calls to others, timers, cancellation, interception, drain.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use ksi_sdk::{
    prelude::*,
    protocol::{descriptor::Descriptor, meta::Meta},
    testing::{Answer, FakeHost, refused},
};
use serde_json::Value;

/// A plugin that does a little of everything.
struct Sampler {
    heard: RefCell<Vec<String>>,
    dropped: Rc<Cell<u32>>,
    limit: u64,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    limit: u64,
    broken: bool,
}

/// Count to a number.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Count {
    /// How far.
    to: u64,
}

/// A number.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Number {
    /// Which one.
    n: u64,
}

/// Nothing.
#[derive(Deserialize, JsonSchema)]
struct Nothing {}

/// Something was counted.
#[derive(Serialize, JsonSchema)]
struct Counted {
    n: u64,
}

/// Facts about the envelope.
#[derive(Serialize, JsonSchema)]
struct Facts {
    origin: String,
    correlation_id: Option<String>,
    key: Option<String>,
}

struct OnDrop(Rc<Cell<u32>>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

impl Plugin for Sampler {
    const NAME: &'static str = "sampler";
    const ABOUT: &'static str = "Does a little of everything";
    const STATE_VERSION: u32 = 3;

    fn start(ctx: &Ctx) -> Result<Self, Refusal> {
        let config: Config = ctx.config()?;
        if config.broken {
            return Err(Refusal::new(Code::Unavailable, "told to be broken"));
        }
        Ok(Self { heard: RefCell::default(), dropped: Rc::default(), limit: config.limit })
    }

    fn register(on: &mut Register<Self>) {
        on.request("sampler:limit", Self::limit);
        on.request("sampler:facts", Self::facts);
        on.stream("sampler:count", Self::count);
        on.request("sampler:nap", Self::nap);
        on.request("sampler:never", Self::never);
        on.request("sampler:vigil", Self::vigil);
        on.request("sampler:dropped", Self::dropped);
        on.request("sampler:ask", Self::ask);
        on.request("sampler:heavy", Self::heavy);
        on.request("sampler:crash", Self::crash);
        on.event("world:*", Self::hear);
        on.request("sampler:heard", Self::heard);
        on.emits::<Counted>("sampler:counted");
        on.intercept("guarded:*", Stage::Before, -5, true, Self::guard);
    }

    async fn drain(self: Rc<Self>, ctx: Ctx) {
        ctx.info("drained");
    }
}

impl Sampler {
    async fn limit(self: Rc<Self>, _ctx: Ctx, _: Nothing) -> Result<Number, Refusal> {
        Ok(Number { n: self.limit })
    }

    async fn facts(self: Rc<Self>, ctx: Ctx, _: Nothing) -> Result<Facts, Refusal> {
        Ok(Facts {
            origin: ctx.origin().into(),
            correlation_id: ctx.correlation_id().map(Into::into),
            key: ctx.idempotency_key().map(Into::into),
        })
    }

    async fn count(self: Rc<Self>, ctx: Ctx, count: Count, out: Chunks<Number>) -> Result<Number, Refusal> {
        for n in 0..count.to {
            out.send(&Number { n })?;
            ctx.emit("sampler:counted", &Counted { n })?;
        }
        Ok(Number { n: count.to })
    }

    async fn nap(self: Rc<Self>, ctx: Ctx, count: Count) -> Result<Number, Refusal> {
        ctx.sleep(Duration::from_millis(count.to)).await;
        Ok(Number { n: count.to })
    }

    async fn never(self: Rc<Self>, _ctx: Ctx, _: Nothing) -> Result<Number, Refusal> {
        let _guard = OnDrop(self.dropped.clone());
        std::future::pending().await
    }

    /// Waits for what does not come, as long as its asker and the plugin let it.
    async fn vigil(self: Rc<Self>, ctx: Ctx, wait: Count) -> Result<Number, Refusal> {
        let time = ctx.time_for(Duration::from_millis(wait.to));
        let over = ctx.unless_draining(ctx.sleep(time)).await;
        over.ok_or_else(|| Refusal::new(Code::Unavailable, "the plugin is being stopped"))?;
        Ok(Number { n: u64::try_from(time.as_millis()).unwrap_or(u64::MAX) })
    }

    async fn dropped(self: Rc<Self>, _ctx: Ctx, _: Nothing) -> Result<Number, Refusal> {
        Ok(Number { n: self.dropped.get().into() })
    }

    async fn ask(self: Rc<Self>, ctx: Ctx, _: Nothing) -> Result<Number, Refusal> {
        let _guard = OnDrop(self.dropped.clone());
        let number: Number = ctx.request("other:number", &json!({})).await?;
        Ok(Number { n: number.n + 1 })
    }

    async fn heavy(self: Rc<Self>, ctx: Ctx, count: Count) -> Result<Number, Refusal> {
        let n = ctx.spawn_blocking(move || (0..=count.to).sum()).await?;
        Ok(Number { n })
    }

    async fn crash(self: Rc<Self>, ctx: Ctx, _: Nothing) -> Result<Number, Refusal> {
        ctx.spawn_blocking(|| panic!("in a thread")).await
    }

    async fn hear(self: Rc<Self>, _ctx: Ctx, event: Event) {
        self.heard.borrow_mut().push(event.event.as_str().to_owned());
    }

    async fn heard(self: Rc<Self>, _ctx: Ctx, _: Nothing) -> Result<Vec<String>, Refusal> {
        Ok(self.heard.borrow().clone())
    }

    async fn guard(self: Rc<Self>, _ctx: Ctx, _: Intercepted) -> Result<Option<Bytes>, Refusal> {
        Ok(None)
    }
}

fn host() -> FakeHost<Sampler> {
    FakeHost::start(json!({"limit": 7})).expect("it starts")
}

#[test]
fn the_descriptor_says_what_the_plugin_is() {
    let Descriptor { name, about, requests, emits, listens, intercepts, state_version, child_only, .. } =
        FakeHost::<Sampler>::descriptor();
    assert_eq!((&*name, &*about), ("sampler", "Does a little of everything"));
    assert_eq!((state_version, child_only), (3, false));
    let count = requests.iter().find(|spec| spec.event.as_str() == "sampler:count").expect("it is declared");
    assert_eq!(count.about, "Count to a number.");
    assert_eq!(count.request["properties"]["to"]["description"], "How far.");
    assert_eq!(count.reply["properties"]["n"]["type"], "integer");
    assert!(count.chunk.is_some(), "it streams");
    let limit = requests.iter().find(|spec| spec.event.as_str() == "sampler:limit").expect("it is declared");
    assert!(limit.chunk.is_none(), "it does not");
    assert_eq!((emits[0].event.as_str(), &*emits[0].about), ("sampler:counted", "Something was counted."));
    assert_eq!(listens[0].to_string(), "world:*");
    assert_eq!((intercepts[0].order, intercepts[0].fail_open), (-5, true));
}

#[test]
fn the_configuration_reaches_the_plugin_and_is_checked() {
    assert_eq!(host().request("sampler:limit", json!({})).expect("it answers")["n"], 7);
    let Err(refusal) = FakeHost::<Sampler>::start(json!({"limits": 7})) else {
        panic!("there is no such key")
    };
    assert!(refusal.message.contains("configuration does not fit"), "{refusal}");
    let Err(refusal) = FakeHost::<Sampler>::start(json!({"broken": true})) else { panic!("it is broken") };
    assert_eq!(refusal.message, "told to be broken");
}

#[test]
fn a_payload_that_does_not_fit_is_refused_with_its_place() {
    let host = host();
    for wrong in [json!({"to": "far"}), json!({}), json!({"to": -1}), json!({"to": 1, "from": 0}), json!([])]
    {
        let refusal = host.request("sampler:count", wrong.clone()).expect_err("it does not fit");
        assert_eq!(refusal.code, Code::InvalidPayload, "{wrong}");
    }
    let refusal = host.request("sampler:count", json!({"to": "far"})).expect_err("it does not fit");
    assert!(refusal.message.contains("to"), "{refusal}");
    let refusal = host.request("sampler:nothing", json!({})).expect_err("there is none");
    assert_eq!(refusal.code, Code::UnknownEvent);
}

#[test]
fn a_stream_comes_in_order_and_ends_once() {
    let host = host();
    let call = host.open("sampler:count", json!({"to": 3}));
    for n in 0..3 {
        assert_eq!(host.next(&call), Answer::Chunk(json!({ "n": n })));
    }
    assert_eq!(host.next(&call), Answer::End(json!({"n": 3})));
    assert_eq!(host.try_next(&call), None);
    let facts: Vec<Value> = host.emitted().into_iter().map(|(_, fact)| fact["n"].clone()).collect();
    assert_eq!(facts, [0, 1, 2]);
}

#[test]
fn facts_of_the_envelope_are_the_hosts_word() {
    let host = host();
    let meta = Meta {
        origin: Some("session:9".into()),
        correlation_id: Some("c".into()),
        idempotency_key: Some("k".into()),
        ..Meta::default()
    };
    let call = host.open_as("sampler:facts", json!({"origin": "daemon"}), &meta);
    let expected = json!({"origin": "session:9", "correlation_id": "c", "key": "k"});
    assert_eq!(host.next(&call), Answer::Reply(expected));
}

#[test]
fn timers_fire_in_their_order_and_hold_up_nobody() {
    let host = host();
    let long = host.open("sampler:nap", json!({"to": 200}));
    let short = host.open("sampler:nap", json!({"to": 100}));
    assert_eq!(host.request("sampler:limit", json!({})).expect("it answers")["n"], 7);
    host.advance(Duration::from_millis(99));
    assert_eq!((host.try_next(&long), host.try_next(&short)), (None, None));
    host.advance(Duration::from_millis(1));
    assert_eq!(host.next(&short), Answer::Reply(json!({"n": 100})));
    assert_eq!(host.try_next(&long), None);
    host.advance(Duration::from_secs(1));
    assert_eq!(host.next(&long), Answer::Reply(json!({"n": 200})));
}

#[test]
fn a_cancelled_request_drops_its_handler_and_says_nothing() {
    let host = host();
    let call = host.open("sampler:never", json!({}));
    assert_eq!(host.request("sampler:dropped", json!({})).expect("it answers")["n"], 0);
    host.cancel(&call);
    assert_eq!(host.request("sampler:dropped", json!({})).expect("it answers")["n"], 1);
    assert_eq!(host.try_next(&call), None);
    // Once more, and for one that never was: nothing happens.
    host.cancel(&call);
    assert_eq!(host.request("sampler:dropped", json!({})).expect("it answers")["n"], 1);
}

#[test]
fn a_request_of_its_own_is_answered_refused_or_given_up_with_its_asker() {
    let host = host();
    let call = host.open("sampler:ask", json!({}));
    let asked = host.expect("other:number");
    host.reply(&asked, json!({"n": 41}));
    assert_eq!(host.next(&call), Answer::Reply(json!({"n": 42})));

    let call = host.open("sampler:ask", json!({}));
    let asked = host.expect("other:number");
    host.refuse(&asked, Refusal::new(Code::Denied, "not you"));
    assert_eq!(refused(host.next(&call)), (Code::Denied, "not you".into()));

    let call = host.open("sampler:ask", json!({}));
    let asked = host.expect("other:number");
    host.reply(&asked, json!({"n": "many"}));
    assert_eq!(refused(host.next(&call)).0, Code::InvalidPayload);

    let call = host.open("sampler:ask", json!({}));
    let asked = host.expect("other:number");
    host.cancel(&call);
    assert!(host.has_cancelled(&asked));
    // An answer that comes too late is nobody's.
    host.reply(&asked, json!({"n": 1}));
    assert_eq!(host.try_next(&call), None);
}

#[test]
fn blocking_work_runs_beside_the_handlers_and_its_panic_is_a_refusal() {
    let host = host();
    assert_eq!(host.request("sampler:heavy", json!({"to": 100})).expect("it answers")["n"], 5050);
    let refusal = host.request("sampler:crash", json!({})).expect_err("its thread panicked");
    assert_eq!(refusal.code, Code::Internal);
    assert_eq!(host.request("sampler:limit", json!({})).expect("it goes on")["n"], 7);
}

#[test]
fn a_listener_hears_what_matches_and_nothing_else() {
    let host = host();
    for event in ["world:began", "world:began:twice", "other:began", "world:ended"] {
        host.emit(event, json!({}));
    }
    let heard = host.request("sampler:heard", json!({})).expect("it answers");
    assert_eq!(heard, json!(["world:began", "world:ended"]));
}

#[test]
fn a_drain_waits_for_what_is_under_way() {
    let host = host();
    let call = host.open("sampler:nap", json!({"to": 50}));
    assert!(!host.drain(), "a request is under way");
    host.advance(Duration::from_millis(50));
    assert_eq!(host.next(&call), Answer::Reply(json!({"n": 50})));
    assert!(host.drained());
    assert_eq!(host.logged(), [(3, "drained".into())]);
}

#[test]
fn a_wait_ends_in_time_to_be_told_so_and_holds_up_no_drain() {
    let host = host();
    let within = |ms| Meta { timeout_ms: Some(ms), ..Meta::default() };
    let hasty = host.open_as("sampler:vigil", json!({"to": 60_000}), &within(500));
    let patient = host.open("sampler:vigil", json!({"to": 60_000}));
    host.advance(Duration::from_millis(399));
    assert_eq!((host.try_next(&hasty), host.try_next(&patient)), (None, None));
    host.advance(Duration::from_millis(1));
    assert_eq!(host.try_next(&hasty), Some(Answer::Reply(json!({"n": 400}))));
    assert!(host.drain(), "the other one is over, too");
    assert_eq!(refused(host.next(&patient)), (Code::Unavailable, "the plugin is being stopped".into()));
}
