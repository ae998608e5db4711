//! Servers that answer with one JSON document, although a stream was asked for.

use super::*;

/// A whole answer, as a server sends it that does not stream.
fn document(choices: &Value) -> Vec<Act> {
    let usage = json!({ "prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13 });
    let body = json!({ "id": "c1", "object": "chat.completion", "model": "m-2025", "choices": choices, "usage": usage });
    answer("200 OK", "application/json; charset=utf-8", &body.to_string())
}

fn whole(index: u32, text: &str, reason: &str) -> Value {
    json!({ "index": index, "message": { "role": "assistant", "content": text }, "finish_reason": reason })
}

#[test]
fn a_server_that_does_not_stream_is_heard_all_the_same() {
    let server = FakeServer::answering(document(&json!([whole(0, "Hello", "length")])));
    let host = host(&server, json!({}));
    let call = host.open(EVENT, hello());
    assert_eq!(host.next(&call), Answer::Chunk(json!({ "text": "Hello" })), "in one piece");
    let Answer::End(end) = host.next(&call) else { panic!("no end") };
    let end: Generated = serde_json::from_value(end).unwrap();
    assert_eq!((end.text.as_str(), end.stop_reason), ("Hello", StopReason::Length));
    assert_eq!((end.model.as_str(), end.response_id.as_deref()), ("m-2025", Some("c1")));
    assert_eq!((end.usage.prompt_tokens, end.usage.total_tokens), (9, 13));
    assert_eq!(server.asked().header("accept"), Some("text/event-stream, application/json;q=0.5"));
}

#[test]
fn several_whole_answers_have_their_probabilities_and_their_calls() {
    let mut first = whole(0, "a", "stop");
    let top = json!([{ "token": "a", "logprob": -0.5 }, { "token": "z", "logprob": -1.0 }]);
    first["logprobs"] = json!({ "content": [{ "token": "a", "logprob": -0.5, "top_logprobs": top }] });
    let function = |name: &str| json!({ "name": name, "arguments": "{\"x\":1}" });
    let calls = json!([{ "id": "c", "type": "function", "function": function("f") },
                       { "id": "d", "type": "function", "function": function("g") }]);
    let mut second = whole(1, "", "tool_calls");
    second["message"] = json!({ "role": "assistant", "content": null, "tool_calls": calls });
    let server = FakeServer::answering(document(&json!([second, first])));
    let host = host(&server, json!({}));
    let mut ask = hello();
    ask["choices"] = json!(2);
    ask["logprobs"] = json!(2);
    let generated = follow(&host, ask).1.unwrap();
    assert_eq!((generated.text.as_str(), generated.logprobs[0].top[1].token.as_str()), ("a", "z"));
    let calls = &generated.alternatives[0].tool_calls;
    assert_eq!((calls.len(), calls[1].name.as_str(), &calls[1].arguments), (2, "g", &json!({ "x": 1 })));
    let asked = server.asked().json();
    assert_eq!(
        (&asked["n"], &asked["logprobs"], &asked["top_logprobs"]),
        (&json!(2), &json!(true), &json!(2))
    );
}

#[test]
fn json_that_is_no_whole_answer_is_refused() {
    let mut no_reason = whole(0, "x", "stop");
    no_reason["finish_reason"] = Value::Null;
    let text = |body: &str| answer("200 OK", "application/json", body);
    let torn = vec![head("200 OK", "application/json"), Act::Send(b"{\"choices\":[".to_vec())];
    for (script, said) in [
        (text("{}"), "choices"),
        (text("[]"), "no completion"),
        (text("\"hello\""), "no completion"),
        (text("{\"choices\":[{\"index\":0}]}"), "message"),
        (text("{\"choices\":["), "cannot be read"),
        (torn, "cannot be read"),
        (document(&json!([])), "each of the answers"),
        (document(&json!([no_reason])), "each of the answers"),
        (document(&json!([whole(0, "x", "because")])), "because"),
        (document(&json!([whole(0, "x", "stop"), whole(1, "y", "stop")])), "not asked for"),
        (document(&json!([whole(1, "y", "stop")])), "not asked for"),
    ] {
        let (told, refusal) = failure(script.clone(), json!({}));
        assert_eq!((told.as_str(), Failure::of(&refusal)), ("", Some(Failure::InvalidAnswer)), "{script:?}");
        assert!(refusal.message.contains(said), "{script:?}: {refusal}");
    }
    let long = json!([whole(0, &"x".repeat(5000), "stop")]);
    let (_, refusal) =
        failure(document(&long), json!({ "limits": { "answer_bytes": 4096, "line_bytes": 4096 } }));
    assert_eq!((refusal.code, Failure::of(&refusal)), (Code::TooLarge, Some(Failure::InvalidAnswer)));
    let mut cut = document(&json!([whole(0, "x", "stop")]));
    let Some(Act::Send(body)) = cut.last_mut() else { panic!("no body") };
    body.truncate(20);
    assert_eq!(Failure::of(&failure(cut, json!({})).1), Some(Failure::Cut));
}
