//! Loading, unloading and listing through a fake host, with good and broken
//! files.

use std::path::Path;

use ksi_sdk::prelude::Code;
use ksi_sdk::testing::{Answer, FakeHost};
use plugin_llama::Llama;
use serde_json::{Value, json};

static TINY: &[u8] = include_bytes!("../model/ksi-tiny.gguf");

fn host(dir: &Path, more: Value) -> FakeHost<Llama> {
    let mut config = json!({"models_dir": dir});
    for (key, value) in more.as_object().expect("an object") {
        config[key] = value.clone();
    }
    FakeHost::start(config).expect("the plugin starts")
}

fn hello(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "Hello"}], "temperature": 0.0})
}

fn loaded(host: &FakeHost<Llama>) -> Vec<String> {
    let list = host.request("llama:models", json!({})).expect("a list");
    let models = list["models"].as_array().expect("a list");
    let loaded = models.iter().filter(|model| model["loaded"] == true);
    loaded.filter_map(|model| model["name"].as_str().map(str::to_owned)).collect()
}

#[test]
fn a_load_shows_its_progress_and_how_the_model_runs() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), json!({"slots": 3, "threads": 1}));
    let call = host.open("llama:load", json!({"model": "ksi-tiny"}));
    let mut progress = Vec::new();
    let report = loop {
        match host.next(&call) {
            Answer::Chunk(chunk) => progress.push(chunk["progress"].as_f64().unwrap()),
            Answer::End(report) => break report,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(progress.last(), Some(&1.0), "{progress:?}");
    assert!(progress.is_sorted());
    assert_eq!(report["context"], 1024);
    assert_eq!(report["slots"], 4, "a power of two");
    assert_eq!(report["threads"], 1);
    assert_eq!(report["template"], "model");
    assert_eq!(report["toy"], true);
    assert_eq!(loaded(&host), ["ksi-tiny"]);
    let again = host.request("llama:load", json!({})).unwrap();
    assert_eq!(again["load_ms"], 0);
}

/// What was told of loads.
fn told(host: &FakeHost<Llama>) -> Vec<Value> {
    host.emitted().into_iter().filter(|(event, _)| event == "llama:progress").map(|(_, fact)| fact).collect()
}

#[test]
fn whoever_listens_hears_of_a_load_whatever_it_was_for() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), json!({}));
    host.request("llama:generate", hello("default")).unwrap();
    let told_of = told(&host);
    assert_eq!(told_of.last(), Some(&json!({"model": "ksi-tiny", "progress": 1.0})), "{told_of:?}");
    host.request("llama:generate", hello("default")).unwrap();
    host.request("llama:load", json!({})).unwrap();
    host.request("llama:load", json!({"model": "nope"})).unwrap_err();
    assert!(told(&host).is_empty(), "nothing was loaded");
    // A tensor's name, so that the header is sound and llama.cpp refuses.
    let mut renamed = TINY.to_vec();
    let at = renamed.windows(13).position(|part| part == b"output_norm.w").unwrap();
    renamed[at] = b'X';
    std::fs::write(dir.path().join("renamed.gguf"), renamed).unwrap();
    let refusal = host.request("llama:load", json!({"model": "renamed"})).unwrap_err();
    let told_of = told(&host);
    assert_eq!(told_of.last().unwrap()["error"], refusal.message, "{told_of:?}");
}

#[test]
fn another_context_loads_the_model_anew() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), json!({}));
    assert_eq!(host.request("llama:load", json!({"context": 64})).unwrap()["context"], 64);
    assert_eq!(host.request("llama:load", json!({})).unwrap()["context"], 64, "as it is");
    assert_eq!(host.request("llama:load", json!({"context": 300})).unwrap()["context"], 300);
    for context in [1, 1025, 1_000_000_000] {
        let refusal = host.request("llama:load", json!({"context": context})).unwrap_err();
        assert_eq!(refusal.code, Code::InvalidPayload);
        assert!(refusal.message.contains("1024"), "{refusal}");
    }
}

