//! Tests of the stream: bounds, pause, filter, cursor, opened events.

use ksi_protocol::{Bytes, EventName};
use serde_json::json;

use super::{
    detail::{DECODED_BYTES_MAX, LINES_MAX},
    ring::BYTES_MAX,
    *,
};

fn event(name: &str, seq: u64, data: Bytes) -> Event {
    Event {
        sub: 1,
        seq,
        event: EventName::parse(name).unwrap(),
        data,
        origin: "plugin:test".into(),
        at_ms: 1_700_000_000_000 + seq,
        correlation_id: None,
        tenant: None,
        chain: None,
    }
}

fn stream(names: &[&str]) -> Events {
    let mut events = Events::default();
    for (seq, name) in (1..).zip(names) {
        events.push(event(name, seq, ksi_protocol::empty()));
    }
    events
}

/// Sequence numbers of what the filter lets through; 0 for a mark.
fn shown(events: &Events) -> Vec<u64> {
    (0..events.len())
        .map(|position| match events.at(position).unwrap() {
            Entry::Event(event) => event.seq,
            Entry::Mark { .. } => 0,
        })
        .collect()
}

#[test]
fn the_ring_keeps_the_newest_and_no_more() {
    let mut events = Events::default();
    let count = EVENTS_MAX as u64 + 5;
    for seq in 1..=count {
        events.push(event("a:b", seq, ksi_protocol::empty()));
    }
    assert_eq!(events.kept(), EVENTS_MAX);
    assert_eq!(events.heard, count);
    assert_eq!(shown(&events).first(), Some(&6));
    assert_eq!(shown(&events).last(), Some(&count));
}

#[test]
fn large_payloads_are_bounded_by_bytes() {
    let mut events = Events::default();
    let large = Bytes::from(vec![0xc0; BYTES_MAX / 4 + 1]);
    for seq in 1..=10 {
        events.push(event("a:b", seq, large.clone()));
    }
    assert_eq!(shown(&events), [8, 9, 10]);
    events.push(event("a:b", 11, Bytes::from(vec![0xc0; BYTES_MAX + 1])));
    assert_eq!(shown(&events), [11], "the newest stays, whatever its size");
}

#[test]
fn a_filter_holds_for_what_is_kept_and_for_what_comes() {
    let mut events = stream(&["a:x", "b:x", "a:y"]);
    events.set_filter(Filter::parse("a:*").unwrap());
    assert_eq!(shown(&events), [1, 3]);
    events.push(event("b:z", 4, ksi_protocol::empty()));
    events.push(event("a:z", 5, ksi_protocol::empty()));
    assert_eq!(shown(&events), [1, 3, 5]);
    events.mark("restarted".into(), 0);
    assert_eq!(shown(&events), [1, 3, 5, 0], "a mark concerns every filter");
    events.set_filter(Filter::parse("!a:*").unwrap());
    assert_eq!(shown(&events), [2, 4, 0]);
    events.set_filter(Filter::default());
    assert_eq!(shown(&events).len(), 6);
}

#[test]
fn filtered_entries_go_with_the_ring() {
    let mut events = Events::default();
    events.set_filter(Filter::text("a:x"));
    events.push(event("a:x", 1, ksi_protocol::empty()));
    for seq in 2..=EVENTS_MAX as u64 + 1 {
        events.push(event("b:x", seq, ksi_protocol::empty()));
    }
    assert_eq!(shown(&events), Vec::<u64>::new());
    assert_eq!(events.kept(), EVENTS_MAX);
}

#[test]
fn a_pause_freezes_what_is_shown_and_counts_what_arrives() {
    let mut events = stream(&["a:x", "a:y"]);
    events.toggle_pause();
    for seq in 3..=5 {
        events.push(event("a:z", seq, ksi_protocol::empty()));
    }
    assert_eq!(shown(&events), [1, 2]);
    assert_eq!(events.arrived_in_pause(), Some(3));
    events.toggle_pause();
    assert_eq!(shown(&events), [1, 2, 3, 4, 5]);
    assert_eq!(events.arrived_in_pause(), None);
}

#[test]
fn a_long_pause_is_bounded_and_says_what_it_lost() {
    let mut events = stream(&["a:x"]);
    events.toggle_pause();
    for seq in 2..=EVENTS_MAX as u64 + 8 {
        events.push(event("a:z", seq, ksi_protocol::empty()));
    }
    assert_eq!(events.arrived_in_pause(), Some(EVENTS_MAX as u64 + 7));
    assert_eq!(shown(&events), [1]);
    events.toggle_pause();
    assert_eq!(events.kept(), EVENTS_MAX);
    let Some(Entry::Mark { text, .. }) = events.at(EVENTS_MAX - 1) else { panic!("no mark") };
    assert!(text.contains("the first 7 of the pause"), "{text}");
}

