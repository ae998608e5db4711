//! The audit trail through a real daemon: what is in it, what is not, and that
//! nobody changes it unnoticed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ksi_protocol::Code;
use ksi_tests::{Daemon, Home, WITHOUT_MODEL, library, stderr, stdout, wait_until};
use serde_json::{Value, json};

/// A daemon that is ready.
fn ready() -> Daemon {
    let daemon = Home::with_config(WITHOUT_MODEL).start();
    daemon.ready();
    daemon
}

/// All decisions about events that match.
fn decisions(daemon: &Daemon, event: &str) -> Vec<Value> {
    let page = daemon.ask("audit:query", json!({"event": event, "limit": 1000})).unwrap();
    page["records"].as_array().unwrap().iter().map(|entry| entry["record"].clone()).collect()
}

/// Waits until so many are written.
fn written(daemon: &Daemon, event: &str, count: usize) -> Vec<Value> {
    wait_until("decisions are written", || decisions(daemon, event).len() >= count);
    decisions(daemon, event)
}

/// The outcome of `ksi`, and all it has said.
fn ksi(daemon: &Daemon, arguments: &[&str]) -> (i32, String) {
    let output = daemon.ksi(arguments);
    (output.status.code().unwrap(), format!("{}{}", stdout(&output), stderr(&output)))
}

fn trail(home: &Home) -> PathBuf {
    home.paths().plugin_dir("checkpoint").join("audit")
}

/// Files below a folder that hold these bytes.
fn holding(folder: &Path, part: &[u8]) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = files.partition(|path| path.is_dir());
    let holds = |path: &PathBuf| fs::read(path).unwrap().windows(part.len()).any(|window| window == part);
    let below = folders.iter().flat_map(|folder| holding(folder, part));
    below.chain(files.into_iter().filter(holds)).collect()
}

#[test]
fn what_changes_something_is_written_down_with_who_and_what_and_never_its_payload() {
    let daemon = ready();
    let payload = json!({"key": "canary-of-the-trail", "value": "canary of a value"});
    daemon.ask("state:set", payload).unwrap();
    daemon.ask("state:get", json!({"key": "canary-of-the-trail"})).unwrap();
    daemon.ask("echo:say", json!({"text": "hi"})).unwrap();
    daemon.ask("plugin:restart", json!({"name": "echo"})).unwrap();
    let set = written(&daemon, "state:set", 1).remove(0);
    assert_eq!((&set["kind"], &set["allowed"]), (&json!("decision"), &json!(true)), "{set}");
    assert_eq!(set["permission"], "state.write");
    assert!(set["origin"].as_str().unwrap().starts_with("session:"), "{set}");
    assert!(!set["principal"].as_str().unwrap().is_empty(), "{set}");
    assert_eq!(set["sha256"].as_str().unwrap().len(), 64, "{set}");
    assert!(set["size"].as_u64().unwrap() > 40, "{set}");
    assert_eq!(written(&daemon, "plugin:restart", 1)[0]["permission"], "plugin.admin");
    // Looking, and what the manifest says changes nothing.
    for event in ["state:get", "echo:say", "audit:*", "space:*"] {
        assert_eq!(decisions(&daemon, event), Vec::<Value>::new(), "{event}");
    }
    for part in ["canary-of-the-trail", "canary of a value"] {
        assert_eq!(holding(&trail(&daemon.home), part.as_bytes()), Vec::<PathBuf>::new(), "{part}");
    }
}

#[test]
fn what_is_denied_is_written_down_whatever_the_manifest_says() {
    let daemon = ready();
    for event in ["space:get", "audit:append"] {
        let refusal = daemon.ask(event, json!({"records": []})).unwrap_err();
        assert_eq!(refusal["code"], "denied", "{refusal}");
        let record = written(&daemon, event, 1).remove(0);
        assert_eq!((&record["allowed"], &record["event"]), (&json!(false), &json!(event)), "{record}");
    }
    let denied = daemon.ask("audit:query", json!({"allowed": false})).unwrap();
    assert_eq!(denied["records"].as_array().unwrap().len(), 2, "{denied}");
}

#[test]
fn whoever_is_denied_the_same_without_end_does_not_fill_the_trail() {
    let mut daemon = ready();
    let mut eve = daemon.frames();
    for id in 0..500 {
        assert_eq!(eve.ask(id, "space:get", &json!({})).unwrap_err().code, Code::Denied);
    }
    daemon.ask("system:shutdown", json!({})).unwrap();
    assert!(daemon.ended().success());
    let daemon = daemon.kill().start();
    daemon.ready();
    let records = decisions(&daemon, "space:get");
    let counted: u64 = records.iter().map(|record| record["denied"].as_u64().unwrap_or(1)).sum();
    assert_eq!(counted, 500, "each of them counts");
    // Ten of them within ten seconds, and one record for all others of that time.
    assert!(records.len() <= 44, "{} records", records.len());
    let (code, words) = ksi(&daemon, &["audit", "query", "--denied"]);
    assert!(code == 0 && words.contains("times more"), "{words}");
    assert_eq!(daemon.ask("audit:verify", json!({})).unwrap()["ok"], true);
}

