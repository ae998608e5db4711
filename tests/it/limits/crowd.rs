//! Many connections of one user: together they have the share of one.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

use ksi_protocol::{Code, Frame, frame::Class};
use ksi_tests::{
    Daemon, Lines,
    frames::{Frames, emit, request},
    wait_until,
};
use serde_json::json;

use super::{hang, with};

/// Readers that never read while it matters.
const FROZEN: usize = 100;
/// What is told meanwhile.
const EVENTS: u64 = 12_000;

/// Reads all that a reader was told while it was frozen: how many events, and
/// how many it was told that it has missed. Every hole is announced.
fn thaw(reader: &mut Frames) -> (u64, u64) {
    let (mut seq, mut events, mut missed) = (0, 0, 0);
    while seq < EVENTS {
        match reader.receive() {
            Frame::Event(event) => {
                assert_eq!(event.seq, seq + 1, "a hole without a gap");
                (seq, events) = (event.seq, events + 1);
            }
            Frame::Gap(gap) => {
                assert_eq!((gap.from_seq, gap.missed), (seq + 1, gap.to_seq - seq));
                (seq, missed) = (gap.to_seq, missed + gap.missed);
            }
            other => panic!("neither event nor gap: {other:?}"),
        }
    }
    (events, missed)
}

#[test]
fn a_hundred_frozen_readers_cost_no_more_than_the_share_of_one_user_and_know_what_they_missed() {
    let daemon = with("[daemon]\nwrite_deadline = \"10m\"\n");
    let mut frozen: Vec<Frames> = (0..FROZEN).map(|_| daemon.frames()).collect();
    for reader in &mut frozen {
        reader.subscribe(1, "test:*", Class::Live);
    }
    let (mut healthy, mut teller) = (daemon.frames(), daemon.frames());
    healthy.subscribe(1, "test:*", Class::Live);
    let before = daemon.status().rss_bytes;
    // All of it is three times what one may cost.
    let pad = "x".repeat(1000);
    for n in 0..EVENTS {
        teller.send(&emit(None, "test:told", &json!({ "n": n, "pad": pad })));
        // Who reads loses nothing, however much its neighbours leave unread.
        assert_eq!(healthy.event().seq, n + 1);
    }
    let status = daemon.status();
    let each = status.rss_bytes.saturating_sub(before) / FROZEN as u64;
    assert!(each < 4 * 1024 * 1024, "each makes the daemon grow by {each} bytes");
    let mut lost = 0;
    for reader in &mut frozen {
        let (events, missed) = thaw(reader);
        assert_eq!(events + missed, EVENTS);
        assert!(missed > 0 && events > 0);
        lost += missed;
    }
    assert_eq!(status.counters.dropped, lost, "the daemon counts the same");
}

#[test]
fn a_reader_that_never_reads_is_cut_off_after_the_deadline_and_its_charges_end_with_it() {
    let daemon = with(
        "[daemon]\nwrite_deadline = \"300ms\"\n[limits]\nsubscriptions_max = 1\nqueued_bytes_max = 65536\n",
    );
    let (mut frozen, mut teller) = (daemon.frames(), daemon.frames());
    frozen.subscribe(1, "test:*", Class::Live);
    for n in 0..EVENTS {
        teller.send(&emit(None, "test:told", &json!({ "n": n, "pad": "x".repeat(400) })));
    }
    teller.ask(1, "echo:say", &json!({"text": "who tells is served"})).unwrap();
    wait_until("it is cut off", || daemon.log().contains("cut off: it does not read"));
    let mut next = daemon.frames();
    // Its subscription was the only one that this user may have.
    wait_until("what it had is free", || next.try_subscribe(1, "test:*", Class::Live).is_ok());
}

#[test]
fn unfinished_lines_together_cost_no_more_than_the_share_of_one_user() {
    let daemon = with("[limits]\nqueued_bytes_max = 4194304\n");
    let before = daemon.status().rss_bytes;
    // Two of them are more than the share.
    let begun = format!("{{\"event\":\"{}", "x".repeat(2 << 20));
    let mut crowd: Vec<_> = (0..8).map(|_| daemon.raw()).collect();
    for stream in &mut crowd {
        // Who is refused meanwhile may find its connection closed.
        let _ = stream.write_all(begun.as_bytes());
    }
    let is_refused = |stream: &mut UnixStream| {
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut said = [0; 64];
        stream.read(&mut said).is_ok_and(|bytes| String::from_utf8_lossy(&said[..bytes]).contains("busy"))
    };
    let refused = crowd.iter_mut().map(is_refused).filter(|refused| *refused).count();
    assert!(refused >= 7, "{refused} of 8 were refused");
    let grown = daemon.status().rss_bytes.saturating_sub(before);
    assert!(grown < 24 << 20, "grew by {grown} bytes");
    daemon.ask("echo:say", json!({"text": "who says little is served"})).unwrap();
}