#[test]
fn an_unloaded_model_is_gone_and_comes_back_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), json!({}));
    let unload = |model: &str| host.request("llama:unload", json!({"model": model}));
    assert_eq!(unload("ksi-tiny").unwrap()["unloaded"], false);
    host.request("llama:generate", hello("ksi-tiny")).unwrap();
    assert_eq!(unload("ksi-tiny").unwrap()["unloaded"], true);
    assert!(loaded(&host).is_empty());
    host.request("llama:generate", hello("default")).unwrap();
    assert_eq!(loaded(&host), ["ksi-tiny"]);
    assert_eq!(unload("nope").unwrap_err().code, Code::NotFound);
}

#[test]
fn the_model_unused_for_longest_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c"] {
        std::fs::write(dir.path().join(format!("{name}.gguf")), TINY).unwrap();
    }
    let host = host(dir.path(), json!({"max_loaded": 2}));
    for name in ["a", "b", "a", "c"] {
        let end = host.request("llama:generate", hello(name)).unwrap();
        assert_eq!(end["model"], name);
        assert_eq!(end["toy"], true, "a copy of a toy is a toy");
    }
    assert_eq!(loaded(&host), ["a", "c"]);
}

#[test]
fn a_model_in_use_is_neither_unloaded_nor_pushed_out() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.gguf"), TINY).unwrap();
    let host = host(dir.path(), json!({"max_loaded": 1, "slots": 1}));
    host.request("llama:load", json!({"model": "a"})).unwrap();
    // With a form that no answer ends before its time, on any machine.
    let story = json!({"model": "a", "max_tokens": 900, "prompt": "1, 2, 3, 4, 5,", "temperature": 1.5,
        "seed": 1, "grammar": "root ::= [a-z ]{2000}"});
    let calls: Vec<_> = (0..30).map(|_| host.open("llama:generate", story.clone())).collect();
    for event in ["llama:unload", "llama:load"] {
        let model = if event == "llama:load" { "ksi-tiny" } else { "a" };
        let refusal = host.request(event, json!({"model": model})).unwrap_err();
        assert_eq!(refusal.code, Code::Busy, "{refusal}");
        assert!(refusal.retry_after_ms.is_some());
    }
    for call in &calls {
        host.cancel(call);
    }
}

#[test]
fn a_broken_file_is_refused_and_the_next_request_works() {
    let dir = tempfile::tempdir().unwrap();
    let mut inside = TINY.to_vec();
    // A tensor's name, so that the header is sound and llama.cpp refuses.
    let at = inside.windows(13).position(|part| part == b"output_norm.w").unwrap();
    inside[at] = b'X';
    let cases: [(&str, &[u8], &str); 5] = [
        ("cut", &TINY[..TINY.len() - 1], "truncated: 1 bytes"),
        ("head", &TINY[..5000], "truncated"),
        ("empty", b"", "not a GGUF"),
        ("noise", b"<html>404</html>", "not a GGUF"),
        ("renamed", &inside, "output_norm"),
    ];
    for (name, bytes, _) in cases {
        std::fs::write(dir.path().join(format!("{name}.gguf")), bytes).unwrap();
    }
    let host = host(dir.path(), json!({}));
    for (name, _, why) in cases {
        for event in ["llama:generate", "llama:load", "llama:tokenize"] {
            let ask = match event {
                "llama:generate" => hello(name),
                "llama:load" => json!({"model": name}),
                _ => json!({"model": name, "text": "x"}),
            };
            let refusal = host.request(event, ask).unwrap_err();
            assert_eq!(refusal.code, Code::Unavailable, "{name}: {refusal}");
            assert!(refusal.message.contains(why), "{name}: {refusal}");
            assert!(!refusal.retryable);
        }
        host.request("llama:generate", hello("ksi-tiny")).unwrap();
    }
    let list = host.request("llama:models", json!({})).unwrap();
    let errors: Vec<&str> = list["models"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|model| model["error"].is_string())
        .map(|model| model["name"].as_str().unwrap())
        .collect();
    assert_eq!(errors, ["cut", "empty", "head", "noise"]);
}

