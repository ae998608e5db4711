//! Providers that misbehave by chance, and a thousand requests at once: what is
//! told of attempts is exactly what happened, and the promised order holds.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use ksi_sdk::prelude::Refusal;

use super::*;

/// A sequence of numbers that looks like chance, the same at every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// What a provider does with one attempt.
fn misbehave(host: &Host, asked: &Asked, chance: &mut Chance) -> &'static str {
    match chance.below(8) {
        0 => {
            host.refuse(asked, Refusal::new(Code::Unavailable, "down"));
            "unavailable"
        }
        1 => {
            host.refuse(asked, Refusal::new(Code::Busy, "slowly").retry_after_ms(1 + chance.below(5000)));
            "busy"
        }
        2 => {
            host.chunk(asked, json!({"text": "half an "}));
            host.refuse(asked, Refusal::new(Code::PluginRestarted, "it died"));
            "plugin_restarted"
        }
        3 => {
            host.refuse(asked, Refusal::new(Code::NoOwner, "nobody"));
            "unavailable"
        }
        4 => {
            host.end(asked, json!({"model": 7}));
            "internal"
        }
        5 => {
            host.refuse(asked, Refusal::new(Code::NotFound, "no such model"));
            "not_found"
        }
        _ => {
            generate(host, asked, "an answer");
            "answered"
        }
    }
}

#[test]
fn every_attempt_is_told_exactly_as_it_happened_and_in_its_order() {
    let mut chance = Chance(7);
    let mut endings = HashSet::new();
    for round in 0..200 {
        // A fresh one each time, so that no breaker or limit of the last has a say.
        let host = default_host();
        let restart = chance.below(2) == 0;
        let call = ask(
            &host,
            json!({"prompt": "x", "model": "llama/m", "restart": restart,
                                     "fallbacks": ["openai/m", "anthropic/m"]}),
        );
        let mut happened: Vec<(String, &str)> = Vec::new();
        let (mut heard, mut restarts) = (String::new(), 0);
        let ended = loop {
            for provider in ["llama", "openai", "anthropic"] {
                if host.has_asked() && try_expect(&host, provider) {
                    let asked = host.expect(&format!("{provider}:generate"));
                    happened.push((provider.into(), misbehave(&host, &asked, &mut chance)));
                }
            }
            match host.try_next(&call) {
                Some(Answer::Chunk(chunk)) if chunk["restarted"].is_object() => {
                    assert!(restart && !heard.is_empty(), "round {round}");
                    heard.clear();
                    restarts += 1;
                }
                Some(Answer::Chunk(chunk)) => heard.push_str(chunk["text"].as_str().unwrap()),
                Some(Answer::End(end)) => {
                    assert_eq!(heard, end["text"].as_str().unwrap(), "round {round}");
                    endings.insert("answered".to_owned());
                    break end;
                }
                Some(Answer::Refusal(refusal)) => {
                    endings.insert(refusal.code.to_string());
                    break refusal.details.unwrap();
                }
                Some(other) => panic!("{other:?}"),
                None => host.advance(Duration::from_millis(50)),
            }
        };
        let told: Vec<(String, &str)> = ended["tried"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| {
                (one["model"]["provider"].as_str().unwrap().to_owned(), one["outcome"].as_str().unwrap())
            })
            .collect();
        assert_eq!(told, happened, "round {round}");
        assert_eq!(ended["attempts"].as_u64().unwrap() as usize, happened.len(), "round {round}");
        let sent =
            ended["tried"].as_array().unwrap().iter().rev().skip(1).filter(|one| one["text_sent"] == true);
        assert_eq!(sent.count(), restarts, "round {round}: every text that was void was said to be");
        assert!(!host.has_asked(), "round {round}: somebody is asked after the end");
        assert_eq!(status(&host), (0, 0), "round {round}");
    }
    assert!(endings.len() > 2 && endings.contains("answered"), "{endings:?}");
}

/// Whether what waits to be taken is a question to this provider: only one model
/// is asked at a time, and the first text of the answer decides.
fn try_expect(host: &Host, provider: &str) -> bool {
    let running = host.request("completion:status", json!({})).unwrap();
    running["requests"][0]["model"] == format!("{provider}/m")
}

#[test]
fn a_thousand_requests_come_out_in_the_promised_order() {
    const SLOTS: usize = 3;
    const WORK_MS: u64 = 10;
    const QUEUE: u64 = 4096;
    let host = host(json!({"queue_max": QUEUE, "providers": {"mock": {"concurrency": SLOTS}}}));
    let mut chance = Chance(42);
    // Each is: when it gives up, and the priority and arrival that rank it.
    let mut waiting: BTreeMap<(i64, u64), (String, u64)> = BTreeMap::new();
    let mut deadlines = 0;
    for arrival in 1..=1000_u64 {
        let priority = chance.below(21) as i64 - 10;
        let timeout_ms = if chance.below(3) == 0 { 1 + chance.below(3000) } else { 60_000 };
        let request = json!({"prompt": "x", "model": format!("mock/slow:{WORK_MS}"), "priority": priority,
                             "timeout_ms": timeout_ms});
        let meta = Meta { idempotency_key: Some(format!("r{arrival}")), ..Meta::default() };
        host.open_as("completion:async", request, &meta);
        deadlines += u64::from(timeout_ms < 60_000);
        waiting
            .insert((arrival as i64 - priority * QUEUE as i64, arrival), (format!("r{arrival}"), timeout_ms));
    }
    assert!(deadlines > 200, "{deadlines}");
    // The first ones began at once, as they came; the model begins after them.
    let mut expected = Vec::new();
    let mut busy: Vec<u64> = Vec::new();
    for arrival in 1..=SLOTS as u64 {
        let key = *waiting.keys().find(|(_, other)| *other == arrival).unwrap();
        let (id, timeout_ms) = waiting.remove(&key).unwrap();
        expected.push(id);
        busy.push(timeout_ms.min(WORK_MS));
    }
    let mut late = 0;
    while !busy.is_empty() {
        busy.sort_unstable_by(|one, other| other.cmp(one));
        let now = busy.pop().unwrap();
        // What is due at this very moment goes before what begins.
        let before = waiting.len();
        waiting.retain(|_, (_, timeout_ms)| *timeout_ms > now);
        late += before - waiting.len();
        if let Some((_, (id, timeout_ms))) = waiting.pop_first() {
            expected.push(id);
            busy.push(timeout_ms.min(now + WORK_MS));
        }
    }
    let (mut started, mut refused, mut done) = (Vec::new(), Vec::new(), 0);
    for _ in 0..8000 {
        host.advance(Duration::from_millis(1));
        for (event, data) in host.emitted() {
            let id = || data["request_id"].as_str().unwrap().to_owned();
            match event.as_str() {
                "completion:started" => started.push(id()),
                "completion:error" => {
                    assert_eq!(data["refusal"]["code"], "timeout");
                    refused.push(id());
                }
                "completion:result" => done += 1,
                _ => {}
            }
        }
    }
    let begun: HashSet<_> = started.iter().collect();
    let never = refused.iter().filter(|id| !begun.contains(id)).count();
    assert_eq!((never, done + refused.len()), (late, 1000));
    assert!(late > 50, "{late} gave up while they waited");
    assert_eq!(started, expected);
    assert_eq!(status(&host), (0, 0));
}
