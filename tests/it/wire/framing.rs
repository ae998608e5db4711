//! What is no frame, and what is none here.

use ksi_protocol::{
    Code, Frame, PROTOCOL_VERSION,
    frame::{Class, Hello, Request},
    limits::FRAME_BYTES_MAX,
};
use ksi_tests::{
    Daemon,
    frames::{Frames, emit, encoded, payload, plain, request},
};
use serde_json::{Value, json};

fn hello(version: u16) -> Frame {
    Frame::Hello(Hello { version, client: "test".into(), features: vec!["unheard-of".into()] })
}

fn serves(frames: &mut Frames) {
    frames.ask(77, "system:health", &json!({})).expect("the connection survives");
}

#[test]
fn another_version_is_refused_with_both_numbers() {
    let daemon = Daemon::without_model();
    let mut frames = Frames::new(daemon.raw());
    frames.send(&hello(PROTOCOL_VERSION + 41));
    let (id, refusal) = frames.refused();
    assert_eq!((id, refusal.code), (None, Code::Conflict));
    assert!(refusal.message.contains(&(PROTOCOL_VERSION + 41).to_string()), "{refusal:?}");
    assert!(refusal.message.contains(&format!("speaks {PROTOCOL_VERSION}")), "{refusal:?}");
    assert_eq!(frames.try_receive(), None);
}

#[test]
fn a_frame_before_hello_is_refused_and_the_connection_closed() {
    let daemon = Daemon::without_model();
    let mut frames = Frames::new(daemon.raw());
    frames.send(&request(1, "system:health", &json!({})));
    assert_eq!(frames.refused().1.code, Code::InvalidFrame);
    assert_eq!(frames.try_receive(), None);
}

#[test]
fn garbage_before_hello_is_refused_and_the_connection_closed() {
    let daemon = Daemon::without_model();
    let mut frames = Frames::new(daemon.raw());
    frames.send_body(b"\xc1\xc1\xc1");
    assert_eq!(frames.refused().1.code, Code::InvalidFrame);
    assert_eq!(frames.try_receive(), None);
}

#[test]
fn a_second_hello_and_frames_of_a_link_are_refused() {
    let daemon = Daemon::without_model();
    let mut frames = daemon.frames();
    let reply = Frame::Reply { id: 1, data: payload(&json!({})) };
    for frame in [hello(PROTOCOL_VERSION), Frame::Ready, Frame::Drained, Frame::Ping { id: 1 }, reply] {
        frames.send(&frame);
        let (id, refusal) = frames.refused();
        assert_eq!((id, refusal.code), (None, Code::InvalidFrame), "{frame:?}");
    }
    serves(&mut frames);
}

#[test]
fn malformed_bodies_are_refused_one_by_one() {
    let daemon = Daemon::without_model();
    let mut frames = daemon.frames();
    let mut long = encoded(&request(1, "a:b", &json!({}))).split_off(4).to_vec();
    long.push(0xc0);
    let bodies: [&[u8]; 11] = [
        b"",
        b"\xc1",
        b"\x80",
        b"\xc0",
        b"\x81\xa6nobody\x80",
        b"\xa6nobody",
        b"\x81\xa7request\x80",
        b"\x81\xa6cancel\x81\xa2id\xa1x",
        b"\x81\xa6cancel\x91\x01",
        b"\x81\x06\x81\xa2id\x01",
        &long,
    ];
    for body in bodies {
        frames.send_body(body);
        let (id, refusal) = frames.refused();
        assert_eq!((id, refusal.code), (None, Code::InvalidFrame), "{body:02x?}");
        assert!(!refusal.message.is_empty() && !refusal.hint.is_empty(), "{refusal:?}");
    }
    serves(&mut frames);
}

#[test]
fn fields_nested_too_deeply_are_refused() {
    let daemon = Daemon::without_model();
    let mut frames = daemon.frames();
    let mut body = b"\x81\xa6cancel\x82\xa2id\x01\xa1x".to_vec();
    body.resize(body.len() + 1_000_000, 0x91);
    body.push(0xc0);
    frames.send_body(&body);
    assert_eq!(frames.refused().1.code, Code::InvalidFrame);
    serves(&mut frames);
}

#[test]
fn unknown_fields_are_skipped() {
    let daemon = Daemon::without_model();
    let mut frames = daemon.frames();
    frames.send_body(
        b"\x81\xa7request\x84\xa2id\x05\xa5event\xadsystem:health\xa4data\xc4\x01\x80\xa3new\x91\x01",
    );
    assert!(matches!(frames.receive(), Frame::Reply { id: 5, .. }));
}

