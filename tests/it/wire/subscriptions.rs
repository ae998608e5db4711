//! Subscriptions, on both faces.

use ksi_protocol::{Frame, frame::Class};
use ksi_tests::{
    Daemon,
    frames::{emit, encoded, value},
};
use serde_json::json;

#[test]
fn an_emit_with_an_id_says_how_many_were_told() {
    let daemon = Daemon::without_model();
    let (mut one, mut two, mut teller) = (daemon.lines(), daemon.frames(), daemon.lines());
    one.send(&json!({"subscribe": "test:*", "id": "s"}));
    assert_eq!(one.receive(), json!({"id": "s", "data": {"subscribed": true}}));
    two.subscribe(9, "**:done", Class::Live);
    teller.send(&json!({"emit": "test:done", "id": 4, "data": {"n": 1}}));
    assert_eq!(teller.receive(), json!({"id": 4, "data": {"delivered": 2}}));
    let event = one.receive();
    assert_eq!((&event["sub"], &event["seq"], &event["data"]), (&json!("s"), &json!(1), &json!({"n": 1})));
    assert!(event["origin"].as_str().unwrap().starts_with("session:"), "{event}");
    assert!(event["timestamp"].is_string(), "{event}");
    let event = two.event();
    assert_eq!((event.sub, event.seq, value(&event.data)), (9, 1, json!({"n": 1})));
    let mut frames = daemon.frames();
    frames.send(&emit(Some(5), "test:nobody", &json!({})));
    let Frame::Reply { id: 5, data } = frames.receive() else { panic!("no count") };
    assert_eq!(value(&data), json!({"delivered": 1}));
}

#[test]
fn events_of_another_connection_come_in_order() {
    let daemon = Daemon::without_model();
    let (mut lines, mut frames, mut teller) = (daemon.lines(), daemon.frames(), daemon.frames());
    lines.send(&json!({"subscribe": "test:*"}));
    assert_eq!(lines.receive()["data"]["subscribed"], true);
    frames.subscribe(1, "test:*", Class::Live);
    for n in 0..1000 {
        teller.send(&emit(None, "test:counted", &json!({ "n": n })));
    }
    for n in 0..1000_u64 {
        let event = lines.receive();
        assert_eq!((&event["data"]["n"], &event["seq"]), (&json!(n), &json!(n + 1)));
        let event = frames.event();
        assert_eq!((value(&event.data), event.seq), (json!({ "n": n }), n + 1));
    }
}

#[test]
fn nobody_hears_themselves() {
    let daemon = Daemon::without_model();
    let mut lines = daemon.lines();
    lines.send(&json!({"subscribe": "test:**", "id": "all"}));
    assert_eq!(lines.receive()["data"]["subscribed"], true);
    lines.send(&json!({"emit": "test:said", "id": 1}));
    assert_eq!(lines.receive()["data"], json!({"delivered": 0}));
    let mut other = daemon.lines();
    other.send(&json!({"emit": "test:other"}));
    assert_eq!(lines.receive()["event"], "test:other");
}

#[test]
fn after_an_unsubscribe_nothing_more_comes() {
    let daemon = Daemon::without_model();
    let (mut lines, mut teller) = (daemon.lines(), daemon.lines());
    lines.send(&json!({"subscribe": "test:*", "id": "s"}));
    assert_eq!(lines.receive()["data"]["subscribed"], true);
    lines.send(&json!({"unsubscribe": "s"}));
    lines.send(&json!({"event": "system:health", "id": "after"}));
    assert_eq!(lines.receive()["id"], "after");
    teller.send(&json!({"emit": "test:said", "id": 1}));
    assert_eq!(teller.receive()["data"], json!({"delivered": 0}));
    lines.send(&json!({"unsubscribe": "s"}));
    assert_eq!(lines.receive()["refusal"]["code"], "not_found");
    lines.send(&json!({"subscribe": "test:*", "id": "s"}));
    assert_eq!(lines.receive()["data"]["subscribed"], true, "the id is free again");
}

