//! Who is served by which threads, and what a plugin that hangs costs those who
//! share them.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use ksi_tests::{Daemon, frames::request, wait_until};
use serde_json::json;

use super::with;
use crate::identity::{create, frames_as, lines_as};

/// Time for which a plugin may hang, long enough for others on a busy machine.
const HANG: Duration = Duration::from_secs(3);

/// The lanes that the daemon has made, by the names of their threads.
fn lanes(daemon: &Daemon) -> BTreeSet<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("it runs");
    // A thread may end between the two looks.
    let names = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.map(|name| name.trim().to_owned()).filter(|name| name.starts_with("lane-")).collect()
}

fn named(lanes: &[u8]) -> BTreeSet<String> {
    lanes.iter().map(|n| format!("lane-{n}")).collect()
}

#[test]
fn the_owner_has_the_daemons_own_threads_and_others_have_some_beside_them() {
    let daemon = with("");
    daemon.ask("echo:say", json!({"text": "the owner"})).unwrap();
    assert_eq!(lanes(&daemon), named(&[]));
    let says = json!({"text": "somebody else"});
    let tokens: Vec<_> = (0..6).map(|_| create(&daemon, &["echo.use"], None).token).collect();
    // In either encoding, and one user as often as he likes on one lane.
    let mut first = lines_as(&daemon, &tokens[0]);
    first.ask("echo:say", says.clone()).unwrap();
    frames_as(&daemon, &tokens[0]).ask(1, "echo:say", &says).unwrap();
    assert_eq!(lanes(&daemon), named(&[1]));
    let mut others: Vec<_> = tokens[1..].iter().map(|token| frames_as(&daemon, token)).collect();
    for other in &mut others {
        other.ask(1, "echo:say", &says).unwrap();
    }
    assert_eq!(lanes(&daemon), named(&[1, 2, 3, 4]));
    first.ask("echo:say", says).unwrap();
}

#[test]
fn who_shares_a_lane_goes_on_when_another_there_has_a_plugin_hang() {
    let daemon = crate::faults::daemon("in-process", r#"restart = { hang = "3s" }"#);
    let token = create(&daemon, &["*"], None).token;
    let (mut one, mut other) = (frames_as(&daemon, &token), frames_as(&daemon, &token));
    other.ask(1, "echo:say", &json!({"text": "before"})).unwrap();
    assert_eq!(lanes(&daemon), named(&[1]));
    // Where nobody else is connected, no place is held by the one that hangs.
    wait_until("the owner's connections are gone", || {
        lines_as(&daemon, &token).ask("system:status", json!({})).unwrap()["sessions"] == 3
    });
    let since = Instant::now();
    one.send(&request(1, "faulty:hang", &json!({})));
    // Beside the one that hangs, while it does: who is there, and who comes.
    for n in 2..10 {
        other.ask(n, "echo:say", &json!({"text": "beside"})).unwrap();
        frames_as(&daemon, &token).ask(n, "echo:say", &json!({"text": "new"})).unwrap();
    }
    assert!(since.elapsed() < HANG, "they waited for the one that hangs");
    let (id, refusal) = one.refused();
    assert!(since.elapsed() >= HANG);
    assert_eq!((id, refusal.code), (Some(1), ksi_protocol::Code::PluginRestarted));
    other.ask(99, "echo:say", &json!({"text": "after"})).unwrap();
}
