//! Limits: what one client may take, and that nobody else pays for it.

mod crowd;
mod lanes;
mod neighbours;
mod siege;

use std::{
    io::{ErrorKind, Read, Write},
    net::Shutdown,
    process::{Command, Stdio},
};

use ksi_protocol::{Code, Frame, frame::Class, limits};
use ksi_tests::{
    Daemon, Home, Lines, WITHOUT_MODEL, built,
    frames::{Frames, emit, encoded, request},
    wait_until,
};
use serde_json::{Value, json};

/// What one client that does not read may make the daemon grow.
const GROWTH_MAX: u64 = 16 * 1024 * 1024;

fn with(config: &str) -> Daemon {
    let daemon = Home::with_config(&format!("{config}\n{WITHOUT_MODEL}")).start();
    daemon.ready();
    daemon
}

fn hang() -> Value {
    json!({"prompt": "x", "model": "mock/hang"})
}

#[test]
fn a_request_beyond_those_in_flight_is_busy_until_one_has_ended() {
    let daemon =
        with("[plugins.completion.limits]\nholding = 8192\n[plugins.completion.config]\nqueue_max = 8192\n");
    let mut frames = daemon.frames();
    let most = u64::from(limits::IN_FLIGHT_MAX);
    let mut bytes = Vec::new();
    for id in 0..=most {
        bytes.extend_from_slice(&encoded(&request(id, "completion:request", &hang())));
    }
    frames.send_bytes(&bytes);
    let (id, refusal) = frames.refused();
    assert_eq!((id, refusal.code), (Some(most), Code::Busy));
    assert!(refusal.message.contains(&most.to_string()), "{refusal:?}");
    assert!(refusal.retryable && refusal.retry_after_ms.is_some(), "{refusal:?}");
    frames.send(&Frame::Cancel { id: 0 });
    assert_eq!(frames.refused().1.code, Code::Cancelled);
    frames.ask(most, "echo:say", &json!({"text": "now there is room"})).unwrap();
    // Another client has room of its own.
    daemon.ask("echo:say", json!({"text": "hi"})).unwrap();
}

#[test]
fn a_connection_beyond_the_limit_is_told_so_and_closed() {
    let daemon = with("[daemon]\nconnections_max = 4\n");
    let mut open: Vec<Lines> = Vec::new();
    wait_until("the connections of the start are gone", || daemon.status().sessions == 1);
    for _ in 0..4 {
        let mut lines = daemon.lines();
        lines.send(&json!({"event": "system:health"}));
        // What the last question of this loop has left may not be gone yet.
        if lines.receive().get("data").is_some() {
            open.push(lines);
        }
    }
    wait_until("four are open", || {
        let mut lines = daemon.lines();
        lines.half_close();
        let busy = lines.try_receive().is_some_and(|line| line["refusal"]["code"] == "busy");
        if !busy {
            let mut lines = daemon.lines();
            lines.send(&json!({"event": "system:health"}));
            if lines.receive().get("data").is_some() {
                open.push(lines);
            }
        }
        busy
    });
    let mut lines = daemon.lines();
    let line = lines.receive();
    assert_eq!(line["refusal"]["code"], "busy");
    assert!(line["refusal"]["message"].as_str().unwrap().contains('4'), "{line}");
    assert_eq!(lines.try_receive(), None);
    open.pop();
    wait_until("one may come in again", || {
        let mut lines = daemon.lines();
        lines.half_close();
        lines.try_receive().is_none()
    });
    for lines in &mut open {
        lines.send(&json!({"event": "echo:say", "data": {"text": "hi"}}));
        assert_eq!(lines.receive()["data"]["text"], "hi");
    }
}

#[test]
fn a_subscription_beyond_the_limit_is_busy_until_one_has_ended() {
    let daemon = with("[daemon]\nsubscriptions_max = 8\n");
    let mut lines = daemon.lines();
    for id in 0..8 {
        lines.send(&json!({"subscribe": "test:*", "id": id}));
        assert_eq!(lines.receive()["data"]["subscribed"], true);
    }
    lines.send(&json!({"subscribe": "test:*", "id": "more"}));
    let line = lines.receive();
    assert_eq!((&line["id"], &line["refusal"]["code"]), (&json!("more"), &json!("busy")));
    lines.send(&json!({"unsubscribe": 3}));
    lines.send(&json!({"subscribe": "test:*", "id": "more"}));
    assert_eq!(lines.receive()["data"]["subscribed"], true);
}

