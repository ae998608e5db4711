//! What becomes of requests: cancelled, late, nested, in flight at a crash.

use std::collections::BTreeSet;

use ksi_protocol::system::PluginState;
use ksi_tests::{Daemon, wait_until};
use serde_json::{Value, json};

use super::{comes_back, daemon, faulty, kill_dead, open};

const BOTH: [&str; 2] = ["in-process", "child"];

fn idle(daemon: &Daemon) {
    wait_until("the plugin holds nothing", || daemon.plugin("faulty").in_flight == 0);
    assert_eq!(daemon.ask("faulty:ok", json!({})).expect("it answers")["n"], 0);
}

#[test]
fn every_one_of_a_hundred_requests_in_flight_is_refused_once() {
    for placement in BOTH {
        let daemon = faulty(placement);
        let mut lines = daemon.lines();
        for id in 0..100 {
            lines.send(&json!({"id": id, "event": "faulty:never", "data": {}}));
        }
        wait_until("the plugin has them all", || daemon.plugin("faulty").in_flight == 100);
        match daemon.plugin("faulty").pid {
            Some(pid) => kill_dead(pid),
            None => drop(daemon.ask("faulty:panic", json!({})).expect_err("it panics")),
        }
        let refused: Vec<Value> = (0..100).map(|_| lines.receive()).collect();
        assert!(refused.iter().all(|answer| answer["refusal"]["code"] == "plugin_restarted"));
        let ids: BTreeSet<u64> = refused.iter().filter_map(|answer| answer["id"].as_u64()).collect();
        assert_eq!(ids.len(), 100, "one refusal each");
        comes_back(&daemon);
        // Nothing more is said to any of them.
        lines.send(&json!({"id": "next", "event": "faulty:ok", "data": {}}));
        assert_eq!(lines.receive()["id"], "next");
    }
}

#[test]
fn a_request_during_the_backoff_is_told_when_to_try_again() {
    let daemon = daemon("child", r#"restart = { backoff_min = "30s" }"#);
    daemon.ask("faulty:abort", json!({})).expect_err("it dies");
    wait_until("it waits", || daemon.plugin("faulty").state == PluginState::Backoff);
    let refusal = daemon.ask("faulty:ok", json!({})).expect_err("it is not there");
    assert_eq!(refusal["code"], "unavailable", "{refusal}");
    assert_eq!(refusal["retryable"], true, "{refusal}");
    assert!(refusal["retry_after_ms"].as_u64() > Some(0), "{refusal}");
    assert!(refusal["message"].as_str().expect("a text").contains("SIGABRT"), "{refusal}");
    let health = daemon.ask("system:health", json!({})).expect("alive");
    assert_eq!(health["status"], "unhealthy");
    // The operator need not wait.
    assert_eq!(daemon.ask("plugin:restart", json!({"name": "faulty"})).expect("it starts")["state"], "ready");
    daemon.ask("faulty:ok", json!({})).expect("it answers");
}

#[test]
fn a_cancelled_request_lets_go_of_its_handler() {
    for placement in BOTH {
        let daemon = faulty(placement);
        for (event, data) in
            [("faulty:never", json!({})), ("faulty:stream", json!({"n": 1_000_000, "ms": 20}))]
        {
            let mut lines = daemon.lines();
            lines.send(&json!({"id": 1, "event": event, "data": data}));
            wait_until("the plugin has it", || daemon.plugin("faulty").in_flight == 1);
            lines.send(&json!({"cancel": 1}));
            let last = loop {
                let line = lines.receive();
                if line.get("chunk").is_none() {
                    break line;
                }
            };
            assert_eq!(last["refusal"]["code"], "cancelled", "{placement} {event}: {last}");
            idle(&daemon);
        }
    }
}

#[test]
fn a_client_that_goes_away_lets_go_of_its_handlers() {
    for placement in BOTH {
        let daemon = faulty(placement);
        let lines = open(&daemon, "faulty:never", &json!({}));
        drop(lines);
        idle(&daemon);
    }
}

#[test]
fn a_request_past_its_deadline_is_refused_and_its_handler_let_go() {
    for placement in BOTH {
        let daemon = faulty(placement);
        let mut lines = daemon.lines();
        lines.send(&json!({"event": "faulty:never", "data": {}, "timeout_ms": 100}));
        let answer = lines.receive();
        assert_eq!(answer["refusal"]["code"], "timeout", "{placement}: {answer}");
        idle(&daemon);
    }
}

#[test]
fn a_plugin_may_call_what_the_manifest_allows_and_nothing_else() {
    for placement in BOTH {
        let daemon = faulty(placement);
        let say = json!({"event": "echo:say", "data": {"text": "a"}});
        let refusal = daemon.ask("faulty:call", say).expect_err("it may not");
        assert_eq!(refusal["code"], "denied", "{placement}: {refusal}");
        assert!(refusal["message"].as_str().expect("a text").contains("echo:say"), "{refusal}");
        let list = daemon.ask("faulty:call", json!({"event": "plugin:list"})).expect("it may");
        assert!(list["plugins"].as_array().is_some_and(|plugins| plugins.len() > 1), "{placement}: {list}");
    }
}

#[test]
fn a_plugin_may_call_itself() {
    for placement in BOTH {
        let daemon = faulty(placement);
        let inner = json!({"event": "faulty:call", "data": {"event": "faulty:slow", "data": {"ms": 1}}});
        let answer = daemon.ask("faulty:call", inner).expect("it does not wait for itself");
        assert_eq!(answer["n"], 0, "{placement}");
        idle(&daemon);
    }
}

#[test]
fn a_nested_request_ends_with_the_one_that_it_was_asked_for() {
    for placement in BOTH {
        let daemon = faulty(placement);
        let mut lines = daemon.lines();
        lines.send(&json!({"id": 1, "event": "faulty:call", "data": {"event": "faulty:never"}}));
        wait_until("both are in flight", || daemon.plugin("faulty").in_flight == 2);
        lines.send(&json!({"cancel": 1}));
        assert_eq!(lines.receive()["refusal"]["code"], "cancelled", "{placement}");
        idle(&daemon);
    }
}

#[test]
fn the_origin_is_the_word_of_the_daemon() {
    for placement in BOTH {
        let daemon = faulty(placement);
        let origin = daemon.ask("faulty:origin", json!({})).expect("it answers")["origin"].clone();
        assert!(origin.as_str().expect("a text").starts_with("session:"), "{placement}: {origin}");
        let call = json!({"event": "faulty:origin"});
        let origin = daemon.ask("faulty:call", call).expect("it answers")["origin"].clone();
        assert_eq!(origin, "plugin:faulty", "{placement}");
        // What a client claims in its frame changes nothing.
        let mut lines = daemon.lines();
        lines.send(&json!({"event": "faulty:origin", "data": {}, "origin": "daemon"}));
        assert_ne!(lines.receive()["data"]["origin"], "daemon", "{placement}");
    }
}
