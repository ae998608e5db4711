//! Damage on the disk: told at once and until somebody has seen to it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ksi_protocol::system::HealthStatus;
use ksi_tests::{Daemon, Home, stderr, stdout, wait_until};
use serde_json::{Value, json};

use super::lives::{end, give};

fn journal(home: &Home) -> PathBuf {
    home.paths().state_dir.join("plugins/checkpoint/journal")
}

fn files(dir: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let has_one =
        |file: &PathBuf| endings.iter().any(|ending| file.extension().is_some_and(|it| it == *ending));
    files.filter(has_one).collect()
}

/// Changes a byte of the first record that asks for something.
fn flip(dir: &Path) {
    let file = files(dir, &["journal"]).into_iter().min().unwrap();
    let mut bytes = fs::read(&file).unwrap();
    let place = bytes.windows(9).position(|seen| seen == b"echo:keep").unwrap();
    bytes[place] ^= 1;
    fs::write(file, bytes).unwrap();
}

#[test]
fn a_damaged_record_is_loud_until_somebody_has_seen_to_it() {
    let mut daemon = Daemon::without_model();
    daemon.ready();
    for n in 0..5 {
        let name = give(&daemon, "echo:keep", json!({"text": format!("number {n}")}));
        assert_eq!(end(&daemon, &name), "done");
    }
    daemon.ask("system:shutdown", json!({"grace_ms": 100})).unwrap();
    assert!(daemon.ended().success());
    let home = daemon.kill();
    flip(&journal(&home));

    let daemon = home.start();
    daemon.ready();
    let found = daemon.ksi(&["checkpoint", "verify"]);
    assert_eq!(found.status.code(), Some(8), "{}", stderr(&found));
    let segment = files(&journal(&daemon.home), &["damaged"]).pop().unwrap();
    let segment = segment.file_name().unwrap().to_str().unwrap().to_owned();
    let text = stdout(&found);
    assert!(text.contains("DAMAGED") && text.contains(&format!("{segment}, record ")), "{text}");
    assert_eq!(daemon.ksi(&["health"]).status.code(), Some(8));
    let health = daemon.health();
    assert_eq!(health.status, HealthStatus::Degraded);
    let said = |why: &String| why.contains(&segment) && why.contains("ksi checkpoint create");
    assert!(health.reasons.iter().any(said), "{health:?}");
    let doctor: Value = serde_json::from_str(&stdout(&daemon.ksi(&["doctor", "-o", "json"]))).unwrap();
    let checks = doctor["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == "journal").unwrap();
    assert!(check["outcome"] == "warn" && check["text"].as_str().unwrap().contains(&segment), "{check}");
    let name = give(&daemon, "echo:keep", json!({"text": "it goes on"}));
    assert_eq!(end(&daemon, &name), "done");

    // What it says is to be done.
    assert!(daemon.ksi(&["checkpoint", "create"]).status.success());
    for file in files(&journal(&daemon.home), &["damaged", "kept"]) {
        fs::rename(&file, daemon.home.path().join(file.file_name().unwrap())).unwrap();
    }
    assert!(daemon.ksi(&["plugin", "restart", "checkpoint"]).status.success());
    wait_until("the health has recovered", || daemon.health().status == HealthStatus::Ok);
    assert_eq!(end(&daemon, &name), "done", "what was covered is still there");
    assert!(daemon.ksi(&["checkpoint", "verify"]).status.success());
}