/// How many events a frozen reader sleeps through, and how many at a time a
/// reading one is given before it must have read them.
const EVENTS: u64 = 60_000;
const BATCH: u64 = 1000;

/// What a subscriber got: events, and those that gaps tell of.
#[derive(Default)]
struct Tally {
    seq: u64,
    events: u64,
    missed: u64,
    gaps: u64,
}

impl Tally {
    fn event(&mut self, seq: u64) {
        assert_eq!(seq, self.seq + 1, "a hole without a gap");
        self.seq = seq;
        self.events += 1;
    }

    fn gap(&mut self, missed: u64, from_seq: u64, to_seq: u64) {
        assert_eq!(from_seq, self.seq + 1);
        assert_eq!(missed, to_seq - from_seq + 1);
        self.seq = to_seq;
        self.missed += missed;
        self.gaps += 1;
    }

    fn check(&self) {
        assert_eq!(self.events + self.missed, EVENTS);
        assert!(self.gaps >= 1 && self.events > 0);
    }
}

#[test]
fn a_frozen_reader_loses_events_exactly_and_alone_and_the_daemon_does_not_grow() {
    let daemon = with("[daemon]\nwrite_deadline = \"10m\"\n");
    let (mut frozen, mut frozen_lines) = (daemon.frames(), daemon.lines());
    let (mut reader, mut teller) = (daemon.frames(), daemon.frames());
    frozen.subscribe(1, "test:*", Class::Live);
    frozen_lines.send(&json!({"subscribe": "test:*"}));
    assert_eq!(frozen_lines.receive()["data"]["subscribed"], true);
    reader.subscribe(1, "test:*", Class::Live);
    let before = daemon.status().rss_bytes;
    let pad = "x".repeat(150);
    for batch in 0..EVENTS / BATCH {
        for n in batch * BATCH..(batch + 1) * BATCH {
            // One at a time, so that each comes in a read of its own.
            teller.send(&emit(None, "test:counted", &json!({ "n": n, "pad": pad })));
        }
        for n in batch * BATCH..(batch + 1) * BATCH {
            assert_eq!(reader.event().seq, n + 1, "who reads loses nothing");
        }
    }
    let status = daemon.status();
    let grown = status.rss_bytes.saturating_sub(before);
    assert!(grown < 2 * GROWTH_MAX, "two of them made it grow by {grown} bytes");
    let (mut tally, mut lines_tally) = (Tally::default(), Tally::default());
    while tally.seq < EVENTS {
        match frozen.receive() {
            Frame::Event(event) => tally.event(event.seq),
            Frame::Gap(gap) => tally.gap(gap.missed, gap.from_seq, gap.to_seq),
            other => panic!("neither event nor gap: {other:?}"),
        }
    }
    while lines_tally.seq < EVENTS {
        let line = frozen_lines.receive();
        let number = |key: &str| line["gap"][key].as_u64().unwrap();
        match line["seq"].as_u64() {
            Some(seq) => lines_tally.event(seq),
            None => lines_tally.gap(number("missed"), number("from_seq"), number("to_seq")),
        }
    }
    tally.check();
    lines_tally.check();
    assert_eq!(status.counters.dropped, tally.missed + lines_tally.missed);
}

#[test]
fn small_events_in_large_frames_do_not_keep_the_frames() {
    let daemon = with("[daemon]\nwrite_deadline = \"10m\"\n");
    let (mut frozen, mut teller) = (daemon.lines(), daemon.frames());
    frozen.send(&json!({"subscribe": "test:*"}));
    assert_eq!(frozen.receive()["data"]["subscribed"], true);
    let mut body = b"\x81\xa4emit\x83\xa5event\xa9test:said\xa4data\xc4\x01\x80\xa1x".to_vec();
    let padding = vec![b'x'; 1024 * 1024];
    body.push(0xc6);
    body.extend_from_slice(&u32::try_from(padding.len()).unwrap().to_be_bytes());
    body.extend_from_slice(&padding);
    // First fill what the socket takes, so that the rest must wait.
    for _ in 0..4000 {
        teller.send(&emit(None, "test:said", &json!({"pad": "0123456789"})));
    }
    teller.ask(1, "system:health", &json!({})).unwrap();
    let before = daemon.status().rss_bytes;
    for _ in 0..64 {
        teller.send_body(&body);
    }
    teller.ask(1, "system:health", &json!({})).unwrap();
    let grown = daemon.status().rss_bytes.saturating_sub(before);
    assert!(grown < GROWTH_MAX, "grew by {grown} bytes");
}

