//! The plugin as a whole, on a directory of the test's own.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ksi_sdk::{
    protocol::{
        audit::{Record, Retired},
        meta::Meta,
    },
    testing::{Answer, FakeHost},
};
use serde_json::{Value, json};

use super::*;
use crate::testing::{drain, policy, wait_until};

type Host = FakeHost<Checkpoint>;

/// Starts the plugin, and says that the daemon knows of it.
fn start(dir: &Path, config: Value) -> Host {
    let host = Host::start_in(dir, config).unwrap();
    host.emit("plugin:ready", json!({ "name": "checkpoint", "generation": 1 }));
    host
}

/// Takes work of so many bytes in and does it, so that there are records.
fn work(host: &Host, count: usize, bytes: usize) {
    for number in 0..count {
        let call = host.keep("echo:say", json!("x".repeat(bytes)), policy());
        assert!(matches!(host.next(&call), Answer::Accepted(_)));
        let asked = host.expect("echo:say");
        host.reply(&asked, json!(number));
        host.expect_emitted("work:done");
    }
}

/// Ends the plugin, and lets go of its directory.
fn end(host: Host) {
    drain(&host);
}

fn ask(host: &Host, event: &str) -> Value {
    host.request(event, json!({})).unwrap()
}

/// Files of the journal with this ending.
fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    files_in(&dir.join("journal"), ending)
}

fn files_in(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|file| file.extension().is_some_and(|found| found == ending)).collect()
}

/// Changes one byte among the first records.
fn flip(dir: &Path) {
    flip_in(&dir.join("journal"), b"echo:say");
}

/// Changes the first byte that begins these, in the oldest file.
fn flip_in(dir: &Path, what: &[u8]) {
    let file = files_in(dir, "journal").into_iter().min().unwrap();
    let mut bytes = fs::read(&file).unwrap();
    let place = bytes.windows(what.len()).position(|seen| seen == what).unwrap();
    bytes[place] ^= 1;
    fs::write(file, bytes).unwrap();
}

/// Writes a record of the audit trail down, as the daemon does.
fn audit(host: &Host, at_ms: u64) {
    let meta = Meta { origin: Some("daemon".into()), ..Meta::default() };
    let line = Record::Retired(Retired { at_ms, before_seq: 0 }).line();
    let call = host.open_as("audit:append", json!({ "records": [line] }), &meta);
    assert!(matches!(host.next(&call), Answer::Reply(_)));
}

#[test]
fn a_damaged_audit_trail_degrades_the_plugin_until_somebody_has_seen_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let records = dir.path().join("audit/records");
    let host = start(dir.path(), json!({}));
    (1..4).for_each(|at_ms| audit(&host, at_ms));
    end(host);
    flip_in(&records, b"before_seq");

    let host = start(dir.path(), json!({}));
    assert_eq!(ask(&host, "audit:verify")["ok"], false);
    wait_until("a word of it", || host.degraded().is_some());
    let why = host.degraded().unwrap();
    let aside: Vec<_> = files_in(&records, "damaged").into_iter().chain(files_in(&records, "kept")).collect();
    let name = aside[0].file_name().unwrap().to_str().unwrap();
    assert!(why.contains(name) && why.contains("ksi audit verify"), "{why}");
    assert_eq!(ask(&host, "checkpoint:status")["troubles"], json!([why]));
    audit(&host, 9);

    // As the reason says.
    end(host);
    aside.iter().for_each(|file| fs::remove_file(file).unwrap());
    let host = start(dir.path(), json!({}));
    audit(&host, 10);
    assert_eq!((host.degraded(), &ask(&host, "checkpoint:status")["troubles"]), (None, &json!([])));
}

