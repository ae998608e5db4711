//! Daemons that are not there, not ours, or broken.

use std::time::Duration;

use bytes::BytesMut;
use ksi_client::{Client, Code, Error, Loss, Options, Refusal};
use ksi_protocol::{Frame, PROTOCOL_VERSION, limits::SOCKET_PATH_BYTES_MAX};

use crate::fake::{Fake, text, within};

async fn refused(options: Options) -> Error {
    within(Client::connect(options)).await.unwrap_err()
}

#[tokio::test]
async fn a_path_that_leads_to_no_daemon_says_what_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let missing = refused(Options::new(path("missing"))).await;
    assert!(matches!(&missing, Error::NotRunning { socket } if *socket == path("missing")), "{missing}");
    assert!(missing.is_retryable());

    std::fs::write(path("file"), "text").unwrap();
    let file = refused(Options::new(path("file"))).await;
    assert!(matches!(file, Error::NotASocket { .. }), "{file}");

    // What a killed daemon leaves behind.
    drop(std::os::unix::net::UnixListener::bind(path("stale")).unwrap());
    let stale = refused(Options::new(path("stale"))).await;
    assert!(matches!(stale, Error::NotRunning { .. }), "{stale}");

    let below = refused(Options::new(path("file").join("below"))).await;
    assert!(matches!(below, Error::Connect { .. }), "{below}");

    let long = format!("/{}", "x".repeat(SOCKET_PATH_BYTES_MAX));
    let error = refused(Options::new(&long)).await;
    assert!(
        matches!(error, Error::PathTooLong { bytes, .. } if bytes == SOCKET_PATH_BYTES_MAX + 1),
        "{error}"
    );
    let error = refused(Options::new(&long[..SOCKET_PATH_BYTES_MAX])).await;
    assert!(matches!(error, Error::NotRunning { .. }), "{error}");
}

/// What connecting says to a daemon that answers `hello` with these bytes and
/// closes.
async fn greeted_with(bytes: &[u8]) -> Error {
    let fake = Fake::bind();
    let greet = async {
        let mut peer = fake.accept_silent().await;
        peer.next().await;
        peer.send_bytes(bytes).await;
    };
    tokio::join!(refused(fake.options()), greet).0
}

fn encoded(frame: &Frame) -> BytesMut {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn another_version_is_refused_with_both_numbers() {
    let fake = Fake::bind();
    let Frame::Welcome(mut welcome) = fake.welcome() else { panic!("a welcome") };
    welcome.version = PROTOCOL_VERSION + 1;
    let error = greeted_with(&encoded(&Frame::Welcome(welcome))).await;
    let Error::Version { ours, theirs, .. } = &error else { panic!("{error}") };
    assert_eq!((*ours, *theirs), (PROTOCOL_VERSION, PROTOCOL_VERSION + 1));
    assert!(error.to_string().contains("fake 1.0"));
}

#[tokio::test]
async fn a_greeting_that_is_none_is_told_apart() {
    let refusal = Frame::Refusal { id: None, refusal: Refusal::new(Code::Busy, "too many clients") };
    let error = greeted_with(&encoded(&refusal)).await;
    assert_eq!(error.refusal().unwrap().code, Code::Busy);

    let error = greeted_with(b"HTTP/1.1 400 Bad Request\r\n").await;
    assert!(matches!(error, Error::Protocol(_)), "{error}");

    let error = greeted_with(&encoded(&Frame::Ready)).await;
    assert!(matches!(error, Error::Protocol(_)), "{error}");

    let error = greeted_with(b"").await;
    assert!(matches!(error, Error::Lost(Loss::Ended)), "{error}");

    let error = greeted_with(b"\0\0").await;
    assert!(matches!(error, Error::Lost(Loss::MidFrame)), "{error}");
}

#[tokio::test]
async fn a_daemon_that_does_not_greet_is_not_awaited_for_ever() {
    let fake = Fake::bind();
    let error = refused(fake.options().connect_timeout(Duration::from_millis(20))).await;
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
}

/// How a request ends when the daemon sends these bytes instead of an answer,
/// and then closes.
async fn answered_with(bytes: impl FnOnce(u64) -> Vec<u8>) -> Error {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let answer = async {
        let id = peer.request().await.id;
        peer.send_bytes(&bytes(id)).await;
        drop(peer);
    };
    let (asked, ()) = tokio::join!(within(client.request::<_, ()>("test:ask", "x")), answer);
    asked.unwrap_err()
}

#[tokio::test]
async fn what_is_no_protocol_ends_the_connection_as_such() {
    for bytes in [
        &b"\xff\xff\xff\xff"[..],
        b"\x00\x00\x00\x01\xc1",
        b"\x00\x00\x00\x00",
        b"{\"event\":\"a:b\"}\n",
        b"\x00\x00\x00\x0c\x81\xa5reply\x81\xa2id\x01\x01",
    ] {
        let error = answered_with(|_| bytes.to_vec()).await;
        assert!(matches!(error, Error::Protocol(_)), "{bytes:?}: {error}");
    }
    let unexpected = |id| encoded(&Frame::Cancel { id }).to_vec();
    let error = answered_with(unexpected).await;
    assert!(error.to_string().contains("cancel"), "{error}");
}

#[tokio::test]
async fn an_answer_before_garbage_counts() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let answer = async {
        let id = peer.request().await.id;
        let mut bytes = encoded(&Frame::Reply { id, data: text("answer") });
        bytes.extend_from_slice(b"\x00\x00\x00\x01\xc1");
        peer.send_bytes(&bytes).await;
    };
    let (asked, ()) = tokio::join!(within(client.request::<_, String>("test:ask", "x")), answer);
    assert_eq!(asked.unwrap(), "answer");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_a_loss() {
    let error = answered_with(|id| {
        let mut bytes = encoded(&Frame::Reply { id, data: text("answer") });
        bytes.truncate(bytes.len() - 1);
        bytes.to_vec()
    })
    .await;
    assert!(matches!(error, Error::Lost(Loss::MidFrame)), "{error}");
}

#[tokio::test]
async fn a_daemon_that_says_why_it_closes_is_heard() {
    let refusal = Refusal::new(Code::ShuttingDown, "good night");
    let farewell = Frame::Refusal { id: None, refusal: refusal.clone() };
    let error = answered_with(|_| encoded(&farewell).to_vec()).await;
    assert!(matches!(&error, Error::Lost(Loss::Refused(said)) if *said == refusal), "{error}");
}

#[tokio::test]
async fn frames_may_come_a_byte_at_a_time() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let trickle = async {
        let id = peer.request().await.id;
        for byte in encoded(&Frame::Reply { id, data: text("slowly") }) {
            peer.send_bytes(&[byte]).await;
            tokio::task::yield_now().await;
        }
    };
    let (asked, ()) = tokio::join!(within(client.request::<_, String>("test:ask", "x")), trickle);
    assert_eq!(asked.unwrap(), "slowly");
}

#[tokio::test]
async fn answers_to_what_was_never_asked_are_ignored() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    for id in [0, 1, u64::MAX] {
        peer.reply(id, text("?")).await;
        peer.send(&Frame::Chunk { id, data: text("?") }).await;
        peer.send(&Frame::Accepted { id, request_id: "work-1".into(), seq: 1 }).await;
    }
    peer.barrier(&client).await;
}
