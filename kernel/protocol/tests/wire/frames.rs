//! Frames beyond the golden ones: round trips of arbitrary frames, frames cut
//! short, limits to the byte, and whatever a hostile peer may send.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use ksi_protocol::{
    Bytes, Code, Descriptor, EventName, Frame, Pattern, Refusal,
    frame::{
        Caller, Class, Emit, Error, Event, Gap, Hello, Intercept, Request, Setup, Stage, Subscribe, Verdict,
    },
    json,
    limits::{
        DEPTH_MAX, DESCRIPTOR_BYTES_MAX, DESCRIPTOR_LIST_MAX, DESCRIPTOR_REQUESTS_MAX, FRAME_BYTES_MAX,
        NAME_BYTES_MAX, NAME_SEGMENTS_MAX,
    },
    token::Token,
    work::Policy,
};
use proptest::{option, prelude::*};
use serde_json::{Value, json};

use crate::samples;

fn wire(frame: &Frame) -> BytesMut {
    let mut buffer = BytesMut::new();
    frame.encode(&mut buffer).unwrap();
    buffer
}

fn decode(body: impl Into<Vec<u8>>) -> Result<Frame, Error> {
    Frame::decode(&Bytes::from(body.into()))
}

fn malformed(body: &[u8], part: &str) {
    let error = decode(body).expect_err("the body is no frame");
    assert!(matches!(error, Error::Malformed(_)), "{error}");
    assert!(error.to_string().contains(part), "{error}");
    assert_eq!(Refusal::from(error).code, Code::InvalidFrame);
}

fn names() -> impl Strategy<Value = EventName> {
    ("[a-z0-9_.-]{1,12}(@[a-z0-9_.-]{1,12})?", prop::collection::vec("[a-z0-9_.-]{1,11}", 1..=7))
        .prop_map(|(first, rest)| EventName::parse(&format!("{first}:{}", rest.join(":"))).unwrap())
}

fn patterns() -> impl Strategy<Value = Pattern> {
    prop::collection::vec("[a-z0-9_.-]{1,12}|\\*|\\*\\*", 1..=8)
        .prop_filter("one literal segment is no pattern", |segments| {
            segments.len() > 1 || segments[0].starts_with('*')
        })
        .prop_map(|segments| Pattern::parse(&segments.join(":")).unwrap())
}

fn payloads() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..400).prop_map(Bytes::from)
}

fn texts() -> impl Strategy<Value = Option<String>> {
    option::of("\\PC{0,40}")
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        "\\PC{0,20}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{1,6}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn refusals() -> impl Strategy<Value = Refusal> {
    let code = prop::sample::select(Code::ALL.to_vec());
    // An explicit `null` in `details` reads back as no details.
    let details = option::of(values().prop_filter("no null", |value| !value.is_null()));
    (code, "\\PC{0,60}", "\\PC{0,60}", any::<bool>(), option::of(any::<u64>()), details).prop_map(
        |(code, message, hint, retryable, retry_after_ms, details)| Refusal {
            code,
            message,
            hint,
            retryable,
            retry_after_ms,
            details,
        },
    )
}

fn policies() -> impl Strategy<Value = Policy> {
    let times = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
    (any::<u32>(), times, any::<bool>()).prop_map(|(attempts, times, repeat)| {
        let (backoff_min_ms, backoff_max_ms, timeout_ms, expires_ms, keep_ms) = times;
        Policy { attempts, backoff_min_ms, backoff_max_ms, timeout_ms, expires_ms, keep_ms, repeat }
    })
}

fn callers() -> impl Strategy<Value = Box<Caller>> {
    ("\\PC{0,20}", option::of("\\PC{0,20}"), any::<bool>())
        .prop_map(|(principal, tenant, every_tenant)| Box::new(Caller { principal, tenant, every_tenant }))
}

