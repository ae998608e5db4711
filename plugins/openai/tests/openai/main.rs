//! The plugin against a server on this machine that answers well, badly, late
//! or not at all.
#![expect(clippy::unwrap_used, reason = "tests, with functions of their own")]

use std::time::Duration;

use ksi_provider::{Failure, Generated, StopReason};
use ksi_provider_http::testing::{
    Act, FakeServer, answer, answer_with, chunk, chunked_stream, head, last_chunk,
};
use ksi_sdk::{
    prelude::{Code, Refusal, json},
    testing::{Answer, FakeHost},
};
use plugin_openai::OpenAi;
use serde_json::Value;

mod documents;

const EVENT: &str = "openai:generate";

fn host(server: &FakeServer, more: Value) -> FakeHost<OpenAi> {
    let mut config = json!({ "base_url": format!("{}/v1", server.url()), "api_key": "sk-test-0123456789" });
    for (name, value) in more.as_object().unwrap() {
        config[name] = value.clone();
    }
    FakeHost::start(config).unwrap()
}

fn hello() -> Value {
    json!({ "model": "m", "messages": [{ "role": "user", "content": "hi" }] })
}

fn piece(text: &str) -> String {
    let chunk =
        json!({ "id": "c1", "model": "m-2025", "choices": [{ "index": 0, "delta": { "content": text } }] });
    format!("data: {chunk}\n\n")
}

fn stop(reason: &str) -> String {
    format!("data: {}\n\n", json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": reason }] }))
}

const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":4,\
    \"total_tokens\":13,\"prompt_tokens_details\":{\"cached_tokens\":5},\
    \"completion_tokens_details\":{\"reasoning_tokens\":1}}}\n\n";
const DONE: &str = "data: [DONE]\n\n";

fn events(events: &[&str]) -> Vec<Act> {
    let mut acts = vec![chunked_stream()];
    acts.extend(events.iter().map(|event| chunk(event.as_bytes())));
    acts.push(last_chunk());
    acts
}

/// What a server with this script makes of a request: the texts of the pieces,
/// and the end.
fn outcome(script: Vec<Act>, config: Value) -> (String, Result<Generated, Refusal>) {
    let server = FakeServer::answering(script);
    let host = host(&server, config);
    let outcome = follow(&host, hello());
    let more = server.was_asked().map(|_| server.was_asked());
    assert!(more.is_none_or(|more| more.is_none()), "nothing is sent twice");
    outcome
}

fn follow(host: &FakeHost<OpenAi>, ask: Value) -> (String, Result<Generated, Refusal>) {
    let call = host.open(EVENT, ask);
    let mut text = String::new();
    loop {
        match host.next(&call) {
            Answer::Chunk(delta) => text += delta["text"].as_str().unwrap(),
            Answer::End(end) => return (text, Ok(serde_json::from_value(end).unwrap())),
            Answer::Refusal(refusal) => return (text, Err(refusal)),
            other => panic!("{other:?}"),
        }
    }
}

fn failure(script: Vec<Act>, config: Value) -> (String, Refusal) {
    let (text, outcome) = outcome(script, config);
    let refusal = outcome.unwrap_err();
    let told = refusal.details.as_ref().and_then(|details| details["text_sent"].as_bool());
    assert_eq!(told, Some(!text.is_empty()), "{refusal:?}");
    assert!(text.is_empty() || !refusal.retryable, "nothing is repeated once text was told: {refusal:?}");
    (text, refusal)
}

#[test]
fn an_answer_comes_in_pieces_and_then_whole() {
    let server = FakeServer::answering(events(&[&piece("Hel"), &piece("lo"), &stop("stop"), USAGE, DONE]));
    let host = host(&server, json!({}));
    let (text, generated) = follow(&host, hello());
    let generated = generated.unwrap();
    assert_eq!((text.as_str(), generated.text.as_str()), ("Hello", "Hello"));
    assert_eq!((generated.model.as_str(), generated.stop_reason), ("m-2025", StopReason::Stop));
    assert_eq!(generated.response_id.as_deref(), Some("c1"));
    let usage = generated.usage;
    assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.total_tokens), (9, 4, 13));
    assert_eq!((usage.cached_tokens, usage.reasoning_tokens), (5, Some(1)));
    assert!(generated.timings.first_token_ms > 0.0);
    let asked = server.asked();
    assert!(asked.head.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{}", asked.head);
    assert_eq!(asked.header("authorization"), Some("Bearer sk-test-0123456789"));
    assert_eq!(asked.json()["messages"], json!([{ "role": "user", "content": "hi" }]));
    assert!(host.logged().is_empty(), "neither a prompt nor a key is logged");
}