#[test]
fn damage_degrades_the_plugin_until_somebody_has_seen_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let host = start(dir.path(), json!({}));
    work(&host, 5, 10);
    assert_eq!((host.degraded(), &ask(&host, "checkpoint:status")["troubles"]), (None, &json!([])));
    end(host);
    flip(dir.path());

    let host = start(dir.path(), json!({}));
    let status = ask(&host, "checkpoint:status");
    let name = status["quarantined"][0].as_str().unwrap().to_owned();
    assert!(name.ends_with(".damaged"), "{status}");
    assert!(status["notes"][0].as_str().unwrap().contains(&name), "{status}");
    let why = host.degraded().unwrap();
    assert!(why.contains(&name) && why.contains("ksi checkpoint create"), "{why}");
    assert_eq!(status["troubles"], json!([why]));
    let found = ask(&host, "checkpoint:verify");
    assert_eq!((&found["ok"], &found["problems"][0]["segment"]), (&json!(false), &json!(name)));
    assert!(found["problems"][0]["seq"].is_u64(), "{found}");

    // As the reason says.
    ask(&host, "checkpoint:create");
    end(host);
    let aside: Vec<_> = files(dir.path(), "damaged").into_iter().chain(files(dir.path(), "kept")).collect();
    assert_eq!(aside.len(), 1);
    aside.iter().for_each(|file| fs::remove_file(file).unwrap());
    let host = start(dir.path(), json!({}));
    assert_eq!((host.degraded(), &ask(&host, "checkpoint:status")["troubles"]), (None, &json!([])));
    work(&host, 1, 10);
}

#[test]
fn what_is_damaged_is_told_also_when_it_is_no_part_of_the_journal_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let config = || json!({ "segment_bytes": 65536, "facts_bytes": 0 });
    let host = start(dir.path(), config());
    work(&host, 3, 10);
    end(host);
    flip(dir.path());
    let host = start(dir.path(), config());
    work(&host, 40, 20_000);
    ask(&host, "checkpoint:create");
    let name = ask(&host, "checkpoint:status")["quarantined"][0].as_str().unwrap().to_owned();
    assert!(name.ends_with(".kept"), "{name}");
    assert!(host.degraded().unwrap().contains(&name));
    end(host);
    let host = start(dir.path(), config());
    assert!(host.degraded().unwrap().contains(&name));
}

#[test]
fn a_store_that_was_made_anew_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let host = start(dir.path(), json!({}));
    work(&host, 5, 10);
    end(host);
    fs::write(dir.path().join("store/tree/db"), "no database").unwrap();
    let host = start(dir.path(), json!({}));
    let opened = host.expect_emitted("checkpoint:opened");
    let status = ask(&host, "checkpoint:status");
    assert!(status["rebuilt"]["why"].is_string() && status["rebuilt"]["aside"].is_string(), "{status}");
    assert_eq!(opened["rebuilt"], status["rebuilt"]);
    assert!(opened["notes"].to_string().contains("made anew"), "{opened}");
    assert_eq!((host.degraded(), &status["ended"]), (None, &json!(5)));
}

#[test]
fn a_restore_whose_asker_goes_away_is_done_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let host = start(dir.path(), json!({}));
    work(&host, 5, 10);
    let made = ask(&host, "checkpoint:create");
    let asked = host.open("checkpoint:restore", json!({ "id": made["id"] }));
    host.cancel(&asked);
    assert!(host.degraded().unwrap().contains("restored"));
    let anew = host.expect("system:restart");
    assert_eq!(ask(&host, "checkpoint:status")["accepting"], json!(false));
    host.refuse(&anew, Refusal::new(Code::Unavailable, "not now"));
    assert!(host.degraded().unwrap().contains("start the daemon again"));
}

#[test]
fn what_is_no_file_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let host = start(dir.path(), json!({}));
    let pipe = dir.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [&*pipe, dir.path(), Path::new("/dev/null")] {
        let refusal = host.request("checkpoint:restore", json!({ "path": path })).unwrap_err();
        assert_eq!(refusal.code, Code::InvalidPayload, "{refusal}");
        work(&host, 1, 10);
    }
}

#[test]
fn an_export_lies_where_the_plugin_says_and_is_restored_from_there() {
    let dir = tempfile::tempdir().unwrap();
    let host = start(dir.path(), json!({}));
    work(&host, 5, 10);
    for event in ["checkpoint:export", "audit:export"] {
        let named = host.request(event, json!({ "name": event.replace(':', "-") })).unwrap();
        let path = PathBuf::from(named["path"].as_str().unwrap());
        assert_eq!(path, dir.path().join("outgoing").join(event.replace(':', "-")));
        assert!(path.is_file());
        let taken = host.request(event, json!({ "name": event.replace(':', "-") }));
        assert_eq!(taken.unwrap_err().code, Code::Conflict);
        let elsewhere = dir.path().join("elsewhere");
        for ask in [json!({ "name": elsewhere }), json!({ "path": elsewhere }), json!({ "name": "../x" })] {
            assert_eq!(host.request(event, ask).unwrap_err().code, Code::InvalidPayload);
        }
        assert!(!elsewhere.exists());
        assert!(ask(&host, event)["path"].as_str().unwrap().contains("/outgoing/"));
    }
    let path = dir.path().join("outgoing/checkpoint-export");
    assert!(host.request("checkpoint:restore", json!({ "path": path })).is_ok());
}

