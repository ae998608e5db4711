//! Stopping: gracefully, in a hurry, and not at all.

use std::{
    fs,
    time::{Duration, Instant},
};

use ksi_tests::{Daemon, Home, Lines, WITHOUT_MODEL, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

fn with(config: &str) -> Daemon {
    let daemon = Home::with_config(&format!("{config}\n{WITHOUT_MODEL}")).start();
    daemon.ready();
    daemon
}

fn completion(lines: &mut Lines, model: &str) {
    let data = json!({"prompt": "one two three", "model": model});
    lines.send(&json!({"event": "completion:request", "id": "work", "data": data}));
}

fn runs(daemon: &Daemon) {
    wait_until("the completion runs", || daemon.ask("completion:status", json!({})).unwrap()["running"] == 1);
}

/// Waits until the daemon refuses new work on an open connection.
fn refuses(lines: &mut Lines) -> Value {
    let mut refusal = Value::Null;
    wait_until("new requests are refused", || {
        lines.send(&json!({"event": "echo:say", "data": {"text": "hi"}}));
        refusal = lines.receive()["refusal"].take();
        !refusal.is_null()
    });
    refusal
}

#[test]
fn a_signal_to_end_or_to_interrupt_ends_it_well() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut daemon = with("");
        let mut lines = daemon.lines();
        daemon.signal(signal);
        assert_eq!(daemon.ended().code(), Some(0), "{signal}");
        assert_eq!(lines.try_receive(), None, "{signal}");
        let paths = daemon.home.paths();
        assert!(!paths.socket.exists(), "{signal}");
        assert_eq!(fs::read_to_string(paths.lock_file()).unwrap_or_default(), "", "{signal}");
    }
}

#[test]
fn a_client_can_stop_it() {
    let mut daemon = with("");
    let mut lines = daemon.lines();
    lines.send(&json!({"event": "system:shutdown"}));
    assert_eq!(lines.receive()["data"], json!({}));
    assert_eq!(daemon.ended().code(), Some(0));
    assert!(!daemon.home.paths().socket.exists());
}

#[test]
fn what_is_in_flight_finishes_and_what_is_new_is_refused() {
    let mut daemon = with("[daemon]\nshutdown_grace = \"60s\"\n");
    let (mut work, mut other, mut listener) = (daemon.lines(), daemon.lines(), daemon.lines());
    listener.send(&json!({"subscribe": "system:stopping"}));
    listener.receive();
    completion(&mut work, "mock/slow:400");
    runs(&daemon);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(listener.receive()["event"], "system:stopping");
    let refusal = refuses(&mut other);
    assert_eq!(refusal["code"], "shutting_down");
    assert_eq!(refusal["retryable"], true);
    let end = loop {
        let line = work.receive();
        if line.get("chunk").is_none() {
            break line;
        }
    };
    assert_eq!(end["end"], true, "{end}");
    assert_eq!(end["data"]["text"], "one two three");
    assert_eq!(daemon.ended().code(), Some(0));
}

#[test]
fn what_is_not_done_when_the_grace_is_over_is_refused() {
    let mut daemon = with("[daemon]\nshutdown_grace = \"300ms\"\n");
    let mut work = daemon.lines();
    completion(&mut work, "mock/hang");
    runs(&daemon);
    let began = Instant::now();
    daemon.signal(Signal::SIGTERM);
    let line = work.receive();
    assert_eq!(line["id"], "work");
    let code = line["refusal"]["code"].as_str().unwrap();
    assert!(["shutting_down", "cancelled", "plugin_restarted", "no_owner"].contains(&code), "{line}");
    assert_eq!(work.try_receive(), None);
    assert_eq!(daemon.ended().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(20), "took {:?}", began.elapsed());
}

#[test]
fn a_second_signal_does_not_wait_for_anything() {
    let mut daemon = with("[daemon]\nshutdown_grace = \"60s\"\n");
    let (mut work, mut other) = (daemon.lines(), daemon.lines());
    completion(&mut work, "mock/hang");
    runs(&daemon);
    daemon.signal(Signal::SIGTERM);
    refuses(&mut other);
    let began = Instant::now();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.ended().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(2), "took {:?}", began.elapsed());
    assert!(!daemon.home.paths().socket.exists());
}

