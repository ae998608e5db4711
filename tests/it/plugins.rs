//! Operating plugins: list, inspect, load, unload, reload and restart; one
//! library under two names; listeners; and what a child is deprived of.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use ksi_protocol::system::{Placement, PluginState};
use ksi_tests::{Daemon, Home, library, stderr, wait_until};
use serde_json::{Value, json};

mod probe;
mod sandbox;

const PLACEMENTS: [&str; 2] = ["in-process", "child"];

/// A daemon with echo alone.
fn daemon() -> Daemon {
    let daemon =
        Home::with_config("[plugins.llama]\nenabled = false\n[plugins.completion]\nenabled = false\n")
            .start();
    daemon.ready();
    daemon
}

fn named(daemon: &Daemon, event: &str, name: &str) -> Result<Value, Value> {
    daemon.ask(event, json!({ "name": name }))
}

fn say(daemon: &Daemon, event: &str) -> Result<Value, Value> {
    daemon.ask(event, json!({"text": "hello"}))
}

#[test]
fn the_list_names_every_plugin_of_the_manifest_with_its_state() {
    let daemon = daemon();
    let list = daemon.ask("plugin:list", json!({})).expect("a list");
    let states: Vec<(String, String)> = list["plugins"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|plugin| {
            let text = |key: &str| plugin[key].as_str().expect("a text").to_owned();
            (text("name"), text("state"))
        })
        .collect();
    let expected = [
        ("anthropic", "stopped"),
        ("checkpoint", "ready"),
        ("claude-cli", "stopped"),
        ("completion", "stopped"),
        ("echo", "ready"),
        ("echo_child", "stopped"),
        ("llama", "stopped"),
        ("openai", "stopped"),
        ("prompt", "stopped"),
        ("state", "ready"),
    ];
    assert_eq!(states, expected.map(|(name, state)| (name.to_owned(), state.to_owned())));
    let refusal = daemon.ask("plugin:list", json!({"all": true})).expect_err("it takes nothing");
    assert_eq!(refusal["code"], "invalid_payload", "{refusal}");
}

#[test]
fn an_inspection_shows_what_a_plugin_is_and_answers() {
    let daemon = daemon();
    say(&daemon, "echo:say").expect("it answers");
    let inspection = named(&daemon, "plugin:inspect", "echo").expect("it is there");
    let status = &inspection["status"];
    assert_eq!(status["about"], "Answers with what it is asked");
    assert_eq!((&status["placement"], &status["sandbox"]), (&json!("in-process"), &json!("none")));
    assert_eq!(
        (&status["generation"], &status["restarts"], &status["handled"]),
        (&json!(1), &json!(0), &json!(1))
    );
    assert_eq!(status["library"], json!(library("echo")));
    assert_eq!(inspection["requests"][0]["event"], "echo:say");
    assert_eq!(inspection["requests"][0]["about"], "Say something and get it back.");
    assert_eq!(inspection["deaths"], json!([]));
}

#[test]
fn an_unknown_name_is_refused_with_those_there_are() {
    let daemon = daemon();
    for event in ["plugin:inspect", "plugin:unload", "plugin:reload", "plugin:restart"] {
        let refusal = named(&daemon, event, "ecko").expect_err("there is none");
        assert_eq!(refusal["code"], "not_found", "{event}: {refusal}");
        assert!(refusal["message"].as_str().expect("a text").contains("ecko"), "{refusal}");
        let hint = refusal["hint"].as_str().expect("a hint");
        assert!(hint.contains("completion, echo, echo_child, llama"), "{event}: {hint}");
    }
    let refusal = daemon.ask("plugin:load", json!({"library": "ecko"})).expect_err("there is none");
    assert_eq!(refusal["code"], "not_found", "{refusal}");
    let hint = refusal["hint"].as_str().expect("a hint");
    assert!(hint.contains("echo_child") && hint.contains("absolute path"), "{hint}");
    let refusal = daemon.ask("plugin:inspect", json!({})).expect_err("no name");
    assert_eq!(refusal["code"], "invalid_payload", "{refusal}");
}

