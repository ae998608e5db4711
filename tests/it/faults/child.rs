//! Faults of a plugin in a child process.

use std::{path::Path, time::Duration};

use ksi_protocol::system::PluginState;
use ksi_tests::{stdout, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{Facts, HEARD, Neighbour, comes_back, daemon, deaths, fails_in_a_child, faulty, kill_dead, open};

#[test]
fn a_panic_is_refused_with_its_message() {
    fails_in_a_child("faulty:panic", json!({}), "panicked: as asked");
}

#[test]
fn a_panic_after_an_await_is_refused_with_its_message() {
    fails_in_a_child("faulty:panic_async", json!({}), "panicked: as asked, later");
}

#[test]
fn an_abort_is_refused() {
    fails_in_a_child("faulty:abort", json!({}), "SIGABRT");
}

#[test]
fn a_wild_pointer_is_refused() {
    fails_in_a_child("faulty:segv", json!({}), "SIGSEGV");
}

#[test]
fn a_stack_overflow_is_refused() {
    fails_in_a_child("faulty:stack", json!({}), "stack overflow");
}

#[test]
fn an_exit_that_looks_well_is_refused() {
    fails_in_a_child("faulty:exit", json!({}), "exited with code 0");
}

#[test]
fn a_hang_is_refused() {
    fails_in_a_child("faulty:hang", json!({}), "did not answer for 1000 ms");
}

#[test]
fn what_a_child_says_without_end_fills_no_log_and_is_told_to_others_seldom() {
    let daemon = faulty("child");
    let mut lines = daemon.lines();
    lines.send(&json!({"id": 1, "subscribe": "plugin:*"}));
    lines.receive();
    lines.send(&json!({"id": 2, "event": "faulty:babble", "data": {"n": 5000}}));
    let (mut degraded, mut recovered) = (0, 0);
    let answer = loop {
        let line = lines.receive();
        match line["event"].as_str() {
            Some("plugin:degraded") => degraded += 1,
            Some("plugin:recovered") => recovered += 1,
            _ if line["id"] == 2 => break line,
            _ => {}
        }
    };
    assert_eq!(answer["data"]["n"], 5000, "{answer}");
    // A minute's worth at once, and what this took; each is followed by its end.
    assert!((60..200).contains(&degraded), "{degraded}");
    assert_eq!(degraded, recovered);
    assert_eq!(daemon.plugin("faulty").degraded, None);
    daemon.ask("plugin:restart", json!({"name": "faulty"})).expect("it starts again");
    wait_until("what was left out is told", || daemon.log().contains("left out"));
    let told = daemon.log().matches("babble").count();
    assert!((600..2000).contains(&told), "{told}");
}

#[test]
fn a_hang_at_an_event_is_found_though_nobody_waits_for_the_plugin() {
    let daemon = faulty("child");
    // What it held before was answered, and it is at rest.
    daemon.ask("faulty:ok", json!({})).expect("it answers");
    let mut facts = Facts::of(&daemon);
    daemon.lines().send(&json!({"emit": "test:hang"}));
    let died = facts.expect("plugin:died");
    assert!(died["reason"].as_str().expect("a text").contains("did not answer for 1000 ms"), "{died}");
    comes_back(&daemon);
}

#[test]
fn a_hang_of_a_plugin_that_was_given_nothing_is_found_by_whoever_looks_at_the_health() {
    let daemon = faulty("child");
    daemon.ask("faulty:hang_later", json!({})).expect("it answers first");
    wait_until("it is given up", || {
        let _ = daemon.health();
        !deaths(&daemon).is_empty()
    });
    assert!(deaths(&daemon)[0]["reason"].as_str().expect("a text").contains("did not answer"));
    comes_back(&daemon);
}

#[test]
fn a_death_is_kept_with_its_signal_its_peak_of_memory_and_its_last_words() {
    let daemon = faulty("child");
    daemon.ask("faulty:leak", json!({"mb": 100})).expect("it has memory");
    daemon.ask("faulty:segv", json!({})).expect_err("it dies");
    comes_back(&daemon);
    daemon.ask("faulty:exit", json!({})).expect_err("it dies again");
    comes_back(&daemon);
    daemon.ask("faulty:panic", json!({})).expect_err("and again");
    comes_back(&daemon);
    let deaths = deaths(&daemon);
    let [segv, exit, panic] = deaths.as_slice() else { panic!("{deaths:?}") };
    assert_eq!((&segv["signal"], segv.get("code")), (&json!("SIGSEGV"), None));
    assert_eq!((exit.get("signal"), &exit["code"]), (None, &json!(0)));
    let peak = |death: &Value| death["peak_bytes"].as_u64().expect("it is known");
    assert!(peak(segv) >= 100 << 20, "{segv}");
    assert!(peak(exit) < 100 << 20, "a new process begins anew: {exit}");
    assert!(deaths.iter().all(|death| death["out_of_memory"] == false), "{deaths:?}");
    assert_eq!([&segv["generation"], &exit["generation"], &panic["generation"]], [1, 2, 3]);
    assert!(panic["last_words"].to_string().contains("panicked: as asked"), "{panic}");
    let text = stdout(&daemon.ksi(&["plugin", "inspect", "faulty"]));
    for part in ["SIGSEGV", "exit code 0", "of memory", "panicked: as asked"] {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
}

#[test]
fn only_the_last_deaths_are_kept() {
    let restart = r#"restart = { backoff_min = "1ms", backoff_max = "1ms", failures_max = 1000 }"#;
    let daemon = daemon("child", restart);
    for _ in 0..34 {
        daemon.ask("faulty:abort", json!({})).expect_err("it dies");
        comes_back(&daemon);
    }
    let deaths = deaths(&daemon);
    assert_eq!(deaths.len(), 32);
    assert_eq!((&deaths[0]["generation"], &deaths[31]["generation"]), (&json!(3), &json!(34)));
}

#[test]
fn a_handler_that_blocks_for_longer_than_the_limit_is_refused() {
    fails_in_a_child("faulty:sleep_blocking", json!({}), "did not answer for 1000 ms");
}

#[test]
fn memory_beyond_the_limit_is_refused() {
    fails_in_a_child("faulty:leak", json!({"mb": 1024}), "memory allocation of");
}

#[test]
fn a_leak_goes_well_until_the_limit_is_reached() {
    let daemon = daemon("child", "limits = { memory_mb = 512 }");
    let mut leaked = 0;
    let refusal = loop {
        match daemon.ask("faulty:leak", json!({"mb": 50})) {
            Ok(answer) => leaked = answer["n"].as_u64().expect("a number"),
            Err(refusal) => break refusal,
        }
        assert!(leaked < 512, "the limit does not hold");
    };
    assert!(leaked >= 50);
    assert_eq!(refusal["code"], "plugin_restarted", "{refusal}");
    comes_back(&daemon);
}

#[test]
fn a_panic_in_a_task_of_its_own_ends_the_plugin_and_refuses_who_waits() {
    let daemon = faulty("child");
    let mut waiting = open(&daemon, "faulty:never", &json!({}));
    assert_eq!(daemon.ask("faulty:panic_later", json!({})).expect("it was answered before")["n"], 0);
    assert_eq!(waiting.receive()["refusal"]["code"], "plugin_restarted");
    comes_back(&daemon);
    assert!(deaths(&daemon)[0]["reason"].as_str().expect("a text").contains("as asked, in a task"));
}

#[test]
fn a_handler_that_blocks_within_the_limit_is_waited_for() {
    let daemon = daemon("child", "");
    let neighbour = Neighbour::of(&daemon);
    assert_eq!(daemon.ask("faulty:sleep_blocking", json!({})).expect("it answers in the end")["n"], 0);
    neighbour.noticed_nothing();
    assert_eq!(daemon.plugin("faulty").restarts, 0);
}

#[test]
fn a_flood_of_facts_holds_up_nobody() {
    let daemon = daemon("child", r#"restart = { hang = "30s" }"#);
    let neighbour = Neighbour::of(&daemon);
    assert_eq!(daemon.ask("faulty:flood", json!({})).expect("it answers")["n"], 1_000_000);
    neighbour.noticed_nothing();
    let status = daemon.ask("system:status", json!({})).expect("a status");
    assert!(status["counters"]["emits"].as_u64() >= Some(1_000_000), "{}", status["counters"]);
}

#[test]
fn each_of_many_requests_before_a_crash_has_one_answer() {
    let daemon = faulty("child");
    let mut lines = daemon.lines();
    for id in 0..50 {
        lines.send(&json!({"id": id, "event": "faulty:ok", "data": {}}));
    }
    lines.send(&json!({"id": 50, "event": "faulty:abort", "data": {}}));
    let mut answered = [0; 51];
    for _ in 0..51 {
        let answer = lines.receive();
        let id = answer["id"].as_u64().and_then(|id| usize::try_from(id).ok()).expect("a number");
        answered[id] += 1;
        // One that was done in the same turn of the child as the crash is
        // refused as well: its answer has died with the child.
        let refused = answer["refusal"]["code"] == "plugin_restarted";
        assert!(refused || (id < 50 && answer["data"]["n"] == 0), "{answer}");
    }
    assert_eq!(answered, [1; 51]);
}

#[test]
fn a_killed_host_is_refused_within_a_second_and_replaced() {
    let daemon = faulty("child");
    let mut waiting = open(&daemon, "faulty:never", &json!({}));
    let pid = daemon.plugin("faulty").pid.expect("a child has one");
    kill_dead(pid);
    let since = std::time::Instant::now();
    let answer = waiting.receive();
    assert!(since.elapsed() < Duration::from_secs(1), "refused after {:?}", since.elapsed());
    assert_eq!(answer["refusal"]["code"], "plugin_restarted", "{answer}");
    let after = comes_back(&daemon);
    assert_ne!(after.pid, Some(pid));
    assert!(after.last_error.expect("it died").contains("SIGKILL"));
}

#[test]
fn a_stopped_host_counts_as_hung() {
    let daemon = faulty("child");
    let pid = daemon.plugin("faulty").pid.expect("a child has one");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"));
    nix::sys::signal::kill(pid, Signal::SIGSTOP).expect("the process is there");
    let since = std::time::Instant::now();
    let refusal = daemon.ask("faulty:ok", json!({})).expect_err("it is stopped");
    assert!(since.elapsed() < HEARD);
    assert_eq!(refusal["code"], "plugin_restarted", "{refusal}");
    comes_back(&daemon);
}

#[test]
fn processes_that_a_child_leaves_behind_go_with_it_and_hold_up_nobody() {
    let daemon = daemon("child", "restart = { hang = \"1s\" }\nsandbox = { exec = true }");
    let orphan = daemon.ask("faulty:orphan", json!({})).expect("it starts a process")["n"].as_u64();
    let orphan = orphan.expect("a pid");
    let refusal = daemon.ask("faulty:abort", json!({})).expect_err("it dies");
    assert_eq!(refusal["code"], "plugin_restarted", "{refusal}");
    comes_back(&daemon);
    wait_until("what was left behind is gone", || {
        let status = std::fs::read_to_string(format!("/proc/{orphan}/stat")).unwrap_or_default();
        // Where nobody collects it, it is dead all the same.
        !Path::new(&format!("/proc/{orphan}")).exists() || status.contains(") Z ")
    });
}

#[test]
fn five_crashes_hold_a_plugin_until_the_operator_frees_it() {
    let mut daemon = daemon("child", r#"restart = { backoff_min = "1ms", backoff_max = "1ms" }"#);
    for _ in 0..4 {
        daemon.ask("faulty:abort", json!({})).expect_err("it dies");
        comes_back(&daemon);
    }
    assert_eq!(daemon.ask("system:health", json!({})).expect("alive")["status"], "ok");
    daemon.ask("faulty:abort", json!({})).expect_err("it dies");
    wait_until("it is held", || daemon.plugin("faulty").state == PluginState::Held);

    let refusal = daemon.ask("faulty:ok", json!({})).expect_err("it is held");
    assert_eq!(refusal["code"], "unavailable", "{refusal}");
    assert_eq!(refusal["retryable"], false, "{refusal}");
    assert!(refusal["hint"].as_str().expect("a text").contains("plugin restart faulty"), "{refusal}");
    let health = daemon.ask("system:health", json!({})).expect("alive");
    assert_eq!(health["status"], "unhealthy");
    let reason = health["reasons"][0].as_str().expect("a reason");
    assert!(reason.contains("faulty") && reason.contains("SIGABRT"), "{reason}");
    assert_eq!(daemon.ask("echo:say", json!({"text": "a"})).expect("others go on")["text"], "a");

    let status = daemon.ask("plugin:restart", json!({"name": "faulty"})).expect("it starts");
    assert_eq!(status["state"], "ready");
    daemon.ask("faulty:ok", json!({})).expect("it answers");
    assert_eq!(daemon.ask("system:health", json!({})).expect("alive")["status"], "ok");
    assert!(daemon.is_alive());
}
