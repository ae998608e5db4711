//! `ksi doctor --fix`: what it repairs, and what it leaves alone.

use std::{
    fs::{self, Permissions},
    os::unix::{fs::PermissionsExt, net::UnixListener},
};

use ksi_tests::{Daemon, Home, WITHOUT_MODEL, stdout};
use serde_json::Value;

fn doctor(home: &Home, arguments: &[&str]) -> (Option<i32>, Value) {
    let output = home.ksi(&[&["doctor", "--json"], arguments].concat());
    (output.status.code(), serde_json::from_str(&stdout(&output)).expect("JSON"))
}

fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = report["checks"].as_array().expect("a list");
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no check {name}"))
}

#[test]
fn what_can_be_repaired_without_harm_is_repaired_only_on_request() {
    let home = Home::with_config(WITHOUT_MODEL);
    let paths = home.paths();
    fs::create_dir_all(&paths.runtime_dir).unwrap();
    fs::create_dir_all(&paths.state_dir).unwrap();
    fs::set_permissions(&paths.runtime_dir, Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&paths.state_dir, Permissions::from_mode(0o777)).unwrap();
    drop(UnixListener::bind(&paths.socket).unwrap());
    let part = paths.state_dir.join("orders.new");
    fs::write(&part, "{").unwrap();
    fs::write(paths.keyring(), "").unwrap();
    fs::set_permissions(paths.keyring(), Permissions::from_mode(0o644)).unwrap();

    let (code, report) = doctor(&home, &[]);
    assert_eq!((code, &report["status"]), (Some(8), &Value::from("fail")));
    for (name, outcome) in [
        ("runtime dir", "fail"),
        ("state dir", "fail"),
        ("lock", "warn"),
        ("left-overs", "warn"),
        ("secrets", "fail"),
    ] {
        let check = check(&report, name);
        assert_eq!(check["outcome"], outcome, "{check}");
        for part in ["text", "why", "fix"] {
            assert!(check[part].as_str().is_some_and(|text| text.len() > 5), "no {part}: {check}");
        }
    }
    assert!(part.exists() && paths.socket.exists(), "it only looks");
    assert_eq!(report["repaired"], Value::from(Vec::<Value>::new()));

    let (code, report) = doctor(&home, &["--fix"]);
    assert_eq!(code, Some(0), "{report}");
    let repaired = report["repaired"].as_array().expect("a list");
    assert_eq!(repaired.len(), 5, "{report}");
    for name in ["runtime dir", "state dir", "lock", "left-overs", "secrets"] {
        assert_eq!(check(&report, name)["outcome"], "ok", "{report}");
        assert!(repaired.iter().any(|one| one["name"] == name), "{report}");
    }
    assert!(!part.exists() && !paths.socket.exists());
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&paths.runtime_dir), mode(&paths.state_dir)), (0o700, 0o755));
    assert_eq!(mode(&paths.keyring()), 0o600);
    let daemon = home.start();
    daemon.ready();
}

#[test]
fn a_file_in_the_place_of_the_socket_is_moved_away_and_not_lost() {
    let home = Home::with_config(WITHOUT_MODEL);
    let paths = home.paths();
    fs::create_dir_all(&paths.runtime_dir).unwrap();
    fs::set_permissions(&paths.runtime_dir, Permissions::from_mode(0o700)).unwrap();
    fs::write(&paths.socket, "precious").unwrap();
    let (code, report) = doctor(&home, &["--fix"]);
    assert_eq!(code, Some(0), "{report}");
    let aside = paths.socket.with_extension("sock.old");
    assert_eq!(fs::read_to_string(aside).unwrap(), "precious");
}

#[test]
fn a_running_daemon_loses_nothing_by_a_repair() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let (code, report) = doctor(&daemon.home, &["--fix"]);
    assert_eq!(report["repaired"].as_array().map(Vec::len), Some(0), "{report}");
    // Without the plugin that has models, that check fails.
    assert_eq!(code, Some(8));
    assert_eq!(daemon.ask("echo:say", serde_json::json!({"text": "a"})).unwrap()["text"], "a");
}
