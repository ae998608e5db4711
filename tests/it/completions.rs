//! The completion service through a real daemon: hooks of other plugins, usage and
//! budgets over a crash, conversations that are remembered, and what `ksi` shows.

use ksi_protocol::system::PluginState;
use ksi_tests::{Daemon, Home, library, stdout, wait_until};
use serde_json::{Value, json};

const NO_MODEL: &str = "[plugins.llama]\nenabled = false\n";

fn hooked(placement: &str) -> Daemon {
    let config = format!(
        "{NO_MODEL}[plugins.completion.config]\nhooks_timeout_ms = 1000\n\
         [plugins.hook]\nlibrary = \"{}\"\nplacement = \"{placement}\"\nintercepts = [\"completion:*\"]\n",
        library("fixture_hook").display()
    );
    let daemon = Home::with_config(&config).start();
    daemon.ready();
    daemon
}

/// What the model has read: this one repeats it.
fn echoed(daemon: &Daemon, prompt: &str) -> Result<Value, Value> {
    daemon.ask("completion:request", json!({"prompt": prompt, "model": "mock/echo"}))
}

#[test]
fn what_hooks_make_of_a_prompt_in_their_order_is_what_the_model_receives() {
    for placement in ["in-process", "child"] {
        let daemon = hooked(placement);
        let end = echoed(&daemon, "say it").expect("an answer");
        assert_eq!(end["text"], "SAY IT, please", "{placement}");
        let end = echoed(&daemon, "a secret").expect("an answer");
        assert_eq!(end["text"], "A ***, please", "{placement}");
        let refusal = echoed(&daemon, "something forbidden").expect_err("it is forbidden");
        assert_eq!(
            (&refusal["code"], &refusal["message"]),
            (&json!("denied"), &json!("this prompt is forbidden"))
        );
        assert_eq!(daemon.ask("completion:status", json!({})).unwrap()["running"], 0);
    }
}

#[test]
fn a_silent_hook_is_skipped_where_it_fails_open_and_ends_the_request_where_it_does_not() {
    let daemon = hooked("child");
    assert_eq!(echoed(&daemon, "hang open").expect("an answer")["text"], "HANG OPEN");
    let refusal = echoed(&daemon, "hang closed").expect_err("it says nothing");
    assert_eq!(refusal["code"], "unavailable", "{refusal}");
    assert!(refusal["message"].as_str().unwrap().contains("completion:pre_llm_prompt"), "{refusal}");
}

#[test]
fn no_client_may_ask_a_hook() {
    let daemon = Home::with_config(NO_MODEL).start();
    daemon.ready();
    let refusal = daemon.ask("completion:post_llm_result", json!({})).expect_err("it is not for clients");
    assert_eq!(refusal["code"], "denied");
}

