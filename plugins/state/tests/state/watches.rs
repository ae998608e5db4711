//! Following keys.

use ksi_sdk::{prelude::Duration, protocol::meta::Meta};

use super::*;

fn watch(host: &Host, ask: Value) -> Call {
    host.open("state:watch", ask)
}

fn watch_with_credit(host: &Host, ask: Value, credit: u32) -> Call {
    host.open_as("state:watch", ask, &Meta { credit: Some(credit), ..Meta::default() })
}

/// What is told by now, as `kind key value`.
fn told(host: &Host, call: &Call) -> Vec<String> {
    let mut told = Vec::new();
    while let Some(answer) = host.try_next(call) {
        let Answer::Chunk(part) = answer else { panic!("{answer:?}") };
        let text = |field: &str| part.get(field).map_or(String::new(), |value| format!(" {value}"));
        let key = part.get("key").map_or(String::new(), |key| format!(" {}", key.as_str().unwrap()));
        assert_eq!(part.get("version").is_some(), part.get("key").is_some());
        told.push(format!("{}{key}{}", part["kind"].as_str().unwrap(), text("value")));
    }
    told
}

#[test]
fn what_is_there_comes_first_then_every_change() {
    let host = host();
    set(&host, "a", json!(1));
    set(&host, "b", json!(null));
    let call = watch(&host, json!({"prefix": ""}));
    assert_eq!(told(&host, &call), ["value a 1", "value b null", "current"]);
    set(&host, "a", json!(2));
    set(&host, "c", json!([3]));
    ask(&host, "state:delete", json!({"key": "b"}));
    ask(&host, "state:set", json!({"key": "c", "value": 4, "ttl_seconds": 1}));
    host.advance(Duration::from_secs(1));
    let expected = ["value a 2", "value c [3]", "deleted b", "value c 4", "expired c"];
    assert_eq!(told(&host, &call), expected);
    ask(
        &host,
        "state:batch",
        json!({"operations": [
        {"set": {"key": "x", "value": 1}}, {"delete": {"key": "a"}}, {"delete": {"key": "nothing"}}]}),
    );
    assert_eq!(told(&host, &call), ["value x 1", "deleted a"]);
}

#[test]
fn versions_rise_and_say_what_a_read_says() {
    let host = host();
    set(&host, "k", json!(1));
    let call = watch(&host, json!({"key": "k"}));
    let first = chunk(&host, &call)["version"].as_u64().unwrap();
    assert_eq!(chunk(&host, &call), json!({"kind": "current"}));
    assert_eq!(first, ask(&host, "state:get", json!({"key": "k"}))["version"]);
    let metadata = json!({"m": 1});
    let set =
        ask(&host, "state:set", json!({"key": "k", "value": 2, "ttl_seconds": 5, "metadata": metadata}));
    let part = chunk(&host, &call);
    assert_eq!((&part["version"], &part["expires_at_ms"]), (&set["version"], &set["expires_at_ms"]));
    assert_eq!(part["metadata"], metadata);
    ask(&host, "state:delete", json!({"key": "k"}));
    assert!(chunk(&host, &call)["version"].as_u64().unwrap() > set["version"].as_u64().unwrap());
}

#[test]
fn only_the_keys_that_were_asked_for_are_told() {
    let host = host();
    for key in ["user", "user:1", "user:2", "team"] {
        set(&host, key, json!(0));
    }
    ask(&host, "state:set", json!({"namespace": "n", "key": "user:1", "value": 0}));
    let (one, some) = (watch(&host, json!({"key": "user"})), watch(&host, json!({"prefix": "user:"})));
    let missing = watch(&host, json!({"key": "later"}));
    assert_eq!(told(&host, &one), ["value user 0", "current"]);
    assert_eq!(told(&host, &some), ["value user:1 0", "value user:2 0", "current"]);
    assert_eq!(told(&host, &missing), ["current"]);
    for key in ["user", "user:1", "team", "later"] {
        set(&host, key, json!(1));
    }
    ask(&host, "state:set", json!({"namespace": "n", "key": "user", "value": 0}));
    assert_eq!(told(&host, &one), ["value user 1"]);
    assert_eq!(told(&host, &some), ["value user:1 1"]);
    assert_eq!(told(&host, &missing), ["value later 1"]);
}

