//! What is asked about work, and what operators do with it.

use std::time::Duration;

use ksi_sdk::{
    prelude::{Code, Refusal},
    protocol::{
        meta::Meta,
        work::{Policy, WorkInfo, WorkPage, WorkState},
    },
    testing::{Answer, FakeHost, refused},
};
use serde_json::json;

use super::desk::{
    Desk, Host, TABLES, accepted, ask, count, get, keep, keep_keyed, list, start, until_nothing_is_left, wait,
};
use crate::{record::keys, testing::policy};

#[test]
fn every_event_has_a_help_of_its_own() {
    let descriptor = FakeHost::<Desk>::descriptor();
    assert!(descriptor.keeps_work);
    let mut helps: Vec<&str> = descriptor
        .requests
        .iter()
        .filter(|spec| spec.event.namespace() == "work")
        .map(|spec| spec.about.as_str())
        .chain(descriptor.emits.iter().map(|spec| spec.about.as_str()))
        .collect();
    assert_eq!(helps.len(), 10);
    assert!(helps.iter().all(|help| help.len() > 40), "{helps:?}");
    helps.sort_unstable();
    helps.dedup();
    assert_eq!(helps.len(), 10);
    let get = descriptor.requests.iter().find(|spec| spec.event.as_str() == "work:get").unwrap();
    assert!(get.request.to_string().contains("request_id"), "{}", get.request);
}

#[test]
fn a_wait_is_answered_when_the_work_ends() {
    let host = start();
    let id = keep(&host, "echo:say", json!({}));
    let asked = host.expect("echo:say");
    let waits = [1, 2].map(|_| host.open("work:wait", json!({"request_id": id})));
    let gone = host.open("work:wait", json!({"request_id": id}));
    host.cancel(&gone);
    for wait in &waits {
        assert_eq!(host.try_next(wait), None);
    }
    host.reply(&asked, json!(7));
    for wait in &waits {
        let Answer::Reply(info) = host.next(wait) else { panic!("refused") };
        assert_eq!((&info["state"], &info["result"]), (&json!("done"), &json!(7)));
    }
}

#[test]
fn a_wait_does_not_hold_up_a_stop_and_may_come_again() {
    let host = start();
    let id = keep(&host, "echo:say", json!({}));
    let _running = host.expect("echo:say");
    let waiting = host.open("work:wait", json!({"request_id": id}));
    assert_eq!(host.try_next(&waiting), None);
    host.drain();
    let Answer::Refusal(refusal) = host.next(&waiting) else { panic!("answered") };
    assert_eq!((refusal.code, refusal.retry_after_ms), (Code::Unavailable, Some(200)));
}

#[test]
fn a_stopping_daemon_is_held_up_by_waits_for_what_runs_alone() {
    let host = Host::start(json!({"in_flight": 1})).unwrap();
    let ids = [1, 2].map(|n| keep(&host, "echo:say", json!(n)));
    let asked = host.expect("echo:say");
    let wait = |id: &str| host.open("work:wait", json!({ "request_id": id }));
    let is_put_off =
        |call| matches!(host.try_next(call), Some(Answer::Refusal(no)) if no.code == Code::Unavailable);
    let [runs, rests] = [&ids[0], &ids[1]].map(|id| wait(id));
    assert_eq!([host.try_next(&runs), host.try_next(&rests)], [None, None]);
    host.emit("system:stopping", json!({}));
    let [again, rests_too] = [&ids[0], &ids[1]].map(|id| wait(id));
    assert!(is_put_off(&rests) && is_put_off(&rests_too));
    assert_eq!([host.try_next(&runs), host.try_next(&again)], [None, None]);
    // What is to be tried again is not, before the next start.
    host.refuse(&asked, Refusal::new(Code::Busy, "later"));
    assert!(is_put_off(&runs) && is_put_off(&again));
}