#[test]
fn a_plugin_that_tells_without_end_does_not_fill_the_trail() {
    let faulty = format!(
        "{WITHOUT_MODEL}[plugins.faulty]\nlibrary = \"{}\"\nemits = [\"faulty:*\"]\n",
        library("fixture_faulty").display()
    );
    let daemon = Home::with_config(&faulty).start();
    daemon.ready();
    daemon.ask("faulty:flood", json!({"n": 5000})).expect("it tells");
    let counted = |record: &Value| record["allowed"].as_u64().unwrap_or(1);
    wait_until("all that was told is written down, or counted", || {
        decisions(&daemon, "faulty:flooded").iter().map(counted).sum::<u64>() == 5000
    });
    let records = decisions(&daemon, "faulty:flooded").len();
    assert!(records <= 44, "{records} records");
    let (code, words) = ksi(&daemon, &["audit", "query", "--event", "faulty:flooded"]);
    assert!(code == 0 && words.contains("allowed 4990 times more"), "{words}");
    assert_eq!(decisions(&daemon, "faulty:flood").len(), 1, "what is asked is written down whole");
}

#[test]
fn one_changed_byte_on_the_disk_is_found_and_the_record_is_named() {
    let daemon = ready();
    for n in 0..5 {
        daemon.ask("state:set", json!({"key": format!("k{n}"), "value": n})).unwrap();
    }
    let digest = written(&daemon, "state:set", 5)[3]["sha256"].as_str().unwrap().to_owned();
    let (code, words) = ksi(&daemon, &["audit", "verify"]);
    assert!(code == 0 && words.contains("as they were written"), "{words}");
    let found = daemon.ask("audit:query", json!({"event": "state:set"})).unwrap();
    let seq = found["records"][3]["seq"].as_u64().unwrap();
    let file = holding(&trail(&daemon.home), digest.as_bytes()).remove(0);
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.windows(64).position(|window| window == digest.as_bytes()).unwrap();
    bytes[at] ^= 1;
    fs::write(&file, bytes).unwrap();
    let (code, words) = ksi(&daemon, &["audit", "verify"]);
    assert_eq!(code, 8, "{words}");
    assert!(words.contains("DAMAGED") && words.contains(&format!("record {seq}:")), "{words}");
}

#[test]
fn the_chain_goes_on_over_kills_and_a_stop_writes_what_it_has() {
    let daemon = ready();
    daemon.ask("state:set", json!({"key": "a", "value": 1})).unwrap();
    written(&daemon, "state:set", 1);
    let daemon = daemon.kill().start();
    daemon.ready();
    assert_eq!(decisions(&daemon, "state:set").len(), 1);
    daemon.ask("state:set", json!({"key": "b", "value": 1})).unwrap();
    let mut daemon = daemon;
    daemon.ask("system:shutdown", json!({})).unwrap();
    assert!(daemon.ended().success());
    let daemon = daemon.kill().start();
    daemon.ready();
    assert_eq!(decisions(&daemon, "state:set").len(), 2);
    assert_eq!(decisions(&daemon, "system:shutdown").len(), 1);
    let verified = daemon.ask("audit:verify", json!({})).unwrap();
    assert_eq!((&verified["ok"], verified["heads"].as_u64() >= Some(1)), (&json!(true), true), "{verified}");
}

#[test]
fn an_export_is_proved_without_the_daemon_and_a_changed_one_is_not() {
    let daemon = ready();
    for n in 0..3 {
        daemon.ask("state:set", json!({"key": format!("k{n}"), "value": n})).unwrap();
    }
    written(&daemon, "state:set", 3);
    let file = daemon.home.path().join("trail.jsonl");
    let path = file.display().to_string();
    let (code, words) = ksi(&daemon, &["audit", "export", &path]);
    assert_eq!(code, 0, "{words}");
    let key = ksi(&daemon, &["audit", "key"]).1.trim().to_owned();
    let home = daemon.kill();
    let ksi = |arguments: &[&str]| {
        let output = home.ksi(arguments);
        (output.status.code().unwrap(), format!("{}{}", stdout(&output), stderr(&output)))
    };
    let (code, words) = ksi(&["audit", "verify", &path, "--key", &key]);
    assert!(code == 0 && words.contains("signed heads, up to record"), "{words}");
    let (code, words) = ksi(&["audit", "verify", &path]);
    assert!(code == 0 && words.contains("the file's own key"), "{words}");
    let text = fs::read_to_string(&file).unwrap();
    let line = text.lines().position(|line| line.contains("\"state:set\"")).unwrap() + 1;
    fs::write(&file, text.replacen("\"state:set\"", "\"state:get\"", 1)).unwrap();
    let (code, words) = ksi(&["audit", "verify", &path]);
    assert!(code == 8 && words.contains(&format!("line {line}, record ")), "{words}");
    assert_eq!(ksi(&["audit", "verify", "/nowhere/x"]).0, 4);
}

#[test]
fn a_query_on_the_command_line_shows_people_what_was_denied() {
    let daemon = ready();
    daemon.ask("space:get", json!({})).unwrap_err();
    daemon.ask("state:set", json!({"key": "a", "value": 1})).unwrap();
    written(&daemon, "*", 2);
    let (code, words) = ksi(&daemon, &["audit", "query", "--denied", "--since", "1h"]);
    assert!(code == 0 && words.contains("space:get") && words.contains("DENIED"), "{words}");
    assert!(!words.contains("state:set"), "{words}");
    let newest = ksi(&daemon, &["audit", "query", "-n", "1", "-o", "jsonl"]).1;
    assert_eq!(newest.lines().count(), 1, "{newest}");
    assert_eq!(ksi(&daemon, &["audit", "query", "--since", "yesterday"]).0, 2);
}
