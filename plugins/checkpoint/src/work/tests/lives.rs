//! From acceptance to the end, through deaths of all kinds.

use std::time::Duration;

use ksi_sdk::{
    prelude::{Code, Refusal},
    protocol::{
        meta::Meta,
        work::{Policy, WorkState},
    },
    testing::Answer,
};
use serde_json::json;

use super::desk::{
    Host, TABLES, accepted, ask, count, get, keep, keep_keyed, list, start, until, until_nothing_is_left,
    wait,
};
use crate::{
    record::keys,
    testing::{drain, policy},
};

#[test]
fn what_is_accepted_is_asked_of_its_owner_and_its_answer_is_kept() {
    let host = start();
    let meta = Meta {
        origin: Some("session:7".into()),
        correlation_id: Some("c-9".into()),
        work: Some(policy()),
        ..Meta::default()
    };
    let call = host.open_as("echo:say", json!({"text": "secret"}), &meta);
    let id = accepted(&host, &call);
    let asked = host.expect("echo:say");
    assert_eq!(asked.data, json!({"text": "secret"}));
    assert_eq!(asked.meta.origin.as_deref(), Some("session:7"));
    assert_eq!(asked.meta.correlation_id.as_deref(), Some("c-9"));
    assert_eq!(asked.meta.idempotency_key.as_deref(), Some(id.as_str()));
    assert_eq!(asked.meta.timeout_ms, Some(24 * 3600 * 1000), "its lease ends it, as its handler goes on");
    assert_eq!(asked.meta.parent, None);
    assert_eq!(get(&host, &id).state, WorkState::Leased);

    host.reply(&asked, json!({"text": "secret too"}));
    let info = wait(&host, &id);
    assert_eq!((info.state, info.attempts, info.refusal), (WorkState::Done, 1, None));
    let result: serde_json::Value = ksi_sdk::protocol::decode(&info.result.unwrap().0).unwrap();
    assert_eq!(result, json!({"text": "secret too"}));
    let fact = host.expect_emitted("work:done");
    assert_eq!(fact["request_id"], id);
    assert_eq!(fact["correlation_id"], "c-9");
    assert!(!fact.to_string().contains("secret"));
    assert!(host.logged().is_empty());
    assert_eq!(TABLES.map(|table| count(&host, table)), [1, 0, 1, 0]);
}

#[test]
fn work_goes_on_when_its_asker_has_gone() {
    let host = start();
    let call = host.keep("echo:say", json!({}), policy());
    host.cancel(&call);
    let asked = host.expect("echo:say");
    host.reply(&asked, json!(1));
    host.expect_emitted("work:done");
}

#[test]
fn the_last_part_of_a_stream_is_the_result() {
    let host = start();
    let id = keep(&host, "echo:count", json!({}));
    let asked = host.expect("echo:count");
    for part in 0..3 {
        // A word before the lease runs out begins it anew.
        host.advance(Duration::from_secs(4));
        host.chunk(&asked, json!(part));
    }
    assert!(!host.has_cancelled(&asked));
    host.end(&asked, json!("whole"));
    let result = wait(&host, &id).result.unwrap();
    assert_eq!(ksi_sdk::protocol::decode::<String>(&result.0).unwrap(), "whole");
}

#[test]
fn an_attempt_without_a_word_is_given_up() {
    let host = start();
    let id = keep(&host, "echo:say", json!({}));
    let asked = host.expect("echo:say");
    host.advance(Duration::from_secs(5));
    assert!(host.has_cancelled(&asked));
    host.reply(&asked, json!("late"));
    host.advance(Duration::from_secs(1));
    let again = host.expect("echo:say");
    assert_eq!(get(&host, &id).attempts, 2);
    host.reply(&again, json!(1));
    assert_eq!(wait(&host, &id).state, WorkState::Done);
}

#[test]
fn a_refusal_that_may_pass_is_tried_again_after_a_pause() {
    let host = start();
    let id = keep(&host, "echo:say", json!({}));
    let asked = host.expect("echo:say");
    host.refuse(&asked, Refusal::new(Code::Busy, "full").retry_after_ms(3_000));
    let info = get(&host, &id);
    assert_eq!((info.state, info.attempts), (WorkState::Waiting, 0));
    host.advance(Duration::from_millis(2_990));
    assert!(!host.has_asked());
    host.advance(Duration::from_millis(10));
    let asked = host.expect("echo:say");
    host.refuse(&asked, Refusal::new(Code::Denied, "never"));
    let info = wait(&host, &id);
    assert_eq!((info.state, info.attempts), (WorkState::Failed, 1));
    assert_eq!(info.refusal, Some(Refusal::new(Code::Denied, "never")));
    let fact = host.expect_emitted("work:failed");
    assert_eq!((&fact["code"], &fact["state"]), (&json!("denied"), &json!("failed")));
}

