//! Subscriptions on one connection.

use bytes::BytesMut;
use ksi_client::{Class, Code, Error, Gap, Item, Refusal};
use ksi_protocol::{Frame, Pattern};
use serde_json::json;

use crate::fake::{Fake, event, subscribed, text, within};

#[tokio::test]
async fn a_subscription_waits_for_the_daemons_word() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let mut subscribing = Box::pin(client.subscribe("agent:*", Class::Latest));
    assert!(futures_util::future::poll_immediate(&mut subscribing).await.is_none());
    let asked = peer.subscribe().await;
    assert_eq!((asked.pattern, asked.class), (Pattern::parse("agent:*").unwrap(), Class::Latest));
    peer.reply(asked.id, ksi_protocol::empty()).await;
    within(subscribing).await.unwrap();
}

#[tokio::test]
async fn a_refused_subscription_says_why() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let refuse = async {
        let id = peer.subscribe().await.id;
        let refusal = Refusal::new(Code::Unavailable, "there is no journal");
        peer.send(&Frame::Refusal { id: Some(id), refusal }).await;
    };
    let (asked, ()) = tokio::join!(within(client.subscribe("agent:*", Class::Durable)), refuse);
    assert_eq!(asked.unwrap_err().refusal().unwrap().code, Code::Unavailable);
    // There is nothing to unsubscribe: the barrier is what comes next.
    peer.barrier(&client).await;
}

#[tokio::test]
async fn a_subscription_that_the_daemon_forgets_ends_soon_after_its_time() {
    let fake = Fake::bind();
    let limit = std::time::Duration::from_millis(10);
    let (client, mut peer) = fake.connect_with(fake.options().timeout(limit)).await;
    let asked = within(client.subscribe("agent:*", Class::Live)).await;
    assert!(matches!(asked, Err(Error::TimedOut { .. })));
    let id = peer.subscribe().await.id;
    assert_eq!(peer.next().await, Frame::Unsubscribe { id });
}

#[tokio::test]
async fn an_abandoned_subscription_is_taken_back() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let mut subscribing = Box::pin(client.subscribe("agent:*", Class::Live));
    assert!(futures_util::future::poll_immediate(&mut subscribing).await.is_none());
    let id = peer.subscribe().await.id;
    drop(subscribing);
    assert_eq!(peer.next().await, Frame::Unsubscribe { id });
}

#[tokio::test]
async fn events_come_whole_and_in_order() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let (mut heard, id) = subscribed(&client, &mut peer, "**", Class::Live).await;
    let names = ["agent:spawned", "agent:spawned", "state:entity:changed", "agent:stopped"];
    let sent: Vec<_> = (1..).zip(names).map(|(seq, name)| event(id, seq, name)).collect();
    for event in &sent {
        peer.send(&Frame::Event(event.clone())).await;
    }
    for event in sent {
        assert_eq!(within(heard.next()).await, Some(Item::Event(event)));
    }
    assert_eq!(heard.try_next(), None);
}

#[tokio::test]
async fn an_event_in_another_layout_is_the_same_event() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let (mut heard, id) = subscribed(&client, &mut peer, "**", Class::Live).await;
    // MessagePack of {"event": {"x": 1, "origin": …}}: an unknown field, and
    // all fields in another order.
    let mut body =
        BytesMut::from(&b"\x81\xa5event\x87\xa1x\x01\xa6origin\xa6daemon\xa5at_ms\x05\xa5event"[..]);
    body.extend_from_slice(b"\xa3a:b\xa4data\xc4\x01\x80\xa3seq\x01\xa3sub");
    body.extend_from_slice(&[0xcf]);
    body.extend_from_slice(&id.to_be_bytes());
    peer.send_bytes(&u32::try_from(body.len()).unwrap().to_be_bytes()).await;
    peer.send_bytes(&body).await;
    let Some(Item::Event(event)) = within(heard.next()).await else { panic!("an event was sent") };
    assert_eq!((event.sub, event.seq, event.at_ms), (id, 1, 5));
    assert_eq!((event.event.as_str(), &*event.origin), ("a:b", "daemon"));
}

#[tokio::test]
async fn a_gap_of_the_daemon_comes_in_its_place() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let (mut heard, id) = subscribed(&client, &mut peer, "**", Class::Live).await;
    let gap = Gap { sub: id, missed: 8, from_seq: 2, to_seq: 9 };
    peer.send(&Frame::Event(event(id, 1, "a:b"))).await;
    peer.send(&Frame::Gap(gap.clone())).await;
    peer.send(&Frame::Event(event(id, 10, "a:b"))).await;
    assert_eq!(within(heard.next()).await, Some(Item::Event(event(id, 1, "a:b"))));
    assert_eq!(within(heard.next()).await, Some(Item::Gap(gap)));
    assert_eq!(within(heard.next()).await, Some(Item::Event(event(id, 10, "a:b"))));
}

