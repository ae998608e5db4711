//! A process for each model: what kills one touches no other, and none is left
//! behind.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use ksi_protocol::system::{PluginList, PluginState, PluginStatus};
use ksi_tests::{Daemon, Home, Lines, wait_until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use super::{LONG, TINY, add_model, collect, endless_model, find, model};

/// Time in which callers must hear that the process of their model died.
const HEARD: Duration = Duration::from_secs(1);

/// A daemon with these models, of which each never ends its turn.
fn talkers(names: &[&str], more: &str) -> Daemon {
    let home = Home::with_config(&format!("{LONG}{more}"));
    for name in names {
        add_model(&home.paths().models_dir(), name, &endless_model());
    }
    let daemon = home.start();
    daemon.ready();
    daemon
}

/// The processes of models.
fn workers(daemon: &Daemon) -> Vec<PluginStatus> {
    let list = daemon.ask("plugin:list", json!({})).expect("a list");
    let PluginList { mut plugins } = serde_json::from_value(list).expect("plugins");
    plugins.retain(|plugin| plugin.name.starts_with("llama@"));
    plugins
}

fn worker(daemon: &Daemon, model: &str) -> Option<PluginStatus> {
    workers(daemon).into_iter().find(|plugin| plugin.name == format!("llama@{model}"))
}

fn pid_of(daemon: &Daemon, model: &str) -> u32 {
    worker(daemon, model).and_then(|plugin| plugin.pid).unwrap_or_else(|| panic!("{model} has a process"))
}

fn is_gone(pid: u32) -> bool {
    !Path::new("/proc").join(pid.to_string()).exists()
}

fn murder(pid: u32) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
}

fn load(daemon: &Daemon, model: &str) -> Result<Value, Value> {
    daemon.ask("llama:load", json!({ "model": model }))
}

fn say(daemon: &Daemon, model: &str) -> Result<Value, Value> {
    let ask = json!({"model": model, "prompt": "Hello", "temperature": 0, "max_tokens": 3});
    daemon.ask("llama:generate", ask)
}

/// Asks a model for a long text, and waits until it speaks.
fn talk(daemon: &Daemon, model: &str) -> Lines {
    let mut lines = daemon.lines();
    let ask = json!({"model": model, "prompt": "Tell me a story", "max_tokens": 16_000, "seed": 3});
    lines.send(&json!({"event": "llama:generate", "data": ask, "id": 1}));
    hear(&mut lines);
    lines
}

fn hear(lines: &mut Lines) {
    let part = lines.receive();
    assert!(part["chunk"]["text"].is_string(), "{part}");
}

