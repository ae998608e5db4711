//! The plugin where models have processes of their own, which the test plays:
//! what it asks of them and of the daemon, and what it says to its callers.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use ksi_sdk::prelude::{Code, Refusal};
use ksi_sdk::testing::{Answer, Asked, Call, FakeHost};
use plugin_llama::Llama;
use serde_json::{Value, json};

static TINY: &[u8] = include_bytes!("../model/ksi-tiny.gguf");

/// A host in whose models directory there are these.
fn host(dir: &Path, models: &[&str], more: Value) -> FakeHost<Llama> {
    for name in models {
        std::fs::write(dir.join(format!("{name}.gguf")), TINY).expect("a model can be written");
    }
    let mut config = json!({"models_dir": dir, "instances": true, "slots": 2, "threads": 1});
    for (key, value) in more.as_object().expect("an object") {
        config[key] = value.clone();
    }
    let host = FakeHost::start(config).expect("the plugin starts");
    host.script("plugin:instance:start", |asked| Ok(status(asked, "ready")));
    host
}

fn status(asked: &Asked, state: &str) -> Value {
    let name = format!("llama@{}", asked.data["key"].as_str().expect("a key"));
    json!({"name": name, "state": state, "placement": "child", "sandbox": "L1", "generation": 1, "restarts": 0,
        "in_flight": 0, "handled": 0, "library": "x", "last_error": "it was killed by SIGABRT; it said: why"})
}

fn report(name: &str) -> Value {
    json!({"model": name, "load_ms": 1, "context": 1024, "slots": 2, "threads": 1, "gpu_layers": 0,
        "memory_bytes": 1, "template": "model", "toy": true, "notes": ["of the process"]})
}

fn generate(model: &str) -> Value {
    json!({"model": model, "prompt": "Hello"})
}

fn generated(model: &str) -> Value {
    json!({"model": model, "text": "hi", "stop_reason": "stop", "toy": true,
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        "timings": {"prompt_ms": 1.0, "generate_ms": 1.0, "first_token_ms": 1.0, "prompt_per_second": 1.0,
            "generate_per_second": 1.0}})
}

/// Has a model loaded.
fn load(host: &FakeHost<Llama>, name: &str) {
    let call = host.open("llama:load", json!({"model": name}));
    let asked = host.expect(&format!("llama@{name}:load"));
    host.end(&asked, report(name));
    assert!(matches!(host.next(&call), Answer::End(_)));
}