#[test]
fn a_wait_that_is_over_first_says_where_the_work_stands() {
    let host = start();
    let id = keep(&host, "echo:say", json!({}));
    let asked = host.expect("echo:say");
    let short = host.open("work:wait", json!({"request_id": id, "timeout_ms": 200}));
    host.advance(Duration::from_millis(199));
    assert_eq!(host.try_next(&short), None);
    host.advance(Duration::from_millis(1));
    let Answer::Reply(info) = host.next(&short) else { panic!("refused") };
    assert_eq!(info["state"], "leased");
    let now: WorkInfo = ask(&host, "work:wait", json!({"request_id": id, "timeout_ms": 0})).unwrap();
    assert_eq!(now.state, WorkState::Leased);
    host.reply(&asked, json!(1));
    assert_eq!(wait(&host, &id).state, WorkState::Done);
}

#[test]
fn what_nobody_knows_is_not_found() {
    let host = start();
    for event in ["work:get", "work:wait", "work:cancel", "work:retry", "work:drop"] {
        for id in ["nonsense", "0190a5e0-0000-7000-8000-000000000000"] {
            let call = host.open(event, json!({"request_id": id}));
            assert_eq!(refused(host.next(&call)).0, Code::NotFound, "{event} {id}");
        }
    }
}

#[test]
fn cancelling_ends_what_runs_and_its_handler() {
    let host = start();
    let id = keep(&host, "echo:say", json!({}));
    let asked = host.expect("echo:say");
    let waiting = host.open("work:wait", json!({"request_id": id}));
    let info: WorkInfo = ask(&host, "work:cancel", json!({"request_id": id})).unwrap();
    assert_eq!(info.state, WorkState::Cancelled);
    assert!(host.has_cancelled(&asked));
    assert!(matches!(host.next(&waiting), Answer::Reply(info) if info["state"] == "cancelled"));
    host.reply(&asked, json!("late"));
    assert_eq!(get(&host, &id).state, WorkState::Cancelled);
    let again: WorkInfo = ask(&host, "work:cancel", json!({"request_id": id})).unwrap();
    assert_eq!(again.state, WorkState::Cancelled, "to ask twice is no mistake");
    assert_eq!(host.expect_emitted("work:failed")["state"], "cancelled");

    let done = keep(&host, "echo:say", json!({}));
    let asked = host.expect("echo:say");
    host.reply(&asked, json!(1));
    wait(&host, &done);
    let refusal = host.request("work:cancel", json!({"request_id": done})).unwrap_err();
    assert_eq!(refusal.code, Code::Conflict);
}

#[test]
fn failed_work_is_done_again_on_demand_under_its_name() {
    let host = start();
    let id = keep(&host, "echo:say", json!({"text": "again"}));
    let asked = host.expect("echo:say");
    host.refuse(&asked, Refusal::new(Code::NotFound, "no such voice"));
    wait(&host, &id);
    // What was asked is kept for it, over a restart too.
    let host = host.restart(json!({})).unwrap();
    let info: WorkInfo = ask(&host, "work:retry", json!({"request_id": id})).unwrap();
    assert_eq!((info.state, info.attempts), (WorkState::Leased, 2));
    let asked = host.expect("echo:say");
    assert_eq!(
        (asked.data.clone(), asked.meta.idempotency_key.as_deref()),
        (json!({"text": "again"}), Some(&*id))
    );
    let twice = host.request("work:retry", json!({"request_id": id})).unwrap_err();
    assert_eq!(twice.code, Code::Conflict);
    host.reply(&asked, json!(1));
    assert_eq!(wait(&host, &id).state, WorkState::Done);
    assert_eq!(host.request("work:retry", json!({"request_id": id})).unwrap_err().code, Code::Conflict);
}

#[test]
fn the_dead_are_listed_with_their_reasons_and_dropped() {
    let host = start();
    let once = Policy { repeat: false, ..policy() };
    let call = host.keep("echo:say", json!({}), once);
    let id = accepted(&host, &call);
    let asked = host.expect("echo:say");
    host.refuse(&asked, Refusal::new(Code::PluginRestarted, "plugin echo died of signal 11"));
    wait(&host, &id);
    assert_eq!(host.expect_emitted("work:died")["code"], "unknown");
    let alive = keep(&host, "echo:say", json!({}));
    let page: WorkPage = ask(&host, "work:dead", json!({})).unwrap();
    assert_eq!((page.work.len(), page.next), (1, None));
    let reason = page.work[0].refusal.as_ref().unwrap();
    assert!(reason.message.contains("signal 11") && reason.hint.contains(&id), "{reason:?}");
    assert_eq!(
        host.request("work:dead", json!({"states": ["done"]})).unwrap_err().code,
        Code::InvalidPayload
    );

    assert_eq!(host.request("work:drop", json!({"request_id": alive})).unwrap_err().code, Code::Conflict);
    let dropped: WorkInfo = ask(&host, "work:drop", json!({"request_id": id})).unwrap();
    assert_eq!(dropped.request_id, id);
    assert_eq!(host.request("work:get", json!({"request_id": id})).unwrap_err().code, Code::NotFound);
    assert_eq!(TABLES.map(|table| count(&host, table)), [1, 1, 0, 0], "only the one that runs is left");
}

