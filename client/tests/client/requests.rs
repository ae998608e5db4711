//! Requests and emitted events.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use futures_util::future::{join_all, poll_immediate};
use ksi_client::{CallOptions, Client, Code, Error, Refusal, Stream, Subscription};
use ksi_protocol::{Frame, PROTOCOL_VERSION, limits::FRAME_BYTES_MAX};

use crate::fake::{Fake, text, within};

#[tokio::test]
async fn the_client_says_who_it_is_and_knows_the_daemon() {
    let fake = Fake::bind();
    let greeting = async {
        let mut peer = fake.accept_silent().await;
        let hello = peer.next().await;
        peer.send(&fake.welcome()).await;
        (hello, peer)
    };
    let connecting = within(Client::connect(fake.options().name("tool 1.0")));
    let (client, (hello, _peer)) = tokio::join!(connecting, greeting);
    let Frame::Hello(hello) = hello else { panic!("{hello:?}") };
    assert_eq!((hello.version, hello.client.as_str()), (PROTOCOL_VERSION, "tool 1.0"));
    let client = client.unwrap();
    assert_eq!((client.welcome().server, client.welcome().boot), ("fake 1.0".into(), "first".into()));
    assert_eq!(client.socket(), fake.socket());
    assert!(client.is_connected());
}

#[tokio::test]
async fn answers_may_overtake_each_other() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let ask = |what: &'static str| within(client.request::<_, String>("test:ask", what));
    let answer = async {
        let mut requests = Vec::new();
        for _ in 0..3 {
            requests.push(peer.request().await);
        }
        for request in requests.into_iter().rev() {
            peer.reply(request.id, request.data).await;
        }
    };
    let (one, two, three, ()) = tokio::join!(ask("one"), ask("two"), ask("three"), answer);
    assert_eq!([one.unwrap(), two.unwrap(), three.unwrap()], ["one", "two", "three"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_many_requests_gets_its_own_answer() {
    let fake = Fake::bind();
    let (client, peer) = fake.connect().await;
    let peer = tokio::spawn(peer.echo());
    let tasks = (0..64).map(|task: u64| {
        let client = client.clone();
        tokio::spawn(async move {
            for round in 0..100 {
                let asked = task << 32 | round;
                let answer: u64 = within(client.request("test:ask", &asked)).await.unwrap();
                assert_eq!(answer, asked);
            }
        })
    });
    for task in join_all(tasks).await {
        task.unwrap();
    }
    drop(client);
    within(peer).await.unwrap();
}

#[tokio::test]
async fn options_travel_with_the_request() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let options = CallOptions {
        timeout: Some(Duration::from_millis(1500)),
        credit: None,
        correlation_id: Some("cause".into()),
        idempotency_key: Some("key".into()),
        expires_in: Some(Duration::from_secs(60)),
    };
    let asked = client.request_raw("test:ask", text("x"), options);
    let answer = async {
        let request = peer.request().await;
        peer.reply(request.id, Bytes::new()).await;
        request
    };
    let (answered, request) = tokio::join!(within(asked), answer);
    answered.unwrap();
    assert_eq!(request.event.as_str(), "test:ask");
    assert_eq!(request.data, text("x"));
    assert_eq!(request.timeout_ms, Some(1500));
    assert_eq!(request.correlation_id.as_deref(), Some("cause"));
    assert_eq!(request.idempotency_key.as_deref(), Some("key"));
    assert_eq!(request.expires_in_ms, Some(60_000));
}

#[tokio::test]
async fn a_refusal_comes_whole_and_the_connection_goes_on() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let refusal = Refusal::new(Code::Busy, "too much").hint("wait").retry_after_ms(100);
    let refuse = async {
        let id = peer.request().await.id;
        peer.send(&Frame::Refusal { id: Some(id), refusal: refusal.clone() }).await;
    };
    let (asked, ()) = tokio::join!(within(client.request::<_, ()>("test:ask", "x")), refuse);
    let error = asked.unwrap_err();
    assert_eq!(error.refusal(), Some(&refusal));
    assert!(error.is_retryable());
    peer.barrier(&client).await;
}

