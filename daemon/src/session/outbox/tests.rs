//! Tests of the queue: order, gaps, newest values, credit.

use std::sync::Arc;

use bytes::BytesMut;
use ksi_kernel::Answer;
use ksi_protocol::{Bytes, Code, EventName, Frame, fanout, frame};
use tokio::io::AsyncReadExt;

use super::*;
use crate::{config::Share, session::account::Accounts, wire::write_when_full};

fn account() -> Arc<Account> {
    Accounts::new(Share::default(), 2).of("uid:1")
}

/// A queue, and the client's end of its socket.
fn pair() -> (Arc<Outbox>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Arc::new(Outbox::new(ours, Face::Frames, account(), Arc::default())), theirs)
}

fn subscribed() -> Frame {
    Frame::Reply { id: 7, data: ksi_protocol::empty() }
}

fn body(text: &str) -> Body {
    Body::Tail(fanout::tail("a:b", text.as_bytes(), "daemon", 0, None))
}

fn answer(id: Id, answer: Answer) -> Delivery {
    Delivery::Answer { id, token: 1, event: EventName::parse("a:b").unwrap(), answer, correlation_id: None }
}

fn chunk(id: Id, text: &'static str) -> Delivery {
    answer(id, Answer::Chunk(Bytes::from_static(text.as_bytes())))
}

fn end(id: Id) -> Delivery {
    answer(id, Answer::End(ksi_protocol::empty()))
}

/// Reads until `done`, letting the queue go on as its writer task would.
async fn read(outbox: &Outbox, client: &mut UnixStream, done: impl Fn(&[Frame]) -> bool) -> Vec<Frame> {
    let mut input = BytesMut::new();
    let mut frames = Vec::new();
    outbox.flush();
    while !done(&frames) {
        outbox.resume();
        client.read_buf(&mut input).await.unwrap();
        while let Some(frame) = Frame::split(&mut input).unwrap() {
            frames.push(frame);
        }
    }
    frames
}

fn is_end(frames: &[Frame]) -> bool {
    matches!(frames.last(), Some(Frame::End { .. }))
}

#[tokio::test]
async fn a_slow_reader_loses_the_oldest_events_and_learns_exactly_which() {
    let (outbox, mut client) = pair();
    outbox.open_sub(7, &subscribed());
    let told = limits::LIVE_EVENTS_MAX as u64 + 50_000;
    for n in 0..told {
        outbox.event(7, Class::Live, "a:b", &body(&n.to_string()));
        if n % 100 == 0 {
            outbox.flush();
        }
    }
    outbox.answer(end(1));
    let frames = read(&outbox, &mut client, is_end).await;
    let (mut expected, mut lost, mut got) = (1, 0, 0);
    for frame in &frames {
        match frame {
            Frame::Event(event) => {
                assert_eq!((event.sub, event.seq), (7, expected));
                let n: u64 = std::str::from_utf8(&event.data).unwrap().parse().unwrap();
                assert_eq!(n + 1, event.seq, "the number tells which event it is, also after a gap");
                (expected, got) = (expected + 1, got + 1);
            }
            Frame::Gap(gap) => {
                assert_eq!((gap.sub, gap.from_seq), (7, expected));
                assert_eq!(gap.missed, gap.to_seq - gap.from_seq + 1);
                (expected, lost) = (gap.to_seq + 1, lost + gap.missed);
            }
            _ => {}
        }
    }
    assert!(lost > 0);
    assert_eq!(got + lost, told);
    assert_eq!(outbox.dropped.load(Ordering::Relaxed), lost);
}