fn asked() -> impl Strategy<Value = Frame> {
    let classes = prop::sample::select(vec![Class::Live, Class::Latest, Class::Durable]);
    let request = (
        (any::<u64>(), names(), payloads(), option::of(any::<u64>())),
        (option::of(any::<u32>()), texts(), texts(), texts(), option::of(any::<u64>())),
        (option::of(policies().prop_map(Arc::new)), option::of(any::<u64>()), option::of(any::<u64>())),
        (option::of(callers()), any::<bool>()),
    );
    prop_oneof![
        (any::<u16>(), "\\PC{0,40}", prop::collection::vec("[a-z]{1,9}", 0..4), option::of("\\PC{0,99}"))
            .prop_map(|(version, client, features, token)| Frame::Hello(Hello {
                version,
                client,
                features,
                token: token.map(|text| Token::new(&text))
            })),
        request.prop_map(
            |(
                (id, event, data, timeout_ms),
                (credit, correlation_id, idempotency_key, origin, parent),
                (work, at_ms, expires_in_ms),
                (caller, on_behalf),
            )| {
                Frame::Request(Request {
                    id,
                    event,
                    data,
                    timeout_ms,
                    credit,
                    correlation_id,
                    idempotency_key,
                    expires_in_ms,
                    origin,
                    caller,
                    on_behalf,
                    parent,
                    work,
                    at_ms,
                    chain: None,
                })
            }
        ),
        (
            option::of(any::<u64>()),
            names(),
            payloads(),
            texts(),
            option::of(any::<u64>()),
            option::of("\\PC{0,20}"),
            texts()
        )
            .prop_map(|(id, event, data, correlation_id, parent, tenant, chain)| {
                let chain = chain.map(Into::into);
                Frame::Emit(Emit { id, event, data, correlation_id, parent, tenant, chain })
            }),
        (
            any::<u64>(),
            patterns(),
            classes,
            option::of(any::<u64>()),
            option::of(".{0,12}"),
            option::of(any::<u32>())
        )
            .prop_map(|(id, pattern, class, since_seq, consumer, credit)| {
                Frame::Subscribe(Subscribe { id, pattern, class, since_seq, consumer, credit })
            }),
        any::<u64>().prop_map(|id| Frame::Unsubscribe { id }),
        any::<u64>().prop_map(|id| Frame::Cancel { id }),
        (any::<u64>(), any::<u32>()).prop_map(|(id, n)| Frame::Credit { id, n }),
    ]
}

fn answered() -> impl Strategy<Value = Frame> {
    prop_oneof![
        (any::<u64>(), payloads()).prop_map(|(id, data)| Frame::Reply { id, data }),
        (any::<u64>(), payloads()).prop_map(|(id, data)| Frame::Chunk { id, data }),
        (any::<u64>(), payloads()).prop_map(|(id, data)| Frame::End { id, data }),
        (any::<u64>(), "\\PC{0,40}", any::<u64>()).prop_map(|(id, request_id, seq)| Frame::Accepted {
            id,
            request_id,
            seq
        }),
        (option::of(any::<u64>()), refusals()).prop_map(|(id, refusal)| Frame::Refusal { id, refusal }),
        (
            (any::<u64>(), any::<u64>(), names(), payloads()),
            ("\\PC{0,20}", any::<u64>(), texts(), option::of("\\PC{0,20}"), texts())
        )
            .prop_map(|((sub, seq, event, data), (origin, at_ms, correlation_id, tenant, chain))| {
                Frame::Event(Event {
                    tenant,
                    sub,
                    seq,
                    event,
                    data,
                    origin: origin.into(),
                    at_ms,
                    correlation_id,
                    chain: chain.map(Into::into),
                })
            }),
        (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>()).prop_map(
            |(sub, missed, from_seq, to_seq)| { Frame::Gap(Gap { sub, missed, from_seq, to_seq }) }
        ),
    ]
}

fn linked() -> impl Strategy<Value = Frame> {
    let stages = prop::sample::select(vec![Stage::Before, Stage::After]);
    prop_oneof![
        (any::<u16>(), "\\PC{0,20}", "\\PC{0,80}", "\\PC{0,80}", payloads(), any::<bool>()).prop_map(
            |(version, name, library, dir, config, pinned)| {
                Frame::Setup(Setup {
                    version,
                    name,
                    library,
                    sha256: pinned.then(|| "0f".repeat(32)),
                    dir,
                    sandbox: Box::default(),
                    probe: None,
                    config,
                })
            }
        ),
        ("[a-z]{0,5}", "\\PC{0,200}").prop_map(|(level, message)| Frame::Log { level, message }),
        option::of("\\PC{0,200}").prop_map(|degraded| Frame::Health { degraded }),
        any::<u64>().prop_map(|id| Frame::Ping { id }),
        any::<u64>().prop_map(|id| Frame::Pong { id }),
        ((any::<u64>(), any::<u32>(), stages, names(), payloads(), "\\PC{0,20}"), option::of(callers()))
            .prop_map(|((id, index, stage, event, data, origin), caller)| {
                Frame::Intercept(Intercept { id, index, stage, event, data, origin, caller })
            }),
        (any::<u64>(), option::of(payloads()), option::of(refusals()))
            .prop_map(|(id, edit, refuse)| Frame::Verdict(Verdict { id, edit, refuse })),
        prop::sample::select(vec![Frame::Ready, Frame::Drain, Frame::Drained]),
    ]
}

