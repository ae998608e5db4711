//! `logs`: what the daemon has written, and what it writes.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
};

use ksi_tests::{Daemon, Home, WITHOUT_MODEL, command, stdout};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{ended, failed, fine, waited};

#[test]
fn the_last_lines_are_shown_and_a_program_gets_json() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let output = stdout(&fine(daemon.ksi(&["logs", "-n", "2"])));
    assert_eq!(output.lines().count(), 2, "{output}");
    assert!(output.contains("ready"), "{output}");
    assert_eq!(stdout(&fine(daemon.ksi(&["logs", "-n", "0"]))), "");
    let lines = stdout(&fine(daemon.ksi(&["logs", "-o", "jsonl"])));
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        assert!(line["level"].is_string() && line["line"].is_string(), "{line}");
    }
    assert_eq!(stdout(&fine(daemon.ksi(&["logs", "--level", "error"]))), "");
    // The log can be read when nobody is there any more.
    let home = daemon.kill();
    assert!(!stdout(&fine(home.ksi(&["logs"]))).is_empty());
}

#[test]
fn a_log_of_json_stays_json() {
    let daemon = Home::with_config(&format!("[daemon]\nlog_format = \"json\"\n{WITHOUT_MODEL}")).start();
    daemon.ready();
    let lines = stdout(&fine(daemon.ksi(&["logs", "-o", "jsonl"])));
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(!lines.is_empty() && lines.iter().all(|line| line["timestamp"].is_string()), "{lines:?}");
}

#[test]
fn following_shows_a_line_when_it_is_written() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let mut child = command("ksi", daemon.home.path())
        .args(["logs", "-f", "-n", "0"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ksi runs");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    // Whether it follows already cannot be seen; a line comes with every restart.
    let found = std::thread::scope(|scope| {
        let reader = scope.spawn(|| lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("echo"))));
        while !reader.is_finished() {
            fine(daemon.ksi(&["plugin", "restart", "echo"]));
            std::thread::park_timeout(std::time::Duration::from_millis(100));
        }
        reader.join().expect("the reader does not panic")
    });
    assert!(found.is_some(), "the log ended");
    kill(Pid::from_raw(i32::try_from(child.id()).expect("a pid")), Signal::SIGINT).expect("it is there");
    ended(waited(child), 130);
}

#[test]
fn without_a_log_it_ends_with_4() {
    let words = failed(Home::new().ksi(&["logs"]), 4);
    assert!(words.contains("ksi up"), "{words}");
}