#[tokio::test]
async fn an_answer_of_another_type_is_told_with_the_event() {
    let fake = Fake::bind();
    let (client, peer) = fake.connect().await;
    let peer = tokio::spawn(peer.echo());
    let asked = within(client.request::<_, HashMap<String, u64>>("test:ask", "a text")).await;
    let error = asked.unwrap_err();
    assert!(matches!(&error, Error::Decode { event, .. } if event == "test:ask"), "{error}");
    drop(client);
    within(peer).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_sent_is_refused_here_and_the_connection_goes_on() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let named = client.request::<_, ()>("no name", "x").await.unwrap_err();
    assert!(matches!(named, Error::Name(_)), "{named}");
    let pattern = client.subscribe("a:b*", ksi_client::Class::Live).await.unwrap_err();
    assert!(matches!(pattern, Error::Name(_)), "{pattern}");
    let large = Bytes::from(vec![0; FRAME_BYTES_MAX]);
    let sent = client.request_raw("test:ask", large.clone(), CallOptions::default()).await.unwrap_err();
    assert!(matches!(sent, Error::TooLarge { bytes } if bytes > FRAME_BYTES_MAX), "{sent}");
    assert!(matches!(client.emit_raw("test:said", large).await, Err(Error::TooLarge { .. })));
    // The server sees nothing of it: the barrier is the first that comes.
    peer.barrier(&client).await;
}

#[tokio::test]
async fn a_dropped_request_is_cancelled_and_its_late_answer_ignored() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let mut asked = Box::pin(client.request::<_, String>("test:ask", "x"));
    assert!(poll_immediate(&mut asked).await.is_none());
    let id = peer.request().await.id;
    drop(asked);
    assert_eq!(peer.cancelled().await, id);
    peer.reply(id, text("late")).await;
    let refusal = Refusal::new(Code::Cancelled, "cancelled");
    peer.send(&Frame::Refusal { id: Some(id), refusal }).await;
    peer.barrier(&client).await;
}

#[tokio::test]
async fn an_answered_request_is_not_cancelled() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let mut asked = Box::pin(client.request::<_, String>("test:ask", "x"));
    assert!(poll_immediate(&mut asked).await.is_none());
    let id = peer.request().await.id;
    peer.reply(id, text("answer")).await;
    // The answer has arrived, but its asker has not looked at it yet.
    peer.barrier(&client).await;
    drop(asked);
    peer.barrier(&client).await;
}

#[tokio::test]
async fn a_request_that_the_daemon_forgets_ends_soon_after_its_time() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect_with(fake.options().timeout(Duration::from_millis(10))).await;
    let asked = tokio::spawn(async move {
        let asked = within(client.request::<_, ()>("test:ask", "x")).await;
        (asked, client)
    });
    let request = peer.request().await;
    assert_eq!(request.timeout_ms, Some(10));
    let (asked, _client) = asked.await.unwrap();
    assert!(matches!(asked, Err(Error::TimedOut { after }) if after == Duration::from_millis(10)));
    assert_eq!(peer.cancelled().await, request.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_frames_travel_both_ways() {
    let fake = Fake::bind();
    let (client, peer) = fake.connect().await;
    let peer = tokio::spawn(peer.echo());
    let large = Bytes::from((0..FRAME_BYTES_MAX - 64).map(|n| n as u8).collect::<Vec<_>>());
    let ask = |data: Bytes| within(client.request_raw("test:ask", data, CallOptions::default()));
    let (one, small, two) = tokio::join!(ask(large.clone()), ask(text("small")), ask(large.clone()));
    assert!(one.unwrap() == large && two.unwrap() == large);
    assert_eq!(small.unwrap(), text("small"));
    drop(client);
    within(peer).await.unwrap();
}

#[tokio::test]
async fn the_answer_of_a_stream_is_its_summary() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let answer = async {
        let id = peer.request().await.id;
        peer.send(&Frame::Chunk { id, data: text("part") }).await;
        peer.send(&Frame::End { id, data: text("sum") }).await;
    };
    let (asked, ()) = tokio::join!(within(client.request::<_, String>("test:ask", "x")), answer);
    assert_eq!(asked.unwrap(), "sum");
}

