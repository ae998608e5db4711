//! Durable work over the ends of its handlers and of the daemon: planned ones,
//! crashes, and those that it causes itself.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::{net::UnixStream, process::ExitStatusExt},
    process::Stdio,
    time::{Duration, Instant},
};

use ksi_tests::{Daemon, Home, Lines, WITHOUT_MODEL, command, library, wait_until};
use serde_json::{Value, json};

/// The plugin that misbehaves, with durable events.
pub(super) fn config(placement: &str, more: &str) -> String {
    let library = library("fixture_faulty");
    format!(
        r#"{WITHOUT_MODEL}
        [plugins.checkpoint.config]
        crashes_per_minute = 1000
        [plugins.completion]
        enabled = false
        [plugins.faulty]
        library = "{}"
        placement = "{placement}"
        may_call = []
        emits = []
        restart = {{ failures_max = 1000, backoff_min = "10ms", backoff_max = "50ms", stop_timeout = "200ms" }}
        [events."faulty:swallow"]
        delivery = "durable"
        permission = "test.use"
        repeat = true
        retry = {{ attempts = 5, backoff_min = "10ms", backoff_max = "20ms" }}
        [events."faulty:slow"]
        delivery = "durable"
        permission = "test.use"
        {more}
        "#,
        library.display()
    )
}

fn daemon(placement: &str, more: &str) -> Daemon {
    let daemon = Home::with_config(&config(placement, more)).start();
    daemon.ready();
    daemon
}

/// Gives work; its name.
pub(super) fn give(daemon: &Daemon, event: &str, data: Value) -> String {
    let accepted = daemon.ask(event, data).expect("it is accepted");
    accepted["request_id"].as_str().unwrap_or_else(|| panic!("{accepted}")).to_owned()
}

pub(super) fn info(daemon: &Daemon, name: &str) -> Value {
    daemon.ask("work:get", json!({"request_id": name})).expect("it is in the books")
}

/// Waits for an end, and says which.
pub(super) fn end(daemon: &Daemon, name: &str) -> String {
    let mut state = String::new();
    wait_until("the work has ended", || {
        state = info(daemon, name)["state"].as_str().unwrap_or_default().to_owned();
        !matches!(&*state, "accepted" | "leased" | "waiting" | "suspect")
    });
    state
}

fn is_dead(daemon: &Daemon, name: &str) -> bool {
    let dead = daemon.ask("work:dead", json!({})).unwrap();
    dead["work"].as_array().unwrap().iter().any(|one| one["request_id"] == name)
}

#[test]
fn poison_that_kills_its_plugin_ends_dead_and_everything_else_is_done() {
    let mut daemon = daemon("child", "");
    let before: Vec<_> = (0..5).map(|_| give(&daemon, "faulty:swallow", json!({}))).collect();
    for name in &before {
        assert_eq!(end(&daemon, name), "done");
    }
    let poison = give(&daemon, "faulty:swallow", json!({"poison": true}));
    assert_eq!(end(&daemon, &poison), "dead");
    let after: Vec<_> = (0..20).map(|_| give(&daemon, "faulty:swallow", json!({}))).collect();
    for name in &after {
        assert_eq!(end(&daemon, name), "done");
    }
    assert!(is_dead(&daemon, &poison));
    assert_eq!(daemon.plugin("faulty").restarts, 3, "a crash for each attempt, and no more");
    assert!(daemon.is_alive());
}

#[test]
fn what_merely_runs_beside_poison_is_done_in_the_end() {
    let event = "repeat = true\nretry = { attempts = 5, backoff_min = \"10ms\", backoff_max = \"20ms\" }";
    let daemon = daemon("child", event);
    let beside: Vec<_> = (0..8).map(|_| give(&daemon, "faulty:slow", json!({"ms": 300}))).collect();
    wait_until("all of them run", || daemon.plugin("faulty").in_flight == beside.len());
    let poison = give(&daemon, "faulty:swallow", json!({"poison": true}));
    assert_eq!(end(&daemon, &poison), "dead");
    for name in &beside {
        assert_eq!(end(&daemon, name), "done");
        assert_eq!(info(&daemon, name)["crashes"], 0);
    }
    assert_eq!(daemon.plugin("faulty").restarts, 5, "the first two blame nobody");
}

