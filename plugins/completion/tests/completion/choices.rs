//! Several answers to one request, and how likely their tokens were.

use ksi_sdk::prelude::Refusal;

use super::*;

/// What came of an answer, piece by piece, and its end.
fn heard(host: &Host, call: &Call) -> (Vec<Value>, Value) {
    let mut pieces = Vec::new();
    loop {
        match host.next(call) {
            Answer::Chunk(chunk) => pieces.push(chunk),
            Answer::End(end) => return (pieces, end),
            other => panic!("not ended: {other:?}"),
        }
    }
}

#[test]
fn several_answers_come_in_pieces_that_say_whose_they_are_and_then_whole() {
    let host = default_host();
    let request = json!({"prompt": "x", "model": "mock/each:a b|c", "choices": 3, "logprobs": 1});
    let (pieces, end) = heard(&host, &ask(&host, request));
    let certain =
        |word: &str| json!([{"token": word, "logprob": 0.0, "top": [{"token": word, "logprob": 0.0}]}]);
    assert_eq!(pieces[0], json!({"text": "a ", "logprobs": certain("a ")}));
    assert_eq!(pieces[2], json!({"text": "c", "choice": 1, "logprobs": certain("c")}));
    let told: Vec<_> =
        pieces.iter().map(|piece| (piece["choice"].as_u64(), piece["text"].as_str().unwrap())).collect();
    assert_eq!(told, [(None, "a "), (None, "b"), (Some(1), "c"), (Some(2), "a "), (Some(2), "b")]);
    assert_eq!((&end["text"], end["logprobs"].as_array().unwrap().len()), (&json!("a b"), 2));
    let others = end["alternatives"].as_array().unwrap();
    assert_eq!(others[0], json!({"text": "c", "stop_reason": "stop", "logprobs": certain("c")}));
    assert_eq!((others.len(), &others[1]["text"]), (2, &json!("a b")));
    assert_eq!(end["usage"]["completion_tokens"], 5);
}

#[test]
fn what_was_not_asked_for_is_not_told() {
    let host = default_host();
    let (pieces, end) = heard(&host, &ask(&host, json!({"prompt": "x", "model": "mock/each:a|c"})));
    assert_eq!(pieces, [json!({"text": "a"})]);
    assert!(end["alternatives"].is_null() && end["logprobs"].is_null(), "{end}");
}

#[test]
fn durable_work_tells_and_keeps_all_answers() {
    let host = default_host();
    let (id, _) = accept(&host, json!({"prompt": "x", "model": "mock/each:a|c", "choices": 2}));
    let facts = host.emitted();
    let deltas: Vec<_> = facts.iter().filter(|(event, _)| event == "completion:delta").collect();
    assert_eq!(deltas[1].1, json!({"request_id": id, "text": "c", "choice": 1}));
    let kept = outcome(&host, &id)["result"].clone();
    assert_eq!((&kept["text"], &kept["alternatives"][0]["text"]), (&json!("a"), &json!("c")));
}

#[test]
fn the_provider_is_asked_for_them() {
    let host = host(json!({"providers": {"llama": {"models": {"*": {"choices": true}}}}}));
    let call = ask(&host, json!({"prompt": "x", "choices": 2, "logprobs": 0}));
    host.reply(&host.expect("llama:models"), json!({"models": []}));
    let asked = host.expect("llama:generate");
    assert_eq!((&asked.data["choices"], &asked.data["logprobs"]), (&json!(2), &json!(0)));
    let likely = json!([{"token": "", "logprob": -1.0}]);
    host.chunk(&asked, json!({"text": "", "choice": 1, "logprobs": likely}));
    assert_eq!(host.next(&call), Answer::Chunk(json!({"text": "", "choice": 1, "logprobs": likely})));
    let mut answer = generated("a");
    answer["alternatives"] = json!([{"text": "b", "stop_reason": "length"}]);
    host.end(&asked, answer);
    assert_eq!(end(&host, &call)["alternatives"], json!([{"text": "b", "stop_reason": "length"}]));
}

