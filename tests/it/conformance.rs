//! One suite for every shipped plugin, in both placements: whoever asks, listens
//! or cancels cannot tell where the plugin runs.
//!
//! Each plugin has a table of steps with the kind of answer that they must get.
//! The table is run against a daemon with the plugin in its own process and one
//! with the plugin in a child; everything that came back is compared, but for
//! what differs from run to run: names of requests and measured times. `prompt` is
//! not among them: its manifest wants a sandbox (`require`), so it has one placement.

use std::{cell::RefCell, collections::HashMap};

use ksi_protocol::system::Placement;
use ksi_tests::{Daemon, Home, Lines, library, wait_until};
use serde_json::{Map, Value, json};

/// What is done with a request.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    /// Its answers are awaited.
    Await,
    /// It has this many milliseconds.
    Deadline(u64),
    /// It is cancelled once the plugin has it.
    Cancel,
    /// Its answers are awaited, and then this fact that it leads to.
    Hear(&'static str),
}

/// One request: what is asked, what is done with it, and how it must end:
/// `reply`, `end`, or the code of a refusal.
struct Step(&'static str, Value, Then, &'static str);

/// Stands for the name of the request that was accepted last.
const LAST: &str = "$last";

fn echo() -> Vec<Step> {
    use Then::Await;
    vec![
        Step("echo:say", json!({"text": "hello"}), Await, "reply"),
        Step("echo:say", json!({"text": ""}), Await, "reply"),
        Step("echo:say", json!({"text": "Grüße, 世界 🌍\u{0}\n\"\\"}), Await, "reply"),
        Step("echo:say", json!({"text": "x".repeat(1_000_000)}), Await, "reply"),
        Step("echo:say", json!({"text": 1}), Await, "invalid_payload"),
        Step("echo:say", json!({"text": null}), Await, "invalid_payload"),
        Step("echo:say", json!({}), Await, "invalid_payload"),
        Step("echo:say", json!({"text": "a", "loud": true}), Await, "invalid_payload"),
        Step("echo:say", json!([]), Await, "invalid_payload"),
        Step("echo:say", json!("hello"), Await, "invalid_payload"),
        Step("echo:say", json!(null), Await, "invalid_payload"),
        Step("echo:shout", json!({"text": "hello"}), Await, "unknown_event"),
        Step("echo:say", json!({"text": "late"}), Then::Deadline(60_000), "reply"),
    ]
}

fn completion() -> Vec<Step> {
    use Then::{Await, Cancel, Deadline, Hear};
    let ask = |model: &str, more: Value| {
        let mut request = json!({"prompt": "one two three", "model": model});
        let more: Map<String, Value> = serde_json::from_value(more).expect("an object");
        request.as_object_mut().expect("an object").extend(more);
        request
    };
    let plain = |model: &str| ask(model, json!({}));
    vec![
        Step("completion:request", plain("mock/echo"), Await, "end"),
        Step("completion:request", plain("mock/fixed:as it is"), Await, "end"),
        Step("completion:request", plain("mock/long:50"), Await, "end"),
        Step("completion:request", plain("mock/slow:5"), Await, "end"),
        Step("completion:request", ask("mock/long:50", json!({"max_tokens": 3})), Await, "end"),
        Step("completion:request", ask("mock/long:50", json!({"stop": ["w5"]})), Await, "end"),
        Step("completion:request", ask("mock/echo", json!({"conversation_id": "c"})), Await, "end"),
        Step("completion:request", plain("mock/fail-then-ok:1"), Await, "end"),
        Step("completion:request", plain("mock/fail:denied"), Await, "denied"),
        Step("completion:request", plain("mock/hang"), Cancel, "cancelled"),
        Step("completion:request", plain("mock/hang"), Deadline(300), "timeout"),
        Step("completion:request", ask("mock/hang", json!({"timeout_ms": 100})), Await, "timeout"),
        Step("completion:request", plain("mock/nothing"), Await, "not_found"),
        Step("completion:request", plain("nobody/knows"), Await, "not_found"),
        Step("completion:request", json!({"model": "mock/echo"}), Await, "invalid_payload"),
        Step("completion:request", ask("mock/echo", json!({"messages": []})), Await, "invalid_payload"),
        Step("completion:request", ask("mock/echo", json!({"max_tokens": 0})), Await, "invalid_payload"),
        Step("completion:request", ask("mock/echo", json!({"max_tokens": "3"})), Await, "invalid_payload"),
        Step("completion:request", ask("mock/echo", json!({"colour": "red"})), Await, "invalid_payload"),
        Step("completion:async", plain("mock/echo"), Hear("completion:result"), "accepted"),
        Step("completion:get", json!({"request_id": LAST}), Await, "reply"),
        Step("completion:status", json!({"request_id": LAST}), Await, "not_found"),
        Step("completion:cancel", json!({"request_id": LAST}), Await, "reply"),
        Step("completion:async", plain("mock/fail:denied"), Hear("completion:error"), "accepted"),
        Step("completion:get", json!({"request_id": LAST}), Await, "reply"),
        Step("completion:async", plain("mock/hang"), Hear("completion:started"), "accepted"),
        Step("completion:status", json!({}), Await, "reply"),
        Step("completion:cancel", json!({"request_id": LAST}), Hear("completion:cancelled"), "reply"),
        Step("completion:get", json!({"request_id": LAST}), Await, "reply"),
        Step("completion:async", json!({"prompt": 1}), Await, "invalid_payload"),
        Step("completion:get", json!({"request_id": "nobody"}), Await, "not_found"),
        Step("completion:get", json!({}), Await, "invalid_payload"),
        Step("completion:cancel", json!({"request_id": "nobody"}), Await, "not_found"),
        Step("completion:providers", json!({}), Await, "reply"),
        Step("completion:providers", json!({"all": true}), Await, "invalid_payload"),
        Step("completion:status", json!({}), Await, "reply"),
    ]
}