#[test]
fn a_client_that_asks_and_never_reads_is_cut_off() {
    let daemon = with("[daemon]\nwrite_deadline = \"1s\"\n");
    let before = daemon.status().rss_bytes;
    let mut socket = daemon.raw();
    let line = format!("{}\n", json!({"event": "echo:say", "data": {"text": "x".repeat(64 * 1024)}}));
    let (mut written, mut most) = (0_usize, 0);
    let error = loop {
        match socket.write(line.as_bytes()) {
            Ok(n) => written += n,
            Err(error) => break error,
        }
        assert!(written < 64 * 1024 * 1024, "it is never held up");
        most = most.max(daemon.status().rss_bytes);
    };
    assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
    let grown = most.saturating_sub(before);
    assert!(grown < GROWTH_MAX, "grew by {grown} bytes");
    wait_until("its session ends", || daemon.status().sessions == 1);
}

#[test]
fn chunks_that_wait_for_credit_are_bounded_over_all_streams() {
    let daemon = with("");
    let mut frames = daemon.frames();
    daemon.load("fixture_faulty", "child").unwrap();
    // Each stream holds far less than the limit, and all together more.
    for id in 0..40 {
        let data = ksi_tests::frames::payload(&json!({"n": 1, "bytes": 4 << 20}));
        let mut request = ksi_tests::frames::plain(id, "faulty:stream", data);
        request.credit = Some(0);
        // It may be cut off before it has asked all.
        if !frames.try_send(&Frame::Request(request)) {
            break;
        }
    }
    while frames.try_receive().is_some() {}
    wait_until("its session ends", || daemon.status().sessions == 1);
    daemon.ask("echo:say", json!({"text": "others go on"})).unwrap();
}

#[test]
fn who_disconnects_waits_for_nothing_any_more() {
    let daemon = with("");
    let status = || daemon.ask("completion:status", json!({})).unwrap();
    let mut facts = daemon.lines();
    facts.send(&json!({"subscribe": "completion:*"}));
    facts.receive();
    let mut lines = daemon.lines();
    lines.send(&json!({"event": "completion:request", "data": hang()}));
    wait_until("it runs", || status()["running"] == 1);
    let mut half = daemon.frames();
    half.send(&request(1, "completion:request", &hang()));
    wait_until("both run", || status()["running"] == 2);
    half.half_close();
    drop(lines);
    wait_until("the first is cancelled", || status()["running"] == 1);
    drop(half);
    wait_until("the second is cancelled", || status()["running"] == 0);
    assert_eq!(status()["queued"], 0);
    wait_until("nothing is in flight", || daemon.status().in_flight == 1);
}

#[test]
fn connections_that_are_dropped_half_way_leave_nothing() {
    let daemon = with("");
    daemon.ready();
    // Plugins listen, too.
    let quiet = daemon.status().subscriptions;
    let whole = encoded(&request(1, "completion:request", &hang()));
    for n in 0..500 {
        let mut socket = daemon.raw();
        let said: &[u8] = match n % 5 {
            0 => b"",
            1 => b"{",
            2 => b"{\"event\":\"completion:request\",\"data\":{\"prompt\":\"x\",\"model\":\"mock/hang\"}}\n{\"ev",
            3 => &[0, 0, 1],
            _ => {
                let mut frames = Frames::new(socket);
                frames.greet();
                frames.subscribe(7, "**", Class::Live);
                frames.send_bytes(&whole);
                frames.send_bytes(&whole[..9]);
                continue;
            }
        };
        socket.write_all(said).unwrap();
        if n % 2 == 0 {
            let _ = socket.shutdown(Shutdown::Read);
        }
    }
    wait_until("all sessions have ended", || {
        let status = daemon.status();
        (status.sessions, status.subscriptions, status.in_flight) == (1, quiet, 1)
    });
    wait_until("their completions have too", || {
        let status = daemon.ask("completion:status", json!({})).unwrap();
        (&status["running"], &status["queued"]) == (&json!(0), &json!(0))
    });
}

