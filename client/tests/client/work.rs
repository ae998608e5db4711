//! Durable work: submitted, lost sight of, and waited for.

use std::time::Duration;

use ksi_client::{Client, Code, Error, Options, Refusal, WorkInfo, WorkState};
use ksi_protocol::{
    EventName, Frame, Payload,
    frame::Request,
    work::{Accepted, WaitWork},
};

use crate::fake::{Fake, Peer, text, within};

fn accepted(id: u64) -> Frame {
    Frame::Accepted { id, request_id: "work-1".into(), seq: 42 }
}

fn info(state: WorkState) -> WorkInfo {
    WorkInfo {
        principal: None,
        tenant: None,
        request_id: "work-1".into(),
        seq: 42,
        event: EventName::parse("test:keep").unwrap(),
        state,
        attempts: 1,
        crashes: 0,
        origin: "session:1".into(),
        correlation_id: None,
        idempotency_key: None,
        accepted_ms: 1,
        expires_ms: None,
        until_ms: None,
        ended_ms: state.is_end().then_some(2),
        result: (state == WorkState::Done).then(|| Payload(text("result"))),
        refusal: None,
    }
}

/// The next request, which must be a wait.
async fn asked(peer: &mut Peer) -> (Request, WaitWork) {
    let request = peer.request().await;
    assert_eq!(request.event.as_str(), "work:wait");
    let wait = ksi_protocol::decode(&request.data).unwrap();
    (request, wait)
}

async fn say(peer: &mut Peer, request: &Request, state: WorkState) {
    peer.reply(request.id, ksi_protocol::encode(&info(state)).unwrap()).await;
}

#[tokio::test]
async fn submitted_work_is_accepted_under_its_key() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let accept = async {
        let request = peer.request().await;
        assert_eq!(request.idempotency_key.as_deref(), Some("order-7"));
        assert_eq!(request.data, text("it"));
        peer.send(&accepted(request.id)).await;
    };
    let (submitted, ()) = tokio::join!(within(client.submit("test:keep", "it", Some("order-7"))), accept);
    assert_eq!(submitted.unwrap(), Accepted { request_id: "work-1".into(), seq: 42 });
    // It is over: nothing is cancelled.
    peer.barrier(&client).await;
}

#[tokio::test]
async fn a_plain_request_of_a_durable_event_is_answered_with_its_acceptance() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let accept = async {
        let id = peer.request().await.id;
        peer.send(&accepted(id)).await;
    };
    let (asked, ()) = tokio::join!(within(client.request::<_, Accepted>("test:keep", "it")), accept);
    assert_eq!(asked.unwrap().request_id, "work-1");
}

#[tokio::test]
async fn what_is_answered_at_once_was_not_durable() {
    let fake = Fake::bind();
    let (client, peer) = fake.connect().await;
    let peer = tokio::spawn(peer.echo());
    let submitted = within(client.submit("test:say", "it", None)).await;
    assert!(matches!(&submitted, Err(Error::NotDurable { event }) if event == "test:say"), "{submitted:?}");
    drop(client);
    within(peer).await.unwrap();
}

#[tokio::test]
async fn a_wait_goes_on_over_restarts_and_gives_the_result() {
    let mut fake = Fake::bind();
    let (client, mut peer) = fake.connect_with(Options::new(fake.socket())).await;
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { within(client.wait("work-1", None)).await }
    });
    let (_, wait) = asked(&mut peer).await;
    assert_eq!(wait.request_id, "work-1");
    drop(peer);
    fake.boot = "second".into();
    peer = fake.accept().await;
    for code in [Code::Unavailable, Code::ShuttingDown, Code::PluginRestarted, Code::Timeout] {
        let (request, _) = asked(&mut peer).await;
        let refusal = Refusal::new(code, "not now");
        peer.send(&Frame::Refusal { id: Some(request.id), refusal }).await;
    }
    let (request, _) = asked(&mut peer).await;
    say(&mut peer, &request, WorkState::Leased).await;
    let (request, _) = asked(&mut peer).await;
    say(&mut peer, &request, WorkState::Done).await;
    let outcome = within(waiting).await.unwrap().unwrap();
    assert_eq!(outcome.decode::<String>().unwrap(), "result");
    assert_eq!(outcome.info().seq, 42);
}

#[tokio::test]
async fn a_wait_has_a_limit_which_the_daemon_is_told() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let limit = Duration::from_millis(40);
    let answer = async {
        loop {
            let (request, wait) = asked(&mut peer).await;
            assert!(wait.timeout_ms.is_some_and(|ms| ms <= 40), "{wait:?}");
            assert!(request.timeout_ms > wait.timeout_ms, "the daemon's answer comes before its refusal");
            // A daemon that answers too early is asked again.
            say(&mut peer, &request, WorkState::Waiting).await;
        }
    };
    let waited = tokio::select! {
        waited = within(client.wait("work-1", Some(limit))) => waited,
        () = answer => unreachable!("it goes on for ever"),
    };
    assert!(matches!(waited, Err(Error::TimedOut { after }) if after == limit), "{waited:?}");
}

#[tokio::test]
async fn work_that_nobody_knows_is_not_waited_for() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let answer = async {
        let (request, _) = asked(&mut peer).await;
        let refusal = Refusal::not_found("work", "work-1");
        peer.send(&Frame::Refusal { id: Some(request.id), refusal }).await;
    };
    let (waited, ()) = tokio::join!(within(client.wait("work-1", None)), answer);
    assert_eq!(waited.unwrap_err().refusal().unwrap().code, Code::NotFound);
}

#[tokio::test]
async fn without_reconnect_a_wait_ends_with_its_connection() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let lose = async {
        asked(&mut peer).await;
        drop(peer);
    };
    let (waited, ()) = tokio::join!(within(client.wait("work-1", None)), lose);
    assert!(matches!(waited, Err(Error::Lost(_))), "{waited:?}");
}

#[tokio::test]
async fn work_that_failed_says_why() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect().await;
    let answer = async {
        let (request, _) = asked(&mut peer).await;
        let failed = WorkInfo { refusal: Some(Refusal::new(Code::Denied, "no")), ..info(WorkState::Failed) };
        peer.reply(request.id, ksi_protocol::encode(&failed).unwrap()).await;
    };
    let (waited, ()) = tokio::join!(within(client.wait("work-1", None)), answer);
    let error = waited.unwrap().decode::<String>().unwrap_err();
    assert_eq!(error.refusal().unwrap().code, Code::Denied);
}

#[tokio::test]
async fn submitted_work_may_be_lost_with_its_connection_and_submitted_again() {
    let fake = Fake::bind();
    let (client, mut peer) = fake.connect_with(Options::new(fake.socket())).await;
    let submit = |client: Client| async move { within(client.submit("test:keep", "it", Some("k"))).await };
    let first = tokio::spawn(submit(client.clone()));
    peer.request().await;
    drop(peer);
    let error = within(first).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Lost(_)) && error.may_have_arrived(), "{error:?}");
    let mut peer = fake.accept().await;
    let second = tokio::spawn(submit(client.clone()));
    let request = peer.request().await;
    assert_eq!(request.idempotency_key.as_deref(), Some("k"));
    peer.send(&accepted(request.id)).await;
    assert_eq!(within(second).await.unwrap().unwrap().seq, 42);
}
