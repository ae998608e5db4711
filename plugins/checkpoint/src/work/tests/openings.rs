//! A journal that stops and is opened again while the process lives: what runs
//! goes on, and is neither asked twice nor given up.

use ksi_sdk::{
    prelude::{Code, Refusal},
    protocol::work::{Policy, WorkState},
    testing::Answer,
};
use serde_json::json;

use super::desk::{accepted, get, keep, keep_keyed, reopen, start, stop_journal, wait};
use crate::testing::policy;

#[test]
fn what_runs_while_the_journal_is_opened_again_is_not_asked_twice() {
    let host = start();
    let once = Policy { repeat: false, ..policy() };
    let id = accepted(&host, &host.keep("echo:say", json!({}), once));
    let asked = host.expect("echo:say");
    stop_journal(&host);
    reopen(&host);
    let info = get(&host, &id);
    assert_eq!((info.state, info.attempts), (WorkState::Leased, 1));
    assert!(!host.has_cancelled(&asked) && !host.has_asked());
    host.reply(&asked, json!("once"));
    let info = wait(&host, &id);
    assert_eq!((info.state, info.attempts), (WorkState::Done, 1));
    assert_eq!(host.expect_emitted("work:done")["request_id"], id);
}

#[test]
fn what_is_answered_while_no_journal_is_open_is_heard_afterwards() {
    let host = start();
    let once = Policy { repeat: false, ..policy() };
    let done = accepted(&host, &host.keep("echo:say", json!(1), once));
    let first = host.expect("echo:say");
    let refused = keep(&host, "echo:late", json!(2));
    let second = host.expect("echo:late");
    stop_journal(&host);
    host.reply(&first, json!("kept"));
    host.refuse(&second, Refusal::new(Code::Denied, "never"));
    reopen(&host);
    let info = wait(&host, &done);
    assert_eq!(ksi_sdk::protocol::decode::<String>(&info.result.unwrap().0).unwrap(), "kept");
    assert_eq!(wait(&host, &refused).state, WorkState::Failed);
    assert!(!host.has_asked());
}

#[test]
fn what_was_cancelled_or_had_no_place_yet_goes_on_as_it_would_have() {
    let host = super::desk::Host::start(json!({"in_flight": 1})).unwrap();
    let first = keep(&host, "echo:say", json!(1));
    let second = keep(&host, "echo:say", json!(2));
    let asked = host.expect("echo:say");
    stop_journal(&host);
    reopen(&host);
    assert!(!host.has_asked(), "the one that runs has the only place");
    let cancelled = super::desk::ask::<serde_json::Value>(&host, "work:cancel", json!({"request_id": first}));
    assert_eq!(cancelled.unwrap()["state"], "cancelled");
    assert!(host.has_cancelled(&asked));
    let asked = host.expect("echo:say");
    assert_eq!(asked.data, json!(2));
    stop_journal(&host);
    reopen(&host);
    host.reply(&asked, json!(2));
    assert_eq!(wait(&host, &second).state, WorkState::Done);
    assert_eq!(get(&host, &first).state, WorkState::Cancelled);
}

#[test]
fn who_waits_is_sent_to_ask_again() {
    let host = start();
    let id = keep(&host, "echo:say", json!({}));
    let asked = host.expect("echo:say");
    let waits = host.open("work:wait", json!({"request_id": id}));
    assert_eq!(host.try_next(&waits), None);
    stop_journal(&host);
    let Answer::Refusal(refusal) = host.next(&waits) else { panic!("it is refused") };
    assert_eq!((refusal.code, refusal.retryable), (Code::Unavailable, true));
    reopen(&host);
    let waits = host.open("work:wait", json!({"request_id": id}));
    assert_eq!(host.try_next(&waits), None);
    host.reply(&asked, json!(1));
    assert!(matches!(host.next(&waits), Answer::Reply(info) if info["state"] == "done"));
}

#[test]
fn a_process_that_died_meanwhile_is_told_apart_from_one_that_lives() {
    let host = start();
    let once = Policy { repeat: false, ..policy() };
    let id = accepted(&host, &host.keep("echo:say", json!({}), once));
    host.expect("echo:say");
    stop_journal(&host);
    reopen(&host);
    let host = host.restart(json!({})).unwrap();
    assert_eq!(get(&host, &id).state, WorkState::Unknown);
}

#[test]
fn a_key_is_known_over_an_opening() {
    let host = start();
    let id = accepted(&host, &keep_keyed(&host, "k", json!(1)));
    let asked = host.expect("echo:say");
    stop_journal(&host);
    let refused = keep_keyed(&host, "k", json!(1));
    assert!(matches!(host.next(&refused), Answer::Refusal(refusal) if refusal.retryable));
    reopen(&host);
    assert_eq!(accepted(&host, &keep_keyed(&host, "k", json!(1))), id);
    host.reply(&asked, json!(1));
    assert_eq!(wait(&host, &id).state, WorkState::Done);
}