#[test]
fn who_reads_slowly_is_told_only_the_latest_of_each_key() {
    let host = host();
    set(&host, "a", json!(0));
    let call = watch_with_credit(&host, json!({"prefix": ""}), 1);
    assert_eq!(told(&host, &call), ["value a 0"]);
    for n in 1..50 {
        set(&host, "a", json!(n));
        set(&host, "b", json!(n));
    }
    ask(&host, "state:delete", json!({"key": "b"}));
    assert_eq!(told(&host, &call), [""; 0]);
    host.credit(&call, 1);
    assert_eq!(told(&host, &call), ["current"]);
    host.credit(&call, 1);
    assert_eq!(told(&host, &call), ["value a 49"]);
    set(&host, "c", json!(1));
    host.credit(&call, 9);
    assert_eq!(told(&host, &call), ["deleted b", "value c 1"]);
    set(&host, "a", json!("live"));
    assert_eq!(told(&host, &call), [r#"value a "live""#]);
}

#[test]
fn who_misses_too_much_begins_anew() {
    let host = host();
    let call = watch_with_credit(&host, json!({"prefix": ""}), 1);
    assert_eq!(told(&host, &call), ["current"]);
    for n in 0..1100 {
        set(&host, &format!("{n:04}"), json!(n));
    }
    for n in 2..1100 {
        ask(&host, "state:delete", json!({"key": format!("{n:04}")}));
    }
    host.credit(&call, 2);
    assert_eq!(told(&host, &call), ["reset", "value 0000 0"]);
    set(&host, "0001", json!("newer"));
    host.credit(&call, 100);
    let rest = told(&host, &call);
    assert!(rest.contains(&r#"value 0001 "newer""#.into()), "{rest:?}");
    assert_eq!(rest.iter().filter(|part| *part == "current").count(), 1);
    set(&host, "0001", json!("after"));
    assert_eq!(told(&host, &call), [r#"value 0001 "after""#]);
}

#[test]
fn watches_are_counted_and_one_that_ends_makes_room() {
    let host = Host::start(json!({"watches_max": 2})).unwrap();
    let first = watch(&host, json!({"key": "a"}));
    let second = watch(&host, json!({"key": "a"}));
    assert_eq!(refused(&host, "state:watch", json!({"key": "a"})).code, Code::Busy);
    host.cancel(&first);
    let third = watch(&host, json!({"key": "a"}));
    set(&host, "a", json!(1));
    for call in [second, third] {
        assert_eq!(told(&host, &call), ["current", "value a 1"]);
    }
}

#[test]
fn watches_and_waits_end_when_the_daemon_stops_and_when_the_plugin_alone_does() {
    for daemon_stops in [true, false] {
        let host = host();
        let live = watch(&host, json!({"key": "a"}));
        let slow = watch_with_credit(&host, json!({"prefix": ""}), 1);
        assert_eq!(told(&host, &live), ["current"]);
        assert_eq!(told(&host, &slow), ["current"]);
        set(&host, "b", json!(1));
        let waits = host.open("state:pop", json!({"queue": "q", "wait_ms": 60_000}));
        assert_eq!(host.try_next(&waits), None);
        if daemon_stops {
            host.emit("system:stopping", json!({}));
        } else {
            assert!(host.drain());
        }
        for call in [live, slow] {
            assert_eq!(host.try_next(&call), Some(Answer::End(json!({"reason": "stopping"}))));
        }
        assert_eq!(host.try_next(&waits), Some(Answer::Reply(json!({"items": []}))));
        assert!(!daemon_stops || host.drain());
    }
}
