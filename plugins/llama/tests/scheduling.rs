//! Who gets a slot, what need not be read again, and that neither changes what
//! is said.

use std::time::{Duration, Instant};

use ksi_sdk::prelude::{Code, Refusal};
use ksi_sdk::testing::{Answer, Call, FakeHost};
use plugin_llama::Llama;
use serde_json::{Value, json};

type Host = FakeHost<Llama>;

fn host(config: Value) -> Host {
    FakeHost::start(config).expect("the plugin starts")
}

fn end(host: &Host, call: &Call) -> Result<Value, Refusal> {
    loop {
        match host.next(call) {
            Answer::Chunk(_) => {}
            Answer::End(end) => return Ok(end),
            Answer::Refusal(refusal) => return Err(refusal),
            other => panic!("{other:?}"),
        }
    }
}

/// A greedy question with a system prompt of some two hundred tokens.
fn with_system(question: &str) -> Value {
    let system = "You are a kind teacher who answers in one sentence. ".repeat(16);
    json!({"temperature": 0.0, "messages": [
        {"role": "system", "content": system}, {"role": "user", "content": question},
    ]})
}

fn cached(end: &Value) -> u64 {
    end["usage"]["cached_tokens"].as_u64().expect("a count")
}

const QUESTIONS: [&str; 6] = [
    "Tell me a story about a walrus and a teapot.",
    "Who are you?",
    "How do I start KSI?",
    "Give me three ideas about bicycles.",
    "What is KSI?",
    "Name five colours.",
];

/// What the model says with nothing in memory: every answer of a new host.
fn alone() -> Vec<Value> {
    let answers = QUESTIONS.iter().map(|question| {
        let host = host(json!({"slots": 1}));
        let end = host.request("llama:generate", with_system(question)).expect("an answer");
        assert_eq!(cached(&end), 0);
        end["text"].clone()
    });
    answers.collect()
}

#[test]
fn a_conversation_is_not_read_again_and_says_what_it_says_alone() {
    let host = host(json!({"slots": 2}));
    let mut messages = with_system(QUESTIONS[0])["messages"].clone();
    for turn in 0..3 {
        let ask = json!({"messages": messages, "temperature": 0.0});
        let end = host.request("llama:generate", ask.clone()).unwrap();
        let fresh = self::host(json!({"slots": 1})).request("llama:generate", ask).unwrap();
        assert_eq!(end["text"], fresh["text"], "turn {turn}");
        let usage = &end["usage"];
        if turn > 0 {
            let read = usage["prompt_tokens"].as_u64().unwrap() - cached(&end);
            assert!(read < 40, "only the new turn is read: {usage}");
        }
        let list = messages.as_array_mut().unwrap();
        list.push(json!({"role": "assistant", "content": end["text"]}));
        list.push(json!({"role": "user", "content": QUESTIONS[turn + 1]}));
    }
}

#[test]
fn a_common_system_prompt_is_read_once_for_all_conversations() {
    let alone = alone();
    let host = host(json!({"slots": 4}));
    // One after another, then all at once: in place, copied, and waited for.
    for (question, alone) in QUESTIONS.iter().zip(&alone).cycle().take(12) {
        let end = host.request("llama:generate", with_system(question)).unwrap();
        assert_eq!(&end["text"], alone);
    }
    let fresh = self::host(json!({"slots": 4}));
    fresh.request("llama:load", json!({})).unwrap();
    let calls: Vec<Call> =
        QUESTIONS.iter().map(|question| fresh.open("llama:generate", with_system(question))).collect();
    let ends: Vec<Value> = calls.iter().map(|call| end(&fresh, call).unwrap()).collect();
    for (end, alone) in ends.iter().zip(&alone) {
        assert_eq!(&end["text"], alone);
    }
    let read_anew = ends.iter().filter(|end| cached(end) == 0).count();
    assert_eq!(read_anew, 1, "{:?}", ends.iter().map(cached).collect::<Vec<_>>());
}

#[test]
fn a_model_that_was_unloaded_remembers_nothing() {
    let host = host(json!({}));
    host.request("llama:generate", with_system("Hello")).unwrap();
    assert!(cached(&host.request("llama:generate", with_system("Hello")).unwrap()) > 0);
    host.request("llama:unload", json!({"model": "ksi-tiny"})).unwrap();
    assert_eq!(cached(&host.request("llama:generate", with_system("Hello")).unwrap()), 0);
}

