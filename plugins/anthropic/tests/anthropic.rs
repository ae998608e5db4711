//! The plugin against a server on this machine that answers well, badly, late
//! or not at all.
#![expect(clippy::unwrap_used, reason = "tests, with functions of their own")]

use ksi_provider::{Failure, Generated, StopReason};
use ksi_provider_http::testing::{Act, FakeServer, answer, answer_with, chunk, chunked_stream, last_chunk};
use ksi_sdk::{
    prelude::{Code, Refusal, json},
    testing::{Answer, FakeHost},
};
use plugin_anthropic::Anthropic;
use serde_json::Value;

const EVENT: &str = "anthropic:generate";

fn host(server: &FakeServer, more: Value) -> FakeHost<Anthropic> {
    let mut config = json!({ "base_url": server.url(), "api_key": "sk-ant-0123456789" });
    for (name, value) in more.as_object().unwrap() {
        config[name] = value.clone();
    }
    FakeHost::start(config).unwrap()
}

fn hello() -> Value {
    json!({ "model": "claude", "messages": [{ "role": "user", "content": "hi" }] })
}

fn event(data: Value) -> String {
    format!("event: {}\ndata: {data}\n\n", data["type"].as_str().unwrap())
}

fn start() -> String {
    event(
        json!({ "type": "message_start", "message": { "id": "msg_1", "type": "message", "role": "assistant",
        "model": "claude-1", "content": [], "stop_reason": null, "usage": { "input_tokens": 10,
        "cache_creation_input_tokens": 20, "cache_read_input_tokens": 30, "output_tokens": 1 } } }),
    )
}

fn block(index: u32, block: Value) -> String {
    event(json!({ "type": "content_block_start", "index": index, "content_block": block }))
}

fn delta(index: u32, delta: Value) -> String {
    event(json!({ "type": "content_block_delta", "index": index, "delta": delta }))
}

fn text(index: u32, text: &str) -> String {
    delta(index, json!({ "type": "text_delta", "text": text }))
}

fn arguments(index: u32, text: &str) -> String {
    delta(index, json!({ "type": "input_json_delta", "partial_json": text }))
}

fn stop(reason: &str) -> String {
    event(
        json!({ "type": "message_delta", "delta": { "stop_reason": reason }, "usage": { "output_tokens": 7 } }),
    )
}

fn over() -> String {
    event(json!({ "type": "message_stop" }))
}

fn events(events: &[String]) -> Vec<Act> {
    let mut acts = vec![chunked_stream()];
    acts.extend(events.iter().map(|event| chunk(event.as_bytes())));
    acts.push(last_chunk());
    acts
}

fn follow(host: &FakeHost<Anthropic>, ask: Value) -> (Vec<Value>, Result<Generated, Refusal>) {
    let call = host.open(EVENT, ask);
    let mut pieces = Vec::new();
    loop {
        match host.next(&call) {
            Answer::Chunk(delta) => pieces.push(delta),
            Answer::End(end) => return (pieces, Ok(serde_json::from_value(end).unwrap())),
            Answer::Refusal(refusal) => return (pieces, Err(refusal)),
            other => panic!("{other:?}"),
        }
    }
}

fn outcome(script: Vec<Act>, ask: Value) -> (Vec<Value>, Result<Generated, Refusal>) {
    let server = FakeServer::answering(script);
    follow(&host(&server, json!({})), ask)
}

#[test]
fn an_answer_comes_in_pieces_and_then_whole() {
    let thoughts = json!({ "type": "thinking_delta", "thinking": "hm" });
    let server = FakeServer::answering(events(&[
        start(),
        event(json!({ "type": "ping" })),
        block(0, json!({ "type": "thinking", "thinking": "" })),
        delta(0, thoughts),
        block(1, json!({ "type": "text", "text": "" })),
        text(1, "Hel"),
        text(1, "lo"),
        event(json!({ "type": "content_block_stop", "index": 1 })),
        stop("stop_sequence"),
        event(json!({ "type": "something_new", "x": 1 })),
        over(),
    ]));
    let host = host(&server, json!({}));
    let (pieces, generated) = follow(&host, hello());
    assert_eq!(pieces, [json!({ "text": "Hel" }), json!({ "text": "lo" })]);
    let generated = generated.unwrap();
    assert_eq!((generated.text.as_str(), generated.model.as_str()), ("Hello", "claude-1"));
    assert_eq!(generated.stop_reason, StopReason::StopString);
    assert_eq!(generated.response_id.as_deref(), Some("msg_1"));
    let usage = generated.usage;
    assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.total_tokens), (60, 7, 67));
    assert_eq!((usage.cached_tokens, usage.cache_write_tokens), (30, Some(20)));
    let asked = server.asked();
    assert!(asked.head.starts_with("POST /v1/messages HTTP/1.1\r\n"), "{}", asked.head);
    assert_eq!(asked.header("x-api-key"), Some("sk-ant-0123456789"));
    assert_eq!(asked.header("anthropic-version"), Some("2023-06-01"));
    assert_eq!(asked.header("authorization"), None);
    assert_eq!(asked.json()["max_tokens"], 4096);
    assert!(host.logged().is_empty(), "neither a prompt nor a key is logged");
}