#[test]
fn a_large_line_of_which_nothing_more_comes_is_refused_and_a_small_one_may_wait() {
    let daemon = with("[daemon]\nwrite_deadline = \"300ms\"\n");
    let (mut large, mut small) = (daemon.raw(), daemon.raw());
    let greeting =
        "{\"event\":\"echo:say\",\"data\":{\"text\":\"hi\"}}\n{\"event\":\"echo:say\",\"data\":{\"text\":\"";
    small.write_all(greeting.as_bytes()).unwrap();
    large.write_all(format!("{greeting}{}", "x".repeat(200_000)).as_bytes()).unwrap();
    let mut told = Lines::new(large);
    assert_eq!(told.receive()["data"]["text"], "hi");
    let refused = told.receive();
    assert_eq!(refused["refusal"]["code"], "timeout", "{refused}");
    small.write_all(b"late\"}}\n").unwrap();
    let mut told = Lines::new(small);
    assert_eq!(told.receive()["data"]["text"], "hi");
    assert_eq!(told.receive()["data"]["text"], "late");
}

#[test]
fn connections_together_have_the_requests_of_one_user_and_the_daemon_itself_answers_all_the_same() {
    let daemon = with("[limits]\nin_flight_max = 10\n");
    let mut asker = daemon.frames();
    for id in 0..=10 {
        asker.send(&request(id, "completion:request", &hang()));
    }
    // Nobody else has asked for anything, so it is the last that finds no room.
    let (id, refusal) = asker.refused();
    assert_eq!((id, refusal.code), (Some(10), Code::Busy));
    let refusal = daemon.frames().ask(1, "echo:say", &json!({"text": "one more"})).unwrap_err();
    assert_eq!(refusal.code, Code::Busy);
    assert!(refusal.message.contains("10 requests in flight"), "{refusal}");
    assert!(refusal.retryable && refusal.retry_after_ms.is_some(), "{refusal:?}");
    daemon.ask("plugin:list", json!({})).expect("an operator is heard");
    drop(asker);
    wait_until("there is room again", || daemon.ask("echo:say", json!({"text": "a"})).is_ok());
}

#[test]
fn a_user_with_too_many_connections_is_told_so_and_comes_in_again_later() {
    let daemon = with("[limits]\nconnections_max = 3\n");
    let enter = || {
        let mut lines = daemon.lines();
        // One that is refused may be gone before it has asked.
        lines.try_send(&json!({"event": "system:health"}));
        let line = lines.try_receive().expect("it is told");
        if line["data"].is_object() { Ok(lines) } else { Err(line["refusal"].clone()) }
    };
    let mut open = Vec::new();
    let refusal = loop {
        match enter() {
            Ok(lines) => open.push(lines),
            Err(refusal) => break refusal,
        }
        assert!(open.len() <= 3);
    };
    assert_eq!(refusal["code"], "busy");
    assert!(refusal["message"].as_str().unwrap().contains("3 connections open"), "{refusal}");
    assert!(refusal["retry_after_ms"].as_u64().is_some(), "{refusal}");
    drop(open);
    wait_until("there is room again", || enter().is_ok());
}

#[test]
fn what_a_user_may_send_in_a_second_is_for_the_configuration_to_say() {
    let daemon = with("[limits]\nper_second_max = 20\n");
    let mut frames = daemon.frames();
    let (mut answered, mut busy) = (0, 0);
    for id in 0..200 {
        match frames.ask(id, "echo:say", &json!({"text": "a"})) {
            Ok(_) => answered += 1,
            Err(refusal) => {
                assert_eq!(refusal.code, Code::Busy);
                assert!(refusal.retry_after_ms.is_some_and(|ms| ms <= 1000), "{refusal:?}");
                busy += 1;
            }
        }
    }
    assert!(answered >= 20 && busy >= 100, "{answered} answered, {busy} busy");
}

#[test]
fn what_a_crowd_has_left_unread_is_given_back_when_it_has_gone() {
    let daemon = with("");
    let before = resident(&daemon);
    let lines = "{\"event\":\"echo:say\",\"data\":{\"text\":\"TEXT\"}}\n"
        .replace("TEXT", &"x".repeat(2000))
        .repeat(20);
    let mut crowd: Vec<_> = (0..48).map(|_| daemon.raw()).collect();
    for one in &crowd {
        one.set_nonblocking(true).unwrap();
    }
    wait_until("answers wait", || {
        for one in &mut crowd {
            // Where it is full, or cut off for what it leaves unread, others go on.
            let _ = one.write(lines.as_bytes());
        }
        resident(&daemon) > before + (48 << 20)
    });
    drop(crowd);
    wait_until("the memory is given back", || resident(&daemon) < before + (24 << 20));
}

/// As the system sees it: the daemon need not be asked, which is a client that
/// comes and goes.
fn resident(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib << 10
}
