//! Lost connections, and those that are made anew.

use std::time::Duration;

use ksi_client::{CallOptions, Class, Client, Error, Item, Loss, Refusal};
use ksi_protocol::{Code, Frame, Pattern};

use crate::fake::{Fake, Peer, event, subscribed, within};

async fn reconnecting() -> (Fake, Client, Peer) {
    let fake = Fake::bind();
    // A new client does so unless it is told not to.
    let (client, peer) = fake.connect_with(ksi_client::Options::new(fake.socket())).await;
    (fake, client, peer)
}

#[tokio::test]
async fn without_reconnect_a_loss_ends_everything() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let (mut heard, _) = subscribed(&client, &mut peer, "a:*", Class::Live).await;
    let mut stream = client.stream("test:ask", "x", CallOptions::default()).await.unwrap();
    let lose = async {
        peer.request().await;
        peer.request().await;
        drop(peer);
    };
    let (asked, ()) = tokio::join!(within(client.request::<_, ()>("test:ask", "x")), lose);
    assert!(matches!(asked, Err(Error::Lost(Loss::Ended))), "{asked:?}");
    assert!(matches!(within(stream.next()).await, Some(Err(Error::Lost(_)))));
    assert_eq!(within(heard.next()).await, None);
    assert!(matches!(heard.error(), Some(Error::Lost(_))));
    let later = client.request::<_, ()>("test:ask", "x").await;
    assert!(matches!(later, Err(Error::Lost(_))), "{later:?}");
    assert!(matches!(client.subscribe("a:*", Class::Live).await, Err(Error::Lost(_))));
    within(client.close()).await;
}

#[tokio::test]
async fn subscriptions_are_renewed_and_say_so() {
    let (mut fake, client, mut peer) = reconnecting().await;
    let (mut live, one) = subscribed(&client, &mut peer, "a:*", Class::Live).await;
    let (mut latest, two) = subscribed(&client, &mut peer, "**", Class::Latest).await;
    peer.send(&Frame::Event(event(one, 1, "a:b"))).await;
    for (boot, restarted) in [("first", false), ("second", true)] {
        drop(peer);
        fake.boot = boot.into();
        peer = fake.accept().await;
        let mut renewed = vec![peer.subscribe().await, peer.subscribe().await];
        renewed.sort_by_key(|subscribe| subscribe.id);
        let mut expected = [(one, "a:*", Class::Live), (two, "**", Class::Latest)];
        expected.sort_by_key(|(id, ..)| *id);
        for (subscribe, (id, pattern, class)) in renewed.into_iter().zip(expected) {
            assert_eq!((subscribe.id, subscribe.class), (id, class));
            assert_eq!(subscribe.pattern, Pattern::parse(pattern).unwrap());
            peer.reply(id, ksi_protocol::empty()).await;
        }
        peer.send(&Frame::Event(event(one, 1, "a:b"))).await;
        assert_eq!(within(live.next()).await, Some(Item::Event(event(one, 1, "a:b"))), "{boot}");
        assert_eq!(within(live.next()).await, Some(Item::Reconnected { restarted }), "{boot}");
        assert_eq!(within(latest.next()).await, Some(Item::Reconnected { restarted }), "{boot}");
        assert_eq!(client.welcome().boot, boot);
    }
    assert_eq!(within(live.next()).await, Some(Item::Event(event(one, 1, "a:b"))));
}

#[tokio::test]
async fn a_request_under_way_is_lost_and_not_repeated() {
    let (fake, client, mut peer) = reconnecting().await;
    let lose = async {
        peer.request().await;
        drop(peer);
    };
    let (asked, ()) = tokio::join!(within(client.request::<_, ()>("test:ask", "x")), lose);
    let error = asked.unwrap_err();
    assert!(matches!(error, Error::Lost(_)) && error.may_have_arrived(), "{error:?}");
    let mut peer = fake.accept().await;
    // The barrier is the first that comes.
    peer.barrier(&client).await;
}

#[tokio::test]
async fn what_is_asked_while_the_daemon_is_away_waits_for_it() {
    let (mut fake, client, peer) = reconnecting().await;
    fake.stop();
    drop(peer);
    let asking = tokio::spawn({
        let client = client.clone();
        async move {
            // Until the loss is noticed, a request may still be lost with it.
            loop {
                match within(client.request::<_, String>("test:ask", "there?")).await {
                    Err(Error::Lost(_)) => {}
                    answer => return answer,
                }
            }
        }
    });
    within(client.until_connected(false)).await;
    fake.restart();
    let peer = fake.accept().await;
    within(client.until_connected(true)).await;
    let peer = tokio::spawn(peer.echo());
    assert_eq!(within(asking).await.unwrap().unwrap(), "there?");
    within(client.close()).await;
    within(peer).await.unwrap();
}

