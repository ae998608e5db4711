//! What waits is bounded, and what is dropped is counted.

use bytes::BytesMut;
use ksi_protocol::{EventName, Frame};

use super::*;

/// Events of these sequence numbers that arrived together.
fn raws(seqs: impl IntoIterator<Item = u64>, data: &Bytes) -> Entry {
    let mut buffer = BytesMut::new();
    for seq in seqs {
        Frame::Event(event(seq, "a:b", data.clone())).encode(&mut buffer).unwrap();
    }
    Entry::Events(Run::find(&buffer.freeze(), 0).unwrap().1)
}

fn raw(seq: u64) -> Entry {
    raws([seq], &Bytes::new())
}

fn event(seq: u64, name: &str, data: Bytes) -> Event {
    Event {
        sub: 1,
        seq,
        event: EventName::parse(name).unwrap(),
        data,
        origin: "daemon".into(),
        at_ms: 0,
        correlation_id: None,
        tenant: None,
        chain: None,
    }
}

fn gap(from_seq: u64, to_seq: u64) -> Entry {
    Entry::Gap(Gap { sub: 1, missed: to_seq - from_seq + 1, from_seq, to_seq })
}

/// All that waits, in words: `reconnected restarted`, `lost 3: 1-3`, `4`.
fn drain(ring: &Ring) -> Vec<String> {
    let mut said = Vec::new();
    while let Poll::Ready(Some(epoch)) = ring.poll(VecDeque::new(), &Context::from_waker(Waker::noop())) {
        match epoch.restarted {
            Some(true) => said.push("reconnected restarted".to_owned()),
            Some(false) => said.push("reconnected".to_owned()),
            None => {}
        }
        said.extend(epoch.lost.map(|lost| format!("lost {}: {}-{}", lost.missed, lost.from, lost.to)));
        said.extend(epoch.entries.iter().map(|entry| match entry.span() {
            Lost { missed: 1, from, .. } => from.to_string(),
            Lost { from, to, .. } if matches!(entry, Entry::Events(_)) => format!("{from} to {to}"),
            Lost { missed, from, to } => format!("gap {missed}: {from}-{to}"),
        }));
    }
    said
}

#[test]
fn the_oldest_are_dropped_and_counted() {
    let ring = Ring::new(Class::Live, 3);
    for seq in 1..=10 {
        ring.push(raw(seq));
    }
    assert_eq!(drain(&ring), ["lost 7: 1-7", "8", "9", "10"]);
    ring.push(raw(11));
    assert_eq!(drain(&ring), ["11"]);
}

#[test]
fn of_events_that_arrived_together_the_oldest_are_dropped_too() {
    let ring = Ring::new(Class::Live, 4);
    ring.push(raws(1..=3, &Bytes::new()));
    assert_eq!(lock(&ring.state).waiting().0, 3);
    ring.push(raws(4..=6, &Bytes::new()));
    assert_eq!(drain(&ring), ["lost 2: 1-2", "3", "4 to 6"]);
    ring.push(raws(7..=16, &Bytes::new()));
    assert_eq!(drain(&ring), ["lost 6: 7-12", "13 to 16"]);
    assert_eq!(lock(&ring.state).waiting(), (0, 0));
}

#[test]
fn a_gap_of_the_daemon_is_counted_in_when_it_is_dropped() {
    let ring = Ring::new(Class::Live, 2);
    ring.push(raw(1));
    ring.push(gap(2, 5));
    assert_eq!(drain(&ring), ["1", "gap 4: 2-5"]);
    for entry in [raw(6), gap(7, 9), raw(10), raw(11), raw(12)] {
        ring.push(entry);
    }
    assert_eq!(drain(&ring), ["lost 5: 6-10", "11", "12"]);
}

#[test]
fn bytes_are_bounded_too() {
    let ring = Ring::new(Class::Live, 1000);
    // Four with their frames are just over the limit.
    let data = Bytes::from(vec![0; BYTES_MAX / 5 + 1]);
    for seq in 1..=5 {
        ring.push(raws([seq], &data));
    }
    assert_eq!(drain(&ring), ["lost 1: 1-1", "2", "3", "4", "5"]);
    assert_eq!(lock(&ring.state).waiting(), (0, 0));
}

#[test]
fn each_connection_counts_its_own_losses() {
    let ring = Ring::new(Class::Live, 2);
    for seq in 1..=3 {
        ring.push(raw(seq));
    }
    ring.reconnected(true);
    for seq in 1..=3 {
        ring.push(raw(seq));
    }
    assert_eq!(drain(&ring), ["lost 3: 1-3", "reconnected restarted", "lost 1: 1-1", "2", "3"]);
}

#[test]
fn many_unread_reconnections_lose_no_count() {
    let ring = Ring::new(Class::Live, 1000);
    for round in 0..100 {
        ring.push(raw(1));
        ring.push(raw(2));
        ring.reconnected(round == 0);
    }
    assert!(lock(&ring.state).epochs.len() <= EPOCHS_MAX);
    let said = drain(&ring);
    assert_eq!(said[0], "reconnected restarted", "the restart is not forgotten");
    let lost: u64 = said
        .iter()
        .filter_map(|item| item.strip_prefix("lost ")?.split(':').next()?.parse::<u64>().ok())
        .sum();
    let events = said.iter().filter(|item| item.parse::<u64>().is_ok()).count() as u64;
    assert_eq!(lost + events, 200);
}

#[test]
fn of_latest_only_the_newest_of_a_name_waits() {
    let ring = Ring::new(Class::Latest, 2);
    let event = |seq, name| Entry::Event(Box::new(event(seq, name, Bytes::new())));
    for seq in 1..=10 {
        ring.push(event(seq, if seq % 2 == 0 { "a:even" } else { "a:odd" }));
    }
    assert_eq!(drain(&ring), ["9", "10"]);
    for (seq, name) in [(11, "a:a"), (12, "a:b"), (13, "a:c"), (14, "a:c"), (15, "a:a")] {
        ring.push(event(seq, name));
    }
    assert_eq!(drain(&ring), ["lost 2: 11-12", "14", "15"]);
}

#[test]
fn of_latest_events_that_arrived_together_are_one_each() {
    let ring = Ring::new(Class::Latest, 10);
    ring.push(raws(1..=3, &Bytes::new()));
    assert_eq!(drain(&ring), ["3"]);
}

#[test]
fn what_waits_is_handed_out_before_the_end() {
    let ring = Ring::new(Class::Live, 10);
    ring.push(raw(1));
    ring.close(Error::Closed);
    ring.push(raw(2));
    assert_eq!(drain(&ring), ["1"]);
    assert!(matches!(ring.poll(VecDeque::new(), &Context::from_waker(Waker::noop())), Poll::Ready(None)));
}
