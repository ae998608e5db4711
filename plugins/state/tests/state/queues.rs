//! Push, pop, ack, nack, queue and purge.

use ksi_sdk::{prelude::Duration, protocol::meta::Meta};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn lease(host: &Host, seconds: u64) -> Value {
    ask(host, "state:pop", json!({"queue": "q", "lease_seconds": seconds, "count": 100}))
}

fn info(host: &Host) -> Value {
    let mut info = ask(host, "state:queue", json!({"queue": "q"}));
    let info = info.as_object_mut().unwrap();
    let counts = ["length", "ready", "leased", "dead"];
    json!(counts.map(|count| info.remove(count).unwrap()))
}

#[test]
fn items_come_out_in_the_order_in_which_they_went_in() {
    let host = host();
    let first = ask(&host, "state:push", json!({"queue": "q", "data": {"n": 0}}));
    assert_eq!(first["length"], 1);
    assert_eq!(ask(&host, "state:push", json!({"key": "q", "data": null}))["length"], 2);
    for data in [json!(2), json!(u64::MAX), json!([4.0])] {
        push(&host, data);
    }
    let popped = ask(&host, "state:pop", json!({"queue": "q"}));
    assert_eq!(popped["items"][0]["data"], json!({"n": 0}));
    assert_eq!(popped["items"][0]["id"], first["id"]);
    assert_eq!(popped.get("lease"), None);
    assert_eq!(pop(&host, json!({"count": 2})), [json!(null), json!(2)]);
    let host = host.restart(json!({})).unwrap();
    assert_eq!(pop(&host, json!({"count": 9})), [json!(u64::MAX), json!([4.0])]);
    assert_eq!(pop(&host, json!({})), NOTHING);
    assert_eq!(host.space().keys(), ["c"]);
}

#[test]
fn queues_and_namespaces_do_not_mix() {
    let host = host();
    for (namespace, queue) in [("a", "b/c"), ("a/b", "c"), ("a", "b"), ("a\0", "b")] {
        let data = json!([namespace, queue]);
        ask(&host, "state:push", json!({"namespace": namespace, "queue": queue, "data": data}));
        ask(&host, "state:set", json!({"namespace": namespace, "key": queue, "value": 1}));
    }
    let host = host.restart(json!({})).unwrap();
    for (namespace, queue) in [("a", "b/c"), ("a/b", "c"), ("a", "b"), ("a\0", "b")] {
        let popped = ask(&host, "state:pop", json!({"namespace": namespace, "queue": queue, "count": 9}));
        assert_eq!(popped["items"].as_array().unwrap().len(), 1);
        assert_eq!(popped["items"][0]["data"], json!([namespace, queue]));
    }
}

#[test]
fn a_leased_item_comes_back_unless_it_is_acknowledged() {
    let host = host();
    push(&host, json!("a"));
    push(&host, json!("b"));
    let first = lease(&host, 10);
    let (a, b) = (first["items"][0]["id"].clone(), first["items"][1]["id"].clone());
    assert_eq!(first["items"][0]["deliveries"], 1);
    assert_eq!(lease(&host, 10), json!({"items": []}));
    let acked = ask(&host, "state:ack", json!({"queue": "q", "ids": [b, b, 999], "lease": first["lease"]}));
    assert_eq!(acked, json!({"ids": [b], "missing": [999]}));
    host.advance(SECOND * 10 - Duration::from_millis(1));
    assert_eq!(lease(&host, 10), json!({"items": []}));
    host.advance(Duration::from_millis(1));
    let second = lease(&host, 10);
    assert_eq!(ids(&second["items"]), [a.as_u64().unwrap()]);
    assert_eq!(second["items"][0]["deliveries"], 2);
    let late = ask(&host, "state:ack", json!({"queue": "q", "ids": [a], "lease": first["lease"]}));
    assert_eq!(late, json!({"ids": [], "missing": [a]}), "it is somebody else's now");
    let acked = ask(&host, "state:ack", json!({"queue": "q", "ids": [a], "lease": second["lease"]}));
    assert_eq!(acked["ids"], json!([a]));
    assert_eq!(info(&host), json!([0, 0, 0, 0]));
}