#[test]
fn what_ran_when_the_daemon_was_killed_runs_again_beside_each_other() {
    let daemon = daemon("child", "repeat = true\nexpires = \"20s\"");
    let names: Vec<_> = (0..12).map(|_| give(&daemon, "faulty:slow", json!({"ms": 1_000}))).collect();
    wait_until("all of them run", || daemon.plugin("faulty").in_flight == names.len());
    let daemon = daemon.kill().start();
    daemon.ready();
    wait_until("all of them run again", || daemon.plugin("faulty").in_flight == names.len());
    for name in &names {
        assert_eq!(end(&daemon, name), "done");
    }
}

#[test]
fn a_handler_that_gives_a_word_in_time_may_take_longer_than_its_timeout() {
    let event = r#"
        [events."faulty:stream"]
        delivery = "durable"
        permission = "test.use"
        timeout = "1s"
    "#;
    let daemon = daemon("child", event);
    let streams = give(&daemon, "faulty:stream", json!({"n": 25, "ms": 100, "bytes": 1}));
    let silent = give(&daemon, "faulty:stream", json!({"n": 1, "ms": 60_000, "bytes": 1}));
    assert_eq!(end(&daemon, &silent), "unknown");
    assert_eq!(end(&daemon, &streams), "done");
    assert_eq!(info(&daemon, &streams)["attempts"], 1);
}