#[test]
fn usage_budgets_and_conversations_outlive_a_crash() {
    let home = Home::with_config(&format!(
        "{NO_MODEL}[plugins.completion.config.budgets.few]\ncalls = 3\nper = \"principal\"\n\
         [plugins.completion.config.budgets.talk]\ncalls = 9\nper = \"conversation\"\n"
    ));
    let daemon = home.start();
    daemon.ready();
    let say = |daemon: &Daemon, prompt: &str| {
        let ask = json!({"prompt": prompt, "model": "mock/echo", "conversation_id": "c", "remember": true});
        daemon.ask("completion:request", ask)
    };
    assert_eq!(say(&daemon, "one").expect("an answer")["remembered"], true);
    say(&daemon, "two").expect("an answer");
    assert_eq!(daemon.ask("completion:usage", json!({"by": ["model"]})).unwrap()["total"]["calls"], 2);
    let daemon = daemon.kill().start();
    daemon.ready();
    let end = say(&daemon, "three").expect("an answer");
    assert_eq!(end["context"]["history_messages"], 4);
    let refusal = say(&daemon, "four").expect_err("three are enough");
    assert_eq!((&refusal["code"], &refusal["details"]["used"]["calls"]), (&json!("denied"), &json!(3)));
    let table = stdout(&daemon.ksi(&["completion", "usage"]));
    assert!(table.contains("mock/echo") && table.contains("total"), "{table}");
    let mut usage = vec!["completion", "usage", "-o", "json"];
    usage.extend(["--agent", "bee", "--conversation", "c"]);
    let usage: Value = serde_json::from_str(&stdout(&daemon.ksi(&usage))).unwrap();
    assert_eq!(usage["total"]["calls"], 3);
    let names: Vec<_> = usage["budgets"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
    assert_eq!(names, ["few", "talk"]);
}

#[test]
fn whoever_waits_for_a_request_hears_how_it_ended_or_that_it_has_not() {
    let daemon = Home::with_config(NO_MODEL).start();
    daemon.ready();
    let accepted = |model: &str| {
        let mut lines = daemon.lines();
        lines.send(&json!({"event": "completion:async", "data": {"prompt": "a b", "model": model}}));
        lines.receive()["accepted"]["request_id"].clone()
    };
    let done =
        daemon.ask("completion:wait", json!({"request_id": accepted("mock/slow:20")})).expect("it ends");
    assert_eq!((&done["state"], &done["result"]["text"]), (&json!("done"), &json!("a b")), "{done}");
    let brief = json!({"request_id": accepted("mock/hang"), "timeout_ms": 50});
    let open = daemon.ask("completion:wait", brief.clone()).expect("a state");
    assert!(["queued", "running"].contains(&open["state"].as_str().unwrap()), "{open}");
    daemon.ask("completion:cancel", json!({"request_id": brief["request_id"]})).expect("it is open");
    assert_eq!(daemon.ask("completion:wait", brief).expect("a state")["state"], "cancelled");
}

#[test]
fn what_shall_be_done_later_is_accepted_also_while_the_plugin_that_will_do_it_cannot_start() {
    let config = format!("{NO_MODEL}[plugins.completion]\nlibrary = \"/nowhere/libplugin_completion.so\"\n");
    let daemon = Home::with_config(&config).start();
    wait_until("work is kept", || daemon.plugin("checkpoint").state == PluginState::Ready);
    assert_ne!(daemon.plugin("completion").state, PluginState::Ready);
    let mut lines = daemon.lines();
    lines.send(&json!({"event": "completion:async", "data": {"prompt": "a", "model": "mock/echo"}}));
    let answer = lines.receive();
    assert!(answer["accepted"]["request_id"].is_string(), "{answer}");
}

#[test]
fn whoever_has_little_time_to_wait_hears_in_time_that_it_has_not_ended() {
    let daemon = Home::with_config(NO_MODEL).start();
    daemon.ready();
    let hang = json!({"prompt": "x", "model": "mock/hang"});
    let mut live = daemon.lines();
    live.send(&json!({"event": "completion:request", "data": hang}));
    let mut live_id = Value::Null;
    wait_until("the request is open", || {
        live_id = daemon.ask("completion:status", json!({})).unwrap()["requests"][0]["request_id"].clone();
        live_id.is_string()
    });
    let mut durable = daemon.lines();
    durable.send(&json!({"event": "completion:async", "data": hang}));
    let durable_id = durable.receive()["accepted"]["request_id"].clone();
    for id in [live_id, durable_id] {
        let mut lines = daemon.lines();
        let data = json!({ "request_id": id });
        lines.send(&json!({"event": "completion:wait", "data": data, "timeout_ms": 500}));
        let answer = lines.receive();
        assert_eq!(answer["data"]["request_id"], id, "{answer}");
    }
}

#[test]
fn a_plugin_that_is_not_enabled_is_listed_with_what_to_do_and_a_fallback_answers_for_it() {
    let daemon = Home::with_config(NO_MODEL).start();
    daemon.ready();
    let providers = daemon.ask("completion:providers", json!({})).unwrap();
    let llama = &providers["providers"][0];
    assert_eq!(llama["name"], "llama");
    assert!(llama["hint"].as_str().unwrap().contains("ksi plugin load llama"), "{llama}");
    let end = daemon
        .ask("completion:request", json!({"prompt": "hi", "model": "llama/x", "fallbacks": ["mock/echo"]}))
        .expect("the fallback answers");
    assert_eq!(
        (&end["text"], &end["why"]),
        (&json!("hi"), &json!("fallback: llama/x: provider `llama` is not loaded"))
    );
    let route =
        stdout(&daemon.ksi(&["completion", "route", "hi", "-m", "llama/x", "--fallback", "mock/echo"]));
    assert!(route.contains("mock/echo") && route.contains("chosen"), "{route}");
}

#[test]
fn a_schema_of_ask_prints_the_json_or_says_that_it_does_not_fit() {
    let daemon = Home::with_config(NO_MODEL).start();
    daemon.ready();
    let file = daemon.home.paths().state_dir.join("schema.json");
    std::fs::write(&file, r#"{"type":"object","required":["n"]}"#).unwrap();
    let file = file.display().to_string();
    let output = daemon.ksi(&["ask", "-m", "mock/fixed:{\"n\": 1}", "--schema", &file, "a number"]);
    assert_eq!(stdout(&output), "{\n  \"n\": 1\n}\n");
    let output = daemon.ksi(&["ask", "-m", "mock/fixed:none", "--schema", &file, "a number"]);
    assert!(!output.status.success());
    let said = ksi_tests::stderr(&output);
    assert!(said.contains("not the JSON that was asked for"), "{said}");
}