#[tokio::test]
async fn answers_and_events_come_in_the_order_in_which_they_were_said() {
    let (outbox, mut client) = pair();
    outbox.open_sub(7, &subscribed());
    for n in 0..20_000 {
        outbox.event(7, Class::Live, "a:b", &body("an event of some length, to fill the socket soon"));
        outbox.answer(chunk(n, "x"));
        if n % 50 == 0 {
            outbox.flush();
        }
        if outbox.lock().live.len() > limits::LIVE_EVENTS_MAX / 2 {
            break;
        }
    }
    outbox.answer(end(0));
    let frames = read(&outbox, &mut client, is_end).await;
    // The first answers the subscription.
    let kinds: Vec<bool> = frames[1..].iter().map(|frame| matches!(frame, Frame::Event(_))).collect();
    assert!(kinds.chunks_exact(2).take((frames.len() - 1) / 2).all(|pair| pair == [true, false]));
}

#[tokio::test]
async fn latest_keeps_only_the_newest_event_of_each_name() {
    let (outbox, mut client) = pair();
    outbox.open_sub(7, &subscribed());
    let mut n = 0;
    while outbox.lock().live.is_empty() {
        outbox.event(7, Class::Latest, "a:b", &body(&n.to_string()));
        n += 1;
    }
    for more in 0..1000 {
        outbox.event(7, Class::Latest, "a:b", &body(&(n + more).to_string()));
        outbox.event(7, Class::Latest, "a:c", &body("c"));
    }
    assert_eq!(outbox.lock().live.len(), 2);
    outbox.answer(end(0));
    let frames = read(&outbox, &mut client, is_end).await;
    let last = frames.iter().rev().find_map(|frame| match frame {
        Frame::Event(event) if event.data != b"c".as_slice() => Some(event.data.clone()),
        _ => None,
    });
    assert_eq!(last.unwrap(), (n + 999).to_string().as_bytes());
    assert!(!frames.iter().any(|frame| matches!(frame, Frame::Gap(_))));
}

#[tokio::test]
async fn chunks_wait_for_credit_and_the_end_waits_for_them() {
    let (outbox, mut client) = pair();
    outbox.begin(1, Some(1)).unwrap();
    for text in ["a", "b", "c"] {
        outbox.answer(chunk(1, text));
    }
    outbox.answer(end(1));
    outbox.answer(answer(2, Answer::Reply(ksi_protocol::empty())));
    let frames = read(&outbox, &mut client, |frames| frames.len() == 2).await;
    assert!(matches!(&frames[0], Frame::Chunk { id: 1, data } if data == "a"));
    assert!(matches!(&frames[1], Frame::Reply { id: 2, .. }), "another request is not held up");
    outbox.add_credit(1, 1);
    let frames = read(&outbox, &mut client, |frames| frames.len() == 1).await;
    assert!(matches!(&frames[0], Frame::Chunk { id: 1, data } if data == "b"));
    outbox.add_credit(1, 5);
    let frames = read(&outbox, &mut client, is_end).await;
    assert!(matches!(&frames[0], Frame::Chunk { id: 1, data } if data == "c"));
}

#[tokio::test]
async fn a_client_that_asks_for_more_than_it_reads_is_given_up() {
    let (outbox, _client) = pair();
    let large = Bytes::from(vec![0; 1024 * 1024]);
    for id in 0..80 {
        outbox.answer(answer(id, Answer::Reply(large.clone())));
        outbox.flush();
    }
    assert!(outbox.is_congested() || outbox.lock().wire.is_dead());
    assert_eq!(outbox.flush(), Flushed::Dead);
    outbox.closing.notified().await;
}

#[tokio::test]
async fn what_waits_for_a_subscription_goes_with_it() {
    let (outbox, mut client) = pair();
    outbox.open_sub(7, &subscribed());
    while outbox.lock().live.len() < 10 {
        outbox.event(7, Class::Live, "a:b", &body("x"));
    }
    let waiting = outbox.lock().live.len() as u64;
    outbox.remove_sub(7);
    outbox.answer(end(0));
    let frames = read(&outbox, &mut client, is_end).await;
    let last = frames.iter().rev().find_map(|frame| match frame {
        frame::Frame::Event(event) => Some(event.seq),
        _ => None,
    });
    assert!(waiting >= 10 && last.is_some());
    assert!(!frames.iter().any(|frame| matches!(frame, Frame::Gap(_))));
}