fn refusal(host: &FakeHost<Llama>, call: &Call) -> Refusal {
    match host.next(call) {
        Answer::Refusal(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

fn loaded(host: &FakeHost<Llama>) -> Vec<String> {
    let list = host.request("llama:models", json!({})).expect("a list");
    let models = list["models"].as_array().expect("a list").iter().filter(|model| model["loaded"] == true);
    models.filter_map(|model| model["name"].as_str().map(str::to_owned)).collect()
}

#[test]
fn a_process_is_told_its_model_and_how_that_runs_and_its_progress_is_passed_on() {
    let dir = tempfile::tempdir().unwrap();
    let host =
        host(dir.path(), &["a"], json!({"models": {"a": {"context": 512}}, "preload": [], "max_loaded": 3}));
    let call = host.open("llama:load", json!({"model": "a"}));
    let asked = host.expect("llama@a:load");
    host.chunk(&asked, json!({"progress": 0.5}));
    assert_eq!(host.next(&call), Answer::Chunk(json!({"progress": 0.5})));
    host.end(&asked, report("a"));
    let Answer::End(told) = host.next(&call) else { panic!("an end") };
    assert_eq!((&told["model"], &told["notes"]), (&json!("a"), &json!(["of the process"])));
    assert_eq!(loaded(&host), ["a"]);
    let again = host.request("llama:load", json!({"model": "a"})).unwrap();
    assert_eq!(again["load_ms"], 0);
}

#[test]
fn a_process_has_the_settings_of_its_load_for_as_long_as_it_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), &["a"], json!({"models": {"a": {"context": 512}}}));
    let starts = Rc::new(RefCell::new(Vec::new()));
    let seen = starts.clone();
    host.script("plugin:instance:start", move |asked| {
        seen.borrow_mut().push(asked.data["config"].clone());
        Ok(status(asked, "ready"))
    });
    host.script("plugin:instance:stop", |asked| Ok(status(asked, "stopped")));
    let settings = json!({"context": 128, "cache_type_k": "q8_0"});
    let call = host.open("llama:load", json!({"model": "a", "settings": settings}));
    host.end(&host.expect("llama@a:load"), report("a"));
    let Answer::End(told) = host.next(&call) else { panic!("an end") };
    let named = |name: &str| {
        let settings = told["settings"].as_array().unwrap();
        settings.iter().find(|setting| setting["name"] == name).unwrap().clone()
    };
    assert_eq!(named("context"), json!({"name": "context", "value": 128, "from": "request"}));
    assert_eq!(named("slots"), json!({"name": "slots", "value": 2, "from": "configuration"}));
    // In use it stays, whoever wants it otherwise.
    let talk = host.open("llama:generate", generate("a"));
    let asked = host.expect("llama@a:generate");
    let other = json!({"model": "a", "settings": {"cache_type_k": "f16"}});
    let busy = host.open("llama:load", other.clone());
    assert_eq!(refusal(&host, &busy).code, Code::Busy);
    // One that has died comes back with them.
    let absent = Refusal::new(Code::Unavailable, "being restarted").details(json!({"absent": "a"}));
    host.refuse(&asked, absent);
    host.end(&host.expect("llama@a:generate"), generated("a"));
    assert!(matches!(host.next(&talk), Answer::End(_)));
    let again = host.open("llama:load", other);
    host.end(&host.expect("llama@a:load"), report("a"));
    assert!(matches!(host.next(&again), Answer::End(_)));
    let starts = starts.borrow();
    assert_eq!(starts.len(), 3);
    for (start, context, cache) in [(0, 128, "q8_0"), (1, 128, "q8_0"), (2, 512, "f16")] {
        let start = &starts[start];
        assert_eq!((&start["context"], &start["cache_type_k"]), (&json!(context), &json!(cache)), "{start}");
    }
}

#[test]
fn whoever_listens_hears_how_far_a_load_is_at_most_ten_times_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), &["a", "b"], json!({}));
    let told = || {
        let facts = host.emitted().into_iter();
        facts.filter(|(event, _)| event == "llama:progress").map(|(_, fact)| fact).collect::<Vec<_>>()
    };
    let tick = || host.advance(Duration::from_millis(100));
    // Nobody has asked for the load itself.
    let call = host.open("llama:generate", generate("a"));
    let asked = host.expect("llama@a:load");
    tick();
    for part in [0.125, 0.25, 0.5] {
        host.chunk(&asked, json!({ "progress": part }));
    }
    assert_eq!(told(), [json!({"model": "a", "progress": 0.0})]);
    tick();
    tick();
    assert_eq!(told(), [json!({"model": "a", "progress": 0.5})], "the last, and once");
    host.end(&asked, report("a"));
    host.end(&host.expect("llama@a:generate"), generated("a"));
    assert!(matches!(host.next(&call), Answer::End(_)));
    assert_eq!(told(), [json!({"model": "a", "progress": 1.0})]);
    host.script("plugin:instance:stop", |asked| Ok(status(asked, "stopped")));
    let call = host.open("llama:load", json!({"model": "b"}));
    host.refuse(&host.expect("llama@b:load"), Refusal::new(Code::Unavailable, "no memory"));
    assert_eq!(refusal(&host, &call).message, "no memory");
    assert_eq!(told(), [json!({"model": "b", "progress": 0.0, "error": "no memory"})]);
    let call = host.open("llama:load", json!({"model": "b"}));
    host.expect("llama@b:load");
    host.cancel(&call);
    let given_up = told();
    assert!(given_up.last().is_some_and(|fact| fact["error"].is_string()), "{given_up:?}");
}

#[test]
fn what_a_process_says_is_passed_on_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), &["a"], json!({}));
    load(&host, "a");
    let mut ask = generate("a");
    ask["seed"] = json!(7);
    let call = host.open("llama:generate", ask.clone());
    let asked = host.expect("llama@a:generate");
    assert_eq!(asked.data, ask);
    assert!(asked.meta.parent.is_some(), "it ends with the request that it is for");
    host.chunk(&asked, json!({"text": "hi", "unheard": "of"}));
    assert_eq!(host.next(&call), Answer::Chunk(json!({"text": "hi", "unheard": "of"})));
    let end = json!({"any": ["thing", 1.5]});
    host.end(&asked, end.clone());
    assert_eq!(host.next(&call), Answer::End(end));
}

