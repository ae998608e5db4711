//! Wrong command lines, help, exit codes, and how errors are told.

use ksi_tests::{Daemon, Home, WITHOUT_MODEL, stderr, stdout};

use super::{error, failed, fine};

/// Every verb that `--help` lists.
const VERBS: [&str; 35] = [
    "up",
    "start",
    "stop",
    "restart",
    "status",
    "health",
    "freeze",
    "thaw",
    "reload",
    "doctor",
    "ask",
    "chat",
    "completion",
    "send",
    "sub",
    "wait",
    "cancel",
    "work",
    "checkpoint",
    "audit",
    "token",
    "discover",
    "describe",
    "key",
    "secret",
    "plugin",
    "model",
    "config",
    "logs",
    "top",
    "bench",
    "version",
    "completions",
    "man",
    "help",
];

#[test]
fn help_lists_every_verb_and_every_verb_has_help() {
    let home = Home::new();
    let help = stdout(&fine(home.ksi(&["--help"])));
    for verb in VERBS.into_iter().filter(|verb| *verb != "help") {
        let listed = help.lines().any(|line| line.split_whitespace().next() == Some(verb));
        assert!(listed, "--help does not list {verb}:\n{help}");
        let own = stdout(&fine(home.ksi(&[verb, "--help"])));
        assert!(own.contains(&format!("Usage: ksi {verb}")), "{verb}: {own}");
    }
    // What the daemon offers below a noun is there too.
    for (noun, verbs) in [
        (
            "plugin",
            &[
                "list",
                "inspect",
                "load",
                "unload",
                "reload",
                "restart",
                "quarantine",
                "release",
                "sign",
                "verify",
                "new",
            ][..],
        ),
        ("model", &["list", "show", "add", "load", "unload", "sign", "verify", "rm"]),
        ("work", &["list", "get", "wait", "cancel", "retry", "dead", "drop"]),
        ("checkpoint", &["create", "list", "restore", "verify", "export", "consumers", "forget"]),
        ("audit", &["query", "verify", "export", "key"]),
        ("key", &["create", "show"]),
        ("secret", &["set", "list", "rm"]),
        ("config", &["path", "show", "get", "set", "validate"]),
    ] {
        let help = stdout(&fine(home.ksi(&[noun, "--help"])));
        for verb in verbs {
            assert!(help.contains(&format!("\n  {verb} ")), "{noun} {verb}:\n{help}");
            assert!(stdout(&fine(home.ksi(&[noun, verb, "--help"]))).contains("Usage:"), "{noun} {verb}");
        }
    }
    for exit in ["  3  the daemon is not running", "130  interrupted"] {
        assert!(help.contains(exit), "{help}");
    }
}

#[test]
fn a_command_line_that_makes_no_sense_ends_with_2() {
    let home = Home::new();
    for line in [
        &["nonsense"][..],
        &["stauts"],
        &["ask", "--nonsense", "x"],
        &["plugin", "nonsense"],
        &["wait"],
        &["sub", "not a pattern"],
        &["logs", "--level", "loud"],
        &["completions", "tcsh"],
        &["-o", "xml", "status"],
        &["--timeout", "soon", "status"],
        &["bench", "nonsense"],
        &["plugin", "new", "Not-A-Name"],
    ] {
        let words = failed(home.ksi(line), 2);
        assert!(words.contains("error: "), "{line:?}: {words}");
    }
    assert!(failed(home.ksi(&["plugin"]), 2).contains("Usage: ksi plugin"));
    let words = failed(home.ksi(&["stauts"]), 2);
    assert!(words.contains("status"), "{words}");
}

#[test]
fn a_program_reads_usage_errors_as_json_too() {
    let home = Home::new();
    for line in [
        &["nonsense", "-o", "json"][..],
        &["-ojson", "nonsense"],
        &["--output=jsonl", "nonsense"],
        &["--output", "json", "ask", "--nonsense"],
        &["sub", "not a pattern", "-o", "json"],
        &["plugin", "-o", "json"],
    ] {
        let error = error(home.ksi(line), 2);
        assert_eq!(error["code"], "usage", "{line:?}");
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "{error}");
    }
    let error = error(home.ksi(&["-o", "json", "stauts"]), 2);
    assert!(error["hint"].as_str().is_some_and(|hint| hint.contains("status")), "{error}");
}