#[test]
fn a_frame_over_the_limit_is_refused_from_its_length_alone() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let before = daemon.status().rss_bytes;
    for length in [0x0100_0000_u32, 0x7fff_ffff, 0xffff_ffff] {
        let mut frames = daemon.frames();
        frames.send_bytes(&length.to_be_bytes());
        let (id, refusal) = frames.refused();
        assert_eq!((id, refusal.code), (None, Code::TooLarge));
        assert!(refusal.message.contains(&length.to_string()), "{refusal:?}");
        assert_eq!(frames.try_receive(), None);
    }
    let grown = daemon.status().rss_bytes.saturating_sub(before);
    assert!(grown < 4 * 1024 * 1024, "grew by {grown} bytes");
}

#[test]
fn a_length_alone_costs_next_to_nothing() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let before = daemon.status().rss_bytes;
    let claims: Vec<_> = (0..100)
        .map(|_| {
            let mut frames = daemon.frames();
            frames.send_bytes(&[0, 0xff, 0xff, 0xff, 0x81]);
            frames
        })
        .collect();
    ksi_tests::wait_until("all are connected", || daemon.status().sessions > claims.len());
    let grown = daemon.status().rss_bytes.saturating_sub(before);
    assert!(grown < 16 * 1024 * 1024, "grew by {grown} bytes");
}

#[test]
fn a_frame_cut_short_by_the_end_is_refused() {
    let daemon = Daemon::without_model();
    let mut frames = daemon.frames();
    let whole = encoded(&request(1, "system:health", &json!({})));
    frames.send_bytes(&whole[..whole.len() - 3]);
    frames.half_close();
    assert_eq!(frames.refused().1.code, Code::InvalidFrame);
    assert_eq!(frames.try_receive(), None);
}

#[test]
fn frames_may_come_byte_by_byte() {
    let daemon = Daemon::without_model();
    let mut frames = Frames::new(daemon.raw());
    for byte in encoded(&hello(PROTOCOL_VERSION)) {
        frames.send_bytes(&[byte]);
    }
    assert!(matches!(frames.receive(), Frame::Welcome(_)));
    for byte in encoded(&request(1, "system:health", &json!({}))) {
        frames.send_bytes(&[byte]);
    }
    assert!(matches!(frames.receive(), Frame::Reply { id: 1, .. }));
}

#[test]
fn an_unknown_event_is_refused_with_the_nearest_name() {
    let daemon = Daemon::without_model();
    let mut frames = daemon.frames();
    let refusal = frames.ask(1, "system:helth", &json!({})).unwrap_err();
    assert_eq!(refusal.code, Code::UnknownEvent);
    assert!(refusal.hint.contains("system:health"), "{refusal:?}");
}

#[test]
fn a_given_correlation_is_told_to_those_who_listen() {
    let daemon = Daemon::without_model();
    let (mut frames, mut listener) = (daemon.frames(), daemon.frames());
    listener.subscribe(1, "test:*", Class::Live);
    let event = ksi_protocol::EventName::parse("test:said").unwrap();
    let correlation_id = Some("cause".to_owned());
    frames.send(&Frame::Emit(ksi_protocol::frame::Emit {
        id: None,
        event,
        data: payload(&json!({})),
        correlation_id: correlation_id.clone(),
        chain: None,
    }));
    assert_eq!(listener.event().correlation_id, correlation_id);
}

#[test]
fn a_deadline_of_the_asker_ends_its_request() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let mut frames = daemon.frames();
    let data = payload(&json!({"prompt": "x", "model": "mock/hang"}));
    let hangs = plain(1, "completion:request", data);
    frames.send(&Frame::Request(Request { timeout_ms: Some(100), ..hangs }));
    let (id, refusal) = frames.refused();
    assert_eq!((id, refusal.code), (Some(1), Code::Timeout));
}

#[test]
fn what_fits_in_but_not_out_again_is_refused_at_once() {
    let daemon = Daemon::without_model();
    let (mut frames, mut listener) = (daemon.frames(), daemon.frames());
    listener.subscribe(1, "test:*", Class::Live);
    // The largest frames that there can be: whoever is to hear of them is to
    // hear of their origin as well, for which they leave no room.
    let makes: [fn(&Value) -> Frame; 2] =
        [|data| emit(Some(2), "test:said", data), |data| request(2, "echo:say", data)];
    for make in makes {
        let short = make(&json!({"text": "x".repeat(1 << 20)}));
        let spare = FRAME_BYTES_MAX + 4 - encoded(&short).len();
        frames.send(&make(&json!({"text": "x".repeat((1 << 20) + spare)})));
        let (id, refusal) = frames.refused();
        assert_eq!((id, refusal.code), (Some(2), Code::TooLarge));
    }
    frames.send(&emit(None, "test:said", &json!({"text": "x".repeat(FRAME_BYTES_MAX - 4096)})));
    assert!(listener.event().data.len() > FRAME_BYTES_MAX - 4096);
}
