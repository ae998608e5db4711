//! Providers that refuse: what is tried again, how often, and what is not.

use std::time::Duration;

use ksi_sdk::prelude::Refusal;

use super::*;

#[test]
fn a_refusal_that_may_pass_is_tried_again_under_the_same_request_id() {
    let host = default_host();
    let (id, _) = accept(&host, json!({"prompt": "hi", "model": "mock/fail-then-ok:2"}));
    host.advance(Duration::from_millis(199));
    assert_eq!(outcome(&host, &id)["state"], "open");
    host.advance(Duration::from_millis(1));
    host.advance(Duration::from_millis(400));
    let kept = outcome(&host, &id);
    assert_eq!((&kept["result"]["text"], &kept["result"]["attempts"]), (&json!("hi"), &json!(3)));
    assert_eq!(facts(&host, &id), ["completion:started", "completion:delta", "completion:result"]);
}

#[test]
fn attempts_are_limited_and_counted() {
    let host = default_host();
    let call = ask(&host, json!({"prompt": "hi", "model": "mock/fail-then-ok:3"}));
    host.advance(Duration::from_secs(10));
    let refusal = refusal(&host, &call);
    assert_eq!(refusal.code, Code::Unavailable);
    assert_eq!(refusal.details.unwrap()["attempts"], 3);
}

#[test]
fn a_refusal_that_will_not_pass_is_not_tried_again() {
    let host = default_host();
    let call = ask(&host, json!({"prompt": "x"}));
    let asked = host.expect("llama:generate");
    host.refuse(&asked, Refusal::new(Code::TooLarge, "no room").details(json!({"max": 5})));
    let refusal = refusal(&host, &call);
    assert_eq!(refusal.code, Code::TooLarge);
    let details = refusal.details.unwrap();
    assert_eq!((&details["max"], &details["attempts"]), (&json!(5), &json!(1)));
    host.advance(Duration::from_secs(10));
    assert!(!host.has_asked());
}

#[test]
fn an_answer_is_never_begun_twice() {
    let host = default_host();
    let call = ask(&host, json!({"prompt": "x"}));
    let asked = host.expect("llama:generate");
    host.chunk(&asked, json!({"text": "a"}));
    host.refuse(&asked, Refusal::new(Code::PluginRestarted, "the worker died"));
    assert_eq!(host.next(&call), Answer::Chunk(json!({"text": "a"})));
    assert_eq!(refusal(&host, &call).code, Code::PluginRestarted);
    host.advance(Duration::from_secs(10));
    assert!(!host.has_asked());
}

#[test]
fn a_provider_that_says_when_to_come_back_is_given_that_time() {
    let host = default_host();
    let call = ask(&host, json!({"prompt": "x"}));
    let asked = host.expect("llama:generate");
    host.refuse(&asked, Refusal::new(Code::Busy, "full").retry_after_ms(900));
    host.advance(Duration::from_millis(899));
    assert!(!host.has_asked());
    host.advance(Duration::from_millis(1));
    generate(&host, &host.expect("llama:generate"), "x");
    assert_eq!(end(&host, &call)["attempts"], 2);
}

#[test]
fn a_request_that_waits_for_its_next_attempt_keeps_its_place_and_can_be_cancelled() {
    let host = host(json!({"providers": {"llama": {"concurrency": 1}}, "retry": {"jitter": false}}));
    let (first, _) = accept(&host, json!({"prompt": "1"}));
    let second = ask(&host, json!({"prompt": "2"}));
    host.refuse(&host.expect("llama:generate"), Refusal::new(Code::Unavailable, "starting"));
    assert!(!host.has_asked());
    give_up(&host, &first);
    let asked = host.expect("llama:generate");
    assert_eq!(asked.data["messages"][0]["content"], "2");
    generate(&host, &asked, "x");
    assert_eq!(end(&host, &second)["text"], "x");
}

#[test]
fn the_deadline_ends_the_attempts() {
    let host = default_host();
    let call = ask(&host, json!({"prompt": "x", "model": "mock/fail-then-ok:2", "timeout_ms": 300}));
    host.advance(Duration::from_millis(300));
    assert_eq!(refusal(&host, &call).code, Code::Timeout);
}
