//! `work`, `wait` and `cancel`: work that was accepted and goes on alone.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
};

use ksi_tests::{Daemon, Home, WITHOUT_MODEL, command, library, stderr, stdout, wait_until};
use serde_json::json;

use super::{data, error, failed, fine};

/// Submits a completion; gives its id.
fn accepted(daemon: &Daemon, model: &str, prompt: &str) -> String {
    let line = ["send", "completion:async", "--prompt", prompt, "--model", model, "-o", "json"];
    let reply = data(daemon.ksi(&line));
    assert!(reply["accepted"]["seq"].as_u64().is_some_and(|seq| seq > 0), "{reply}");
    reply["accepted"]["request_id"].as_str().expect("an id").to_owned()
}

/// The state of one piece of work.
fn state(daemon: &Daemon, id: &str) -> String {
    let info = data(daemon.ksi(&["work", "get", id, "-o", "json"]));
    info["state"].as_str().expect("a state").to_owned()
}

#[test]
fn send_says_what_was_accepted_and_how_to_go_on() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let line = ["send", "completion:async", "--prompt", "one two", "--model", "mock/echo"];
    let said = fine(daemon.ksi(&line));
    let id = stdout(&said).trim().strip_prefix("accepted: ").expect("an id").to_owned();
    for hint in [format!("ksi wait {id}"), format!("ksi work get {id}")] {
        assert!(stderr(&said).contains(&hint), "{}", stderr(&said));
    }
    let named = [&line[..], &["-o", "name"]].concat();
    assert_eq!(stdout(&fine(daemon.ksi(&named))).lines().count(), 1);
    let waited = [&line[..], &["--wait"]].concat();
    assert_eq!(stdout(&fine(daemon.ksi(&waited))), "one two\n");
}

#[test]
fn one_key_is_one_request_and_another_payload_under_it_is_refused() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let line = ["send", "completion:async", "--model", "mock/echo", "--idempotency-key", "k", "-o", "name"];
    let first = fine(daemon.ksi(&[&line[..], &["--prompt", "one"]].concat()));
    let second = fine(daemon.ksi(&[&line[..], &["--prompt", "one"]].concat()));
    assert_eq!(stdout(&first), stdout(&second));
    failed(daemon.ksi(&[&line[..], &["--prompt", "two"]].concat()), 6);
}

#[test]
fn what_is_of_use_for_a_while_only_is_not_begun_after_it() {
    let daemon = Daemon::without_model();
    daemon.ready();
    fine(daemon.ksi(&["plugin", "unload", "completion"]));
    let line = ["send", "--expires-in", "1ms", "completion:async", "--prompt", "x", "-o", "name"];
    let id = stdout(&fine(daemon.ksi(&line))).trim().to_owned();
    wait_until("its time is over", || state(&daemon, &id) == "expired");
    let line = ["send", "completion:async", "--prompt", "x", "--expires-in", "1h", "-o", "name"];
    let id = stdout(&fine(daemon.ksi(&line))).trim().to_owned();
    let told = stdout(&fine(daemon.ksi(&["work", "get", &id])));
    assert!(told.contains("expires") && told.contains("in 59m"), "{told}");
    let words = failed(daemon.ksi(&["send", "echo:say", "--text", "x", "--expires-in", "1h"]), 2);
    assert!(words.contains("is not durable"), "{words}");
}

#[test]
fn wait_gives_the_answer_whether_it_is_there_already_or_comes_later() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let id = accepted(&daemon, "mock/slow:100", "one two three");
    assert_eq!(stdout(&fine(daemon.ksi(&["wait", &id]))), "one two three\n");
    assert_eq!(data(daemon.ksi(&["work", "wait", &id, "-o", "json"]))["text"], "one two three");
    assert_eq!(state(&daemon, &id), "done");
}

#[test]
fn who_waits_is_told_that_the_daemon_is_gone_and_goes_on_when_it_is_back() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let id = accepted(&daemon, "mock/hang", "x");
    let mut waiting = command("ksi", daemon.home.path())
        .args(["wait", &id])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ksi runs");
    wait_until("it waits", || daemon.plugin("checkpoint").in_flight > 0);
    let home = daemon.kill();
    let mut said = BufReader::new(waiting.stderr.take().expect("it is a pipe")).lines().map_while(Result::ok);
    let gone = said.next().expect("it says something");
    assert!(gone.contains("the daemon is gone") && gone.contains("ksi start"), "{gone}");
    let daemon = home.start();
    daemon.ready();
    assert_eq!(said.next().as_deref(), Some("connected again"));
    fine(daemon.ksi(&["cancel", &id]));
    assert!(said.any(|line| line.contains("cancelled")));
    assert_eq!(waiting.wait().expect("it ends").code(), Some(1));
}

#[test]
fn work_that_failed_ends_wait_with_1_and_its_own_refusal() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let id = accepted(&daemon, "mock/fail:denied", "x");
    assert_eq!(error(daemon.ksi(&["wait", &id, "-o", "json"]), 1)["code"], "denied");
    failed(daemon.ksi(&["wait", "nothing"]), 4);
}

