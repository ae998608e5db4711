//! The built-in model through a real daemon: the socket, the completion plugin,
//! the llama plugin in its child process, and llama.cpp.
//!
//! The toy is a toy: nothing here asserts what it knows. Where a test needs a
//! generation that lasts, it takes a model that never ends its turn: the
//! built-in one with the tokens that end a turn renamed.

use std::path::Path;

use ksi_tests::{Daemon, Home, Lines, wait_until};
use serde_json::{Value, json};

#[path = "../../plugins/llama/tests/greedy/adapter.rs"]
pub(crate) mod adapter;
mod answers;
mod churn;
mod endings;
mod files;
mod refusals;
mod storms;
mod workers;

/// The built-in model.
pub(crate) const TINY: &[u8] = include_bytes!("../../plugins/llama/model/ksi-tiny.gguf");

/// Enough context for a generation of many seconds on any machine.
const LONG: &str = "[plugins.llama.config]\ncontext = 16384\n";

/// A daemon with nothing but what it ships with.
fn fresh() -> Daemon {
    let daemon = Home::new().start();
    daemon.ready();
    daemon
}

/// A daemon with a model that never ends its turn, and this much more
/// configuration.
fn endless(more: &str) -> Daemon {
    let home = Home::with_config(&format!("{LONG}{more}"));
    add_model(&home.paths().models_dir(), "endless", &endless_model());
    let daemon = home.start();
    daemon.ready();
    daemon
}

pub(crate) fn add_model(dir: &Path, name: &str, bytes: &[u8]) {
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join(format!("{name}.gguf")), bytes).unwrap();
}

/// Where `part` lies in a model file.
fn find(bytes: &[u8], part: &[u8]) -> usize {
    bytes.windows(part.len()).position(|window| window == part).expect("it is in the file")
}

/// The built-in model under another name, with a long context, and without the
/// tokens by which llama.cpp knows that a turn has ended.
fn endless_model() -> Vec<u8> {
    let mut bytes = TINY.to_vec();
    // A key is followed by its type and its value; 4 is an unsigned number.
    for (key, value) in [("llama.context_length", 65_536_u32), ("tokenizer.ggml.eos_token_id", 2047)] {
        let at = find(&bytes, key.as_bytes()) + key.len();
        assert_eq!(bytes[at..at + 4], 4_u32.to_le_bytes());
        bytes[at + 4..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    // Twice: in the vocabulary and in the chat template.
    for (token, renamed) in
        [("<|im_end|>", "<|im_eno|>"), ("<|im_end|>", "<|im_eno|>"), ("<|endoftext|>", "<|endoftexx|>")]
    {
        let at = find(&bytes, token.as_bytes());
        bytes[at..at + token.len()].copy_from_slice(renamed.as_bytes());
    }
    // Type and length lie between the key and its value.
    let at = find(&bytes, b"general.name") + b"general.name".len() + 12;
    bytes[at..at + 8].copy_from_slice(b"ksi-talk");
    bytes
}

/// A question that is answered the same every time.
fn greedy(prompt: &str) -> Value {
    json!({"prompt": prompt, "temperature": 0})
}

/// A request that is answered for many seconds.
fn talk() -> Value {
    json!({"prompt": "Tell me a story", "model": "llama/endless", "max_tokens": 16_000, "seed": 3})
}

/// `value` with the fields of `more`.
fn with(mut value: Value, more: Value) -> Value {
    let Value::Object(more) = more else { panic!("an object: {more}") };
    value.as_object_mut().expect("an object").extend(more);
    value
}

/// The pieces of an answer, and its end or its refusal.
fn collect(lines: &mut Lines) -> (Vec<String>, Result<Value, Value>) {
    let mut pieces = Vec::new();
    loop {
        let mut line = lines.receive();
        if let Some(text) = line["chunk"]["text"].as_str() {
            pieces.push(text.to_owned());
        } else if line.get("refusal").is_some() {
            return (pieces, Err(line["refusal"].take()));
        } else {
            return (pieces, Ok(line["data"].take()));
        }
    }
}

/// Sends a completion request on a connection of its own.
fn open(daemon: &Daemon, ask: &Value) -> Lines {
    let mut lines = daemon.lines();
    lines.send(&json!({"event": "completion:request", "data": ask, "id": 1}));
    lines
}

/// The same, and waits until the model speaks.
fn open_and_hear(daemon: &Daemon, ask: &Value) -> Lines {
    let mut lines = open(daemon, ask);
    let first = lines.receive();
    assert!(first["chunk"]["text"].is_string(), "{first}");
    lines
}

/// A whole completion.
fn complete(daemon: &Daemon, ask: &Value) -> (Vec<String>, Result<Value, Value>) {
    collect(&mut open(daemon, ask))
}

/// The end of a completion that succeeds.
fn answer(daemon: &Daemon, ask: &Value) -> Value {
    complete(daemon, ask).1.expect("an answer")
}

fn text(end: &Value) -> &str {
    end["text"].as_str().expect("a text")
}

/// What the completion plugin has open.
fn status(daemon: &Daemon) -> Value {
    daemon.ask("completion:status", json!({})).expect("a status")
}

/// Waits until nothing is generated any more: neither waits the completion
/// plugin for anything, nor does the llama plugin hold a request.
fn idle(daemon: &Daemon) {
    wait_until("nothing waits or runs", || {
        let status = status(daemon);
        status["running"] == 0 && status["queued"] == 0
    });
    wait_until("the llama plugin holds nothing", || daemon.plugin("llama").in_flight == 0);
}

/// What the llama plugin says of one model.
fn model(daemon: &Daemon, name: &str) -> Value {
    let models = daemon.ask("llama:models", json!({})).expect("the models");
    let models = models["models"].as_array().expect("a list");
    models
        .iter()
        .find(|model| model["name"] == name)
        .unwrap_or_else(|| panic!("no {name}: {models:?}"))
        .clone()
}
