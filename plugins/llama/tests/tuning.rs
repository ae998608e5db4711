//! How models run as they are told to, and what is told of it.

#[path = "greedy/adapter.rs"]
mod adapter;

use ksi_sdk::testing::FakeHost;
use plugin_llama::Llama;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

type Host = FakeHost<Llama>;

fn host(config: Value) -> Host {
    FakeHost::start(config).expect("the plugin starts")
}

fn ask() -> Value {
    json!({"messages": [{"role": "user", "content": "What is KSI?"}], "temperature": 0.0})
}

fn text(host: &Host) -> String {
    let end = host.request("llama:generate", ask()).expect("an answer");
    end["text"].as_str().expect("a text").to_owned()
}

#[test]
fn every_setting_is_taken_and_the_model_still_speaks() {
    let expected = text(&host(json!({})));
    for config in [
        json!({"preset": "memory"}),
        json!({"preset": "speed"}),
        json!({"preset": "loading"}),
        json!({"batch_size": 32, "ubatch_size": 32}),
        json!({"flash_attn": "on"}),
        json!({"flash_attn": "off"}),
        json!({"mmap": false, "mlock": true, "threads_batch": 1}),
        json!({"cache_type_k": "f32", "cache_type_v": "f32"}),
        json!({"models": {"ksi-*": {"context": 128, "slots": 2}}}),
    ] {
        let host = host(config.clone());
        let said = text(&host);
        // A quantised cache may change a word.
        if config["preset"] != "memory" {
            assert_eq!(said, expected, "{config}");
        }
        assert!(said.contains("KSI"), "{config}: {said}");
    }
    let scaled = host(json!({"rope_scaling": "linear", "rope_freq_scale": 0.5, "context": 2048}));
    assert_eq!(scaled.request("llama:load", json!({})).unwrap()["context"], 2048);
    text(&scaled);
}

#[test]
fn a_setting_that_does_not_exist_or_fit_stops_the_start() {
    for (config, part) in [
        (json!({"flash_atn": "on"}), "flash_atn"),
        (json!({"models": {"x*": {"thread": 1}}}), "thread"),
        (json!({"cache_type_k": "q9"}), "q9"),
        (json!({"preset": "fast"}), "fast"),
        (json!({"models": {"x*": {"slots": 0}}}), "slots"),
    ] {
        let Err(refusal) = Host::start(config) else { panic!("started") };
        assert!(refusal.message.contains(part), "{refusal}");
    }
}

#[test]
fn the_profile_says_what_is_set_and_by_whom() {
    let host = host(json!({"slots": 2, "models": {"ksi-*": {"threads": 1}}}));
    let profile = host.request("llama:profile", json!({"preset": "memory"})).unwrap();
    assert_eq!(profile["preset"], "memory");
    assert_eq!(profile["slots"], 2);
    assert_eq!(profile["context"], 1024, "no more than the training");
    let from = |name: &str| {
        let settings = profile["settings"].as_array().unwrap();
        settings.iter().find(|setting| setting["name"] == name).unwrap()["from"].clone()
    };
    assert_eq!(from("slots"), "configuration");
    assert_eq!(from("threads"), "models.\"ksi-*\"");
    assert_eq!(from("cache_type_k"), "preset memory");
    let now = host.request("llama:profile", json!({})).unwrap();
    assert!(now["memory_bytes"].as_u64() > profile["memory_bytes"].as_u64(), "{now} {profile}");
    let report = host.request("llama:load", json!({})).unwrap();
    assert_eq!(report["memory_bytes"], now["memory_bytes"], "what was told is what is counted");
}

/// The settings that a request has set.
fn asked(settings: &Value) -> Vec<(&str, &Value)> {
    let settings = settings.as_array().expect("a list").iter().filter(|setting| setting["from"] == "request");
    settings.map(|setting| (setting["name"].as_str().expect("a name"), &setting["value"])).collect()
}

#[test]
fn a_load_may_have_settings_of_its_own_until_it_is_unloaded() {
    let host = host(json!({"slots": 2, "models": {"ksi-*": {"context": 512}}}));
    let loads = || host.request("llama:metrics", json!({})).unwrap()["loads"].clone();
    let ours = json!({"settings": {"context": 256, "slots": 1, "flash_attn": "off"}});
    let profile = host.request("llama:profile", ours.clone()).unwrap();
    assert!(profile.get("loaded").is_none(), "{profile}");
    let report = host.request("llama:load", ours.clone()).unwrap();
    for field in ["context", "slots", "settings", "memory_bytes"] {
        assert_eq!(profile[field], report[field], "{field}");
    }
    assert_eq!((&report["context"], &report["slots"]), (&json!(256), &json!(1)));
    let expected = [("context", &json!(256)), ("slots", &json!(1)), ("flash_attn", &json!("off"))];
    assert_eq!(asked(&report["settings"]), expected);
    // What is the same, or says nothing, leaves it as it is; so does a request.
    for ask in [ours, json!({}), json!({"context": 256}), json!({"settings": {"slots": 1}})] {
        assert_eq!(host.request("llama:load", ask).unwrap()["settings"], report["settings"]);
    }
    assert!(text(&host).contains("KSI"));
    assert_eq!(loads(), 1);
    let listed = host.request("llama:models", json!({})).unwrap()["models"][0].clone();
    assert_eq!((&listed["loaded"], &listed["settings"]), (&json!(true), &report["settings"]));
    let profile = host.request("llama:profile", json!({})).unwrap();
    assert_eq!((&profile["context"], &profile["loaded"]), (&json!(512), &report["settings"]));
    // Others load it anew, and what is not said of it is as it is configured.
    let report = host.request("llama:load", json!({"settings": {"slots": 4}})).unwrap();
    assert_eq!((&report["context"], &report["slots"], loads()), (&json!(512), &json!(4), json!(2)));
    host.request("llama:unload", json!({"model": "default"})).unwrap();
    let report = host.request("llama:load", json!({})).unwrap();
    assert_eq!((&report["context"], &report["slots"]), (&json!(512), &json!(2)));
    assert_eq!(asked(&report["settings"]), []);
}

