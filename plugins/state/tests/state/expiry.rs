//! Times that are over: of values and of items.

use ksi_sdk::prelude::Duration;

use super::*;

fn set_for(host: &Host, key: &str, seconds: u64) -> Value {
    ask(host, "state:set", json!({"key": key, "value": key, "ttl_seconds": seconds}))
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_value_is_gone_when_its_time_is_over() {
    let host = host();
    let answer = set_for(&host, "k", 10);
    let read = ask(&host, "state:get", json!({"key": "k"}));
    assert_eq!(read["expires_at_ms"], answer["expires_at_ms"]);
    assert_eq!(ask(&host, "state:list", json!({}))["items"][0]["expires_at_ms"], answer["expires_at_ms"]);
    host.emitted();
    host.advance(SECOND * 10 - Duration::from_millis(1));
    assert!(get(&host, "k").is_some());
    host.advance(Duration::from_millis(1));
    assert_eq!(get(&host, "k"), None);
    assert!(host.space().keys().is_empty(), "removed without being asked for");
    let fact = host.expect_emitted("state:changed");
    assert_eq!((&fact["key"], &fact["deleted"]), (&json!("k"), &json!(true)));
}

#[test]
fn a_value_that_is_set_anew_has_a_time_of_its_own() {
    let host = host();
    set_for(&host, "a", 10);
    set_for(&host, "b", 10);
    set_for(&host, "c", 100);
    host.advance(SECOND * 5);
    set(&host, "a", json!("stays"));
    set_for(&host, "b", 10);
    set_for(&host, "c", 1);
    host.advance(SECOND * 5);
    assert_eq!(keys(&host), ["a", "b"]);
    host.advance(SECOND * 5);
    assert_eq!(keys(&host), ["a"]);
}

#[test]
fn a_time_holds_over_a_restart() {
    let host = host();
    set_for(&host, "soon", 10);
    set_for(&host, "late", 100);
    host.advance(SECOND * 5);
    let host = host.restart(json!({})).unwrap();
    assert_eq!(keys(&host), ["late", "soon"]);
    host.advance(SECOND * 5);
    assert_eq!(keys(&host), ["late"]);
    host.space().refuse(Some(Refusal::new(Code::Unavailable, "away")));
    host.advance(SECOND * 100);
    host.space().refuse(None);
    let host = host.restart(json!({})).unwrap();
    assert_eq!(keys(&host), [""; 0], "what was over before the start is not shown");
    assert!(host.space().keys().is_empty());
}

#[test]
fn what_is_over_but_cannot_be_removed_yet_is_not_shown() {
    let host = host();
    set_for(&host, "k", 1);
    let call = host.open("state:watch", json!({"prefix": ""}));
    assert_eq!(chunk(&host, &call)["key"], "k");
    assert_eq!(chunk(&host, &call)["kind"], "current");
    host.space().refuse(Some(Refusal::new(Code::Unavailable, "away")));
    host.advance(SECOND * 3);
    assert_eq!(get(&host, "k"), None);
    assert_eq!(keys(&host), [""; 0]);
    assert_eq!(host.try_next(&call), None);
    host.space().refuse(None);
    host.advance(SECOND * 2);
    assert_eq!(chunk(&host, &call)["kind"], "expired");
    assert!(host.space().keys().is_empty());
}

#[test]
fn one_that_is_over_does_not_exist_for_whoever_expects_so() {
    let host = host();
    let version = set_for(&host, "k", 1)["version"].as_u64().unwrap();
    // It stays where it is, since it cannot be removed.
    host.space().refuse(Some(Refusal::new(Code::Unavailable, "away")));
    host.advance(SECOND);
    host.space().refuse(None);
    assert!(!host.space().keys().is_empty());
    let refusal = refused(&host, "state:set", json!({"key": "k", "value": 1, "expected_version": version}));
    assert_eq!(refusal.details.unwrap()["version"], 0);
    assert_eq!(ask(&host, "state:delete", json!({"key": "k"}))["deleted"], false);
    ask(&host, "state:set", json!({"key": "k", "value": 2, "expected_version": 0}));
    host.advance(SECOND * 5);
    assert_eq!(get(&host, "k"), Some(json!(2)), "the new one has no time");
}

#[test]
fn a_thousand_that_are_over_at_once_all_go() {
    let host = host();
    for n in 0..1000 {
        set_for(&host, &n.to_string(), 10);
    }
    set(&host, "stays", json!(1));
    host.advance(SECOND * 10);
    assert_eq!(keys(&host), ["stays"]);
    assert_eq!(host.space().keys().len(), 2);
}

#[test]
fn items_are_dropped_when_their_time_is_over() {
    let host = host();
    let answer = ask(&host, "state:push", json!({"queue": "q", "data": "short", "ttl_seconds": 10}));
    assert!(answer["expires_at_ms"].is_u64());
    push(&host, json!("long"));
    host.advance(SECOND * 9);
    assert_eq!(ask(&host, "state:queue", json!({"queue": "q"}))["length"], 2);
    let host = host.restart(json!({})).unwrap();
    host.advance(SECOND);
    assert_eq!(ask(&host, "state:queue", json!({"queue": "q"}))["length"], 1);
    assert_eq!(host.space().keys().iter().filter(|key| key.starts_with('d')).count(), 1, "its data too");
    assert_eq!(pop(&host, json!({"count": 9})), [json!("long")]);
}

#[test]
fn an_item_under_a_lease_is_not_dropped_before_it_comes_back() {
    let host = host();
    ask(&host, "state:push", json!({"queue": "q", "data": 1, "ttl_seconds": 10}));
    let popped = ask(&host, "state:pop", json!({"queue": "q", "lease_seconds": 20}));
    host.advance(SECOND * 15);
    let acked = ask(&host, "state:ack", json!({"queue": "q", "ids": ids(&popped["items"])}));
    assert_eq!(acked["ids"], json!(ids(&popped["items"])));
    ask(&host, "state:push", json!({"queue": "q", "data": 2, "ttl_seconds": 10}));
    ask(&host, "state:pop", json!({"queue": "q", "lease_seconds": 20}));
    host.advance(SECOND * 20);
    assert_eq!(pop(&host, json!({})), NOTHING);
    assert_eq!(host.space().keys(), ["c"]);
}

#[test]
fn an_item_that_a_clock_ahead_has_hidden_comes_back_in_a_day() {
    let ahead = host();
    ahead.advance(SECOND * 86_400 * 365);
    push(&ahead, json!("leased"));
    assert_eq!(pop(&ahead, json!({"lease_seconds": 2})), [json!("leased")]);
    let space = ahead.space();
    drop(ahead);
    // A host of its own begins with the clock of before; so does the one after it.
    for _ in 0..2 {
        let host = Host::start_on(&space, json!({})).unwrap();
        assert_eq!(pop(&host, json!({})), NOTHING);
        host.advance(SECOND * 86_399);
        assert_eq!(pop(&host, json!({})), NOTHING);
    }
    let host = Host::start_on(&space, json!({})).unwrap();
    host.advance(SECOND * 86_400);
    assert_eq!(pop(&host, json!({})), [json!("leased")]);
}
