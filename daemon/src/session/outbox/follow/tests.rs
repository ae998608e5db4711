//! Tests of durable subscriptions: positions, credit, ends, and going on.

use bytes::BytesMut;
use ksi_protocol::{Pattern, frame::Class};
use tokio::{io::AsyncReadExt, net::UnixStream};

use super::*;
use crate::{
    config::Share,
    session::{account::Accounts, face::Lines},
};

const SUB: Id = 7;

fn pair(face: Face) -> (Outbox, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let outbox = Outbox::new(ours, face, Accounts::new(Share::default(), 2).of("uid:1"), Arc::default());
    outbox.listen_with(Box::new(Tenant("a")));
    (outbox, theirs)
}

/// Hears what belongs to this tenant or to nobody.
#[derive(Debug)]
struct Tenant(&'static str);

impl Ear for Tenant {
    fn hears(&self, _: &EventName, tenant: Option<&str>) -> bool {
        tenant.is_none_or(|tenant| tenant == self.0)
    }
}

fn asked(since_seq: Option<u64>, credit: Option<u32>) -> Subscribe {
    let pattern = Pattern::parse("a:*").unwrap();
    Subscribe { since_seq, credit, ..Subscribe::new(SUB, pattern, Class::Durable) }
}

fn answer(answer: Answer) -> Delivery {
    let event = EventName::parse(FOLLOW).unwrap();
    Delivery::Answer { id: SUB, token: 1, event, answer, correlation_id: None }
}

fn fact(seq: u64, bytes: usize) -> Delivery {
    let kept = Kept {
        seq,
        event: EventName::parse("a:born").unwrap(),
        data: encode(&"x".repeat(bytes)).unwrap(),
        origin: "session:1".into(),
        at_ms: 5,
        correlation_id: None,
        tenant: None,
    };
    answer(Answer::Chunk(encode(&Followed::Fact(kept)).unwrap()))
}

fn gap(from_seq: u64, to_seq: u64) -> Delivery {
    answer(Answer::Chunk(encode(&Followed::Gap(Missed { from_seq, to_seq })).unwrap()))
}

/// What the plugin says first: the next position.
fn stands(next: u64) -> Delivery {
    gap(next, next - 1)
}

fn gone(code: Code) -> Delivery {
    answer(Refusal::new(code, "gone").into())
}

/// Reads until the answer to a request that is asked now: all that was said
/// before.
async fn frames(outbox: &Outbox, client: &mut UnixStream) -> Vec<Frame> {
    outbox.owe();
    let last = Answer::Reply(ksi_protocol::empty());
    let event = EventName::parse(FOLLOW).unwrap();
    outbox.answer(Delivery::Answer { id: 99, token: 2, event, answer: last, correlation_id: None });
    let mut input = BytesMut::new();
    let mut frames = Vec::new();
    loop {
        outbox.resume();
        tokio::task::yield_now().await;
        match client.try_read_buf(&mut input) {
            Ok(got) => assert!(got > 0, "the daemon closed the socket"),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
        while let Some(frame) = Frame::split(&mut input).unwrap() {
            if matches!(frame, Frame::Reply { id: 99, .. }) {
                return frames;
            }
            frames.push(frame);
        }
    }
}

fn seqs(frames: &[Frame]) -> Vec<u64> {
    frames
        .iter()
        .filter_map(|frame| match frame {
            Frame::Event(event) => Some(event.seq),
            _ => None,
        })
        .collect()
}

fn since(ask: &Ask) -> Option<u64> {
    decode::<Follow>(&ask.data).unwrap().since_seq
}

#[tokio::test]
async fn facts_become_events_with_their_positions_and_what_is_gone_a_gap() {
    let (outbox, mut client) = pair(Face::Frames);
    let ask = outbox.follow(asked(Some(3), None), 100).unwrap();
    assert_eq!((ask.id, ask.event.as_str(), since(&ask)), (SUB, FOLLOW, Some(3)));
    assert_eq!(outbox.follow(asked(None, None), 100).unwrap_err().code, Code::Conflict);
    assert_eq!(outbox.begin(SUB, None).unwrap_err().code, Code::Conflict);
    outbox.answer(stands(3));
    outbox.answer(gap(3, 6));
    outbox.answer(fact(7, 1));
    outbox.answer(fact(12, 1));
    outbox.answer(gone(Code::Conflict));
    let frames = frames(&outbox, &mut client).await;
    assert!(matches!(frames[0], Frame::Reply { id: SUB, .. }), "{:?}", frames[0]);
    assert_eq!(frames[1], Frame::Gap(Gap { sub: SUB, missed: 4, from_seq: 3, to_seq: 6 }));
    let Frame::Event(event) = &frames[2] else { panic!("{:?}", frames[2]) };
    assert_eq!((event.sub, event.seq, event.at_ms, &*event.origin), (SUB, 7, 5, "session:1"));
    assert_eq!(seqs(&frames), [7, 12]);
    assert!(
        matches!(&frames[4], Frame::Refusal { id: Some(SUB), refusal } if refusal.code == Code::Conflict)
    );
    assert!(outbox.is_owed_nothing() && outbox.may_subscribe(SUB, 1).is_ok());
}

#[tokio::test]
async fn only_the_plugins_first_word_confirms_and_that_once() {
    let (outbox, mut client) = pair(Face::Frames);
    outbox.follow(asked(None, Some(0)), 100).unwrap();
    assert_eq!(frames(&outbox, &mut client).await, [], "its consumer is not kept yet");
    outbox.answer(stands(1));
    let heard = frames(&outbox, &mut client).await;
    assert!(matches!(&heard[..], [Frame::Reply { id: SUB, .. }]), "{heard:?}");
    outbox.answer(gone(Code::PluginRestarted));
    assert_eq!(outbox.resumed().len(), 1);
    outbox.answer(stands(1));
    assert_eq!(frames(&outbox, &mut client).await, []);
}

#[tokio::test]
async fn one_that_is_refused_before_it_began_is_never_confirmed() {
    for code in [Code::Unavailable, Code::PluginRestarted] {
        let (outbox, mut client) = pair(Face::Frames);
        outbox.follow(asked(Some(1), None), 100).unwrap();
        outbox.answer(gone(code));
        let frames = frames(&outbox, &mut client).await;
        assert!(matches!(&frames[..], [Frame::Refusal { id: Some(SUB), .. }]), "{frames:?}");
        assert!(!outbox.has_lapsed() && outbox.is_owed_nothing());
    }
}

#[tokio::test]
async fn one_that_is_ended_before_it_began_is_cancelled_and_that_is_all() {
    let (outbox, mut client) = pair(Face::Frames);
    outbox.follow(asked(None, None), 100).unwrap();
    assert_eq!(outbox.end_follow(SUB), Some(true));
    outbox.answer(stands(1));
    outbox.answer(gone(Code::Cancelled));
    let frames = frames(&outbox, &mut client).await;
    assert!(
        matches!(&frames[..], [Frame::Refusal { id: Some(SUB), refusal }] if refusal.code == Code::Cancelled),
        "{frames:?}"
    );
}

#[tokio::test]
async fn a_client_that_does_not_read_is_given_no_more_than_its_window() {
    let (outbox, mut client) = pair(Face::Frames);
    let ask = outbox.follow(asked(None, None), 100).unwrap();
    outbox.answer(stands(1));
    assert_eq!(ask.credit, Some(WINDOW + 1));
    for seq in 1..=u64::from(WINDOW) {
        outbox.answer(fact(seq, 64 * 1024));
        outbox.flush();
    }
    assert!(outbox.grants().iter().map(|(_, n)| n).sum::<u32>() < WINDOW / 2, "most were not written");
    // One beyond the credit, from a plugin that does not heed it, waits too.
    outbox.answer(fact(100, 1));
    let frames = frames(&outbox, &mut client).await;
    assert_eq!(seqs(&frames).len(), WINDOW as usize);
    outbox.follow_up.notified().await;
    let grants = outbox.grants();
    assert!(matches!(grants[..], [(SUB, n)] if n > WINDOW / 2), "{grants:?}");
    outbox.add_credit(SUB, grants[0].1);
    assert_eq!(seqs(&self::frames(&outbox, &mut client).await), [100]);
}

#[tokio::test]
async fn the_clients_own_credit_is_kept_to() {
    let (outbox, mut client) = pair(Face::Frames);
    let ask = outbox.follow(asked(None, Some(1)), 100).unwrap();
    outbox.answer(stands(1));
    assert_eq!(ask.credit, Some(2), "a position is not the client's to pay for");
    outbox.answer(fact(1, 1));
    assert_eq!(seqs(&frames(&outbox, &mut client).await), [1]);
    assert!(outbox.grants().is_empty(), "that is the client's to give");
    outbox.add_credit(SUB, 2);
    outbox.answer(gone(Code::PluginRestarted));
    assert_eq!(outbox.resumed()[0].credit, Some(3));
    outbox.answer(stands(2));
    assert!(outbox.grants().is_empty(), "there was credit for it");
    outbox.answer(gone(Code::PluginRestarted));
    assert_eq!(outbox.resumed()[0].credit, Some(3));
}

#[tokio::test]
async fn a_gap_costs_the_client_no_credit_once_it_is_written() {
    let (outbox, mut client) = pair(Face::Frames);
    outbox.follow(asked(Some(1), Some(1)), 100).unwrap();
    for delivery in [stands(1), gap(1, 342)] {
        outbox.answer(delivery);
    }
    let heard = frames(&outbox, &mut client).await;
    assert!(matches!(&heard[..], [Frame::Reply { .. }, Frame::Gap(_)]), "{heard:?}");
    outbox.follow_up.notified().await;
    assert_eq!(outbox.grants(), [(SUB, 1)]);
    outbox.add_credit(SUB, 1);
    outbox.answer(fact(343, 1));
    assert_eq!(seqs(&frames(&outbox, &mut client).await), [343]);
    outbox.answer(gone(Code::PluginRestarted));
    assert_eq!(outbox.resumed()[0].credit, Some(1), "it is all used up, but for the position");
}

#[tokio::test]
async fn what_waits_for_one_that_was_ended_is_not_sent_to_the_next() {
    let (outbox, mut client) = pair(Face::Frames);
    outbox.follow(asked(None, None), 100).unwrap();
    outbox.answer(stands(1));
    for seq in 1..=40 {
        outbox.answer(fact(seq, 64 * 1024));
        outbox.flush();
    }
    assert_eq!(outbox.end_follow(SUB), Some(true));
    assert_eq!(outbox.end_follow(SUB), None);
    outbox.answer(fact(41, 1));
    outbox.answer(gone(Code::Cancelled));
    outbox.follow(asked(None, None), 100).unwrap();
    outbox.answer(stands(1));
    outbox.answer(fact(50, 1));
    let frames = frames(&outbox, &mut client).await;
    assert!(!frames.iter().any(|frame| matches!(frame, Frame::Refusal { .. })));
    let seqs = seqs(&frames);
    assert!(seqs.len() < 30 && !seqs.contains(&41) && seqs.last() == Some(&50), "{seqs:?}");
}

#[tokio::test]
async fn one_whose_plugin_is_gone_goes_on_where_it_was() {
    let (outbox, mut client) = pair(Face::Frames);
    outbox.follow(asked(None, None), 100).unwrap();
    // Where it stands is nothing to the client.
    outbox.answer(stands(5));
    outbox.answer(gone(Code::PluginRestarted));
    assert!(outbox.has_lapsed() && !outbox.is_owed_nothing());
    outbox.flush();
    outbox.follow_up.notified().await;
    let asks = outbox.resumed();
    assert_eq!((asks.len(), since(&asks[0]), asks[0].credit), (1, Some(5), Some(WINDOW + 1)));
    assert!(!outbox.has_lapsed());
    outbox.answer(fact(9, 1));
    outbox.answer(gone(Code::Unavailable));
    assert_eq!(since(&outbox.resumed()[0]), Some(10));
    assert_eq!(outbox.tries(), 1);
    outbox.answer(gone(Code::Unavailable));
    outbox.resumed();
    assert_eq!(outbox.tries(), 2, "nothing was heard in between");
    outbox.answer(stands(10));
    assert_eq!(outbox.tries(), 0);
    let frames = frames(&outbox, &mut client).await;
    assert!(matches!(&frames[..], [Frame::Reply { .. }, Frame::Event(_)]), "{frames:?}");
    outbox.answer(gone(Code::Timeout));
    assert_eq!(outbox.end_follow(SUB), Some(false), "nobody has to be told");
    assert!(outbox.is_owed_nothing());
}

#[tokio::test]
async fn one_with_a_name_takes_the_right_to_that_each_time_it_is_asked_for() {
    let (outbox, mut client) = pair(Face::Frames);
    assert_eq!(outbox.follow(asked(None, None), 100).unwrap().takes, Takes::Nothing);
    outbox.answer(gone(Code::Conflict));
    let named = Subscribe { consumer: Some("c".into()), ..asked(None, None) };
    let takes = Takes::Like(EventName::parse("checkpoint:ack").unwrap());
    assert_eq!(outbox.follow(named, 100).unwrap().takes, takes);
    outbox.answer(stands(1));
    outbox.answer(gone(Code::PluginRestarted));
    assert_eq!(outbox.resumed()[0].takes, takes);
    outbox.answer(gone(Code::Denied));
    let frames = frames(&outbox, &mut client).await;
    let Some(Frame::Refusal { id: Some(SUB), refusal }) = frames.last() else { panic!("{frames:?}") };
    assert!(refusal.code == Code::Denied && refusal.hint.contains("without `consumer`"), "{refusal:?}");
    assert!(!outbox.has_lapsed() && outbox.is_owed_nothing());
}

#[tokio::test]
async fn lines_have_the_same() {
    let mut lines = Lines::default();
    assert_eq!(lines.open(Some("s".into())).unwrap(), 1);
    let (outbox, mut client) = pair(Face::Json(lines));
    outbox.follow(Subscribe { id: 1, ..asked(None, None) }, 100).unwrap();
    for delivery in [stands(7), fact(7, 1), gap(8, 9), gone(Code::Conflict)] {
        let Delivery::Answer { token, event, answer, correlation_id, .. } = delivery else { continue };
        outbox.answer(Delivery::Answer { id: 1, token, event, answer, correlation_id });
    }
    outbox.flush();
    let mut text = String::new();
    while text.lines().count() < 4 {
        let mut bytes = [0; 4096];
        let got = client.read(&mut bytes).await.unwrap();
        text.push_str(std::str::from_utf8(&bytes[..got]).unwrap());
    }
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0], serde_json::json!({"id": "s", "data": {"subscribed": true}}));
    assert_eq!(
        (&lines[1]["event"], &lines[1]["sub"], &lines[1]["seq"]),
        (&"a:born".into(), &"s".into(), &7.into())
    );
    let gap = serde_json::json!({"gap": {"sub": "s", "missed": 2, "from_seq": 8, "to_seq": 9}});
    assert_eq!(lines[2], gap);
    assert_eq!((&lines[3]["id"], &lines[3]["refusal"]["code"]), (&"s".into(), &"conflict".into()));
}