#[test]
fn cancel_ends_work_and_wait_says_so() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let id = accepted(&daemon, "mock/hang", "x");
    let words = failed(daemon.ksi(&["wait", &id, "--timeout", "200ms"]), 7);
    assert!(words.contains(&format!("ksi cancel {id}")), "{words}");
    let status = || daemon.ask("completion:status", json!({})).expect("a status");
    wait_until("it runs", || status()["running"] == 1);
    let said = stdout(&fine(daemon.ksi(&["cancel", &id])));
    assert!(said.starts_with(&id), "{said}");
    wait_until("nothing runs", || status()["running"] == 0);
    assert_eq!(error(daemon.ksi(&["wait", &id, "-o", "json"]), 1)["code"], "cancelled");
    failed(daemon.ksi(&["cancel", "nothing"]), 4);
}

#[test]
fn a_list_shows_only_what_is_asked_for_in_every_format() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let done = accepted(&daemon, "mock/echo", "x");
    fine(daemon.ksi(&["wait", &done]));
    let hanging = accepted(&daemon, "mock/hang", "x");
    let names = |arguments: &[&str]| {
        let output = fine(daemon.ksi(&[&["work", "list", "-o", "name"], arguments].concat()));
        stdout(&output).lines().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(&[]), format!("{done} {hanging}"));
    assert_eq!(names(&["--state", "done"]), done);
    assert_eq!(names(&["--state", "leased", "--state", "accepted"]), hanging);
    assert_eq!(names(&["--event", "other:*"]), "");
    assert_eq!(names(&["--limit", "1"]), done);
    assert!(stdout(&fine(daemon.ksi(&["work", "list"]))).contains("completion:async"));
    assert_eq!(data(daemon.ksi(&["work", "list", "-o", "json"]))["work"][0]["request_id"], done);
    failed(daemon.ksi(&["work", "list", "--state", "asleep"]), 2);
    fine(daemon.ksi(&["cancel", &hanging]));
    fine(daemon.ksi(&["work", "drop", &done]));
    failed(daemon.ksi(&["work", "get", &done]), 4);
}

#[test]
fn work_that_failed_is_done_again_on_demand() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let id = accepted(&daemon, "mock/fail:denied", "x");
    failed(daemon.ksi(&["wait", &id]), 1);
    let said = stdout(&fine(daemon.ksi(&["work", "retry", &id])));
    assert!(said.starts_with(&format!("{id}: ")), "{said}");
    failed(daemon.ksi(&["wait", &id]), 1);
    let info = data(daemon.ksi(&["work", "get", &id, "-o", "json"]));
    assert_eq!((&info["state"], &info["attempts"]), (&json!("failed"), &json!(2)));
    let done = accepted(&daemon, "mock/echo", "x");
    fine(daemon.ksi(&["wait", &done]));
    failed(daemon.ksi(&["work", "retry", &done]), 6);
    failed(daemon.ksi(&["work", "retry", "nothing"]), 4);
}

#[test]
fn the_dead_are_listed_in_every_format_done_again_and_dropped() {
    let faulty = library("fixture_faulty");
    let config = format!(
        "{WITHOUT_MODEL}[plugins.faulty]\nlibrary = \"{}\"\nplacement = \"child\"\nmay_call = []\nemits = []\n\
         restart = {{ failures_max = 1000, backoff_min = \"10ms\", backoff_max = \"50ms\" }}\n\
         [events.\"faulty:swallow\"]\ndelivery = \"durable\"\npermission = \"test.use\"\nrepeat = true\n\
         retry = {{ attempts = 5, backoff_min = \"10ms\", backoff_max = \"20ms\" }}\n",
        faulty.display()
    );
    let daemon = Home::with_config(&config).start();
    daemon.ready();
    assert_eq!(stdout(&fine(daemon.ksi(&["work", "dead", "-o", "name"]))), "");
    let line = ["send", "faulty:swallow", "--poison", "-o", "name"];
    let id = stdout(&fine(daemon.ksi(&line))).trim().to_owned();
    failed(daemon.ksi(&["wait", &id]), 1);
    assert_eq!(stdout(&fine(daemon.ksi(&["work", "dead", "-o", "name"]))), format!("{id}\n"));
    assert_eq!(data(daemon.ksi(&["work", "dead", "-o", "json"]))["work"][0]["state"], "dead");
    assert_eq!(data(daemon.ksi(&["work", "dead", "-o", "jsonl"]))["request_id"], id.as_str());
    let yaml = stdout(&fine(daemon.ksi(&["work", "dead", "-o", "yaml"])));
    let yaml: serde_json::Value = serde_yaml_ng::from_str(&yaml).expect("YAML");
    assert_eq!(yaml["work"][0]["request_id"], id.as_str());
    for format in ["table", "wide"] {
        let table = stdout(&fine(daemon.ksi(&["work", "dead", "-o", format])));
        assert!(table.contains(&id) && table.contains("crashed"), "{table}");
    }
    fine(daemon.ksi(&["work", "retry", &id]));
    failed(daemon.ksi(&["wait", &id]), 1);
    assert_eq!(state(&daemon, &id), "dead");
    fine(daemon.ksi(&["work", "drop", &id]));
    assert_eq!(stdout(&fine(daemon.ksi(&["work", "dead", "-o", "name"]))), "");
}

#[test]
fn accepted_work_is_waited_for_over_a_kill_of_the_daemon() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let id = accepted(&daemon, "mock/slow:100", "one two three");
    let daemon = daemon.kill().start();
    assert_eq!(stdout(&fine(daemon.ksi(&["wait", &id]))), "one two three\n");
}
