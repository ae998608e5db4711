//! Conversations that are remembered, and what a model is given to read.

use super::*;

fn remembered(prompt: &str) -> Value {
    json!({"prompt": prompt, "conversation_id": "c", "remember": true})
}

/// What the model is asked, as `role: text`.
fn read(asked: &Asked) -> Vec<String> {
    let messages = asked.data["messages"].as_array().unwrap();
    let line = |message: &Value| {
        format!("{}: {}", message["role"].as_str().unwrap(), message["content"].as_str().unwrap())
    };
    messages.iter().map(line).collect()
}

/// Asks, and lets the model answer; returns what it read and the result.
fn exchange(host: &Host, request: Value, answer: &str) -> (Vec<String>, Value) {
    let call = ask(host, request);
    if let Some(asked) = host.has_asked().then(|| host.expect("llama:generate")) {
        host.end(&asked, generated(answer));
        return (read(&asked), end(host, &call));
    }
    panic!("no model is asked");
}

fn knowing(context: u64) -> Host {
    host(json!({"providers": {"llama": {"models": {"*": {"context_length": context}}}}}))
}

#[test]
fn a_conversation_goes_on_where_it_was_left_over_restarts_too() {
    let host = knowing(4096);
    let (asked, first) = exchange(&host, remembered("my name is Ada"), "hello Ada");
    assert_eq!(asked, ["user: my name is Ada"]);
    assert_eq!((&first["remembered"], &first["context"]["history_messages"]), (&json!(true), &json!(0)));
    let host = unhooked(host.restart(json!({})).unwrap());
    host.script("llama:models", |_| Ok(json!({"models": [{"name": "m", "context_length": 4096}]})));
    let mut request = remembered("who am I?");
    request["system"] = json!("be kind");
    let (asked, second) = exchange(&host, request, "Ada");
    assert_eq!(asked, ["system: be kind", "user: my name is Ada", "assistant: hello Ada", "user: who am I?"]);
    assert_eq!(
        (&second["context"]["history_messages"], &second["context"]["dropped_messages"]),
        (&json!(2), &json!(0))
    );
    let (asked, _) = exchange(&host, json!({"prompt": "x", "conversation_id": "c"}), "y");
    assert_eq!(asked, ["user: x"], "without the wish nothing is remembered");
    let history = host.request("completion:history", json!({"conversation_id": "c"})).unwrap();
    assert_eq!(history["messages"].as_array().unwrap().len(), 4);
    assert_eq!(
        host.request("completion:forget", json!({"conversation_id": "c"})).unwrap(),
        json!({"messages": 4})
    );
    let history = host.request("completion:history", json!({"conversation_id": "c"})).unwrap();
    assert_eq!(history, json!({"messages": []}));
    assert!(!host.space().keys().iter().any(|key| key.contains("said/")), "{:?}", host.space().keys());
}

#[test]
fn no_tenant_reads_what_another_said() {
    let host = knowing(4096);
    let as_tenant = |tenant: &str| Meta {
        caller: Some(ksi_sdk::protocol::frame::Caller {
            principal: format!("user:{tenant}"),
            tenant: Some(tenant.into()),
            every_tenant: false,
        }),
        ..Meta::default()
    };
    for tenant in ["a", "b"] {
        let call = host.open_as("completion:request", remembered(tenant), &as_tenant(tenant));
        let asked = host.expect("llama:generate");
        assert_eq!(read(&asked), [format!("user: {tenant}")]);
        host.end(&asked, generated("x"));
        end(&host, &call);
    }
    let call = host.open_as("completion:history", json!({"conversation_id": "c"}), &as_tenant("b"));
    let Answer::Reply(history) = host.next(&call) else { panic!("no reply") };
    assert_eq!(history["messages"][0]["content"], "b");
}

#[test]
fn what_does_not_fit_is_left_out_and_told() {
    let host = knowing(4096);
    for n in 0..4 {
        exchange(&host, remembered(&format!("question {n} {}", "x".repeat(400))), &"y".repeat(400));
    }
    let mut request = remembered("and now?");
    request["context_tokens"] = json!(300);
    request["memories"] = json!([{"name": "rule", "text": "z".repeat(40)}]);
    // There is more than fits for sure, so the model's own tokenizer counts: here a
    // token is four bytes.
    host.script("llama:tokenize", |asked| {
        let count = asked.data["text"].as_str().unwrap().len() / 4;
        Ok(json!({"tokens": [], "count": count}))
    });
    let call = ask(&host, request);
    let asked = host.expect("llama:generate");
    let lines = read(&asked);
    assert!(lines[0].starts_with("system: # rule\nzzz"), "{lines:?}");
    assert!(lines[1].starts_with("user: question 3"), "{lines:?}");
    assert_eq!(lines.last().unwrap(), "user: and now?");
    host.end(&asked, generated("x"));
    let context = end(&host, &call)["context"].clone();
    assert_eq!(context["counted_by"], "llama:tokenize");
    assert_eq!((&context["dropped_messages"], &context["history_messages"]), (&json!(6), &json!(2)));
    assert_eq!((&context["dropped_memories"], &context["room"]), (&json!([]), &json!(300)));
}

#[test]
fn durable_work_that_is_handed_over_again_is_remembered_once() {
    let host = knowing(4096);
    let meta = Meta { idempotency_key: Some("work-1".into()), ..Meta::default() };
    for round in 0..2 {
        let call = host.open_as("completion:async", remembered("hi"), &meta);
        let asked = host.expect("llama:generate");
        assert_eq!(read(&asked), ["user: hi"], "round {round}");
        host.end(&asked, generated("hello"));
        assert!(matches!(host.next(&call), Answer::Reply(_)));
    }
    let history = host.request("completion:history", json!({"conversation_id": "c"})).unwrap();
    assert_eq!(history["messages"].as_array().unwrap().len(), 2);
}

#[test]
fn a_failed_request_is_not_remembered() {
    let host = knowing(4096);
    let call = ask(&host, remembered("hi"));
    host.refuse(&host.expect("llama:generate"), ksi_sdk::prelude::Refusal::new(Code::Denied, "no"));
    refusal(&host, &call);
    let history = host.request("completion:history", json!({"conversation_id": "c"})).unwrap();
    assert_eq!(history, json!({"messages": []}));
}