fn frames() -> impl Strategy<Value = Frame> {
    prop_oneof![asked(), answered(), linked()]
}

proptest! {
    #[test]
    fn any_frame_survives_encoding_and_decoding(frame in frames()) {
        let mut buffer = wire(&frame);
        prop_assert_eq!(buffer[0], 0, "a length prefix begins with 0");
        prop_assert_eq!(Frame::split(&mut buffer).unwrap(), Some(frame));
        prop_assert!(buffer.is_empty());
    }

    #[test]
    fn frames_in_a_row_come_out_one_by_one_however_they_are_cut(
        frames in prop::collection::vec(frames(), 1..6),
        cuts in prop::collection::vec(1_usize..64, 1..40),
    ) {
        let stream: Vec<u8> = frames.iter().flat_map(|frame| wire(frame).to_vec()).collect();
        let (mut rest, mut buffer, mut out) = (&stream[..], BytesMut::new(), Vec::new());
        for cut in cuts.iter().cycle() {
            let (piece, tail) = rest.split_at((*cut).min(rest.len()));
            buffer.extend_from_slice(piece);
            while let Some(frame) = Frame::split(&mut buffer).unwrap() {
                out.push(frame);
            }
            rest = tail;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(out, frames);
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(bytes.clone());
        let _ = Frame::split(&mut BytesMut::from(&bytes[..]));
        let _ = json::to_json(&bytes);
        let _ = json::parse(&bytes);
    }

    #[test]
    fn a_damaged_frame_never_panics_and_keeps_the_framing(
        sample in any::<prop::sample::Index>(),
        place in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let all = samples::all();
        let mut bytes = wire(&all[sample.index(all.len())].1);
        let at = 4 + place.index(bytes.len() - 4);
        bytes[at] = byte;
        let next = Frame::Ping { id: 1 };
        next.encode(&mut bytes).unwrap();
        let _ = Frame::split(&mut bytes);
        prop_assert_eq!(Frame::split(&mut bytes).unwrap(), Some(next), "the next frame is whole");
    }

    #[test]
    fn json_survives_the_way_through_messagepack(value in values()) {
        prop_assert_eq!(json::to_json(&json::from_json(&value).unwrap()).unwrap(), value);
    }
}

#[test]
fn every_prefix_of_a_frame_needs_more_and_takes_nothing() {
    for (name, frame) in samples::all() {
        let bytes = wire(&frame);
        for length in 0..bytes.len() {
            let mut prefix = BytesMut::from(&bytes[..length]);
            assert_eq!(Frame::split(&mut prefix).unwrap(), None, "{name} cut at {length}");
            assert_eq!(prefix, bytes[..length], "{name} cut at {length}");
        }
    }
}

#[test]
fn every_body_cut_short_is_malformed() {
    for (name, frame) in samples::all() {
        let bytes = wire(&frame);
        for length in 4..bytes.len() - 1 {
            assert!(decode(&bytes[4..length]).is_err(), "{name} cut at {length}");
        }
    }
}

#[test]
fn bytes_after_a_frame_are_counted_and_refused() {
    for (name, frame) in samples::all() {
        let mut body = wire(&frame).split_off(4);
        body.extend_from_slice(b"\xc1more");
        let error = decode(body).expect_err("bytes are left over");
        assert!(matches!(error, Error::Trailing(5)), "{name}: {error}");
    }
}

#[test]
fn a_frame_of_the_largest_size_passes_and_one_byte_more_does_not() {
    let overhead = wire(&Frame::Reply { id: 1, data: Bytes::from(vec![0; 1 << 20]) }).len() - 4 - (1 << 20);
    let largest = Frame::Reply { id: 1, data: Bytes::from(vec![0; FRAME_BYTES_MAX - overhead]) };
    let mut buffer = wire(&largest);
    assert_eq!(buffer[..4], [0, 0xff, 0xff, 0xff]);
    assert_eq!(Frame::split(&mut buffer).unwrap(), Some(largest));

    let over = Frame::Reply { id: 1, data: Bytes::from(vec![0; FRAME_BYTES_MAX - overhead + 1]) };
    let mut buffer = BytesMut::from(&b"before"[..]);
    let error = over.encode(&mut buffer).expect_err("it is too large");
    assert!(matches!(error, Error::TooLarge(size) if size == FRAME_BYTES_MAX + 1), "{error}");
    assert_eq!(buffer, b"before"[..], "nothing half-written stays behind");
}

#[test]
fn an_over_long_frame_is_refused_from_its_prefix_alone() {
    let mut buffer = BytesMut::new();
    buffer.put_u32(u32::try_from(FRAME_BYTES_MAX + 1).unwrap());
    let error = Frame::split(&mut buffer).expect_err("it is too large");
    assert_eq!(Refusal::from(error).code, Code::TooLarge);
    assert!(buffer.capacity() < 1024, "nothing is reserved for it");
}

#[test]
fn a_length_prefix_alone_does_not_reserve_what_it_promises() {
    let mut buffer = BytesMut::new();
    buffer.put_u32(u32::try_from(FRAME_BYTES_MAX).unwrap());
    assert_eq!(Frame::split(&mut buffer).unwrap(), None);
    assert!(buffer.capacity() <= 128 * 1024, "{} bytes reserved", buffer.capacity());
}

#[test]
fn an_empty_body_is_malformed() {
    malformed(b"", "a map of one entry");
    let mut buffer = BytesMut::from(&[0, 0, 0, 0][..]);
    assert!(Frame::split(&mut buffer).is_err());
    assert!(buffer.is_empty(), "the body is taken off, so that the connection can go on");
}

#[test]
fn unknown_fields_are_skipped_whatever_they_hold() {
    for extra in [&b"\xc0"[..], b"\x92\x01\x81\xa1a\xc4\x01x", b"\xc7\x02\x05ab", b"\xcb\0\0\0\0\0\0\0\0"] {
        let mut body = b"\x81\xa6cancel\x82\xa3new".to_vec();
        body.extend_from_slice(extra);
        body.extend_from_slice(b"\xa2id\x07");
        assert_eq!(decode(body).unwrap(), Frame::Cancel { id: 7 }, "{extra:02x?}");
    }
}

#[test]
fn a_missing_optional_field_is_absent_and_a_missing_other_one_is_refused() {
    let hello = decode(&b"\x81\xa5hello\x82\xa7version\x01\xa6client\xa1x"[..]).unwrap();
    assert_eq!(hello, Frame::Hello(Hello { version: 1, client: "x".into(), ..Hello::default() }));
    malformed(b"\x81\xa6cancel\x80", "missing field `id`");
    malformed(b"\x81\xa5reply\x81\xa2id\x01", "missing field `data`");
}

#[test]
fn a_field_twice_is_refused() {
    malformed(b"\x81\xa6cancel\x82\xa2id\x01\xa2id\x02", "duplicate field `id`");
}

#[test]
fn only_the_specified_form_of_a_kind_and_its_fields_is_taken() {
    malformed(b"\x81\xa6custom\x81\xa2id\x01", "unknown variant `custom`");
    malformed(b"\xa6custom", "unknown variant `custom`");
    malformed(b"\xa6cancel", "");
    malformed(b"\x81\xa5ready\xc0", "map from name to value");
    malformed(b"\x81\x06\x81\xa2id\x01", "text of at most 31 bytes");
    malformed(b"\x06", "map of one entry");
    malformed(b"\x91\xa6cancel", "map of one entry");
    malformed(b"\x81\xa6cancel\x91\x01", "map from name to value");
    malformed(b"\x82\xa6cancel\x81\xa2id\x01\xa6cancel\x81\xa2id\x01", "map of one entry");
    malformed(b"\x80", "map of one entry");
    malformed(b"{\"cancel\":{\"id\":1}}", "map of one entry");
}

#[test]
fn a_wrong_type_is_refused_and_named() {
    malformed(b"\x81\xa6cancel\x81\xa2id\xa11", "FixStr");
    malformed(b"\x81\xa6cancel\x81\xa2id\xff", "integer `-1`");
    malformed(b"\x81\xa6credit\x82\xa2id\x01\xa1n\xcf\0\0\0\x01\0\0\0\0", "integer `4294967296`");
    malformed(b"\x81\xa5reply\x82\xa2id\x01\xa4data\x80", "`bin`");
    malformed(b"\x81\xa5reply\x82\xa2id\x01\xa4data\xa2hi", "`bin`");
    malformed(b"\x81\xa5reply\x82\xa2id\x01\xa4data\x91\x01", "`bin`");
    malformed(b"\x81\xa7request\x83\xa2id\x01\xa5event\xa1x\xa4data\xc4\0", "`x` is not");
    malformed(
        b"\x81\xa9subscribe\x83\xa2id\x01\xa7pattern\xa3a:*\xa5class\xa4fast",
        "unknown variant `fast`",
    );
}

/// `levels` arrays inside one another, then a number.
fn nested(levels: usize) -> Vec<u8> {
    let mut bytes = vec![0x91; levels];
    bytes.push(1);
    bytes
}

#[test]
fn a_payload_nests_to_the_limit_and_no_deeper() {
    let value = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!([inner]));
    assert!(json::to_json(&nested(DEPTH_MAX)).is_ok());
    assert!(ksi_protocol::decode::<Value>(&nested(DEPTH_MAX)).is_ok());
    assert!(json::from_json(&value(DEPTH_MAX)).is_ok());
    for refusal in [
        json::to_json(&nested(DEPTH_MAX + 1)).unwrap_err(),
        ksi_protocol::decode::<Value>(&nested(DEPTH_MAX + 1)).unwrap_err(),
        json::from_json(&value(DEPTH_MAX + 1)).unwrap_err(),
    ] {
        assert_eq!(refusal.code, Code::InvalidPayload, "{refusal}");
    }
}