#[test]
fn without_a_daemon_every_verb_that_needs_it_ends_with_3_and_says_what_to_do() {
    let home = Home::new();
    for line in [
        &["ask", "hello"][..],
        &["chat"],
        &["send", "echo:say", "--text", "x"],
        &["sub", "*"],
        &["wait", "x"],
        &["cancel", "x"],
        &["work", "list"],
        &["work", "retry", "x"],
        &["checkpoint", "list"],
        &["checkpoint", "verify"],
        &["discover"],
        &["describe", "echo:say"],
        &["plugin", "list"],
        &["model", "list"],
        &["config", "show"],
        &["reload"],
        &["bench", "rr"],
    ] {
        let words = failed(home.ksi(line), 3);
        assert!(words.contains("not running") && words.contains("ksi up"), "{line:?}: {words}");
        let mut json = line.to_vec();
        json.extend(["-o", "json"]);
        assert_eq!(error(home.ksi(&json), 3)["code"], "not_running", "{line:?}");
    }
}

#[test]
fn each_kind_of_refusal_has_its_exit_code() {
    let daemon = Daemon::without_model();
    daemon.ready();
    for (model, exit, code) in [
        ("mock/fail:not_found", 4, "not_found"),
        ("mock/fail:denied", 5, "denied"),
        ("mock/fail:conflict", 6, "conflict"),
        ("mock/fail:timeout", 7, "timeout"),
        ("mock/fail:busy", 1, "busy"),
        ("mock/fail:internal", 1, "internal"),
        ("mock/fail:too_large", 2, "too_large"),
        ("nobody/x", 4, "not_found"),
        ("mock/nothing", 4, "not_found"),
    ] {
        let words = failed(daemon.ksi(&["ask", "-m", model, "x"]), exit);
        assert!(words.starts_with("error: "), "{model}: {words}");
        assert_eq!(
            error(daemon.ksi(&["ask", "-m", model, "x", "-o", "json"]), exit)["code"],
            code,
            "{model}"
        );
    }
    for (line, exit, code) in [
        (&["describe", "echo:sya"][..], 4, "not_found"),
        (&["discover", "nowhere"], 4, "not_found"),
        (&["plugin", "inspect", "nobody"], 4, "not_found"),
        (&["wait", "no-request"], 4, "not_found"),
        (&["cancel", "no-request"], 4, "not_found"),
        (&["config", "get", "daemon.nonsense"], 4, "not_found"),
    ] {
        let mut json = line.to_vec();
        json.extend(["-o", "json"]);
        let error = error(daemon.ksi(&json), exit);
        assert_eq!(error["code"], code, "{line:?}: {error}");
        assert!(error["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{line:?}: {error}");
    }
}

#[test]
fn a_time_limit_ends_with_7() {
    let daemon = Daemon::without_model();
    daemon.ready();
    for line in [
        &["ask", "-m", "mock/hang", "x", "--timeout", "200ms"][..],
        &["--timeout", "0.2", "sub", "no:event"],
        &["send", "completion:request", "--prompt", "x", "--model", "mock/hang", "--timeout", "200ms"],
    ] {
        failed(daemon.ksi(line), 7);
    }
    // What was not awaited any more does not go on either.
    let status = daemon.ask("completion:status", serde_json::json!({})).expect("a status");
    assert_eq!(status["running"], 0, "{status}");
}

#[test]
fn the_socket_can_be_named() {
    let daemon = Home::with_config(WITHOUT_MODEL).start();
    daemon.ready();
    let elsewhere = Home::new();
    let socket = daemon.home.paths().socket.display().to_string();
    fine(elsewhere.ksi(&["--socket", &socket, "health"]));
    failed(elsewhere.ksi(&["--socket", "/nowhere/x.sock", "plugin", "list"]), 3);
    let no_socket = elsewhere.path().join("file");
    std::fs::write(&no_socket, "").expect("a file");
    let words = failed(elsewhere.ksi(&["--socket", &no_socket.display().to_string(), "plugin", "list"]), 1);
    assert!(words.contains("socket"), "{words}");
}

#[test]
fn quiet_leaves_out_chatter_and_keeps_errors() {
    let daemon = Daemon::without_model();
    daemon.ready();
    assert_eq!(stderr(&fine(daemon.ksi(&["-q", "ask", "-v", "-m", "mock/echo", "hi"]))).lines().count(), 1);
    assert!(failed(daemon.ksi(&["-q", "plugin", "inspect", "nobody"]), 4).contains("nobody"));
}

#[test]
fn the_versions_of_both_are_told() {
    let home = Home::with_config(WITHOUT_MODEL);
    assert!(stdout(&fine(home.ksi(&["version"]))).contains("ksid is not running"));
    assert!(stdout(&fine(home.ksi(&["--version"]))).starts_with("ksi "));
    let daemon = home.start();
    let version = super::data(daemon.ksi(&["version", "-o", "json"]));
    assert!(version["daemon"].as_str().is_some_and(|name| name.starts_with("ksid ")), "{version}");
    assert_eq!(version["protocol"], version["daemon_protocol"]);
}
