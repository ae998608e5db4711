//! Which model answers: aliases, fallbacks, breakers, limits, and what is told.

use std::time::Duration;

use ksi_sdk::prelude::Refusal;

use super::*;

fn tried(end: &Value) -> Vec<(String, String)> {
    let list = end["tried"].as_array().unwrap();
    let name = |one: &Value| {
        let part = |key: &str| one["model"][key].as_str().unwrap().to_owned();
        format!("{}/{}", part("provider"), part("model"))
    };
    list.iter().map(|one| (name(one), one["outcome"].as_str().unwrap().to_owned())).collect()
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(one, other)| ((*one).to_owned(), (*other).to_owned())).collect()
}

#[test]
fn a_provider_of_the_configuration_is_asked_in_its_namespace() {
    let host = host(json!({"providers": {"my-own": {}}}));
    let call = ask(&host, json!({"prompt": "x", "model": "my-own/m"}));
    let asked = host.expect("my-own:generate");
    assert_eq!(asked.data["model"], "m");
    host.end(&asked, generated("hello"));
    assert_eq!(end(&host, &call)["answered"], json!({"provider": "my-own", "model": "ksi-tiny"}));
}

#[test]
fn a_fallback_answers_where_the_first_cannot_and_the_result_says_so() {
    let host = default_host();
    let call = ask(&host, json!({"prompt": "hi", "model": "openai/gpt", "fallbacks": ["mock/echo"]}));
    host.refuse(&host.expect("openai:generate"), Refusal::new(Code::UnknownEvent, "nobody"));
    let end = end(&host, &call);
    assert_eq!(end["text"], "hi");
    assert_eq!(end["requested"], json!({"provider": "openai", "model": "gpt"}));
    assert_eq!(end["answered"], json!({"provider": "mock", "model": "echo"}));
    assert_eq!(end["why"], "fallback: openai/gpt refused (unavailable)");
    assert_eq!(tried(&end), pairs(&[("openai/gpt", "unavailable"), ("mock/echo", "answered")]));
}

#[test]
fn retries_come_before_fallbacks_and_all_of_them_are_counted() {
    let host = default_host();
    let call =
        ask(&host, json!({"prompt": "hi", "model": "mock/fail:unavailable", "fallbacks": ["mock/fixed:b"]}));
    host.advance(Duration::from_secs(2));
    let end = end(&host, &call);
    let failed = ("mock/fail:unavailable", "unavailable");
    assert_eq!(tried(&end), pairs(&[failed, failed, failed, ("mock/fixed:b", "answered")]));
    assert_eq!((&end["attempts"], &end["text"]), (&json!(4), &json!("b")));
}

#[test]
fn a_model_that_wants_to_be_left_alone_for_long_gives_way_to_a_fallback() {
    let host = default_host();
    let call = ask(&host, json!({"prompt": "hi", "model": "openai/gpt", "fallbacks": ["mock/fixed:b"]}));
    let busy = Refusal::new(Code::Busy, "slowly").retry_after_ms(20_000);
    host.refuse(&host.expect("openai:generate"), busy);
    let answered = end(&host, &call);
    assert_eq!(tried(&answered), pairs(&[("openai/gpt", "busy"), ("mock/fixed:b", "answered")]));
    // Others do not ask it in that time either, and where there is no other they wait.
    let call = ask(&host, json!({"prompt": "hi", "model": "openai/gpt"}));
    host.advance(Duration::from_millis(19_999));
    assert!(!host.has_asked());
    host.advance(Duration::from_millis(1));
    host.end(&host.expect("openai:generate"), generated("x"));
    assert_eq!(end(&host, &call)["attempts"], 1);
}

#[test]
fn what_is_wrong_with_the_request_is_told_and_nobody_else_asked() {
    let host = default_host();
    let call = ask(&host, json!({"prompt": "hi", "model": "openai/gpt", "fallbacks": ["mock/echo"]}));
    host.refuse(&host.expect("openai:generate"), Refusal::new(Code::InvalidPayload, "no such format"));
    assert_eq!(refusal(&host, &call).code, Code::InvalidPayload);
}

