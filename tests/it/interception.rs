//! A plugin that has a word on what others say to each other.

use std::sync::atomic::{AtomicBool, Ordering};

use ksi_protocol::system::PluginState;
use ksi_tests::{Daemon, Home, library, wait_until};
use serde_json::{Value, json};

const PLACEMENTS: [&str; 2] = ["in-process", "child"];

/// A daemon with echo and its interceptor, ready.
fn daemon(placement: &str) -> Daemon {
    let config = format!(
        "[plugins.llama]\nenabled = false\n[plugins.completion]\nenabled = false\n\
         [plugins.interceptor]\nlibrary = \"{}\"\nplacement = \"{placement}\"\nintercepts = [\"echo:*\"]\n\
         restart = {{ backoff_min = \"30s\", failures_max = 1000 }}\n",
        library("fixture_interceptor").display()
    );
    let daemon = Home::with_config(&config).start();
    daemon.ready();
    assert_eq!(daemon.plugin("interceptor").state, PluginState::Ready);
    daemon
}

fn say(daemon: &Daemon, text: &str) -> Result<Value, Value> {
    daemon.ask("echo:say", json!({ "text": text }))
}

#[test]
fn interceptors_of_one_plugin_edit_one_after_the_other_what_is_asked_and_what_is_answered() {
    for placement in PLACEMENTS {
        let daemon = daemon(placement);
        let answer = say(&daemon, "hello").expect("it answers");
        assert_eq!(answer, json!({"text": "HELLO.", "mark": "seen"}), "{placement}");
        // What the interceptor passes without a word is judged by the owner.
        let refusal = daemon.ask("echo:say", json!({"text": 1})).expect_err("no text");
        assert_eq!(refusal["code"], "invalid_payload", "{placement}: {refusal}");
    }
}

#[test]
fn an_interceptor_refuses_and_the_owner_never_hears_of_it() {
    for placement in PLACEMENTS {
        let daemon = daemon(placement);
        let refusal = say(&daemon, "forbidden").expect_err("it is forbidden");
        assert_eq!(refusal["code"], "denied", "{placement}: {refusal}");
        assert_eq!(refusal["message"], "this text is forbidden");
        assert_eq!(daemon.plugin("echo").handled, 0);
    }
}

#[test]
fn many_requests_at_once_each_get_their_own_edit() {
    for placement in PLACEMENTS {
        let daemon = daemon(placement);
        let mut lines = daemon.lines();
        for id in 0..200 {
            lines.send(&json!({"id": id, "event": "echo:say", "data": {"text": format!("text {id}")}}));
        }
        for _ in 0..200 {
            let answer = lines.receive();
            assert_eq!(answer["data"]["text"], format!("TEXT {}.", answer["id"]), "{placement}: {answer}");
            assert_eq!(answer["data"]["mark"], "seen");
        }
        assert_eq!(daemon.plugin("interceptor").in_flight, 0);
    }
}

#[test]
fn a_guard_that_is_dead_does_not_open_the_gate() {
    let daemon = daemon("child");
    let pid = daemon.plugin("interceptor").pid.expect("a child has one");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("the process is there");
    wait_until("it is dead", || daemon.plugin("interceptor").state == PluginState::Backoff);

    let refusal = say(&daemon, "hello").expect_err("the guard is dead");
    assert_eq!(refusal["code"], "unavailable", "{refusal}");
    assert!(refusal["message"].as_str().expect("a text").contains("interceptor"), "{refusal}");
    assert_eq!(daemon.plugin("echo").handled, 0);

    daemon.ask("plugin:restart", json!({"name": "interceptor"})).expect("it starts");
    assert_eq!(say(&daemon, "hello").expect("the guard is back")["text"], "HELLO.");
    assert_eq!(say(&daemon, "forbidden").expect_err("it is forbidden")["code"], "denied");
}

#[test]
fn a_request_whose_guard_dies_over_it_is_refused() {
    let daemon = daemon("child");
    let pid = daemon.plugin("interceptor").pid.expect("a child has one");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).expect("the process is there");
    let mut lines = daemon.lines();
    lines.send(&json!({"event": "echo:say", "data": {"text": "hello"}}));
    wait_until("it is asked", || daemon.plugin("interceptor").in_flight == 1);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("the process is there");
    let answer = lines.receive();
    assert_eq!(answer["refusal"]["code"], "unavailable", "{answer}");
    assert_eq!(daemon.plugin("echo").handled, 0);
}