#[test]
fn however_the_stream_is_cut_into_packets_the_text_is_the_same() {
    let whole = [piece("a é 漢 🎉"), piece(" b"), stop("length"), DONE.to_owned()].concat();
    // Every byte for itself: characters, line ends and frames are all torn.
    let mut acts = vec![chunked_stream()];
    acts.extend(whole.as_bytes().iter().map(|byte| chunk(&[*byte])));
    acts.push(last_chunk());
    let (text, generated) = outcome(acts, json!({}));
    assert_eq!(text, "a é 漢 🎉 b");
    assert_eq!(generated.unwrap().stop_reason, StopReason::Length);
    // All in one, with the other line ends and without chunks.
    let acts = vec![
        head("200 OK", "Text/Event-Stream; charset=utf-8"),
        Act::Send(whole.replace('\n', "\r\n").into()),
    ];
    assert_eq!(outcome(acts, json!({})).0, "a é 漢 🎉 b");
}

#[test]
fn tool_calls_come_in_pieces_and_then_as_arguments() {
    let calls = |calls: Value| {
        format!("data: {}\n\n", json!({ "choices": [{ "index": 0, "delta": { "tool_calls": calls } }] }))
    };
    let server = FakeServer::answering(events(&[
        &calls(json!([{ "index": 0, "id": "a", "function": { "name": "f", "arguments": "" } }])),
        &calls(json!([{ "index": 0, "function": { "arguments": "{\"x\":" } }])),
        &calls(json!([{ "index": 1, "id": "", "function": { "name": "g", "arguments": "[" } }])),
        &calls(json!([{ "index": 0, "id": "a", "function": { "name": "f", "arguments": "1}" } }])),
        &stop("stop"),
        DONE,
    ]));
    let host = host(&server, json!({}));
    let call = host.open(EVENT, hello());
    let mut pieces = Vec::new();
    let end: Generated = loop {
        match host.next(&call) {
            Answer::Chunk(delta) => pieces.extend(delta["tool_calls"].as_array().unwrap().clone()),
            Answer::End(end) => break serde_json::from_value(end).unwrap(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(end.stop_reason, StopReason::ToolCalls, "whatever the server calls it");
    let [first, second] = &end.tool_calls[..] else { panic!("{:?}", end.tool_calls) };
    assert_eq!((first.id.as_str(), first.name.as_str(), &first.arguments), ("a", "f", &json!({ "x": 1 })));
    assert_eq!((second.name.as_str(), &second.arguments), ("g", &json!("[")), "what is no object stays text");
    assert!(second.id.starts_with("call_"), "a call without a name gets one: {}", second.id);
    assert_eq!(pieces[0], json!({ "index": 0, "id": "a", "name": "f" }));
    assert_eq!(pieces[2], json!({ "index": 1, "id": second.id, "name": "g", "arguments": "[" }));
    assert_eq!(pieces[3], json!({ "index": 0, "arguments": "1}" }), "what was told is not told again");
}

#[test]
fn several_answers_are_kept_apart_with_their_probabilities() {
    let of = |index: u32, text: &str| {
        let top = json!([{ "token": text, "logprob": -0.5 }, { "token": "z", "logprob": -1.0 }]);
        let logprobs = json!({ "content": [{ "token": text, "logprob": -0.5, "top_logprobs": top }] });
        let choice = json!({ "index": index, "delta": { "content": text }, "logprobs": logprobs });
        format!("data: {}\n\n", json!({ "choices": [choice] }))
    };
    let end = |index: u32, reason: &str| {
        format!(
            "data: {}\n\n",
            json!({ "choices": [{ "index": index, "delta": {}, "finish_reason": reason }] })
        )
    };
    let script = events(&[&of(1, "b"), &of(0, "a"), &end(0, "stop"), &end(1, "length"), DONE]);
    let server = FakeServer::start(vec![script.clone(), script]);
    let host = host(&server, json!({}));
    let mut ask = hello();
    ask["choices"] = json!(2);
    ask["logprobs"] = json!(2);
    let generated = follow(&host, ask).1.unwrap();
    assert_eq!((generated.text.as_str(), generated.alternatives[0].text.as_str()), ("a", "b"));
    assert_eq!(generated.alternatives[0].stop_reason, StopReason::Length);
    assert_eq!(generated.logprobs[0].top[1].token, "z");
    let refusal = follow(&host, hello()).1.unwrap_err();
    assert_eq!(Failure::of(&refusal), Some(Failure::InvalidAnswer), "nobody asked for a second one");
}

#[test]
fn a_model_that_declines_says_so() {
    let declines = "data: {\"choices\":[{\"index\":0,\"delta\":{\"refusal\":\"I will not.\"}}]}\n\n";
    let (text, generated) = outcome(events(&[declines, &stop("stop"), DONE]), json!({}));
    assert_eq!((text.as_str(), generated.unwrap().stop_reason), ("I will not.", StopReason::ContentFilter));
}

#[test]
fn an_answer_without_its_last_word_is_whole_once_it_has_a_reason() {
    let (text, generated) = outcome(events(&[&piece("x"), &stop("stop")]), json!({}));
    assert_eq!((text.as_str(), generated.unwrap().text.as_str()), ("x", "x"));
}

#[test]
fn errors_are_told_by_kind_with_what_the_server_said() {
    let error = |kind: &str| json!({ "error": { "message": "because", "type": kind } }).to_string();
    for (status, body, code, retryable) in [
        ("401 Unauthorized", error("authentication_error"), Code::Denied, false),
        ("403 Forbidden", error("?"), Code::Denied, false),
        ("404 Not Found", error("?"), Code::NotFound, false),
        ("400 Bad Request", error("invalid_request_error"), Code::InvalidPayload, false),
        ("408 Request Timeout", error("?"), Code::Timeout, true),
        ("429 Too Many Requests", error("insufficient_quota"), Code::Denied, false),
        ("500 Internal Server Error", error("server_error"), Code::Unavailable, true),
        ("503 Service Unavailable", error("?"), Code::Unavailable, true),
        // With a good status, as some servers have it.
        ("200 OK", error("server_error"), Code::Unavailable, true),
    ] {
        let (_, refusal) = failure(answer(status, "application/json", &body), json!({}));
        assert_eq!((refusal.code, refusal.retryable), (code, retryable), "{status}: {refusal:?}");
        assert!(refusal.message.contains("because"), "{refusal}");
        assert!(!refusal.hint.is_empty() && !refusal.message.contains("sk-test"), "{refusal:?}");
    }
    let (_, refusal) = failure(answer("502 Bad Gateway", "text/html", "<html>oops</html>"), json!({}));
    assert_eq!((refusal.code, refusal.retryable), (Code::Unavailable, true));
    assert_eq!(refusal.details.unwrap()["status"], 502);
}

#[test]
fn who_asks_too_often_is_told_when_to_come_back() {
    let busy = |header: &str| {
        let script = answer_with("429 Too Many Requests", "application/json", header, "{}");
        let (_, refusal) = failure(script, json!({}));
        assert_eq!((refusal.code, refusal.retryable), (Code::Busy, true));
        refusal.retry_after_ms
    };
    assert_eq!(busy("retry-after: 7\r\n"), Some(7000));
    assert_eq!(busy("retry-after-ms: 250\r\n"), Some(250));
    // A date that has passed: at once.
    assert_eq!(busy("retry-after: Wed, 21 Oct 2015 07:28:00 GMT\r\n"), Some(0));
    let far = busy("retry-after: Wed, 21 Oct 2099 07:28:00 GMT\r\n");
    assert_eq!(far, Some(86_400_000), "a day is the most that is passed on");
    assert_eq!(busy(""), None);
}

#[test]
fn what_is_cut_off_is_no_answer() {
    // In the middle of the text; before any of it; after the head's first half.
    let mut torn = events(&[&piece("Hel"), &piece("lo")]);
    torn.pop();
    let (text, refusal) = failure(torn, json!({}));
    assert_eq!((text.as_str(), Failure::of(&refusal)), ("Hello", Some(Failure::Cut)));
    let (_, refusal) = failure(vec![chunked_stream()], json!({}));
    assert_eq!((Failure::of(&refusal), refusal.retryable), (Some(Failure::Cut), true));
    for script in [vec![], vec![Act::Send(b"HTTP/1.1 200 OK\r\ncontent-ty".to_vec())]] {
        let (_, refusal) = failure(script, json!({}));
        assert_eq!((Failure::of(&refusal), refusal.retryable), (Some(Failure::Cut), true), "{refusal:?}");
    }
    // The connection ends in order, the answer does not.
    let (text, refusal) = failure(events(&[&piece("x")]), json!({}));
    assert_eq!((text.as_str(), Failure::of(&refusal)), ("x", Some(Failure::Cut)));
    let (_, refusal) = failure(events(&[DONE]), json!({}));
    assert_eq!(Failure::of(&refusal), Some(Failure::Cut), "it is over, and never said why");
}

#[test]
fn an_error_in_the_middle_of_a_stream_ends_it() {
    let error = "data: {\"error\":{\"message\":\"worn out\",\"type\":\"server_error\"}}\n\n";
    let (text, refusal) = failure(events(&[&piece("x"), error]), json!({}));
    assert_eq!((text.as_str(), refusal.code), ("x", Code::Unavailable));
    assert!(refusal.message.contains("worn out"), "{refusal}");
    let (_, refusal) = failure(events(&[error]), json!({}));
    assert!(refusal.retryable, "nobody has heard anything yet");
}

#[test]
fn what_is_no_stream_of_events_is_an_invalid_answer() {
    for script in [
        answer("200 OK", "text/html", "<html>sign in</html>"),
        answer("200 OK", "application/json", "{\"choices\":[]}"),
        events(&["data: {\"choices\": [\n\n"]),
        events(&["data: not json\n\n"]),
        events(&["data: {\"choices\": 7}\n\n"]),
        events(&[&stop("because")]),
        vec![chunked_stream(), chunk(b"data: \xff\xfe\n\n"), last_chunk()],
        vec![Act::Send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n".to_vec())],
    ] {
        let (_, refusal) = failure(script.clone(), json!({}));
        let failure = Failure::of(&refusal);
        let broken = matches!(failure, Some(Failure::InvalidAnswer | Failure::Cut));
        assert!(broken && refusal.code == Code::Unavailable, "{script:?}: {refusal:?}");
    }
}

#[test]
fn a_redirect_is_not_followed() {
    let elsewhere = FakeServer::answering(events(&[DONE]));
    let location = format!("location: {}/v1/chat/completions?key=s3cret\r\n", elsewhere.url());
    for status in ["301 Moved Permanently", "307 Temporary Redirect"] {
        let (_, refusal) = failure(answer_with(status, "text/plain", &location, ""), json!({}));
        assert_eq!(Failure::of(&refusal), Some(Failure::InvalidAnswer));
        assert!(
            refusal.message.contains(&elsewhere.url()) && !refusal.message.contains("s3cret"),
            "{refusal}"
        );
    }
    assert!(elsewhere.was_asked().is_none(), "the key went nowhere else");
}

#[test]
fn a_server_that_sends_without_end_is_stopped_at_the_limits() {
    let limits = json!({ "limits": { "line_bytes": 4096, "answer_bytes": 65536 } });
    let line = vec![
        chunked_stream(),
        Act::Forever(b"1000\r\n".iter().copied().chain([b'x'; 4096]).chain(*b"\r\n").collect()),
    ];
    let pieces = vec![
        chunked_stream(),
        Act::Forever(format!("{:x}\r\n{}\r\n", piece("ha").len(), piece("ha")).into()),
    ];
    let comments = vec![chunked_stream(), Act::Forever(b"8\r\n: ping\n\n\r\n".to_vec())];
    for (script, limit) in [(line, "line_bytes"), (pieces, "answer_bytes"), (comments, "answer_bytes")] {
        let server = FakeServer::answering(script);
        let host = host(&server, limits.clone());
        let refusal = follow(&host, hello()).1.unwrap_err();
        assert_eq!((refusal.code, Failure::of(&refusal)), (Code::TooLarge, Some(Failure::InvalidAnswer)));
        assert!(refusal.message.contains(limit), "{refusal}");
        server.wait_until_gone();
    }
}

#[test]
fn every_wait_has_its_end() {
    let silent = vec![Act::Silence];
    let mute = vec![chunked_stream(), Act::Silence];
    let stuck = vec![chunked_stream(), chunk(piece("x").as_bytes()), Act::Silence];
    let short = |key: &str| json!({ "timeouts": { "connect_ms": 300, key: 200 } });
    let total = json!({ "timeouts": { "total_ms": 1000 } });
    for (script, config, text, ms) in [
        (silent.clone(), short("first_byte_ms"), "", "500 ms"),
        (mute, short("first_byte_ms"), "", "200 ms"),
        (stuck.clone(), short("between_bytes_ms"), "x", "200 ms"),
        (stuck, total.clone(), "x", "1000 ms"),
        (silent, total, "", "1000 ms"),
    ] {
        let server = FakeServer::answering(script);
        let host = host(&server, config.clone());
        let (told, outcome) = follow(&host, hello());
        let refusal = outcome.unwrap_err();
        assert_eq!((refusal.code, told.as_str()), (Code::Timeout, text), "{config}: {refusal}");
        assert_eq!(refusal.retryable, text.is_empty(), "{config}");
        assert!(refusal.message.contains(ms), "{config}: {refusal}");
        server.wait_until_gone();
    }
    let server = FakeServer::answering(vec![Act::Silence]);
    let host = host(&server, json!({}));
    let mut ask = hello();
    ask["timeout_ms"] = json!(80);
    let refusal = follow(&host, ask).1.unwrap_err();
    assert!(refusal.code == Code::Timeout && refusal.message.contains("80 ms"), "{refusal}");
    server.wait_until_gone();
}

#[test]
fn a_cancelled_request_closes_its_connection() {
    let server = FakeServer::answering(vec![chunked_stream(), chunk(piece("x").as_bytes()), Act::Silence]);
    let host = host(&server, json!({}));
    let call = host.open(EVENT, hello());
    assert!(matches!(host.next(&call), Answer::Chunk(_)));
    host.cancel(&call);
    server.wait_until_gone();
}

#[test]
fn a_server_that_is_not_there_or_has_no_tls_is_unreachable() {
    let (port, url) = {
        let server = FakeServer::start(Vec::new());
        (server.port(), server.url())
    };
    let host = FakeHost::<OpenAi>::start(json!({ "base_url": url })).unwrap();
    let refusal = host.request(EVENT, hello()).unwrap_err();
    assert_eq!((Failure::of(&refusal), refusal.retryable), (Some(Failure::Unreachable), true), "{refusal:?}");
    assert!(!refusal.message.contains(&port.to_string()), "the URL may be private: {refusal}");
    let server = FakeServer::answering(answer("400 Bad Request", "text/plain", "this is http"));
    let url = server.url().replace("http:", "https:");
    let host = FakeHost::<OpenAi>::start(json!({ "base_url": url, "timeouts": { "connect_ms": 2000 } }));
    // A machine without certificates says so at the start.
    match host {
        Ok(host) => {
            let refusal = host.request(EVENT, hello()).unwrap_err();
            assert!(
                matches!(Failure::of(&refusal), Some(Failure::Unreachable | Failure::Timeout)),
                "{refusal:?}"
            );
            assert!(server.was_asked().is_none(), "nothing was said in the clear");
        }
        Err(refusal) => assert!(refusal.hint.contains("certificates"), "{refusal:?}"),
    }
}

#[test]
fn models_are_listed_with_what_is_known_of_them() {
    let listed = json!({ "data": [
        { "id": "small", "max_model_len": 4096 }, { "id": "large", "context_length": 8192 },
        { "id": "local", "meta": { "n_ctx_train": 2048 } }, { "id": "plain" },
    ] });
    let server = FakeServer::start(vec![
        answer("200 OK", "application/json", &listed.to_string()),
        answer("200 OK", "application/json", "{\"data\": 1}"),
        answer("200 OK", "application/json", "{\"data\": ["),
        answer("401 Unauthorized", "application/json", "{}"),
    ]);
    let known = json!({ "small": { "capabilities": ["chat"] }, "plain": { "context_length": 1 } });
    let host = host(&server, json!({ "default_model": "plain", "models": known }));
    let models = host.request("openai:models", json!({})).unwrap();
    let all = json!(["chat", "tools", "json_schema", "choices"]);
    assert_eq!(
        models["models"],
        json!([
            { "name": "plain", "context_length": 1, "capabilities": all, "toy": false },
            { "name": "large", "context_length": 8192, "capabilities": all, "toy": false },
            { "name": "local", "context_length": 2048, "capabilities": all, "toy": false },
            { "name": "small", "context_length": 4096, "capabilities": ["chat"], "toy": false },
        ])
    );
    assert!(server.asked().head.starts_with("GET /v1/models HTTP/1.1\r\n"));
    for kind in [Failure::InvalidAnswer, Failure::InvalidAnswer, Failure::Unauthorized] {
        let refusal = host.request("openai:models", json!({})).unwrap_err();
        assert_eq!(Failure::of(&refusal), Some(kind), "{refusal:?}");
    }
}

#[test]
fn what_cannot_work_is_refused_at_the_start() {
    for (config, path) in [
        (json!({}), "api_key"),
        (json!({ "api_key": " " }), "api_key"),
        (json!({ "base_url": "http://192.0.2.1/v1", "api_key": "k" }), "base_url"),
        (json!({ "base_url": "nonsense" }), "base_url"),
        (json!({ "base_url": "http://localhost", "api_key": "a\nb" }), "api_key"),
        (json!({ "base_url": "http://localhost", "timeouts": { "total_ms": 0 } }), "timeouts.total_ms"),
    ] {
        let refusal = FakeHost::<OpenAi>::start(config.clone()).err().unwrap();
        assert_eq!(refusal.details.as_ref().unwrap()["path"], path, "{config}: {refusal:?}");
        assert!(!refusal.hint.is_empty(), "{config}");
    }
    assert!(FakeHost::<OpenAi>::start(json!({ "unknown": 1 })).is_err());
}

#[test]
fn a_slow_asker_holds_up_the_server_and_not_the_plugin() {
    let server = FakeServer::answering(events(&[&piece("a"), &piece("b"), &piece("c"), &stop("stop"), DONE]));
    let host = host(&server, json!({ "timeouts": { "between_bytes_ms": 60_000 } }));
    let meta = ksi_sdk::protocol::meta::Meta { credit: Some(1), ..Default::default() };
    let call = host.open_as(EVENT, hello(), &meta);
    let text = |answer: Answer| match answer {
        Answer::Chunk(delta) => delta["text"].as_str().unwrap().to_owned(),
        other => panic!("{other:?}"),
    };
    assert_eq!(text(host.next(&call)), "a");
    let _ = server.asked();
    host.advance(Duration::from_secs(1));
    assert_eq!(host.try_next(&call), None, "there is no room for another");
    host.credit(&call, 2);
    assert_eq!((text(host.next(&call)), text(host.next(&call))), ("b".into(), "c".into()));
    assert!(matches!(host.next(&call), Answer::End(_)));
}

#[test]
fn a_proxy_is_asked_in_place_of_the_server() {
    let proxy = FakeServer::answering(events(&[&piece("x"), &stop("stop"), DONE]));
    let config = json!({ "base_url": "http://models.invalid/v1", "proxy": proxy.url() });
    let host = FakeHost::<OpenAi>::start(config).unwrap();
    assert_eq!(follow(&host, hello()).0, "x");
    let asked = proxy.asked();
    assert!(
        asked.head.starts_with("POST http://models.invalid/v1/chat/completions HTTP/1.1\r\n"),
        "{}",
        asked.head
    );
}
