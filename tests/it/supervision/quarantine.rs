//! Quarantine: a plugin that an operator stops, and that stays stopped.

use ksi_protocol::system::{HealthStatus, PluginState};
use ksi_tests::{Daemon, Home, WITHOUT_MODEL, library, stderr, stdout, wait_until};
use serde_json::{Value, json};

const PLACEMENTS: [&str; 2] = ["child", "in-process"];

fn home(placement: &str) -> Home {
    let library = library("fixture_faulty");
    let faulty = format!("[plugins.faulty]\nlibrary = \"{}\"\nlistens = [\"test:*\"]\n", library.display());
    // Known before the plugin has run, as the events of every plugin of the manifest are.
    let event = "[events.\"faulty:ok\"]\npermission = \"faulty.use\"\n";
    Home::with_config(&format!("{WITHOUT_MODEL}{faulty}placement = \"{placement}\"\n{event}"))
}

fn quarantine(daemon: &Daemon, reason: &str) -> Value {
    daemon.ask("plugin:quarantine", json!({"name": "faulty", "reason": reason})).expect("it is stopped")
}

/// What must hold of the plugin while it is quarantined.
fn is_confined(daemon: &Daemon, reason: &str) {
    let status = daemon.plugin("faulty");
    assert_eq!((status.state, status.pid), (PluginState::Quarantined, None));
    assert_eq!(status.quarantined.as_deref(), Some(reason));
    let refusal = daemon.ask("faulty:ok", json!({})).expect_err("it does not run");
    assert_eq!((&refusal["code"], &refusal["retryable"]), (&json!("unavailable"), &json!(false)));
    assert!(refusal["message"].as_str().unwrap().contains(reason), "{refusal}");
    assert!(refusal["hint"].as_str().unwrap().contains("ksi plugin release faulty"), "{refusal}");
    let health = daemon.health();
    assert_eq!(health.status, HealthStatus::Unhealthy);
    assert!(health.reasons.iter().any(|why| why.contains("faulty") && why.contains(reason)), "{health:?}");
    daemon.ask("echo:say", json!({"text": "a"})).expect("others go on");
}

#[test]
fn a_quarantined_plugin_is_stopped_at_once_and_stays_so_over_a_restart_until_it_is_released() {
    for placement in PLACEMENTS {
        let daemon = home(placement).start();
        daemon.ready();
        let mut waiting = daemon.lines();
        waiting.send(&json!({"event": "faulty:never"}));
        wait_until("it holds a request", || daemon.plugin("faulty").in_flight == 1);
        assert_eq!(quarantine(&daemon, "it lies")["state"], "quarantined");
        let refusal = waiting.receive()["refusal"].take();
        assert_eq!(refusal["code"], "plugin_restarted", "{refusal}");
        assert!(refusal["message"].as_str().unwrap().contains("quarantined"), "{refusal}");
        is_confined(&daemon, "it lies");
        let daemon = daemon.kill().start();
        daemon.ready();
        is_confined(&daemon, "it lies");
        let released = daemon.ask("plugin:release", json!({"name": "faulty"})).expect("it runs again");
        assert_eq!((&released["state"], &released["placement"]), (&json!("ready"), &json!(placement)));
        daemon.ask("faulty:ok", json!({})).expect("it answers");
        assert_eq!(daemon.health().status, HealthStatus::Ok);
        let daemon = daemon.kill().start();
        daemon.ready();
        daemon.ask("faulty:ok", json!({})).expect("it was released for good");
    }
}

#[test]
fn nothing_but_a_release_undoes_a_quarantine() {
    let daemon = home("child").start();
    daemon.ready();
    quarantine(&daemon, "first");
    for event in ["plugin:restart", "plugin:reload"] {
        let refusal = daemon.ask(event, json!({"name": "faulty"})).expect_err("it stays where it is");
        assert_eq!(refusal["code"], "unavailable", "{event}: {refusal}");
        is_confined(&daemon, "first");
    }
    let refusal = daemon.ask("plugin:load", json!({"library": "faulty"})).expect_err("nor this");
    assert!(refusal["message"].as_str().unwrap().contains("first"), "{refusal}");
    daemon.ask("config:reload", json!({})).expect("the configuration is as it was");
    is_confined(&daemon, "first");
    quarantine(&daemon, "second thoughts");
    is_confined(&daemon, "second thoughts");
    // Whoever wants it gone has his wish, and it is still no one's to start.
    let unloaded = daemon.ask("plugin:unload", json!({"name": "faulty"})).expect("it does not run");
    assert_eq!(unloaded["state"], "quarantined");
    daemon.ask("plugin:load", json!({"library": "faulty"})).expect_err("it is quarantined");
}

