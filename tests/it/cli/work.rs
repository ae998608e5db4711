//! `wait` and `cancel`: requests that were accepted and go on alone.

use ksi_tests::{Daemon, stdout, wait_until};
use serde_json::json;

use super::{data, error, failed, fine};

/// Asks without waiting; gives the id.
fn accepted(daemon: &Daemon, model: &str, prompt: &str) -> String {
    let line = ["send", "completion:async", "--prompt", prompt, "--model", model, "-o", "json"];
    let reply = data(daemon.ksi(&line));
    assert_eq!(reply["status"], "accepted", "{reply}");
    reply["request_id"].as_str().expect("an id").to_owned()
}

#[test]
fn wait_gives_the_answer_whether_it_is_there_already_or_comes_later() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let id = accepted(&daemon, "mock/slow:100", "one two three");
    assert_eq!(stdout(&fine(daemon.ksi(&["wait", &id]))), "one two three\n");
    assert_eq!(data(daemon.ksi(&["wait", &id, "-o", "json"]))["text"], "one two three");
}

#[test]
fn wait_ends_as_the_request_did() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let id = accepted(&daemon, "mock/fail:denied", "x");
    assert_eq!(error(daemon.ksi(&["wait", &id, "-o", "json"]), 5)["code"], "denied");
    failed(daemon.ksi(&["wait", "nothing"]), 4);
}

#[test]
fn cancel_ends_a_request_and_wait_says_so() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let id = accepted(&daemon, "mock/hang", "x");
    let words = failed(daemon.ksi(&["wait", &id, "--timeout", "200ms"]), 7);
    assert!(words.contains(&format!("ksi cancel {id}")), "{words}");
    let status = || daemon.ask("completion:status", json!({})).expect("a status");
    assert_eq!(status()["running"], 1, "waiting no longer is not cancelling");
    let said = stdout(&fine(daemon.ksi(&["cancel", &id])));
    assert!(said.starts_with(&id), "{said}");
    wait_until("nothing runs", || status()["running"] == 0);
    assert_eq!(error(daemon.ksi(&["wait", &id, "-o", "json"]), 1)["code"], "cancelled");
    failed(daemon.ksi(&["cancel", "nothing"]), 4);
}