#[test]
fn an_unloaded_plugin_is_missed_by_name_and_can_be_loaded_again() {
    let daemon = daemon();
    assert_eq!(named(&daemon, "plugin:unload", "echo").expect("it goes")["state"], "stopped");
    let refusal = say(&daemon, "echo:say").expect_err("nobody answers");
    assert_eq!(refusal["code"], "no_owner", "{refusal}");
    assert!(refusal["hint"].as_str().expect("a hint").contains("plugin load echo"), "{refusal}");
    let health = daemon.ask("system:health", json!({})).expect("alive");
    assert_eq!(health["status"], "ok", "what the operator unloads is not missed: {health}");
    assert_eq!(named(&daemon, "plugin:unload", "echo").expect("it is gone already")["state"], "stopped");

    let status = daemon.ask("plugin:load", json!({"library": "echo"})).expect("it is in the manifest");
    assert_eq!((&status["state"], &status["generation"]), (&json!("ready"), &json!(2)));
    assert_eq!(say(&daemon, "echo:say").expect("it answers")["text"], "hello");
}

#[test]
fn loading_what_is_loaded_changes_nothing() {
    let daemon = daemon();
    let status = daemon.ask("plugin:load", json!({"library": "echo"})).expect("it is there");
    assert_eq!((&status["state"], &status["generation"]), (&json!("ready"), &json!(1)));
    let elsewhere = json!({"library": "echo", "placement": "child"});
    let refusal = daemon.ask("plugin:load", elsewhere).expect_err("the manifest says where it runs");
    assert_eq!(refusal["code"], "conflict", "{refusal}");
    assert!(refusal["hint"].as_str().expect("a hint").contains("plugins.echo.placement"), "{refusal}");
    for placement in PLACEMENTS {
        let refusal = daemon.load("echo", placement).expect_err("its name is taken");
        assert_eq!(refusal["code"], "conflict", "{refusal}");
        assert!(refusal["hint"].as_str().expect("a hint").contains("plugin unload echo"), "{refusal}");
    }
    assert_eq!(daemon.plugin("echo").generation, 1);
}

#[test]
fn a_restart_and_a_reload_bring_a_new_generation() {
    for name in ["echo", "echo_child"] {
        let daemon = daemon();
        let event = format!("{name}:say");
        daemon.ask("plugin:load", json!({ "library": name })).expect("it starts");
        for (command, generation) in [("plugin:restart", 2), ("plugin:reload", 3)] {
            let status = named(&daemon, command, name).expect("it starts again");
            assert_eq!((&status["state"], &status["generation"]), (&json!("ready"), &json!(generation)));
            assert_eq!(status["restarts"], 0, "a restart that was asked for is no death");
            assert_eq!(say(&daemon, &event).expect("it answers")["text"], "hello");
        }
    }
}

#[test]
fn one_library_answers_under_two_namespaces_side_by_side() {
    let daemon = daemon();
    assert_eq!(say(&daemon, "echo_child:say").expect_err("it is off")["code"], "no_owner");
    let status = daemon.ask("plugin:load", json!({"library": "echo_child"})).expect("it starts");
    assert_eq!(status["placement"], "child");
    let level = status["sandbox"].as_str().expect("a level");
    assert!(["L1", "L2", "L3", "L4", "L5"].contains(&level), "{level}");
    assert_eq!(say(&daemon, "echo_child:say").expect("the child answers")["text"], "hello");
    assert_eq!(say(&daemon, "echo:say").expect("the other one, too")["text"], "hello");
    assert_eq!(daemon.plugin("echo_child").handled, 1);
    let info = daemon.ask("system:describe", json!({"event": "echo_child:say"})).expect("it is described");
    assert_eq!((&info["owner"], &info["available"]), (&json!("echo_child"), &json!(true)));
    named(&daemon, "plugin:unload", "echo_child").expect("it goes");
    assert_eq!(say(&daemon, "echo_child:say").expect_err("it is off")["code"], "no_owner");
    assert_eq!(say(&daemon, "echo:say").expect("the other one stays")["text"], "hello");
}

#[test]
fn the_daemon_describes_what_its_own_events_take_answer_and_say() {
    let daemon = daemon();
    let describe =
        |event: &str| daemon.ask("system:describe", json!({"event": event})).expect("it is described");
    let load = describe("plugin:load");
    assert_eq!((&load["kind"], &load["request"]["required"]), (&json!("request"), &json!(["library"])));
    assert_eq!(load["reply"]["properties"]["generation"]["type"], "integer", "{load}");
    let died = describe("plugin:died");
    assert_eq!((&died["kind"], &died["request"]["required"]), (&json!("fact"), &json!(["name", "reason"])));
    assert_eq!(died["reply"], json!(null), "{died}");
}