fn state() -> Vec<Step> {
    use Then::{Await, Cancel};
    let changes = json!([{"set": {"key": "a", "value": 1}}, {"delete": {"key": "large"}}]);
    vec![
        Step("state:set", json!({"key": "k", "value": {"a": [1, null, "ü"]}}), Await, "reply"),
        Step("state:get", json!({"key": "k"}), Await, "reply"),
        Step("state:set", json!({"key": "k", "value": 2, "expected_version": 0}), Await, "conflict"),
        Step("state:set", json!({"key": "k", "value": 2, "metadata": {"m": true}}), Await, "reply"),
        Step("state:get", json!({"key": "none"}), Await, "reply"),
        Step("state:set", json!({"key": "x".repeat(600), "value": 1}), Await, "too_large"),
        Step("state:set", json!({"key": "k"}), Await, "invalid_payload"),
        Step("state:set", json!({"key": "k", "value": 1, "colour": "red"}), Await, "invalid_payload"),
        Step("state:set", json!({"key": "k", "value": "x".repeat(1_100_000)}), Await, "too_large"),
        Step("state:set", json!({"key": "large", "value": "x".repeat(500_000)}), Await, "reply"),
        Step("state:get", json!({"key": "large"}), Await, "reply"),
        Step("state:batch", json!({ "operations": changes }), Await, "reply"),
        Step("state:list", json!({"values": true}), Await, "reply"),
        Step("state:list", json!({"limit": 0}), Await, "invalid_payload"),
        Step("state:push", json!({"queue": "q", "data": {"n": 1}}), Await, "reply"),
        Step("state:push", json!({"queue": "q", "data": 2}), Await, "reply"),
        Step("state:pop", json!({"queue": "q", "lease_seconds": 60}), Await, "reply"),
        Step("state:queue", json!({"queue": "q"}), Await, "reply"),
        Step("state:nack", json!({"queue": "q", "ids": [1]}), Await, "reply"),
        Step("state:pop", json!({"queue": "q", "count": 5}), Await, "reply"),
        Step("state:pop", json!({"queue": "q"}), Await, "reply"),
        Step("state:pop", json!({"queue": "q", "wait_ms": 60_000}), Cancel, "cancelled"),
        Step("state:pop", json!({"queue": "q", "wait_ms": 200}), Await, "reply"),
        Step("state:ack", json!({"queue": "q", "ids": [1, 7]}), Await, "reply"),
        Step("state:delete", json!({"key": "k"}), Await, "reply"),
        Step("state:delete", json!({"key": "k"}), Await, "reply"),
        Step("state:purge", json!({"queue": "q"}), Await, "reply"),
    ]
}