#[test]
fn after_a_death_everything_goes_on_that_was_accepted() {
    let host = Host::start(json!({"in_flight": 2})).unwrap();
    let leased = keep(&host, "echo:say", json!(1));
    let once = Policy { repeat: false, ..policy() };
    let call = host.keep("echo:say", json!(2), once);
    let unknown = accepted(&host, &call);
    let queued = keep(&host, "echo:say", json!(3));
    let waiting = keep(&host, "echo:late", json!(4));
    let asked = host.expect("echo:late");
    host.refuse(&asked, Refusal::new(Code::Unavailable, "not yet").retry_after_ms(5_000));
    let done = keep(&host, "echo:now", json!(5));
    let asked = host.expect("echo:now");
    host.reply(&asked, json!("kept"));
    wait(&host, &done);
    assert_eq!(get(&host, &waiting).state, WorkState::Waiting);

    let host = host.restart(json!({"in_flight": 2})).unwrap();
    assert_eq!(get(&host, &unknown).state, WorkState::Unknown);
    assert_eq!(host.expect_emitted("work:died")["request_id"], unknown);
    assert!(wait(&host, &done).result.is_some());
    for (id, data) in [(&leased, json!(1)), (&queued, json!(3))] {
        let asked = host.expect("echo:say");
        assert_eq!((asked.meta.idempotency_key.as_ref(), &asked.data), (Some(id), &data));
        host.reply(&asked, json!(data));
        assert_eq!(wait(&host, id).state, WorkState::Done);
    }
    assert!(!host.has_asked(), "the pause is kept over the restart");
    host.advance(Duration::from_secs(5));
    let asked = host.expect("echo:late");
    assert_eq!(asked.data, json!(4));
    host.reply(&asked, json!(4));
    let info = wait(&host, &waiting);
    assert_eq!((info.state, info.attempts), (WorkState::Done, 1));
}

#[test]
fn poison_ends_dead_and_the_others_live() {
    let mut host = start();
    let ids: Vec<String> = (0..5).map(|number| keep(&host, "echo:say", json!(number))).collect();
    let mut starts = 0;
    // The daemon dies whenever it is asked for number 2.
    'start: while starts < 20 {
        starts += 1;
        for _ in 0..200 {
            // What is shown is durable, and what is durable was begun.
            ids.iter().for_each(|id| drop(get(&host, id)));
            if host.has_asked() {
                let asked = host.expect("echo:say");
                if asked.data == json!(2) {
                    host = host.restart(json!({})).unwrap();
                    continue 'start;
                }
                if starts > 1 {
                    host.reply(&asked, json!(1));
                }
            }
            host.advance(Duration::from_millis(100));
        }
        break;
    }
    assert_eq!(starts, 6, "five deaths: the first two blame nobody, three more are enough");
    for (number, id) in ids.iter().enumerate() {
        let info = wait(&host, id);
        let expected = if number == 2 { (WorkState::Dead, 3) } else { (WorkState::Done, 0) };
        assert_eq!((info.state, info.crashes), expected, "{number}");
    }
}

#[test]
fn a_planned_restart_burns_no_attempt() {
    let mut host = start();
    let call = host.keep("echo:say", json!({}), Policy { attempts: 1, repeat: false, ..policy() });
    let id = accepted(&host, &call);
    for _ in 0..3 {
        let asked = host.expect("echo:say");
        drain(&host);
        assert!(host.has_cancelled(&asked));
        host = host.restart(json!({})).unwrap();
        assert_eq!(get(&host, &id).attempts, 1);
    }
    let asked = host.expect("echo:say");
    host.reply(&asked, json!(1));
    assert_eq!(wait(&host, &id).state, WorkState::Done);
}

#[test]
fn a_stopping_daemon_begins_nothing_and_loses_nothing() {
    let host = start();
    host.emit("system:stopping", json!({}));
    let id = keep(&host, "echo:say", json!({}));
    host.advance(Duration::from_secs(10));
    assert!(!host.has_asked());
    drain(&host);
    let host = host.restart(json!({})).unwrap();
    let asked = host.expect("echo:say");
    host.reply(&asked, json!(1));
    assert_eq!(wait(&host, &id).state, WorkState::Done);
}

#[test]
fn what_has_aged_while_nothing_ran_expires_and_is_not_begun() {
    let host = Host::start(json!({"in_flight": 1})).unwrap();
    keep(&host, "echo:say", json!(1));
    let old = keep(&host, "echo:say", json!(2));
    drain(&host);
    let host = host.restart(json!({"in_flight": 0})).unwrap();
    host.advance(Duration::from_secs(59));
    let host = host.restart(json!({"in_flight": 0})).unwrap();
    host.advance(Duration::from_secs(1));
    let host = host.restart(json!({"in_flight": 1})).unwrap();
    assert_eq!(get(&host, &old).state, WorkState::Expired);
    assert!(!host.has_asked());
}

