//! MessagePack frames: questions and answers.

use ksi_protocol::{Bytes, Code, Frame, PROTOCOL_VERSION};
use ksi_tests::{
    Daemon, Home,
    frames::{Frames, emit, encoded, payload, plain, request, value},
    library,
};
use serde_json::{Value, json};

fn ready() -> Daemon {
    let daemon = Daemon::without_model();
    daemon.ready();
    daemon
}

fn say(id: u64, text: &str) -> Frame {
    request(id, "echo:say", &json!({ "text": text }))
}

fn completion(id: u64, model: &str, credit: Option<u32>) -> Frame {
    let data = payload(&json!({"prompt": "one two three", "model": model}));
    Frame::Request(ksi_protocol::frame::Request { credit, ..plain(id, "completion:request", data) })
}

/// Chunks until the end, and the summary.
fn stream(frames: &mut Frames, id: u64) -> (Vec<Value>, Value) {
    let mut chunks = Vec::new();
    loop {
        match frames.receive() {
            Frame::Chunk { id: of, data } if of == id => chunks.push(value(&data)),
            Frame::End { id: of, data } if of == id => return (chunks, value(&data)),
            other => panic!("no part of {id} but {other:?}"),
        }
    }
}

#[test]
fn hello_is_answered_by_welcome() {
    let daemon = Daemon::without_model();
    let mut frames = Frames::new(daemon.raw());
    let welcome = frames.greet();
    assert_eq!(welcome.version, PROTOCOL_VERSION);
    assert!(welcome.server.starts_with("ksid "), "{}", welcome.server);
    assert!(welcome.session.starts_with("session:"), "{}", welcome.session);
    assert_eq!(welcome.boot, daemon.status().boot);
}

#[test]
fn a_fast_answer_overtakes_a_slow_one() {
    let daemon = ready();
    let mut frames = daemon.frames();
    let mut bytes = encoded(&completion(1, "mock/slow:200", None));
    bytes.extend_from_slice(&encoded(&say(2, "hi")));
    frames.send_bytes(&bytes);
    assert!(matches!(frames.receive(), Frame::Reply { id: 2, .. }));
    stream(&mut frames, 1);
}

#[test]
fn ten_thousand_pipelined_requests_are_all_answered_once() {
    let daemon = ready();
    let mut frames = daemon.frames();
    for batch in 0..10_u64 {
        let mut bytes = Vec::new();
        for id in batch * 1000..(batch + 1) * 1000 {
            bytes.extend_from_slice(&encoded(&say(id, &id.to_string())));
        }
        frames.send_bytes(&bytes);
        let mut seen = std::collections::HashSet::new();
        for _ in 0..1000 {
            let Frame::Reply { id, data } = frames.receive() else { panic!("no reply") };
            assert_eq!(value(&data)["text"], id.to_string());
            assert!(seen.insert(id), "{id} twice");
        }
    }
}

#[test]
fn a_stream_is_chunks_and_an_end() {
    let daemon = ready();
    let mut frames = daemon.frames();
    frames.send(&completion(7, "mock/echo", None));
    let (chunks, end) = stream(&mut frames, 7);
    let text: String = chunks.iter().filter_map(|chunk| chunk["text"].as_str()).collect();
    assert_eq!(end["text"], text);
    assert_eq!(text, "one two three");
}

#[test]
fn a_stream_with_credit_pauses_until_more_is_allowed() {
    let daemon = ready();
    let mut frames = daemon.frames();
    frames.send(&completion(1, "mock/long:5", Some(1)));
    assert!(matches!(frames.receive(), Frame::Chunk { id: 1, .. }));
    assert_eq!(daemon.ask("completion:status", json!({})).unwrap()["running"], 1, "it waits");
    assert_eq!(frames.ask(2, "echo:say", &json!({"text": "hi"})).unwrap()["text"], "hi");
    frames.send(&Frame::Credit { id: 1, n: 1 });
    assert!(matches!(frames.receive(), Frame::Chunk { id: 1, .. }));
    frames.send(&say(1, "the id is not free yet"));
    let (id, refusal) = frames.refused();
    assert_eq!((id, refusal.code), (Some(1), Code::Conflict));
    frames.send(&Frame::Credit { id: 1, n: u32::MAX });
    let (chunks, _) = stream(&mut frames, 1);
    assert_eq!(chunks.len(), 3);
    // The id is free again, and its new owner has no limit.
    frames.send(&completion(1, "mock/long:5", None));
    assert_eq!(stream(&mut frames, 1).0.len(), 5);
}

#[test]
fn without_credit_a_stream_begins_when_some_is_given() {
    let daemon = ready();
    let mut frames = daemon.frames();
    frames.send(&completion(1, "mock/echo", Some(0)));
    assert_eq!(frames.ask(2, "echo:say", &json!({"text": "hi"})).unwrap()["text"], "hi");
    frames.send(&Frame::Credit { id: 1, n: 3 });
    assert_eq!(stream(&mut frames, 1).0.len(), 3);
}