fn checkpoint() -> Vec<Step> {
    use Then::Await;
    let last = || json!({"request_id": LAST});
    vec![
        Step("echo:keep", json!({"text": "kept"}), Await, "accepted"),
        Step("work:wait", last(), Await, "reply"),
        Step("work:get", last(), Await, "reply"),
        Step("work:cancel", last(), Await, "conflict"),
        Step("work:retry", last(), Await, "conflict"),
        Step("work:list", json!({}), Await, "reply"),
        Step("work:list", json!({"limit": 0}), Await, "invalid_payload"),
        Step("work:drop", last(), Await, "reply"),
        Step("work:get", last(), Await, "not_found"),
        Step("echo:keep", json!({"text": 1}), Await, "accepted"),
        Step("work:wait", last(), Await, "reply"),
        Step("work:dead", json!({}), Await, "reply"),
        Step("work:get", json!({"request_id": "nobody"}), Await, "not_found"),
        Step("space:get", json!({}), Await, "denied"),
        Step("audit:append", json!({"records": []}), Await, "denied"),
        Step("checkpoint:create", json!({"label": "x".repeat(65)}), Await, "invalid_payload"),
        Step("checkpoint:list", json!({}), Await, "reply"),
        Step("checkpoint:export", json!({"name": "../elsewhere"}), Await, "invalid_payload"),
        Step("checkpoint:restore", json!({}), Await, "invalid_payload"),
        Step("checkpoint:ack", json!({"consumer": "", "seq": 0}), Await, "invalid_payload"),
        Step("checkpoint:verify", json!({}), Await, "reply"),
    ]
}

/// Gives the names of requests numbers, in the order in which they appear, and
/// hides what is measured.
#[derive(Default)]
struct Normal(RefCell<HashMap<String, usize>>);

impl Normal {
    fn value(&self, value: &Value) -> Value {
        match value {
            Value::Object(fields) => {
                fields.iter().filter_map(|(key, value)| self.field(key, value)).collect()
            }
            Value::Array(items) => items.iter().map(|item| self.value(item)).collect(),
            Value::String(text) => self.text(text).into(),
            other => other.clone(),
        }
    }

    fn field(&self, key: &str, value: &Value) -> Option<(String, Value)> {
        let value = match key {
            "timestamp" | "correlation_id" | "seq" | "at_ms" => return None,
            "timings" | "queued_ms" | "age_ms" | "started_ms" | "took_ms" => json!("measured"),
            "accepted_ms" | "expires_ms" | "ended_ms" | "pushed_at_ms" | "oldest_at_ms"
            | "lease_until_ms" => {
                json!("measured")
            }
            // Where others have a part in it.
            "journal" | "store" | "records" | "bytes" | "last_seq" | "origin" => json!("measured"),
            "request_id" => self.name(value.as_str().unwrap_or_default()).into(),
            _ => self.value(value),
        };
        Some((key.to_owned(), value))
    }

    fn name(&self, id: &str) -> String {
        let mut names = self.0.borrow_mut();
        let next = names.len();
        format!("request {}", names.entry(id.to_owned()).or_insert(next))
    }

    /// Names of requests inside of messages; long ones first, since one may be
    /// the beginning of another.
    fn text(&self, text: &str) -> String {
        let names = self.0.borrow();
        let mut names: Vec<_> = names.iter().filter(|(id, _)| id.len() > "nobody".len()).collect();
        names.sort_by_key(|(id, _)| std::cmp::Reverse(id.len()));
        names
            .iter()
            .fold(text.to_owned(), |text, (id, number)| text.replace(*id, &format!("request {number}")))
    }
}

/// Everything that came back.
#[derive(Default)]
struct Trace {
    answers: Vec<Value>,
    facts: Vec<Value>,
}

struct Run<'a> {
    daemon: &'a Daemon,
    plugin: &'a str,
    facts: Lines,
    normal: Normal,
    last: String,
    trace: Trace,
}

impl Run<'_> {
    fn step(&mut self, step: &Step) {
        let Step(event, data, then, expected) = step;
        let mut data = data.clone();
        if data["request_id"] == LAST {
            data["request_id"] = self.last.clone().into();
        }
        let mut request = json!({"id": 1, "event": event, "data": data});
        if let Then::Deadline(ms) = then {
            request["timeout_ms"] = (*ms).into();
        }
        let mut lines = self.daemon.lines();
        lines.send(&request);
        if *then == Then::Cancel {
            wait_until("the plugin has it", || self.daemon.plugin(self.plugin).in_flight > 0);
            lines.send(&json!({"cancel": 1}));
        }
        let last = loop {
            let answer = lines.receive();
            self.trace.answers.push(self.normal.value(&answer));
            if answer.get("chunk").is_none() {
                break answer;
            }
        };
        let ended = match (last["refusal"]["code"].as_str(), last["end"].as_bool()) {
            (Some(code), _) => code,
            (None, Some(true)) => "end",
            (None, _) if last.get("accepted").is_some() => "accepted",
            (None, _) => "reply",
        };
        assert_eq!(ended, *expected, "{request} was answered {last}");
        if let Some(name) = last["accepted"]["request_id"].as_str() {
            self.last = name.to_owned();
        }
        if let Then::Hear(awaited) = then {
            while self.hear() != *awaited {}
        }
        // What was cancelled is let go of.
        if matches!(then, Then::Cancel | Then::Deadline(_) | Then::Hear("completion:cancelled")) {
            wait_until("the plugin holds nothing", || self.daemon.plugin(self.plugin).in_flight == 0);
        }
    }

    /// The name of the next fact.
    fn hear(&mut self) -> String {
        let fact = self.facts.receive();
        self.trace.facts.push(self.normal.value(&fact));
        fact["event"].as_str().unwrap_or_default().to_owned()
    }
}

