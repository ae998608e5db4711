//! What is too long, too large, too deep, too much.

use ksi_sdk::protocol::{frame::Caller, meta::Meta};

use super::*;

#[test]
fn names_and_numbers_out_of_range_are_refused_with_their_path() {
    let host = host();
    let (long_key, long_namespace) = ("k".repeat(513), "n".repeat(129));
    let set = |more: Value| {
        let mut ask = json!({"key": "k", "value": 1});
        more.as_object().unwrap().iter().for_each(|(key, value)| ask[key] = value.clone());
        ("state:set", ask)
    };
    let many: Vec<_> = (0..257).map(|n| json!({"set": {"key": n.to_string(), "value": 1}})).collect();
    for ((event, data), code, path) in [
        (set(json!({"key": ""})), Code::InvalidPayload, "key"),
        (set(json!({"key": long_key})), Code::TooLarge, "key"),
        (set(json!({"namespace": ""})), Code::InvalidPayload, "namespace"),
        (set(json!({"namespace": long_namespace})), Code::TooLarge, "namespace"),
        (set(json!({"ttl_seconds": 0})), Code::InvalidPayload, "ttl_seconds"),
        (set(json!({"ttl_seconds": -5})), Code::InvalidPayload, "ttl_seconds"),
        (set(json!({"ttl_seconds": i64::MAX})), Code::InvalidPayload, "ttl_seconds"),
        (set(json!({"value": "x".repeat(1_024_000)})), Code::TooLarge, "value"),
        (set(json!({"metadata": {"m": "x".repeat(16 * 1024)}})), Code::TooLarge, "metadata"),
        (("state:get", json!({"key": ""})), Code::InvalidPayload, "key"),
        (("state:delete", json!({"key": long_key})), Code::TooLarge, "key"),
        (("state:list", json!({"limit": 0})), Code::InvalidPayload, "limit"),
        (("state:list", json!({"limit": 1001})), Code::InvalidPayload, "limit"),
        (("state:list", json!({"prefix": long_key})), Code::TooLarge, "prefix"),
        (("state:batch", json!({"operations": []})), Code::InvalidPayload, "operations"),
        (("state:batch", json!({"operations": many})), Code::InvalidPayload, "operations"),
        (("state:push", json!({"queue": "", "data": 1})), Code::InvalidPayload, "queue"),
        (("state:push", json!({"queue": "q", "data": "x".repeat(1_024_000)})), Code::TooLarge, "data"),
        (
            ("state:push", json!({"queue": "q", "data": 1, "ttl_seconds": 0})),
            Code::InvalidPayload,
            "ttl_seconds",
        ),
        (("state:pop", json!({"queue": "q", "count": 0})), Code::InvalidPayload, "count"),
        (("state:pop", json!({"queue": "q", "count": 101})), Code::InvalidPayload, "count"),
        (("state:pop", json!({"queue": "q", "lease_seconds": 0})), Code::InvalidPayload, "lease_seconds"),
        (("state:pop", json!({"queue": "q", "wait_ms": -1})), Code::InvalidPayload, "wait_ms"),
        (("state:pop", json!({"queue": "q", "max_deliveries": 0})), Code::InvalidPayload, "max_deliveries"),
        (("state:ack", json!({"queue": "q", "ids": []})), Code::InvalidPayload, "ids"),
        (("state:nack", json!({"queue": "q", "ids": [1], "delay_ms": -1})), Code::InvalidPayload, "delay_ms"),
        (("state:queue", json!({"queue": "q", "limit": 1001})), Code::InvalidPayload, "limit"),
        (("state:purge", json!({"queue": ""})), Code::InvalidPayload, "queue"),
        (("state:watch", json!({})), Code::InvalidPayload, "key"),
        (("state:watch", json!({"key": "k", "prefix": "k"})), Code::InvalidPayload, "key"),
    ] {
        let refusal = refused(&host, event, data.clone());
        assert_eq!((refusal.code, &refusal.details.unwrap()["path"]), (code, &json!(path)), "{event}");
        assert!(!refusal.retryable);
    }
    assert!(host.space().keys().is_empty());
}

#[test]
fn what_is_as_large_as_may_be_is_kept() {
    let host = host();
    let (namespace, key) = ("n".repeat(128), "k".repeat(512));
    let value = json!("x".repeat(1_023_995));
    let metadata = json!({"m": "y".repeat(16_000)});
    let name = json!({"namespace": namespace, "key": key});
    let mut set = name.clone();
    set["value"] = value.clone();
    set["metadata"] = metadata.clone();
    ask(&host, "state:set", set);
    let back = ask(&host, "state:get", name);
    assert_eq!((&back["value"], &back["metadata"]), (&value, &metadata));
    ask(&host, "state:push", json!({"namespace": namespace, "queue": key, "data": value}));
    let popped = ask(&host, "state:pop", json!({"namespace": namespace, "queue": key}));
    assert_eq!(popped["items"][0]["data"], value);
}

#[test]
fn a_batch_that_is_too_large_or_changes_a_key_twice_is_refused() {
    let host = host();
    let large = |n: u32| json!({"set": {"key": n.to_string(), "value": "x".repeat(900_000)}});
    let operations = json!([large(1), large(2), large(3), large(4)]);
    let refusal = refused(&host, "state:batch", json!({"operations": operations}));
    assert_eq!(refusal.code, Code::TooLarge);
    let twice = json!([{"set": {"key": "a", "value": 1}}, {"delete": {"key": "a"}}]);
    let refusal = refused(&host, "state:batch", json!({"operations": twice}));
    assert!(refusal.message.contains("operations[1]"), "{refusal}");
    let wrong = json!([{"set": {"key": "a", "value": 1}}, {"set": {"key": "", "value": 1}}]);
    let refusal = refused(&host, "state:batch", json!({"operations": wrong}));
    assert!(refusal.message.contains("operations[1]"), "{refusal}");
    assert!(host.space().keys().is_empty());
}

