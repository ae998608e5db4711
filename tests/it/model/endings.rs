//! How a generation ends before its time: cancelled, given up by its asker,
//! orphaned by a crash of the model's process, or overtaken by a stop.

use std::time::{Duration, Instant};

use ksi_tests::{Daemon, Lines, wait_until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use super::{answer, collect, endless, greedy, idle, open, open_and_hear, status, talk, text, with};

/// Time in which callers must hear that the model's process died.
const HEARD: Duration = Duration::from_secs(1);

/// The id of the only open request.
fn only_id(daemon: &Daemon) -> Value {
    let status = status(daemon);
    assert_eq!(status["requests"].as_array().unwrap().len(), 1, "{status}");
    status["requests"][0]["request_id"].clone()
}

#[test]
fn a_request_that_is_cancelled_by_id_stops_and_frees_its_place() {
    let daemon = endless("[plugins.completion.config.providers.llama]\nconcurrency = 1\n");
    let mut lines = open_and_hear(&daemon, &talk());
    let id = only_id(&daemon);
    let mut next = open(&daemon, &greedy("Hello"));
    wait_until("the next one waits", || status(&daemon)["queued"] == 1);
    let cancelled = daemon.ask("completion:cancel", json!({"request_id": id})).unwrap();
    assert_eq!((&cancelled["request_id"], &cancelled["status"]), (&id, &json!("cancelled")));
    let refusal = collect(&mut lines).1.unwrap_err();
    assert_eq!(refusal["code"], "cancelled", "{refusal}");
    assert!(!text(&collect(&mut next).1.unwrap()).is_empty());
    idle(&daemon);
    assert_eq!(daemon.ask("completion:get", json!({"request_id": id})).unwrap()["state"], "cancelled");
    let again = daemon.ask("completion:cancel", json!({"request_id": id})).unwrap();
    assert_eq!(again["status"], "cancelled", "to cancel twice is no mistake");
}

#[test]
fn an_async_request_is_cancelled_by_id_and_that_is_told() {
    let daemon = endless("");
    let mut heard = daemon.lines();
    heard.send(&json!({"subscribe": "completion:cancelled"}));
    heard.receive();
    let id = daemon.ask("completion:async", talk()).unwrap()["request_id"].clone();
    wait_until("it runs", || daemon.plugin("llama").in_flight > 0);
    daemon.ask("completion:cancel", json!({"request_id": id})).unwrap();
    assert_eq!(heard.receive()["data"]["request_id"], id);
    idle(&daemon);
}

#[test]
fn a_wire_cancel_stops_the_generation() {
    let daemon = endless("");
    let mut lines = open_and_hear(&daemon, &talk());
    lines.send(&json!({"cancel": 1}));
    let refusal = collect(&mut lines).1.unwrap_err();
    assert_eq!(refusal["code"], "cancelled", "{refusal}");
    idle(&daemon);
}

#[test]
fn a_client_that_goes_away_stops_what_was_generated_for_it() {
    let daemon = endless("");
    let calls: Vec<Lines> = (0..3).map(|_| open_and_hear(&daemon, &talk())).collect();
    // These never get a slot.
    let waiting: Vec<Lines> = (0..3).map(|_| open(&daemon, &talk())).collect();
    wait_until("all are there", || status(&daemon)["requests"].as_array().unwrap().len() == 6);
    assert!(daemon.plugin("llama").in_flight >= 3);
    let began = Instant::now();
    drop((calls, waiting));
    idle(&daemon);
    assert!(began.elapsed() < Duration::from_secs(3), "the generations were stopped, not awaited");
    answer(&daemon, &greedy("Hello"));
}

#[test]
fn a_deadline_ends_a_generation() {
    let daemon = endless("");
    // It is not about the time that a load takes.
    daemon.ask("llama:load", json!({"model": "endless"})).unwrap();
    let (pieces, end) = collect(&mut open(&daemon, &with(talk(), json!({"timeout_ms": 400}))));
    let refusal = end.unwrap_err();
    assert_eq!(refusal["code"], "timeout", "{refusal}");
    assert!(refusal["details"]["request_id"].is_string(), "{refusal}");
    assert!(!pieces.is_empty(), "it had begun to speak");
    idle(&daemon);
}

/// Kills the process of a plugin, and says which it was.
fn kill_plugin(daemon: &Daemon, name: &str) -> u32 {
    let pid = daemon.plugin(name).pid.expect("it runs in a process of its own");
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    pid
}

/// Once it has spoken, a request is never tried again, so that nobody reads
/// the beginning of an answer twice.
#[test]
fn callers_hear_within_a_second_that_the_process_of_the_plugin_died() {
    let daemon = endless("");
    let mut calls: Vec<Lines> = (0..3).map(|_| open_and_hear(&daemon, &talk())).collect();
    let pid = kill_plugin(&daemon, "llama");
    let killed = Instant::now();
    for lines in &mut calls {
        let refusal = collect(lines).1.unwrap_err();
        assert_eq!(refusal["code"], "plugin_restarted", "{refusal}");
        assert_eq!((&refusal["retryable"], &refusal["details"]["attempts"]), (&json!(true), &json!(1)));
    }
    assert!(killed.elapsed() < HEARD, "{:?}", killed.elapsed());
    // The next request waits for the new process, by itself.
    let end = answer(&daemon, &greedy("Hello"));
    assert!(end["timings"]["load_ms"].is_number(), "loaded anew: {end}");
    let now = daemon.plugin("llama");
    assert_eq!((now.restarts, now.pid == Some(pid)), (1, false));
    idle(&daemon);
}

#[test]
fn a_request_that_has_not_spoken_when_its_process_dies_is_tried_again_under_its_id() {
    // More requests than slots: the rest waits silently inside of llama.
    let daemon = endless("slots = 2\n[plugins.completion.config.providers.llama]\nconcurrency = 8\n");
    let mut speaking: Vec<Lines> = (0..2).map(|_| open_and_hear(&daemon, &talk())).collect();
    let id =
        daemon.ask("completion:async", with(talk(), json!({"max_tokens": 5}))).unwrap()["request_id"].clone();
    wait_until("llama holds all of them", || daemon.plugin("llama").in_flight == 3);
    kill_plugin(&daemon, "llama@endless");
    for lines in &mut speaking {
        assert_eq!(collect(lines).1.unwrap_err()["code"], "plugin_restarted");
    }
    let kept = daemon.ask("completion:get", json!({"request_id": id, "wait_ms": 60_000})).unwrap();
    assert_eq!(kept["state"], "done", "{kept}");
    let result = &kept["result"];
    assert_eq!((&result["request_id"], &result["attempts"]), (&id, &json!(2)));
    assert_eq!(result["usage"]["completion_tokens"], 5);
}

#[test]
fn a_stop_lets_a_generation_finish_within_the_grace() {
    let mut daemon = endless("");
    let lines = open_and_hear(&daemon, &with(talk(), json!({"max_tokens": 300})));
    let (end, stopped) = stop(&daemon, lines, "30s");
    assert!(stopped.status.success(), "{}", ksi_tests::stderr(&stopped));
    assert_eq!(end.unwrap()["usage"]["completion_tokens"], 300);
    assert!(daemon.ended().success());
}

#[test]
fn a_stop_refuses_a_generation_that_outlasts_the_grace() {
    let mut daemon = endless("");
    let lines = open_and_hear(&daemon, &talk());
    let began = Instant::now();
    let (end, stopped) = stop(&daemon, lines, "300ms");
    assert!(stopped.status.success(), "{}", ksi_tests::stderr(&stopped));
    let refusal = end.unwrap_err();
    assert_eq!(refusal["code"], "shutting_down", "{refusal}");
    assert!(daemon.ended().success());
    assert!(began.elapsed() < Duration::from_secs(5), "the rest was not awaited: {:?}", began.elapsed());
}

/// Stops the daemon while somebody reads an answer.
fn stop(daemon: &Daemon, mut lines: Lines, grace: &str) -> (Result<Value, Value>, std::process::Output) {
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || collect(&mut lines).1);
        let stopped = daemon.ksi(&["stop", "--grace", grace]);
        (reader.join().expect("the answer ends"), stopped)
    })
}
