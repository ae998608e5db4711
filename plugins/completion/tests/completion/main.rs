//! The completion plugin from outside: what a client asks, what it is told,
//! and what the provider behind it is asked. Time moves only when a test
//! moves it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics, in its own functions too")]

use std::{cell::RefCell, collections::HashMap};

use ksi_sdk::{
    prelude::Code,
    protocol::meta::Meta,
    testing::{Answer, Asked, Call, FakeHost},
};
use plugin_completion::Completion;
use serde_json::{Value, json};

mod budgets;
mod chaos;
mod choices;
mod conversations;
mod endings;
mod hooks;
mod queueing;
mod requests;
mod retries;
mod routing;
mod usage;

type Host = FakeHost<Completion>;

fn host(config: Value) -> Host {
    unhooked(Host::start(config).unwrap())
}

/// The hooks as they are where nobody has a word: what was asked comes back.
fn unhooked(host: Host) -> Host {
    for hook in ["completion:pre_llm_prompt", "completion:post_llm_result"] {
        host.script(hook, |asked| Ok(asked.data.clone()));
    }
    host
}

fn default_host() -> Host {
    host(json!({ "retry": { "jitter": false } }))
}

/// Opens `completion:request` for a prompt and whatever else the object has.
fn ask(host: &Host, request: Value) -> Call {
    host.open("completion:request", request)
}

thread_local! {
    /// What a test's keeper of work has handed over, by its name.
    static HANDED_OVER: RefCell<HashMap<String, Handed>> = RefCell::default();
}

struct Handed {
    call: Call,
    ended: Option<Value>,
}

/// Hands a request over as the keeper of work does; returns its name and its
/// place in the queue.
fn accept(host: &Host, request: Value) -> (String, u64) {
    let id = HANDED_OVER.with_borrow(|handed| format!("work-{}", handed.len()));
    let meta = Meta { idempotency_key: Some(id.clone()), ..Meta::default() };
    let call = host.open_as("completion:async", request, &meta);
    HANDED_OVER.with_borrow_mut(|handed| handed.insert(id.clone(), Handed { call, ended: None }));
    let status = host.request("completion:status", json!({ "request_id": id }));
    let position = status.map_or(0, |status| status["requests"][0]["position"].as_u64().unwrap());
    (id, position)
}

/// Gives up what was handed over, as the keeper does on `work:cancel`.
fn give_up(host: &Host, id: &str) {
    HANDED_OVER.with_borrow_mut(|handed| {
        let handed = handed.get_mut(id).unwrap();
        host.cancel(&handed.call);
        handed.ended.get_or_insert(json!({ "state": "cancelled" }));
    });
}

/// What the keeper would write down of what it handed over: its state, and the
/// result or refusal.
fn outcome(host: &Host, id: &str) -> Value {
    HANDED_OVER.with_borrow_mut(|handed| {
        let handed = handed.get_mut(id).unwrap();
        if let Some(ended) = &handed.ended {
            return ended.clone();
        }
        let ended = match host.try_next(&handed.call) {
            Some(Answer::Reply(result)) => json!({ "state": "done", "result": result }),
            Some(Answer::Refusal(refusal)) if refusal.code == Code::Cancelled => {
                json!({ "state": "cancelled" })
            }
            Some(Answer::Refusal(refusal)) => json!({ "state": "failed", "refusal": refusal }),
            Some(other) => panic!("no answer to durable work: {other:?}"),
            None => return json!({ "state": "open" }),
        };
        handed.ended = Some(ended.clone());
        ended
    })
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

fn status(host: &Host) -> (u64, u64) {
    let status = host.request("completion:status", json!({})).unwrap();
    (status["queued"].as_u64().unwrap(), status["running"].as_u64().unwrap())
}

/// Names of the facts emitted so far about one request.
fn facts(host: &Host, request_id: &str) -> Vec<String> {
    let about = |(_, data): &(String, Value)| data["request_id"] == request_id;
    host.emitted().into_iter().filter(about).map(|(event, _)| event).collect()
}
