//! `ksi` as a person and a script meet it: exit codes, what goes to which
//! stream, formats, and every verb against a real daemon.

mod ask;
mod bench;
mod chat;
mod checkpoint;
mod completion;
mod configuration;
mod discovery;
mod formats;
mod life;
mod logs;
mod model;
mod plugin;
mod project;
mod send;
mod sub;
mod usage;
mod work;

use std::{
    process::{Child, Output},
    sync::mpsc,
};

use ksi_tests::{DEADLINE, Home, stderr, stdout};
use serde_json::Value;

/// The exit code; a signal counts as none.
fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

/// A run that must have ended with a code; what it said is shown where not.
#[track_caller]
fn ended(output: Output, expected: i32) -> Output {
    assert_eq!(code(&output), expected, "stdout: {}\nstderr: {}", stdout(&output), stderr(&output));
    output
}

/// A run that must have succeeded.
#[track_caller]
fn fine(output: Output) -> Output {
    ended(output, 0)
}

/// A run that must have failed with a code, and told nothing on standard
/// output; gives what it said on standard error.
#[track_caller]
fn failed(output: Output, expected: i32) -> String {
    let output = ended(output, expected);
    assert_eq!(stdout(&output), "", "data of a failure");
    stderr(&output)
}

/// Standard output of a successful run as JSON.
#[track_caller]
fn data(output: Output) -> Value {
    let output = fine(output);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", stdout(&output)))
}

/// The documents that have come one after the other.
#[track_caller]
fn documents(format: &str, text: &str) -> Vec<Value> {
    let read: Result<Vec<Value>, String> = match format {
        "yaml" => {
            let documents = text.split("---\n").filter(|document| !document.is_empty());
            documents.map(|one| serde_yaml_ng::from_str(one).map_err(|error| error.to_string())).collect()
        }
        "jsonl" => {
            text.lines().map(|line| serde_json::from_str(line).map_err(|error| error.to_string())).collect()
        }
        _ => serde_json::Deserializer::from_str(text)
            .into_iter()
            .map(|one| one.map_err(|error| error.to_string()))
            .collect(),
    };
    read.unwrap_or_else(|error| panic!("{format}: {error}: {text}"))
}

/// The error that a failed run with `-o json` has written: one line, nothing
/// else beside it.
#[track_caller]
fn error(output: Output, expected: i32) -> Value {
    let words = failed(output, expected);
    assert_eq!(words.lines().count(), 1, "{words}");
    let mut value: Value = serde_json::from_str(&words).unwrap_or_else(|error| panic!("{error}: {words}"));
    assert_eq!(value["error"]["exit"], expected, "{words}");
    value["error"].take()
}

/// Waits for a program and the end of its streams, but no longer than the
/// deadline: what it has started may hold them open.
#[track_caller]
fn waited(child: Child) -> Output {
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    receiver.recv_timeout(DEADLINE).expect("the program and its streams end").expect("its output can be read")
}

/// A home whose daemon was started by `ksi` and is stopped with the test.
struct Started(Home);

impl Drop for Started {
    fn drop(&mut self) {
        // A test that has failed already fails for its own reason.
        let _ = self.0.ksi(&["stop", "--grace", "1s", "--timeout", "10s"]);
    }
}