#[test]
fn leases_hold_over_a_restart_and_numbers_are_not_given_again() {
    let host = host();
    let before = push(&host, json!(1));
    let first = lease(&host, 10);
    let host = host.restart(json!({})).unwrap();
    assert_eq!(lease(&host, 10), json!({"items": []}));
    let number = first["lease"].as_u64().unwrap();
    assert!(push(&host, json!(2)) > before.max(number));
    host.advance(SECOND * 10);
    let second = lease(&host, 10);
    assert_eq!(second["items"].as_array().unwrap().len(), 2);
    assert_eq!(second["items"][0]["deliveries"], 2);
    assert!(second["lease"].as_u64().unwrap() > number);
    ask(&host, "state:ack", json!({"queue": "q", "ids": ids(&second["items"])}));
    let host = host.restart(json!({})).unwrap();
    let after = push(&host, json!(3));
    assert!(after > second["lease"].as_u64().unwrap(), "though the queue was empty");
}

#[test]
fn one_that_was_handed_out_too_often_is_set_aside() {
    let host = host();
    let id = push(&host, json!("poison"));
    push(&host, json!("good"));
    let mut last = Value::Null;
    for _ in 0..3 {
        let ask_for = json!({"queue": "q", "lease_seconds": 1, "max_deliveries": 3});
        last = ask(&host, "state:pop", ask_for);
        assert_eq!(last["items"][0]["data"], "poison");
        host.advance(SECOND);
    }
    assert_eq!(last["items"][0]["deliveries"], 3);
    assert_eq!(pop(&host, json!({"max_deliveries": 3})), [json!("good")]);
    assert_eq!(info(&host), json!([0, 0, 0, 1]));
    assert_eq!(pop(&host, json!({})), NOTHING, "a dead one is dead for everyone");
    let host = host.restart(json!({})).unwrap();
    let shown = ask(&host, "state:queue", json!({"queue": "q", "limit": 10}));
    assert_eq!((&shown["items"][0]["state"], &shown["items"][0]["data"]), (&json!("dead"), &json!("poison")));
    ask(&host, "state:nack", json!({"queue": "q", "ids": [id]}));
    let again = lease(&host, 1);
    assert_eq!(again["items"][0]["deliveries"], 1, "it begins anew");
    host.advance(SECOND);
    assert_eq!(pop(&host, json!({"max_deliveries": 1})), NOTHING);
    assert_eq!(ask(&host, "state:ack", json!({"queue": "q", "ids": [id]}))["ids"], json!([id]));
    assert_eq!(info(&host), json!([0, 0, 0, 0]));
}

#[test]
fn what_is_given_back_can_be_taken_at_once_or_later() {
    let host = host();
    let id = push(&host, json!(1));
    let first = lease(&host, 100);
    let back = ask(&host, "state:nack", json!({"queue": "q", "ids": [id], "lease": first["lease"]}));
    assert_eq!(back, json!({"ids": [id], "missing": []}));
    assert_eq!(info(&host), json!([1, 1, 0, 0]));
    let second = lease(&host, 100);
    assert_eq!(second["items"][0]["deliveries"], 2);
    let stale = json!({"queue": "q", "ids": [id], "lease": first["lease"]});
    assert_eq!(ask(&host, "state:nack", stale)["missing"], json!([id]));
    ask(&host, "state:nack", json!({"queue": "q", "ids": [id], "delay_ms": 5000}));
    assert_eq!(info(&host), json!([1, 0, 1, 0]));
    let shown = ask(&host, "state:queue", json!({"queue": "q", "limit": 1}));
    assert_eq!(shown["items"][0]["state"], "delayed");
    host.advance(SECOND * 5);
    assert_eq!(pop(&host, json!({})), [json!(1)]);
}

#[test]
fn a_pop_can_wait_for_an_item() {
    let host = host();
    let wait = |ms: u64| host.open("state:pop", json!({"queue": "q", "wait_ms": ms}));
    let (first, second) = (wait(5000), wait(1000));
    assert_eq!(host.try_next(&first), None);
    host.advance(SECOND);
    assert_eq!(host.try_next(&second), Some(Answer::Reply(json!({"items": []}))));
    push(&host, json!("a"));
    let Some(Answer::Reply(answer)) = host.try_next(&first) else { panic!("still waits") };
    assert_eq!(answer["items"][0]["data"], "a");
    assert_eq!(info(&host), json!([0, 0, 0, 0]));
    // Who has less time than it would wait is told while there is some left.
    let hasty = Meta { timeout_ms: Some(1000), ..Meta::default() };
    let call = host.open_as("state:pop", json!({"queue": "q", "wait_ms": 5000}), &hasty);
    host.advance(Duration::from_millis(900));
    assert_eq!(host.try_next(&call), Some(Answer::Reply(json!({"items": []}))));
}

