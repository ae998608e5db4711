//! The short way of reading frames agrees with the long one.

use ksi_protocol::{EventName, frame::Event};
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
        tenant: None,
        chain: None,
    })
}

fn encoded(frames: &[Frame]) -> BytesMut {
    let mut buffer = BytesMut::new();
    for frame in frames {
        frame.encode(&mut buffer).unwrap();
    }
    buffer
}

/// The frames that an incoming one stands for.
fn whole(incoming: Incoming) -> Vec<Frame> {
    vec![match incoming {
        Incoming::Answer { id, kind: Kind::Reply, data } => Frame::Reply { id, data },
        Incoming::Answer { id, kind: Kind::Chunk, data } => Frame::Chunk { id, data },
        Incoming::Answer { id, kind: Kind::End, data } => Frame::End { id, data },
        Incoming::Events { run, .. } => return decoded(run).map(Result::unwrap).map(Frame::Event).collect(),
        Incoming::Other(frame) => *frame,
    }]
}

fn decoded(mut run: Run) -> impl Iterator<Item = Result<Event, Error>> {
    let mut last = Last::default();
    std::iter::from_fn(move || run.decode(&mut last))
}

/// The run that these frames begin with.
fn run(frames: &[Frame]) -> Run {
    Run::find(&encoded(frames).freeze(), 0).expect("an event comes first").1
}

fn frames() -> impl Strategy<Value = Frame> {
    let data = || prop::collection::vec(any::<u8>(), 0..300);
    prop_oneof![
        (any::<u64>(), data()).prop_map(|(id, data)| Frame::Reply { id, data: data.into() }),
        (any::<u64>(), data()).prop_map(|(id, data)| Frame::Chunk { id, data: data.into() }),
        (any::<u64>(), data()).prop_map(|(id, data)| Frame::End { id, data: data.into() }),
        any::<u64>().prop_map(|id| Frame::Cancel { id }),
        (1..3_u64, 1..5_u64).prop_map(|(sub, seq)| event(sub, seq, "a:b", b"\x80", None)),
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
        prop_assert_eq!(frames.into_iter().flat_map(whole).collect::<Vec<_>>(), sent);
    }

    #[test]
    fn damaged_bytes_mean_the_same_both_ways(
        frame in frames(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = encoded(&[frame]);
        for (index, value) in damage {
            let index = 4 + index.index(bytes.len() - 4);
            bytes[index] = value;
        }
        let bytes = bytes.freeze();
        let long = Frame::decode(&bytes.slice(4..)).ok();
        if let Some((_, run)) = Run::find(&bytes, 0) {
            let short: Vec<_> = decoded(run).map(Result::ok).collect();
            prop_assert_eq!(short, [long.map(|frame| match frame {
                Frame::Event(event) => event,
                other => panic!("{other:?} was taken for an event"),
            })]);
        } else if let Some(answer) = parse_short(&bytes, 4..bytes.len()) {
            prop_assert_eq!(Some(whole(answer)), long.map(|frame| vec![frame]));
        }
    }
}

#[test]
fn the_usual_frames_take_the_short_way() {
    let usual = [
        Frame::Reply { id: 1 << 20, data: Bytes::from_static(b"\x80") },
        Frame::Chunk { id: 7, data: Bytes::from(vec![0; 70_000]) },
        Frame::End { id: u64::MAX, data: Bytes::new() },
    ];
    for frame in usual {
        let body = encoded(&[frame]).split_off(4).freeze();
        assert!(parse_short(&body, 0..body.len()).is_some());
    }
}

#[test]
fn the_usual_events_take_the_short_way() {
    for id in [None, Some("c")] {
        let bytes = encoded(&[event(1, 2, "a:b", b"\x80", id)]).freeze();
        assert!(Cursor(&bytes[4..]).event(&bytes, &mut Last::default()).is_some());
    }
}

#[test]
fn events_of_one_subscription_without_a_hole_are_one_run() {
    let sent = [(1, 7), (1, 8), (1, 9), (1, 11), (2, 12), (2, 12), (1, u64::MAX), (1, 0)];
    let mut buffer = encoded(&sent.map(|(sub, seq)| event(sub, seq, "a:b", b"\x80", None)));
    let mut frames = Vec::new();
    take(&mut buffer, &mut frames).unwrap();
    let spans = frames.iter().map(|frame| match frame {
        Incoming::Events { sub, run } => (*sub, run.span()),
        other => panic!("{other:?}"),
    });
    let expected =
        [(1, (7, 9)), (1, (11, 11)), (2, (12, 12)), (2, (12, 12)), (1, (u64::MAX, u64::MAX)), (1, (0, 0))];
    assert_eq!(spans.collect::<Vec<_>>(), expected);
}

#[test]
fn a_run_loses_its_oldest_first() {
    let mut run = run(&[1, 2, 3].map(|seq| event(1, seq, "a:b", b"\x80", None)));
    assert_eq!(run.pop().unwrap().span(), (1, 1));
    assert_eq!((run.len(), run.span()), (2, (2, 3)));
    run.detach();
    assert_eq!(decoded(run).map(|event| event.unwrap().seq).collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn a_repeated_name_and_origin_are_shared() {
    let run = run(&[1, 2].map(|seq| event(1, seq, "agent:spawned", b"\x80", None)));
    let events: Vec<Event> = decoded(run).map(Result::unwrap).collect();
    assert!(std::ptr::eq(events[0].event.as_str(), events[1].event.as_str()));
    assert!(std::ptr::eq(&*events[0].origin, &*events[1].origin));
}

#[test]
fn a_name_is_found_without_decoding() {
    let run = run(&[event(1, 300, "agent:spawned", b"\x80", None)]);
    assert_eq!(run.name().unwrap(), "agent:spawned");
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
