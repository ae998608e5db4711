//! What is refused before anything is generated: each with the field, the name
//! or the numbers that are wrong, and at no cost.

use serde_json::{Value, json};

use super::{answer, complete, fresh, greedy, idle, model};

#[test]
fn a_prompt_beyond_the_context_is_refused_with_both_numbers() {
    let daemon = fresh();
    let prompt = "walrus and teapot ".repeat(2000);
    let tokens = daemon.ask("llama:tokenize", json!({"text": prompt})).unwrap()["count"].as_u64().unwrap();
    for (event, framed) in [("llama:generate", false), ("completion:request", true)] {
        let refusal = daemon.ask(event, json!({"prompt": prompt})).unwrap_err();
        assert_eq!((&refusal["code"], &refusal["retryable"]), (&json!("too_large"), &json!(false)));
        let details = &refusal["details"];
        assert_eq!(details["context"], 1024, "{refusal}");
        let counted = details["prompt_tokens"].as_u64().unwrap();
        // A completion goes through the chat template, which adds a few.
        assert!(
            counted == tokens || framed && tokens < counted && counted < tokens + 16,
            "{tokens} {refusal}"
        );
        let message = refusal["message"].as_str().unwrap();
        assert!(message.contains(&counted.to_string()) && message.contains("1024"), "{message}");
    }
    answer(&daemon, &greedy("Hello"));
}

#[test]
fn an_input_beyond_the_configured_bytes_is_refused_with_both_numbers() {
    let daemon = fresh();
    let prompt = "x".repeat(1024 * 1024 + 1);
    for event in ["llama:generate", "completion:request"] {
        let refusal = daemon.ask(event, json!({"prompt": prompt})).unwrap_err();
        assert_eq!(refusal["code"], "too_large", "{refusal}");
        assert_eq!(
            (&refusal["details"]["bytes"], &refusal["details"]["max"]),
            (&json!(1_048_577), &json!(1_048_576))
        );
    }
    assert_eq!(model(&daemon, "ksi-tiny")["loaded"], false, "nothing was loaded for that");
}

/// Requests with one thing wrong, and the path of it.
fn wrong() -> Vec<(Value, &'static str)> {
    let message = |role: &str, content: &str| json!({"role": role, "content": content});
    vec![
        (json!({"prompt": "x", "temperature": -1}), "temperature"),
        (json!({"prompt": "x", "temperature": "hot"}), "temperature"),
        (json!({"prompt": "x", "max_tokens": 0}), "max_tokens"),
        (json!({"prompt": "x", "max_tokens": -5}), "max_tokens"),
        (json!({"prompt": "x", "max_tokens": 1.5}), "max_tokens"),
        (json!({"prompt": "x", "top_p": 2}), "top_p"),
        (json!({"prompt": "x", "min_p": 1.5}), "min_p"),
        (json!({"prompt": "x", "top_k": -1}), "top_k"),
        (json!({"prompt": "x", "repetition_penalty": 0}), "repetition_penalty"),
        (json!({"prompt": "x", "seed": -1}), "seed"),
        (json!({"prompt": "x", "seed": 4_294_967_295_u32}), "seed"),
        (json!({"prompt": "x", "top_p": 0}), "top_p"),
        (json!({"prompt": "x", "stop": ["a", ""]}), "stop[1]"),
        (json!({"prompt": "x", "stop": "a"}), "stop"),
        (json!({"prompt": "x", "tempurature": 1}), "tempurature"),
        (json!({"prompt": 5}), "prompt"),
        (json!({"prompt": ""}), "prompt"),
        (json!({}), "prompt"),
        (json!({"prompt": "x", "messages": [message("user", "y")]}), "messages"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": [message("boss", "y")]}), "messages[0].role"),
        (json!({"messages": [message("user", "y"), {"role": "user"}]}), "messages[1]"),
        (json!({"messages": [{"role": "user", "content": "y", "name": "z"}]}), "messages[0].name"),
    ]
}

#[test]
fn a_wrong_field_is_refused_with_its_path_by_completion_and_by_llama() {
    let daemon = fresh();
    for (ask, path) in wrong() {
        for event in ["completion:request", "completion:async", "llama:generate"] {
            if event == "completion:async" && ["seed", "top_p"].contains(&path) {
                continue;
            }
            // Those that make text take a message that says nothing.
            if event == "llama:generate" && path == "messages[1]" {
                continue;
            }
            let refusal = daemon.ask(event, ask.clone()).unwrap_err();
            assert_eq!(refusal["code"], "invalid_payload", "{event} {ask}: {refusal}");
            assert_eq!(refusal["retryable"], false);
            let named = refusal.to_string();
            assert!(named.contains(path), "{event} {ask}: {refusal}");
        }
    }
    idle(&daemon);
    assert_eq!(daemon.plugin("llama").restarts, 0);
}

#[test]
fn an_unknown_model_is_not_found_and_the_known_ones_are_named() {
    let daemon = fresh();
    let refusal = complete(&daemon, &json!({"prompt": "x", "model": "llama/nope"})).1.unwrap_err();
    assert_eq!(refusal["code"], "not_found", "{refusal}");
    assert!(refusal["message"].as_str().unwrap().contains("nope"), "{refusal}");
    assert_eq!(refusal["details"]["known"], json!(["ksi-tiny"]));
    assert!(refusal["hint"].as_str().unwrap().contains("ksi-tiny"), "{refusal}");
    for event in ["llama:load", "llama:unload"] {
        assert_eq!(daemon.ask(event, json!({"model": "nope"})).unwrap_err()["code"], "not_found");
    }
    for name in ["../ksi-tiny", "/etc/passwd", "ksi-tiny.gguf", ""] {
        let refusal = daemon.ask("llama:load", json!({"model": name})).unwrap_err();
        assert_eq!(refusal["code"], "not_found", "a name is never a path: {name}: {refusal}");
    }
}

#[test]
fn an_unknown_provider_is_not_found_and_the_known_ones_are_named() {
    let daemon = fresh();
    for event in ["completion:request", "completion:async"] {
        let refusal = daemon.ask(event, json!({"prompt": "x", "model": "nobody/x"})).unwrap_err();
        assert_eq!(refusal["code"], "not_found", "{refusal}");
        assert_eq!(
            refusal["details"]["known"],
            json!(["llama", "openai", "anthropic", "claude-cli", "mock"])
        );
    }
    let refusal = daemon.ask("completion:request", json!({"prompt": "x", "model": "ksi-tiny"})).unwrap_err();
    assert_eq!((&refusal["code"], &refusal["details"]["path"]), (&json!("invalid_payload"), &json!("model")));
}

#[test]
fn without_the_llama_plugin_a_completion_says_what_is_missing() {
    let daemon = ksi_tests::Daemon::without_model();
    daemon.ready();
    let refusal = complete(&daemon, &greedy("Hello")).1.unwrap_err();
    assert_eq!(
        (&refusal["code"], &refusal["retryable"]),
        (&json!("unavailable"), &json!(false)),
        "{refusal}"
    );
    assert!(refusal["message"].as_str().unwrap().contains("llama"), "{refusal}");
    let mock = complete(&daemon, &json!({"prompt": "a b", "model": "mock/echo"})).1.unwrap();
    assert_eq!((&mock["text"], &mock["toy"]), (&json!("a b"), &json!(true)));
}
