//! Durable events, with a plugin that keeps work in memory: what the daemon has
//! to do for them, in both faces.

mod damage;
mod disk;
mod following;
mod lives;
mod placement;

use ksi_protocol::{
    Frame, Pattern,
    frame::{Class, Subscribe},
};
use ksi_tests::{Daemon, Home, WITHOUT_MODEL, frames, library, wait_until};
use serde_json::json;

fn config(events: &str) -> String {
    let keeper = library("fixture_keeper");
    let keeper = keeper.display();
    format!(
        "{WITHOUT_MODEL}[plugins.state]\nenabled = false\n[plugins.checkpoint]\nlibrary = \"{keeper}\"\nplacement = \"in-process\"\n\
         keeps_work = true\nmay_call = []\nemits = [\"checkpoint:*\"]\n{events}"
    )
}

const DURABLE: &str = "[events.\"echo:say\"]\ndelivery = \"durable\"\n\
                       [events.\"test:born\"]\ndelivery = \"durable\"\npermission = \"test.use\"\n";

fn daemon() -> Daemon {
    let daemon = Home::with_config(&config(DURABLE)).start();
    daemon.ready();
    daemon
}

#[test]
fn a_durable_request_ends_with_accepted_and_is_carried_out() {
    let daemon = daemon();
    let mut lines = daemon.lines();
    lines.send(&json!({"event": "echo:say", "id": 1, "data": {"text": "hi"}}));
    let line = lines.receive();
    let name = line["accepted"]["request_id"].as_str().unwrap().to_owned();
    assert!(line["accepted"]["seq"].is_u64(), "{line}");
    let mut client = daemon.frames();
    client.send(&frames::request(5, "echo:say", &json!({"text": "ho"})));
    let Frame::Accepted { id: 5, request_id, .. } = client.receive() else { panic!("not accepted") };
    // The id is free again: `accepted` was the last answer.
    client.ask(5, "system:health", &json!({})).unwrap();
    for name in [name, request_id] {
        wait_until("the work is done", || daemon.ask("work:get", json!({"request_id": name})).is_ok());
        let outcome = daemon.ask("work:get", json!({"request_id": name})).unwrap();
        assert!(outcome["answer"].is_array(), "{outcome}");
    }
}

#[test]
fn durable_facts_are_followed_from_any_position_and_over_a_restart_of_a_reader() {
    let daemon = daemon();
    let mut client = daemon.frames();
    for n in 1..=100 {
        client.send(&frames::emit(Some(n), "test:born", &json!({ "n": n })));
        assert!(matches!(client.receive(), Frame::Reply { .. }));
    }
    let pattern = Pattern::parse("test:*").unwrap();
    let subscribe = Subscribe { since_seq: Some(1), ..Subscribe::new(900, pattern, Class::Durable) };
    client.send(&Frame::Subscribe(subscribe));
    assert!(matches!(client.receive(), Frame::Reply { id: 900, .. }));
    let mut seqs = Vec::new();
    for n in 1..=100 {
        let event = client.event();
        assert_eq!(frames::value(&event.data)["n"], n);
        seqs.push(event.seq);
    }
    assert!(seqs.is_sorted());
    let mut lines = daemon.lines();
    let since = seqs[97];
    lines.send(
        &json!({"subscribe": "test:born", "id": "s", "class": "durable", "since_seq": since, "credit": 2}),
    );
    assert_eq!(lines.receive()["data"]["subscribed"], true);
    assert_eq!(lines.receive()["seq"], since);
    assert_eq!(lines.receive()["data"]["n"], 99);
    lines.send(&json!({"credit": "s", "n": 5}));
    assert_eq!(lines.receive()["data"]["n"], 100);
    client.send(&Frame::Unsubscribe { id: 900 });
    client.send(&frames::emit(None, "test:born", &json!({"n": 101})));
    assert_eq!(lines.receive()["data"]["n"], 101);
    client.ask(900, "system:health", &json!({})).unwrap();
}

#[test]
fn the_space_of_plugins_is_closed_to_clients_and_live_subscriptions_take_no_position() {
    let daemon = daemon();
    assert_eq!(daemon.ask("space:get", json!({})).unwrap_err()["code"], "denied");
    let mut lines = daemon.lines();
    lines.send(&json!({"subscribe": "test:*", "since_seq": 1}));
    assert_eq!(lines.receive()["refusal"]["code"], "invalid_frame");
}

#[test]
fn work_and_facts_are_refused_while_nobody_keeps_them() {
    let daemon = daemon();
    daemon.ask("plugin:unload", json!({"name": "checkpoint"})).unwrap();
    let refusal = daemon.ask("echo:say", json!({"text": "hi"})).unwrap_err();
    assert_eq!((&refusal["code"], &refusal["retryable"]), (&json!("unavailable"), &json!(true)));
    assert!(refusal["hint"].is_string(), "{refusal}");
    let mut lines = daemon.lines();
    lines.send(&json!({"emit": "test:born", "id": 1}));
    assert_eq!(lines.receive()["refusal"]["code"], "unavailable");
    lines.send(&json!({"subscribe": "test:*", "id": 2, "class": "durable"}));
    assert_eq!(lines.receive()["refusal"]["code"], "unavailable");
    daemon.ask("plugin:load", json!({"library": "checkpoint"})).unwrap();
    lines.send(&json!({"event": "echo:say", "data": {"text": "hi"}}));
    assert!(lines.receive()["accepted"].is_object());
}

#[test]
fn manifest_and_library_must_agree_on_who_keeps_work() {
    let config = "[plugins.checkpoint]\nenabled = false\n[plugins.echo]\nkeeps_work = true\n";
    let daemon = Home::with_config(&format!("{config}{WITHOUT_MODEL}")).start();
    wait_until("echo is not taken for what it is not", || {
        let error = daemon.plugin("echo").last_error;
        error.is_some_and(|error| error.contains("is to keep work, and its library does not"))
    });
}
