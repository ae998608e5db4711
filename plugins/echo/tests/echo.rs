//! Echo, tested as any plugin can be: with a fake host and without a daemon.

use ksi_sdk::{prelude::Code, testing::FakeHost};
use plugin_echo::Echo;
use serde_json::json;

#[test]
fn it_says_what_it_is_told() {
    let host = FakeHost::<Echo>::start(json!({})).unwrap();
    assert_eq!(host.request("echo:say", json!({"text": "hi"})), Ok(json!({"text": "hi"})));
}

#[test]
fn a_payload_that_does_not_fit_is_refused() {
    let host = FakeHost::<Echo>::start(json!({})).unwrap();
    for data in [json!({}), json!({"text": 5}), json!({"text": "hi", "loud": true})] {
        assert_eq!(host.request("echo:say", data).unwrap_err().code, Code::InvalidPayload);
    }
}

#[test]
fn its_doc_comments_are_its_help() {
    let descriptor = FakeHost::<Echo>::descriptor();
    let say = &descriptor.requests[0];
    assert_eq!(say.about, "Say something and get it back.");
    assert_eq!(say.request["properties"]["text"]["description"], "What to say back.");
}

#[test]
fn the_guide_for_authors_shows_this_very_plugin() {
    let guide = include_str!("../../README.md");
    assert!(guide.contains(include_str!("../src/lib.rs")), "plugins/README.md shows another template");
    let code = include_str!("../src/lib.rs").lines().count();
    assert!(code < 40, "the template has {code} lines");
}
