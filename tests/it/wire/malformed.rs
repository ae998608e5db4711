//! What is no line, on the JSON face or on none.

use std::io::{Read, Write};

use ksi_protocol::limits;
use ksi_tests::Daemon;
use serde_json::{Value, json};

#[test]
fn lines_that_are_garbage_are_refused_one_by_one() {
    let daemon = Daemon::without_model();
    let mut lines = daemon.lines();
    let garbage = [
        "{",
        "{\"event\"}",
        "nonsense",
        "[]",
        "42",
        "null",
        "{}",
        "{\"event\":7}",
        "{\"event\":\"no name\"}",
        "{\"event\":\"a:b\",\"timeout_ms\":\"soon\"}",
        "{\"event\":\"a:b\",\"id\":{}}",
        "{\"event\":\"a:b\",\"unknown\":1}",
        "{\"subscribe\":\"a*\"}",
        "{\"subscribe\":\"a:*\",\"class\":\"eager\"}",
        "{\"cancel\":[]}",
        "\u{0}\u{1}\u{2}",
    ];
    for line in garbage {
        lines.send_text(line);
        let answer = lines.receive();
        assert_eq!(answer["refusal"]["code"], "invalid_frame", "{line} -> {answer}");
    }
    lines.send(&json!({"event": "system:health"}));
    assert_eq!(lines.receive()["data"]["pid"], daemon.pid());
}

#[test]
fn the_id_of_a_refused_line_is_echoed_where_it_could_be_read() {
    let daemon = Daemon::without_model();
    let mut lines = daemon.lines();
    lines.send(&json!({"event": "a:b", "id": "mine", "unknown": 1}));
    assert_eq!(lines.receive()["id"], "mine");
}

#[test]
fn bytes_that_are_no_utf8_are_refused() {
    let daemon = Daemon::without_model();
    let mut socket = daemon.raw();
    socket.write_all(b"{\"event\":\"\xff\xfe\"}\n{\"event\":\"system:health\"}\n").unwrap();
    let mut lines = ksi_tests::Lines::new(socket);
    assert_eq!(lines.receive()["refusal"]["code"], "invalid_frame");
    assert_eq!(lines.receive()["event"], "system:health");
}

#[test]
fn deep_nesting_is_refused_and_harms_nobody() {
    let daemon = Daemon::without_model();
    let mut lines = daemon.lines();
    let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    for (levels, code) in [(100, "invalid_payload"), (100_000, "invalid_frame")] {
        lines.send_text(&format!("{{\"event\":\"echo:say\",\"data\":{}}}", nested(levels)));
        assert_eq!(lines.receive()["refusal"]["code"], code, "{levels} levels");
    }
    lines.send(&json!({"event": "system:health"}));
    assert_eq!(lines.receive()["data"]["pid"], daemon.pid());
}

#[test]
fn a_line_over_the_limit_is_refused_and_the_connection_closed() {
    let daemon = Daemon::without_model();
    let mut socket = daemon.raw();
    let part = vec![b' '; 1024 * 1024];
    socket.write_all(b"{").unwrap();
    for _ in 0..limits::FRAME_BYTES_MAX / part.len() + 2 {
        // Once it has refused, it need not read on.
        if socket.write_all(&part).is_err() {
            break;
        }
    }
    let mut lines = ksi_tests::Lines::new(socket);
    assert_eq!(lines.receive()["refusal"]["code"], "too_large");
    assert_eq!(lines.try_receive(), None);
}

#[test]
fn who_speaks_http_is_told_what_is_spoken_here() {
    let daemon = Daemon::without_model();
    let mut socket = daemon.raw();
    socket.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    let line: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["refusal"]["code"], "invalid_frame");
    assert!(line["refusal"]["hint"].as_str().unwrap().contains("system:health"), "{line}");
}

#[test]
fn random_bytes_are_answered_by_a_refusal_or_a_close() {
    let daemon = Daemon::without_model();
    let mut state: u32 = 0x9e37_79b9;
    for first in [0_u8, b'{', 0xff, b'\n', 0x80] {
        let mut bytes = vec![first];
        for _ in 0..4096 {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            bytes.push(state.to_le_bytes()[0]);
        }
        let mut socket = daemon.raw();
        // It may have closed before all was written.
        let _ = socket.write_all(&bytes);
        let _ = socket.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
        assert!(answer.windows(7).any(|window| window == b"refusal"), "first byte {first:#x}");
    }
    assert_eq!(daemon.health().pid, daemon.pid());
}