#[test]
fn a_library_that_is_in_no_manifest_cannot_come_back_either() {
    let daemon = Daemon::without_model();
    daemon.ready();
    daemon.load("fixture_faulty", "child").expect("it is loaded");
    quarantine(&daemon, "it lies");
    daemon.ask("plugin:unload", json!({"name": "faulty"})).expect("it does not run");
    let refusal = daemon.load("fixture_faulty", "child").expect_err("it is quarantined");
    assert!(refusal["message"].as_str().unwrap().contains("it lies"), "{refusal}");
    let daemon = daemon.kill().start();
    daemon.ready();
    let refusal = daemon.load("fixture_faulty", "in-process").expect_err("still");
    assert_eq!(refusal["code"], "unavailable", "{refusal}");
}

#[test]
fn a_plugin_that_hangs_in_this_process_can_be_quarantined() {
    let daemon = home("in-process").start();
    daemon.ready();
    daemon.lines().send(&json!({"emit": "test:hang"}));
    assert_eq!(quarantine(&daemon, "it hangs")["state"], "quarantined");
    is_confined(&daemon, "it hangs");
    let released = daemon.ask("plugin:release", json!({"name": "faulty"})).expect("it runs again");
    assert_eq!(released["placement"], "child", "its thread here is still lost");
}

#[test]
fn whose_call_is_lost_in_a_plugin_that_was_stopped_is_told_and_let_go() {
    let daemon = home("in-process").start();
    daemon.ready();
    let mut lines = daemon.lines();
    lines.send(&json!({"event": "faulty:hang", "data": {}}));
    wait_until("it is asked", || daemon.plugin("faulty").in_flight > 0);
    quarantine(&daemon, "it hangs");
    let refusal = lines.receive();
    assert!(refusal["refusal"]["code"].is_string(), "{refusal}");
    assert_eq!(lines.try_receive(), None, "nobody would answer on this connection any more");
    daemon.ask("echo:say", json!({"text": "a"})).expect("others go on");
}

#[test]
fn one_that_nothing_holds_cannot_be_released_and_one_that_is_held_can() {
    let daemon = home("child").start();
    daemon.ready();
    let refusal = daemon.ask("plugin:release", json!({"name": "faulty"})).expect_err("nothing holds it");
    assert_eq!(refusal["code"], "conflict", "{refusal}");
    let refusal = daemon.ask("plugin:quarantine", json!({"name": "nobody"})).expect_err("there is none");
    assert_eq!(refusal["code"], "not_found", "{refusal}");
    for _ in 0..5 {
        wait_until("it dies", || {
            let _ = daemon.ask("faulty:abort", json!({}));
            daemon.plugin("faulty").state != PluginState::Ready
        });
        daemon.ask("plugin:inspect", json!({"name": "faulty"})).expect("it is there");
    }
    wait_until("it is held", || {
        let _ = daemon.ask("faulty:abort", json!({}));
        daemon.plugin("faulty").state == PluginState::Held
    });
    let output = daemon.ksi(&["plugin", "resume", "faulty"]);
    assert!(output.status.success(), "{}", stderr(&output));
    daemon.ask("faulty:ok", json!({})).expect("it answers");
}

#[test]
fn an_operator_quarantines_and_releases_by_hand_and_is_told_of_it() {
    let daemon = home("child").start();
    daemon.ready();
    let mut facts = daemon.lines();
    facts.send(&json!({"subscribe": "plugin:*"}));
    facts.receive();
    let output = daemon.ksi(&["plugin", "quarantine", "faulty", "--reason", "it lies"]);
    assert_eq!(stdout(&output), "faulty quarantined: quarantined, child\n", "{}", stderr(&output));
    let mut next = |event: &str| loop {
        let line = facts.receive();
        if line["event"] == event {
            break line["data"].clone();
        }
    };
    assert_eq!(next("plugin:quarantined"), json!({"name": "faulty", "reason": "it lies"}));
    let listed = stdout(&daemon.ksi(&["plugin", "list"]));
    assert!(listed.lines().any(|line| line.starts_with("faulty") && line.contains("it lies")), "{listed}");
    assert_eq!(daemon.ksi(&["health"]).status.code(), Some(8));
    let doctor = daemon.ksi(&["doctor", "--json"]);
    assert!(stdout(&doctor).contains("ksi plugin release faulty"), "{}", stdout(&doctor));
    assert!(daemon.ksi(&["plugin", "release", "faulty"]).status.success());
    assert_eq!(next("plugin:released"), json!({"name": "faulty"}));
    assert_eq!(next("plugin:ready")["name"], "faulty");
}

#[test]
fn orders_that_make_no_sense_keep_the_daemon_from_starting_and_are_named() {
    let home = home("child");
    let state = home.paths().state_dir;
    std::fs::create_dir_all(&state).unwrap();
    std::fs::write(state.join("orders.json"), "{\"quarantined\":{\"faulty\"").unwrap();
    let output = home.ksi(&["start"]);
    assert_ne!(output.status.code(), Some(0));
    assert!(stderr(&output).contains("orders.json"), "{}", stderr(&output));
}