#[test]
fn who_has_waited_longest_is_served_first() {
    let host = host();
    let wait = || host.open("state:pop", json!({"queue": "q", "wait_ms": 60_000}));
    let (first, second, third) = (wait(), wait(), wait());
    host.cancel(&first);
    push(&host, json!("a"));
    let Some(Answer::Reply(answer)) = host.try_next(&second) else { panic!("still waits") };
    assert_eq!(answer["items"][0]["data"], "a");
    assert_eq!(host.try_next(&third), None);
    push(&host, json!("b"));
    let Some(Answer::Reply(answer)) = host.try_next(&third) else { panic!("still waits") };
    assert_eq!(answer["items"][0]["data"], "b");
}

#[test]
fn one_that_comes_back_wakes_who_waits() {
    let host = host();
    let id = push(&host, json!("a"));
    lease(&host, 5);
    let call = host.open("state:pop", json!({"queue": "q", "wait_ms": 60_000, "lease_seconds": 100}));
    host.advance(SECOND * 5);
    let Some(Answer::Reply(answer)) = host.try_next(&call) else { panic!("still waits") };
    assert_eq!(answer["items"][0]["deliveries"], 2);
    let call = host.open("state:pop", json!({"queue": "q", "wait_ms": 60_000}));
    ask(&host, "state:nack", json!({"queue": "q", "ids": [id]}));
    assert!(matches!(host.try_next(&call), Some(Answer::Reply(_))));
}

#[test]
fn those_who_wait_are_counted() {
    let host = Host::start(json!({"waiters_max": 1})).unwrap();
    let wait = json!({"queue": "q", "wait_ms": 1000});
    let call = host.open("state:pop", wait.clone());
    assert_eq!(refused(&host, "state:pop", wait.clone()).code, Code::Busy);
    assert_eq!(pop(&host, json!({})), NOTHING, "one that does not wait is none of them");
    host.cancel(&call);
    let call = host.open("state:pop", wait);
    assert_eq!(host.try_next(&call), None);
}

#[test]
fn a_queue_can_be_looked_through_without_taking() {
    let host = host();
    let pushed: Vec<u64> = (0..5).map(|n| push(&host, json!(n))).collect();
    let lease = ask(&host, "state:pop", json!({"queue": "q", "lease_seconds": 5}));
    assert_eq!(info(&host), json!([5, 4, 1, 0]));
    let page = ask(&host, "state:queue", json!({"queue": "q", "limit": 3}));
    assert_eq!(ids(&page["items"]), pushed[..3]);
    assert_eq!((&page["items"][0]["state"], &page["items"][1]["state"]), (&json!("leased"), &json!("ready")));
    assert_eq!(page["items"][0]["hidden_until_ms"], lease["lease_until_ms"]);
    assert_eq!(page["bytes"], 5);
    let page = ask(&host, "state:queue", json!({"queue": "q", "limit": 3, "after": page["next"]}));
    assert_eq!(ids(&page["items"]), pushed[3..]);
    assert_eq!(page.get("next"), None);
    let nothing = ask(&host, "state:queue", json!({"queue": "none"}));
    assert_eq!(nothing["length"], 0);
    assert_eq!(nothing.get("oldest_at_ms"), None);
}

#[test]
fn a_purge_removes_everything() {
    let host = host();
    for n in 0..600 {
        push(&host, json!(n));
    }
    lease(&host, 100);
    ask(&host, "state:push", json!({"queue": "other", "data": 1}));
    assert_eq!(ask(&host, "state:purge", json!({"queue": "q"})), json!({"removed": 600}));
    assert_eq!(ask(&host, "state:purge", json!({"queue": "q"})), json!({"removed": 0}));
    assert_eq!(info(&host), json!([0, 0, 0, 0]));
    assert_eq!(host.space().keys().len(), 3, "{:?}", host.space().keys());
}

#[test]
fn large_items_come_a_few_at_a_time() {
    let host = host();
    for _ in 0..5 {
        push(&host, json!("x".repeat(1_000_000)));
    }
    assert_eq!(pop(&host, json!({"count": 5, "lease_seconds": 9})).len(), 3);
    assert_eq!(pop(&host, json!({"count": 5, "lease_seconds": 9})).len(), 2);
}
