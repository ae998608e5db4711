//! Durable facts, followed over lost connections.

use futures_util::future::poll_immediate;
use ksi_client::{Class, Client, Code, Error, FollowOptions, Follower, Item, Options, Refusal};
use ksi_protocol::{
    Frame, Pattern,
    checkpoint::{Checkpoints, Journal, Store},
    frame::{Gap, Id, Subscribe},
    work::Ack,
};

use crate::fake::{Fake, Peer, event, within};

async fn connected() -> (Fake, Client, Peer) {
    let fake = Fake::bind();
    let (client, peer) = fake.connect_with(Options::new(fake.socket())).await;
    (fake, client, peer)
}

/// Expects the question and confirms it.
async fn confirm(peer: &mut Peer) -> Subscribe {
    let wish = peer.subscribe().await;
    peer.reply(wish.id, ksi_protocol::empty()).await;
    wish
}

async fn followed(client: &Client, peer: &mut Peer, options: FollowOptions) -> (Follower, Subscribe) {
    let (follower, wish) = tokio::join!(within(client.follow("a:*", options)), confirm(peer));
    (follower.unwrap(), wish)
}

async fn tell(peer: &mut Peer, sub: Id, seqs: &[u64]) {
    for seq in seqs {
        peer.send(&Frame::Event(event(sub, *seq, "a:b"))).await;
    }
}

async fn taken(follower: &mut Follower, sub: Id, seqs: &[u64]) {
    for seq in seqs {
        assert_eq!(within(follower.next()).await, Some(Item::Event(event(sub, *seq, "a:b"))));
    }
}

/// The next request, which must move a consumer on; answers it.
async fn acked(peer: &mut Peer) -> Ack {
    let request = peer.request().await;
    assert_eq!(request.event.as_str(), "checkpoint:ack");
    peer.reply(request.id, ksi_protocol::empty()).await;
    ksi_protocol::decode(&request.data).unwrap()
}

#[tokio::test]
async fn the_question_says_from_where_as_whom_and_how_much() {
    let (_fake, client, mut peer) = connected().await;
    let options = FollowOptions::new().since(7).consumer("billing").window(16);
    let (_follower, wish) = followed(&client, &mut peer, options).await;
    assert_eq!((wish.class, wish.pattern), (Class::Durable, Pattern::parse("a:*").unwrap()));
    assert_eq!((wish.since_seq, wish.consumer.as_deref(), wish.credit), (Some(7), Some("billing"), Some(16)));
}

#[tokio::test]
async fn from_now_on_is_a_position_that_holds_over_a_restart() {
    let (fake, client, mut peer) = connected().await;
    let asking = tokio::spawn({
        let client = client.clone();
        async move { within(client.follow("a:*", FollowOptions::new())).await }
    });
    let request = peer.request().await;
    assert_eq!(request.event.as_str(), "checkpoint:list");
    let journal = Journal { segments: 1, bytes: 1, first_seq: 1, last_seq: 9 };
    let list = Checkpoints { checkpoints: Vec::new(), journal, store: Store::default() };
    peer.reply(request.id, ksi_protocol::encode(&list).unwrap()).await;
    assert_eq!(confirm(&mut peer).await.since_seq, Some(10));
    let mut follower = within(asking).await.unwrap().unwrap();
    // Nothing was taken yet, and what is told meanwhile must not be missed.
    drop(peer);
    let next = async {
        let mut peer = fake.accept().await;
        let wish = confirm(&mut peer).await;
        assert_eq!(wish.since_seq, Some(10));
        tell(&mut peer, wish.id, &[12]).await;
        (peer, wish.id)
    };
    let (item, (_peer, id)) = tokio::join!(within(follower.next()), next);
    assert_eq!(item, Some(Item::Event(event(id, 12, "a:b"))));
}

#[tokio::test]
async fn it_goes_on_after_the_last_that_was_taken_without_loss_or_doubles() {
    let (fake, client, mut peer) = connected().await;
    let (mut follower, wish) = followed(&client, &mut peer, FollowOptions::new().since(1)).await;
    tell(&mut peer, wish.id, &[3, 4, 8]).await;
    taken(&mut follower, wish.id, &[3, 4]).await;
    // 8 is on the way when the daemon dies; it is taken, not asked for again.
    drop(peer);
    taken(&mut follower, wish.id, &[8]).await;
    let rest = async {
        let mut peer = fake.accept().await;
        let wish = confirm(&mut peer).await;
        assert_eq!(wish.since_seq, Some(9));
        // A daemon that says too much does no harm.
        tell(&mut peer, wish.id, &[8, 9, 10]).await;
        (peer, wish.id)
    };
    let (item, (_peer, id)) = tokio::join!(within(follower.next()), rest);
    assert_eq!(item, Some(Item::Event(event(id, 9, "a:b"))));
    taken(&mut follower, id, &[10]).await;
    assert_eq!(follower.position(), Some(11));
}

#[tokio::test]
async fn a_plugin_that_restarts_is_waited_for_on_the_same_connection() {
    let (_fake, client, mut peer) = connected().await;
    let (mut follower, wish) = followed(&client, &mut peer, FollowOptions::new().since(1)).await;
    tell(&mut peer, wish.id, &[5]).await;
    taken(&mut follower, wish.id, &[5]).await;
    let again = async {
        let mut id = wish.id;
        for code in [Code::PluginRestarted, Code::Unavailable, Code::ShuttingDown] {
            let refusal = Refusal::new(code, "not now");
            peer.send(&Frame::Refusal { id: Some(id), refusal }).await;
            let wish = peer.subscribe().await;
            assert_eq!(wish.since_seq, Some(6));
            id = wish.id;
        }
        peer.reply(id, ksi_protocol::empty()).await;
        tell(&mut peer, id, &[6]).await;
        id
    };
    let (item, id) = tokio::join!(within(follower.next()), again);
    assert_eq!(item, Some(Item::Event(event(id, 6, "a:b"))));
}