#[tokio::test]
async fn a_slow_consumer_gets_an_exact_gap_and_slows_nobody() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect_with(fake.options().event_queue(4)).await;
    let (mut slow, id) = subscribed(&client, &mut peer, "**", Class::Live).await;
    let (mut quick, other) = subscribed(&client, &mut peer, "a:*", Class::Live).await;
    for seq in 1..=1000 {
        peer.send(&Frame::Event(event(id, seq, "a:b"))).await;
    }
    peer.send(&Frame::Event(event(other, 1, "a:b"))).await;
    // Both come although nobody takes what waits for the slow one.
    assert_eq!(within(quick.next()).await, Some(Item::Event(event(other, 1, "a:b"))));
    peer.barrier(&client).await;
    let gap = Gap { sub: id, missed: 996, from_seq: 1, to_seq: 996 };
    assert_eq!(within(slow.next()).await, Some(Item::Gap(gap)));
    for seq in 997..=1000 {
        assert_eq!(within(slow.next()).await, Some(Item::Event(event(id, seq, "a:b"))));
    }
    peer.send(&Frame::Event(event(id, 1001, "a:b"))).await;
    assert_eq!(within(slow.next()).await, Some(Item::Event(event(id, 1001, "a:b"))));
}

#[tokio::test]
async fn of_latest_only_the_newest_of_each_name_waits() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let (mut heard, id) = subscribed(&client, &mut peer, "**", Class::Latest).await;
    for seq in 1..=100 {
        peer.send(&Frame::Event(event(id, seq, ["a:even", "a:odd"][(seq % 2) as usize]))).await;
    }
    peer.barrier(&client).await;
    assert_eq!(within(heard.next()).await, Some(Item::Event(event(id, 99, "a:odd"))));
    assert_eq!(within(heard.next()).await, Some(Item::Event(event(id, 100, "a:even"))));
    assert_eq!(heard.try_next(), None);
}

#[tokio::test]
async fn dropping_a_subscription_unsubscribes() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let (heard, id) = subscribed(&client, &mut peer, "**", Class::Live).await;
    drop(heard);
    assert_eq!(peer.next().await, Frame::Unsubscribe { id });
    peer.send(&Frame::Event(event(id, 1, "a:b"))).await;
    peer.reply(id, ksi_protocol::empty()).await;
    peer.barrier(&client).await;
}

#[tokio::test]
async fn a_malformed_event_ends_the_connection() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let (mut heard, id) = subscribed(&client, &mut peer, "**", Class::Live).await;
    let mut bytes = BytesMut::new();
    Frame::Event(event(id, 1, "a:b")).encode(&mut bytes).unwrap();
    let at = bytes.windows(3).position(|window| window == b"a:b").unwrap();
    bytes[at] = b'A';
    peer.send_bytes(&bytes).await;
    assert_eq!(within(heard.next()).await, None);
    assert!(matches!(heard.error(), Some(Error::Protocol(_))), "{:?}", heard.error());
    assert!(matches!(client.emit("a:b", "x").await, Err(Error::Protocol(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_loses_nothing_that_is_not_counted() {
    const COUNT: u64 = 200_000;
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect_with(fake.options().event_queue(1000)).await;
    let (mut heard, id) = subscribed(&client, &mut peer, "**", Class::Live).await;
    let sending = tokio::spawn(async move {
        for start in (1..=COUNT).step_by(500) {
            let mut bytes = BytesMut::new();
            for seq in start..start + 500 {
                Frame::Event(event(id, seq, "a:b")).encode(&mut bytes).unwrap();
            }
            peer.send_bytes(&bytes).await;
        }
        peer
    });
    let mut next = 1;
    while next <= COUNT {
        match within(heard.next()).await {
            Some(Item::Event(event)) => {
                assert_eq!(event.seq, next);
                assert_eq!(event.data, text("facts"));
                next += 1;
            }
            Some(Item::Gap(gap)) => {
                assert_eq!((gap.from_seq, gap.missed), (next, gap.to_seq - gap.from_seq + 1));
                next = gap.to_seq + 1;
            }
            other => panic!("{other:?} in a flood"),
        }
    }
    drop(sending.await.unwrap());
}

#[tokio::test]
async fn a_payload_is_handed_on_untouched() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let (mut heard, id) = subscribed(&client, &mut peer, "**", Class::Live).await;
    let mut sent = event(id, 1, "a:b");
    sent.data = ksi_protocol::json::from_json(&json!({"deep": [1, {"er": null}]})).unwrap();
    peer.send(&Frame::Event(sent.clone())).await;
    assert_eq!(within(heard.next()).await, Some(Item::Event(sent)));
}
