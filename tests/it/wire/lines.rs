//! JSON lines: questions and answers.

use std::{
    io::{Read, Write},
    process::{Command, Stdio},
};

use ksi_tests::Daemon;
use serde_json::{Value, json};

use crate::skipped::skipped;

fn ready() -> Daemon {
    let daemon = Daemon::without_model();
    daemon.ready();
    daemon
}

#[test]
fn one_line_and_a_half_close_are_answered_by_one_line_and_a_close() {
    let daemon = ready();
    let mut lines = daemon.lines();
    lines.send(&json!({"event": "system:health"}));
    lines.half_close();
    let answer = lines.receive();
    assert_eq!(answer["event"], "system:health");
    assert_eq!(answer["data"]["pid"], daemon.pid());
    assert_eq!(lines.try_receive(), None);
}

#[test]
fn what_is_slow_is_still_answered_after_a_half_close() {
    let daemon = ready();
    let mut lines = daemon.lines();
    lines.send(&json!({"event": "completion:request", "data": {"prompt": "a b", "model": "mock/slow:50"}}));
    lines.half_close();
    let mut text = String::new();
    while let Some(line) = lines.try_receive() {
        text += line["chunk"]["text"].as_str().unwrap_or_default();
    }
    assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn netcat_is_a_client() {
    let daemon = ready();
    let nc = Command::new("nc")
        .args(["-N", "-U"])
        .arg(daemon.home.paths().socket)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    // Not every machine has it; the test above says the same without.
    let Ok(mut nc) = nc else { return skipped("there is no `nc`") };
    nc.stdin.take().unwrap().write_all(b"{\"event\":\"system:health\"}\n").unwrap();
    let output = nc.wait_with_output().unwrap();
    if !output.status.success() {
        return skipped("this `nc` knows no Unix sockets, or no -N");
    }
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(answer["data"]["pid"], daemon.pid());
}

#[test]
fn an_id_is_echoed_whether_it_is_a_text_or_a_number() {
    let daemon = ready();
    let mut lines = daemon.lines();
    for id in [json!("mine"), json!(7), json!(-3), json!(1.5), json!("7")] {
        lines.send(&json!({"event": "echo:say", "id": id, "data": {"text": "hi"}}));
        assert_eq!(lines.receive()["id"], id);
    }
    lines.send(&json!({"event": "echo:say", "data": {"text": "hi"}}));
    assert_eq!(lines.receive().get("id"), None);
}

#[test]
fn an_answer_names_its_event_its_cause_and_its_time() {
    let daemon = ready();
    let mut lines = daemon.lines();
    lines.send(&json!({"event": "echo:say", "data": {"text": "hi"}, "correlation_id": "cause-1"}));
    let answer = lines.receive();
    assert_eq!(answer["event"], "echo:say");
    assert_eq!(answer["data"], json!({"text": "hi"}));
    assert_eq!(answer["correlation_id"], "cause-1");
    let timestamp = answer["timestamp"].as_str().unwrap();
    assert!(timestamp.ends_with('Z') && timestamp.contains('T') && timestamp.len() == 24, "{timestamp}");
    lines.send(&json!({"event": "echo:say", "data": {"text": "hi"}}));
    assert_ne!(lines.receive()["correlation_id"], "", "one is made where none was given");
}

#[test]
fn a_correlation_that_is_too_long_is_refused_and_not_said_again() {
    let daemon = ready();
    let mut lines = daemon.lines();
    let long = "c".repeat(257);
    lines.send(&json!({"event": "echo:say", "id": 1, "data": {"text": "hi"}, "correlation_id": long}));
    let answer = lines.receive();
    assert_eq!((&answer["id"], &answer["refusal"]["code"]), (&json!(1), &json!("invalid_frame")), "{answer}");
    assert_ne!(answer["correlation_id"], json!(long));
    lines.send(&json!({"event": "echo:say", "id": long, "data": {"text": "hi"}}));
    let answer = lines.receive();
    assert_eq!((answer.get("id"), &answer["refusal"]["code"]), (None, &json!("invalid_frame")), "{answer}");
}

#[test]
fn a_fast_answer_overtakes_a_slow_one() {
    let daemon = ready();
    let mut lines = daemon.lines();
    let slow = json!({"prompt": "one two", "model": "mock/slow:200"});
    lines.send(&json!({"event": "completion:request", "id": "slow", "data": slow}));
    lines.send(&json!({"event": "echo:say", "id": "fast", "data": {"text": "hi"}}));
    assert_eq!(lines.receive()["id"], "fast");
    while lines.receive()["end"] != true {}
}

#[test]
fn a_stream_is_chunks_and_a_summary_that_ends_it() {
    let daemon = ready();
    let mut lines = daemon.lines();
    lines.send(
        &json!({"event": "completion:request", "id": 1, "data": {"prompt": "x", "model": "mock/long:3"}}),
    );
    let mut text = String::new();
    let end = loop {
        let line = lines.receive();
        assert_eq!(line["id"], 1);
        match line.get("chunk") {
            Some(chunk) => text += chunk["text"].as_str().unwrap(),
            None => break line,
        }
    };
    assert_eq!(end["end"], true);
    assert_eq!(end["data"]["text"], text);
    assert_eq!(text, "w1 w2 w3");
}

#[test]
fn a_refusal_is_a_line_with_the_id_of_its_request() {
    let daemon = ready();
    let mut lines = daemon.lines();
    lines.send(&json!({"event": "echo:say", "id": "x", "data": {"txet": "hi"}}));
    let line = lines.receive();
    assert_eq!(line["id"], "x");
    assert_eq!(line["refusal"]["code"], "invalid_payload");
    assert!(line["refusal"]["message"].as_str().unwrap().contains("txet"), "{line}");
    assert!(line["refusal"]["hint"].is_string(), "{line}");
}

#[test]
fn an_unknown_event_is_refused_with_the_nearest_name() {
    let daemon = ready();
    let refusal = daemon.ask("echo:sya", json!({})).unwrap_err();
    assert_eq!(refusal["code"], "unknown_event");
    assert!(refusal["hint"].as_str().unwrap().contains("echo:say"), "{refusal}");
}

#[test]
fn an_id_that_is_in_use_is_refused_and_what_was_open_goes_on() {
    let daemon = ready();
    let mut lines = daemon.lines();
    let slow = json!({"prompt": "one", "model": "mock/slow:200"});
    lines.send(&json!({"event": "completion:request", "id": 1, "data": slow}));
    lines.send(&json!({"event": "echo:say", "id": 1, "data": {"text": "hi"}}));
    assert_eq!(lines.receive()["refusal"]["code"], "conflict");
    while lines.receive()["end"] != true {}
    lines.send(&json!({"event": "echo:say", "id": 1, "data": {"text": "again"}}));
    assert_eq!(lines.receive()["data"]["text"], "again");
}

#[test]
fn a_request_is_cancelled_by_its_id() {
    let daemon = ready();
    let mut lines = daemon.lines();
    lines.send(
        &json!({"event": "completion:request", "id": "h", "data": {"prompt": "x", "model": "mock/hang"}}),
    );
    lines.send(&json!({"cancel": "h"}));
    let line = lines.receive();
    assert_eq!((&line["id"], &line["refusal"]["code"]), (&json!("h"), &json!("cancelled")));
    lines.send(&json!({"cancel": "h"}));
    assert_eq!(lines.receive()["refusal"]["code"], "not_found");
}

#[test]
fn a_stream_with_credit_pauses_until_more_is_allowed() {
    let daemon = ready();
    let mut lines = daemon.lines();
    let long = json!({"prompt": "x", "model": "mock/long:4"});
    lines.send(&json!({"event": "completion:request", "id": "s", "data": long, "credit": 1}));
    assert!(lines.receive().get("chunk").is_some());
    // No more of it comes, and whoever makes it waits, too.
    assert_eq!(daemon.ask("completion:status", json!({})).unwrap()["running"], 1);
    lines.send(&json!({"event": "echo:say", "id": "probe", "data": {"text": "hi"}}));
    assert_eq!(lines.receive()["id"], "probe");
    lines.send(&json!({"credit": "s", "n": 2}));
    for _ in 0..2 {
        assert!(lines.receive().get("chunk").is_some());
    }
    lines.send(&json!({"event": "echo:say", "id": "probe", "data": {"text": "hi"}}));
    assert_eq!(lines.receive()["id"], "probe");
    lines.send(&json!({"credit": "s", "n": 100}));
    while lines.receive()["end"] != true {}
}

#[test]
fn a_stream_that_waits_for_credit_can_be_cancelled() {
    let daemon = ready();
    let mut lines = daemon.lines();
    daemon.load("fixture_faulty", "child").unwrap();
    let parts = json!({"n": 100_000, "ms": 1});
    lines.send(&json!({"event": "faulty:stream", "id": "s", "data": parts, "credit": 1}));
    assert!(lines.receive().get("chunk").is_some());
    lines.send(&json!({"cancel": "s"}));
    assert_eq!(lines.receive()["refusal"]["code"], "cancelled");
}

#[test]
fn white_space_and_empty_lines_are_no_lines() {
    let daemon = ready();
    let mut lines = daemon.lines();
    lines.send_text("\n \t\r\n{\"event\":\"echo:say\",\"data\":{\"text\":\"hi\"}}\r\n\n   \n");
    assert_eq!(lines.receive()["data"]["text"], "hi");
    lines.send(&json!({"event": "echo:say", "id": 2, "data": {"text": "hi"}}));
    assert_eq!(lines.receive()["id"], 2, "nothing was said to the empty ones");
}

#[test]
fn a_last_line_without_its_newline_is_answered() {
    let daemon = ready();
    let mut socket = daemon.raw();
    socket.write_all(br#"{"event":"echo:say","data":{"text":"hi"}}"#).unwrap();
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    assert!(text.contains(r#""data":{"text":"hi"}"#) && text.ends_with('\n'), "{text}");
}

#[test]
fn fifteen_mebibytes_go_there_and_back() {
    let daemon = ready();
    let mut lines = daemon.lines();
    let text = "0123456789abcdef".repeat(15 * 65_536);
    lines.send(&json!({"event": "echo:say", "data": {"text": text}}));
    assert_eq!(lines.receive()["data"]["text"].as_str().map(str::len), Some(text.len()));
}

#[test]
fn a_line_may_come_byte_by_byte() {
    let daemon = ready();
    let mut socket = daemon.raw();
    for byte in b"{\"event\":\"echo:say\",\"data\":{\"text\":\"slow\"}}\n" {
        socket.write_all(&[*byte]).unwrap();
    }
    let mut lines = ksi_tests::Lines::new(socket);
    assert_eq!(lines.receive()["data"]["text"], "slow");
}

#[test]
fn nobody_chooses_their_origin() {
    let daemon = ready();
    let mut lines = daemon.lines();
    lines.send(&json!({"event": "echo:say", "data": {"text": "hi"}, "origin": "daemon"}));
    let line = lines.receive();
    assert_eq!(line["refusal"]["code"], "invalid_frame");
    assert!(line["refusal"]["message"].as_str().unwrap().contains("origin"), "{line}");
}
