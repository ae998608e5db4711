//! Every wrong field is refused with its path, and what fits is accepted.

use ksi_protocol::Code;
use serde_json::{Value, json};

use super::*;
use crate::ToolCall;

fn generate(request: Value) -> Generate {
    serde_json::from_value(request).unwrap()
}

fn with(fields: Value) -> Generate {
    let mut request = json!({ "messages": [{ "role": "user", "content": "hi" }] });
    for (name, value) in fields.as_object().unwrap() {
        request[name] = value.clone();
    }
    generate(request)
}

#[test]
fn a_wrong_field_is_refused_with_its_path() {
    let call = json!({ "id": "a", "name": "f", "arguments": {} });
    let result = json!({ "role": "tool", "content": "1", "tool_call_id": "a" });
    let tool = json!({ "name": "f" });
    for (request, path) in [
        (generate(json!({})), "messages"),
        (generate(json!({ "messages": [] })), "messages"),
        (generate(json!({ "prompt": "" })), "prompt"),
        (with(json!({ "prompt": "x" })), "messages"),
        (with(json!({ "messages": [result] })), "messages[0].tool_call_id"),
        (with(json!({ "messages": [{ "role": "tool", "content": "1" }] })), "messages[0].tool_call_id"),
        (
            with(json!({ "messages": [{ "role": "user", "content": "1", "tool_call_id": "a" }] })),
            "messages[0].tool_call_id",
        ),
        (with(json!({ "messages": [{ "role": "user", "tool_calls": [call] }] })), "messages[0].tool_calls"),
        (
            with(json!({ "messages": [{ "role": "assistant", "tool_calls": vec![call.clone(); 129] }] })),
            "messages[0].tool_calls",
        ),
        (with(json!({ "max_tokens": 0 })), "max_tokens"),
        (with(json!({ "temperature": -0.1 })), "temperature"),
        (with(json!({ "temperature": 5.1 })), "temperature"),
        (with(json!({ "top_p": 0 })), "top_p"),
        (with(json!({ "top_p": 1.1 })), "top_p"),
        (with(json!({ "min_p": -1 })), "min_p"),
        (with(json!({ "repetition_penalty": 0.05 })), "repetition_penalty"),
        (with(json!({ "choices": 0 })), "choices"),
        (with(json!({ "choices": 17 })), "choices"),
        (with(json!({ "logprobs": 21 })), "logprobs"),
        (with(json!({ "priority": 11 })), "priority"),
        (with(json!({ "priority": -11 })), "priority"),
        (with(json!({ "timeout_ms": 0 })), "timeout_ms"),
        (with(json!({ "timeout_ms": 86_400_001 })), "timeout_ms"),
        (with(json!({ "stop": ["a", ""] })), "stop[1]"),
        (with(json!({ "stop": ["x".repeat(257)] })), "stop[0]"),
        (with(json!({ "stop": vec!["x"; 17] })), "stop"),
        (with(json!({ "model": "" })), "model"),
        (with(json!({ "conversation_id": "c".repeat(257) })), "conversation_id"),
        (with(json!({ "tools": [{ "name": "a b" }] })), "tools[0].name"),
        (with(json!({ "tools": [{ "name": "x".repeat(65) }] })), "tools[0].name"),
        (with(json!({ "tools": [tool, tool] })), "tools[1].name"),
        (with(json!({ "tools": [{ "name": "f", "parameters": {} }] })), "tools[0].parameters"),
        (with(json!({ "tools": [tool], "tool_choice": { "tool": "g" } })), "tool_choice"),
        (with(json!({ "tool_choice": "required" })), "tool_choice"),
        (with(json!({ "grammar": "root ::= \"a\"", "response_format": "json" })), "grammar"),
    ] {
        let refusal = request.check().unwrap_err();
        assert_eq!(refusal.code, Code::InvalidPayload, "{path}: {refusal}");
        assert!(!refusal.hint.is_empty(), "{path}");
        assert_eq!(refusal.details.unwrap()["path"], path);
    }
    let nan = Generate { temperature: Some(f64::NAN), ..with(json!({})) };
    assert!(nan.check().is_err(), "not a number is in no range");
    let many = with(json!({ "messages": vec![json!({ "role": "user", "content": "x" }); MESSAGES_MAX + 1] }));
    assert_eq!(many.check().unwrap_err().code, Code::TooLarge);
}