#[test]
fn whoever_is_answered_by_a_model_that_was_loaded_for_it_hears_how_long_that_took() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), &["a"], json!({}));
    let call = host.open("llama:generate", generate("a"));
    host.end(&host.expect("llama@a:load"), report("a"));
    host.end(&host.expect("llama@a:generate"), generated("a"));
    let Answer::End(end) = host.next(&call) else { panic!("an end") };
    assert!(end["timings"]["load_ms"].is_number(), "{end}");
}

#[test]
fn who_gives_up_gives_up_there_and_the_model_may_go() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), &["a", "b"], json!({"max_loaded": 1}));
    load(&host, "a");
    let call = host.open("llama:generate", generate("a"));
    let asked = host.expect("llama@a:generate");
    let busy = host.open("llama:load", json!({"model": "b"}));
    assert_eq!(refusal(&host, &busy).code, Code::Busy);
    host.cancel(&call);
    assert!(host.has_cancelled(&asked));
    let next = host.open("llama:load", json!({"model": "b"}));
    let stopped = host.expect("plugin:instance:stop");
    assert_eq!(stopped.data["key"], "a");
    host.reply(&stopped, status(&stopped, "stopped"));
    host.end(&host.expect("llama@b:load"), report("b"));
    assert!(matches!(host.next(&next), Answer::End(_)));
    assert_eq!(loaded(&host), ["b"]);
}

#[test]
fn a_load_that_is_given_up_ends_its_process_before_the_next_begins() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), &["a", "b"], json!({}));
    let call = host.open("llama:load", json!({"model": "a"}));
    let asked = host.expect("llama@a:load");
    host.cancel(&call);
    assert!(host.has_cancelled(&asked));
    let next = host.open("llama:load", json!({"model": "b"}));
    let stopped = host.expect("plugin:instance:stop");
    assert_eq!(stopped.data["key"], "a");
    assert!(stopped.meta.parent.is_none(), "whoever asked has gone");
    assert!(!host.has_asked(), "b waits for that");
    host.reply(&stopped, status(&stopped, "stopped"));
    host.end(&host.expect("llama@b:load"), report("b"));
    assert!(matches!(host.next(&next), Answer::End(_)));
    assert_eq!(loaded(&host), ["b"]);
}

#[test]
fn where_cards_have_no_room_an_idle_model_goes_and_then_it_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), &["a", "b"], json!({}));
    let stopped = Rc::new(RefCell::new(Vec::new()));
    let seen = stopped.clone();
    host.script("plugin:instance:stop", move |asked| {
        seen.borrow_mut().push(asked.data["key"].clone());
        Ok(status(asked, "stopped"))
    });
    let full = || {
        let details = json!({"short": "room_on_cards", "needed_bytes": 2_u64 << 30, "available_bytes": 1});
        Refusal::new(Code::Unavailable, "1 MB are free on the graphics cards").details(details)
    };
    let on_card = |name: &str| {
        let mut report = report(name);
        report["card_bytes"] = json!(2_u64 << 30);
        report
    };
    let call = host.open("llama:load", json!({"model": "a"}));
    host.end(&host.expect("llama@a:load"), on_card("a"));
    assert!(matches!(host.next(&call), Answer::End(_)));
    let call = host.open("llama:load", json!({"model": "b"}));
    host.refuse(&host.expect("llama@b:load"), full());
    host.end(&host.expect("llama@b:load"), report("b"));
    assert!(matches!(host.next(&call), Answer::End(_)));
    assert_eq!(*stopped.borrow(), ["b", "a"]);
    assert_eq!(loaded(&host), ["b"]);
    // Who has nothing there does not go, nor does one in use: it is refused.
    let call = host.open("llama:load", json!({"model": "a"}));
    host.refuse(&host.expect("llama@a:load"), full());
    assert_eq!(refusal(&host, &call), full());
    assert_eq!(loaded(&host), ["b"]);
    host.request("llama:unload", json!({"model": "b"})).unwrap();
    let call = host.open("llama:load", json!({"model": "b"}));
    host.end(&host.expect("llama@b:load"), on_card("b"));
    assert!(matches!(host.next(&call), Answer::End(_)));
    let talk = host.open("llama:generate", generate("b"));
    host.expect("llama@b:generate");
    let call = host.open("llama:load", json!({"model": "a"}));
    host.refuse(&host.expect("llama@a:load"), full());
    assert_eq!(refusal(&host, &call), full());
    assert_eq!(loaded(&host), ["b"]);
    host.cancel(&talk);
}