#[test]
fn what_is_longer_than_any_name_is_refused_without_being_looked_for() {
    let daemon = daemon();
    let long = "a".repeat(1024 * 1024);
    for (event, field) in [("system:describe", "event"), ("system:discover", "namespace")] {
        let refusal = daemon.ask(event, json!({field: long})).expect_err("there is no such name");
        assert_eq!(refusal["code"], "invalid_payload");
        assert_eq!(refusal["message"], "a name of 1048576 bytes; the longest have 128");
    }
}

#[test]
fn a_library_that_is_not_in_the_manifest_comes_and_goes() {
    let daemon = daemon();
    for placement in PLACEMENTS {
        let status = daemon.load("fixture_listener", placement).expect("it starts");
        assert_eq!((&status["name"], &status["placement"]), (&json!("listener"), &json!(placement)));
        daemon.ask("listener:heard", json!({})).expect("it answers");
        assert_eq!(named(&daemon, "plugin:reload", "listener").expect("it starts")["placement"], placement);
        named(&daemon, "plugin:unload", "listener").expect("it goes");
        let refusal = daemon.ask("listener:heard", json!({})).expect_err("it is gone");
        assert_eq!(refusal["code"], "unknown_event", "nothing of it is left: {refusal}");
        assert_eq!(
            named(&daemon, "plugin:inspect", "listener").expect_err("it is gone")["code"],
            "not_found"
        );
    }
    let status =
        daemon.ask("plugin:load", json!({"library": library("fixture_listener")})).expect("it starts");
    assert_eq!(status["placement"], "child", "what is not in the manifest is not trusted unasked");
}

#[test]
fn libraries_that_come_one_after_the_other_are_not_taken_for_each_other() {
    let daemon = daemon();
    for _ in 0..3 {
        for (library, event) in [
            ("fixture_listener", "listener:heard"),
            ("fixture_faulty", "faulty:ok"),
            ("completion", "completion:status"),
        ] {
            let name = library.trim_start_matches("fixture_");
            match name {
                "completion" => daemon.ask("plugin:load", json!({"library": "completion"})),
                _ => daemon.load(library, "in-process"),
            }
            .unwrap_or_else(|refusal| panic!("{name} does not start: {refusal}"));
            daemon.ask(event, json!({})).expect("it is what it says");
            named(&daemon, "plugin:unload", name).expect("it goes");
        }
    }
}

/// Puts a library in place of another, as a build does.
fn put(from: &str, to: &PathBuf) {
    let new = to.with_extension("new");
    fs::copy(library(from), &new).expect("a library can be copied");
    fs::rename(&new, to).expect("a file can be replaced");
}

#[test]
fn a_reload_takes_the_file_as_it_is_now() {
    for placement in PLACEMENTS {
        let home = Home::new();
        let path = home.path().join("libchanging.so");
        let config = format!(
            "[plugins.llama]\nenabled = false\n[plugins.completion]\nenabled = false\n\
             [plugins.changing]\nlibrary = \"{}\"\nnamespace = \"changing\"\nplacement = \"{placement}\"\n",
            path.display()
        );
        fs::write(home.paths().config_file, config).expect("ksi.toml can be written");
        put("fixture_listener", &path);
        let daemon = home.start();
        daemon.ready();
        daemon.ask("changing:heard", json!({})).expect("the first one answers");
        put("fixture_faulty", &path);
        daemon.ask("changing:heard", json!({})).expect("what runs goes on");
        named(&daemon, "plugin:reload", "changing").expect("the second one starts");
        assert_eq!(daemon.ask("changing:ok", json!({})).expect("it answers")["n"], 0, "{placement}");
        assert_eq!(daemon.plugin("changing").about, "Misbehaves in every way it is asked to");
        fs::remove_file(&path).expect("a file can be removed");
        fs::write(&path, "broken").expect("a file can be written");
        let refusal = named(&daemon, "plugin:reload", "changing").expect_err("it is no plugin any more");
        assert_eq!(refusal["code"], "unavailable", "{refusal}");
        assert!(refusal["message"].as_str().expect("a text").contains("not a shared library"), "{refusal}");
    }
}

