//! Several requests at once: conversations, limits, priorities, full queues.

use super::*;

#[test]
fn a_conversation_is_answered_one_after_the_other_and_others_go_on() {
    let host = default_host();
    let first = ask(&host, json!({"prompt": "1", "conversation_id": "a"}));
    let second = ask(&host, json!({"prompt": "2", "conversation_id": "a"}));
    let other = ask(&host, json!({"prompt": "3", "conversation_id": "b"}));
    let alone = ask(&host, json!({"prompt": "4"}));
    let prompt = |asked: &Asked| asked.data["messages"][0]["content"].as_str().unwrap().to_owned();
    let running: Vec<_> = (0..3).map(|_| host.expect("llama:generate")).collect();
    assert_eq!(running.iter().map(prompt).collect::<Vec<_>>(), ["1", "3", "4"]);
    assert!(!host.has_asked());
    assert_eq!(status(&host), (1, 3));
    generate(&host, &running[0], "one");
    assert_eq!(end(&host, &first)["text"], "one");
    let next = host.expect("llama:generate");
    assert_eq!(prompt(&next), "2");
    generate(&host, &next, "two");
    assert_eq!(end(&host, &second)["text"], "two");
    for (asked, call) in running[1..].iter().zip([other, alone]) {
        generate(&host, asked, "x");
        end(&host, &call);
    }
    assert_eq!(status(&host), (0, 0));
}

#[test]
fn a_conversation_keeps_its_order_while_models_are_asked_what_they_can() {
    let host = host(json!({"providers": {"llama": {"concurrency": 4}}}));
    let tools = |prompt: &str| json!({"prompt": prompt, "conversation_id": "a", "model": "llama/m", "tools": [{"name": "look"}]});
    let first = ask(&host, tools("1"));
    let second = ask(&host, json!({"prompt": "2", "conversation_id": "a", "model": "llama/m"}));
    assert_eq!(status(&host), (1, 1), "both are accepted, and the second waits");
    host.reply(&host.expect("llama:models"), json!({"models": []}));
    for (call, prompt) in [(first, "1"), (second, "2")] {
        let asked = host.expect("llama:generate");
        assert_eq!(asked.data["messages"][0]["content"], prompt);
        assert!(!host.has_asked(), "one at a time");
        generate(&host, &asked, "x");
        end(&host, &call);
    }
}

#[test]
fn one_that_no_model_can_answer_leaves_its_place_to_the_next() {
    let host = host(json!({"providers": {"llama": {"concurrency": 1}}}));
    let running = ask(&host, json!({"prompt": "0", "model": "llama/m"}));
    let asked = host.expect("llama:generate");
    let tools =
        json!({"prompt": "1", "conversation_id": "a", "model": "llama/m", "tools": [{"name": "look"}]});
    let (first, second) = (ask(&host, tools), ask(&host, json!({"prompt": "2", "conversation_id": "a"})));
    let cannot = json!({"models": [{"name": "m", "capabilities": ["chat"]}]});
    host.reply(&host.expect("llama:models"), cannot);
    let refused = refusal(&host, &first);
    assert_eq!(refused.code, Code::InvalidPayload, "and it need not wait for its turn to hear that");
    assert!(refused.message.contains("cannot call tools"), "{refused}");
    assert!(refused.details.unwrap()["request_id"].is_string());
    generate(&host, &asked, "x");
    end(&host, &running);
    let asked = host.expect("llama:generate");
    assert_eq!(asked.data["messages"][0]["content"], "2");
    generate(&host, &asked, "x");
    end(&host, &second);
}

#[test]
fn one_that_another_model_can_answer_does_not_wait_for_the_first() {
    let host = host(json!({"providers": {"llama": {"concurrency": 1}}}));
    let running = ask(&host, json!({"prompt": "0", "model": "llama/m"}));
    let asked = host.expect("llama:generate");
    let call = ask(
        &host,
        json!({"prompt": "1", "model": "llama/m", "fallbacks": ["mock/echo"], "tools": [{"name": "look"}]}),
    );
    assert_eq!(host.try_next(&call), None);
    let cannot = json!({"models": [{"name": "m", "capabilities": ["chat"]}]});
    host.reply(&host.expect("llama:models"), cannot);
    let answered = end(&host, &call);
    assert_eq!(answered["why"], "fallback: llama/m: it cannot call tools");
    generate(&host, &asked, "x");
    end(&host, &running);
    assert_eq!(status(&host), (0, 0));
}

