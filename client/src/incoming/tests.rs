//! The short way of reading frames agrees with the long one.

use proptest::prelude::*;

use super::*;

fn event(sub: u64, seq: u64, name: &str, data: &[u8], correlation_id: Option<&str>) -> Frame {
    Frame::Event(Event {
        sub,
        seq,
        event: EventName::parse(name).unwrap(),
        data: Bytes::copy_from_slice(data),
        origin: "session:1".into(),
        at_ms: seq.wrapping_mul(7),
        correlation_id: correlation_id.map(str::to_owned),
    })
}

fn encoded(frames: &[Frame]) -> BytesMut {
    let mut buffer = BytesMut::new();
    for frame in frames {
        frame.encode(&mut buffer).unwrap();
    }
    buffer
}

/// The frame that an incoming one stands for.
fn whole(incoming: Incoming) -> Frame {
    match incoming {
        Incoming::Answer { id, kind: Kind::Reply, data } => Frame::Reply { id, data },
        Incoming::Answer { id, kind: Kind::Chunk, data } => Frame::Chunk { id, data },
        Incoming::Answer { id, kind: Kind::End, data } => Frame::End { id, data },
        Incoming::Event { body, .. } => Frame::Event(decode_event(&body, &mut None).unwrap()),
        Incoming::Other(frame) => *frame,
    }
}

fn frames() -> impl Strategy<Value = Frame> {
    let data = || prop::collection::vec(any::<u8>(), 0..300);
    prop_oneof![
        (any::<u64>(), data()).prop_map(|(id, data)| Frame::Reply { id, data: data.into() }),
        (any::<u64>(), data()).prop_map(|(id, data)| Frame::Chunk { id, data: data.into() }),
        (any::<u64>(), data()).prop_map(|(id, data)| Frame::End { id, data: data.into() }),
        any::<u64>().prop_map(|id| Frame::Cancel { id }),
        (any::<u64>(), any::<u64>(), "[a-z]{1,40}:[a-z]{1,40}", data(), prop::option::of("[a-z]{0,40}"))
            .prop_map(|(sub, seq, name, data, id)| event(sub, seq, &name, &data, id.as_deref())),
    ]
}

proptest! {
    #[test]
    fn frames_come_out_as_they_went_in_however_the_bytes_are_cut(
        sent in prop::collection::vec(frames(), 1..8),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let bytes = encoded(&sent);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        cuts.push(bytes.len());
        cuts.sort_unstable();
        let (mut buffer, mut frames, mut at) = (BytesMut::new(), Vec::new(), 0);
        for cut in cuts {
            buffer.extend_from_slice(&bytes[at..cut]);
            at = cut;
            take(&mut buffer, &mut frames).unwrap();
        }
        prop_assert!(buffer.is_empty());
        prop_assert_eq!(frames.into_iter().map(whole).collect::<Vec<_>>(), sent);
    }

    #[test]
    fn damaged_bytes_mean_the_same_both_ways(
        frame in frames(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = encoded(&[frame]).split_off(4);
        for (index, value) in damage {
            let index = index.index(bytes.len());
            bytes[index] = value;
        }
        let body = bytes.freeze();
        let long = Frame::decode(&body).ok();
        if let Some(short) = parse_short(&body, 0..body.len()) {
            match short {
                Incoming::Event { body, .. } => {
                    prop_assert_eq!(decode_event(&body, &mut None).ok().map(Frame::Event), long);
                }
                answer => prop_assert_eq!(Some(whole(answer)), long),
            }
        }
    }
}

#[test]
fn the_usual_frames_take_the_short_way() {
    let usual = [
        Frame::Reply { id: 1 << 20, data: Bytes::from_static(b"\x80") },
        Frame::Chunk { id: 7, data: Bytes::from(vec![0; 70_000]) },
        Frame::End { id: u64::MAX, data: Bytes::new() },
        event(1, 2, "a:b", b"\x80", Some("c")),
    ];
    for frame in usual {
        let body = encoded(&[frame]).split_off(4).freeze();
        assert!(parse_short(&body, 0..body.len()).is_some());
    }
}

#[test]
fn a_repeated_name_is_shared() {
    let body = |seq| encoded(&[event(1, seq, "agent:spawned", b"\x80", None)]).split_off(4).freeze();
    let mut name = None;
    let first = decode_event(&body(1), &mut name).unwrap();
    let second = decode_event(&body(2), &mut name).unwrap();
    assert!(std::ptr::eq(first.event.as_str(), second.event.as_str()));
}

#[test]
fn a_name_is_found_without_decoding() {
    let body = encoded(&[event(1, 300, "agent:spawned", b"\x80", None)]).split_off(4).freeze();
    assert_eq!(&body[event_name(&body).unwrap()], b"agent:spawned");
}

#[test]
fn what_came_before_an_over_long_frame_is_not_lost() {
    let mut buffer = encoded(&[Frame::Cancel { id: 1 }]);
    buffer.extend_from_slice(&u32::MAX.to_be_bytes());
    let mut frames = Vec::new();
    assert_eq!(take(&mut buffer, &mut frames).unwrap(), 0);
    assert_eq!(frames.len(), 1);
    assert!(matches!(take(&mut buffer, &mut frames), Err(Error::TooLarge(_))));
}

#[test]
fn what_is_missing_for_the_next_frame_is_known_from_its_prefix() {
    let whole = encoded(&[Frame::Reply { id: 1, data: Bytes::from(vec![0; 1000]) }]);
    for have in 0..whole.len() {
        let mut buffer = BytesMut::from(&whole[..have]);
        let expected = if have < 4 { 4 - have } else { whole.len() - have };
        assert_eq!(take(&mut buffer, &mut Vec::new()).unwrap(), expected);
    }
}