#[test]
fn a_listener_hears_events_in_order_with_their_origin() {
    for placement in PLACEMENTS {
        let config = format!(
            "[plugins.llama]\nenabled = false\n[plugins.completion]\nenabled = false\n\
             [plugins.listener]\nlibrary = \"{}\"\nplacement = \"{placement}\"\nlistens = [\"test:*\"]\n",
            library("fixture_listener").display()
        );
        let daemon = Home::with_config(&config).start();
        daemon.ready();
        let mut lines = daemon.lines();
        for n in 0..100 {
            lines.send(&json!({"emit": "test:counted", "data": {"n": n}}));
        }
        lines.send(&json!({"emit": "other:thing", "data": {}}));
        lines.send(&json!({"id": 1, "emit": "test:last", "data": {}}));
        assert_eq!(lines.receive()["data"]["delivered"], 1);
        let heard = || {
            let heard = daemon.ask("listener:heard", json!({})).expect("it answers");
            heard["events"].as_array().expect("a list").clone()
        };
        wait_until("it has heard the last one", || heard().iter().any(|event| event["event"] == "test:last"));
        let heard = heard();
        let numbers: Vec<u64> = heard.iter().filter_map(|event| event["data"]["n"].as_u64()).collect();
        assert_eq!(numbers, (0..100).collect::<Vec<_>>(), "{placement}");
        assert_eq!(heard.len(), 101, "it hears what it listens to, and nothing else");
        assert!(
            heard.iter().all(|event| event["origin"].as_str().is_some_and(|o| o.starts_with("session:")))
        );
    }
}

#[test]
fn plugins_come_and_go_under_load_without_a_lost_answer() {
    let daemon = daemon();
    let mut lines = daemon.lines();
    let asking = std::thread::spawn(move || {
        let mut answered = 0;
        for id in 0..2000 {
            lines.send(&json!({"id": id, "event": "echo:say", "data": {"text": "a"}}));
            let answer = lines.receive();
            assert_eq!(answer["id"], id);
            match answer["refusal"]["code"].as_str() {
                None => answered += 1,
                Some(code) => {
                    assert!(matches!(code, "plugin_restarted" | "unavailable" | "no_owner"), "{answer}")
                }
            }
        }
        answered
    });
    for _ in 0..10 {
        named(&daemon, "plugin:reload", "echo").expect("it starts");
    }
    assert!(asking.join().expect("every request has its answer") > 0);
    assert_eq!(daemon.plugin("echo").generation, 11);
}

#[test]
fn commands_at_the_same_time_leave_a_plugin_in_one_state() {
    let daemon = daemon();
    std::thread::scope(|scope| {
        for command in ["plugin:reload", "plugin:restart", "plugin:unload", "plugin:reload"] {
            let daemon = &daemon;
            // Some of them find that another was faster; each is answered.
            scope.spawn(move || named(daemon, command, "echo").is_ok());
        }
    });
    let settled = daemon.plugin("echo").state;
    assert!(matches!(settled, PluginState::Ready | PluginState::Stopped), "{settled:?}");
    daemon.ask("plugin:load", json!({"library": "echo"})).expect("it starts");
    assert_eq!(say(&daemon, "echo:say").expect("it answers")["text"], "hello");
    assert_eq!(daemon.plugin("echo").placement, Placement::InProcess);
}

#[test]
fn whoever_asks_during_a_restart_is_told_to_come_again() {
    let daemon = daemon();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut frames = daemon.frames();
            let mut refusals = Vec::new();
            for id in 0.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                refusals.extend(frames.ask(id, "echo:say", &json!({"text": "a"})).err());
            }
            refusals
        });
        for _ in 0..20 {
            named(&daemon, "plugin:restart", "echo").unwrap();
        }
        done.store(true, Ordering::Relaxed);
        for refusal in asking.join().unwrap() {
            assert!(refusal.retryable, "{refusal:?}");
        }
    });
}

#[test]
fn a_library_that_the_manifest_does_not_know_is_told_what_it_asks_for_in_vain() {
    let daemon = daemon();
    let loaded = daemon.load("fixture_listener", "child").expect("it runs without");
    assert_eq!(loaded["not_granted"], json!(["listens test:*"]));
    let mut lines = daemon.lines();
    lines.send(&json!({"emit": "test:told", "data": {}}));
    // It was told before this was asked.
    lines.ask("system:health", json!({})).unwrap();
    assert_eq!(daemon.ask("listener:heard", json!({})).unwrap()["events"], json!([]));
    let shown = stderr(&daemon.ksi(&["plugin", "reload", "listener"]));
    assert!(shown.contains("not granted: listens test:*"), "{shown}");
    assert!(named(&daemon, "plugin:inspect", "echo").unwrap()["status"].get("not_granted").is_none());
}