#[test]
fn lists_are_filtered_by_state_and_event() {
    let host = start();
    let running = keep(&host, "a:b", json!({}));
    let waiting = keep(&host, "a:c", json!({}));
    let asked = host.expect("a:c");
    host.refuse(&asked, Refusal::new(Code::Busy, "full").retry_after_ms(5_000));
    let done = keep(&host, "b:d", json!({}));
    let asked = host.expect("b:d");
    host.reply(&asked, json!(1));
    wait(&host, &done);
    let ids = |ask_for| list(&host, ask_for).work.into_iter().map(|info| info.request_id).collect::<Vec<_>>();
    assert_eq!(ids(json!({})), [running.clone(), waiting.clone(), done.clone()]);
    assert_eq!(ids(json!({"states": ["leased", "waiting"]})), [running.clone(), waiting.clone()]);
    assert_eq!(ids(json!({"event": "a:*", "states": ["waiting", "done"]})), [waiting.as_str()]);
    assert_eq!(ids(json!({"event": "b:**"})), [done.as_str()]);
    let page = list(&host, json!({"limit": 2}));
    assert_eq!((page.work.len(), page.next.as_ref()), (2, Some(&waiting)));
    let page = list(&host, json!({"limit": 2, "after": page.next}));
    assert_eq!((page.work[0].request_id.as_str(), page.next), (done.as_str(), None));
    for limit in [0, 1_001] {
        let refusal = host.request("work:list", json!({"limit": limit})).unwrap_err();
        assert_eq!(refusal.code, Code::InvalidPayload);
    }
}

#[test]
fn a_list_says_nothing_of_what_was_asked_or_answered() {
    let host = start();
    let meta = Meta { origin: Some("session:3".into()), work: Some(policy()), ..Meta::default() };
    let call = host.open_as("echo:say", json!("secret"), &meta);
    let id = accepted(&host, &call);
    let asked = host.expect("echo:say");
    host.reply(&asked, json!("secret"));
    wait(&host, &id);
    let text = serde_json::to_string(&list(&host, json!({}))).unwrap();
    assert!(text.contains("session:3") && !text.contains("secret"), "{text}");
}

#[test]
fn what_is_answered_under_a_key_is_known_also_when_its_result_is_gone() {
    let config = || json!({"kept": 0});
    let host = Host::start(config()).unwrap();
    let id = accepted(&host, &keep_keyed(&host, "k", json!(1)));
    let asked = host.expect("echo:say");
    host.reply(&asked, json!("gone"));
    wait(&host, &id);
    host.advance(Duration::from_secs(1));
    assert_eq!([keys::RESULT, keys::MARK].map(|table| count(&host, table)), [0, 1]);
    // Also what was read back, and not only what was here all the time.
    let host = host.restart(config()).unwrap();
    assert_eq!(accepted(&host, &keep_keyed(&host, "k", json!(1))), id);
    for info in [get(&host, &id), wait(&host, &id), list(&host, json!({})).work.remove(0)] {
        assert_eq!((info.state, info.result, info.refusal), (WorkState::Done, None, None));
    }
    assert!(!host.has_asked());
    let _: WorkInfo = ask(&host, "work:drop", json!({"request_id": id})).unwrap();
    assert_ne!(accepted(&host, &keep_keyed(&host, "k", json!(2))), id, "dropping forgets the key too");
    let asked = host.expect("echo:say");
    host.reply(&asked, json!(2));
    until_nothing_is_left(&host);
    assert_eq!(count(&host, keys::MARK), 0);
}
