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