/// The built-in model with more entries in its header than it has.
fn with_entries(entries: &[(&str, u32)]) -> Vec<u8> {
    let mut added = Vec::new();
    let key = |name: &str, kind: u32| {
        let mut bytes = (name.len() as u64).to_le_bytes().to_vec();
        bytes.extend(name.as_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes
    };
    for (name, value) in entries {
        added.extend(key(name, 4));
        added.extend(value.to_le_bytes());
    }
    // A text that fills up to where tensors may begin.
    added.extend(key("test.filler", 8));
    let filler = 32 - (added.len() + 8) % 32;
    added.extend((filler as u64).to_le_bytes());
    added.extend(vec![b'x'; filler]);
    let mut bytes = TINY.to_vec();
    let count = u64::from_le_bytes(bytes[16..24].try_into().unwrap()) + entries.len() as u64 + 1;
    bytes[16..24].copy_from_slice(&count.to_le_bytes());
    bytes.splice(24..24, added);
    bytes
}

/// A file with a sound header by which llama.cpp ends its process while it loads.
fn deadly() -> Vec<u8> {
    with_entries(&[("llama.expert_used_count", 2)])
}

/// One that is read without a word, and ends its process with the first token.
fn treacherous() -> Vec<u8> {
    let mut bytes = TINY.to_vec();
    let key = b"layer_norm_rms_epsilon";
    let at = find(&bytes, key) + key.len() + 4;
    bytes[at..at + 4].copy_from_slice(&(-1.0_f32).to_le_bytes());
    bytes
}

#[test]
fn each_loaded_model_has_a_process_of_its_own_and_one_that_makes_room_ends() {
    let home = Home::new();
    for name in ["a", "b", "My Model 2"] {
        add_model(&home.paths().models_dir(), name, TINY);
    }
    let daemon = home.start();
    daemon.ready();
    assert!(workers(&daemon).is_empty(), "nothing is loaded before somebody asks");
    for name in ["a", "b"] {
        assert_eq!(load(&daemon, name).unwrap()["model"], name);
    }
    let (a, b, llama) = (pid_of(&daemon, "a"), pid_of(&daemon, "b"), daemon.plugin("llama").pid);
    assert!(a != b && Some(a) != llama && Some(b) != llama);
    load(&daemon, "My Model 2").unwrap();
    assert!(is_gone(a), "the one that was used longest ago has made room");
    let names: Vec<String> = workers(&daemon).into_iter().map(|plugin| plugin.name).collect();
    assert!(names.len() == 2 && names.contains(&"llama@b".into()), "{names:?}");
    assert!(names.iter().any(|name| name.starts_with("llama@my-model-2_")), "{names:?}");
    assert_eq!(daemon.ask("llama:unload", json!({"model": "b"})).unwrap()["unloaded"], true);
    assert!(is_gone(b));
    let metrics = daemon.ask("llama:metrics", json!({})).unwrap();
    assert_eq!((&metrics["loads"], &metrics["evictions"]), (&json!(3), &json!(1)), "{metrics}");
    assert_eq!(metrics["models"].as_array().unwrap().len(), 1, "{metrics}");
}

#[test]
fn a_load_with_other_settings_takes_the_place_of_a_model_unless_it_is_refused() {
    let daemon = talkers(&["a"], "");
    let load = |settings: Value| daemon.ask("llama:load", json!({"model": "a", "settings": settings}));
    let ours = load(json!({"slots": 1})).unwrap()["settings"].clone();
    let pid = pid_of(&daemon, "a");
    for refused in [json!({"lora": ["nowhere"]}), json!({"context": 1 << 30})] {
        load(refused).unwrap_err();
        assert_eq!(pid_of(&daemon, "a"), pid);
    }
    assert_eq!(load(json!({})).unwrap()["settings"], ours);
    assert_eq!(load(json!({"slots": 2})).unwrap()["slots"], 2);
    assert_ne!(pid_of(&daemon, "a"), pid);
    assert!(is_gone(pid));
    assert_eq!(daemon.ask("llama:metrics", json!({})).unwrap()["evictions"], 0);
}

#[test]
fn a_model_whose_process_is_killed_comes_back_and_the_other_goes_on_talking() {
    let daemon = talkers(&["one", "two"], "");
    let (mut one, mut two) = (talk(&daemon, "one"), talk(&daemon, "two"));
    let (lost, other, llama) = (pid_of(&daemon, "one"), pid_of(&daemon, "two"), daemon.plugin("llama").pid);
    murder(lost);
    let killed = Instant::now();
    let refusal = collect(&mut one).1.unwrap_err();
    assert!(killed.elapsed() < HEARD, "{:?}", killed.elapsed());
    assert_eq!((&refusal["code"], &refusal["retryable"]), (&json!("plugin_restarted"), &json!(true)));
    let message = refusal["message"].as_str().unwrap();
    assert!(message.contains("`one`") && message.contains("SIGKILL"), "{refusal}");
    assert_eq!(refusal["details"]["model"], "one");
    (0..50).for_each(|_| hear(&mut two));
    // Asked at once it waits, and is answered.
    assert_eq!(say(&daemon, "one").unwrap()["model"], "one");
    wait_until("it is loaded", || model(&daemon, "one")["loaded"] == true);
    let now = worker(&daemon, "one").unwrap();
    assert_eq!((now.restarts, now.pid == Some(lost)), (1, false));
    assert_eq!((pid_of(&daemon, "two"), daemon.plugin("llama").pid), (other, llama));
    hear(&mut two);
}

#[test]
fn a_model_whose_process_is_killed_is_loaded_again_before_anybody_asks() {
    let daemon = talkers(&["one"], "");
    say(&daemon, "one").unwrap();
    murder(pid_of(&daemon, "one"));
    wait_until("it was killed", || worker(&daemon, "one").is_some_and(|plugin| plugin.restarts == 1));
    wait_until("it is loaded", || model(&daemon, "one")["loaded"] == true);
    let end = say(&daemon, "one").unwrap();
    assert!(end["timings"]["load_ms"].is_null(), "{end}");
    assert_eq!(daemon.ask("llama:metrics", json!({})).unwrap()["loads"], 2);
}

#[test]
fn a_file_that_kills_the_process_that_loads_it_is_refused_and_at_last_quarantined() {
    let daemon = talkers(&["one"], "");
    let models = daemon.home.paths().models_dir();
    let mut one = talk(&daemon, "one");
    for (name, file) in [("deadly", deadly()), ("treacherous", treacherous())] {
        add_model(&models, name, &file);
        for time in 1..=4 {
            let refusal = load(&daemon, name).unwrap_err();
            assert_eq!((&refusal["code"], &refusal["retryable"]), (&json!("unavailable"), &json!(false)));
            let message = refusal["message"].as_str().unwrap();
            assert!(message.contains(&format!("`{name}`")) && message.contains("SIGABRT"), "{refusal}");
            assert_eq!(message.contains("quarantined"), time >= 3, "{time}: {refusal}");
            assert!(worker(&daemon, name).is_none(), "nothing is left of it");
        }
        let error = model(&daemon, name)["error"].clone();
        assert!(error.as_str().is_some_and(|error| error.contains("GGML_ASSERT")), "{error}");
        hear(&mut one);
        assert_eq!(daemon.plugin("llama").restarts, 0);
        // Another file under its name is another matter.
        add_model(&models, name, TINY);
        assert!(model(&daemon, name)["error"].is_null());
        say(&daemon, name).unwrap();
    }
}

#[test]
fn a_model_whose_process_dies_again_and_again_is_quarantined_and_the_others_go_on() {
    let daemon = talkers(&["one"], "[plugins.llama.restart]\nfailures_max = 3\nbackoff_min = \"10ms\"\n");
    add_model(&daemon.home.paths().models_dir(), "bad", TINY);
    let mut one = talk(&daemon, "one");
    let mut refusal = json!({});
    wait_until("it is quarantined", || {
        let up = worker(&daemon, "bad").filter(|worker| worker.state == PluginState::Ready);
        if let Some(pid) = up.and_then(|worker| worker.pid) {
            murder(pid);
        }
        refusal = say(&daemon, "bad").err().unwrap_or_default();
        refusal["code"] == "unavailable"
    });
    assert_eq!(refusal["retryable"], false, "{refusal}");
    assert!(refusal["message"].as_str().unwrap().contains("quarantined"), "{refusal}");
    let listed = model(&daemon, "bad");
    assert!(listed["error"].as_str().is_some_and(|why| why.contains("quarantined")), "{listed}");
    assert_eq!(listed["loaded"], false);
    assert_eq!(worker(&daemon, "bad").unwrap().state, PluginState::Held);
    hear(&mut one);
    say(&daemon, "ksi-tiny").unwrap();
    // An operator may have it tried anew.
    daemon.ask("plugin:restart", json!({"name": "llama@bad"})).unwrap();
    wait_until("it is loaded", || model(&daemon, "bad")["loaded"] == true);
    assert_eq!(daemon.ask("llama:unload", json!({"model": "bad"})).unwrap()["unloaded"], true);
    assert!(worker(&daemon, "bad").is_none());
}

#[test]
fn a_client_that_goes_away_frees_the_place_in_the_process_of_the_model() {
    let daemon = talkers(&["one"], "slots = 1\n");
    let held = |name: &str| daemon.plugin(name).in_flight;
    let first = talk(&daemon, "one");
    assert_eq!((held("llama"), held("llama@one")), (1, 1));
    drop(first);
    wait_until("both let it go", || held("llama") == 0 && held("llama@one") == 0);
    // The only slot is free.
    let began = Instant::now();
    say(&daemon, "one").unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn a_load_that_nobody_waits_for_any_more_leaves_no_process() {
    let daemon = talkers(&["one"], "");
    let mut lines = daemon.lines();
    lines.send(&json!({"event": "llama:load", "data": {"model": "one"}, "id": 1}));
    lines.send(&json!({"cancel": 1}));
    // Either it was too late, and the model is there, or nothing is.
    let loaded = collect_end(&mut lines).is_ok();
    wait_until("that is so", || workers(&daemon).len() == usize::from(loaded));
    say(&daemon, "one").unwrap();
}

#[test]
fn a_reload_waits_for_no_process_that_takes_its_time_to_end() {
    let daemon = talkers(&["a"], "\n[plugins.llama.restart]\nstop_timeout = \"1m\"\n");
    load(&daemon, "a").expect("it is loaded");
    let pid = Pid::from_raw(i32::try_from(pid_of(&daemon, "a")).unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    let mut unloading = daemon.lines();
    unloading.send(&json!({"event": "llama:unload", "data": {"model": "a"}}));
    let is_ending = || worker(&daemon, "a").is_some_and(|one| one.state == PluginState::Draining);
    wait_until("its process is to end", is_ending);
    daemon.ask("config:reload", json!({})).expect("it is reloaded");
    assert!(is_ending(), "the reload did not wait for it");
    kill(pid, Signal::SIGCONT).unwrap();
    let answer = unloading.receive();
    assert!(answer["data"].is_object(), "{answer}");
    load(&daemon, "a").expect("its name is free again");
}

fn collect_end(lines: &mut Lines) -> Result<Value, Value> {
    loop {
        let mut line = lines.receive();
        if line.get("chunk").is_none() {
            return if line.get("refusal").is_some() {
                Err(line["refusal"].take())
            } else {
                Ok(line["data"].take())
            };
        }
    }
}

#[test]
fn processes_of_models_end_with_the_plugin_and_with_the_daemon() {
    let mut daemon = talkers(&["one", "two"], "");
    let mut one = talk(&daemon, "one");
    let pids = |daemon: &Daemon| [pid_of(daemon, "one"), pid_of(daemon, "two")];
    load(&daemon, "two").unwrap();
    let before = pids(&daemon);
    murder(daemon.plugin("llama").pid.unwrap());
    assert_eq!(collect(&mut one).1.unwrap_err()["code"], "plugin_restarted");
    wait_until("they are gone", || before.iter().all(|pid| is_gone(*pid)));
    wait_until("the plugin is back", || daemon.plugin("llama").state == PluginState::Ready);
    say(&daemon, "one").unwrap();
    load(&daemon, "two").unwrap();
    let before = pids(&daemon);
    daemon.ask("plugin:restart", json!({"name": "llama"})).unwrap();
    wait_until("they are gone", || before.iter().all(|pid| is_gone(*pid)));
    say(&daemon, "one").unwrap();
    load(&daemon, "two").unwrap();
    let before = pids(&daemon);
    let stopped = daemon.ksi(&["stop"]);
    assert!(stopped.status.success(), "{}", ksi_tests::stderr(&stopped));
    assert!(daemon.ended().success());
    assert!(before.iter().all(|pid| is_gone(*pid)), "{before:?}");
}

#[test]
fn nobody_but_the_plugin_asks_its_instances_or_manages_them() {
    let daemon = talkers(&[], "");
    say(&daemon, "ksi-tiny").unwrap();
    let pid = pid_of(&daemon, "ksi-tiny");
    for (event, data) in [
        ("llama@ksi-tiny:generate", json!({"prompt": "Hello"})),
        ("llama@nothing:generate", json!({})),
        ("plugin:instance:list", json!({})),
        ("plugin:instance:stop", json!({"key": "ksi-tiny"})),
        ("plugin:instance:start", json!({"key": "mine"})),
    ] {
        let refusal = daemon.ask(event, data).unwrap_err();
        assert_eq!(refusal["code"], "denied", "{event}: {refusal}");
    }
    // Completions ask `*:generate`, and that is none of an instance.
    let ask = json!({"prompt": "Hello", "model": "llama@ksi-tiny/ksi-tiny"});
    daemon.ask("completion:request", ask).unwrap_err();
    let events = daemon.ask("system:discover", json!({})).unwrap().to_string();
    assert!(events.contains("llama:generate") && !events.contains('@'), "{events}");
    assert_eq!(pid_of(&daemon, "ksi-tiny"), pid);
    let probed = daemon.ask("plugin:probe", json!({"name": "llama@ksi-tiny"})).unwrap();
    let host = daemon.ask("plugin:probe", json!({"name": "llama"})).unwrap();
    assert_eq!(probed["level"], host["level"], "it has the sandbox of its plugin");
}