#[test]
fn tool_calls_come_in_pieces_and_then_as_arguments() {
    let mut ask = hello();
    ask["tools"] = json!([{ "name": "f" }, { "name": "g" }]);
    let script = events(&[
        start(),
        block(0, json!({ "type": "text", "text": "I look. " })),
        block(1, json!({ "type": "tool_use", "id": "a", "name": "f", "input": {} })),
        arguments(1, "{\"x\":"),
        arguments(1, " \"é\"}"),
        block(2, json!({ "type": "tool_use", "id": "b", "name": "g", "input": {} })),
        stop("tool_use"),
        over(),
    ]);
    let (pieces, generated) = outcome(script, ask);
    let generated = generated.unwrap();
    assert_eq!((generated.text.as_str(), generated.stop_reason), ("I look. ", StopReason::ToolCalls));
    let calls: Vec<_> =
        generated.tool_calls.iter().map(|call| (&*call.id, &*call.name, call.arguments.clone())).collect();
    assert_eq!(calls, [("a", "f", json!({ "x": "é" })), ("b", "g", json!({}))]);
    let told: Vec<_> =
        pieces.iter().flat_map(|piece| piece["tool_calls"].as_array().cloned().unwrap_or_default()).collect();
    assert_eq!(
        told,
        [
            json!({ "index": 0, "id": "a", "name": "f" }),
            json!({ "index": 0, "arguments": "{\"x\":" }),
            json!({ "index": 0, "arguments": " \"é\"}" }),
            json!({ "index": 1, "id": "b", "name": "g" }),
        ]
    );
}

#[test]
fn an_answer_by_a_schema_is_text() {
    let mut ask = hello();
    ask["response_format"] = json!({ "json_schema": { "schema": { "type": "object" } } });
    let script = events(&[
        start(),
        block(0, json!({ "type": "text", "text": "Here it is:" })),
        block(1, json!({ "type": "tool_use", "id": "a", "name": "answer", "input": {} })),
        arguments(1, "{\"x\": "),
        arguments(1, "1}"),
        stop("tool_use"),
        over(),
    ]);
    let (pieces, generated) = outcome(script, ask);
    let generated = generated.unwrap();
    assert_eq!((generated.text.as_str(), generated.stop_reason), ("{\"x\": 1}", StopReason::Stop));
    assert!(generated.tool_calls.is_empty());
    assert_eq!(pieces, [json!({ "text": "{\"x\": " }), json!({ "text": "1}" })]);
}

#[test]
fn every_reason_to_stop_is_known_and_others_are_refused() {
    let script = |reason: &str| {
        events(&[start(), block(0, json!({ "type": "text", "text": "x" })), stop(reason), over()])
    };
    for (reason, expected) in [
        ("end_turn", StopReason::Stop),
        ("max_tokens", StopReason::Length),
        ("model_context_window_exceeded", StopReason::Length),
        ("stop_sequence", StopReason::StopString),
        ("refusal", StopReason::ContentFilter),
    ] {
        assert_eq!(outcome(script(reason), hello()).1.unwrap().stop_reason, expected, "{reason}");
    }
    let refusal = outcome(script("boredom"), hello()).1.unwrap_err();
    assert_eq!((Failure::of(&refusal), refusal.retryable), (Some(Failure::InvalidAnswer), false));
}

