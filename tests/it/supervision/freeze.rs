//! Freeze: everything stops but reading and administration, and nothing that
//! was accepted is lost.

use ksi_protocol::system::HealthStatus;
use ksi_tests::{Daemon, Home, WITHOUT_MODEL, library, stdout, wait_until};
use serde_json::{Value, json};

fn start() -> Daemon {
    let faulty = format!("[plugins.faulty]\nlibrary = \"{}\"\n", library("fixture_faulty").display());
    let daemon = Home::with_config(&format!("{WITHOUT_MODEL}{faulty}")).start();
    daemon.ready();
    daemon
}

fn is_frozen(answer: Result<Value, Value>) {
    let refusal = answer.expect_err("it is frozen");
    assert_eq!((&refusal["code"], &refusal["retryable"]), (&json!("unavailable"), &json!(true)), "{refusal}");
    assert!(refusal["message"].as_str().unwrap().contains("frozen: it runs wild"), "{refusal}");
    assert!(refusal["hint"].as_str().unwrap().contains("ksi thaw"), "{refusal}");
    assert_eq!(refusal["details"]["frozen"], true);
}

/// What must hold while it is frozen.
fn only_reading_and_administration_go_on(daemon: &Daemon) {
    is_frozen(daemon.ask("echo:say", json!({"text": "a"})));
    is_frozen(daemon.ask("echo:keep", json!({"text": "a"})));
    is_frozen(daemon.ask("state:set", json!({"key": "k", "value": 1})));
    let mut lines = daemon.lines();
    lines.send(&json!({"emit": "test:told", "id": 1}));
    is_frozen(Err(lines.receive()["refusal"].take()));
    assert_eq!(daemon.ask("state:get", json!({"key": "k"})).unwrap()["value"], 0);
    daemon.ask("plugin:list", json!({})).unwrap();
    daemon.ask("plugin:restart", json!({"name": "state"})).expect("a plugin starts, and reads its state");
    daemon.ask("checkpoint:create", json!({})).expect("that is administration");
    let health = daemon.health();
    assert_eq!((health.status, health.ready), (HealthStatus::Degraded, true));
    assert_eq!(health.frozen.expect("it is told").reason, "it runs wild");
    assert!(health.reasons.iter().any(|why| why == "KSI is frozen: it runs wild"), "{:?}", health.reasons);
    assert!(stdout(&daemon.ksi(&["status"])).contains("KSI is frozen: it runs wild"));
    assert_eq!(daemon.ksi(&["health"]).status.code(), Some(8));
}

#[test]
fn a_freeze_stops_all_but_reading_and_administration_and_outlasts_the_daemon() {
    let daemon = start();
    daemon.ask("state:set", json!({"key": "k", "value": 0})).unwrap();
    let mut facts = daemon.lines();
    facts.send(&json!({"subscribe": "system:*"}));
    facts.receive();
    let mut slow = daemon.lines();
    slow.send(&json!({"event": "faulty:stream", "data": {"n": 40, "ms": 20}}));
    wait_until("it runs", || daemon.plugin("faulty").in_flight == 1);
    let frozen = daemon.ksi(&["freeze", "--reason", "it runs wild", "-o", "json"]);
    let frozen: Value = serde_json::from_str(&stdout(&frozen)).unwrap();
    assert_eq!(frozen["frozen"], true);
    assert!(frozen["in_flight"].as_u64() >= Some(1), "{frozen}");
    let fact = facts.receive();
    assert_eq!((&fact["event"], &fact["data"]["reason"]), (&json!("system:frozen"), &json!("it runs wild")));
    only_reading_and_administration_go_on(&daemon);
    while slow.receive()["end"] != true {}
    let daemon = daemon.kill().start();
    daemon.ready();
    only_reading_and_administration_go_on(&daemon);
    assert_eq!(stdout(&daemon.ksi(&["thaw"])), "thawed\n");
    assert_eq!(daemon.ask("echo:say", json!({"text": "a"})).unwrap()["text"], "a");
    assert_eq!(daemon.health().status, HealthStatus::Ok);
    let daemon = daemon.kill().start();
    daemon.ready();
    daemon.ask("echo:say", json!({"text": "a"})).expect("it was thawed for good");
}

