//! Prompts from outside: versions, variables, and a directory that changes.

use std::fs;

use ksi_sdk::{prelude::Code, testing::FakeHost};
use plugin_prompt::Prompt;
use serde_json::json;

#[test]
fn the_newest_version_is_rendered_unless_another_is_named_and_changes_are_seen_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| fs::write(dir.path().join(file), text).unwrap();
    let host = FakeHost::<Prompt>::start(json!({"dir": dir.path()})).unwrap();
    let ask = json!({"name": "greet", "variables": {"who": "Ada"}});
    assert_eq!(host.request("prompt:render", ask.clone()).unwrap_err().code, Code::NotFound);
    write("greet@2.j2", "Hello {{ who }}");
    write("greet@10.j2", "Good day, {{ who }}");
    let newest = host.request("prompt:render", ask.clone()).unwrap();
    assert_eq!(newest, json!({"name": "greet", "version": 10, "text": "Good day, Ada"}));
    let mut older = ask.clone();
    older["version"] = json!(2);
    assert_eq!(host.request("prompt:render", older.clone()).unwrap()["text"], "Hello Ada");
    older["version"] = json!(3);
    let refusal = host.request("prompt:render", older).unwrap_err();
    assert_eq!(refusal.details.unwrap()["known"], json!(["greet@2", "greet@10"]));
    write("greet@10.j2", "Bye, {{ who }}");
    assert_eq!(host.request("prompt:render", ask).unwrap()["text"], "Bye, Ada");
}

#[test]
fn prompts_are_listed_with_what_they_require_or_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("sum@1.j2"), "{# about: Sums up #}\n{# optional: tone #}\n{{ text }}").unwrap();
    fs::write(dir.path().join("odd@1.j2"), "{% if %}").unwrap();
    fs::write(dir.path().join("notes.txt"), "not a prompt").unwrap();
    let host = FakeHost::<Prompt>::start(json!({"dir": dir.path()})).unwrap();
    let listed = host.request("prompt:list", json!({})).unwrap();
    let prompts = listed["prompts"].as_array().unwrap();
    assert_eq!(prompts.len(), 2);
    assert!(prompts[0]["error"].is_string(), "{listed}");
    assert_eq!(
        prompts[1],
        json!({"name": "sum", "version": 1, "about": "Sums up", "required": ["text"], "optional": ["tone"]})
    );
    fs::write(dir.path().join("big@1.j2"), "x".repeat(70_000)).unwrap();
    let refusal = host.request("prompt:render", json!({"name": "big"})).unwrap_err();
    assert_eq!(refusal.code, Code::TooLarge);
    let refusal = host.request("prompt:render", json!({"name": "../sum"})).unwrap_err();
    assert_eq!(refusal.code, Code::NotFound);
}

#[test]
fn a_directory_that_is_no_absolute_path_stops_the_start() {
    let refusal = FakeHost::<Prompt>::start(json!({"dir": "prompts"})).err().unwrap();
    assert!(refusal.message.contains("dir"), "{refusal}");
}
