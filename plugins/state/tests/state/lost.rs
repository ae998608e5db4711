//! While the state cannot be had, and when the answer to a write is lost.

use ksi_sdk::prelude::Duration;

use super::*;

#[test]
fn while_the_state_is_away_nothing_is_done_and_nothing_lost() {
    let host = host();
    set(&host, "k", json!(1));
    let id = push(&host, json!("a"));
    let requests = [
        ("state:set", json!({"key": "k", "value": 2})),
        ("state:set", json!({"key": "new", "value": 2})),
        ("state:get", json!({"key": "k"})),
        ("state:delete", json!({"key": "k"})),
        ("state:list", json!({"values": true})),
        ("state:push", json!({"queue": "q", "data": 2})),
        ("state:pop", json!({"queue": "q"})),
        ("state:ack", json!({"queue": "q", "ids": [id]})),
        ("state:queue", json!({"queue": "q", "limit": 1})),
    ];
    for code in [Code::Busy, Code::Unavailable] {
        host.space().refuse(Some(Refusal::new(code, "away")));
        for (event, data) in &requests {
            // An item whose write may have been made is nobody's until that is known.
            if let Err(refusal) = host.request(event, data.clone()) {
                assert_eq!(refusal.code, code, "{event}");
            }
        }
        host.space().refuse(None);
        host.advance(Duration::from_secs(2));
        assert_eq!(get(&host, "k"), Some(json!(1)));
        assert_eq!(keys(&host), ["k"]);
        assert_eq!(ask(&host, "state:queue", json!({"queue": "q"}))["ready"], 1);
    }
    let host = host.restart(json!({})).unwrap();
    assert_eq!(pop(&host, json!({"count": 9})), [json!("a")]);
}

#[test]
fn a_set_whose_answer_is_lost_is_looked_for() {
    for made in [true, false] {
        let host = host();
        set(&host, "k", json!(1));
        let call = host.open("state:watch", json!({"key": "k"}));
        assert_eq!(
            (chunk(&host, &call)["value"].clone(), &chunk(&host, &call)["kind"]),
            (json!(1), &json!("current"))
        );
        lose_answers(&host, made);
        let refusal = refused(&host, "state:set", json!({"key": "k", "value": 2}));
        assert_eq!(refusal.code, Code::PluginRestarted);
        assert!(refusal.hint.contains("may have been done"), "{}", refusal.hint);
        host.advance(Duration::from_secs(2));
        assert_eq!(get(&host, "k"), Some(json!(if made { 2 } else { 1 })));
        if made {
            let parts: Vec<Value> = (0..3).map(|_| chunk(&host, &call)).collect();
            assert_eq!((&parts[0]["kind"], &parts[1]["value"]), (&json!("reset"), &json!(2)));
        }
        assert_eq!(host.try_next(&call), None);
        refused(&host, "state:set", json!({"key": "new", "value": 2}));
        assert_eq!(get(&host, "new"), made.then(|| json!(2)));
    }
}

#[test]
fn a_push_whose_answer_is_lost_is_looked_for() {
    for made in [true, false] {
        let host = host();
        push(&host, json!(1));
        lose_answers(&host, made);
        assert_eq!(
            refused(&host, "state:push", json!({"queue": "q", "data": 2})).code,
            Code::PluginRestarted
        );
        let shown = ask(&host, "state:queue", json!({"queue": "q", "limit": 9}));
        assert_eq!(shown["length"], if made { 2 } else { 1 });
        assert_eq!(shown["ready"], shown["length"], "nothing waits for what never comes");
        let host = host.restart(json!({})).unwrap();
        assert_eq!(pop(&host, json!({"count": 9})).len(), if made { 2 } else { 1 });
    }
}

#[test]
fn a_lease_whose_answer_is_lost_ends_in_its_time() {
    let host = host();
    push(&host, json!(1));
    lose_answers(&host, true);
    refused(&host, "state:pop", json!({"queue": "q", "lease_seconds": 10}));
    let shown = ask(&host, "state:queue", json!({"queue": "q", "limit": 9}));
    assert_eq!(shown["items"][0]["state"], "leased");
    let host = host.restart(json!({})).unwrap();
    assert_eq!(pop(&host, json!({})), NOTHING);
    host.advance(Duration::from_secs(10));
    assert_eq!(pop(&host, json!({})), [json!(1)]);
}

#[test]
fn a_pop_that_was_not_made_leaves_the_item() {
    let host = host();
    push(&host, json!(1));
    lose_answers(&host, false);
    refused(&host, "state:pop", json!({"queue": "q"}));
    assert_eq!(ask(&host, "state:queue", json!({"queue": "q"}))["ready"], 1);
}