#[test]
fn a_thousand_that_wait_are_served_by_priority_and_then_in_turn() {
    let host = host(json!({"slots": 1, "queue": 1200}));
    host.request("llama:load", json!({})).unwrap();
    // The first keeps the slot while the others arrive.
    let long = json!({"prompt": "1, 2, 3,", "temperature": 5.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0,
        "seed": 3});
    let first = host.open("llama:generate", long);
    let mut waiting = Vec::new();
    for number in 0..1000_i32 {
        let priority = number * 7 % 21 - 10;
        let ask = json!({"prompt": "a", "max_tokens": 4, "temperature": 0.0, "priority": priority});
        let before = Instant::now();
        let call = host.open("llama:generate", ask);
        waiting.push((before, Instant::now(), -priority, call));
    }
    end(&host, &first).unwrap();
    let all_there = waiting.last().unwrap().1;
    // When each began, at the earliest and at the latest.
    let mut began = Vec::new();
    for (turn, (before, after, rank, call)) in waiting.iter().enumerate() {
        let queued = end(&host, call).unwrap()["timings"]["queued_ms"].as_f64().unwrap();
        let queued = Duration::from_secs_f64(queued / 1000.0);
        // Those that the slot took before all were there had no rival.
        if *before + queued > all_there {
            began.push(((*rank, turn), *before + queued, *after + queued));
        }
    }
    assert!(began.len() > 300, "{} waited", began.len());
    began.sort();
    let mut latest = all_there;
    for (turn, earliest, at_most) in began {
        assert!(at_most >= latest, "{turn:?} began before its turn");
        latest = latest.max(earliest);
    }
}

#[test]
fn a_deadline_ends_a_generation_and_a_wait() {
    let host = host(json!({"slots": 1, "context": 1024}));
    host.request("llama:load", json!({})).unwrap();
    let endless = |timeout: u64| {
        json!({"prompt": "1, 2, 3,", "temperature": 5.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 3,
            "timeout_ms": timeout})
    };
    let running = host.open("llama:generate", endless(60_000));
    assert!(matches!(host.next(&running), Answer::Chunk(_)));
    let waiting = host.open("llama:generate", endless(1));
    let refusal = end(&host, &waiting).unwrap_err();
    assert_eq!(refusal.code, Code::Timeout, "{refusal}");
    assert!(refusal.message.contains("no slot"), "{refusal}");
    end(&host, &running).unwrap();
    let refusal = host.request("llama:generate", endless(5)).unwrap_err();
    assert_eq!(refusal.code, Code::Timeout, "{refusal}");
    assert!(refusal.message.contains("after"), "{refusal}");
    host.request("llama:generate", with_system("Hello")).unwrap();
}

#[test]
fn a_storm_of_cancellations_leaves_no_slot_behind() {
    let host = host(json!({"slots": 4}));
    let alone = host.request("llama:generate", with_system(QUESTIONS[0])).unwrap()["text"].clone();
    for round in 0..40 {
        let calls: Vec<Call> = (0..24)
            .map(|number| host.open("llama:generate", with_system(QUESTIONS[number % QUESTIONS.len()])))
            .collect();
        for (number, call) in calls.iter().enumerate() {
            if number % 3 == round % 3 {
                host.try_next(call);
            }
            host.cancel(call);
        }
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Err(refusal) = host.request("llama:unload", json!({"model": "ksi-tiny"})) {
        assert_eq!(refusal.code, Code::Busy, "{refusal}");
        assert!(Instant::now() < deadline, "a slot is still taken");
        std::thread::yield_now();
    }
    assert_eq!(host.request("llama:generate", with_system(QUESTIONS[0])).unwrap()["text"], alone);
}

#[test]
fn a_full_queue_says_when_to_ask_again() {
    let host = host(json!({"slots": 1, "queue": 2}));
    host.request("llama:generate", with_system("Hello")).unwrap();
    let story = || json!({"prompt": "1, 2, 3,", "temperature": 0.0});
    let calls: Vec<Call> = (0..8).map(|_| host.open("llama:generate", story())).collect();
    let refusals: Vec<Refusal> = calls.iter().filter_map(|call| end(&host, call).err()).collect();
    assert!(!refusals.is_empty());
    for refusal in refusals {
        assert_eq!(refusal.code, Code::Busy, "{refusal}");
        let wait = refusal.retry_after_ms.expect("a time");
        assert!((50..=30_000).contains(&wait), "{wait}");
    }
}
