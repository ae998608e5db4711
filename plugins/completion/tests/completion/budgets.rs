//! Usage and budgets: what is counted, what is refused, and what a crash leaves.

use std::time::Duration;

use ksi_sdk::{prelude::Refusal, testing::FakeSpace};

use super::*;

const MODEL: &str = "openai/gpt";

fn priced(budgets: Value) -> Value {
    json!({"budgets": budgets, "retry": {"attempts": 0}, "providers": {"openai": {"models": {
        "gpt": {"prompt_price": 1.0, "completion_price": 10.0}
    }}}})
}

/// A budget of nine calls, and one of something that the provider is limited in.
fn nine_calls(limit: &str) -> Value {
    let mut config = priced(json!({"few": {"calls": 9}}));
    config["providers"]["openai"][limit] = json!(1);
    config
}

/// Answers with 100 tokens read and 50 made: 0.0006 at the prices above.
fn answered() -> Value {
    let mut end = generated("hello");
    end["usage"] = json!({"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150});
    end
}

fn priced_host(budgets: Value) -> Host {
    host(priced(budgets))
}

fn usage(host: &Host, by: Value) -> Value {
    host.request("completion:usage", json!({ "by": by })).unwrap()
}

fn row(list: &Value) -> (u64, u64, u64, f64) {
    let number = |key: &str| list[key].as_u64().unwrap();
    (number("calls"), number("answered"), number("prompt_tokens"), list["money"].as_f64().unwrap())
}

fn complete(host: &Host) -> Value {
    let call = ask(host, json!({"prompt": "x", "model": MODEL}));
    host.end(&host.expect("openai:generate"), answered());
    end(host, &call)
}

/// Durable work as its keeper hands it over, always the same.
fn handed_over(host: &Host) -> Call {
    let meta = Meta { idempotency_key: Some("work-x".into()), ..Meta::default() };
    host.open_as("completion:async", json!({"prompt": "x", "model": MODEL}), &meta)
}

#[test]
fn usage_is_kept_over_restarts_and_added_up_as_asked() {
    let host = host(priced(json!({})));
    complete(&host);
    complete(&host);
    let call = ask(&host, json!({"prompt": "x", "model": "mock/fail:unavailable", "agent": "bee"}));
    refusal(&host, &call);
    let host = unhooked(host.restart(priced(json!({}))).unwrap());
    complete(&host);
    let by_model = usage(&host, json!(["model"]));
    assert_eq!(by_model["rows"][0]["model"], "mock/fail:unavailable");
    assert_eq!(row(&by_model["rows"][0]), (1, 0, 0, 0.0));
    assert_eq!(by_model["rows"][1]["model"], MODEL);
    assert_eq!(row(&by_model["rows"][1]), (3, 3, 300, 0.0018));
    assert_eq!(row(&by_model["total"]), (4, 3, 300, 0.0018));
    let by_agent = usage(&host, json!(["agent"]));
    let agents: Vec<_> = by_agent["rows"].as_array().unwrap().iter().map(|row| &row["agent"]).collect();
    assert_eq!(agents, [&Value::Null, &json!("bee")]);
    assert!(by_agent["rows"][0]["model"].is_null(), "only what was asked for is told");
    let by_day = usage(&host, Value::Null);
    assert_eq!(by_day["rows"][0]["day"].as_str().unwrap().len(), 10);
}

#[test]
fn what_comes_from_the_cache_of_a_provider_costs_what_that_costs() {
    let mut config = priced(json!({"money": {"money": 1.0}}));
    let model = &mut config["providers"]["openai"]["models"]["gpt"];
    (model["cached_price"], model["cache_write_price"]) = (json!(0.1), json!(1.25));
    let host = host(config);
    let call = ask(&host, json!({"prompt": "x".repeat(3984), "model": MODEL, "max_tokens": 100}));
    let asked = host.expect("openai:generate");
    let money = |part: &str| usage(&host, json!(["model"]))["budgets"][0][part]["money"].as_f64().unwrap();
    assert!((money("reserved") - 0.00225).abs() < 1e-9, "as dear as it can get: {}", money("reserved"));
    let mut answer = answered();
    answer["usage"] = json!({"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100,
                             "cached_tokens": 800, "cache_write_tokens": 100});
    host.end(&asked, answer);
    end(&host, &call);
    assert!((money("used") - 0.001_305).abs() < 1e-9, "{}", money("used"));
}

#[test]
fn what_nobody_was_asked_for_costs_nothing() {
    let host = host(priced(json!({"few": {"calls": 1}})));
    let call = ask(&host, json!({"prompt": "x", "model": MODEL}));
    host.refuse(&host.expect("openai:generate"), Refusal::new(Code::NoOwner, "nobody"));
    refusal(&host, &call);
    complete(&host);
    assert_eq!(row(&usage(&host, json!(["model"]))["total"]).0, 1);
}

#[test]
fn requests_that_run_together_cannot_spend_the_same_budget() {
    let host = host(priced(json!({"few": {"calls": 3, "window_s": 3600}})));
    let calls: Vec<_> = (0..10).map(|_| ask(&host, json!({"prompt": "x", "model": MODEL}))).collect();
    let mut asked = Vec::new();
    while host.has_asked() {
        asked.push(host.expect("openai:generate"));
    }
    assert_eq!(asked.len(), 3);
    for one in &asked {
        host.end(one, answered());
    }
    let ends: Vec<_> = calls
        .iter()
        .map(|call| {
            loop {
                match host.next(call) {
                    Answer::Chunk(_) => {}
                    other => break other,
                }
            }
        })
        .collect();
    let done = ends.iter().filter(|end| matches!(end, Answer::End(_))).count();
    assert_eq!(done, 3);
    let Some(Answer::Refusal(refused)) = ends.iter().find(|end| matches!(end, Answer::Refusal(_))) else {
        panic!("none is refused")
    };
    assert_eq!(refused.code, Code::Busy);
    let details = refused.details.as_ref().unwrap();
    assert_eq!((&details["budget"], &details["limits"]["calls"]), (&json!("few"), &json!(3)));
    assert!(details["resets_in_ms"].as_u64().unwrap() <= 3_600_000);
    let standing = usage(&host, json!(["model"]))["budgets"][0].clone();
    assert_eq!((&standing["used"]["calls"], &standing["reserved"]["calls"]), (&json!(3), &json!(0)));
    host.advance(Duration::from_secs(3600));
    complete(&host);
}

#[test]
fn a_cancelled_attempt_is_settled_with_what_it_read_and_said() {
    let host = host(priced(json!({"few": {"tokens": 1000}})));
    let call = ask(&host, json!({"prompt": "x".repeat(400), "model": MODEL, "max_tokens": 500}));
    host.chunk(&host.expect("openai:generate"), json!({"text": "hello"}));
    let budget = |host: &Host| usage(host, json!(["model"]))["budgets"][0].clone();
    assert_eq!(budget(&host)["reserved"]["tokens"], 604);
    host.cancel(&call);
    let after = budget(&host);
    let (read, said) = (104, 6);
    assert_eq!((&after["reserved"]["tokens"], &after["used"]["tokens"]), (&json!(0), &json!(read + said)));
}

#[test]
fn where_the_money_is_spent_a_fallback_that_costs_nothing_answers() {
    let host = host(priced(json!({"money": {"money": 0.0006, "per": "principal"}})));
    complete(&host);
    let refused = host.request("completion:request", json!({"prompt": "x", "model": MODEL})).unwrap_err();
    assert_eq!((refused.code, refused.retryable), (Code::Denied, false));
    assert!(!host.has_asked());
    let ask = json!({"prompt": "hi", "model": MODEL, "fallbacks": ["mock/echo"]});
    let end = host.request("completion:request", ask).unwrap();
    assert_eq!((&end["text"], &end["attempts"]), (&json!("hi"), &json!(1)));
}

#[test]
fn durable_work_that_is_handed_over_again_is_counted_once() {
    let budgets = || priced(json!({"few": {"calls": 2}}));
    let space = FakeSpace::new();
    for _ in 0..5 {
        // Each of these dies in the middle of the first attempt.
        let host = unhooked(Host::start_on(&space, budgets()).unwrap());
        handed_over(&host);
        host.expect("openai:generate");
    }
    let host = unhooked(Host::start_on(&space, budgets()).unwrap());
    let call = handed_over(&host);
    host.end(&host.expect("openai:generate"), answered());
    assert!(matches!(host.next(&call), Answer::Reply(_)));
    let answer = usage(&host, json!(["model"]));
    assert_eq!(answer["budgets"][0]["used"]["calls"], 1);
    assert_eq!(row(&answer["total"]), (1, 1, 100, 0.0006));
    assert!(!space.keys().iter().any(|key| key.starts_with("begun/")), "{:?}", space.keys());
}

#[test]
fn what_a_crash_leaves_of_a_live_request_counts_as_it_was_reserved() {
    let budgets = || priced(json!({"few": {"tokens": 1000}}));
    let space = FakeSpace::new();
    let host = unhooked(Host::start_on(&space, budgets()).unwrap());
    ask(&host, json!({"prompt": "x".repeat(400), "model": MODEL, "max_tokens": 500}));
    host.expect("openai:generate");
    let host = unhooked(Host::start_on(&space, budgets()).unwrap());
    let answer = usage(&host, json!(["model"]));
    assert_eq!(answer["budgets"][0]["used"]["tokens"], 604);
    assert_eq!(answer["total"]["calls"], 1);
    let host = unhooked(Host::start_on(&space, budgets()).unwrap());
    assert_eq!(usage(&host, json!(["model"]))["budgets"][0]["used"]["tokens"], 604, "and only once");
}

#[test]
fn a_budget_that_cannot_be_read_allows_nothing_and_without_one_requests_go_on() {
    let away = || Some(Refusal::new(Code::Unavailable, "the state is away"));
    let limited = host(priced(json!({"few": {"calls": 5}})));
    limited.space().refuse(away());
    let refused = limited.request("completion:request", json!({"prompt": "x", "model": "mock/echo"}));
    assert_eq!(refused.unwrap_err().code, Code::Unavailable);
    limited.space().refuse(None);
    limited.request("completion:request", json!({"prompt": "x", "model": "mock/echo"})).unwrap();

    let free = host(json!({}));
    free.space().refuse(away());
    free.request("completion:request", json!({"prompt": "x", "model": "mock/echo"})).unwrap();
    free.space().refuse(None);
    assert_eq!(usage(&free, json!(["model"]))["total"]["calls"], 1, "it is written later");
}

#[test]
fn an_answer_has_no_more_tokens_than_the_budget_has_left() {
    let host = priced_host(json!({"few": {"tokens": 1000}, "many": {"tokens": 90_000}}));
    let call = ask(&host, json!({"prompt": "x".repeat(400), "model": MODEL}));
    let asked = host.expect("openai:generate");
    assert_eq!((&asked.data["tokens_left"], &asked.data["max_tokens"]), (&json!(896), &Value::Null));
    let refused = host.request("completion:request", json!({"prompt": "x", "model": MODEL})).unwrap_err();
    assert_eq!((refused.code, refused.retry_after_ms), (Code::Busy, Some(1000)), "all of it is reserved");
    assert_eq!(refused.details.unwrap()["budget"], "few");
    let mut cut = generated("hello");
    cut["stop_reason"] = json!("length");
    cut["usage"] = json!({"prompt_tokens": 104, "completion_tokens": 896, "total_tokens": 1000});
    host.end(&asked, cut);
    let told = end(&host, &call);
    assert_eq!((&told["stop_reason"], &told["limited_by"]["budget"]), (&json!("length"), &json!("few")));
    assert_eq!(told["limited_by"]["max_tokens"], 896);
    assert_eq!(usage(&host, json!(["model"]))["budgets"][0]["used"]["tokens"], 1000, "and not one more");
}

#[test]
fn who_says_how_long_an_answer_may_be_is_not_limited_further() {
    let host = priced_host(json!({"many": {"tokens": 90_000}}));
    let call = ask(&host, json!({"prompt": "x", "model": MODEL, "max_tokens": 20_000}));
    let asked = host.expect("openai:generate");
    assert_eq!((&asked.data["tokens_left"], &asked.data["max_tokens"]), (&Value::Null, &json!(20_000)));
    host.end(&asked, answered());
    assert!(end(&host, &call)["limited_by"].is_null());
    // Without, as long as is paid for; and others find room beside it.
    let calls = [(); 3].map(|()| ask(&host, json!({"prompt": "x", "model": MODEL})));
    for call in &calls {
        let asked = host.expect("openai:generate");
        assert_eq!(asked.data["tokens_left"], 8192);
        host.end(&asked, answered());
        end(&host, call);
    }
}

#[test]
fn money_limits_an_answer_by_its_price_and_what_costs_nothing_is_not_limited() {
    let host = priced_host(json!({"money": {"money": 0.001}}));
    let call = ask(&host, json!({"prompt": "x".repeat(384), "model": MODEL, "fallbacks": []}));
    let asked = host.expect("openai:generate");
    assert_eq!(
        asked.data["tokens_left"], 90,
        "100 that are read, and 90 that are made at ten times the price"
    );
    host.end(&asked, answered());
    end(&host, &call);
    let free = host.request("completion:request", json!({"prompt": "a b", "model": "mock/echo"})).unwrap();
    assert!(free["limited_by"].is_null(), "{free}");
}

#[test]
fn a_provider_that_cannot_limit_its_answers_is_not_said_to_be_limited() {
    let host = priced_host(json!({"few": {"tokens": 1000}}));
    let call = ask(&host, json!({"prompt": "x", "model": MODEL}));
    let mut answer = answered();
    answer["ignored"] = json!(["tokens_left", "seed"]);
    host.end(&host.expect("openai:generate"), answer);
    let told = end(&host, &call);
    assert_eq!((&told["ignored"], &told["limited_by"]), (&json!(["seed"]), &Value::Null));
}

#[test]
fn a_budget_cuts_every_one_of_several_answers() {
    let host = host(json!({"budgets": {"few": {"tokens": 25}}}));
    let request = json!({"prompt": "x", "model": "mock/long:50", "choices": 2});
    let told = host.request("completion:request", request).unwrap();
    assert_eq!(
        (&told["text"].as_str().unwrap().split(' ').count(), &told["stop_reason"]),
        (&10, &json!("length"))
    );
    assert_eq!(told["alternatives"][0]["stop_reason"], "length");
    assert_eq!(told["limited_by"], json!({"budget": "few", "max_tokens": 10}));
}

#[test]
fn a_reservation_that_is_given_back_and_made_again_outlives_a_crash() {
    let limited = || nine_calls("requests_per_minute");
    let space = FakeSpace::new();
    let host = unhooked(Host::start_on(&space, limited()).unwrap());
    // Both may begin when they ask for their reservations, and one of them afterwards.
    space.stall(true);
    let first = ask(&host, json!({"prompt": "1", "model": MODEL}));
    ask(&host, json!({"prompt": "2", "model": MODEL}));
    space.stall(false);
    let asked = host.expect("openai:generate");
    assert!(!host.has_asked(), "the other one has to wait");
    host.advance(Duration::from_secs(60));
    host.expect("openai:generate");
    // The first writes down what has been settled, the reservation that was given back too.
    host.end(&asked, answered());
    end(&host, &first);
    let host = unhooked(Host::start_on(&space, limited()).unwrap());
    assert_eq!(usage(&host, json!(["model"]))["budgets"][0]["used"]["calls"], 2);
}

#[test]
fn work_that_is_handed_over_while_nothing_can_be_written_stays_reserved() {
    let budgets = || priced(json!({"few": {"calls": 2}}));
    let space = FakeSpace::new();
    let host = unhooked(Host::start_on(&space, budgets()).unwrap());
    handed_over(&host);
    host.expect("openai:generate");
    let reserved = |host: &Host| usage(host, json!(["model"]))["budgets"][0]["reserved"]["calls"].clone();
    let host = unhooked(Host::start_on(&space, budgets()).unwrap());
    assert_eq!(reserved(&host), 1);
    space.refuse(Some(Refusal::new(Code::Unavailable, "the state is away")));
    assert_eq!(refusal(&host, &handed_over(&host)).code, Code::Unavailable);
    space.refuse(None);
    assert_eq!(reserved(&host), 1);
    let host = unhooked(Host::start_on(&space, budgets()).unwrap());
    assert_eq!(reserved(&host), 1, "nobody knows how it ended");
    let call = handed_over(&host);
    host.end(&host.expect("openai:generate"), answered());
    assert!(matches!(host.next(&call), Answer::Reply(_)));
    let standing = usage(&host, json!(["model"]))["budgets"][0].clone();
    assert_eq!((&standing["used"]["calls"], &standing["reserved"]["calls"]), (&json!(1), &json!(0)));
}

#[test]
fn an_answer_that_is_cancelled_at_its_end_is_paid_for_and_that_is_written_down_at_once() {
    let config = || priced(json!({}));
    let space = FakeSpace::new();
    let host = unhooked(Host::start_on(&space, config()).unwrap());
    let said = json!({"text": "x".repeat(4000)});
    let calls = [(); 2].map(|()| ask(&host, json!({"prompt": "x".repeat(384), "model": MODEL})));
    let asked = [(); 2].map(|()| host.expect("openai:generate"));
    for one in &asked {
        host.chunk(one, said.clone());
    }
    host.cancel(&calls[0]);
    let status = host.request("completion:status", json!({})).unwrap();
    host.request("completion:cancel", json!({"request_id": status["requests"][0]["request_id"]})).unwrap();
    assert!(asked.iter().all(|one| host.has_cancelled(one)));
    // A crash takes nothing of it.
    let host = unhooked(Host::start_on(&space, config()).unwrap());
    let total = usage(&host, json!(["model"]))["total"].clone();
    assert_eq!(row(&total), (2, 0, 200, 2.0 * (0.0001 + 0.010_04)));
    assert_eq!(total["completion_tokens"], 2 * 1004);
}

#[test]
fn an_answer_whose_tokens_nobody_tells_is_not_for_free() {
    let host = priced_host(json!({"few": {"tokens": 1000}}));
    let call = ask(&host, json!({"prompt": "x".repeat(400), "model": MODEL}));
    let asked = host.expect("openai:generate");
    host.chunk(&asked, json!({"text": "y".repeat(800)}));
    let mut untold = generated(&"y".repeat(800));
    untold["usage"] = json!({});
    host.end(&asked, untold);
    assert_eq!(end(&host, &call)["usage"]["total_tokens"], 0, "what was told is passed on as it is");
    let answer = usage(&host, json!(["model"]));
    assert_eq!(answer["budgets"][0]["used"]["tokens"], 104 + 204);
    assert_eq!(
        (&answer["total"]["answered"], &answer["total"]["completion_tokens"]),
        (&json!(1), &json!(204))
    );
}

/// What is used and reserved of the calls of the first budget.
fn calls(host: &Host) -> (u64, u64) {
    let budget = usage(host, json!(["model"]))["budgets"][0].clone();
    (budget["used"]["calls"].as_u64().unwrap(), budget["reserved"]["calls"].as_u64().unwrap())
}

/// A crash in the middle of an attempt at durable work, and what starts after it.
fn crashed(space: &FakeSpace, config: impl Fn() -> Value) -> Host {
    let host = unhooked(Host::start_on(space, config()).unwrap());
    handed_over(&host);
    host.expect("openai:generate");
    let host = unhooked(Host::start_on(space, config()).unwrap());
    assert_eq!(calls(&host), (0, 1));
    host
}

#[test]
fn work_that_has_to_wait_for_its_turn_after_a_crash_is_counted_once() {
    let limited = || nine_calls("requests_per_minute");
    let space = FakeSpace::new();
    let host = crashed(&space, limited);
    // Both may begin when they ask for their reservations, and one of them afterwards.
    space.stall(true);
    let other = ask(&host, json!({"prompt": "1", "model": MODEL}));
    handed_over(&host);
    space.stall(false);
    host.end(&host.expect("openai:generate"), answered());
    end(&host, &other);
    assert_eq!(calls(&host), (1, 1), "what it had reserved it still has");
    // Another crash does not change that.
    let host = unhooked(Host::start_on(&space, limited()).unwrap());
    assert_eq!(calls(&host), (1, 1));
    let call = handed_over(&host);
    host.end(&host.expect("openai:generate"), answered());
    assert!(matches!(host.next(&call), Answer::Reply(_)));
    assert_eq!(calls(&host), (2, 0));
    assert!(!space.keys().iter().any(|key| key.starts_with("begun/")), "{:?}", space.keys());
}

#[test]
fn work_that_a_drain_cuts_off_keeps_what_it_had_reserved_before_a_crash() {
    let space = FakeSpace::new();
    let host = crashed(&space, || nine_calls("concurrency"));
    ask(&host, json!({"prompt": "1", "model": MODEL}));
    host.expect("openai:generate");
    let call = handed_over(&host);
    assert!(!host.drain());
    host.cancel(&call);
    let host = unhooked(Host::start_on(&space, nine_calls("concurrency")).unwrap());
    assert_eq!(calls(&host), (1, 1), "the other one was under way");
}

#[test]
fn work_that_ends_without_another_attempt_after_a_crash_counts_as_it_was_reserved() {
    let space = FakeSpace::new();
    let host = crashed(&space, || nine_calls("concurrency"));
    let other = ask(&host, json!({"prompt": "1", "model": MODEL}));
    let asked = host.expect("openai:generate");
    let call = handed_over(&host);
    host.cancel(&call);
    assert_eq!(calls(&host), (1, 1), "the other one is under way");
    host.end(&asked, answered());
    end(&host, &other);
    assert_eq!(calls(&host), (2, 0));
    assert_eq!(usage(&host, json!(["model"]))["total"]["calls"], 2, "and on the day on which it ended");
    assert!(!space.keys().iter().any(|key| key.starts_with("begun/")), "{:?}", space.keys());
}

#[test]
fn work_that_nobody_hands_over_for_days_after_a_crash_counts_as_it_was_reserved() {
    let host = crashed(&FakeSpace::new(), || priced(json!({"few": {"calls": 9}})));
    host.advance(Duration::from_hours(49));
    assert_eq!(calls(&host), (1, 0));
}

#[test]
fn what_is_written_when_its_asker_goes_away_is_written_once() {
    let space = FakeSpace::new();
    let host = unhooked(Host::start_on(&space, priced(json!({}))).unwrap());
    space.refuse(Some(Refusal::new(Code::Unavailable, "the state is away")));
    complete(&host);
    space.refuse(None);
    space.stall(true);
    // Whoever wants to see it has it written down, and does not wait for the end.
    let call = host.open("completion:usage", json!({}));
    host.cancel(&call);
    space.stall(false);
    let total = usage(&host, json!(["model"]))["total"].clone();
    assert_eq!(row(&total), (1, 1, 100, 0.0006));
}