#[test]
fn a_provider_is_never_asked_for_more_at_once_than_its_limit() {
    let host = host(json!({"providers": {"llama": {"concurrency": 2}}}));
    let calls: Vec<_> = (0..5).map(|n| ask(&host, json!({"prompt": n.to_string()}))).collect();
    let mut running = vec![host.expect("llama:generate"), host.expect("llama:generate")];
    for _ in 0..3 {
        assert!(!host.has_asked());
        generate(&host, &running.remove(0), "x");
        running.push(host.expect("llama:generate"));
    }
    for asked in &running {
        generate(&host, asked, "x");
    }
    for call in &calls {
        end(&host, call);
    }
    let mock = host.request("completion:request", json!({"prompt": "x", "model": "mock/echo"})).unwrap();
    assert_eq!(mock["text"], "x");
}

#[test]
fn higher_priorities_go_first_and_positions_say_so() {
    let host = host(json!({"providers": {"mock": {"concurrency": 1}}}));
    let order = |prompt: &str, priority: i64| {
        accept(&host, json!({"prompt": prompt, "model": "mock/slow:10", "priority": priority}))
    };
    let (first, at) = order("first", 0);
    assert_eq!(at, 0);
    let (low, at) = order("low", -1);
    assert_eq!(at, 1);
    let (normal, at) = order("normal", 0);
    assert_eq!(at, 1);
    let (high, at) = order("high", 9);
    assert_eq!(at, 1);
    let status = host.request("completion:status", json!({"request_id": low})).unwrap();
    assert_eq!(
        (&status["requests"][0]["position"], &status["requests"][0]["state"]),
        (&json!(3), &json!("queued"))
    );
    assert_eq!(status["requests"].as_array().unwrap().len(), 1);
    host.advance(std::time::Duration::from_millis(100));
    let started: Vec<_> = host
        .emitted()
        .into_iter()
        .filter(|(event, _)| event == "completion:started")
        .map(|(_, data)| data["request_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(started, [first, high, normal, low]);
}

/// In whose name something is asked.
fn caller(principal: &str) -> Meta {
    let caller =
        ksi_sdk::protocol::frame::Caller { principal: principal.into(), tenant: None, every_tenant: false };
    Meta { caller: Some(caller), ..Meta::default() }
}

#[test]
fn a_full_queue_is_busy_and_says_when_to_come_back() {
    let host = host(json!({"queue_max": 4, "providers": {"llama": {"concurrency": 1}}}));
    let request = || json!({"prompt": "x"});
    let calls: Vec<_> = (0..3).map(|_| ask(&host, request())).collect();
    let refused = host.request("completion:async", request()).unwrap_err();
    assert_eq!((refused.code, refused.retryable), (Code::Busy, true));
    assert!(refused.message.contains("2 requests of yours"), "it is nobody else's fault: {refused}");
    assert!(refused.retry_after_ms.is_some_and(|ms| ms >= 100), "{refused:?}");
    let mock = host.request("completion:request", json!({"prompt": "x", "model": "mock/echo"}));
    assert!(mock.is_ok(), "another provider has its own queue");
    let as_other = |name: &str| host.open_as("completion:request", request(), &caller(name));
    let others = ["user:b", "user:c"].map(as_other);
    assert_eq!(status(&host), (4, 1), "others have room");
    let refused = refusal(&host, &as_other("user:d"));
    assert!(refused.code == Code::Busy && refused.message.contains("4 requests wait"), "{refused}");
    host.cancel(&others[0]);
    host.cancel(&calls[1]);
    accept(&host, request());
    assert_eq!(status(&host), (3, 1));
}

#[test]
fn whoever_floods_a_provider_takes_no_more_of_it_than_the_others() {
    let host = host(json!({"providers": {"mock": {"concurrency": 2}}}));
    let work = |principal: &str, agent: &str, number: usize| {
        let id = format!("{principal}/{agent}/{number}");
        let mut request = json!({"prompt": "a b c d e", "model": "mock/slow:10"});
        if !agent.is_empty() {
            request["agent"] = json!(agent);
        }
        let meta = Meta { idempotency_key: Some(id), ..caller(principal) };
        host.open_as("completion:async", request, &meta);
    };
    for number in 0..1000 {
        work("flood", "", number);
    }
    for number in 0..100 {
        work("one", "", number);
        // Two agents of one principal share what it gets.
        work("two", "x", number);
        work("two", "y", number);
    }
    let (mut tokens, mut started) = (HashMap::new(), HashMap::new());
    for _ in 0..300 {
        host.advance(std::time::Duration::from_millis(10));
        for (event, data) in host.emitted() {
            let (whose, number) = data["request_id"].as_str().unwrap().rsplit_once('/').unwrap();
            match event.as_str() {
                "completion:delta" => *tokens.entry(whose.to_owned()).or_insert(0) += 1,
                "completion:started" => {
                    let next = started.insert(whose.to_owned(), number.parse::<i64>().unwrap());
                    assert_eq!(number, (next.unwrap_or(-1) + 1).to_string(), "{whose} in its order");
                }
                _ => {}
            }
        }
    }
    let shares = [tokens["flood/"], tokens["one/"], tokens["two/x"] + tokens["two/y"]];
    let mean = shares.iter().sum::<i32>() / 3;
    assert!(mean > 150, "{shares:?}");
    assert!(shares.iter().all(|share| (share - mean).abs() * 5 < mean), "{shares:?}");
    let (x, y) = (tokens["two/x"], tokens["two/y"]);
    assert!((x - y).abs() * 5 < x, "{x} {y}");
}

#[test]
fn requests_hold_no_more_memory_than_allowed() {
    let host = host(json!({"queue_bytes_max": 10_000, "providers": {"llama": {"concurrency": 1}}}));
    let big = |bytes: usize| json!({"prompt": "x".repeat(bytes)});
    let refusal = host.request("completion:request", big(10_000)).unwrap_err();
    assert_eq!(refusal.code, Code::TooLarge);
    assert_eq!(refusal.details.unwrap()["max"], 10_000);
    let call = ask(&host, big(8_000));
    assert_eq!(host.request("completion:request", big(3_000)).unwrap_err().code, Code::Busy);
    generate(&host, &host.expect("llama:generate"), "x");
    end(&host, &call);
    ask(&host, big(3_000));
    assert_eq!(status(&host), (0, 1));
}

#[test]
fn status_lists_what_is_open_in_the_order_of_acceptance() {
    let host = host(json!({"providers": {"llama": {"concurrency": 1}}}));
    ask(&host, json!({"prompt": "x", "conversation_id": "a", "model": "llama/m"}));
    ask(&host, json!({"prompt": "x", "priority": 5}));
    let status = host.request("completion:status", json!({})).unwrap();
    let requests = status["requests"].as_array().unwrap();
    assert_eq!((&requests[0]["state"], &requests[0]["position"]), (&json!("running"), &json!(0)));
    assert_eq!((&requests[0]["model"], &requests[0]["conversation_id"]), (&json!("llama/m"), &json!("a")));
    assert_eq!((&requests[1]["state"], &requests[1]["priority"]), (&json!("queued"), &json!(5)));
    let load = |name: &str| {
        let providers = status["providers"].as_array().unwrap();
        providers.iter().find(|load| load["name"] == name).unwrap().clone()
    };
    assert_eq!(load("llama"), json!({"name": "llama", "concurrency": 1, "running": 1, "queued": 1}));
    assert_eq!(load("mock"), json!({"name": "mock", "concurrency": 16, "running": 0, "queued": 0}));
}

#[test]
fn results_are_forgotten_beyond_their_number() {
    let host = host(json!({"results": {"max": 2}}));
    let ended = || end(&host, &ask(&host, json!({"prompt": "x", "model": "mock/echo"})));
    let ids: Vec<_> = (0..3).map(|_| ended()["request_id"].clone()).collect();
    let first = host.request("completion:get", json!({"request_id": ids[0]}));
    assert_eq!(first.unwrap_err().code, Code::NotFound);
    assert_eq!(host.request("completion:get", json!({"request_id": ids[2]})).unwrap()["state"], "done");
}

#[test]
fn every_word_of_a_long_answer_arrives_and_others_are_answered_beside_it() {
    let host = default_host();
    let long = ask(&host, json!({"prompt": "x", "model": "mock/long:20000"}));
    let short = ask(&host, json!({"prompt": "x", "model": "mock/echo"}));
    let parts_of = |call: &Call| std::iter::from_fn(|| host.try_next(call)).count();
    assert_eq!(parts_of(&short), 2);
    assert_eq!(parts_of(&long), 20_001);
}