#[test]
fn a_request_is_cancelled_by_its_id() {
    let daemon = ready();
    let mut frames = daemon.frames();
    frames.send(&completion(1, "mock/hang", None));
    frames.send(&Frame::Cancel { id: 1 });
    let (id, refusal) = frames.refused();
    assert_eq!((id, refusal.code), (Some(1), Code::Cancelled));
    frames.send(&Frame::Cancel { id: 1 });
    assert!(frames.ask(1, "echo:say", &json!({"text": "the id is free"})).is_ok());
}

#[test]
fn an_id_in_use_is_refused_and_what_was_open_goes_on() {
    let daemon = ready();
    let mut frames = daemon.frames();
    frames.send(&completion(1, "mock/slow:100", None));
    frames.send(&say(1, "hi"));
    let (id, refusal) = frames.refused();
    assert_eq!((id, refusal.code), (Some(1), Code::Conflict));
    assert_eq!(stream(&mut frames, 1).1["text"], "one two three");
}

#[test]
fn a_payload_that_does_not_fit_is_refused_with_its_path() {
    let daemon = ready();
    let mut frames = daemon.frames();
    let refusal = frames.ask(1, "echo:say", &json!({"text": 7})).unwrap_err();
    assert_eq!(refusal.code, Code::InvalidPayload);
    assert!(refusal.message.contains("`text`"), "{refusal:?}");
    let wrong = json!({"model": "mock/echo", "messages": [{"role": "user", "content": 7}]});
    let refusal = frames.ask(2, "completion:request", &wrong).unwrap_err();
    assert_eq!(refusal.code, Code::InvalidPayload);
    assert!(refusal.message.contains("messages[0].content"), "{refusal:?}");
}

#[test]
fn a_payload_that_is_no_messagepack_is_refused() {
    let daemon = ready();
    let mut frames = daemon.frames();
    let bad: [&'static [u8]; 6] =
        [b"", b"\xc1", b"\x81\xa4text", b"\x80\x80", b"\xdf\xff\xff\xff\xff", b"hello"];
    for (id, bytes) in (1..).zip(bad) {
        frames.send(&Frame::Request(plain(id, "echo:say", Bytes::from_static(bytes))));
        let (of, refusal) = frames.refused();
        assert_eq!((of, refusal.code), (Some(id), Code::InvalidPayload), "{bytes:02x?}");
    }
    assert!(frames.ask(99, "echo:say", &json!({"text": "still here"})).is_ok());
}

#[test]
fn a_payload_nested_too_deeply_is_refused() {
    let daemon = ready();
    let mut frames = daemon.frames();
    for (id, levels) in [(1, 100), (2, 1_000_000)] {
        let mut data = b"\x81\xa4text".to_vec();
        data.resize(data.len() + levels, 0x91);
        data.push(0xc0);
        frames.send(&Frame::Request(plain(id, "echo:say", data.into())));
        let (of, refusal) = frames.refused();
        assert_eq!((of, refusal.code), (Some(id), Code::InvalidPayload), "{levels} levels");
    }
    assert!(frames.ask(99, "echo:say", &json!({"text": "still here"})).is_ok());
}

#[test]
fn fifteen_mebibytes_go_there_and_back() {
    let daemon = ready();
    let mut frames = daemon.frames();
    let text = "0123456789abcdef".repeat(15 * 65_536);
    let answer = frames.ask(1, "echo:say", &json!({ "text": text })).unwrap();
    assert!(answer["text"] == text);
}

#[test]
fn nobody_chooses_their_origin_or_their_parent() {
    let daemon = ready();
    daemon.load("fixture_faulty", "child").unwrap();
    let mut frames = Frames::new(daemon.raw());
    let session = frames.greet().session;
    let mut forged = plain(1, "faulty:origin", payload(&json!({})));
    forged.origin = Some("daemon".into());
    forged.parent = Some(1);
    frames.send(&Frame::Request(forged));
    let Frame::Reply { id: 1, data } = frames.receive() else { panic!("no reply") };
    assert_eq!(value(&data), json!({ "origin": session }));
}

#[test]
fn what_one_connection_says_to_one_plugin_arrives_in_order() {
    let config = format!(
        "[plugins.llama]\nenabled = false\n\
         [plugins.listener]\nlibrary = \"{}\"\nplacement = \"child\"\nlistens = [\"test:*\"]\n",
        library("fixture_listener").display()
    );
    let daemon = Home::with_config(&config).start();
    daemon.ready();
    let mut frames = daemon.frames();
    for n in 0..500 {
        frames.send(&emit(None, "test:counted", &json!({ "n": n })));
    }
    let heard = frames.ask(1, "listener:heard", &json!({})).unwrap();
    let numbers: Vec<_> =
        heard["events"].as_array().unwrap().iter().map(|e| e["data"]["n"].clone()).collect();
    assert_eq!(numbers, (0..500).map(|n| json!(n)).collect::<Vec<_>>());
}
