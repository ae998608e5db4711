//! The state plugin from outside: what a client asks and is told, what is left
//! after a restart, and what happens as time passes. Time moves only when a
//! test moves it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics, in its own functions too")]

use ksi_sdk::{
    prelude::{Code, Refusal},
    protocol::json,
    testing::{Answer, Call, FakeHost},
};
use plugin_state::StatePlugin;
use serde_json::{Value, json};

mod expiry;
mod limits;
mod lost;
mod queue_model;
mod queues;
mod value_model;
mod values;
mod watches;

type Host = FakeHost<StatePlugin>;

/// What an empty queue has.
const NOTHING: [Value; 0] = [];

fn host() -> Host {
    Host::start(json!({})).unwrap()
}

fn ask(host: &Host, event: &str, data: Value) -> Value {
    host.request(event, data.clone()).unwrap_or_else(|refusal| panic!("{event} {data}: {refusal}"))
}

fn refused(host: &Host, event: &str, data: Value) -> Refusal {
    match host.request(event, data.clone()) {
        Err(refusal) => refusal,
        Ok(answer) => panic!("{event} {data} was not refused: {answer}"),
    }
}

/// Sets a key of the global namespace; answers with the version.
fn set(host: &Host, key: &str, value: Value) -> u64 {
    ask(host, "state:set", json!({ "key": key, "value": value }))["version"].as_u64().unwrap()
}

/// The value of a key, if it has one.
fn get(host: &Host, key: &str) -> Option<Value> {
    let answer = ask(host, "state:get", json!({ "key": key }));
    answer["found"].as_bool().unwrap().then(|| answer["value"].clone())
}

/// Keys of the global namespace.
fn keys(host: &Host) -> Vec<String> {
    let answer = ask(host, "state:list", json!({ "limit": 1000 }));
    let items = answer["items"].as_array().unwrap();
    items.iter().map(|item| item["key"].as_str().unwrap().to_owned()).collect()
}

fn push(host: &Host, data: Value) -> u64 {
    ask(host, "state:push", json!({ "queue": "q", "data": data }))["id"].as_u64().unwrap()
}

/// Takes from the queue; answers with the data.
fn pop(host: &Host, mut more: Value) -> Vec<Value> {
    more["queue"] = "q".into();
    let answer = ask(host, "state:pop", more);
    answer["items"].as_array().unwrap().iter().map(|item| item["data"].clone()).collect()
}

fn ids(items: &Value) -> Vec<u64> {
    items.as_array().unwrap().iter().map(|item| item["id"].as_u64().or(item.as_u64()).unwrap()).collect()
}

fn chunk(host: &Host, call: &Call) -> Value {
    match host.try_next(call) {
        Some(Answer::Chunk(chunk)) => chunk,
        other => panic!("no part: {other:?}"),
    }
}

/// Makes the plugin lose the answers to all its writes from now on; they are
/// `made` or not.
fn lose_answers(host: &Host, made: bool) {
    let space = host.space();
    host.script("space:apply", move |asked| {
        let bytes = |value: &Value| -> Vec<u8> {
            let bytes = value.as_array().unwrap().iter();
            bytes.map(|byte| u8::try_from(byte.as_u64().unwrap()).unwrap()).collect()
        };
        for change in asked.data["changes"].as_array().unwrap().iter().filter(|_| made) {
            space.put(bytes(&change["key"]), &json::to_json(&bytes(&change["value"])).unwrap());
        }
        Err(Refusal::new(Code::PluginRestarted, "the plugin checkpoint died"))
    });
}
