//! Faults of a plugin in the daemon's own process.

use std::time::{Duration, Instant};

use ksi_protocol::system::Placement;
use ksi_tests::wait_until;
use serde_json::{Value, json};

use super::{Facts, HANG, HEARD, Neighbour, comes_back, daemon, deaths, fails_in_process, faulty, open};

/// After a fault the plugin is back in this process when the operator says so.
fn reload_brings_it_back(event: &str) {
    let daemon = faulty("in-process");
    daemon.ask(event, json!({})).expect_err("it fails");
    assert_eq!(comes_back(&daemon).placement, Placement::Child);
    let restarted = daemon.ask("plugin:restart", json!({"name": "faulty"})).expect("it starts");
    assert_eq!(restarted["placement"], "child", "a restart alone does not trust it again");
    let reloaded = daemon.ask("plugin:reload", json!({"name": "faulty"})).expect("it starts");
    assert_eq!(reloaded["placement"], "in-process");
    assert_eq!(reloaded["pid"], Value::Null);
    assert_eq!(daemon.ask("faulty:ok", json!({})).expect("it answers")["n"], 0);
}

#[test]
fn a_panic_is_refused_and_restarted_in_a_child() {
    fails_in_process("faulty:panic", "panicked: as asked");
}

#[test]
fn a_panic_after_an_await_is_refused_and_restarted_in_a_child() {
    fails_in_process("faulty:panic_async", "panicked: as asked, later");
}

#[test]
fn a_hang_is_refused_and_restarted_in_a_child() {
    fails_in_process("faulty:hang", "did not come back from a call for 1000 ms");
}

#[test]
fn a_handler_that_blocks_for_longer_than_the_limit_is_refused_and_restarted_in_a_child() {
    fails_in_process("faulty:sleep_blocking", "did not come back from a call for 1000 ms");
}

#[test]
fn a_hang_at_an_event_or_in_a_task_of_its_own_is_found_though_nobody_waits() {
    for hang in ["event", "task"] {
        let daemon = faulty("in-process");
        let mut facts = Facts::of(&daemon);
        match hang {
            "event" => daemon.lines().send(&json!({"emit": "test:hang"})),
            _ => drop(daemon.ask("faulty:hang_later", json!({})).expect("it answers first")),
        }
        let died = facts.expect("plugin:died");
        assert!(died["reason"].as_str().expect("a text").contains("did not come back"), "{died}");
        assert_eq!(comes_back(&daemon).placement, Placement::Child);
    }
}

#[test]
fn a_reload_after_a_panic_brings_the_plugin_back() {
    reload_brings_it_back("faulty:panic");
}

#[test]
fn a_panic_in_a_task_of_its_own_refuses_who_waits() {
    let daemon = faulty("in-process");
    let mut waiting = open(&daemon, "faulty:never", &json!({}));
    assert_eq!(daemon.ask("faulty:panic_later", json!({})).expect("it was answered before")["n"], 0);
    assert_eq!(waiting.receive()["refusal"]["code"], "plugin_restarted");
    assert_eq!(comes_back(&daemon).placement, Placement::Child);
    assert!(deaths(&daemon)[0]["reason"].as_str().expect("a text").contains("as asked, in a task"));
}

#[test]
fn a_flood_of_facts_is_bounded_and_holds_up_nobody() {
    // A million facts in one call may take long on a busy machine, and it is not about that.
    let mut daemon = daemon("in-process", "restart = { hang = \"30s\" }");
    let neighbour = Neighbour::of(&daemon);
    let taken = daemon.ask("faulty:flood", json!({})).expect("it answers")["n"].as_u64();
    assert!(taken >= Some(1) && taken < Some(1_000_000), "{taken:?} facts were queued");
    neighbour.noticed_nothing();
    assert_eq!(daemon.plugin("faulty").placement, Placement::InProcess);
    assert!(daemon.is_alive());
}

#[test]
fn a_thread_that_comes_back_late_is_taken_for_lost_until_it_does() {
    let daemon = faulty("in-process");
    daemon.ask("faulty:sleep_blocking", json!({})).expect_err("it blocks for three seconds");
    assert_eq!(comes_back(&daemon).placement, Placement::Child);
    wait_until("a reload brings it back once its thread is free", || {
        let status = daemon.ask("plugin:reload", json!({"name": "faulty"})).expect("it starts");
        status["placement"] == "in-process"
    });
    assert_eq!(daemon.ask("faulty:ok", json!({})).expect("it answers")["n"], 0);
}