#[test]
fn once_text_was_sent_no_fallback_speaks_unless_it_was_allowed_and_is_told() {
    let host = default_host();
    let request = json!({"prompt": "a b c", "model": "mock/break:2", "fallbacks": ["mock/fixed:x"]});
    let call = ask(&host, request.clone());
    assert_eq!(host.next(&call), Answer::Chunk(json!({"text": "a "})));
    assert_eq!(host.next(&call), Answer::Chunk(json!({"text": "b "})));
    let details = refusal(&host, &call).details.unwrap();
    assert_eq!((&details["attempts"], &details["tried"][0]["text_sent"]), (&json!(1), &json!(true)));

    let mut request = request;
    request["restart"] = json!(true);
    let call = ask(&host, request);
    host.advance(Duration::from_secs(5));
    let (mut heard, mut restarts) = (String::new(), 0);
    let end = loop {
        match host.next(&call) {
            Answer::Chunk(chunk) if chunk["restarted"].is_object() => {
                assert_eq!(heard, "a b ");
                heard.clear();
                restarts += 1;
                assert_eq!(chunk["restarted"]["attempt"], restarts + 1);
                assert_eq!(chunk["text"], "");
            }
            Answer::Chunk(chunk) => heard.push_str(chunk["text"].as_str().unwrap()),
            Answer::End(end) => break end,
            other => panic!("not ended: {other:?}"),
        }
    };
    assert_eq!((heard.as_str(), restarts, &end["text"]), ("x", 3, &json!("x")));
    assert_eq!(end["attempts"], 4);
}

#[test]
fn the_models_of_an_alias_are_equals() {
    let host = host(json!({"aliases": {"any": ["openai/a", "mock/echo"]}, "retry": {"attempts": 0}}));
    let call = ask(&host, json!({"prompt": "hi", "model": "any"}));
    host.refuse(&host.expect("openai:generate"), Refusal::new(Code::Unavailable, "down"));
    let answered = end(&host, &call);
    assert_eq!(answered["requested"], json!({"provider": "alias", "model": "any"}));
    assert_eq!(answered["why"], "`any` stands for it");
    assert_eq!(tried(&answered), pairs(&[("openai/a", "unavailable"), ("mock/echo", "answered")]));
    assert_eq!(end(&host, &ask(&host, json!({"prompt": "hi", "model": "any"})))["attempts"], 1);
    assert!(!host.has_asked(), "the one that was measured is the faster one");
}

#[test]
fn a_breaker_opens_lets_one_probe_through_and_closes() {
    let host = host(json!({"breaker": {"failures": 3, "open_ms": 1000}, "retry": {"attempts": 0}}));
    let to = || json!({"prompt": "hi", "model": "openai/gpt"});
    for _ in 0..3 {
        let call = ask(&host, to());
        host.refuse(&host.expect("openai:generate"), Refusal::new(Code::Unavailable, "down"));
        refusal(&host, &call);
    }
    let refused = host.request("completion:request", to()).unwrap_err();
    assert_eq!((refused.code, refused.retry_after_ms), (Code::Unavailable, Some(1000)));
    assert!(!host.has_asked(), "it is left alone");
    let call = host.open("completion:providers", json!({}));
    for event in ["llama:models", "openai:models", "anthropic:models", "claude-cli:models"] {
        host.reply(&host.expect(event), json!({"models": []}));
    }
    let Answer::Reply(providers) = host.next(&call) else { panic!("no reply") };
    let breakers = &providers["providers"][1]["breakers"];
    assert_eq!((&breakers[0]["model"], &breakers[0]["state"]), (&json!("gpt"), &json!("open")));

    host.advance(Duration::from_millis(1000));
    let probe = ask(&host, to());
    let asked = host.expect("openai:generate");
    assert_eq!(host.request("completion:request", to()).unwrap_err().code, Code::Unavailable);
    assert!(!host.has_asked(), "one probe is enough");
    host.end(&asked, generated("x"));
    end(&host, &probe);
    let call = ask(&host, to());
    host.end(&host.expect("openai:generate"), generated("x"));
    end(&host, &call);
}