#[test]
fn errors_are_told_by_kind() {
    let error = |kind: &str| json!({ "type": "error", "error": { "type": kind, "message": "because" } });
    for (status, kind, code, retryable) in [
        ("400 Bad Request", "invalid_request_error", Code::InvalidPayload, false),
        ("401 Unauthorized", "authentication_error", Code::Denied, false),
        ("402 Payment Required", "billing_error", Code::Denied, false),
        ("403 Forbidden", "permission_error", Code::Denied, false),
        ("404 Not Found", "not_found_error", Code::NotFound, false),
        ("413 Payload Too Large", "request_too_large", Code::TooLarge, false),
        ("500 Internal Server Error", "api_error", Code::Unavailable, true),
        ("529 Site Overloaded", "overloaded_error", Code::Unavailable, true),
    ] {
        let refusal =
            outcome(answer(status, "application/json", &error(kind).to_string()), hello()).1.unwrap_err();
        assert_eq!((refusal.code, refusal.retryable), (code, retryable), "{status}: {refusal:?}");
        assert!(refusal.message.contains("because") && !refusal.hint.is_empty(), "{refusal:?}");
    }
    let busy = answer_with("429 Too Many Requests", "application/json", "retry-after: 3\r\n", "{}");
    let refusal = outcome(busy, hello()).1.unwrap_err();
    assert_eq!((refusal.code, refusal.retry_after_ms), (Code::Busy, Some(3000)));

    let in_stream = event(error("overloaded_error"));
    let refusal = outcome(events(&[start(), in_stream.clone()]), hello()).1.unwrap_err();
    assert_eq!((refusal.code, refusal.retryable), (Code::Unavailable, true), "nothing was told yet");
    let script = events(&[start(), block(0, json!({ "type": "text", "text": "x" })), in_stream]);
    let (pieces, refused) = outcome(script, hello());
    let refusal = refused.unwrap_err();
    assert_eq!((refusal.code, refusal.retryable, pieces.len()), (Code::Unavailable, false, 1));
    assert_eq!(refusal.details.unwrap()["text_sent"], true);
}

#[test]
fn what_is_cut_or_no_answer_is_refused() {
    let begun = [start(), block(0, json!({ "type": "text", "text": "x" }))];
    let mut torn = events(&begun);
    torn.pop();
    for (script, failure) in [
        (torn, Failure::Cut),
        // In order, but before its last event.
        (events(&[begun.concat(), stop("end_turn")]), Failure::Cut),
        (events(&[begun.concat(), over()]), Failure::InvalidAnswer),
        (events(&[begun.concat(), "data: {\n\n".into()]), Failure::InvalidAnswer),
        (events(&["data: {\"type\": \"content_block_start\"}\n\n".into()]), Failure::InvalidAnswer),
        (answer("200 OK", "text/html", "<html>"), Failure::InvalidAnswer),
    ] {
        let refusal = outcome(script, hello()).1.unwrap_err();
        assert_eq!(Failure::of(&refusal), Some(failure), "{refusal:?}");
    }
}

#[test]
fn a_cancelled_request_closes_its_connection() {
    let server = FakeServer::answering(vec![
        chunked_stream(),
        chunk(block(0, json!({ "type": "text", "text": "x" })).as_bytes()),
        Act::Silence,
    ]);
    let host = host(&server, json!({}));
    let call = host.open(EVENT, hello());
    assert!(matches!(host.next(&call), Answer::Chunk(_)));
    host.cancel(&call);
    server.wait_until_gone();
}

#[test]
fn models_are_listed_with_the_default_first() {
    let listed =
        json!({ "data": [{ "id": "a" }, { "id": "b", "max_input_tokens": 200_000 }], "has_more": false });
    let server = FakeServer::answering(answer("200 OK", "application/json", &listed.to_string()));
    let host = host(&server, json!({ "default_model": "b" }));
    let models = host.request("anthropic:models", json!({})).unwrap();
    let able = json!(["chat", "tools", "json_schema"]);
    assert_eq!(
        models["models"],
        json!([{ "name": "b", "context_length": 200_000, "capabilities": able, "toy": false },
            { "name": "a", "capabilities": able, "toy": false }])
    );
    assert!(server.asked().head.starts_with("GET /v1/models?limit=1000 HTTP/1.1\r\n"));
}

#[test]
fn what_cannot_work_is_refused_at_the_start() {
    for (config, path) in [
        (json!({}), "api_key"),
        (json!({ "base_url": "http://localhost", "max_tokens_default": 0 }), "max_tokens_default"),
        (json!({ "base_url": "http://192.0.2.1", "api_key": "k" }), "base_url"),
    ] {
        let refusal = FakeHost::<Anthropic>::start(config.clone()).err().unwrap();
        assert_eq!(refusal.details.as_ref().unwrap()["path"], path, "{config}: {refusal:?}");
        assert!(!refusal.hint.is_empty(), "{config}");
    }
}