#[test]
fn a_file_that_kills_its_process_is_quarantined_until_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), &["a"], json!({}));
    host.script("plugin:instance:stop", |asked| Ok(status(asked, "stopped")));
    let gone = || Refusal::new(Code::PluginRestarted, "plugin llama@a is gone");
    for time in 1..=4 {
        let call = host.open("llama:load", json!({"model": "a"}));
        if time < 4 {
            host.refuse(&host.expect("llama@a:load"), gone());
        }
        let refusal = refusal(&host, &call);
        assert_eq!((refusal.code, refusal.retryable), (Code::Unavailable, false));
        assert!(refusal.message.contains("it said: why"), "{refusal}");
        assert_eq!(refusal.message.contains("quarantined"), time >= 3, "{refusal}");
    }
    let listed = host.request("llama:models", json!({})).unwrap()["models"][1].clone();
    assert!(listed["error"].as_str().unwrap().contains("quarantined"), "{listed}");
    assert_eq!(listed["architecture"], "llama", "the file is sound for all that is known");
    let mut other = TINY.to_vec();
    other.push(0);
    std::fs::write(dir.path().join("a.gguf"), other).unwrap();
    load(&host, "a");
}

#[test]
fn who_asks_while_a_process_comes_back_waits_for_it_and_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), &["a"], json!({}));
    load(&host, "a");
    let call = host.open("llama:generate", generate("a"));
    let absent = Refusal::new(Code::Unavailable, "being restarted").details(json!({"absent": "a"}));
    for _ in 0..3 {
        host.refuse(&host.expect("llama@a:generate"), absent.clone());
    }
    host.end(&host.expect("llama@a:generate"), generated("a"));
    assert!(matches!(host.next(&call), Answer::End(_)));
    // One that is there and does not know what it is asked is asked once more.
    let unknown = Refusal::new(Code::UnknownEvent, "no plugin knows it");
    let call = host.open("llama:generate", generate("a"));
    for _ in 0..2 {
        host.refuse(&host.expect("llama@a:generate"), unknown.clone());
    }
    assert_eq!(refusal(&host, &call).code, Code::UnknownEvent);
}

#[test]
fn a_process_that_comes_back_is_told_to_load_and_one_that_is_held_is_not_asked() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), &["a"], json!({}));
    load(&host, "a");
    let call = host.open("llama:generate", generate("a"));
    let asked = host.expect("llama@a:generate");
    let gone = Refusal::new(Code::PluginRestarted, "plugin llama@a is gone: it was killed by SIGKILL");
    host.refuse(&asked, gone);
    let refused = refusal(&host, &call);
    assert_eq!((refused.code, refused.retryable), (Code::PluginRestarted, true));
    assert!(refused.message.contains("`a`") && refused.message.contains("SIGKILL"), "{refused}");
    host.emit("plugin:died", json!({"name": "llama@a", "reason": "it was killed"}));
    host.emit("plugin:ready", json!({"name": "llama@other"}));
    assert!(loaded(&host).is_empty());
    host.emit("plugin:ready", json!({"name": "llama@a"}));
    host.end(&host.expect("llama@a:load"), report("a"));
    assert_eq!(loaded(&host), ["a"]);
    host.emit("plugin:held", json!({"name": "llama@a", "reason": "it dies"}));
    let refused = host.request("llama:generate", generate("a")).unwrap_err();
    assert_eq!((refused.code, refused.retryable), (Code::Unavailable, false));
    assert!(refused.message.contains("it dies") && refused.hint.contains("llama@a"), "{refused}");
    assert!(loaded(&host).is_empty());
}