#[test]
fn poison_that_kills_the_daemon_ends_dead_and_the_daemon_starts_unaided_after_each_death() {
    let daemon = daemon("in-process", "");
    let mut lines = daemon.lines();
    for n in 0..20 {
        lines.send(&json!({"id": n, "event": "faulty:swallow", "data": {"poison": n == 7}}));
    }
    let mut names: Vec<(u64, String)> = Vec::new();
    // What was not accepted before the first death is asked again by nobody.
    while let Some(line) = if names.len() < 20 { lines.try_receive() } else { None } {
        let name = line["accepted"]["request_id"].as_str().unwrap_or_else(|| panic!("{line}"));
        names.push((line["id"].as_u64().unwrap(), name.to_owned()));
    }
    let home = daemon.kill();
    let mut ends = Vec::new();
    let living = loop {
        let mut child = command("ksid", home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut end = None;
        wait_until("it dies of the poison, or has nothing more to do", || {
            end = child.try_wait().unwrap();
            end.is_some() || is_idle(&home)
        });
        if let Some(end) = end {
            ends.push(end);
            // A start that is refused is no death: who died may still hold the lock for a moment.
            let deaths = ends.iter().filter(|end| end.signal().is_some()).count();
            assert!(deaths <= 6 && ends.len() < 100, "it does not come to rest: {ends:?}");
            continue;
        }
        let _ = child.kill();
        let _ = child.wait();
        break home.start();
    };
    assert!(ends.iter().any(|end| end.signal().is_some()));
    living.ready();
    for (n, name) in names {
        let expected = if n == 7 { "dead" } else { "done" };
        assert_eq!(end(&living, &name), expected, "number {n}");
    }
}

/// Asks a daemon that may end in between.
pub(super) fn asked(home: &Home, event: &str) -> Option<Value> {
    let mut socket = UnixStream::connect(home.paths().socket).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    socket.write_all(format!("{}\n", json!({"event": event, "data": {}})).as_bytes()).ok()?;
    let mut line = String::new();
    BufReader::new(socket).read_line(&mut line).ok()?;
    serde_json::from_str::<Value>(&line).ok()?.get_mut("data").map(Value::take)
}

/// Whether a daemon answers that no work is left.
fn is_idle(home: &Home) -> bool {
    asked(home, "checkpoint:status")
        .is_some_and(|status| status["accepting"] == true && status["pending"] == 0)
}

/// Waits until a daemon has replaced itself.
pub(super) fn started_anew(daemon: &Daemon, boot: &str) {
    wait_until("it has started anew", || {
        asked(&daemon.home, "system:status").is_some_and(|status| status["boot"] != boot)
    });
    daemon.ready();
}

#[test]
fn a_planned_end_of_the_plugin_or_of_the_daemon_costs_no_attempt() {
    let mut daemon = daemon("child", "");
    let name = give(&daemon, "faulty:slow", json!({"ms": 1_000_000}));
    let runs = |daemon: &Daemon| {
        wait_until("it runs", || {
            daemon.plugin("faulty").in_flight == 1 && info(daemon, &name)["state"] == "leased"
        });
        assert_eq!(info(daemon, &name)["attempts"], 1);
    };
    runs(&daemon);
    daemon.ask("plugin:restart", json!({"name": "faulty"})).unwrap();
    runs(&daemon);
    daemon.ask("plugin:restart", json!({"name": "checkpoint"})).unwrap();
    runs(&daemon);
    let boot = daemon.status().boot;
    daemon.ask("system:restart", json!({"grace_ms": 100})).unwrap();
    started_anew(&daemon, &boot);
    runs(&daemon);
    daemon.ask("system:shutdown", json!({"grace_ms": 100})).unwrap();
    assert!(daemon.ended().success());
    let daemon = daemon.kill().start();
    daemon.ready();
    runs(&daemon);
}

#[test]
fn one_key_is_one_piece_of_work_over_racing_connections_and_over_a_kill() {
    let daemon = daemon("child", "");
    let ask = |lines: &mut Lines, key: u64| {
        lines.send(
            &json!({"id": key, "event": "faulty:swallow", "data": {}, "idempotency_key": format!("k{key}")}),
        );
    };
    let name = |lines: &mut Lines| {
        let line = lines.receive();
        let name = line["accepted"]["request_id"].as_str().unwrap_or_else(|| panic!("{line}"));
        (line["id"].as_u64().unwrap(), name.to_owned())
    };
    let mut pair = [daemon.lines(), daemon.lines()];
    for key in 0..50 {
        pair.iter_mut().for_each(|lines| ask(lines, key));
    }
    let [mut first, second] = pair.each_mut().map(|lines| (0..50).map(|_| name(lines)).collect::<Vec<_>>());
    let mut second = second;
    first.sort();
    second.sort();
    assert_eq!(first, second);
    let daemon = daemon.kill().start();
    daemon.ready();
    let mut lines = daemon.lines();
    for (key, before) in first {
        ask(&mut lines, key);
        assert_eq!(name(&mut lines), (key, before));
    }
    lines.send(&json!({"event": "faulty:swallow", "data": {"poison": false}, "idempotency_key": "k1"}));
    assert_eq!(lines.receive()["refusal"]["code"], "conflict", "another payload under a key that was used");
}

#[test]
fn what_expired_while_the_daemon_was_down_is_not_begun_any_more() {
    let event = r#"
        [events."faulty:ok"]
        delivery = "durable"
        permission = "test.use"
        repeat = true
        expires = "500ms"
    "#;
    let daemon = daemon("child", event);
    daemon.ask("plugin:unload", json!({"name": "faulty"})).unwrap();
    let name = give(&daemon, "faulty:ok", json!({}));
    // Of a day, this one says that half a second of it will do, and keeps to it.
    let mut lines = daemon.lines();
    lines.send(&json!({"event": "faulty:swallow", "data": {}, "expires_in_ms": 500}));
    let brief = lines.receive()["accepted"]["request_id"].as_str().expect("it is accepted").to_owned();
    let patient = give(&daemon, "faulty:swallow", json!({}));
    let home = daemon.kill();
    let begun = Instant::now();
    wait_until("its time is over", || begun.elapsed() > Duration::from_millis(600));
    let daemon = home.start();
    daemon.ready();
    for name in [&name, &brief] {
        assert_eq!(end(&daemon, name), "expired");
        assert_eq!(info(&daemon, name)["attempts"], 0);
    }
    assert_eq!(end(&daemon, &patient), "done");
    let refusal = info(&daemon, &brief)["refusal"].clone();
    assert!(refusal["message"].as_str().is_some_and(|said| said.contains("500 ms")), "{refusal}");
    let mut lines = daemon.lines();
    lines.send(&json!({"event": "faulty:ok", "data": {}, "expires_in_ms": 5_000_000}));
    let name = lines.receive()["accepted"]["request_id"].as_str().expect("it is accepted").to_owned();
    assert_eq!(end(&daemon, &name), "done");
    lines.send(&json!({"event": "system:health", "data": {}, "expires_in_ms": 5}));
    assert_eq!(lines.receive()["refusal"]["code"], "invalid_frame", "what is not kept cannot expire");
}
