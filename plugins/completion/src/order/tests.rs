//! What is refused, and what is taken as it is.

use ksi_sdk::prelude::Code;
use serde_json::Value;

use super::*;

fn order(request: Value) -> Result<Order, Refusal> {
    let config = Config::default();
    Order::new(serde_json::from_value(request).unwrap(), &config, &Providers::new(&config.providers))
}

#[test]
fn every_wrong_field_is_refused_with_its_path() {
    for (request, path) in [
        (json!({}), "prompt"),
        (json!({"prompt": " \n"}), "prompt"),
        (json!({"prompt": "x", "messages": []}), "messages"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": [{"role": "user", "content": ""}]}), "messages[0].content"),
        (json!({"messages": [{"role": "assistant", "content": "x"}]}), "messages"),
        (json!({"prompt": "x", "system": ""}), "system"),
        (
            json!({"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}],
                   "system": "z"}),
            "system",
        ),
        (json!({"prompt": "x", "max_tokens": 0}), "max_tokens"),
        (json!({"prompt": "x", "max_tokens": -1}), "max_tokens"),
        (json!({"prompt": "x", "temperature": -0.1}), "temperature"),
        (json!({"prompt": "x", "top_p": 1.1}), "top_p"),
        (json!({"prompt": "x", "top_k": -1}), "top_k"),
        (json!({"prompt": "x", "min_p": 2}), "min_p"),
        (json!({"prompt": "x", "repetition_penalty": 0}), "repetition_penalty"),
        (json!({"prompt": "x", "seed": 4_294_967_296_u64}), "seed"),
        (json!({"prompt": "x", "stop": ["a", ""]}), "stop[1]"),
        (json!({"prompt": "x", "stop": vec!["a"; 17]}), "stop"),
        (json!({"prompt": "x", "choices": 0}), "choices"),
        (json!({"prompt": "x", "choices": 17}), "choices"),
        (json!({"prompt": "x", "logprobs": -1}), "logprobs"),
        (json!({"prompt": "x", "logprobs": 21}), "logprobs"),
        (json!({"prompt": "x", "priority": 11}), "priority"),
        (json!({"prompt": "x", "timeout_ms": 0}), "timeout_ms"),
        (json!({"prompt": "x", "agent": ""}), "agent"),
        (json!({"prompt": "x", "remember": true}), "conversation_id"),
        (json!({"prompt": "x", "memories": [{"name": "", "text": "y"}]}), "memories[0].name"),
        (json!({"prompt": "x", "context_tokens": 0}), "context_tokens"),
        (json!({"prompt": "x", "conversation_id": ""}), "conversation_id"),
        (json!({"prompt": "x", "conversation_id": "c".repeat(129)}), "conversation_id"),
        (json!({"prompt": "x", "fallbacks": ["mock/echo", "tiny"]}), "fallbacks[1]"),
        (json!({"prompt": "x", "fallbacks": vec!["mock/echo"; 9]}), "fallbacks"),
        (json!({"prompt": "x", "tool_choice": "required"}), "tool_choice"),
        (json!({"prompt": "x", "model": "tiny"}), "model"),
        (json!({"prompt": "x", "model": "mock/slow:fast"}), "model"),
    ] {
        let refusal = order(request.clone()).unwrap_err();
        assert_eq!(refusal.code, Code::InvalidPayload, "{request}: {refusal}");
        assert_eq!(refusal.details.unwrap()["path"], path, "{request}");
    }
    let mut request = Request { prompt: Some("x".into()), ..Request::default() };
    request.temperature = Some(f64::NAN);
    let config = Config::default();
    let order = Order::new(request, &config, &Providers::new(&config.providers));
    assert!(order.is_err(), "not a number is in no range");
}

#[test]
fn a_prompt_is_a_message_of_the_user_and_the_system_text_goes_first() {
    let order = order(json!({"prompt": "hi", "system": "be kind"})).unwrap();
    let roles: Vec<_> = order.messages.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
    assert_eq!(roles, [("system", "be kind"), ("user", "hi")]);
    assert_eq!((order.priority, order.timeout), (0, Duration::from_secs(600)));
}

#[test]
fn settings_are_taken_as_they_are() {
    let order = order(json!({"prompt": "x", "max_tokens": 5, "temperature": 0, "top_p": 0.5, "top_k": 0,
        "min_p": 0.1, "repetition_penalty": 1.1, "seed": 4_294_967_295_u32, "stop": ["."],
        "choices": 16, "logprobs": 0, "priority": -10, "timeout_ms": 10}))
    .unwrap();
    assert_eq!(
        json!(order.settings),
        json!({"max_tokens": 5, "temperature": 0.0, "top_p": 0.5, "top_k": 0, "min_p": 0.1,
            "repetition_penalty": 1.1, "seed": 4_294_967_295_u32, "stop": ["."], "choices": 16, "logprobs": 0})
    );
    assert_eq!((order.priority, order.timeout), (-10, Duration::from_millis(10)));
}

#[test]
fn several_answers_are_made_of_one_question() {
    let needs = |choices: u32| {
        order(json!({"prompt": "x".repeat(400), "max_tokens": 50, "choices": choices})).unwrap().needs()
    };
    let (one, four) = (needs(1), needs(4));
    assert_eq!((one.tokens(), four.tokens()), (154, 304));
    assert_eq!((one.are_special(), four.are_special()), (false, true));
}
