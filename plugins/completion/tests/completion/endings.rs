//! Requests that do not run to their end: cancelled, abandoned, too late, or
//! stopped with the plugin.

use std::time::Duration;

use ksi_sdk::prelude::Refusal;

use super::*;

fn cancel(host: &Host, request_id: &str) -> Value {
    host.request("completion:cancel", json!({ "request_id": request_id })).unwrap()["status"].clone()
}

#[test]
fn a_running_request_is_cancelled_at_its_provider() {
    let host = default_host();
    let (id, _) = accept(&host, json!({"prompt": "x"}));
    let asked = host.expect("llama:generate");
    host.chunk(&asked, json!({"text": "a"}));
    give_up(&host, &id);
    assert!(host.has_cancelled(&asked));
    assert_eq!(facts(&host, &id), ["completion:started", "completion:delta", "completion:cancelled"]);
    assert_eq!(status(&host), (0, 0));
}

#[test]
fn a_queued_request_is_cancelled_without_ever_starting() {
    let host = host(json!({"providers": {"llama": {"concurrency": 1}}}));
    let (running, _) = accept(&host, json!({"prompt": "1", "conversation_id": "a"}));
    let (queued, _) = accept(&host, json!({"prompt": "2", "conversation_id": "a"}));
    let (last, _) = accept(&host, json!({"prompt": "3", "conversation_id": "a"}));
    let asked = host.expect("llama:generate");
    give_up(&host, &queued);
    assert_eq!(facts(&host, &queued), ["completion:cancelled"]);
    generate(&host, &asked, "x");
    let next = host.expect("llama:generate");
    assert_eq!(next.data["messages"][0]["content"], "3");
    generate(&host, &next, "y");
    assert_eq!(outcome(&host, &running)["state"], "done");
    assert_eq!(outcome(&host, &last)["state"], "done");
}

#[test]
fn a_cancel_frees_the_place_for_the_next() {
    let host = host(json!({"providers": {"mock": {"concurrency": 1}}}));
    let (hanging, _) = accept(&host, json!({"prompt": "x", "model": "mock/hang"}));
    let (next, position) = accept(&host, json!({"prompt": "y", "model": "mock/echo"}));
    assert_eq!(position, 1);
    give_up(&host, &hanging);
    assert_eq!(outcome(&host, &next)["result"]["text"], "y");
}

#[test]
fn whoever_waits_for_a_request_that_another_cancels_is_told() {
    let host = default_host();
    let call = ask(&host, json!({"prompt": "x", "model": "mock/hang"}));
    let status = host.request("completion:status", json!({})).unwrap();
    let id = status["requests"][0]["request_id"].as_str().unwrap();
    assert_eq!(cancel(&host, id), "cancelled");
    assert_eq!(refusal(&host, &call).code, Code::Cancelled);
    assert_eq!(cancel(&host, id), "cancelled", "a second cancel changes nothing");
}

#[test]
fn a_cancel_that_comes_too_late_says_how_the_request_ended() {
    let host = default_host();
    let done = end(&host, &ask(&host, json!({"prompt": "x", "model": "mock/echo"})));
    let id = done["request_id"].as_str().unwrap();
    assert_eq!(cancel(&host, id), "done");
    assert_eq!(host.request("completion:get", json!({"request_id": id})).unwrap()["result"], done);
    let failed = refusal(&host, &ask(&host, json!({"prompt": "x", "model": "mock/fail:conflict"})));
    assert_eq!(cancel(&host, failed.details.unwrap()["request_id"].as_str().unwrap()), "failed");
}

#[test]
fn a_client_that_disconnects_cancels_what_it_waited_for() {
    let host = host(json!({"providers": {"llama": {"concurrency": 1}}}));
    let running = ask(&host, json!({"prompt": "1"}));
    let queued = ask(&host, json!({"prompt": "2"}));
    let last = ask(&host, json!({"prompt": "3"}));
    let asked = host.expect("llama:generate");
    host.cancel(&queued);
    host.cancel(&running);
    assert!(host.has_cancelled(&asked));
    let next = host.expect("llama:generate");
    assert_eq!(next.data["messages"][0]["content"], "3");
    generate(&host, &next, "x");
    assert_eq!(end(&host, &last)["text"], "x");
    assert_eq!(status(&host), (0, 0));
    assert!(host.emitted().is_empty());
}

#[test]
fn the_deadline_covers_waiting_and_running() {
    let host = host(json!({"providers": {"llama": {"concurrency": 1}}}));
    let running = ask(&host, json!({"prompt": "1", "timeout_ms": 500}));
    let queued = ask(&host, json!({"prompt": "2", "timeout_ms": 200}));
    let asked = host.expect("llama:generate");
    host.advance(Duration::from_millis(199));
    assert_eq!(host.try_next(&queued), None);
    host.advance(Duration::from_millis(1));
    let refused = refusal(&host, &queued);
    assert_eq!(refused.code, Code::Timeout);
    assert!(refused.message.contains("waiting"), "{refused}");
    assert!(refused.details.unwrap()["request_id"].is_string());
    assert!(!host.has_cancelled(&asked));
    host.advance(Duration::from_millis(300));
    let refused = refusal(&host, &running);
    assert_eq!(refused.code, Code::Timeout);
    assert!(refused.message.contains("running"), "{refused}");
    assert!(host.has_cancelled(&asked));
    assert_eq!(status(&host), (0, 0));
}