#[tokio::test]
async fn an_emitted_event_is_counted_on_request() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    client.emit("test:said", "quiet").await.unwrap();
    let Frame::Emit(quiet) = peer.next().await else { panic!("an emit should come") };
    assert_eq!((quiet.id, quiet.event.as_str(), quiet.data), (None, "test:said", text("quiet")));
    let count = async {
        let Frame::Emit(emit) = peer.next().await else { panic!("an emit should come") };
        let delivered = ksi_protocol::encode(&HashMap::from([("delivered", 3)])).unwrap();
        peer.reply(emit.id.unwrap(), delivered).await;
    };
    let (counted, ()) = tokio::join!(within(client.emit_counted("test:said", "loud")), count);
    assert_eq!(counted.unwrap(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_in_quick_succession_keep_their_order() {
    const COUNT: u64 = 20_000;
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let sender = client.clone();
    let sending = tokio::spawn(async move {
        for n in 0..COUNT {
            sender.emit("test:counted", &n).await.unwrap();
        }
    });
    for expected in 0..COUNT {
        let Frame::Emit(emit) = peer.next().await else { panic!("an emit should come") };
        assert_eq!(ksi_protocol::decode::<u64>(&emit.data).unwrap(), expected);
    }
    sending.await.unwrap();
}

#[tokio::test]
async fn an_emitter_waits_for_a_daemon_that_does_not_read() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let large = Bytes::from(vec![7; 256 * 1024]);
    let mut sent = 0;
    // The daemon reads nothing, so at some time an event must wait.
    let waiting = loop {
        let mut emit = Box::pin(client.emit_raw("test:said", large.clone()));
        match poll_immediate(&mut emit).await {
            Some(result) => result.unwrap(),
            None => break emit,
        }
        sent += 1;
        assert!(sent < 100, "what waits must be bounded");
    };
    let reading = async {
        for _ in 0..=sent {
            let frame = peer.next().await;
            assert!(matches!(frame, Frame::Emit(_)));
        }
    };
    let (emitted, ()) = tokio::join!(within(waiting), reading);
    emitted.unwrap();
}

#[tokio::test]
async fn closing_writes_what_waits() {
    const COUNT: usize = 5000;
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let reading = tokio::spawn(async move {
        let mut count = 0;
        while peer.read().await.is_some() {
            count += 1;
        }
        count
    });
    for n in 0..COUNT {
        client.emit("test:counted", &n).await.unwrap();
    }
    within(client.close()).await;
    assert_eq!(reading.await.unwrap(), COUNT);
    assert!(matches!(client.emit("test:counted", &0).await, Err(Error::Closed)));
    assert!(matches!(client.request::<_, ()>("test:ask", &0).await, Err(Error::Closed)));
    assert!(!client.is_connected());
    within(client.close()).await;
}

#[tokio::test]
async fn closing_ends_what_is_open() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let asking = tokio::spawn({
        let client = client.clone();
        async move { client.request::<_, ()>("test:ask", "x").await }
    });
    peer.request().await;
    let closing = async {
        assert!(peer.read().await.is_none());
        drop(peer);
    };
    tokio::join!(within(client.close()), closing);
    assert!(matches!(within(asking).await.unwrap(), Err(Error::Closed)));
}

#[tokio::test]
async fn the_connection_ends_with_its_last_handle() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let clone = client.clone();
    let stream = client.stream("test:ask", "x", CallOptions::default()).await.unwrap();
    let id = peer.request().await.id;
    drop((client, clone));
    peer.send(&Frame::Chunk { id, data: text("a") }).await;
    drop(stream);
    assert_eq!(peer.cancelled().await, id);
    assert!(peer.read().await.is_none());
}

#[test]
fn everything_may_be_sent_between_threads() {
    fn check<T: Send + Sync + 'static>() {}
    fn check_future<T: Send>(_: impl Fn(&'static Client) -> T) {}
    check::<Client>();
    check::<Stream>();
    check::<Subscription>();
    check::<Error>();
    check_future(|client| client.request::<str, String>("a:b", "x"));
    check_future(|client| client.stream::<str>("a:b", "x", CallOptions::default()));
    check_future(|client| client.subscribe("a:*", ksi_client::Class::Live));
    check_future(|client| client.emit::<str>("a:b", "x"));
    check_future(|client| client.close());
}