#[test]
fn everything_at_its_limits_is_accepted() {
    for fields in [
        json!({}),
        json!({ "max_tokens": 1, "temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0, "seed": 4_294_967_295_u32 }),
        json!({ "temperature": 5, "repetition_penalty": 0.1, "choices": 16, "logprobs": 20, "priority": 10 }),
        json!({ "repetition_penalty": 10, "logprobs": 0, "priority": -10, "timeout_ms": 86_400_000 }),
        json!({ "stop": vec!["x".repeat(256); 16], "conversation_id": "c", "model": "m" }),
        json!({ "tools": [{ "name": "get_weather-2" }], "tool_choice": { "tool": "get_weather-2" } }),
        json!({ "tool_choice": "none", "response_format": { "json_schema": { "schema": {} } } }),
        json!({ "grammar": "root ::= \"a\"", "response_format": "text" }),
        json!({ "messages": [
            { "role": "user", "content": "weather?" },
            { "role": "assistant", "tool_calls": [{ "id": "a", "name": "f", "arguments": { "x": 1 } }] },
            { "role": "tool", "tool_call_id": "a", "content": "" },
        ] }),
    ] {
        assert_eq!(with(fields.clone()).check(), Ok(()), "{fields}");
    }
    assert_eq!(generate(json!({ "prompt": "x" })).check(), Ok(()));
}

#[test]
fn a_request_is_written_as_it_is_read() {
    let request = with(json!({
        "model": "m",
        "tools": [{ "name": "f", "description": "d", "parameters": { "type": "object" } }],
        "tool_choice": { "tool": "f" },
        "response_format": { "json_schema": { "schema": { "type": "object" }, "name": "n" } },
        "stop": ["."],
        "temperature": 0.7,
    }));
    let written = serde_json::to_value(&request).unwrap();
    assert_eq!(generate(written.clone()), request);
    assert_eq!(written["tool_choice"], json!({ "tool": "f" }));
    assert_eq!(serde_json::to_value(Generate::default()).unwrap(), json!({}), "what is left out stays out");
    let packed = ksi_protocol::encode(&request).unwrap();
    assert_eq!(ksi_protocol::decode::<Generate>(&packed).unwrap(), request);
}

#[test]
fn a_range_is_told_as_people_say_it() {
    let refusal = with(json!({ "top_p": 0 })).check().unwrap_err();
    assert_eq!(refusal.message, "`top_p` is 0; accepted is above 0 to 1");
    let refusal = with(json!({ "temperature": 6 })).check().unwrap_err();
    assert_eq!(refusal.message, "`temperature` is 6; accepted is 0 to 5");
}

#[test]
fn arguments_that_are_no_object_stay_the_text_that_they_are() {
    let call = |text: &str| ToolCall {
        id: "a".into(),
        name: "f".into(),
        arguments: ToolCall::parse_arguments(text),
    };
    assert_eq!(call("{\"x\": 1}").arguments, json!({ "x": 1 }));
    assert_eq!(call(" ").arguments, json!({}));
    for text in ["{\"x\": ", "[1]", "\"x\""] {
        assert_eq!(call(text).arguments, json!(text));
        assert_eq!(call(text).arguments_text(), text);
    }
    assert_eq!(call("{\"x\": 1}").arguments_text(), "{\"x\":1}");
}

#[test]
fn the_size_of_a_message_counts_all_its_texts() {
    let request = with(json!({ "messages": [
        { "role": "user", "content": "12345" },
        { "role": "assistant", "content": "1", "tool_calls": [{ "id": "a", "name": "fg", "arguments": {} }] },
    ] }));
    let sizes: Vec<_> = request.chat().unwrap().iter().map(Message::bytes).collect();
    assert_eq!(sizes, [5, 1 + 2 + 2]);
}

#[test]
fn who_has_chats_only_takes_no_bare_text_and_needs_a_model() {
    let path = |refusal: Refusal| refusal.details.unwrap()["path"].clone();
    let bare = generate(json!({ "prompt": "x" }));
    assert!(bare.check().is_ok());
    assert_eq!(path(bare.chat().unwrap_err()), "prompt");
    let (named, other) = (with(json!({ "model": "m" })), with(json!({})));
    assert_eq!(named.model_or(Some("d"), "openai").unwrap(), "m");
    assert_eq!(other.model_or(Some("d"), "openai").unwrap(), "d");
    let refusal = other.model_or(None, "openai").unwrap_err();
    assert!(refusal.hint.contains("[plugins.openai.config]"), "{refusal}");
    assert_eq!(path(refusal), "model");
}

#[test]
fn what_is_left_limits_whatever_else_is_said() {
    let limit = |fields: Value, default| with(fields).token_limit(default);
    assert_eq!(limit(json!({}), None), None);
    assert_eq!(limit(json!({ "tokens_left": 7 }), None), Some(7));
    assert_eq!(limit(json!({ "tokens_left": 7 }), Some(5)), Some(5));
    assert_eq!(limit(json!({ "tokens_left": 7, "max_tokens": 9 }), Some(5)), Some(7));
    assert_eq!(limit(json!({ "max_tokens": 9 }), Some(5)), Some(9));
    let refusal = with(json!({ "tokens_left": 0 })).check().unwrap_err();
    assert_eq!(refusal.details.unwrap()["path"], "tokens_left");
}