#[test]
fn racing_duplicates_are_one_piece_of_work() {
    let host = start();
    let first = keep_keyed(&host, "k", json!(1));
    let second = keep_keyed(&host, "k", json!(1));
    let other = keep_keyed(&host, "k", json!(2));
    let id = match (host.next(&first), host.next(&second)) {
        (Answer::Accepted(one), Answer::Accepted(two)) => {
            assert_eq!(one, two);
            one.request_id
        }
        other => panic!("{other:?}"),
    };
    let Answer::Refusal(refusal) = host.next(&other) else { panic!("accepted") };
    assert_eq!((refusal.code, refusal.details), (Code::Conflict, Some(json!({"request_id": id}))));
    let asked = host.expect("echo:say");
    assert!(!host.has_asked(), "it is asked once");
    host.reply(&asked, json!(1));
    wait(&host, &id);

    let host = host.restart(json!({})).unwrap();
    let again = keep_keyed(&host, "k", json!(1));
    assert_eq!(accepted(&host, &again), id, "the first answer, over a restart and after the end");
    assert!(!host.has_asked());
    host.advance(Duration::from_secs(24 * 3600));
    until_nothing_is_left(&host);
    let fresh = keep_keyed(&host, "k", json!(2));
    assert_ne!(accepted(&host, &fresh), id);
}

#[test]
fn thousands_are_begun_in_order_and_all_end() {
    let host = Host::start(json!({"in_flight": 16})).unwrap();
    let calls: Vec<_> = (0..3_000).map(|number| host.keep("echo:say", json!(number), policy())).collect();
    let ids: Vec<String> = calls.iter().map(|call| accepted(&host, call)).collect();
    assert!(ids.is_sorted());
    for number in 0..3_000 {
        let asked = host.expect("echo:say");
        assert_eq!(asked.data, json!(number), "begun in order");
        host.reply(&asked, json!(number));
    }
    for id in &ids {
        assert_eq!(wait(&host, id).state, WorkState::Done);
    }
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let page = list(&host, json!({"limit": 700, "after": after}));
        seen.extend(page.work.into_iter().map(|info| info.request_id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, ids);
}

#[test]
fn a_large_result_is_kept_and_one_beyond_the_limit_is_said_to_be() {
    let host = start();
    let id = keep(&host, "echo:say", json!({"text": "y".repeat(3 << 20)}));
    let asked = host.expect("echo:say");
    host.reply(&asked, json!("x".repeat(2 << 20)));
    wait(&host, &id);
    let host = host.restart(json!({})).unwrap();
    let result = get(&host, &id).result.unwrap();
    assert_eq!(ksi_sdk::protocol::decode::<String>(&result.0).unwrap().len(), 2 << 20);

    let id = keep(&host, "echo:say", json!(1));
    let asked = host.expect("echo:say");
    host.reply(&asked, json!("x".repeat((16 << 20) - 1024)));
    let info = wait(&host, &id);
    assert_eq!((info.state, info.refusal.unwrap().code), (WorkState::Failed, Code::TooLarge));
}

#[test]
fn while_memory_is_full_new_work_is_refused_and_no_end_is_lost() {
    let host = Host::start(json!({"memory": 64 << 10})).unwrap();
    host.script("echo:say", |_| Ok(json!("x".repeat(4_000))));
    let (mut ids, mut refused) = (Vec::new(), 0);
    while ids.len() < 300 {
        // Several at once, so that memory fills before the store has it.
        let calls: Vec<_> =
            (0..20).map(|_| host.keep("echo:say", json!("y".repeat(2_000)), policy())).collect();
        for call in calls {
            match host.next(&call) {
                Answer::Accepted(accepted) => ids.push(accepted.request_id),
                Answer::Refusal(refusal) if refusal.code == Code::Busy => refused += 1,
                other => panic!("{other:?}"),
            }
        }
        host.advance(Duration::from_millis(50));
    }
    assert!(refused > 0, "memory never was full");
    for id in &ids {
        assert_eq!(until(&host, id, WorkState::Done).attempts, 1);
    }
    assert!(host.logged().is_empty());
}

#[test]
fn results_are_forgotten_in_their_time() {
    let host = start();
    let id = keep(&host, "echo:say", json!({}));
    let asked = host.expect("echo:say");
    host.reply(&asked, json!(1));
    until(&host, &id, WorkState::Done);
    host.advance(Duration::from_secs(599));
    assert!(get(&host, &id).result.is_some());
    until_nothing_is_left(&host);
}

#[test]
fn what_cannot_be_read_is_left_alone_and_everything_else_goes_on() {
    let host = start();
    let [spoiled, queued] = [1, 2].map(|number| keep(&host, "echo:say", json!(number)));
    let _: serde_json::Value = ask(&host, "desk:spoil", json!({ "request_id": spoiled })).unwrap();
    let host = host.restart(json!({})).unwrap();
    assert_eq!(ask::<usize>(&host, "desk:unreadable", json!({})).unwrap(), 1);
    assert_eq!(count(&host, keys::WORK), 2, "it is still there");
    assert!(host.logged().iter().any(|(_, line)| line.contains(&spoiled)), "and named");
    let asked = host.expect("echo:say");
    assert_eq!(asked.data, json!(2));
    host.reply(&asked, json!(2));
    assert_eq!(wait(&host, &queued).state, WorkState::Done);
    assert_eq!(list(&host, json!({})).work.len(), 1);
}
