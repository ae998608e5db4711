//! What is asked is what is sent.

use ksi_sdk::prelude::Code;

use super::*;

fn sent(ask: Value, config: Value) -> Result<Request, Refusal> {
    let mut request = json!({ "model": "m", "messages": [{ "role": "user", "content": "hi" }] });
    for (name, value) in ask.as_object().unwrap() {
        request[name] = value.clone();
    }
    let ask: Generate = serde_json::from_value(request).unwrap();
    ask.check().unwrap();
    of(&ask, &serde_json::from_value(config).unwrap())
}

fn body(ask: Value) -> Value {
    Value::Object(sent(ask, json!({ "base_url": "http://localhost/v1" })).unwrap().body)
}

#[test]
fn settings_have_the_names_of_the_api_and_what_it_lacks_is_told() {
    let ask = json!({ "max_tokens": 5, "temperature": 0.7, "top_p": 0.9, "seed": 7, "stop": ["."],
        "choices": 2, "logprobs": 3, "top_k": 4, "min_p": 0.1, "repetition_penalty": 1.1 });
    let request = sent(ask.clone(), json!({ "base_url": "http://localhost/v1" })).unwrap();
    assert_eq!(
        Value::Object(request.body),
        json!({ "model": "m", "messages": [{ "role": "user", "content": "hi" }], "stream": true,
            "stream_options": { "include_usage": true }, "max_tokens": 5, "temperature": 0.7, "top_p": 0.9,
            "seed": 7, "stop": ["."], "n": 2, "logprobs": true, "top_logprobs": 3 })
    );
    assert_eq!(request.ignored, ["top_k", "min_p", "repetition_penalty"]);
    assert_eq!((request.choices, request.model.as_str()), (2, "m"));
    let request = sent(ask, json!({ "settings": ["top_k", "min_p", "repetition_penalty"] })).unwrap();
    assert!(request.ignored.is_empty());
    assert_eq!((&request.body["top_k"], &request.body["min_p"]), (&json!(4), &json!(0.1)));
    assert_eq!(request.body["max_completion_tokens"], 5, "OpenAI itself insists on another name");
    assert!(!request.body.contains_key("max_tokens"));
    assert_eq!(body(json!({ "tokens_left": 7 }))["max_tokens"], 7);
}

#[test]
fn tools_their_calls_and_their_results_are_sent() {
    let parameters = json!({ "type": "object", "properties": { "city": { "type": "string" } } });
    let body = body(json!({
        "messages": [
            { "role": "system", "content": "be brief" },
            { "role": "user", "content": "weather?" },
            { "role": "assistant", "tool_calls": [{ "id": "a", "name": "weather", "arguments": { "city": "Oslo" } }] },
            { "role": "tool", "tool_call_id": "a", "content": "cold" },
        ],
        "tools": [{ "name": "weather", "description": "tells it", "parameters": parameters }, { "name": "f" }],
        "tool_choice": { "tool": "weather" },
    }));
    assert_eq!(
        body["messages"],
        json!([
            { "role": "system", "content": "be brief" },
            { "role": "user", "content": "weather?" },
            { "role": "assistant", "content": null, "tool_calls": [{ "id": "a", "type": "function",
                "function": { "name": "weather", "arguments": "{\"city\":\"Oslo\"}" } }] },
            { "role": "tool", "content": "cold", "tool_call_id": "a" },
        ])
    );
    let function = json!({ "name": "weather", "parameters": parameters, "description": "tells it" });
    assert_eq!(body["tools"][0], json!({ "type": "function", "function": function }));
    assert_eq!(body["tools"][1]["function"]["parameters"], json!({ "type": "object", "properties": {} }));
    assert_eq!(body["tool_choice"], json!({ "type": "function", "function": { "name": "weather" } }));
}

#[test]
fn a_schema_is_called_strict_where_the_api_would_enforce_it() {
    let strict = |schema: Value| {
        let format = json!({ "json_schema": { "schema": schema } });
        let body = body(json!({ "response_format": format }));
        assert_eq!(body["response_format"]["json_schema"]["name"], "answer");
        body["response_format"]["json_schema"]["strict"].as_bool().unwrap()
    };
    let closed = json!({ "type": "object", "properties": { "a": { "type": "string" } }, "required": ["a"],
        "additionalProperties": false });
    assert!(strict(closed.clone()));
    assert!(!strict(json!({ "type": "object" })));
    let open = json!({ "type": "object", "properties": { "a": { "type": "string" } }, "required": ["a"] });
    assert!(!strict(open.clone()));
    assert!(!strict(json!({ "type": "array", "items": open })));
    assert!(strict(json!({ "type": "array", "items": closed })));
    assert_eq!(
        body(json!({ "response_format": "json" }))["response_format"],
        json!({ "type": "json_object" })
    );
    assert_eq!(body(json!({ "response_format": "text" })).get("response_format"), None);
}

#[test]
fn what_the_api_has_no_words_for_is_refused() {
    for (ask, path) in [
        (json!({ "messages": null, "prompt": "x" }), "prompt"),
        (json!({ "grammar": "root ::= \"a\"" }), "grammar"),
        (json!({ "model": null }), "model"),
    ] {
        let refusal = sent(ask, json!({})).unwrap_err();
        assert_eq!(refusal.code, Code::InvalidPayload);
        assert_eq!(refusal.details.unwrap()["path"], path);
    }
    let request = sent(json!({ "model": null }), json!({ "default_model": "d" })).unwrap();
    assert_eq!(request.body["model"], "d");
}