#[test]
fn a_depth_bomb_in_a_field_is_refused_and_does_not_overflow() {
    let body = |levels: usize| {
        let mut body = b"\x81\xa6cancel\x82\xa2id\x01\xa3new".to_vec();
        body.extend(nested(levels));
        body
    };
    assert_eq!(decode(body(DEPTH_MAX - 1)).unwrap(), Frame::Cancel { id: 1 });
    assert!(matches!(decode(body(DEPTH_MAX)), Err(Error::Malformed(_))));
    assert!(matches!(decode(body(1 << 20)), Err(Error::Malformed(_))));
    assert!(json::to_json(&nested(1 << 20)).is_err());
    assert!(json::parse("[".repeat(1 << 20).as_bytes()).is_err());
}

fn described() -> Descriptor {
    let mut all = samples::all().into_iter();
    let found = all.find_map(|(_, frame)| match frame {
        Frame::Described { descriptor } => Some(*descriptor),
        _ => None,
    });
    found.expect("there is a sample")
}

#[test]
fn a_descriptor_has_lists_to_the_limit_and_no_longer() {
    let one = described();
    let lists = |requests: usize, others: usize| Descriptor {
        requests: vec![one.requests[0].clone(); requests],
        emits: vec![one.emits[0].clone(); others],
        calls: vec![one.calls[0].clone(); others],
        listens: vec![one.listens[0].clone(); others],
        intercepts: vec![one.intercepts[0].clone(); others],
        ..one.clone()
    };
    let body = |descriptor: Descriptor| {
        let frame = Frame::Described { descriptor: Box::new(descriptor) };
        wire(&frame)[4..].to_vec()
    };
    let full = lists(DESCRIPTOR_REQUESTS_MAX, DESCRIPTOR_LIST_MAX);
    assert_eq!(decode(body(full.clone())).unwrap(), Frame::Described { descriptor: Box::new(full.clone()) });
    let more = lists(DESCRIPTOR_REQUESTS_MAX + 1, DESCRIPTOR_LIST_MAX + 1);
    malformed(&body(Descriptor { requests: more.requests, ..full.clone() }), "at most 512 entries");
    for longer in [
        Descriptor { emits: more.emits, ..full.clone() },
        Descriptor { calls: more.calls, ..full.clone() },
        Descriptor { listens: more.listens, ..full.clone() },
        Descriptor { intercepts: more.intercepts, ..full },
    ] {
        malformed(&body(longer), "at most 256 entries");
    }
}