fn run(plugin: &str, steps: &[Step], placement: &str) -> Trace {
    let config =
        format!("[plugins.llama]\nenabled = false\n[plugins.{plugin}]\nplacement = \"{placement}\"\n");
    let daemon = Home::with_config(&config).start();
    daemon.ready();
    assert_eq!(daemon.plugin(plugin).placement.as_str(), placement);
    let mut facts = daemon.lines();
    facts.send(&json!({"id": "facts", "subscribe": format!("{plugin}:*")}));
    facts.send(&json!({"id": "in force", "event": "system:health"}));
    while facts.receive()["id"] != "in force" {}
    let (normal, last, trace) = Default::default();
    let mut run = Run { daemon: &daemon, plugin, facts, normal, last, trace };
    for step in steps {
        run.step(step);
    }
    // All that the plugin has said on the way here came before this.
    run.facts.send(&json!({"id": "over", "event": "system:health"}));
    loop {
        let fact = run.facts.receive();
        if fact["id"] == "over" {
            break;
        }
        run.trace.facts.push(run.normal.value(&fact));
    }
    run.trace
}

fn is_the_same_in_both_placements(plugin: &str, steps: &[Step]) {
    let here = run(plugin, steps, "in-process");
    let there = run(plugin, steps, "child");
    for (here, there) in here.answers.iter().zip(&there.answers) {
        assert_eq!(here, there);
    }
    assert_eq!(here.answers.len(), there.answers.len());
    for (here, there) in here.facts.iter().zip(&there.facts) {
        assert_eq!(here, there);
    }
    assert_eq!(here.facts.len(), there.facts.len());
}

#[test]
fn echo_behaves_the_same_in_both_placements() {
    is_the_same_in_both_placements("echo", &echo());
}

#[test]
fn completion_behaves_the_same_in_both_placements() {
    is_the_same_in_both_placements("completion", &completion());
}

#[test]
fn state_behaves_the_same_in_both_placements() {
    is_the_same_in_both_placements("state", &state());
}

#[test]
fn checkpoint_behaves_the_same_in_both_placements() {
    is_the_same_in_both_placements("checkpoint", &checkpoint());
}

#[test]
fn what_a_plugin_says_of_itself_is_the_same_in_both_placements() {
    for name in ["echo", "completion", "state", "checkpoint"] {
        let described = ["in-process", "child"].map(|placement| {
            let config =
                format!("[plugins.llama]\nenabled = false\n[plugins.{name}]\nplacement = \"{placement}\"\n");
            let daemon = Home::with_config(&config).start();
            daemon.ready();
            let discover = json!({"namespace": name, "detail": true});
            let discovery = daemon.ask("system:discover", discover).expect("a list");
            assert!(!discovery["events"].as_array().expect("a list").is_empty());
            let inspection = daemon.ask("plugin:inspect", json!({ "name": name })).expect("it is there");
            (
                discovery,
                inspection["requests"].clone(),
                inspection["emits"].clone(),
                inspection["listens"].clone(),
            )
        });
        assert_eq!(described[0], described[1]);
    }
}

#[test]
fn a_plugin_that_needs_a_process_of_its_own_gets_one_wherever_it_is_put() {
    if !library("llama").exists() {
        return;
    }
    let daemon = Home::with_config(
        "[plugins.llama]\nenabled = false\n\
         [plugins.needy]\nlibrary = \"libplugin_llama.so\"\nnamespace = \"needy\"\nplacement = \"in-process\"\n",
    )
    .start();
    daemon.ready();
    assert_eq!(daemon.plugin("needy").placement, Placement::Child);
}