#[tokio::test]
async fn who_takes_over_the_name_ends_the_one_before() {
    let (_fake, client, mut peer) = connected().await;
    let options = FollowOptions::new().consumer("billing");
    let (mut follower, wish) = followed(&client, &mut peer, options).await;
    assert_eq!(wish.since_seq, None, "where a consumer has left off, the daemon knows");
    let refusal = Refusal::new(Code::Conflict, "somebody else is `billing` now");
    peer.send(&Frame::Refusal { id: Some(wish.id), refusal }).await;
    assert_eq!(within(follower.next()).await, None);
    assert_eq!(follower.error().unwrap().refusal().unwrap().code, Code::Conflict);
    drop(follower);
    peer.barrier(&client).await;
}

#[tokio::test]
async fn without_reconnect_it_ends_with_its_connection() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let (mut follower, _) = followed(&client, &mut peer, FollowOptions::new().since(1)).await;
    drop(peer);
    assert_eq!(within(follower.next()).await, None);
    assert!(matches!(follower.error(), Some(Error::Lost(_))));
}

#[tokio::test]
async fn what_the_journal_no_longer_keeps_is_a_gap() {
    let (_fake, client, mut peer) = connected().await;
    let (mut follower, wish) = followed(&client, &mut peer, FollowOptions::new().since(1)).await;
    let gap = Gap { sub: wish.id, missed: 100, from_seq: 1, to_seq: 100 };
    peer.send(&Frame::Gap(gap.clone())).await;
    assert_eq!(within(follower.next()).await, Some(Item::Gap(gap)));
    assert_eq!(follower.position(), Some(101));
}

#[tokio::test]
async fn credit_is_renewed_as_facts_are_taken_and_nothing_is_dropped_meanwhile() {
    let fake = Fake::bind();
    // A live subscription would drop all but one.
    let (client, mut peer) = fake.connect_with(fake.options().event_queue(1)).await;
    let options = FollowOptions::new().since(1).window(4);
    let (mut follower, wish) = followed(&client, &mut peer, options).await;
    tell(&mut peer, wish.id, &[1, 2, 3, 4]).await;
    taken(&mut follower, wish.id, &[1, 2]).await;
    assert_eq!(peer.next().await, Frame::Credit { id: wish.id, n: 2 });
    taken(&mut follower, wish.id, &[3, 4]).await;
    assert_eq!(peer.next().await, Frame::Credit { id: wish.id, n: 2 });
}

#[tokio::test]
async fn a_fact_is_dealt_with_when_the_next_is_asked_for() {
    let (_fake, client, mut peer) = connected().await;
    let options = FollowOptions::new().since(1).consumer("billing");
    let (mut follower, wish) = followed(&client, &mut peer, options).await;
    tell(&mut peer, wish.id, &[3, 5]).await;
    taken(&mut follower, wish.id, &[3, 5]).await;
    assert!(poll_immediate(follower.next()).await.is_none());
    // While nothing more comes, the daemon is told how far this one is.
    let ack = tokio::select! {
        item = follower.next() => panic!("nothing came, but {item:?}"),
        ack = acked(&mut peer) => ack,
    };
    assert_eq!(ack, Ack { consumer: "billing".into(), seq: 5 });
    // And only once.
    peer.barrier(&client).await;
}

#[tokio::test]
async fn many_facts_in_a_row_are_acknowledged_in_batches() {
    let (_fake, client, mut peer) = connected().await;
    let options = FollowOptions::new().since(1).consumer("billing").window(u32::MAX);
    let (mut follower, wish) = followed(&client, &mut peer, options).await;
    let seqs: Vec<u64> = (1..=600).collect();
    tell(&mut peer, wish.id, &seqs).await;
    taken(&mut follower, wish.id, &seqs).await;
    drop(follower);
    let mut last = 0;
    let mut acks = 0;
    while last < 599 {
        let ack = acked(&mut peer).await;
        assert!(ack.seq > last, "{ack:?}");
        (last, acks) = (ack.seq, acks + 1);
    }
    // Dropping it tells what was dealt with, and the last one was only taken.
    assert_eq!(last, 599);
    assert!(acks <= 20, "{acks} acknowledgements");
    assert_eq!(peer.next().await, Frame::Unsubscribe { id: wish.id });
}

#[tokio::test]
async fn all_that_was_taken_can_be_acknowledged_at_once() {
    let (_fake, client, mut peer) = connected().await;
    let options = FollowOptions::new().since(1).consumer("billing");
    let (mut follower, wish) = followed(&client, &mut peer, options).await;
    tell(&mut peer, wish.id, &[3]).await;
    taken(&mut follower, wish.id, &[3]).await;
    let (acknowledged, ack) = tokio::join!(within(follower.ack()), acked(&mut peer));
    acknowledged.unwrap();
    assert_eq!(ack.seq, 3);
    drop(follower);
    assert_eq!(peer.next().await, Frame::Unsubscribe { id: wish.id });
    peer.barrier(&client).await;
}