#[test]
fn who_answers_what_does_not_fit_is_not_left_alone_for_it() {
    let host = host(json!({"breaker": {"failures": 1, "open_ms": 1000}, "retry": {"attempts": 0}}));
    let plain = || json!({"prompt": "hi", "model": "mock/fixed:{}"});
    let mut impossible = plain();
    impossible["response_format"] = json!({"json_schema": {"schema": {"not": {}}}});
    for _ in 0..3 {
        let refused = host.request("completion:request", impossible.clone()).unwrap_err();
        assert!(refused.message.contains("does not fit"), "{refused}");
    }
    assert_eq!(end(&host, &ask(&host, plain()))["text"], "{}");
}

#[test]
fn a_probe_that_its_asker_gives_up_leaves_room_for_another() {
    let host = host(json!({"breaker": {"failures": 1, "open_ms": 1000}, "retry": {"attempts": 0}}));
    let to = || json!({"prompt": "hi", "model": "openai/gpt"});
    let call = ask(&host, to());
    host.refuse(&host.expect("openai:generate"), Refusal::new(Code::Unavailable, "down"));
    refusal(&host, &call);
    host.advance(Duration::from_millis(1000));
    let probe = ask(&host, to());
    host.expect("openai:generate");
    host.cancel(&probe);
    let call = ask(&host, to());
    host.end(&host.expect("openai:generate"), generated("x"));
    end(&host, &call);
}

#[test]
fn a_rate_limit_lets_requests_wait_and_not_fail() {
    let host = host(json!({"providers": {"mock": {"requests_per_minute": 2}}}));
    let calls: Vec<_> = (0..3).map(|_| ask(&host, json!({"prompt": "hi", "model": "mock/echo"}))).collect();
    end(&host, &calls[0]);
    end(&host, &calls[1]);
    host.advance(Duration::from_millis(59_999));
    assert_eq!(host.try_next(&calls[2]), None);
    host.advance(Duration::from_millis(1));
    assert_eq!(end(&host, &calls[2])["text"], "hi");
    let late = json!({"prompt": "hi", "model": "mock/echo", "timeout_ms": 1000});
    host.request("completion:request", late.clone()).unwrap();
    let refused = host.request("completion:request", late).unwrap_err();
    assert_eq!(refused.code, Code::Busy);
    assert!(refused.retry_after_ms.unwrap() > 1000, "{refused:?}");
}

#[test]
fn a_request_that_goes_to_another_provider_waits_for_its_turn_there() {
    let host = host(json!({"providers": {"mock": {"concurrency": 1}}, "retry": {"attempts": 0}}));
    let first = ask(&host, json!({"prompt": "x", "model": "mock/slow:100"}));
    let call = ask(&host, json!({"prompt": "y", "model": "openai/gpt", "fallbacks": ["mock/echo"]}));
    host.refuse(&host.expect("openai:generate"), Refusal::new(Code::Unavailable, "down"));
    assert_eq!(status(&host), (1, 1));
    assert_eq!(host.try_next(&call), None);
    host.advance(Duration::from_millis(100));
    end(&host, &first);
    assert_eq!(end(&host, &call)["text"], "y");
}