#[test]
fn what_cannot_be_restored_stops_nothing_also_where_its_asker_goes_away() {
    let dir = tempfile::tempdir().unwrap();
    let host = start(dir.path(), json!({}));
    work(&host, 5, 10);
    let file = dir.path().join("none.ksi");
    fs::write(&file, "no export").unwrap();
    let asked = host.open("checkpoint:restore", json!({ "path": file }));
    host.cancel(&asked);
    wait_until("the end of the restore", || ask(&host, "checkpoint:status")["accepting"] == json!(true));
    assert_eq!(host.degraded(), None);
    work(&host, 1, 10);
    assert!(!host.has_asked());
}

#[test]
fn what_is_made_is_as_old_as_the_plugins_clock_says_whatever_the_wall_clock_is_set_to() {
    let dir = tempfile::tempdir().unwrap();
    let host = start(dir.path(), json!({}));
    let made_ms = |host: &Host| ask(host, "checkpoint:create")["at_ms"].as_u64().unwrap();
    let first = made_ms(&host);
    host.advance(Duration::from_secs(7));
    let second = made_ms(&host);
    assert_eq!(second - first, 7_000);
    for (event, name) in [
        ("checkpoint:export", format!("checkpoint-{second:013}-")),
        ("audit:export", format!("audit-{second}.jsonl")),
    ] {
        let path = PathBuf::from(ask(&host, event)["path"].as_str().unwrap());
        assert!(path.file_name().unwrap().to_str().unwrap().starts_with(&name), "{path:?}");
    }
    audit(&host, second);
    wait_until("a head in its time", || {
        host.advance(Duration::from_millis(trail::HEAD_MS));
        ask(&host, "audit:verify")["heads"] == json!(1)
    });
}

#[test]
fn work_that_is_found_begins_once_the_daemon_knows_who_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    for told in [true, false] {
        let host = start(dir.path(), json!({}));
        let call = host.keep("echo:say", json!("it"), policy());
        assert!(matches!(host.next(&call), Answer::Accepted(_)));
        host.expect("echo:say");
        end(host);
        let host = Host::start_in(dir.path(), json!({})).unwrap();
        // By its end every lease is durable, so that what may begin has begun.
        ask(&host, "checkpoint:create");
        assert_eq!(ask(&host, "checkpoint:status")["running"], json!(1));
        host.emit("plugin:ready", json!({ "name": "echo" }));
        assert!(!host.has_asked(), "nobody is there to keep it");
        match told {
            true => host.emit("plugin:ready", json!({ "name": "checkpoint" })),
            false => host.advance(KNOWN),
        }
        let asked = host.expect("echo:say");
        host.reply(&asked, json!(1));
        host.expect_emitted("work:done");
        end(host);
    }
}

#[test]
fn a_journal_that_has_lost_its_end_is_told_until_somebody_has_seen_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let host = start(dir.path(), json!({}));
    work(&host, 5, 10);
    let last = ask(&host, "checkpoint:status")["last_seq"].as_u64().unwrap();
    end(host);
    fs::remove_dir_all(dir.path().join("journal")).unwrap();
    let host = start(dir.path(), json!({}));
    let status = ask(&host, "checkpoint:status");
    let why = host.degraded().unwrap();
    assert!(why.contains("the journal has lost its end"), "{why}");
    assert_eq!(status["troubles"], json!([why]));
    assert!(
        status["notes"][0].as_str().unwrap().contains("are lost") && status["ended"] == json!(5),
        "{status}"
    );
    assert!(status["last_seq"].as_u64().unwrap() > last, "{status}");
    work(&host, 1, 10);
    end(host);
    let host = start(dir.path(), json!({}));
    assert_eq!((host.degraded(), &ask(&host, "checkpoint:status")["troubles"]), (None, &json!([])));
}