#[test]
fn a_model_that_gives_one_answer_is_not_asked_for_several() {
    let host = default_host();
    let several =
        || json!({"prompt": "hi", "model": "anthropic/c", "choices": 2, "fallbacks": ["mock/echo"]});
    let call = ask(&host, several());
    host.reply(
        &host.expect("anthropic:models"),
        json!({"models": [{"name": "c", "capabilities": ["chat"]}]}),
    );
    let answered = end(&host, &call);
    assert_eq!(answered["why"], "fallback: anthropic/c: it gives one answer to a request");
    let mut alone = several();
    alone["fallbacks"] = json!([]);
    let refused = host.request("completion:request", alone).unwrap_err();
    assert_eq!(refused.code, Code::InvalidPayload);
    assert!(refused.message.contains("one answer") && !refused.hint.is_empty(), "{refused}");
    let one = ask(&host, json!({"prompt": "hi", "model": "anthropic/c", "choices": 1}));
    host.end(&host.expect("anthropic:generate"), generated("x"));
    assert_eq!(end(&host, &one)["text"], "x");
}

#[test]
fn every_alternative_must_fit_the_schema() {
    let host = default_host();
    let request = |model: &str| {
        json!({"prompt": "x", "choices": 2, "model": model,
               "response_format": {"json_schema": {"schema": {"type": "object", "required": ["n"]}}}})
    };
    let (_, end) = heard(&host, &ask(&host, request("mock/each:{\"n\":1}|{\"n\":2}")));
    assert_eq!(end["alternatives"][0]["text"], "{\"n\":2}");
    for (wrong, said) in
        [("{\"m\":1}", "`alternatives[0]` does not fit"), ("none", "`alternatives[0]` is not the JSON")]
    {
        let refused = host.request("completion:request", request(&format!("mock/each:{{\"n\":1}}|{wrong}")));
        let refused = refused.unwrap_err();
        assert!(refused.code == Code::Unavailable && refused.message.contains(said), "{refused}");
    }
}

#[test]
fn hooks_see_every_answer_and_what_they_edit_is_no_longer_likely() {
    let host = default_host();
    host.script("completion:post_llm_result", |asked| {
        let mut result = asked.data.clone();
        assert!(result["alternatives"][0]["logprobs"].is_null());
        result["alternatives"][0]["text"] = json!("***");
        result["alternatives"].as_array_mut().unwrap().truncate(2);
        Ok(result)
    });
    let request = json!({"prompt": "x", "model": "mock/each:a|secret|c", "choices": 4, "logprobs": 0});
    let (_, end) = heard(&host, &ask(&host, request));
    let others = end["alternatives"].as_array().unwrap();
    assert_eq!(others.len(), 2, "what was not given back is left out");
    assert_eq!(others[0], json!({"text": "***", "stop_reason": "stop"}));
    assert_eq!((&others[1]["text"], &others[1]["logprobs"][0]["token"]), (&json!("c"), &json!("c")));
    assert_eq!(end["logprobs"][0]["token"], "a");
}

#[test]
fn a_budget_expects_every_answer() {
    let host = host(json!({"budgets": {"few": {"tokens": 1000}}, "retry": {"attempts": 0},
                           "providers": {"openai": {"models": {"*": {"choices": true}}}}}));
    let request = |choices: u32| json!({"prompt": "x".repeat(400), "model": "openai/m", "max_tokens": 300, "choices": choices});
    let call = ask(&host, request(2));
    host.refuse(&host.expect("openai:models"), Refusal::new(Code::Unavailable, "later"));
    let asked = host.expect("openai:generate");
    let budget = || host.request("completion:usage", json!({})).unwrap()["budgets"][0].clone();
    assert_eq!(budget()["reserved"]["tokens"], 704);
    host.end(&asked, generated("x"));
    end(&host, &call);
    let refused = host.request("completion:request", request(3)).unwrap_err();
    assert_eq!(refused.details.unwrap()["budget"], "few");
}