#[tokio::test]
async fn a_daemon_that_stays_away_is_not_awaited_for_ever() {
    let mut fake = Fake::bind();
    let options = fake.options().reconnect(true).patience(Duration::from_millis(30));
    let (client, peer) = fake.connect_with(options).await;
    let (mut heard, _) = {
        let mut peer = peer;
        let subscription = subscribed(&client, &mut peer, "a:*", Class::Live).await;
        fake.stop();
        subscription
    };
    let error = loop {
        match within(client.request::<_, ()>("test:ask", "x")).await {
            Err(Error::Lost(_)) => {}
            asked => break asked.unwrap_err(),
        }
    };
    assert!(matches!(error, Error::NotRunning { .. }), "{error}");
    assert!(!error.may_have_arrived());
    within(client.until_connected(false)).await;
    assert!(!client.is_connected());
    assert_eq!(heard.try_next(), None);
    assert!(heard.error().is_none(), "it may still come back");
    // Closing does not wait for a daemon that is away.
    within(client.close()).await;
    assert_eq!(within(heard.next()).await, None);
    assert!(matches!(heard.error(), Some(Error::Closed)));
}

#[tokio::test]
async fn a_subscription_made_while_the_daemon_is_away_is_asked_for_once() {
    let (mut fake, client, peer) = reconnecting().await;
    fake.stop();
    drop(peer);
    let subscribing = tokio::spawn({
        let client = client.clone();
        async move { within(client.subscribe("a:*", Class::Live)).await }
    });
    fake.restart();
    let mut peer = fake.accept().await;
    let id = peer.subscribe().await.id;
    peer.reply(id, ksi_protocol::empty()).await;
    let _heard = within(subscribing).await.unwrap().unwrap();
    peer.barrier(&client).await;
}

#[tokio::test]
async fn a_dropped_subscription_is_not_renewed() {
    let (fake, client, mut peer) = reconnecting().await;
    let (heard, id) = subscribed(&client, &mut peer, "a:*", Class::Live).await;
    drop(heard);
    assert_eq!(peer.next().await, Frame::Unsubscribe { id });
    drop(peer);
    let mut peer = fake.accept().await;
    peer.barrier(&client).await;
}

#[tokio::test]
async fn a_subscription_that_is_not_renewed_ends() {
    let (fake, client, mut peer) = reconnecting().await;
    let (mut heard, id) = subscribed(&client, &mut peer, "a:*", Class::Live).await;
    drop(peer);
    let mut peer = fake.accept().await;
    peer.subscribe().await;
    let refusal = Refusal::new(Code::Denied, "not you");
    peer.send(&Frame::Refusal { id: Some(id), refusal }).await;
    assert_eq!(within(heard.next()).await, Some(Item::Reconnected { restarted: false }));
    assert_eq!(within(heard.next()).await, None);
    assert_eq!(heard.error().unwrap().refusal().unwrap().code, Code::Denied);
}

#[tokio::test]
async fn a_subscription_that_meets_a_stopping_daemon_is_asked_of_the_next_one() {
    let (fake, client, mut peer) = reconnecting().await;
    let subscribing = tokio::spawn({
        let client = client.clone();
        async move { within(client.subscribe("a:*", Class::Live)).await }
    });
    let id = peer.subscribe().await.id;
    let refusal = Refusal::new(Code::ShuttingDown, "the daemon is stopping");
    peer.send(&Frame::Refusal { id: Some(id), refusal: refusal.clone() }).await;
    peer.send(&Frame::Refusal { id: None, refusal }).await;
    drop(peer);
    let mut peer = fake.accept().await;
    assert_eq!(peer.subscribe().await.id, id);
    peer.reply(id, ksi_protocol::empty()).await;
    let mut heard = within(subscribing).await.unwrap().unwrap();
    assert_eq!(within(heard.next()).await, Some(Item::Reconnected { restarted: false }));
}

#[tokio::test]
async fn a_daemon_that_is_full_for_a_moment_is_tried_again() {
    let (fake, client, peer) = reconnecting().await;
    drop(peer);
    let mut full = fake.accept_silent().await;
    let refusal = Refusal::new(Code::Busy, "2 connections are open, the limit");
    full.send_bytes(format!("{}\n", ksi_protocol::json::refusal_line(None, &refusal)).as_bytes()).await;
    drop(full);
    fake.accept().await.barrier(&client).await;
}

#[tokio::test]
async fn another_version_after_a_restart_ends_the_client() {
    let (fake, client, mut peer) = reconnecting().await;
    let (mut heard, _) = subscribed(&client, &mut peer, "a:*", Class::Live).await;
    drop(peer);
    let mut peer = fake.accept_silent().await;
    peer.next().await;
    let Frame::Welcome(mut welcome) = fake.welcome() else { panic!("a welcome") };
    welcome.version = 77;
    peer.send(&Frame::Welcome(welcome)).await;
    assert_eq!(within(heard.next()).await, None);
    assert!(matches!(heard.error(), Some(Error::Version { theirs: 77, .. })));
    let later = client.request::<_, ()>("test:ask", "x").await;
    assert!(matches!(later, Err(Error::Version { .. })), "{later:?}");
}

#[tokio::test]
async fn garbage_is_lost_with_its_connection_and_a_new_one_is_made() {
    let (fake, client, mut peer) = reconnecting().await;
    let break_it = async {
        peer.request().await;
        peer.send_bytes(b"\x00\x00\x00\x01\xc1").await;
    };
    let (asked, ()) = tokio::join!(within(client.request::<_, ()>("test:ask", "x")), break_it);
    assert!(matches!(asked, Err(Error::Protocol(_))), "{asked:?}");
    let mut peer = fake.accept().await;
    peer.barrier(&client).await;
}
