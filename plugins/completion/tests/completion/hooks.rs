//! The word of plugins on a prompt and on its answer, and what becomes of an
//! answer that is not what was asked for.

use std::time::Duration;

use ksi_sdk::prelude::Refusal;

use super::*;

const PRE: &str = "completion:pre_llm_prompt";
const POST: &str = "completion:post_llm_result";

fn schema() -> Value {
    json!({"json_schema": {"schema": {"type": "object", "required": ["n"]}}})
}

#[test]
fn what_a_hook_makes_of_a_prompt_is_what_the_model_receives() {
    let host = default_host();
    host.script(PRE, |asked| {
        let mut prompt = asked.data.clone();
        prompt["messages"][0]["content"] = json!("edited");
        prompt["max_tokens"] = json!(7);
        Ok(prompt)
    });
    let call = ask(&host, json!({"prompt": "as written"}));
    let asked = host.expect("llama:generate");
    assert_eq!(asked.data["messages"], json!([{"role": "user", "content": "edited"}]));
    assert_eq!(asked.data["max_tokens"], 7);
    generate(&host, &asked, "x");
    end(&host, &call);
}

#[test]
fn what_a_hook_makes_of_an_answer_is_the_result() {
    let host = default_host();
    host.script(POST, |asked| {
        assert_eq!(asked.data["model"], json!({"provider": "llama", "model": "ksi-tiny"}));
        let mut result = asked.data.clone();
        result["text"] = json!("***");
        result["stop_reason"] = json!("length");
        Ok(result)
    });
    let call = ask(&host, json!({"prompt": "x"}));
    generate(&host, &host.expect("llama:generate"), "a secret");
    let end = end(&host, &call);
    assert_eq!((&end["text"], &end["stop_reason"]), (&json!("***"), &json!("stop")), "and only that");
}

#[test]
fn a_hook_that_refuses_ends_the_request_and_no_model_is_asked() {
    let host = default_host();
    host.script(PRE, |_| Err(Refusal::new(Code::Denied, "not this")));
    let call = ask(&host, json!({"prompt": "x", "fallbacks": ["mock/echo"]}));
    let refused = refusal(&host, &call);
    assert_eq!((refused.code, refused.message.as_str()), (Code::Denied, "not this"));
    assert!(!host.has_asked());
    assert_eq!(status(&host), (0, 0));
}

#[test]
fn what_cannot_be_asked_is_blamed_on_the_hook() {
    let host = default_host();
    host.script(PRE, |asked| {
        let mut prompt = asked.data.clone();
        prompt["messages"] = json!([]);
        Ok(prompt)
    });
    let refused = host.request("completion:request", json!({"prompt": "x"})).unwrap_err();
    assert_eq!(refused.code, Code::Unavailable);
    assert!(refused.message.contains("plugin"), "{refused}");
    host.script(PRE, |_| Err(Refusal::new(Code::Timeout, "no word")));
    let refused = host.request("completion:request", json!({"prompt": "x"})).unwrap_err();
    assert_eq!(refused.code, Code::Unavailable, "it is not the request's own time that is over");
}

#[test]
fn hooks_have_a_time_limit_of_their_own() {
    let host = Host::start(json!({"hooks_timeout_ms": 700})).unwrap();
    ask(&host, json!({"prompt": "x"}));
    assert_eq!(host.expect(PRE).meta.timeout_ms, Some(700));
}

#[test]
fn an_answer_that_does_not_fit_its_schema_is_refused_with_its_place() {
    let host = host(json!({"providers": {"llama": {"models": {"*": {"json_schema": true}}}}}));
    let asking = |fallbacks: Value| {
        let call = ask(&host, json!({"prompt": "x", "response_format": schema(), "fallbacks": fallbacks}));
        host.reply(&host.expect("llama:models"), json!({"models": []}));
        call
    };
    let call = asking(json!([]));
    let asked = host.expect("llama:generate");
    assert_eq!(asked.data["response_format"], schema());
    host.end(&asked, generated("{\"m\": 1}"));
    let refused = refusal(&host, &call);
    assert_eq!(refused.code, Code::Unavailable);
    assert!(refused.message.contains("`n` is missing"), "{refused}");
    let call = ask(
        &host,
        json!({"prompt": "x", "response_format": schema(),
                                 "fallbacks": ["mock/fixed:{\"n\": 1}"]}),
    );
    host.end(&host.expect("llama:generate"), generated("I would rather not"));
    let end = end(&host, &call);
    assert_eq!((&end["text"], &end["attempts"]), (&json!("{\"n\": 1}"), &json!(2)));
}

#[test]
fn tools_reach_the_model_and_its_calls_come_back() {
    let host = default_host();
    let call = ask(&host, json!({"prompt": "x", "tools": [{"name": "look"}], "tool_choice": "required"}));
    host.reply(&host.expect("llama:models"), json!({"models": []}));
    let asked = host.expect("llama:generate");
    assert_eq!(
        (&asked.data["tools"][0]["name"], &asked.data["tool_choice"]),
        (&json!("look"), &json!("required"))
    );
    host.chunk(&asked, json!({"tool_calls": [{"index": 0, "id": "c1", "name": "look", "arguments": "{}"}]}));
    let mut answer = generated("");
    answer["tool_calls"] = json!([{"id": "c1", "name": "look", "arguments": {}}]);
    answer["stop_reason"] = json!("tool_calls");
    host.end(&asked, answer);
    let Answer::Chunk(chunk) = host.next(&call) else { panic!("no chunk") };
    assert_eq!(chunk["tool_calls"][0]["name"], "look");
    let end = end(&host, &call);
    assert_eq!((&end["tool_calls"][0]["id"], &end["stop_reason"]), (&json!("c1"), &json!("tool_calls")));
    host.advance(Duration::from_secs(1));
}
