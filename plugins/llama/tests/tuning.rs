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
