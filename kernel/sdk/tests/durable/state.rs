//! Values that survive: versions, checks, batches, scans, limits.

use ksi_sdk::{
    prelude::*,
    protocol::space::{self, Conflict},
    testing::{Answer, FakeHost, FakeSpace, refused},
};

use crate::Nothing;

/// A plugin that does to its state what it is told.
struct Shelf;

/// Do something to a value.
#[derive(Deserialize, JsonSchema)]
#[serde(default)]
#[derive(Default)]
struct Order {
    key: String,
    value: String,
    version: u64,
    after: Option<String>,
    limit: usize,
}

type Found = Vec<(String, String, u64)>;

impl Plugin for Shelf {
    const NAME: &'static str = "shelf";
    const ABOUT: &'static str = "Keeps texts";

    fn start(_ctx: &Ctx) -> Result<Self, Refusal> {
        Ok(Self)
    }

    fn register(on: &mut Register<Self>) {
        on.request("shelf:get", Self::get);
        on.request("shelf:put", Self::put);
        on.request("shelf:swap", Self::swap);
        on.request("shelf:delete", Self::delete);
        on.request("shelf:scan", Self::scan);
        on.request("shelf:move", Self::rename);
        on.request("shelf:wrong", Self::wrong);
        on.request("shelf:later", Self::later);
        on.request("shelf:tenants", Self::tenants);
    }
}

/// Tenants that make it hard to be told apart, with keys that do, too.
const HOSTILE: [(&str, &str); 12] = [
    ("a-b", "k"),
    ("a_b", "k"),
    ("a", "-bk"),
    ("a-bk", ""),
    ("", "k"),
    ("租户", "k"),
    ("../x", "k"),
    ("..", "/xk"),
    ("x\0", "k"),
    ("x", "\0k"),
    ("version", "k"),
    ("\0\0\0\0\0\0\0\u{1}k", "k"),
];

impl Shelf {
    /// Writes the same for each tenant, and reads back what each has.
    async fn tenants(self: Rc<Self>, ctx: Ctx, _: Nothing) -> Result<Vec<Found>, Refusal> {
        ctx.state().put("k", "own").await?;
        for (tenant, key) in HOSTILE {
            let key = format!("{key}!");
            ctx.state().of_tenant(Some(tenant)).put(&key, &format!("{tenant}/{key}")).await?;
        }
        let mut all = Vec::new();
        for tenant in HOSTILE.iter().map(|(tenant, _)| Some(*tenant)).chain([None]) {
            let page = ctx.of_tenant(tenant).tenant_state().scan::<String>("", None, 100).await?;
            let text = |entry: ksi_sdk::state::Entry<String>| {
                (String::from_utf8_lossy(&entry.key).into_owned(), entry.value, 0)
            };
            all.push(page.entries.into_iter().map(text).collect());
        }
        Ok(all)
    }

    async fn get(self: Rc<Self>, ctx: Ctx, order: Order) -> Result<Option<(String, u64)>, Refusal> {
        let found = ctx.state().get::<String>(&order.key).await?;
        Ok(found.map(|found| (found.value, found.version)))
    }

    async fn put(self: Rc<Self>, ctx: Ctx, order: Order) -> Result<u64, Refusal> {
        ctx.state().put(&order.key, &order.value).await
    }

    async fn swap(self: Rc<Self>, ctx: Ctx, order: Order) -> Result<u64, Refusal> {
        ctx.state().compare_and_set(&order.key, order.version, &order.value).await
    }

    async fn delete(self: Rc<Self>, ctx: Ctx, order: Order) -> Result<(), Refusal> {
        ctx.state().delete(&order.key).await
    }

    async fn scan(self: Rc<Self>, ctx: Ctx, order: Order) -> Result<(Found, bool), Refusal> {
        let after = order.after.as_deref().map(str::as_bytes);
        let page = ctx.state().scan::<String>(&order.key, after, order.limit).await?;
        let entry = |entry: ksi_sdk::state::Entry<String>| {
            (String::from_utf8_lossy(&entry.key).into_owned(), entry.value, entry.version)
        };
        Ok((page.entries.into_iter().map(entry).collect(), page.more))
    }