#[test]
fn the_grace_of_a_stop_can_be_given_with_it() {
    let mut daemon = with("[daemon]\nshutdown_grace = \"60s\"\n");
    let mut work = daemon.lines();
    completion(&mut work, "mock/hang");
    runs(&daemon);
    daemon.ask("system:shutdown", json!({"grace_ms": 0})).unwrap();
    assert!(work.receive()["refusal"].is_object());
    assert_eq!(daemon.ended().code(), Some(0));
}

#[test]
fn a_subscriber_hears_of_the_stop_before_the_end() {
    let mut daemon = with("");
    let mut lines = daemon.lines();
    lines.send(&json!({"subscribe": "system:*"}));
    lines.receive();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(lines.receive()["event"], "system:stopping");
    assert_eq!(lines.try_receive(), None);
    assert_eq!(daemon.ended().code(), Some(0));
}

#[test]
fn a_client_that_does_not_read_does_not_hold_up_the_stop() {
    let mut daemon = with("");
    let mut lines = daemon.lines();
    lines.send(&json!({"subscribe": "test:*"}));
    lines.receive();
    let mut teller = daemon.lines();
    for _ in 0..2000 {
        teller.send(&json!({"emit": "test:said", "data": {"pad": "x".repeat(1000)}}));
    }
    teller.send(&json!({"event": "system:health"}));
    teller.receive();
    let began = Instant::now();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.ended().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(10), "took {:?}", began.elapsed());
}

/// Whether a process is gone, or waits only for its parent to notice.
fn gone(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

#[test]
fn children_do_not_outlive_a_daemon_that_is_killed() {
    let daemon = with("[plugins.echo_child]\nenabled = true\n");
    daemon.load("fixture_faulty", "child").unwrap();
    let pids: Vec<u32> = ["echo_child", "faulty"].map(|name| daemon.plugin(name).pid.unwrap()).into();
    assert!(!pids.iter().any(|pid| gone(*pid)));
    let began = Instant::now();
    let _home = daemon.kill();
    wait_until("the children are gone", || pids.iter().all(|pid| gone(*pid)));
    assert!(began.elapsed() < Duration::from_secs(2), "took {:?}", began.elapsed());
}

#[test]
fn children_end_with_a_stop() {
    let mut daemon = with("[plugins.echo_child]\nenabled = true\n");
    let pid = daemon.plugin("echo_child").pid.unwrap();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.ended().code(), Some(0));
    assert!(gone(pid));
}

/// Time on a processor so far, in ticks.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(')').unwrap();
    rest.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum()
}

#[test]
fn a_daemon_without_work_uses_no_processor_and_asks_no_model() {
    let daemon = with("[plugins.echo_child]\nenabled = true\n");
    let child = daemon.plugin("echo_child").pid.unwrap();
    let mut lines = daemon.lines();
    lines.send(&json!({"subscribe": "*", "id": "all"}));
    lines.receive();
    let before = (ticks(daemon.pid()), ticks(child));
    // A timer of the daemon's own is what ends the wait.
    completion(&mut lines, "mock/hang");
    lines.send(&json!({"cancel": "work"}));
    while lines.receive()["id"] != "work" {}
    let data = json!({"prompt": "x", "model": "mock/hang"});
    lines.send(&json!({"event": "completion:request", "id": "timer", "data": data, "timeout_ms": 1500}));
    while lines.receive()["id"] != "timer" {}
    let after = (ticks(daemon.pid()), ticks(child));
    // Once, a second after the start, it gives back the memory that the start needed; whoever polls uses far more.
    assert!(after.0 - before.0 <= 4, "the daemon used {} ticks", after.0 - before.0);
    assert!(after.1 - before.1 <= 1, "a child used {} ticks", after.1 - before.1);
    let status = daemon.ask("completion:status", json!({})).unwrap();
    assert_eq!((&status["running"], &status["queued"]), (&json!(0), &json!(0)), "{status}");
}

#[test]
fn no_completion_runs_that_nobody_has_asked_for() {
    let daemon = with("");
    let mut lines = daemon.lines();
    lines.send(&json!({"subscribe": "completion:**"}));
    lines.receive();
    let status = daemon.ask("completion:status", json!({})).unwrap();
    assert_eq!(status["requests"], json!([]), "{status}");
    let first = daemon.status().counters.requests;
    let second = daemon.status().counters.requests;
    assert_eq!(second - first, 1, "only what this test asks");
}
