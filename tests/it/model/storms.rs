//! Thousands of requests, many of whose askers go away in the middle: they leave
//! no slot taken, no thread and no memory behind.

use ksi_tests::{Daemon, wait_until};
use serde_json::{Value, json};

use super::fresh;

/// Requests of one storm; every fifth asker goes away.
const STORM: u64 = 5_000;
/// How much the process of a model may grow while a storm passes that is like the
/// one before: what allocators keep, which is far less than a byte for each token.
const GROWTH_MAX: u64 = 2 << 20;

fn question(number: u64, max_tokens: u64) -> Value {
    let messages = json!([{"role": "user", "content": format!("Tell me story {number}")}]);
    json!({"messages": messages, "max_tokens": max_tokens, "temperature": 1.0, "seed": number})
}

fn storm(daemon: &Daemon) {
    let mut lines = daemon.lines();
    for number in 0..STORM {
        if number % 5 > 0 {
            lines.ask("llama:generate", question(number, 4)).expect("an answer");
            continue;
        }
        let mut gone = daemon.lines();
        gone.send(&json!({"event": "llama:generate", "data": question(number, 200)}));
        assert!(gone.receive().get("chunk").is_some(), "it is in the middle of its answer");
    }
}

fn resident(daemon: &Daemon) -> u64 {
    daemon.plugin("llama@ksi-tiny").rss_bytes.expect("a child has memory")
}

/// Threads of the process of the model.
fn threads(daemon: &Daemon) -> usize {
    let pid = daemon.plugin("llama@ksi-tiny").pid.expect("a child has a process");
    std::fs::read_dir(format!("/proc/{pid}/task")).expect("it lives").count()
}

#[test]
fn storms_of_requests_leave_no_slot_no_thread_and_no_memory_behind() {
    let daemon = fresh();
    storm(&daemon);
    let (before, threads_before) = (resident(&daemon), threads(&daemon));
    storm(&daemon);
    wait_until("no slot is taken", || {
        let metrics = daemon.ask("llama:metrics", json!({})).expect("figures");
        let model = &metrics["models"][0];
        model["running"] == 0 && model["waiting"] == 0
    });
    let after = resident(&daemon);
    assert!(after < before + GROWTH_MAX, "{before} bytes before, {after} after");
    wait_until("no thread is left over", || threads(&daemon) <= threads_before);
}
