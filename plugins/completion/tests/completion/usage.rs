//! What is kept of usage, for how long, and whose budgets are shown.

use std::time::Duration;

use ksi_sdk::{prelude::Refusal, testing::FakeSpace};

use super::*;

const DAY: Duration = Duration::from_hours(24);

/// Today, as days since 1970, where time stands still.
fn today() -> u64 {
    let host = default_host();
    host.request("completion:request", json!({"prompt": "x", "model": "mock/echo"})).unwrap();
    days(&host)[0]
}

/// The days of which there are rows.
fn days(host: &Host) -> Vec<u64> {
    // Whoever asks for usage has it written down.
    host.request("completion:usage", json!({})).unwrap();
    let keys = host.space().keys();
    let days = keys.iter().filter_map(|key| key.strip_prefix("usage/")?.split('/').next()?.parse().ok());
    days.collect()
}

fn put(space: &FakeSpace, day: u64, model: &str) {
    let counts = json!({"calls": 1, "answered": 1, "prompt_tokens": 1, "completion_tokens": 1, "nanos": 0});
    let row = json!({"day": day, "tenant": null, "principal": "user:a", "agent": null, "model": model, "counts": counts});
    space.put(format!("usage/{day:08}/[null,\"user:a\",null,\"{model}\"]"), &row);
}

#[test]
fn usage_is_kept_for_its_days_and_then_forgotten() {
    let (today, space) = (today(), FakeSpace::new());
    // Many more than are forgotten at once.
    for n in 0..1000 {
        put(&space, today - 11 - n / 100, &format!("mock/{n}"));
    }
    for day in [today - 10, today - 9, today - 8] {
        put(&space, day, "mock/echo");
    }
    let host = unhooked(Host::start_on(&space, json!({"usage_days": 10})).unwrap());
    assert_eq!(days(&host), [today - 9, today - 8]);
    host.advance(DAY - Duration::from_secs(1));
    assert_eq!(days(&host), [today - 9, today - 8]);
    host.advance(DAY);
    assert_eq!(days(&host), [today - 8]);
    host.advance(DAY);
    assert!(days(&host).is_empty());
}

#[test]
fn what_cannot_be_forgotten_now_is_forgotten_later() {
    let (today, space) = (today(), FakeSpace::new());
    put(&space, today - 399, "mock/echo");
    let host = unhooked(Host::start_on(&space, json!({})).unwrap());
    space.refuse(Some(Refusal::new(Code::Unavailable, "the state is away")));
    host.advance(DAY);
    space.refuse(None);
    assert_eq!(days(&host), [today - 399]);
    host.advance(Duration::from_hours(1));
    assert!(days(&host).is_empty());
}

#[test]
fn budgets_of_an_agent_and_a_conversation_are_shown_where_they_are_named() {
    let per = |who: &str| json!({"per": who, "calls": 5});
    let budgets = json!({"a": per("all"), "b": per("agent"), "c": per("conversation")});
    let host = host(json!({ "budgets": budgets }));
    let asked = json!({"prompt": "x", "model": "mock/echo", "agent": "bee", "conversation_id": "talk"});
    host.request("completion:request", asked).unwrap();
    let shown = |ask: Value| {
        let budgets = host.request("completion:usage", ask).unwrap()["budgets"].clone();
        let line = |one: &Value| format!("{} {}", one["name"].as_str().unwrap(), one["used"]["calls"]);
        budgets.as_array().unwrap().iter().map(line).collect::<Vec<_>>()
    };
    assert_eq!(shown(json!({})), ["a 1"]);
    assert_eq!(shown(json!({"agent": "bee"})), ["a 1", "b 1"]);
    assert_eq!(shown(json!({"agent": "bee", "conversation_id": "talk"})), ["a 1", "b 1", "c 1"]);
    assert_eq!(shown(json!({"agent": "wasp", "conversation_id": "other"})), ["a 1", "b 0", "c 0"]);
    let refused = host.request("completion:usage", json!({"agent": ""})).unwrap_err();
    assert_eq!((refused.code, &refused.details.unwrap()["path"]), (Code::InvalidPayload, &json!("agent")));
}

#[test]
fn no_tenant_sees_the_budget_of_anothers_conversation() {
    let host = host(json!({"budgets": {"c": {"per": "conversation", "calls": 5}}}));
    let as_tenant = |tenant: &str, event: &str, data: Value| {
        let caller = ksi_sdk::protocol::frame::Caller {
            principal: format!("user:{tenant}"),
            tenant: Some(tenant.into()),
            every_tenant: false,
        };
        host.open_as(event, data, &Meta { caller: Some(caller), ..Meta::default() })
    };
    let asked = json!({"prompt": "x", "model": "mock/echo", "conversation_id": "talk"});
    end(&host, &as_tenant("a", "completion:request", asked));
    for (tenant, calls) in [("a", 1), ("b", 0)] {
        let call = as_tenant(tenant, "completion:usage", json!({"conversation_id": "talk"}));
        let Answer::Reply(usage) = host.next(&call) else { panic!("no reply") };
        assert_eq!(usage["budgets"][0]["used"]["calls"], calls, "{tenant}");
    }
}

#[test]
fn a_stop_waits_until_all_that_was_used_is_written_down() {
    let space = FakeSpace::new();
    let host = unhooked(Host::start_on(&space, json!({})).unwrap());
    let complete =
        || host.request("completion:request", json!({"prompt": "x", "model": "mock/echo"})).unwrap();
    space.stall(true);
    complete();
    // It is settled while the first is written.
    complete();
    assert!(!host.drain());
    space.stall(false);
    assert!(host.drained());
    let host = unhooked(Host::start_on(&space, json!({})).unwrap());
    assert_eq!(host.request("completion:usage", json!({})).unwrap()["total"]["calls"], 2);
}