#[test]
fn a_guard_that_hangs_is_given_up_and_its_requests_refused() {
    let daemon = daemon("child");
    let pid = daemon.plugin("interceptor").pid.expect("a child has one");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).expect("the process is there");
    let refusal = say(&daemon, "hello").expect_err("the guard hangs");
    assert_eq!(refusal["code"], "unavailable", "{refusal}");
    wait_until("it is given up", || {
        let status = daemon.plugin("interceptor");
        status.state == PluginState::Backoff && status.last_error.is_some()
    });
    let why = daemon.plugin("interceptor").last_error.expect("it died");
    assert!(why.contains("did not answer"), "{why}");
}

#[test]
fn a_word_that_fails_open_is_skipped_when_its_plugin_is_gone() {
    let daemon = daemon("child");
    let pid = daemon.plugin("interceptor").pid.expect("a child has one");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"));
    // The request has passed the guard, which fails closed, and is held up by
    // the mark on its answer, which fails open: nothing is left to refuse it.
    let mut lines = daemon.lines();
    for id in 0..50 {
        lines.send(&json!({"id": id, "event": "echo:say", "data": {"text": "a"}}));
    }
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("the process is there");
    for _ in 0..50 {
        let answer = lines.receive();
        match answer["refusal"]["code"].as_str() {
            // Whoever is answered was seen by the guard, with the mark or without.
            None => assert_eq!(answer["data"]["text"], "A.", "{answer}"),
            Some(code) => assert_eq!(code, "unavailable", "{answer}"),
        }
    }
}

#[test]
fn an_unloaded_interceptor_has_no_word_any_more() {
    for placement in PLACEMENTS {
        let daemon = daemon(placement);
        say(&daemon, "forbidden").expect_err("it is forbidden");
        daemon.ask("plugin:unload", json!({"name": "interceptor"})).expect("it goes");
        assert_eq!(say(&daemon, "forbidden").expect("nobody minds"), json!({"text": "forbidden"}));
        daemon.ask("plugin:load", json!({"library": "interceptor"})).expect("it starts");
        say(&daemon, "forbidden").expect_err("it is forbidden again");
        daemon.ask("plugin:reload", json!({"name": "interceptor"})).expect("it starts");
        assert_eq!(say(&daemon, "hello").expect("once each"), json!({"text": "HELLO.", "mark": "seen"}));
    }
}

/// A daemon whose interceptor is held, and its configuration.
fn held() -> (Daemon, String) {
    let config = format!(
        "[plugins.llama]\nenabled = false\n[plugins.completion]\nenabled = false\n\
         [plugins.interceptor]\nlibrary = \"{}\"\nplacement = \"child\"\nintercepts = [\"echo:*\"]\nrestart = {{ failures_max = 1 }}\n",
        library("fixture_interceptor").display()
    );
    let daemon = Home::with_config(&config).start();
    daemon.ready();
    let pid = daemon.plugin("interceptor").pid.expect("a child has one");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("the process is there");
    wait_until("it is held", || daemon.plugin("interceptor").state == PluginState::Held);
    assert_eq!(say(&daemon, "hello").expect_err("the guard is held")["code"], "unavailable");
    (daemon, config)
}

#[test]
fn a_guard_that_is_released_leaves_no_moment_at_which_the_gate_is_open() {
    for placement in PLACEMENTS {
        let daemon = daemon(placement);
        let mut lines = daemon.lines();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Whatever is answered was seen by the guard.
            let asking = scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    if let Ok(answer) = lines.ask("echo:say", json!({"text": "hello"})) {
                        assert_eq!(answer["text"], "HELLO.", "{placement}: {answer}");
                    }
                }
            });
            let orders = ["plugin:quarantine", "plugin:release"].into_iter().cycle().take(20);
            let told: Vec<_> =
                orders.map(|order| daemon.ask(order, json!({"name": "interceptor"}))).collect();
            done.store(true, Ordering::SeqCst);
            assert!(told.iter().all(Result::is_ok), "{placement}: {told:?}");
            asking.join().expect("the gate is never open");
        });
    }
}