#[test]
fn settings_that_do_not_exist_or_fit_are_refused_all_at_once_and_leave_the_model_as_it_is() {
    let host = host(json!({"flash_attn": "off"}));
    let ours = host.request("llama:load", json!({"settings": {"slots": 1}})).unwrap()["settings"].clone();
    for event in ["llama:load", "llama:profile"] {
        let refusal =
            host.request(event, json!({"settings": {"thread": 1, "slots": 0, "mlock": 3}})).unwrap_err();
        assert_eq!(refusal.details.as_ref().unwrap()["problems"].as_array().unwrap().len(), 3, "{refusal}");
        for part in ["did you mean `threads`?", "`settings.slots` is 0", "`settings.mlock` is 3"] {
            assert!(refusal.message.contains(part), "{part}: {refusal}");
        }
        let refusal = host.request(event, json!({"settings": {"lora": ["nowhere"]}})).unwrap_err();
        assert!(refusal.message.contains("nowhere"), "{refusal}");
    }
    let refusal =
        host.request("llama:load", json!({"context": 64, "settings": {"context": 128}})).unwrap_err();
    assert!(refusal.message.contains("`settings.context` is 128"), "{refusal}");
    // These are found out when the file has been looked at.
    for (settings, part) in [
        (json!({"context": 1 << 30}), "context"),
        (json!({"cache_type_v": "q8_0"}), "flash_attn"),
        (json!({"lora": ["nowhere"]}), "nowhere"),
    ] {
        let refusal = host.request("llama:load", json!({ "settings": settings })).unwrap_err();
        assert!(refusal.message.contains(part), "{refusal}");
    }
    let listed = host.request("llama:models", json!({})).unwrap()["models"][0].clone();
    assert_eq!((&listed["loaded"], &listed["settings"]), (&json!(true), &ours));
    assert_eq!(host.request("llama:metrics", json!({})).unwrap()["loads"], 1);
}

#[test]
fn a_profile_is_what_the_load_does() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("style.gguf"), adapter::adapter("llama", 192, 0.05)).unwrap();
    let mut bytes = Vec::new();
    for more in [
        json!({}),
        json!({"lora": ["style:0.5"]}),
        json!({"context": 64, "slots": 3}),
        json!({"context": 100_000}),
        json!({"context": 2048, "rope_scaling": "linear", "rope_freq_scale": 0.5}),
        json!({"preset": "memory", "threads": 100_000}),
    ] {
        let mut config = json!({"models_dir": dir.path()});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let host = host(config);
        let profile = host.request("llama:profile", json!({})).unwrap();
        let report = host.request("llama:load", json!({})).unwrap();
        for field in ["model", "context", "slots", "threads", "gpu_layers", "memory_bytes"] {
            assert_eq!(profile[field], report[field], "{field}: {more}");
        }
        bytes.push(profile["memory_bytes"].as_u64().unwrap());
    }
    assert!(bytes[1] > bytes[0], "the adapter takes memory, too");
    let without = host(json!({"lora": ["nowhere"]}));
    let refusal = without.request("llama:profile", json!({})).unwrap_err();
    assert_eq!(refusal, without.request("llama:load", json!({})).unwrap_err());
}

#[test]
fn metrics_count_what_was_done() {
    let host = host(json!({"slots": 1}));
    assert_eq!(host.request("llama:metrics", json!({})).unwrap()["models"], json!([]));
    let ends: Vec<Value> = (0..3).map(|_| host.request("llama:generate", ask()).unwrap()).collect();
    host.request("llama:load", json!({"model": "nope"})).unwrap_err();
    let metrics = host.request("llama:metrics", json!({})).unwrap();
    let model = &metrics["models"][0];
    let sum = |field: &str| ends.iter().map(|end| end["usage"][field].as_u64().unwrap()).sum::<u64>();
    assert_eq!(model["model"], "ksi-tiny");
    assert_eq!(model["answered"], 3);
    for field in ["prompt_tokens", "cached_tokens", "completion_tokens"] {
        assert_eq!(model[field], sum(field), "{field}");
    }
    assert!(sum("cached_tokens") > 0);
    assert!(model["generate_per_second"].as_f64().unwrap() > 1.0, "{model}");
    assert!(model["first_token_ms"].as_f64().unwrap() > 0.0, "{model}");
    assert_eq!((&metrics["loads"], &metrics["load_failures"]), (&json!(1), &json!(1)));
    assert!(metrics["resident_bytes"].as_u64() > metrics["models"][0]["load_ms"].as_u64());
}

#[test]
fn the_selftest_knows_its_answer() {
    let result = host(json!({})).request("llama:selftest", json!({})).unwrap();
    assert_eq!(result["passed"], true, "{result}");
}

#[test]
fn a_model_is_there_before_anyone_asks_where_that_is_wished() {
    let host = host(json!({"preload": ["default", "nope"]}));
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let metrics = host.request("llama:metrics", json!({})).unwrap();
        if metrics["loads"] == 1 && metrics["load_failures"] == 1 {
            break;
        }
        assert!(Instant::now() < deadline, "{metrics}");
        std::thread::yield_now();
    }
    assert!(host.logged().iter().any(|(_, line)| line.contains("nope")));
    assert!(host.request("llama:generate", ask()).unwrap()["timings"].get("load_ms").is_none());
}