    /// From `key` to `value`, if `key` still has `version` and `value` is free.
    async fn rename(self: Rc<Self>, ctx: Ctx, order: Order) -> Result<u64, Refusal> {
        let state = ctx.state();
        let text = state.get::<String>(&order.key).await?.unwrap_or_default().value;
        let batch = state.batch().check_version(&order.key, order.version).check_version(&order.value, 0);
        batch.delete(&order.key).put(&order.value, &text).commit().await
    }

    async fn wrong(self: Rc<Self>, ctx: Ctx, order: Order) -> Result<u64, Refusal> {
        ctx.state().get::<u64>(&order.key).await.map(|found| found.unwrap_or_default().value)
    }

    /// Writes after its request has ended.
    async fn later(self: Rc<Self>, ctx: Ctx, _: Nothing) -> Result<(), Refusal> {
        let (state, napping) = (ctx.state(), ctx.sleep(Duration::from_millis(5)));
        ctx.spawn(async move {
            napping.await;
            state.put("later", "done").await.expect("nobody is in the way");
        });
        Ok(())
    }
}

fn host() -> FakeHost<Shelf> {
    FakeHost::start(json!({})).expect("it starts")
}

fn put(host: &FakeHost<Shelf>, key: &str, value: &str) -> u64 {
    let version = host.request("shelf:put", json!({"key": key, "value": value})).expect("it is written");
    version.as_u64().expect("a version is a number")
}

#[test]
fn a_value_is_read_with_the_version_of_its_last_write() {
    let host = host();
    assert_eq!(host.request("shelf:get", json!({"key": "a"})), Ok(json!(null)));
    let first = put(&host, "a", "one");
    let second = put(&host, "a", "two");
    assert!(0 < first && first < second);
    assert_eq!(host.request("shelf:get", json!({"key": "a"})), Ok(json!(["two", second])));
    assert_eq!(host.request("shelf:delete", json!({"key": "a"})), Ok(json!(null)));
    assert_eq!(host.request("shelf:get", json!({"key": "a"})), Ok(json!(null)));
}

#[test]
fn only_the_version_that_was_read_is_replaced() {
    let host = host();
    let swap =
        |version: u64| host.request("shelf:swap", json!({"key": "a", "value": "x", "version": version}));
    let first = swap(0).expect("nothing is there").as_u64().expect("a version is a number");
    let refusal = swap(0).expect_err("something is there");
    assert_eq!(Conflict::of(&refusal), Some(Conflict { check: 0, version: first }));
    let second = swap(first).expect("it has not changed").as_u64().expect("a version is a number");
    let refusal = swap(first).expect_err("it has changed");
    assert_eq!(refusal.code, Code::Conflict);
    assert_eq!(Conflict::of(&refusal), Some(Conflict { check: 0, version: second }));
}

#[test]
fn a_batch_changes_all_or_nothing() {
    let host = host();
    let version = put(&host, "from", "text");
    put(&host, "taken", "other");
    let rename = |to: &str, version: u64| {
        host.request("shelf:move", json!({"key": "from", "value": to, "version": version}))
    };
    assert_eq!(rename("to", version + 7).expect_err("the version is wrong").code, Code::Conflict);
    let refusal = rename("taken", version).expect_err("it is taken");
    assert_eq!(Conflict::of(&refusal).map(|conflict| conflict.check), Some(1));
    assert_eq!(host.space().keys(), ["from", "taken"]);
    rename("to", version).expect("both checks hold");
    assert_eq!(host.space().keys(), ["taken", "to"]);
    assert_eq!(host.space().get("to"), Some(json!("text")));
}

#[test]
fn a_scan_goes_in_order_and_page_by_page_within_its_prefix() {
    let host = host();
    for key in ["b/2", "a/1", "b/1", "b/10", "c"] {
        put(&host, key, key);
    }
    let scan = |after: Option<&str>, limit: usize| {
        let ask = json!({"key": "b/", "after": after, "limit": limit});
        let (found, more): (Found, bool) =
            serde_json::from_value(host.request("shelf:scan", ask).expect("it scans")).expect("a page");
        (found.into_iter().map(|(key, ..)| key).collect::<Vec<_>>(), more)
    };
    assert_eq!(scan(None, 2), (vec!["b/1".to_owned(), "b/10".to_owned()], true));
    assert_eq!(scan(Some("b/10"), 2), (vec!["b/2".to_owned()], false));
    assert!(!scan(None, 3).1);
    assert_eq!(scan(Some("b/2"), 9), (vec![], false));
}