#[test]
fn a_load_that_nobody_waits_for_leaves_the_plugin_able() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), json!({}));
    for _ in 0..10 {
        let call = host.open("llama:load", json!({}));
        host.cancel(&call);
    }
    host.request("llama:generate", hello("ksi-tiny")).unwrap();
}

#[test]
fn many_askers_of_an_unloaded_model_share_one_load() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), json!({}));
    let calls: Vec<_> = (0..8).map(|_| host.open("llama:generate", hello("ksi-tiny"))).collect();
    let mut loads = 0;
    for call in &calls {
        loop {
            match host.next(call) {
                Answer::Chunk(_) => {}
                Answer::End(end) => {
                    loads += usize::from(end["timings"].get("load_ms").is_some());
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(loads, 1);
}

#[test]
fn tokens_are_counted_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), json!({}));
    let tokenized = host.request("llama:tokenize", json!({"text": "Hello, world!"})).unwrap();
    let tokens = tokenized["tokens"].as_array().unwrap();
    assert!(!tokens.is_empty());
    assert_eq!(tokenized["count"], tokens.len());
    let nothing = host.request("llama:tokenize", json!({"text": ""})).unwrap();
    assert_eq!(nothing["count"], 0);
    let control = host.request("llama:tokenize", json!({"text": "<|im_end|>"})).unwrap();
    assert_eq!(control["tokens"], json!([2]));
}

#[test]
fn a_configuration_that_does_not_fit_stops_the_start() {
    for (config, part) in [
        (json!({"slot": 4}), "slot"),
        (json!({"slots": 0}), "slots"),
        (json!({"max_loaded": "two"}), "configuration"),
    ] {
        let Err(refusal) = FakeHost::<Llama>::start(config) else { panic!("started") };
        assert!(refusal.message.contains(part), "{refusal}");
    }
}

/// The toy with another pre-tokenizer. The description gives up as many bytes
/// as the longer name takes, so that nothing else moves.
fn with_pre_tokenizer(name: &str) -> Vec<u8> {
    let mut bytes = TINY.to_vec();
    let find = |bytes: &[u8], part: &[u8]| {
        bytes.windows(part.len()).position(|window| window == part).expect("a part of the header")
    };
    let key = b"tokenizer.ggml.pre";
    let at = find(&bytes, key) + key.len() + 4;
    let old = usize::from(bytes[at]);
    let longer = name.len() - old;
    let mut value = (name.len() as u64).to_le_bytes().to_vec();
    value.extend(name.as_bytes());
    bytes.splice(at..at + 8 + old, value);
    let key = b"general.description";
    let at = find(&bytes, key) + key.len() + 4;
    let length = usize::from(bytes[at]);
    bytes[at] = u8::try_from(length - longer).expect("a shorter length");
    let end = at + 8 + length;
    bytes.drain(end - longer..end);
    assert_eq!(bytes.len(), TINY.len());
    bytes
}

#[test]
fn long_runs_do_not_overflow_the_stack_of_recursive_pre_tokenizers() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["gpt-4o", "tekken", "falcon", "deepseek-llm"];
    for name in names {
        std::fs::write(dir.path().join(format!("{name}.gguf")), with_pre_tokenizer(name)).unwrap();
    }
    let host = host(dir.path(), json!({}));
    for name in names {
        for character in ["a", "!", " "] {
            let text = character.repeat(100_000);
            let ask = json!({"model": name, "text": text});
            let tokenized = host.request("llama:tokenize", ask).unwrap();
            assert!(tokenized["count"].as_u64().unwrap() > 10, "{name} {character:?}");
            // Just what is still tokenized without a thread of its own.
            let ask = json!({"model": name, "prompt": character.repeat(1024), "max_tokens": 1});
            if let Err(refusal) = host.request("llama:generate", ask) {
                assert_eq!(refusal.code, Code::TooLarge, "{refusal}");
            }
        }
    }
}
