//! A disk that takes nothing more, and a state that is put back.

use ksi_protocol::system::HealthStatus;
use ksi_tests::{Daemon, Home, WITHOUT_MODEL, stdout, wait_until};
use serde_json::{Value, json};

use super::lives::started_anew;

/// Limits the size of the files that the daemon may write.
fn limit_files(daemon: &Daemon, bytes: Option<u64>) {
    let pid = daemon.pid().to_string();
    let limit = format!("--fsize={}:", bytes.map_or("unlimited".into(), |bytes| bytes.to_string()));
    let set = std::process::Command::new("prlimit").args(["--pid", &pid, &limit]).status();
    assert!(set.expect("prlimit is there").success());
}

fn status(daemon: &Daemon) -> Value {
    daemon.ask("checkpoint:status", json!({})).unwrap()
}

#[test]
fn while_nothing_can_be_written_nothing_is_accepted_and_afterwards_all_goes_on_by_itself() {
    let config = "[plugins.checkpoint.config]\nsegment_bytes = 1048576\n";
    let daemon = Home::with_config(&format!("{WITHOUT_MODEL}{config}")).start();
    daemon.ready();
    let accept = |n: u64| daemon.ask("echo:keep", json!({"text": format!("{n} {}", "x".repeat(100_000))}));
    let mut accepted: Vec<String> = Vec::new();
    let keep = |answer: Value| answer["request_id"].as_str().unwrap().to_owned();
    accepted.push(keep(accept(0).unwrap()));
    limit_files(&daemon, Some(65_536));
    let mut refusal = Value::Null;
    wait_until("something is refused", || match accept(accepted.len() as u64) {
        Ok(answer) => {
            accepted.push(keep(answer));
            false
        }
        Err(why) => {
            refusal = why;
            true
        }
    });
    assert_eq!(refusal["code"], "unavailable", "{refusal}");
    let mut told = Value::Null;
    wait_until("the status says so", || {
        told = status(&daemon);
        told["accepting"] == false
    });
    assert!(told["reason"].as_str().unwrap().contains(": "), "a reason and a hint: {told}");
    let doctor = daemon.ksi(&["doctor", "-o", "json"]);
    let checks: Value = serde_json::from_str(&stdout(&doctor)).unwrap();
    let checks = checks["data"]["checks"].as_array().or(checks["checks"].as_array()).cloned();
    let journal = checks.iter().flatten().find(|check| check["name"] == "journal").unwrap();
    assert_eq!((&journal["outcome"], &journal["text"]), (&json!("fail"), &told["reason"]));
    let health = daemon.health();
    assert_eq!(health.status, HealthStatus::Degraded);
    let said = |why: &String| why.contains("checkpoint") && why.contains("nothing is accepted");
    assert!(health.reasons.iter().any(said), "{health:?}");
    assert_eq!(daemon.ksi(&["health"]).status.code(), Some(8));
    for _ in 0..5 {
        assert_eq!(accept(999).unwrap_err()["code"], "unavailable");
        assert_eq!(daemon.ask("echo:say", json!({"text": "live"})).unwrap()["text"], "live");
    }
    limit_files(&daemon, None);
    wait_until("it accepts again", || match accept(1000) {
        Ok(answer) => {
            accepted.push(keep(answer));
            true
        }
        Err(_) => false,
    });
    assert_eq!(status(&daemon)["accepting"], true);
    wait_until("the health has recovered", || daemon.health().status == HealthStatus::Ok);
    let daemon = daemon.kill().start();
    daemon.ready();
    for name in accepted {
        wait_until("it is done", || {
            daemon.ask("work:get", json!({"request_id": name})).unwrap()["state"] == "done"
        });
    }
}

#[test]
fn a_restore_brings_back_what_was_and_the_daemon_comes_back_by_itself() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let set = |value: &str| daemon.ask("state:set", json!({"key": "k", "value": value})).unwrap();
    set("old");
    let made = daemon.ask("checkpoint:create", json!({})).unwrap();
    set("new");
    let boot = daemon.status().boot;
    daemon.ask("checkpoint:restore", json!({"id": made["id"]})).unwrap();
    started_anew(&daemon, &boot);
    assert_eq!(daemon.ask("state:get", json!({"key": "k"})).unwrap()["value"], "old");
    assert_eq!(status(&daemon)["accepting"], true);
}
