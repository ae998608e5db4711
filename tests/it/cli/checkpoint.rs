//! `checkpoint …`: copies of all that is kept, made, listed, checked, put back
//! and written out.

use std::{fs, path::Path};

use ksi_tests::{Daemon, Home, WITHOUT_MODEL, stderr, stdout};
use serde_json::{Value, json};

use super::{data, error, failed, fine};

fn daemon() -> Daemon {
    let daemon = Home::with_config(WITHOUT_MODEL).start();
    daemon.ready();
    daemon
}

fn set(daemon: &Daemon, value: &str) {
    fine(daemon.ksi(&["send", "state:set", "--key", "colour", "--value", value]));
}

fn colour(daemon: &Daemon) -> Value {
    data(daemon.ksi(&["send", "state:get", "--key", "colour", "-o", "json"]))["value"].take()
}

#[test]
fn a_checkpoint_is_made_listed_and_put_back() {
    let daemon = daemon();
    set(&daemon, "blue");
    let said = stdout(&fine(daemon.ksi(&["checkpoint", "create", "--label", "before"])));
    assert!(said.starts_with("checkpoint ") && said.contains(" keys, "), "{said}");
    let made = data(daemon.ksi(&["checkpoint", "create", "-o", "json"]));
    assert!(made["seq"].as_u64() > Some(0) && made["bytes"].as_u64() > Some(0), "{made}");

    let names = stdout(&fine(daemon.ksi(&["checkpoint", "list", "-o", "name"])));
    let names: Vec<&str> = names.lines().collect();
    assert_eq!((names.len(), names[0]), (2, made["id"].as_str().expect("an id")), "the newest first");
    let table = stdout(&fine(daemon.ksi(&["checkpoint", "list"])));
    for part in ["before", "(journal)", "(store)", names[1]] {
        assert!(table.contains(part), "no `{part}` in:\n{table}");
    }
    let list = data(daemon.ksi(&["checkpoint", "list", "-o", "json"]));
    assert_eq!(list["checkpoints"][1]["label"], "before");
    assert!(list["journal"]["segments"].as_u64() > Some(0), "{list}");

    set(&daemon, "red");
    let words = failed(daemon.ksi(&["checkpoint", "restore", names[0]]), 2);
    assert!(words.contains("--yes"), "nobody is there to be asked: {words}");
    assert_eq!(colour(&daemon), "red");
    let restored = fine(daemon.ksi(&["checkpoint", "restore", names[0], "--yes"]));
    assert!(stdout(&restored).contains("restored"), "{}", stdout(&restored));
    assert!(stderr(&restored).contains("started anew"), "{}", stderr(&restored));
    assert_eq!(colour(&daemon), "blue");
    failed(daemon.ksi(&["checkpoint", "restore", "1-1", "--yes"]), 4);
    assert_eq!(
        error(daemon.ksi(&["checkpoint", "restore", "1-1", "--yes", "-o", "json"]), 4)["code"],
        "not_found"
    );
}

#[test]
fn an_export_is_put_back_by_its_path() {
    let daemon = daemon();
    set(&daemon, "blue");
    let path = daemon.home.path().join("all.ksi");
    let path = path.to_str().expect("UTF-8");
    let said = stdout(&fine(daemon.ksi(&["checkpoint", "export", path])));
    assert!(said.contains("sha256 ") && said.contains("all.ksi"), "{said}");
    failed(daemon.ksi(&["checkpoint", "export", path]), 6);
    let other = data(daemon.ksi(&["checkpoint", "export", "-o", "json"]));
    let other = Path::new(other["path"].as_str().expect("a path"));
    assert!(fs::metadata(other).expect("it is there").len() > 0);
    let left = fs::read_dir(other.parent().expect("a directory")).expect("it can be read");
    assert_eq!(left.count(), 1, "what was wanted elsewhere was moved");
    set(&daemon, "red");
    let restored = data(daemon.ksi(&["checkpoint", "restore", path, "--yes", "-o", "json"]));
    assert!(restored["keys"].as_u64() > Some(0), "{restored}");
    assert_eq!(colour(&daemon), "blue");
}

#[test]
fn a_journal_that_is_whole_is_said_to_be() {
    let daemon = daemon();
    let said = stdout(&fine(daemon.ksi(&["checkpoint", "verify"])));
    assert!(said.contains("the journal is whole: "), "{said}");
    let found = data(daemon.ksi(&["checkpoint", "verify", "-o", "json"]));
    assert_eq!((&found["ok"], &found["problems"]), (&json!(true), &json!([])));
    assert_eq!(stdout(&fine(daemon.ksi(&["checkpoint", "verify", "-o", "name"]))), "ok\n");
}