#[tokio::test]
async fn a_stream_that_is_given_up_after_its_end_has_come_is_refused() {
    let (outbox, mut client) = pair();
    outbox.begin(1, Some(1)).unwrap();
    for text in ["a", "b", "c"] {
        outbox.answer(chunk(1, text));
    }
    outbox.answer(end(1));
    outbox.give_up(1);
    let frames = read(&outbox, &mut client, |frames| frames.len() == 2).await;
    assert!(matches!(&frames[0], Frame::Chunk { id: 1, data } if data == "a"));
    assert!(matches!(&frames[1], Frame::Refusal { id: Some(1), refusal } if refusal.code == Code::Cancelled));
    assert!(outbox.begin(1, None).is_ok(), "the id is free again");
    outbox.give_up(1);
}

#[tokio::test]
async fn a_user_over_its_share_loses_the_oldest_events_of_its_own_and_all_is_given_back() {
    let accounts = Accounts::new(Share { bytes: 1_000_000, ..Share::default() }, 2);
    let account = accounts.of("uid:1");
    let pairs: Vec<_> = (0..4)
        .map(|_| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            (Outbox::new(ours, Face::Frames, account.clone(), Arc::default()), theirs)
        })
        .collect();
    let _connections: Vec<_> = (0..5).map(|_| account.connect(0).unwrap()).collect();
    let body = body(&"x".repeat(1000));
    for (outbox, _) in &pairs {
        account.subscribe().unwrap();
        outbox.open_sub(7, &subscribed());
    }
    for _ in 0..3000 {
        for (outbox, _) in &pairs {
            outbox.event(7, Class::Live, "a:b", &body);
        }
    }
    // Each has its fifth of the share; what has nothing waiting pays nothing.
    assert!(account.is_over(0, 300_000), "nearly all of the share waits");
    assert!(!account.is_over(0, 150_000));
    drop(pairs);
    assert!(!account.is_over(0, 999_999), "all was given back");
}

/// A queue for which `account` pays, and the client's end of its socket.
fn paid_by(account: &Arc<Account>) -> (Outbox, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Outbox::new(ours, Face::Frames, account.clone(), Arc::default()), theirs)
}

fn large(bytes: usize) -> Delivery {
    answer(1, Answer::Reply(vec![7; bytes].into()))
}

#[tokio::test]
async fn a_large_answer_is_charged_until_it_is_in_the_socket_and_a_small_one_never() {
    const BYTES: usize = 8 << 20;
    let (outbox, mut client) = pair();
    outbox.owe();
    outbox.answer(answer(1, Answer::Reply(vec![7; 1000].into())));
    assert_eq!(outbox.lock().charged, 0);
    outbox.owe();
    outbox.answer(large(BYTES));
    outbox.flush();
    assert!(outbox.lock().charged > BYTES / 2);
    let mut got = vec![0; BYTES];
    tokio::select! {
        _ = write_when_full(&outbox.socket, &outbox.writer, limits::WRITE_DEADLINE, || outbox.resume()) => {
            panic!("the client is there")
        }
        read = client.read_exact(&mut got) => assert_eq!(read.unwrap(), BYTES),
    }
    assert_eq!(outbox.lock().charged, 0);
}

#[tokio::test]
async fn who_has_one_large_answer_unread_on_each_of_many_connections_is_cut_off_in_the_end() {
    const BYTES: usize = 15 << 20;
    let account = Accounts::new(Share { bytes: 20 << 20, ..Share::default() }, 2).of("uid:1");
    let _connections: Vec<_> = (0..10).map(|_| account.connect(0).unwrap()).collect();
    let clients: Vec<_> = (0..10).map(|_| paid_by(&account)).collect();
    let mut served = 0;
    for (outbox, _) in &clients {
        outbox.owe();
        outbox.answer(large(BYTES));
        served += usize::from(outbox.flush() != Flushed::Dead);
    }
    // Four shares.
    assert_eq!(served, 5);
}
