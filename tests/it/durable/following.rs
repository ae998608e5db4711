//! Durable subscriptions to the real keeper of work, which goes away meanwhile.

use std::time::{Duration, Instant};

use ksi_client::{Client, FollowOptions, Follower, Item, Options};
use ksi_tests::{Daemon, Home, Lines, WITHOUT_MODEL};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const BORN: &str = "[events.\"test:born\"]\ndelivery = \"durable\"\npermission = \"test.use\"\n";

fn daemon() -> Daemon {
    let daemon = Home::with_config(&format!("{WITHOUT_MODEL}{BORN}")).start();
    daemon.ready();
    daemon
}

/// Tells facts, each until it is kept. While the keeper is away they are refused.
fn tell(daemon: &Daemon, numbers: std::ops::Range<u64>) {
    let mut lines = daemon.lines();
    for n in numbers {
        loop {
            lines.send(&json!({"emit": "test:born", "id": n, "data": {"n": n}}));
            let answer = lines.receive();
            match answer["refusal"]["code"].as_str() {
                None => break,
                Some("unavailable" | "no_owner") => {}
                Some(_) => panic!("{answer}"),
            }
        }
    }
}

fn subscribe(daemon: &Daemon, since_seq: Option<u64>) -> Lines {
    let mut lines = daemon.lines();
    lines.send(&json!({"subscribe": "test:*", "id": "s", "class": "durable", "since_seq": since_seq}));
    assert_eq!(lines.receive()["data"]["subscribed"], true);
    lines
}

/// The next fact, and its position.
fn next(lines: &mut Lines) -> (Value, u64) {
    let line = lines.receive();
    let seq = line["seq"].as_u64().unwrap_or_else(|| panic!("no event: {line}"));
    (line["data"]["n"].clone(), seq)
}

fn restart(daemon: &Daemon) {
    daemon.ask("plugin:restart", json!({"name": "checkpoint"})).unwrap();
}

#[test]
fn a_reader_of_lines_that_has_seen_nothing_yet_loses_and_doubles_nothing_over_restarts_of_the_keeper() {
    let daemon = daemon();
    let mut lines = subscribe(&daemon, None);
    restart(&daemon);
    tell(&daemon, 0..20);
    for n in 0..20 {
        assert_eq!(next(&mut lines).0, n);
    }
    for round in 1..4 {
        tell(&daemon, 20 * round..20 * round + 10);
        restart(&daemon);
        tell(&daemon, 20 * round + 10..20 * round + 20);
        for n in 20 * round..20 * round + 20 {
            assert_eq!(next(&mut lines).0, n);
        }
    }
}

#[test]
fn the_credit_of_a_client_is_not_used_up_by_what_it_does_not_see() {
    let daemon = daemon();
    let mut lines = daemon.lines();
    lines.send(&json!({"subscribe": "test:*", "id": "s", "class": "durable", "credit": 2}));
    assert_eq!(lines.receive()["data"]["subscribed"], true);
    restart(&daemon);
    tell(&daemon, 0..3);
    assert_eq!([next(&mut lines).0, next(&mut lines).0], [0, 1]);
    lines.send(&json!({"event": "system:health"}));
    assert!(lines.receive()["data"]["status"].is_string(), "the third waits for credit");
    lines.send(&json!({"credit": "s", "n": 1}));
    assert_eq!(next(&mut lines).0, 2);
}

#[test]
fn an_open_subscription_does_not_hold_up_a_stop() {
    let mut daemon =
        Home::with_config(&format!("{WITHOUT_MODEL}{BORN}[daemon]\nshutdown_grace = \"60s\"\n")).start();
    daemon.ready();
    let _lines = subscribe(&daemon, None);
    let began = Instant::now();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.ended().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(20), "took {:?}", began.elapsed());
}

#[test]
fn a_reader_that_comes_again_after_a_kill_goes_on_where_it_was() {
    let daemon = daemon();
    let mut lines = subscribe(&daemon, Some(1));
    tell(&daemon, 0..50);
    // What was given out is kept for good; the reader has dealt with a part of it.
    let given: Vec<_> = (0..50).map(|_| next(&mut lines)).collect();
    let last = given[29].1;
    let daemon = daemon.kill().start();
    daemon.ready();
    let mut lines = subscribe(&daemon, Some(last + 1));
    tell(&daemon, 50..60);
    for n in 30..60 {
        assert_eq!(next(&mut lines).0, n);
    }
}

fn consumer(daemon: &Daemon, n: u64) -> Lines {
    let mut lines = daemon.lines();
    let name = format!("c{n}");
    lines.send(&json!({"subscribe": "test:*", "id": "s", "class": "durable", "consumer": name}));
    assert_eq!(lines.receive()["data"]["subscribed"], true);
    lines
}

#[test]
fn a_consumer_that_goes_as_soon_as_it_is_confirmed_finds_later_what_was_told_meanwhile() {
    let daemon = daemon();
    for n in 0..20 {
        drop(consumer(&daemon, n));
        tell(&daemon, n..n + 1);
        assert_eq!(next(&mut consumer(&daemon, n)).0, n);
    }
}

async fn number(follower: &mut Follower) -> u64 {
    match follower.next().await {
        Some(Item::Event(event)) => ksi_tests::frames::value(&event.data)["n"].as_u64().unwrap(),
        other => panic!("{other:?}: {:?}", follower.error()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_follows_notices_neither_a_restart_of_the_keeper_nor_a_kill_of_the_daemon() {
    let daemon = daemon();
    let options = Options::new(daemon.home.paths().socket).name("reader");
    let client = Client::connect(options).await.unwrap();
    let mut plain = client.follow("test:*", FollowOptions::new()).await.unwrap();
    let mut named = client.follow("test:*", FollowOptions::new().consumer("reader")).await.unwrap();
    tell(&daemon, 0..20);
    restart(&daemon);
    tell(&daemon, 20..40);
    for n in 0..40 {
        assert_eq!((number(&mut plain).await, number(&mut named).await), (n, n));
    }
    named.ack().await.unwrap();
    let daemon = daemon.kill().start();
    daemon.ready();
    tell(&daemon, 40..60);
    for n in 40..60 {
        assert_eq!((number(&mut plain).await, number(&mut named).await), (n, n));
    }
}
