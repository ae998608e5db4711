//! A disk that takes nothing more, and a state that is put back.

use std::process::Stdio;

use ksi_protocol::system::HealthStatus;
use ksi_tests::{Daemon, Home, WITHOUT_MODEL, command, stderr, stdout, wait_until};
use serde_json::{Value, json};

use super::lives::{config, end, give, info, started_anew};

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
fn what_runs_while_the_disk_is_full_for_a_moment_is_begun_once_and_ends_well() {
    let daemon = Home::with_config(&config("child", "")).start();
    daemon.ready();
    // Neither may be repeated: were one begun again, or given up, it would show.
    let short = give(&daemon, "faulty:slow", json!({"ms": 2_000}));
    let long = give(&daemon, "faulty:slow", json!({"ms": 1_000_000}));
    let runs = |count: usize| daemon.plugin("faulty").in_flight == count;
    wait_until("both run", || runs(2));
    let mut ksi = command("ksi", daemon.home.path());
    let ksi = ksi.args(["wait", &short]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let waiting = ksi.spawn().unwrap();
    limit_files(&daemon, Some(65_536));
    let large = "x".repeat(100_000);
    wait_until("nothing is accepted", || {
        let _ = daemon.ask("echo:keep", json!({ "text": large }));
        status(&daemon)["accepting"] == false
    });
    wait_until("one has ended meanwhile", || runs(1));
    limit_files(&daemon, None);
    wait_until("it accepts again", || status(&daemon)["accepting"] == true);
    assert_eq!(end(&daemon, &short), "done");
    assert_eq!(info(&daemon, &short)["attempts"], 1);
    let waited = waiting.wait_with_output().unwrap();
    assert!(waited.status.success(), "{}", stderr(&waited));
    assert!(runs(1), "the other one still does, and none beside it");
    let state = info(&daemon, &long);
    assert_eq!((&state["state"], &state["attempts"]), (&json!("leased"), &json!(1)));
    daemon.ask("work:cancel", json!({"request_id": long})).unwrap();
    wait_until("it is cancelled", || runs(0));
    assert_eq!(info(&daemon, &long)["state"], "cancelled");
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