#[test]
fn a_guard_in_quarantine_keeps_the_gate_shut_until_it_is_unloaded() {
    let guarded = |daemon: &Daemon| {
        assert_eq!(daemon.plugin("interceptor").state, PluginState::Quarantined);
        say(daemon, "hello").expect_err("the guard is in quarantine");
        let unloaded = daemon.ask("plugin:unload", json!({"name": "interceptor"})).expect("it is let go");
        assert_eq!(unloaded["state"], "quarantined");
        assert_eq!(say(daemon, "hello").expect("the gate is open")["text"], "hello");
        daemon.ask("plugin:load", json!({"library": "interceptor"})).expect_err("it is in quarantine");
        say(daemon, "hello").expect_err("it is wanted again");
    };
    let daemon = daemon("child");
    daemon.ask("plugin:quarantine", json!({"name": "interceptor"})).expect("it is stopped");
    guarded(&daemon);
    // After a restart nothing is known of what it has a word on.
    let daemon = daemon.kill().start();
    daemon.ready();
    guarded(&daemon);
    let released = daemon.ask("plugin:release", json!({"name": "interceptor"})).expect("it runs again");
    assert_eq!(released["state"], "ready");
    assert_eq!(say(&daemon, "hello").expect("the guard is back")["text"], "HELLO.");
}

#[test]
fn an_interceptor_that_is_held_keeps_the_gate_shut() {
    let (daemon, _) = held();
    assert_eq!(daemon.ask("system:health", json!({})).expect("alive")["status"], "unhealthy");
    daemon.ask("plugin:unload", json!({"name": "interceptor"})).expect("the operator lets it go");
    assert_eq!(say(&daemon, "hello").expect("the gate is open")["text"], "hello");
}

#[test]
fn a_guard_from_whom_a_reload_takes_its_word_has_none_dead_or_alive() {
    let (dead, config) = held();
    dead.reconfigure(&config.replace("echo:*", "state:*")).expect("it is taken over");
    assert_eq!(say(&dead, "hello").expect("the gate is open")["text"], "hello");
    dead.reconfigure(&config).expect("it is taken over");
    assert_eq!(say(&dead, "hello").expect_err("it is shut again")["code"], "unavailable");
    for placement in PLACEMENTS {
        let config = config.replace("\"child\"", &format!("\"{placement}\""));
        let daemon = Home::with_config(&config).start();
        daemon.ready();
        say(&daemon, "forbidden").expect_err("it is forbidden");
        daemon.reconfigure(&config.replace("echo:*", "state:*")).expect("it is taken over");
        assert_eq!(say(&daemon, "forbidden").expect("nobody minds")["text"], "forbidden");
    }
}

#[test]
fn a_guard_that_cannot_start_leaves_the_gate_shut() {
    let config = "[plugins.llama]\nenabled = false\n[plugins.completion]\nenabled = false\n\
                  [plugins.interceptor]\nlibrary = \"/nowhere/libinterceptor.so\"\nintercepts = [\"echo:*\"]\n";
    let start = |config: &str| {
        let daemon = Home::with_config(config).start();
        wait_until("echo is ready", || daemon.plugin("echo").state == PluginState::Ready);
        daemon
    };
    let daemon = start(config);
    let refusal = say(&daemon, "forbidden").expect_err("the guard is not there");
    assert_eq!((&refusal["code"], &refusal["retryable"]), (&json!("unavailable"), &json!(true)));
    assert!(refusal["message"].as_str().expect("a text").contains("plugin:interceptor"), "{refusal}");
    // A reload decides what it would guard.
    daemon.reconfigure(&config.replace("echo:*", "state:*")).expect("it is taken over");
    assert_eq!(say(&daemon, "hello").expect("nobody minds")["text"], "hello");
    daemon.reconfigure(config).expect("it is taken over");
    say(&daemon, "hello").expect_err("it is shut again");
    daemon.ask("plugin:unload", json!({"name": "interceptor"})).expect("the operator lets it go");
    assert_eq!(say(&daemon, "hello").expect("the gate is open")["text"], "hello");
    daemon.ask("plugin:load", json!({"library": "interceptor"})).expect_err("it cannot start");
    say(&daemon, "hello").expect_err("it is wanted again");
    daemon.reconfigure(&format!("{config}enabled = false\n")).expect("it is taken over");
    assert_eq!(say(&daemon, "hello").expect("it is not enabled any more")["text"], "hello");
    daemon.reconfigure(config).expect("it is taken over");
    say(&daemon, "hello").expect_err("it is enabled again");
    let open = start(&format!("{config}fail_open = true\n"));
    assert_eq!(say(&open, "hello").expect("it may be away")["text"], "hello");
    let all = start(&config.replace("echo:*", "**"));
    say(&all, "hello").expect_err("the guard is not there");
    all.ask("plugin:unload", json!({"name": "interceptor"})).expect("administration goes on");
}
