//! Streamed answers.

use futures_util::{StreamExt, future::poll_immediate};
use ksi_client::{CallOptions, Client, Code, Error, Part, Refusal, Stream};
use ksi_protocol::{Frame, frame::Id};

use crate::fake::{Fake, Peer, text, within};

async fn opened(client: &Client, peer: &mut Peer, options: CallOptions) -> (Stream, Id) {
    let stream = client.stream("test:stream", "x", options).await.unwrap();
    let id = peer.request().await.id;
    (stream, id)
}

async fn chunk(peer: &mut Peer, id: Id, part: &str) {
    peer.send(&Frame::Chunk { id, data: text(part) }).await;
}

#[tokio::test]
async fn parts_come_in_order_and_then_the_end() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let (mut stream, id) = opened(&client, &mut peer, CallOptions::default()).await;
    chunk(&mut peer, id, "a").await;
    chunk(&mut peer, id, "b").await;
    peer.send(&Frame::End { id, data: text("sum") }).await;
    assert_eq!(within(stream.next()).await.unwrap().unwrap(), Part::Chunk(text("a")));
    assert_eq!(within(stream.next()).await.unwrap().unwrap().decode::<String>().unwrap(), "b");
    let end = within(stream.next()).await.unwrap().unwrap();
    assert!(end.is_last());
    assert_eq!(end, Part::End(text("sum")));
    assert!(within(stream.next()).await.is_none());
    drop(stream);
    // Nothing was cancelled: the barrier is what comes next.
    peer.barrier(&client).await;
}

#[tokio::test]
async fn an_event_that_does_not_stream_answers_with_one_part() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let (stream, id) = opened(&client, &mut peer, CallOptions::default()).await;
    peer.reply(id, text("all")).await;
    let parts: Vec<_> = within(StreamExt::collect(stream)).await;
    assert!(matches!(&parts[..], [Ok(Part::Reply(data))] if *data == text("all")), "{parts:?}");
}

#[tokio::test]
async fn streams_and_requests_do_not_mix() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let (mut one, first) = opened(&client, &mut peer, CallOptions::default()).await;
    let (mut two, second) = opened(&client, &mut peer, CallOptions::default()).await;
    for n in 0..100 {
        chunk(&mut peer, first, &format!("one {n}")).await;
        chunk(&mut peer, second, &format!("two {n}")).await;
    }
    peer.barrier(&client).await;
    for n in 0..100 {
        let (one, two) = (within(one.next()).await.unwrap(), within(two.next()).await.unwrap());
        assert_eq!(one.unwrap().decode::<String>().unwrap(), format!("one {n}"));
        assert_eq!(two.unwrap().decode::<String>().unwrap(), format!("two {n}"));
    }
}

#[tokio::test]
async fn a_refusal_ends_the_stream_after_its_parts() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let (mut stream, id) = opened(&client, &mut peer, CallOptions::default()).await;
    chunk(&mut peer, id, "a").await;
    let refusal = Refusal::new(Code::PluginRestarted, "it died");
    peer.send(&Frame::Refusal { id: Some(id), refusal: refusal.clone() }).await;
    assert!(within(stream.next()).await.unwrap().is_ok());
    let error = within(stream.next()).await.unwrap().unwrap_err();
    assert_eq!(error.refusal(), Some(&refusal));
    assert!(within(stream.next()).await.is_none());
}

#[tokio::test]
async fn dropping_a_stream_cancels_it() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let (mut stream, id) = opened(&client, &mut peer, CallOptions::default()).await;
    chunk(&mut peer, id, "a").await;
    within(stream.next()).await.unwrap().unwrap();
    drop(stream);
    assert_eq!(peer.cancelled().await, id);
    chunk(&mut peer, id, "late").await;
    peer.barrier(&client).await;
}

#[tokio::test]
async fn accepted_is_the_last_part_and_the_work_goes_on_without_its_stream() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let (mut stream, id) = opened(&client, &mut peer, CallOptions::default()).await;
    peer.send(&Frame::Accepted { id, request_id: "work-1".into(), seq: 42 }).await;
    let accepted = within(stream.next()).await.unwrap().unwrap();
    assert_eq!(accepted, Part::Accepted { request_id: "work-1".into(), seq: 42 });
    assert!(accepted.is_last());
    assert!(within(stream.next()).await.is_none());
    drop(stream);
    peer.barrier(&client).await;
}

#[tokio::test]
async fn credit_is_renewed_as_parts_are_taken() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let options = CallOptions { credit: Some(4), ..CallOptions::default() };
    let mut stream = client.stream("test:stream", "x", options).await.unwrap();
    let request = peer.request().await;
    assert_eq!(request.credit, Some(4));
    let id = request.id;
    for _ in 0..4 {
        chunk(&mut peer, id, "a").await;
    }
    within(stream.next()).await.unwrap().unwrap();
    // One taken: not yet worth a frame.
    peer.barrier(&client).await;
    within(stream.next()).await.unwrap().unwrap();
    assert_eq!(peer.next().await, Frame::Credit { id, n: 2 });
    within(stream.next()).await.unwrap().unwrap();
    within(stream.next()).await.unwrap().unwrap();
    assert_eq!(peer.next().await, Frame::Credit { id, n: 2 });
    assert!(poll_immediate(stream.next()).await.is_none());
}

#[tokio::test]
async fn a_stream_that_nobody_takes_is_cancelled_and_the_others_go_on() {
    const LIMIT: usize = 64 * 1024;
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let (mut stream, id) = opened(&client, &mut peer, CallOptions::default()).await;
    for _ in 0..LIMIT {
        chunk(&mut peer, id, "a").await;
    }
    peer.barrier(&client).await;
    chunk(&mut peer, id, "one too many").await;
    assert_eq!(peer.cancelled().await, id);
    peer.barrier(&client).await;
    for _ in 0..LIMIT {
        within(stream.next()).await.unwrap().unwrap();
    }
    let error = within(stream.next()).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Overrun { chunks: LIMIT, .. }), "{error}");
}

#[tokio::test]
async fn a_stream_that_the_daemon_forgets_ends_soon_after_its_time() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let options = CallOptions::timeout(std::time::Duration::from_millis(10));
    let (mut stream, id) = opened(&client, &mut peer, options).await;
    assert!(matches!(within(stream.next()).await.unwrap(), Err(Error::TimedOut { .. })));
    assert!(within(stream.next()).await.is_none());
    assert_eq!(peer.cancelled().await, id);
}