#[test]
fn a_route_shows_every_candidate_and_asks_nobody_to_generate() {
    let host = host(json!({"providers": {"openai": {"models": {"gpt": {"tools": false}}}}}));
    let request = json!({"prompt": "x", "model": "openai/gpt", "fallbacks": ["anthropic/c", "mock/echo"],
                         "tools": [{"name": "look"}]});
    let call = host.open("completion:route", request.clone());
    host.reply(&host.expect("openai:models"), json!({"models": [{"name": "gpt"}]}));
    host.refuse(&host.expect("anthropic:models"), Refusal::new(Code::NoOwner, "nobody"));
    let Answer::Reply(route) = host.next(&call) else { panic!("no reply") };
    assert_eq!(route["chosen"], "mock/echo", "one that is not there is asked last");
    let names: Vec<_> = route["candidates"].as_array().unwrap().iter().map(|one| &one["model"]).collect();
    assert_eq!(names, ["mock/echo", "anthropic/c", "openai/gpt"]);
    assert_eq!(route["candidates"][2]["stage"], "capability");
    assert!(route["candidates"][2]["reasons"][0].as_str().unwrap().contains("tools"));
    assert!(!host.has_asked());
    let mut wrong = request;
    wrong["dry_run"] = json!(false);
    assert_eq!(host.request("completion:route", wrong).unwrap_err().code, Code::InvalidPayload);
    let refusal = host.request("completion:route", json!({"prompt": "x", "modle": "y"})).unwrap_err();
    assert!(refusal.message.contains("modle"), "{refusal}");
}

#[test]
fn only_ones_own_requests_are_counted() {
    let host = default_host();
    let caller = |tenant: &str, every_tenant: bool| {
        let caller = ksi_sdk::protocol::frame::Caller {
            principal: format!("user:{tenant}"),
            tenant: Some(tenant.into()),
            every_tenant,
        };
        Meta { caller: Some(caller), ..Meta::default() }
    };
    for tenant in ["a", "a", "b"] {
        host.open_as(
            "completion:request",
            json!({"prompt": "x", "model": "mock/hang"}),
            &caller(tenant, false),
        );
    }
    let running = |tenant: &str, every: bool| {
        let call = host.open_as("completion:status", json!({}), &caller(tenant, every));
        let Answer::Reply(status) = host.next(&call) else { panic!("no reply") };
        let load =
            status["providers"].as_array().unwrap().iter().find(|load| load["name"] == "mock").unwrap();
        assert_eq!(load["running"], status["running"]);
        (status["running"].as_u64().unwrap(), status["requests"].as_array().unwrap().len())
    };
    assert_eq!(running("a", false), (2, 2));
    assert_eq!(running("b", false), (1, 1));
    assert_eq!(running("c", false), (0, 0));
    assert_eq!(running("c", true), (3, 3));
}

#[test]
fn a_provider_that_wants_to_be_left_alone_for_a_day_is_shown_and_tried_again_before() {
    const BELIEVED_MS: u64 = 900_000;
    const DAY_MS: u64 = 86_400_000;
    let host = default_host();
    for event in ["llama:models", "openai:models", "anthropic:models", "claude-cli:models"] {
        host.script(event, |_| Ok(json!({"models": []})));
    }
    let to = || json!({"prompt": "x", "model": "openai/gpt"});
    let busy = || Refusal::new(Code::Busy, "the quota of the day\nis used up").retry_after_ms(DAY_MS);
    let call = ask(&host, to());
    host.refuse(&host.expect("openai:generate"), busy());
    let refused = refusal(&host, &call);
    assert_eq!((refused.code, refused.retry_after_ms), (Code::Busy, Some(DAY_MS)), "as it said");
    let pauses =
        || host.request("completion:providers", json!({})).unwrap()["providers"][1]["pauses"].clone();
    let shown = pauses();
    assert_eq!(shown[0]["why"], "gpt refused: the quota of the day is used up");
    assert_eq!((&shown[0]["retry_after_ms"], &shown[0]["wished_ms"]), (&json!(BELIEVED_MS), &json!(DAY_MS)));
    let until_ms = shown[0]["until_ms"].as_u64().unwrap();
    host.advance(Duration::from_millis(BELIEVED_MS - 1));
    assert_eq!((&pauses()[0]["until_ms"], &pauses()[0]["retry_after_ms"]), (&json!(until_ms), &json!(1)));
    host.advance(Duration::from_millis(1));
    assert_eq!(pauses(), Value::Null);
    let call = ask(&host, to());
    host.refuse(&host.expect("openai:generate"), busy());
    refusal(&host, &call);
    assert!(host.request("completion:request", to()).is_err() && !host.has_asked(), "it is asked once");
    assert_eq!(pauses()[0]["retry_after_ms"], BELIEVED_MS);
}