#[test]
fn a_descriptor_is_as_long_as_the_limit_and_no_longer() {
    let body = |about: usize| {
        let descriptor = Descriptor { about: "x".repeat(about), ..described() };
        wire(&Frame::Described { descriptor: Box::new(descriptor) })[4..].to_vec()
    };
    let rest = body(1 << 19).len() - (1 << 19);
    let most = DESCRIPTOR_BYTES_MAX - rest;
    assert_eq!(body(most).len(), DESCRIPTOR_BYTES_MAX);
    assert!(decode(body(most)).is_ok());
    malformed(&body(most + 1), "longer than 1 MiB");
}

#[test]
fn map_keys_become_texts_and_maps_as_keys_do_not_blow_up() {
    let shown = json::to_json(b"\x86\x01\0\xff\0\xc3\0\xc0\0\xc4\x01\x07\0\xca\x3f\0\0\0\0").unwrap();
    assert_eq!(shown, json!({"1": 0, "-1": 0, "true": 0, "null": 0, "[7]": 0, "0.5": 0}));
    for bomb in [[0x81; 60], [0x91; 60]] {
        let mut bytes = vec![0x81];
        bytes.extend(bomb);
        bytes.extend([0; 120]);
        assert_eq!(json::to_json(&bytes).unwrap_err().code, Code::InvalidPayload);
    }
}

