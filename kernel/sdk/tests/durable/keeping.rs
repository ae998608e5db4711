//! Work that is kept: what the keeper is handed, what it answers, and how it
//! passes work on.

use std::cell::RefCell;

use ksi_sdk::{
    ForwardOptions, Kept,
    prelude::*,
    protocol::{
        EventName,
        meta::Meta,
        work::{Accepted, Policy},
    },
    testing::{Answer, FakeHost, refused},
};
use serde_json::Value;

use crate::Nothing;

/// A keeper that keeps in memory, in the order in which things come.
#[derive(Default)]
struct Keeper {
    kept: RefCell<Vec<String>>,
}

/// What a raw handler is said to take.
#[derive(Deserialize, JsonSchema)]
#[expect(dead_code, reason = "it is only described")]
struct Anything {
    what: Value,
}

impl Plugin for Keeper {
    const NAME: &'static str = "keeper";
    const ABOUT: &'static str = "Keeps work";

    fn start(_ctx: &Ctx) -> Result<Self, Refusal> {
        Ok(Self::default())
    }

    fn register(on: &mut Register<Self>) {
        on.keep(Self::keep);
        on.keep_facts(Self::keep_fact);
        on.request("keeper:list", Self::list);
        on.request_raw::<Anything, Anything, _>("keeper:mirror", Self::mirror);
    }
}

impl Keeper {
    /// Writes it down, is done with that a moment later, and hands it over.
    async fn keep(self: Rc<Self>, ctx: Ctx, kept: Kept) -> Result<Accepted, Refusal> {
        if kept.policy.attempts == 0 {
            return Err(Refusal::new(Code::Busy, "no room").retry_after_ms(50));
        }
        let seq = {
            let mut list = self.kept.borrow_mut();
            list.push(format!("{} by {}", kept.event, ctx.origin()));
            list.len() as u64
        };
        let request_id = format!("w-{seq}");
        ctx.sleep(Duration::from_millis(10)).await;
        let options = ForwardOptions {
            origin: Some(ctx.origin().to_owned()),
            caller: ctx.caller(),
            idempotency_key: Some(request_id.clone()),
            correlation_id: ctx.correlation_id().map(str::to_owned),
            timeout: Some(Duration::from_millis(kept.policy.timeout_ms)),
            detached: true,
        };
        let answers = ctx.forward(&kept.event, &kept.data, options)?;
        let this = self.clone();
        ctx.spawn(async move {
            let end = match answers.last_raw().await {
                Ok(result) => format!("{} bytes", result.len()),
                Err(refusal) => refusal.message,
            };
            this.kept.borrow_mut().push(end);
        });
        Ok(Accepted { request_id, seq })
    }

    async fn keep_fact(self: Rc<Self>, ctx: Ctx, fact: Event) -> Result<(), Refusal> {
        self.kept.borrow_mut().push(format!("{} at {} by {}", fact.event, fact.at_ms, fact.origin));
        ctx.sleep(Duration::from_millis(10)).await;
        match fact.data.is_empty() {
            true => Err(Refusal::new(Code::InvalidPayload, "nothing in it")),
            false => Ok(()),
        }
    }

    async fn list(self: Rc<Self>, _ctx: Ctx, _: Nothing) -> Result<Vec<String>, Refusal> {
        Ok(self.kept.borrow().clone())
    }

    async fn mirror(self: Rc<Self>, _ctx: Ctx, data: Bytes) -> Result<Bytes, Refusal> {
        Ok(data)
    }
}

fn host() -> FakeHost<Keeper> {
    FakeHost::start(json!({})).expect("it starts")
}

fn list(host: &FakeHost<Keeper>) -> Value {
    host.request("keeper:list", json!({})).expect("it lists")
}

#[test]
fn the_descriptor_of_a_keeper_says_that_it_keeps() {
    assert!(FakeHost::<Keeper>::descriptor().keeps_work);
}

#[test]
fn a_request_for_anybody_is_accepted_by_the_keeper_once_it_is_safe() {
    let host = host();
    host.script("mail:send", |_| Ok(json!({"sent": true})));
    let call = host.keep("mail:send", json!({"to": "ada"}), Policy::default());
    assert_eq!(host.try_next(&call), None, "it is not safe yet");
    host.advance(Duration::from_millis(10));
    let accepted = Accepted { request_id: "w-1".into(), seq: 1 };
    assert_eq!(host.next(&call), Answer::Accepted(accepted));
    assert_eq!(host.try_next(&call), None);
    assert_eq!(list(&host), json!(["mail:send by session:1", "7 bytes"]));
}

#[test]
fn what_cannot_be_kept_is_refused_to_its_asker() {
    let host = host();
    let call = host.keep("mail:send", json!({}), Policy { attempts: 0, ..Policy::default() });
    assert_eq!(refused(host.next(&call)), (Code::Busy, "no room".into()));
}

#[test]
fn work_is_passed_on_as_it_is_with_all_that_belongs_to_it() {
    let host = host();
    let policy = Policy { timeout_ms: 1234, ..Policy::default() };
    let meta = Meta {
        origin: Some("session:9".into()),
        correlation_id: Some("c".into()),
        work: Some(policy),
        ..Meta::default()
    };
    host.open_as("mail:send", json!({"to": [1, null, "ada"]}), &meta);
    host.advance(Duration::from_millis(10));
    let asked = host.expect("mail:send");
    assert_eq!(asked.data, json!({"to": [1, null, "ada"]}));
    let expected = Meta {
        origin: Some("session:9".into()),
        correlation_id: Some("c".into()),
        idempotency_key: Some("w-1".into()),
        timeout_ms: Some(1234),
        ..Meta::default()
    };
    assert_eq!(asked.meta, expected);
    host.chunk(&asked, json!("half"));
    host.refuse(&asked, Refusal::new(Code::NotFound, "no such address"));
    assert_eq!(list(&host)[1], "no such address");
}

#[test]
fn the_keepers_own_events_are_answered_as_anybody_elses() {
    let host = host();
    let mirrored = json!({"what": {"deep": [1, 2.5, null]}});
    assert_eq!(host.request("keeper:mirror", mirrored.clone()), Ok(mirrored));
    let refusal = host.request("mail:send", json!({})).expect_err("it is not to be kept");
    assert_eq!(refusal.code, Code::UnknownEvent);
}

#[test]
fn things_are_kept_in_the_order_in_which_they_come() {
    let host = host();
    let calls = [
        host.keep("a:first", json!({}), Policy::default()),
        host.keep_fact("b:happened", json!({"n": 1}), 77),
        host.keep("c:last", json!({}), Policy::default()),
    ];
    assert_eq!(
        list(&host),
        json!(["a:first by session:1", "b:happened at 77 by session:1", "c:last by session:1"])
    );
    host.advance(Duration::from_millis(10));
    let [first, fact, last] = calls.map(|call| host.next(&call));
    assert!(matches!(first, Answer::Accepted(Accepted { seq: 1, .. })), "{first:?}");
    assert_eq!(fact, Answer::Reply(json!({})));
    assert!(matches!(last, Answer::Accepted(Accepted { seq: 3, .. })), "{last:?}");
}

#[test]
fn a_name_that_is_none_is_never_kept() {
    let host = host();
    let call = host.keep("no name", json!({}), Policy::default());
    assert_eq!(refused(host.next(&call)).0, Code::InvalidFrame);
    assert!(EventName::parse("no name").is_err());
}