#[tokio::test]
async fn each_is_a_subscription_of_its_user_until_it_ends() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let share = Share { subscriptions: Some(2), ..Share::default() };
    let account = Accounts::new(share, 2).of("uid:1");
    let outbox = Outbox::new(ours, Face::Frames, account.clone(), Arc::default());
    let follow = |id, most| outbox.follow(Subscribe { id, ..asked(None, None) }, most);
    follow(1, 1).unwrap();
    assert_eq!(outbox.may_subscribe(9, 1).unwrap_err().code, Code::Busy, "live ones count as well");
    assert_eq!(follow(2, 1).unwrap_err().code, Code::Busy, "so many may a connection have");
    follow(2, 100).unwrap();
    assert_eq!(follow(3, 100).unwrap_err().code, Code::Busy, "so many may a user have");
    assert_eq!(outbox.end_follow(1), Some(true));
    assert_eq!(follow(3, 100).unwrap_err().code, Code::Busy, "until its last answer it is there");
    let cancelled = Answer::from(Refusal::new(Code::Cancelled, "ended"));
    let event = EventName::parse(FOLLOW).unwrap();
    outbox.answer(Delivery::Answer { id: 1, token: 1, event, answer: cancelled, correlation_id: None });
    follow(3, 100).unwrap();
    outbox.kill();
    drop(outbox);
    account.subscribe().unwrap();
    account.subscribe().expect("all was given back");
}