#[test]
fn what_was_given_is_taken_back_and_what_runs_is_cancelled_while_it_is_frozen() {
    let daemon = start();
    let lent = json!({"name": "lent", "can": ["echo.use"]});
    let made = daemon.ask("token:create", lent.clone()).unwrap();
    daemon.ask("plugin:unload", json!({"name": "echo"})).unwrap();
    let waits = daemon.ask("echo:keep", json!({"text": "kept"})).expect("its owner need not be there");
    let runs = daemon.ask("completion:async", json!({"prompt": "x", "model": "mock/hang"})).unwrap();
    let state = |of: &Value| {
        let work = daemon.ask("work:get", json!({"request_id": of["request_id"]})).unwrap();
        work["state"].as_str().unwrap().to_owned()
    };
    wait_until("it runs", || state(&runs) == "leased");
    daemon.ask("system:freeze", json!({"on": true, "reason": "it runs wild"})).unwrap();
    is_frozen(daemon.ask("token:create", lent));
    let id = &made["info"]["id"];
    assert_eq!(daemon.ask("token:list", json!({})).unwrap()["tokens"][0]["id"], *id);
    assert_eq!(daemon.ask("token:revoke", json!({"id": id})).unwrap()["revoked"], json!([id]));
    daemon.ask("work:cancel", json!({"request_id": waits["request_id"]})).expect("it goes on");
    daemon.ask("completion:cancel", json!({"request_id": runs["request_id"]})).expect("it goes on");
    for work in [&waits, &runs] {
        wait_until("it is cancelled", || state(work) == "cancelled");
    }
}

#[test]
fn what_a_plugin_asks_is_stopped_as_well() {
    let faulty = format!(
        "[plugins.faulty]\nlibrary = \"{}\"\nmay_call = [\"echo:*\"]\n[events.\"faulty:call\"]\n\
         permission = \"faulty.read\"\n",
        library("fixture_faulty").display()
    );
    let daemon = Home::with_config(&format!("{WITHOUT_MODEL}{faulty}")).start();
    daemon.ready();
    let call = || daemon.ask("faulty:call", json!({"event": "echo:say", "data": {"text": "a"}}));
    assert_eq!(call().unwrap()["text"], "a");
    daemon.ask("system:freeze", json!({"on": true, "reason": "it runs wild"})).unwrap();
    is_frozen(call());
}

#[test]
fn durable_work_that_was_accepted_waits_for_the_thaw_and_is_then_done_at_once() {
    let daemon = start();
    daemon.ask("plugin:unload", json!({"name": "echo"})).unwrap();
    let accepted = daemon.ask("echo:keep", json!({"text": "kept"})).expect("its owner need not be there");
    let work = || daemon.ask("work:get", json!({"request_id": accepted["request_id"]})).unwrap();
    daemon.ask("system:freeze", json!({"on": true})).unwrap();
    daemon.ask("plugin:load", json!({"library": "echo"})).expect("that is administration");
    // It is tried again in vain, and that does not count.
    daemon.ask("work:retry", json!({"request_id": accepted["request_id"]})).expect_err("it has not ended");
    assert_ne!(work()["state"], "done");
    let daemon = daemon.kill().start();
    daemon.ready();
    let work = || daemon.ask("work:get", json!({"request_id": accepted["request_id"]})).unwrap();
    wait_until("it was tried", || work()["state"] == "waiting");
    assert_eq!(work()["attempts"], 0, "{}", work());
    daemon.ask("system:freeze", json!({"on": false})).unwrap();
    wait_until("it is done", || work()["state"] == "done");
    assert_eq!(work()["attempts"], 1, "{}", work());
}