#[test]
fn a_declared_length_costs_no_memory() {
    let huge = [
        &b"\xdd\xff\xff\xff\xff"[..],
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
    ];
    for bytes in huge {
        assert!(json::to_json(bytes).is_err(), "{bytes:02x?}");
        assert!(ksi_protocol::decode::<Vec<String>>(bytes).is_err(), "{bytes:02x?}");
        let mut body = b"\x81\xa5hello\x83\xa7version\x01\xa6client\xa1x\xa8features".to_vec();
        body.extend_from_slice(bytes);
        assert!(decode(body).is_err(), "{bytes:02x?}");
    }
}

#[test]
fn names_reach_their_limits_and_no_further() {
    let longest = format!("a:{}", "b".repeat(NAME_BYTES_MAX - 2));
    assert!(EventName::parse(&longest).is_ok());
    assert!(EventName::parse(&format!("{longest}b")).is_err());
    assert!(Pattern::parse(&longest).is_ok());
    assert!(Pattern::parse(&format!("{longest}b")).is_err());
    let most = ["a"; NAME_SEGMENTS_MAX].join(":");
    assert!(EventName::parse(&most).is_ok() && Pattern::parse(&most).is_ok());
    assert!(EventName::parse(&format!("{most}:a")).is_err());
    assert!(Pattern::parse(&format!("{most}:a")).is_err());
    assert!(EventName::parse("a:b").is_ok() && EventName::parse("a").is_err());
    assert!(Pattern::parse("*").is_ok() && Pattern::parse("a").is_err() && Pattern::parse("").is_err());
}

#[test]
fn a_time_beyond_the_calendar_is_shown_as_its_end() {
    assert_eq!(json::timestamp(253_402_300_799_999), "9999-12-31T23:59:59.999Z");
    assert_eq!(json::timestamp(u64::MAX), "9999-12-31T23:59:59.999Z");
}

#[test]
fn payloads_are_slices_of_the_buffer_they_arrived_in() {
    let body = Bytes::from(wire(&Frame::Reply { id: 1, data: Bytes::from(vec![7; 4096]) }).split_off(4));
    let Frame::Reply { data, .. } = Frame::decode(&body).unwrap() else { panic!("not a reply") };
    assert!(body.as_ptr_range().contains(&data.as_ptr()), "the payload was copied");
}

#[test]
fn bytes_after_a_payload_are_refused() {
    let refusal = ksi_protocol::decode::<Value>(b"\x80\x80").unwrap_err();
    assert_eq!(refusal.code, Code::InvalidPayload);
    assert!(json::to_json(b"\x80\x80").is_err());
}
