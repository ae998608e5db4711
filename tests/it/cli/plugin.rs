//! `plugin`: what runs, and how to run more or less of it.

use std::fs;

use ksi_tests::{Daemon, library, stdout};

use super::{data, error, failed, fine};

fn started() -> Daemon {
    let daemon = Daemon::without_model();
    daemon.ready();
    daemon
}

#[test]
fn plugins_are_listed_and_inspected() {
    let daemon = started();
    let table = stdout(&fine(daemon.ksi(&["plugin", "list"])));
    let echo = table.lines().find(|line| line.starts_with("echo ")).expect("echo");
    assert!(echo.contains("ready") && echo.contains("in-process"), "{table}");
    let text = stdout(&fine(daemon.ksi(&["plugin", "inspect", "echo"])));
    for part in ["state      ready", "answers", "echo:say", "Say something"] {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
    assert_eq!(data(daemon.ksi(&["plugin", "inspect", "echo", "-o", "json"]))["status"]["name"], "echo");
}

#[test]
fn a_plugin_is_unloaded_loaded_and_restarted() {
    let daemon = started();
    assert_eq!(data(daemon.ksi(&["plugin", "unload", "echo", "-o", "json"]))["state"], "stopped");
    let words = failed(daemon.ksi(&["send", "echo:say", "--text", "x"]), 1);
    assert!(words.contains("echo"), "{words}");
    assert!(stdout(&fine(daemon.ksi(&["status"]))).contains("echo off"));
    assert_eq!(data(daemon.ksi(&["plugin", "load", "echo", "-o", "json"]))["state"], "ready");
    let before =
        data(daemon.ksi(&["plugin", "inspect", "echo", "-o", "json"]))["status"]["generation"].clone();
    for verb in ["restart", "reload"] {
        let said = stdout(&fine(daemon.ksi(&["plugin", verb, "echo"])));
        assert!(said.starts_with("echo ") && said.contains("ready"), "{said}");
    }
    let after =
        data(daemon.ksi(&["plugin", "inspect", "echo", "-o", "json"]))["status"]["generation"].clone();
    assert!(after.as_u64() > before.as_u64(), "{before} {after}");
    fine(daemon.ksi(&["send", "echo:say", "--text", "x"]));
}

#[test]
fn what_is_no_plugin_is_refused_with_a_reason() {
    let daemon = started();
    for verb in ["inspect", "unload", "reload", "restart"] {
        let error = error(daemon.ksi(&["plugin", verb, "nobody", "-o", "json"]), 4);
        assert!(error["hint"].as_str().is_some_and(|hint| hint.contains("echo")), "{verb}: {error}");
    }
    failed(daemon.ksi(&["plugin", "load", "nobody"]), 4);
    failed(daemon.ksi(&["plugin", "load", "/nowhere/libx.so"]), 4);
    let text = daemon.home.path().join("libtext.so");
    fs::write(&text, "no library").expect("a file");
    let words = failed(daemon.ksi(&["plugin", "load", "./libtext.so"]), 2);
    assert!(words.contains("libtext.so"), "{words}");
    // A name that is taken.
    let echo = library("echo").display().to_string();
    let words = failed(daemon.ksi(&["plugin", "load", &echo]), 6);
    assert!(words.contains("echo") && words.contains("ksi plugin unload"), "{words}");
    failed(daemon.ksi(&["plugin", "load", &echo, "--placement", "moon"]), 2);
}

#[test]
fn a_placement_that_is_not_that_of_the_manifest_is_no_silent_wish() {
    let daemon = started();
    fine(daemon.ksi(&["plugin", "load", "echo", "--placement", "in-process"]));
    let words = failed(daemon.ksi(&["plugin", "load", "echo", "--placement", "child"]), 6);
    assert!(words.contains("in-process") && words.contains("plugins.echo.placement"), "{words}");
}

#[test]
fn a_plugin_that_is_off_is_started_by_its_name() {
    let daemon = started();
    assert_eq!(data(daemon.ksi(&["plugin", "load", "echo_child", "-o", "json"]))["placement"], "child");
    assert_eq!(data(daemon.ksi(&["send", "echo_child:say", "--text", "x", "-o", "json"]))["text"], "x");
}
