//! `sub`: events as they happen.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Stdio},
};

use ksi_tests::{Daemon, command, stdout, wait_until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use super::{ended, failed, fine, waited};

/// A `ksi sub` that listens already.
fn listening(daemon: &Daemon, arguments: &[&str]) -> Child {
    daemon.ready();
    let before = daemon.status().subscriptions;
    let child = command("ksi", daemon.home.path())
        .arg("sub")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ksi runs");
    wait_until("it listens", || daemon.status().subscriptions == before + 1);
    child
}

fn tell(daemon: &Daemon, event: &str, data: &Value) {
    fine(daemon.ksi(&["send", event, "--emit", "--json", &data.to_string()]));
}

#[test]
fn it_ends_after_as_many_events_as_were_asked_for() {
    let daemon = Daemon::without_model();
    let child = listening(&daemon, &["my:*", "-n", "2", "-o", "jsonl"]);
    for n in 1..=3 {
        tell(&daemon, "my:event", &json!({ "n": n }));
        tell(&daemon, "other:event", &json!({ "n": n }));
    }
    let output = fine(waited(child));
    let events: Vec<Value> =
        stdout(&output).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(events.len(), 2);
    for (event, n) in events.iter().zip(1..) {
        assert_eq!((&event["event"], &event["data"]["n"]), (&"my:event".into(), &json!(n)));
        for key in ["seq", "origin", "timestamp"] {
            assert!(!event[key].is_null(), "{event}");
        }
    }
}

#[test]
fn every_format_shows_an_event() {
    let daemon = Daemon::without_model();
    for (format, part) in [
        ("table", "my:event {\"n\":1}"),
        ("wide", "session:"),
        ("json", "\"event\": \"my:event\""),
        ("yaml", "event: my:event"),
        ("name", "my:event\n"),
    ] {
        let child = listening(&daemon, &["my:*", "-n", "1", "-o", format]);
        tell(&daemon, "my:event", &json!({"n": 1}));
        let output = fine(waited(child));
        assert!(stdout(&output).contains(part), "{format}: {}", stdout(&output));
    }
}

#[test]
fn each_event_is_written_at_once_and_ctrl_c_ends_it() {
    let daemon = Daemon::without_model();
    let mut child = listening(&daemon, &["my:*", "-o", "jsonl"]);
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe"));
    for n in 0..3 {
        tell(&daemon, "my:event", &json!({ "n": n }));
        let mut line = String::new();
        lines.read_line(&mut line).expect("a line");
        assert!(line.contains(&format!("\"n\":{n}")), "{line}");
    }
    kill(Pid::from_raw(i32::try_from(child.id()).expect("a pid")), Signal::SIGINT).expect("it is there");
    ended(waited(child), 130);
}

#[test]
fn a_reader_that_leaves_ends_it_quietly() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let quiet = daemon.status().subscriptions;
    let mut child = listening(&daemon, &["my:*"]);
    drop(child.stdout.take());
    tell(&daemon, "my:event", &json!({}));
    fine(waited(child));
    wait_until("the subscription is gone", || daemon.status().subscriptions == quiet);
}

#[test]
fn a_daemon_that_stops_ends_it_with_3() {
    let daemon = Daemon::without_model();
    let child = listening(&daemon, &["my:*"]);
    fine(daemon.ksi(&["stop"]));
    let words = failed(waited(child), 3);
    assert!(words.contains("stopped") || words.contains("stopping"), "{words}");
}