#[test]
fn a_request_that_takes_too_long_is_refused_at_its_deadline() {
    let daemon = with("");
    let mut lines = daemon.lines();
    lines.send(&json!({"event": "completion:request", "id": 1, "data": hang(), "timeout_ms": 100}));
    let line = lines.receive();
    assert_eq!((&line["id"], &line["refusal"]["code"]), (&json!(1), &json!("timeout")));
    wait_until("its handler is stopped", || {
        daemon.ask("completion:status", json!({})).unwrap()["running"] == 0
    });
}

#[test]
fn the_timeout_of_an_event_is_that_of_the_configuration() {
    let daemon = with("[events.\"completion:request\"]\ntimeout = \"100ms\"\n");
    let refusal = daemon.ask("completion:request", hang()).unwrap_err();
    assert_eq!(refusal["code"], "timeout");
}

#[test]
fn who_says_nothing_whole_in_time_is_cut_off_and_who_has_may_be_silent() {
    let daemon = with("[daemon]\nhandshake_timeout = \"1s\"\n");
    let (mut greeted, mut line) = (daemon.frames(), daemon.lines());
    line.send(&json!({"event": "system:health"}));
    line.receive();
    for said in [&b""[..], b"   \n", b"{\"event\":", b"\x00\x00", b"\x00\x00\x00\x10\x81"] {
        let mut socket = daemon.raw();
        socket.write_all(said).unwrap();
        let mut rest = Vec::new();
        let ended = socket.read_to_end(&mut rest);
        let reset = |error: &std::io::Error| error.kind() == ErrorKind::ConnectionReset;
        assert!(ended.as_ref().map_or_else(reset, |_| true), "{said:?}: {ended:?}");
    }
    greeted.ask(1, "system:health", &json!({})).unwrap();
    line.send(&json!({"event": "system:health"}));
    assert_eq!(line.receive()["event"], "system:health");
}

#[test]
fn large_messages_are_not_paid_for_after_they_are_gone() {
    let daemon = with("");
    let text = "x".repeat(8 * 1024 * 1024);
    let before = daemon.status().rss_bytes;
    let mut open = Vec::new();
    for _ in 0..30 {
        let (mut frames, mut lines) = (daemon.frames(), daemon.lines());
        frames.ask(1, "echo:say", &json!({ "text": text })).unwrap();
        lines.send(&json!({"event": "echo:say", "data": {"text": text}}));
        lines.receive();
        open.push((frames, lines));
    }
    // Sixty clients that have each said and heard something large. Some of it
    // the allocator keeps, but not for each of them.
    let grown = daemon.status().rss_bytes.saturating_sub(before);
    assert!(grown < 30 * text.len() as u64, "grew by {grown} bytes");
}

#[test]
fn a_daemon_without_descriptors_goes_on_and_lets_clients_in_when_some_have_left() {
    let home = Home::with_config(WITHOUT_MODEL);
    let daemon = home.start_with(|command| {
        let mut shell = Command::new("sh");
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        let script = format!("ulimit -n 64; exec {}/ksid", built().display());
        shell.arg("-c").arg(script).stdin(Stdio::null()).stdout(Stdio::null());
        *command = shell;
    });
    daemon.ready();
    let (mut lines, mut half) = (daemon.lines(), daemon.lines());
    let ask = |lines: &mut Lines| {
        lines.send(&json!({"event": "echo:say", "data": {"text": "hi"}}));
        lines.receive()["data"]["text"] == "hi"
    };
    assert!(ask(&mut lines) && ask(&mut half));
    let crowd: Vec<_> = (0..100).map(|_| daemon.raw()).collect();
    wait_until("the daemon has no descriptors left", || daemon.log().contains("cannot accept"));
    half.send(&json!({"event": "completion:request", "data": {"prompt": "a", "model": "mock/slow:300"}}));
    half.half_close();
    assert!(ask(&mut lines), "who is in is served");
    while half.receive()["end"] != true {}
    drop(crowd);
    assert!(ask(&mut daemon.lines()), "and others may come in again");
    let complaints = daemon.log().matches("cannot accept").count();
    assert!(complaints < 50, "{complaints} complaints fill the log");
}