#[test]
fn what_the_daemon_keeps_there_is_nobodys_to_see_or_to_touch() {
    let space = FakeSpace::new();
    space.set_state_version(4);
    let host = FakeHost::<Shelf>::start_on(&space, json!({})).expect("nobody looks at version 0");
    put(&host, "mine", "text");
    let page = host.request("shelf:scan", json!({"limit": 10})).expect("it scans");
    assert_eq!(page[0].as_array().map(Vec::len), Some(1));
    for (verb, key) in [("put", "\0version"), ("get", "\0"), ("delete", "\0version"), ("put", "")] {
        let refusal = host.request(&format!("shelf:{verb}"), json!({"key": key})).expect_err("it is not");
        assert_eq!(refusal.code, Code::InvalidPayload, "{verb} {key:?}");
    }
}

#[test]
fn what_is_too_large_is_refused_before_it_is_sent() {
    let host = host();
    host.space().refuse(Some(Refusal::new(Code::Internal, "it was sent")));
    let value = "x".repeat(space::VALUE_BYTES_MAX);
    let refusal =
        host.request("shelf:put", json!({"key": "a", "value": value})).expect_err("it is too large");
    assert_eq!(refusal.code, Code::TooLarge);
    let key = "k".repeat(space::KEY_BYTES_MAX + 1);
    let refusal = host.request("shelf:put", json!({ "key": key })).expect_err("it is too long");
    assert_eq!((refusal.code, refusal.message.contains("1025")), (Code::TooLarge, true));
}

#[test]
fn a_value_of_another_type_is_refused_with_its_key_and_without_itself() {
    let host = host();
    put(&host, "secret/1", "hunter2");
    let refusal = host.request("shelf:wrong", json!({"key": "secret/1"})).expect_err("it is a text");
    assert_eq!(refusal.code, Code::InvalidPayload);
    assert!(refusal.message.contains("`secret/1`"), "{refusal}");
    assert!(!refusal.message.contains("hunter2"), "{refusal}");
}

#[test]
fn a_plugin_that_is_open_hears_at_once_that_its_state_is_away() {
    let host = host();
    host.space().refuse(Some(Refusal::new(Code::Unavailable, "checkpoint is starting")));
    let call = host.open("shelf:get", json!({"key": "a"}));
    assert_eq!(refused(host.next(&call)), (Code::Unavailable, "checkpoint is starting".into()));
}

#[test]
fn state_is_written_by_what_outlives_its_request() {
    let host = host();
    let call = host.open("shelf:later", json!({}));
    assert_eq!(host.next(&call), Answer::Reply(json!(null)));
    host.advance(Duration::from_millis(5));
    assert_eq!(host.space().get("later"), Some(json!("done")));
}

#[test]
fn state_survives_a_restart() {
    let host = host();
    let version = put(&host, "a", "kept");
    let host = host.restart(json!({})).expect("it starts again");
    assert_eq!(host.request("shelf:get", json!({"key": "a"})), Ok(json!(["kept", version])));
}

#[test]
fn no_tenant_sees_what_another_keeps_whatever_their_names_and_keys() {
    let host = host();
    let answer = host.request("shelf:tenants", json!({})).expect("all is written");
    let all: Vec<Found> = serde_json::from_value(answer).expect("one list each");
    for ((tenant, key), found) in HOSTILE.iter().zip(&all) {
        let key = format!("{key}!");
        assert_eq!(*found, [(key.clone(), format!("{tenant}/{key}"), 0)], "{tenant:?}");
    }
    assert_eq!(all[HOSTILE.len()], [("k".to_owned(), "own".to_owned(), 0)], "nor does the plugin's own part");
}