#[test]
fn a_plugin_that_hangs_for_ever_costs_one_thread_at_most() {
    let mut daemon = faulty("in-process");
    for _ in 0..3 {
        let refusal = daemon.ask("faulty:hang", json!({})).expect_err("it hangs");
        assert_eq!(refusal["code"], "plugin_restarted", "{refusal}");
        comes_back(&daemon);
        let status = daemon.ask("plugin:reload", json!({"name": "faulty"})).expect("it starts");
        assert_eq!(status["placement"], "child", "its thread is still lost");
    }
    assert_eq!(daemon.ask("echo:say", json!({"text": "a"})).expect("others go on")["text"], "a");
    assert!(daemon.is_alive());
}

#[test]
fn deadlines_are_kept_while_a_plugin_hangs() {
    let daemon = faulty("in-process");
    let mut lines = daemon.lines();
    let since = Instant::now();
    lines.send(&json!({"event": "faulty:hang", "data": {}, "timeout_ms": 200}));
    assert_eq!(lines.receive()["refusal"]["code"], "timeout");
    assert!(since.elapsed() < HANG, "its deadline came after {:?}", since.elapsed());
    comes_back(&daemon);
    let mut lines = daemon.lines();
    let since = Instant::now();
    lines.send(&json!({"event": "faulty:never", "data": {}, "timeout_ms": 100}));
    assert_eq!(lines.receive()["refusal"]["code"], "timeout");
    assert!(since.elapsed() < HEARD);
}

#[test]
fn what_the_same_write_asked_of_others_is_answered_while_a_plugin_hangs() {
    let daemon = faulty("in-process");
    let mut lines = daemon.lines();
    let batch = [
        json!({"id": "health", "event": "system:health"}),
        json!({"id": "list", "event": "plugin:list"}),
        json!({"id": "hang", "event": "faulty:hang", "data": {}}),
    ];
    lines.send_text(&batch.map(|line| line.to_string()).join("\n"));
    let answers: Vec<Value> = (0..3).map(|_| lines.receive()).collect();
    let code = |id: &str| {
        let answer = answers.iter().find(|answer| answer["id"] == id).expect("every one is answered");
        answer["refusal"]["code"].as_str().unwrap_or("none").to_owned()
    };
    assert_eq!([code("health"), code("list"), code("hang")], ["none", "none", "plugin_restarted"]);
    assert_eq!(daemon.ask("system:health", json!({})).expect("the daemon answers")["pid"], daemon.pid());
}

#[test]
fn a_plugin_behind_the_one_that_hangs_is_not_lost_with_it() {
    let daemon = faulty("in-process");
    for order in [["faulty:hang", "echo:say"], ["echo:say", "faulty:hang"]] {
        let mut lines = daemon.lines();
        let batch = order.map(|event| {
            let data = if event == "echo:say" { json!({"text": "hi"}) } else { json!({}) };
            json!({"id": event, "event": event, "data": data}).to_string()
        });
        lines.send_text(&batch.join("\n"));
        let answers = [lines.receive(), lines.receive()];
        let of = |id: &str| answers.iter().find(|answer| answer["id"] == id).expect("it is answered");
        assert_eq!(of("echo:say")["data"]["text"], "hi");
        assert_eq!(of("faulty:hang")["refusal"]["code"], "plugin_restarted");
        assert_eq!(daemon.ask("echo:say", json!({"text": "on"})).expect("it goes on")["text"], "on");
        daemon.ask("plugin:reload", json!({"name": "faulty"})).expect("it starts");
    }
}

#[test]
fn the_connection_whose_task_is_lost_is_ended_after_its_refusal() {
    let daemon = faulty("in-process");
    let mut lines = daemon.lines();
    lines.send(&json!({"event": "faulty:hang", "data": {}}));
    assert_eq!(lines.receive()["refusal"]["code"], "plugin_restarted");
    assert_eq!(lines.try_receive(), None, "nobody would read another request");
    assert_eq!(daemon.ask("system:health", json!({})).expect("the daemon answers")["pid"], daemon.pid());
}

#[test]
fn a_daemon_stops_in_time_although_a_plugin_hangs() {
    let mut daemon = faulty("in-process");
    daemon.ask("faulty:hang", json!({})).expect_err("it hangs");
    let since = Instant::now();
    daemon.ask("system:shutdown", json!({"grace_ms": 500})).expect("it stops");
    assert!(daemon.ended().success());
    assert!(since.elapsed() < Duration::from_secs(10), "the stop took {:?}", since.elapsed());
}