#[test]
fn async_work_has_a_deadline_too() {
    let host = host(json!({"timeout_ms": 1000}));
    let (id, _) = accept(&host, json!({"prompt": "x", "model": "mock/hang"}));
    host.advance(Duration::from_millis(1000));
    assert_eq!(host.expect_emitted("completion:error")["refusal"]["code"], "timeout");
    assert_eq!(outcome(&host, &id)["state"], "failed");
}

#[test]
fn a_provider_that_gives_up_is_not_mistaken_for_a_cancel() {
    let host = default_host();
    let (id, _) = accept(&host, json!({"prompt": "x"}));
    let asked = host.expect("llama:generate");
    host.refuse(&asked, Refusal::new(Code::Cancelled, "model unloaded"));
    let kept = outcome(&host, &id);
    assert_eq!((&kept["state"], &kept["refusal"]["code"]), (&json!("failed"), &json!("unavailable")));
}

#[test]
fn a_graceful_stop_waits_for_what_was_begun_and_for_its_last_word() {
    let host = host(json!({"providers": {"llama": {"concurrency": 1}}}));
    let (running, _) = accept(&host, json!({"prompt": "1"}));
    let (given_up, _) = accept(&host, json!({"prompt": "2"}));
    let asked = host.expect("llama:generate");
    assert!(!host.drain());
    give_up(&host, &given_up);
    generate(&host, &asked, "x");
    assert!(host.drained());
    assert_eq!(outcome(&host, &running)["state"], "done");
    let told: Vec<_> =
        host.emitted().into_iter().map(|(event, data)| (event, data["request_id"].clone())).collect();
    assert!(told.contains(&("completion:result".into(), json!(running))));
    assert!(told.contains(&("completion:cancelled".into(), json!(given_up))));
}

#[test]
fn whoever_waits_for_an_end_that_does_not_come_does_not_hold_up_a_stop() {
    for (event, time) in [("completion:wait", "timeout_ms"), ("completion:get", "wait_ms")] {
        let host = default_host();
        ask(&host, json!({"prompt": "x", "model": "mock/hang"}));
        let status = host.request("completion:status", json!({})).unwrap();
        let wait = |id: &Value| host.open(event, json!({"request_id": id, time: 60_000}));
        let live = wait(&status["requests"][0]["request_id"]);
        let durable = wait(&json!("work-7"));
        let asked = host.expect("work:wait");
        assert_eq!((host.try_next(&live), host.try_next(&durable)), (None, None));
        assert!(!host.drain(), "the request itself goes on");
        for call in [live, durable] {
            let refused = host.try_next(&call);
            let Some(Answer::Refusal(refused)) = refused else { panic!("{event}: {refused:?}") };
            assert_eq!((refused.code, refused.retryable), (Code::Unavailable, true), "{event}");
            assert!(refused.retry_after_ms.is_some() && !refused.hint.is_empty(), "{refused:?}");
        }
        assert!(host.has_cancelled(&asked));
        let late = wait(&status["requests"][0]["request_id"]);
        assert!(matches!(host.try_next(&late), Some(Answer::Refusal(_))), "nor does one that comes later");
    }
}

#[test]
fn a_request_is_cancelled_while_it_is_prepared() {
    let host = Host::start(json!({"providers": {"llama": {"concurrency": 1}}})).unwrap();
    let (id, _) = accept(&host, json!({"prompt": "1"}));
    let asked = host.expect("completion:pre_llm_prompt");
    give_up(&host, &id);
    assert!(host.has_cancelled(&asked));
    assert_eq!(facts(&host, &id), ["completion:started", "completion:cancelled"]);
    let host = unhooked(host);
    let next = ask(&host, json!({"prompt": "2"}));
    generate(&host, &host.expect("llama:generate"), "x");
    assert_eq!(end(&host, &next)["text"], "x");
}

#[test]
fn what_is_not_known_or_not_any_more_is_said_to_be_so() {
    let host = host(json!({"results": {"age_s": 60}}));
    let done = end(&host, &ask(&host, json!({"prompt": "x", "model": "mock/echo"})));
    let get = |id: &Value| host.request("completion:get", json!({"request_id": id, "wait_ms": 1000}));
    assert_eq!(get(&done["request_id"]).unwrap()["state"], "done");
    host.advance(Duration::from_secs(61));
    for id in [&done["request_id"], &json!("cmp-never"), &json!("cmp-")] {
        let refused = get(id).unwrap_err();
        assert_eq!((refused.code, refused.retryable), (Code::NotFound, false));
        assert!(refused.message.contains(id.as_str().unwrap()) && !refused.hint.is_empty(), "{refused}");
    }
}
