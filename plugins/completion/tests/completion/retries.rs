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

/// What became of each attempt.
fn outcomes(details: &Value) -> Vec<&str> {
    details["tried"].as_array().unwrap().iter().map(|one| one["outcome"].as_str().unwrap()).collect()
}

#[test]
fn the_deadline_ends_the_attempts_and_tells_what_was_wrong_with_them() {
    let host = default_host();
    let call = ask(&host, json!({"prompt": "x", "timeout_ms": 300}));
    let busy = Refusal::new(Code::Busy, "forty others wait").retry_after_ms(250);
    host.refuse(&host.expect("llama:generate"), busy);
    host.advance(Duration::from_millis(250));
    let asked = host.expect("llama:generate");
    host.advance(Duration::from_millis(49));
    assert_eq!(host.try_next(&call), None);
    host.advance(Duration::from_millis(1));
    let refused = refusal(&host, &call);
    assert_eq!((refused.code, refused.retry_after_ms), (Code::Timeout, Some(250)));
    assert!(refused.message.contains("300 ms") && refused.message.contains("forty others wait"), "{refused}");
    let details = refused.details.unwrap();
    assert_eq!((outcomes(&details), &details["attempts"]), (vec!["busy", "timeout"], &json!(2)));
    assert_eq!(
        (&details["tried"][1]["started_ms"], &details["tried"][1]["took_ms"]),
        (&json!(250), &json!(50))
    );
    assert!(host.has_cancelled(&asked));
    assert_eq!(status(&host), (0, 0));
}

#[test]
fn a_pause_beyond_the_deadline_is_not_made_and_the_refusal_itself_is_told() {
    let host = default_host();
    let call = ask(&host, json!({"prompt": "x", "model": "mock/fail-then-ok:2", "timeout_ms": 300}));
    host.advance(Duration::from_millis(200));
    let refused = refusal(&host, &call);
    assert_eq!((refused.code, refused.message.as_str()), (Code::Unavailable, "the script says so"));
    assert_eq!(outcomes(&refused.details.unwrap()), ["unavailable", "unavailable"]);

    let call = ask(&host, json!({"prompt": "x", "timeout_ms": 1000}));
    host.refuse(&host.expect("llama:generate"), Refusal::new(Code::Busy, "full").retry_after_ms(1000));
    let refused = refusal(&host, &call);
    assert_eq!((refused.code, refused.retry_after_ms), (Code::Busy, Some(1000)));

    // Others may still answer in time.
    let call = ask(&host, json!({"prompt": "y", "timeout_ms": 1000, "fallbacks": ["mock/echo"]}));
    assert_eq!(end(&host, &call)["text"], "y");
    assert!(!host.has_asked(), "it asked to be left alone for longer");
}

#[test]
fn nobody_is_asked_before_the_time_that_it_told_however_it_refused() {
    let host = default_host();
    let overloaded = |ms| Refusal::new(Code::Unavailable, "overloaded").retry_after_ms(ms);
    let first = ask(&host, json!({"prompt": "1"}));
    host.refuse(&host.expect("llama:generate"), overloaded(45_000));
    let second = ask(&host, json!({"prompt": "2"}));
    host.advance(Duration::from_millis(44_999));
    assert!(!host.has_asked(), "neither again nor for another request");
    host.advance(Duration::from_millis(1));
    for call in [first, second] {
        generate(&host, &host.expect("llama:generate"), "x");
        end(&host, &call);
    }
    let long = ask(&host, json!({"prompt": "3"}));
    host.refuse(&host.expect("llama:generate"), overloaded(61_000));
    let refused = refusal(&host, &long);
    assert_eq!((refused.code, refused.retry_after_ms), (Code::Unavailable, Some(61_000)));
    assert_eq!(outcomes(&refused.details.unwrap()), ["unavailable"], "that is more than anybody waits");
    let refused = host.request("completion:request", json!({"prompt": "4"})).unwrap_err();
    assert_eq!((refused.code, refused.retry_after_ms), (Code::Unavailable, Some(61_000)));
}

#[test]
fn an_attempt_that_is_cancelled_is_in_the_list_of_no_other() {
    let host = default_host();
    let (id, _) = accept(&host, json!({"prompt": "x"}));
    host.refuse(&host.expect("llama:generate"), Refusal::new(Code::Unavailable, "starting"));
    host.advance(Duration::from_millis(200));
    host.expect("llama:generate");
    give_up(&host, &id);
    assert_eq!(outcome(&host, &id)["state"], "cancelled");
    let call = ask(&host, json!({"prompt": "y"}));
    generate(&host, &host.expect("llama:generate"), "x");
    assert_eq!(outcomes(&end(&host, &call)), ["answered"]);
}

#[test]
fn what_would_help_where_there_is_no_room_is_told() {
    let host = host(json!({"providers": {"llama": {"models": {"small": {"context_length": 1000}}}}}));
    let say = |role: &str, text: &str| json!({"role": role, "content": text});
    let talk = |text: &str| json!([say("user", text), say("assistant", "b"), say("user", "c")]);
    let hint = |request: Value, refuse: &dyn Fn(&Asked)| {
        let call = ask(&host, request);
        refuse(&host.expect("llama:generate"));
        let refused = refusal(&host, &call);
        assert_eq!(refused.code, Code::TooLarge);
        refused.hint
    };
    // The answer is too long to be passed on.
    let told =
        hint(json!({"messages": talk("a")}), &|asked| host.end(asked, generated(&"x".repeat(9 << 20))));
    assert!(told.contains("`max_tokens`") && !told.contains("`trim`"), "{told}");
    // What is read would fit, and not with so long an answer.
    let no_room = |asked: &Asked| host.refuse(asked, Refusal::new(Code::TooLarge, "no room"));
    let long_answer = json!({"messages": talk("a"), "model": "llama/small", "max_tokens": 5000});
    let told = hint(long_answer, &no_room);
    assert!(told.contains("`max_tokens`") && !told.contains("`trim`"), "{told}");
    // What is read does not fit.
    let told = hint(json!({"messages": talk(&"a ".repeat(2000)), "model": "llama/small"}), &no_room);
    assert!(told.contains("`trim`"), "{told}");
}
