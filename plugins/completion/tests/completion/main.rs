//! The completion plugin from outside: what a client asks, what it is told,
//! and what the provider behind it is asked. Time moves only when a test
//! moves it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics, in its own functions too")]

use ksi_sdk::testing::{Answer, Asked, Call, FakeHost};
use plugin_completion::Completion;
use serde_json::{Value, json};

mod endings;
mod queueing;
mod requests;
mod retries;

type Host = FakeHost<Completion>;

fn host(config: Value) -> Host {
    Host::start(config).unwrap()
}

fn default_host() -> Host {
    host(json!({ "retry": { "jitter": false } }))
}

/// Opens `completion:request` for a prompt and whatever else the object has.
fn ask(host: &Host, request: Value) -> Call {
    host.open("completion:request", request)
}

/// Opens `completion:async` and returns its `request_id` and `position`.
fn accept(host: &Host, request: Value) -> (String, u64) {
    let accepted = host.request("completion:async", request).unwrap();
    assert_eq!(accepted["status"], "accepted");
    (accepted["request_id"].as_str().unwrap().to_owned(), accepted["position"].as_u64().unwrap())
}

/// The end that a llama plugin would send for this text.
fn generated(text: &str) -> Value {
    json!({
        "model": "ksi-tiny", "text": text, "stop_reason": "stop", "toy": true, "seed": 11,
        "usage": { "prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5 },
        "timings": { "load_ms": 7, "prompt_ms": 1.5, "generate_ms": 2.5, "first_token_ms": 2.0,
                     "prompt_per_second": 2000.0, "generate_per_second": 800.0 },
    })
}

/// Answers a `llama:generate` in full.
fn generate(host: &Host, asked: &Asked, text: &str) {
    host.chunk(asked, json!({ "text": text }));
    host.end(asked, generated(text));
}

fn end(host: &Host, call: &Call) -> Value {
    loop {
        match host.next(call) {
            Answer::End(end) => return end,
            Answer::Chunk(_) => {}
            other => panic!("not ended: {other:?}"),
        }
    }
}

fn refusal(host: &Host, call: &Call) -> ksi_sdk::prelude::Refusal {
    match host.next(call) {
        Answer::Refusal(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

fn get(host: &Host, request_id: &str) -> Value {
    host.request("completion:get", json!({ "request_id": request_id })).unwrap()
}

fn status(host: &Host) -> (u64, u64) {
    let status = host.request("completion:status", json!({})).unwrap();
    (status["queued"].as_u64().unwrap(), status["running"].as_u64().unwrap())
}

/// Names of the facts emitted so far about one request.
fn facts(host: &Host, request_id: &str) -> Vec<String> {
    let about = |(_, data): &(String, Value)| data["request_id"] == request_id;
    host.emitted().into_iter().filter(about).map(|(event, _)| event).collect()
}
