//! `ask`: the answer on standard output, all else beside it, and every way in
//! which it may be broken off.

use std::{
    io::Read,
    process::{Child, Stdio},
};

use ksi_tests::{Daemon, Home, command, stderr, stdout, wait_until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use super::{code, data, failed, fine, waited};

fn running(daemon: &Daemon) -> u64 {
    let status = daemon.ask("completion:status", json!({})).expect("a status");
    status["running"].as_u64().expect("a number") + status["queued"].as_u64().expect("a number")
}

/// A question whose answer takes its time.
fn slow(daemon: &Daemon) -> Child {
    let words = "word ".repeat(2000);
    let child = command("ksi", daemon.home.path())
        .args(["ask", "-m", "mock/slow:20", &words])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ksi runs");
    wait_until("the request runs", || running(daemon) == 1);
    child
}

#[test]
fn a_model_answers_without_any_setting_and_the_toy_is_named_beside_it() {
    let daemon = Home::new().start();
    daemon.ready();
    let output = fine(daemon.ksi(&["ask", "hello"]));
    assert!(!stdout(&output).trim().is_empty() && stdout(&output).ends_with('\n'));
    assert!(!stdout(&output).contains("ksi model add PATH.gguf)"), "{}", stdout(&output));
    let note = stderr(&output);
    assert!(note.contains("toy") && note.contains("ksi model add"), "{note}");
    let end = data(daemon.ksi(&["ask", "-o", "json", "--seed", "7", "hello"]));
    assert_eq!((&end["toy"], &end["answered"]["model"]), (&true.into(), &"ksi-tiny".into()), "{end}");
    assert!(end["text"].as_str().is_some_and(|text| !text.is_empty()));
    let again = data(daemon.ksi(&["ask", "-o", "json", "--seed", "7", "hello"]));
    assert_eq!(end["text"], again["text"], "a seed decides");
}

#[test]
fn the_question_may_be_piped_in() {
    let daemon = Daemon::without_model();
    daemon.ready();
    for line in [&["ask", "-m", "mock/echo"][..], &["ask", "-m", "mock/echo", "-"]] {
        let output = fine(daemon.home.ksi_with_input(line, "a piped question"));
        assert_eq!(stdout(&output), "a piped question\n", "{line:?}");
    }
    for input in ["", " \n"] {
        let words = super::ended(daemon.home.ksi_with_input(&["ask"], input), 2);
        assert!(stderr(&words).contains("empty"), "{}", stderr(&words));
    }
}

#[test]
fn formats_carry_the_whole_answer() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let ask = |format: &str| stdout(&fine(daemon.ksi(&["ask", "-m", "mock/echo", "a b", "-o", format])));
    assert_eq!(ask("table"), "a b\n");
    assert_eq!(ask("name"), "mock/echo\n");
    let yaml: serde_json::Value = serde_yaml_ng::from_str(&ask("yaml")).expect("YAML");
    assert_eq!(yaml["text"], "a b");
    let lines = ask("jsonl");
    let last: serde_json::Value = serde_json::from_str(lines.lines().last().expect("a line")).expect("JSON");
    assert_eq!((&last["end"], &last["data"]["text"]), (&true.into(), &"a b".into()));
    let verbose = fine(daemon.ksi(&["ask", "-v", "-m", "mock/echo", "a b"]));
    assert!(stderr(&verbose).contains("mock/echo · 2 tokens"), "{}", stderr(&verbose));
}

#[test]
fn an_answer_that_was_cut_says_so_and_how_to_get_more() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let ask = ["ask", "-q", "-m", "mock/echo", "a b c"];
    let output = fine(daemon.ksi(&[&ask[..], &["--max-tokens", "2"]].concat()));
    assert_eq!(stdout(&output), "a b \n");
    assert!(stderr(&output).contains("cut after 2 tokens; --max-tokens"), "{}", stderr(&output));
    let output = fine(daemon.ksi(&[&ask[..], &["--max-tokens", "3"]].concat()));
    assert!(!stderr(&output).contains("cut after"), "{}", stderr(&output));
    let schema = daemon.home.path().join("schema.json");
    std::fs::write(&schema, r#"{"type":"array"}"#).expect("it can be written");
    let schema = schema.display().to_string();
    let cut = ["ask", "-m", "mock/fixed:[1, 2, 3]", "--schema", &schema, "--max-tokens", "2", "numbers"];
    let words = failed(daemon.ksi(&cut), 1);
    assert!(words.contains("cut at its longest length") && words.contains("--max-tokens"), "{words}");
}

#[test]
fn a_reader_that_leaves_ends_it_quietly_and_cancels_the_request() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let mut child = slow(&daemon);
    let mut first = [0];
    let mut pipe = child.stdout.take().expect("a pipe");
    pipe.read_exact(&mut first).expect("the answer begins");
    drop(pipe);
    let output = fine(waited(child));
    assert_eq!(stderr(&output), "");
    wait_until("the request is gone", || running(&daemon) == 0);
}

#[test]
fn ctrl_c_ends_with_130_and_cancels_the_request_in_the_daemon() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let child = slow(&daemon);
    kill(Pid::from_raw(i32::try_from(child.id()).expect("a pid")), Signal::SIGINT).expect("it is there");
    let output = waited(child);
    assert_eq!(code(&output), 130, "{}", stderr(&output));
    assert!(!stderr(&output).contains("error"), "{}", stderr(&output));
    wait_until("the request is gone", || running(&daemon) == 0);
}

#[test]
fn a_killed_ksi_cancels_the_request_too() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let mut child = slow(&daemon);
    child.kill().expect("it is there");
    child.wait().expect("it ends");
    wait_until("the request is gone", || running(&daemon) == 0);
}

#[test]
fn an_answer_that_breaks_off_is_a_failure_after_what_was_said() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let output = super::ended(daemon.ksi(&["ask", "-m", "mock/break:2", "a b c"]), 1);
    assert!(stdout(&output).starts_with("a b"), "{}", stdout(&output));
    assert!(stdout(&output).ends_with('\n') && stderr(&output).contains("error: "), "{}", stderr(&output));
    failed(daemon.ksi(&["ask", "-m", "mock/echo", "--temperature", "hot", "x"]), 2);
    failed(daemon.ksi(&["ask", "-m", "mock/echo", "--top-p", "7", "x"]), 2);
}