#[test]
fn the_same_holds_for_frames() {
    let daemon = Daemon::without_model();
    let (mut frames, mut teller) = (daemon.frames(), daemon.frames());
    frames.subscribe(3, "test:*", Class::Live);
    frames.send(&Frame::Unsubscribe { id: 3 });
    frames.ask(4, "system:health", &json!({})).unwrap();
    teller.send(&emit(Some(1), "test:said", &json!({})));
    let Frame::Reply { data, .. } = teller.receive() else { panic!("no count") };
    assert_eq!(value(&data), json!({"delivered": 0}));
    frames.send(&Frame::Unsubscribe { id: 3 });
    let (id, refusal) = frames.refused();
    assert_eq!((id, refusal.code), (Some(3), ksi_protocol::Code::NotFound));
    frames.subscribe(3, "test:*", Class::Live);
    teller.send(&emit(None, "test:said", &json!({})));
    assert_eq!(frames.event().seq, 1);
}

#[test]
fn a_subscription_with_an_id_in_use_is_refused_and_the_first_goes_on() {
    let daemon = Daemon::without_model();
    let (mut frames, mut teller) = (daemon.frames(), daemon.lines());
    frames.subscribe(1, "test:*", Class::Live);
    let pattern = ksi_protocol::Pattern::parse("*").unwrap();
    frames.send(&Frame::Subscribe(ksi_protocol::frame::Subscribe::new(1, pattern, Class::Live)));
    assert_eq!(frames.refused().1.code, ksi_protocol::Code::Conflict);
    teller.send(&json!({"emit": "test:said"}));
    assert_eq!(frames.event().seq, 1);
}

#[test]
fn a_durable_subscription_is_refused_while_there_is_no_journal() {
    let daemon = Daemon::without_model();
    let mut lines = daemon.lines();
    lines.send(&json!({"subscribe": "test:*", "id": "s", "class": "durable"}));
    assert_eq!(lines.receive()["refusal"]["code"], "unavailable");
    lines.send(&json!({"subscribe": "test:*", "id": "s"}));
    assert_eq!(lines.receive()["data"]["subscribed"], true, "the id is free again");
}

#[test]
fn a_subscription_outlives_a_half_close() {
    let daemon = Daemon::without_model();
    let (mut lines, mut teller) = (daemon.lines(), daemon.lines());
    lines.send(&json!({"subscribe": "test:*"}));
    assert_eq!(lines.receive()["data"]["subscribed"], true);
    lines.half_close();
    teller.send(&json!({"emit": "test:said"}));
    assert_eq!(lines.receive()["event"], "test:said");
    drop(lines);
    ksi_tests::wait_until("the session ends with the client", || daemon.status().subscriptions == 0);
}

/// More than socket and buffers hold, so that some of it has to wait.
const MANY: u64 = 4000;

#[test]
fn a_latest_subscription_skips_what_is_old_and_makes_no_gap() {
    let daemon = Daemon::without_model();
    let (mut lines, mut frames, mut teller) = (daemon.lines(), daemon.frames(), daemon.frames());
    lines.send(&json!({"subscribe": "test:*", "id": "s", "class": "latest"}));
    assert_eq!(lines.receive()["data"]["subscribed"], true);
    frames.subscribe(1, "test:*", Class::Latest);
    let pad = "x".repeat(1000);
    for n in 1..=MANY {
        let name = if n % 2 == 0 { "test:even" } else { "test:odd" };
        teller.send_bytes(&encoded(&emit(None, name, &json!({ "n": n, "pad": pad }))));
    }
    teller.ask(1, "system:health", &json!({})).unwrap();
    let (mut got, mut newest) = (0, [0, 0]);
    while newest.iter().sum::<u64>() < 2 * MANY - 1 {
        let event = lines.receive();
        let n = event["data"]["n"].as_u64().unwrap_or_else(|| panic!("no event but {event}"));
        let parity = usize::from(n % 2 == 0);
        assert!(n > newest[parity], "{n} came after {}", newest[parity]);
        newest[parity] = n;
        got += 1;
    }
    assert!(got < MANY, "all {got} came, so the reader was never slow");
    let (mut last, mut missing) = (0, vec![MANY - 1, MANY]);
    while !missing.is_empty() {
        let event = frames.event();
        assert!(event.seq > last, "sequence numbers rise");
        last = event.seq;
        missing.retain(|n| value(&event.data)["n"] != *n);
    }
    assert_eq!(last, MANY, "what was skipped shows in the sequence number");
}
