//! The log: it is there, it can be read, and it is never in the way.

use std::{fs, os::unix::fs::symlink};

use ksi_protocol::system::HealthStatus;
use ksi_tests::{Daemon, Home, WITHOUT_MODEL, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

#[test]
fn the_log_tells_of_start_and_stop() {
    let mut daemon = Daemon::without_model();
    daemon.ready();
    wait_until("the start is in the log", || daemon.log().contains("ready"));
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.ended().success());
    let log = daemon.log();
    assert!(log.contains("SIGTERM") && log.contains("stopped"), "{log}");
}

#[test]
fn a_log_for_programs_has_an_object_on_every_line() {
    let config = format!("[daemon]\nlog_format = \"json\"\nlog_level = \"debug\"\n{WITHOUT_MODEL}");
    let mut daemon = Home::with_config(&config).start();
    daemon.ready();
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.ended().success());
    let log = daemon.log();
    assert!(log.lines().count() > 3, "{log}");
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line["level"].is_string() && line["timestamp"].is_string(), "{line}");
    }
}

#[test]
fn the_level_of_the_log_changes_with_a_reload() {
    let daemon = Daemon::without_model();
    daemon.ready();
    drop(daemon.frames());
    let config = format!("[daemon]\nlog_level = \"debug\"\n{WITHOUT_MODEL}");
    let changes = daemon.reconfigure(&config).unwrap();
    assert_eq!(changes["changed"], json!(["daemon.log_level"]));
    assert_eq!(changes["needs_restart"], json!([]));
    assert!(!daemon.log().contains("client connected"));
    drop(daemon.frames());
    wait_until("a client is logged", || daemon.log().contains("client connected"));
}

#[test]
fn a_full_disk_is_a_reason_and_no_obstacle() {
    let home = Home::with_config(WITHOUT_MODEL);
    let paths = home.paths();
    fs::create_dir(&paths.state_dir).unwrap();
    symlink("/dev/full", paths.log_file()).unwrap();
    let mut daemon = home.start();
    daemon.ready();
    wait_until("the health tells of it", || daemon.health().status == HealthStatus::Degraded);
    let reasons = daemon.health().reasons.join("\n");
    assert!(reasons.contains("log"), "{reasons}");
    assert_eq!(daemon.ask("echo:say", json!({"text": "hi"})).unwrap()["text"], "hi");
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.ended().success());
}

#[test]
fn a_log_that_was_moved_away_is_opened_anew_on_demand() {
    let daemon = Daemon::without_model();
    daemon.ready();
    wait_until("the start is in the log", || daemon.log().contains("ready"));
    let log = daemon.home.paths().log_file();
    fs::rename(&log, log.with_extension("old")).unwrap();
    daemon.signal(Signal::SIGHUP);
    wait_until("there is a new one", || {
        // Somebody has to say something for a line to be written.
        let _ = daemon.ask("plugin:restart", json!({"name": "echo"}));
        log.exists()
    });
    assert_eq!(daemon.ask("echo:say", json!({"text": "hi"})).unwrap()["text"], "hi");
}

#[test]
fn what_clients_say_is_not_in_the_log() {
    let config = format!("[daemon]\nlog_level = \"trace\"\n{WITHOUT_MODEL}");
    let mut daemon = Home::with_config(&config).start();
    daemon.ready();
    daemon
        .ask("completion:request", json!({"prompt": "a-very-private-thing", "model": "mock/echo"}))
        .unwrap();
    daemon.ask("echo:say", json!({"text": 7, "a-very-private-thing": 1})).unwrap_err();
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.ended().success());
    assert!(!daemon.log().contains("a-very-private-thing"));
}
