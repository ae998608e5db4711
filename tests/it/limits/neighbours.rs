//! Two who use one daemon, each with a token of the same user: what one takes
//! without end is not missing to the other.

use ksi_protocol::{
    Code, Frame, Pattern,
    frame::{Class, Subscribe},
    token::CreatedToken,
};
use ksi_tests::{
    frames::{Frames, encoded, request},
    wait_until,
};
use serde_json::json;

use super::{hang, with};
use crate::identity::{create, frames_as};

/// Follows everything, under so many ids; what was refused.
fn follow(frames: &mut Frames, ids: std::ops::Range<u64>) -> Vec<(u64, Code)> {
    let mut bytes = Vec::new();
    for id in ids.clone() {
        let pattern = Pattern::parse("work:**").unwrap();
        bytes.extend(encoded(&Frame::Subscribe(Subscribe::new(id, pattern, Class::Durable))));
    }
    frames.send_bytes(&bytes);
    let answers = ids.map(|_| frames.receive());
    let refused = answers.filter_map(|answer| match answer {
        Frame::Refusal { id, refusal } => Some((id.expect("it names one"), refusal.code)),
        Frame::Reply { .. } => None,
        other => panic!("neither: {other:?}"),
    });
    refused.collect()
}

#[test]
fn what_a_token_has_open_is_charged_to_that_token() {
    let daemon = with("[limits]\nin_flight_max = 50\n");
    let greedy = create(&daemon, &["completion.use", "token.use"], None).token;
    let mut asker = frames_as(&daemon, &greedy);
    let made = asker.ask(60, "token:create", &json!({"name": "more", "can": ["completion.use"]})).unwrap();
    let made: CreatedToken = serde_json::from_value(made).unwrap();
    for id in 0..=50 {
        asker.send(&request(id, "completion:request", &hang()));
    }
    let (id, refusal) = asker.refused();
    assert_eq!((id, refusal.code), (Some(50), Code::Busy));
    assert!(refusal.message.contains("`token:"), "{refusal}");
    // More tokens are no more room, and more connections neither.
    for token in [&greedy, &made.token] {
        let refusal = frames_as(&daemon, token).ask(1, "completion:request", &hang()).unwrap_err();
        assert_eq!(refusal.code, Code::Busy, "{refusal}");
    }
    // The user who made them, and another token, have all of their own.
    daemon.ask("echo:say", json!({"text": "hi"})).expect("the owner has room");
    let other = create(&daemon, &["echo.use"], None).token;
    frames_as(&daemon, &other).ask(1, "echo:say", &json!({"text": "hi"})).expect("another has room");
    drop(asker);
    wait_until("there is room again", || {
        let answer = frames_as(&daemon, &greedy).ask(1, "completion:status", &json!({}));
        answer.err().is_none_or(|refusal| refusal.code != Code::Busy)
    });
}

#[test]
fn who_asks_a_plugin_without_end_leaves_room_for_others() {
    let daemon = with("[plugins.state.limits]\nholding = 64\n");
    let mut greedy = frames_as(&daemon, &create(&daemon, &["state.*"], None).token);
    for id in 0..=32 {
        greedy.send(&request(id, "state:watch", &json!({"key": format!("k{id}")})));
    }
    let (id, refusal) = loop {
        if let Frame::Refusal { id, refusal } = greedy.receive() {
            break (id, refusal);
        }
    };
    assert_eq!((id, refusal.code), (Some(32), Code::Busy), "{refusal}");
    assert!(refusal.message.contains("the rest is for others"), "{refusal}");
    assert_eq!(refusal.details.as_ref().map(|details| &details["blame"]), Some(&json!("sender")));
    let mut other = frames_as(&daemon, &create(&daemon, &["state.*"], None).token);
    other.ask(1, "state:list", &json!({})).expect("another has room");
    daemon.ask("state:list", json!({})).expect("and so has whoever comes after that one");
}

#[test]
fn durable_subscriptions_count_among_all_others() {
    let daemon = with("[limits]\nsubscriptions_max = 3\n");
    let mut frames = frames_as(&daemon, &create(&daemon, &["work.read"], None).token);
    frames.subscribe(1, "work:*", Class::Live);
    assert_eq!(follow(&mut frames, 2..6), [(4, Code::Busy), (5, Code::Busy)]);
    frames.send(&Frame::Unsubscribe { id: 2 });
    wait_until("one has ended", || follow(&mut frames, 7..8).is_empty());
}

#[test]
fn who_may_hear_nothing_cannot_keep_others_from_what_is_durable() {
    let daemon = with("[plugins.checkpoint.limits]\nholding = 64\n");
    let nobody = create(&daemon, &["nothing.use"], None).token;
    let mut crowd: Vec<_> = (0..3).map(|_| frames_as(&daemon, &nobody)).collect();
    let refused: usize = crowd.iter_mut().map(|one| follow(one, 1..31).len()).sum();
    assert!(refused >= 90 - 32, "{refused} of 90 were refused");
    daemon.ask("echo:keep", json!({"text": "kept"})).expect("it is taken in");
    daemon.ask("state:set", json!({"key": "k", "value": 1})).expect("it is written");
}

#[test]
fn only_who_administers_is_heard_beyond_the_share_of_one_user() {
    let daemon = with("[limits]\nin_flight_max = 10\n");
    let token = create(&daemon, &["completion.use", "*.read"], None).token;
    let (mut reader, mut owner) = (frames_as(&daemon, &token), daemon.frames());
    for id in 0..10 {
        reader.send(&request(id, "completion:request", &hang()));
        owner.send(&request(id, "completion:request", &hang()));
    }
    let refusal = reader.ask(90, "system:discover", &json!({})).unwrap_err();
    assert_eq!((refusal.code, refusal.message.contains("`token:")), (Code::Busy, true), "{refusal}");
    owner.ask(90, "token:list", &json!({})).expect("an operator is heard");
}

#[test]
fn who_asks_the_daemon_itself_without_end_keeps_nobody_from_administration() {
    let daemon = with("");
    let token = create(&daemon, &["*.read"], None).token;
    let ask = |id| encoded(&request(id, "system:discover", &json!({"detail": true})));
    let flood: Vec<u8> = (0..1000).flat_map(ask).collect();
    let mut crowd: Vec<_> = (0..8).map(|_| frames_as(&daemon, &token)).collect();
    crowd.iter_mut().for_each(|one| one.send_bytes(&flood));
    for _ in 0..40 {
        daemon.ask("token:list", json!({})).expect("there is room for the operator");
    }
}
