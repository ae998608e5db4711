//! What is asked is what is sent.

use ksi_sdk::prelude::Code;

use super::*;

fn sent(ask: Value) -> Result<Request, Refusal> {
    let mut request = json!({ "model": "m", "messages": [{ "role": "user", "content": "hi" }] });
    for (name, value) in ask.as_object().unwrap() {
        request[name] = value.clone();
    }
    let ask: Generate = serde_json::from_value(request).unwrap();
    ask.check().unwrap();
    of(&ask, &Config::default())
}

fn body(ask: Value) -> Value {
    Value::Object(sent(ask).unwrap().body)
}

#[test]
fn settings_have_the_names_of_the_api_and_what_it_lacks_is_told() {
    let request = sent(json!({ "temperature": 0.5, "top_p": 0.9, "top_k": 5, "stop": ["."], "seed": 1,
        "min_p": 0.1, "repetition_penalty": 1.1, "logprobs": 1, "choices": 1 }))
    .unwrap();
    assert_eq!(
        Value::Object(request.body),
        json!({ "model": "m", "max_tokens": 4096, "stream": true,
            "messages": [{ "role": "user", "content": [{ "type": "text", "text": "hi" }] }],
            "temperature": 0.5, "top_p": 0.9, "top_k": 5, "stop_sequences": ["."] })
    );
    assert_eq!(request.ignored, ["min_p", "repetition_penalty", "seed", "logprobs"]);
    assert_eq!(body(json!({ "max_tokens": 7, "top_k": 0 }))["max_tokens"], 7);
    assert_eq!(body(json!({ "tokens_left": 7 }))["max_tokens"], 7);
    assert_eq!(body(json!({ "tokens_left": 9000 }))["max_tokens"], 4096, "the default is no longer for it");
    assert_eq!(body(json!({ "top_k": 0 })).get("top_k"), None, "all is the API's default");
}

#[test]
fn roles_take_turns_and_the_system_goes_first() {
    let body = body(json!({ "messages": [
        { "role": "system", "content": "be brief" },
        { "role": "system", "content": "be kind" },
        { "role": "user", "content": "weather in two towns?" },
        { "role": "assistant", "content": "I look.", "tool_calls": [
            { "id": "a", "name": "weather", "arguments": { "city": "Oslo" } },
            { "id": "b", "name": "weather", "arguments": "{\"city\":" },
        ] },
        { "role": "tool", "tool_call_id": "a", "content": "cold" },
        { "role": "tool", "tool_call_id": "b", "content": "no such town" },
        { "role": "user", "content": "well?" },
    ], "conversation_id": "c" }));
    assert_eq!(body["system"], json!([{ "type": "text", "text": "be brief\n\nbe kind" }]));
    assert_eq!(
        body["messages"],
        json!([
            { "role": "user", "content": [{ "type": "text", "text": "weather in two towns?" }] },
            { "role": "assistant", "content": [
                { "type": "text", "text": "I look." },
                { "type": "tool_use", "id": "a", "name": "weather", "input": { "city": "Oslo" } },
                { "type": "tool_use", "id": "b", "name": "weather", "input": { "not_an_object": "{\"city\":" } },
            ] },
            { "role": "user", "content": [
                { "type": "tool_result", "tool_use_id": "a", "content": "cold" },
                { "type": "tool_result", "tool_use_id": "b", "content": "no such town" },
                { "type": "text", "text": "well?", "cache_control": { "type": "ephemeral" } },
            ] },
        ])
    );
}

#[test]
fn tools_and_schemas_are_sent_as_tools() {
    let parameters = json!({ "type": "object", "properties": {} });
    let tools = json!([{ "name": "f", "description": "does it" }]);
    for (choice, expected) in [
        (json!("auto"), json!({ "type": "auto" })),
        (json!("none"), json!({ "type": "none" })),
        (json!("required"), json!({ "type": "any" })),
        (json!({ "tool": "f" }), json!({ "type": "tool", "name": "f" })),
    ] {
        let body = body(json!({ "tools": tools, "tool_choice": choice }));
        assert_eq!(
            body["tools"],
            json!([{ "name": "f", "input_schema": parameters, "description": "does it" }])
        );
        assert_eq!(body["tool_choice"], expected);
    }
    let schema = json!({ "type": "object", "properties": { "x": { "type": "integer" } } });
    let request = sent(json!({ "response_format": { "json_schema": { "schema": schema } } })).unwrap();
    assert!(request.by_schema);
    assert_eq!(request.body["tools"][0]["input_schema"], schema);
    assert_eq!(request.body["tool_choice"], json!({ "type": "tool", "name": "answer" }));
    assert!(sent(json!({ "response_format": "json" })).unwrap().by_schema);
}

#[test]
fn what_the_api_has_no_words_for_is_refused() {
    let array = json!({ "json_schema": { "schema": { "type": "array" } } });
    let late = json!([{ "role": "user", "content": "a" }, { "role": "system", "content": "b" }]);
    for (ask, path) in [
        (json!({ "messages": null, "prompt": "x" }), "prompt"),
        (json!({ "messages": late }), "messages[1].role"),
        (json!({ "grammar": "root ::= \"a\"" }), "grammar"),
        (json!({ "choices": 2 }), "choices"),
        (json!({ "model": null }), "model"),
        (json!({ "response_format": "json", "tools": [{ "name": "f" }] }), "response_format"),
        (json!({ "response_format": array }), "response_format"),
    ] {
        let refusal = sent(ask).unwrap_err();
        assert_eq!(refusal.code, Code::InvalidPayload);
        assert_eq!(refusal.details.unwrap()["path"], path);
    }
}