#[test]
fn a_gap_is_counted_and_leaves_a_mark() {
    let mut events = stream(&["a:x"]);
    events.gap(&Gap { sub: 1, missed: 1234, from_seq: 2, to_seq: 1235 });
    assert_eq!((events.gaps, events.missed), (1, 1234));
    let Some(Entry::Mark { text, .. }) = events.at(1) else { panic!("no mark") };
    assert!(text.contains("1,234 events were lost") && text.contains("seq 2 to 1235"), "{text}");
}

#[test]
fn the_window_follows_the_newest_until_the_cursor_is_moved() {
    let mut events = stream(&["a:x"; 100]);
    assert_eq!(events.window(10), Window { start: 90, selected: None });
    events.step(-1);
    assert_eq!(events.window(10), Window { start: 90, selected: Some(98) });
    events.step(-48);
    assert_eq!(events.window(10), Window { start: 45, selected: Some(50) });
    events.push(event("a:y", 101, ksi_protocol::empty()));
    assert_eq!(events.window(10).selected, Some(50), "the cursor stays on its event");
    events.step(isize::MIN);
    assert_eq!(events.window(10), Window { start: 0, selected: Some(0) });
    events.step(isize::MAX);
    assert!(events.follows());
    assert_eq!(events.window(1000), Window { start: 0, selected: None });
}

#[test]
fn a_cursor_whose_event_is_gone_goes_to_the_next_one() {
    let mut events = stream(&["a:x"; 3]);
    events.step(isize::MIN);
    for seq in 4..=EVENTS_MAX as u64 + 10 {
        events.push(event("a:y", seq, ksi_protocol::empty()));
    }
    assert_eq!(events.window(5).selected, Some(0));
    events.set_filter(Filter::text("nothing"));
    assert_eq!(events.window(5), Window { start: 0, selected: Some(0) });
    events.step(-1);
    events.open();
    assert!(events.detail.is_none(), "there is nothing to open");
}

#[test]
fn an_opened_event_shows_its_payload_as_json_and_stays_while_others_arrive() {
    let data = ksi_protocol::json::from_json(&json!({"text": "hello", "n": [1, 2]})).unwrap();
    let mut events = stream(&["a:x"]);
    events.push(event("agent:spawned", 2, data));
    events.open();
    events.push(event("a:y", 3, ksi_protocol::empty()));
    let lines = &events.detail.as_ref().unwrap().lines;
    assert!(lines.iter().any(|line| line.contains("agent:spawned")));
    assert!(lines.iter().any(|line| line.contains(r#""text": "hello""#)), "{lines:?}");
    events.step(-1);
    assert!(events.detail.as_ref().unwrap().lines[0].contains("a:x"), "the arrows open the neighbour");
}

#[test]
fn an_opened_event_is_bounded_whatever_its_payload() {
    let opened = |data: Bytes| {
        let mut events = Events::default();
        events.push(event("a:b", 1, data));
        events.open();
        events.detail.unwrap().lines
    };
    let many = ksi_protocol::json::from_json(&json!(vec![1; 10_000])).unwrap();
    let lines = opened(many);
    assert_eq!(lines.len(), LINES_MAX + 1);
    assert!(lines.last().unwrap().contains("more lines"));
    let long = ksi_protocol::json::from_json(&json!("x".repeat(2_500))).unwrap();
    let lines = opened(long);
    assert!(lines.iter().all(|line| line.len() <= 1000), "a long line goes on in the next");
    assert_eq!(lines.iter().filter(|line| line.contains("xxx")).count(), 3);
    let huge = opened(Bytes::from(vec![b'a'; DECODED_BYTES_MAX + 1]));
    assert!(huge.iter().any(|line| line.contains("61 61 61") && line.ends_with("aaaaaaaaaaaaaaaa")));
    let broken = opened(Bytes::from_static(&[0xc1]));
    assert!(broken.iter().any(|line| line.contains("not MessagePack")), "{broken:?}");
}

#[test]
fn an_opened_event_scrolls_within_its_lines() {
    let mut events = stream(&["a:x"]);
    events.open();
    events.scroll(1000);
    let detail = events.detail.as_ref().unwrap();
    assert_eq!(detail.scroll, detail.lines.len() - 1);
    events.scroll(-5000);
    assert_eq!(events.detail.as_ref().unwrap().scroll, 0);
}