#[test]
fn a_full_state_takes_nothing_new_until_something_goes() {
    // Half of it is for other tenants.
    let config = json!({"entries_max": 6, "bytes_max": 2000});
    let host = Host::start(config.clone()).unwrap();
    set(&host, "a", json!(1));
    set(&host, "b", json!(1));
    push(&host, json!(1));
    let full = |host: &Host| {
        for (event, data) in [
            ("state:set", json!({"key": "new", "value": 1})),
            ("state:push", json!({"queue": "other", "data": 1})),
        ] {
            let refusal = refused(host, event, data);
            assert_eq!(refusal.code, Code::Busy);
            assert_eq!(refusal.details.unwrap()["limit"], "entries_max");
        }
    };
    full(&host);
    set(&host, "a", json!(2));
    full(&host);
    let host = host.restart(config).unwrap();
    full(&host);
    assert_eq!(pop(&host, json!({})), [json!(1)]);
    set(&host, "c", json!(1));
    full(&host);
    ask(&host, "state:delete", json!({"key": "a"}));
    let refusal = refused(&host, "state:set", json!({"key": "a", "value": "x".repeat(1000)}));
    assert_eq!(refusal.details.unwrap()["limit"], "bytes_max");
    push(&host, json!(1));
    full(&host);
}

#[test]
fn a_configuration_that_does_not_fit_stops_the_start() {
    for (config, part) in [
        (json!({"entries": 4}), "entries"),
        (json!({"entries_max": 0}), "entries_max"),
        (json!({"watches_max": 0}), "watches_max"),
        (json!({"bytes_max": "much"}), "configuration"),
    ] {
        let Err(refusal) = Host::start(config) else { panic!("started") };
        assert!(refusal.message.contains(part), "{refusal}");
    }
}

#[test]
fn a_tenant_that_fills_its_share_leaves_room_for_the_others() {
    let config = json!({"entries_max": 16, "bytes_max": 4096});
    let host = Host::start(config.clone()).unwrap();
    let add = |host: &Host, tenant: &str, n: usize| {
        let caller = Caller { principal: "user:x".into(), tenant: Some(tenant.into()), every_tenant: false };
        let meta = Meta { caller: Some(caller), ..Meta::default() };
        let (event, data) = match n % 2 {
            0 => ("state:set", json!({"key": format!("k{n}"), "value": n})),
            _ => ("state:push", json!({"queue": "q", "data": n})),
        };
        host.next(&host.open_as(event, data, &meta))
    };
    let fill = |host: &Host, tenant: &str| {
        let refused = (0..).find_map(|n| match add(host, tenant, n) {
            Answer::Refusal(refusal) => Some((n, refusal)),
            _ => None,
        });
        let (count, refusal) = refused.unwrap();
        assert_eq!(refusal.code, Code::Busy, "{refusal}");
        count
    };
    assert_eq!(["a-b", "a_b", "local"].map(|tenant| fill(&host, tenant)), [8, 4, 2]);
    // The same is known after a restart.
    let host = host.restart(config).unwrap();
    assert!(matches!(add(&host, "a-b", 0), Answer::Reply(_)), "what is replaced takes no more room");
    assert!(matches!(add(&host, "a-b", 100), Answer::Refusal(_)));
    assert!(matches!(add(&host, "c", 0), Answer::Reply(_)));
}

#[test]
fn a_state_that_is_not_ours_stops_the_start() {
    let space = ksi_sdk::testing::FakeSpace::new();
    space.set_state_version(1);
    space.put("kno-place", &json!({"size": 1, "expires_at_ms": 0}));
    let Err(refusal) = Host::start_on(&space, json!({})) else { panic!("started") };
    assert!(refusal.message.contains("kno-place"), "{refusal}");
}

#[test]
fn writes_that_were_given_up_count_until_they_are_made() {
    let host = host();
    let meta = |principal: &str| Meta {
        caller: Some(Caller { principal: principal.into(), tenant: None, every_tenant: false }),
        ..Meta::default()
    };
    let write = |principal: &str, n: usize| {
        host.open_as("state:set", json!({"key": format!("{principal}{n}"), "value": n}), &meta(principal))
    };
    host.space().stall(true);
    // Whoever vanishes has its writes made all the same ...
    for n in 0..1024 {
        host.cancel(&write("user:eve", n));
    }
    // ... and has no more of them than whoever waits.
    let Some(Answer::Refusal(refusal)) = host.try_next(&write("user:eve", 1024)) else {
        panic!("no refusal")
    };
    assert_eq!((refusal.code, refusal.retry_after_ms), (Code::Busy, Some(100)), "{refusal}");
    let other = write("user:bob", 0);
    assert_eq!(host.try_next(&other), None, "another's waits for the disk");
    host.space().stall(false);
    assert!(matches!(host.next(&other), Answer::Reply(_)));
    assert!(matches!(host.next(&write("user:eve", 1024)), Answer::Reply(_)));
    assert_eq!(keys(&host).len(), 1000, "a page of them");
}
