//! Tests of whom a turn tells first, and that each hears everything in order.

use std::{io::Read, os::unix::net::UnixStream as Peer};

use bytes::BytesMut;
use ksi_identity::Authority;
use ksi_kernel::{Answer, Emission, Quota, Role};
use ksi_protocol::{
    EventName, Frame, Pattern, empty,
    frame::{Class, Id},
    json::from_json,
};
use serde_json::{Value, json};
use tokio::net::UnixStream;

use super::*;
use crate::{
    config::Share,
    hub::{Delivery, Hub, Port, testing::hub},
    session::{account::Accounts, face::Face},
    wire::Flushed,
};

const SUB: Id = 7;

/// One who listens to `a:b`, and its end of the socket.
struct Reader {
    port: Arc<Port>,
    outbox: Arc<Outbox>,
    peer: Peer,
    input: BytesMut,
}

impl Reader {
    async fn new(hub: &Hub, accounts: &Accounts) -> Self {
        let (ours, peer) = Peer::pair().unwrap();
        for end in [&ours, &peer] {
            end.set_nonblocking(true).unwrap();
        }
        let ours = UnixStream::from_std(ours).unwrap();
        ours.writable().await.unwrap();
        let outbox = Arc::new(Outbox::new(ours, Face::Frames, accounts.of("uid:1"), Arc::default()));
        let authority = Authority::full("session:1");
        let port =
            hub.kernel.attach(Role::Client, Handle::Session(outbox.clone()), Quota::default(), authority);
        hub.kernel.subscribe(&port, SUB, Pattern::parse("a:b").unwrap(), Class::Live, 0).unwrap();
        outbox.open_sub(SUB, &Frame::Reply { id: SUB, data: empty() });
        Self { port, outbox, peer, input: BytesMut::new() }
    }

    /// Fills the socket.
    fn freeze(&self) {
        while self.outbox.flush() != Flushed::Blocked {
            self.outbox.frame(&Frame::Reply { id: 0, data: vec![0xc0; 4096].into() });
        }
    }

    /// What has come so far: the texts of events, and `answer`.
    async fn heard(&mut self) -> Vec<String> {
        let mut part = vec![0; 1 << 20];
        while let Ok(read @ 1..) = self.peer.read(&mut part) {
            self.input.extend_from_slice(&part[..read]);
            self.outbox.socket.writable().await.unwrap();
            self.outbox.resume();
        }
        let mut heard = Vec::new();
        while let Some(frame) = Frame::split(&mut self.input).unwrap() {
            match frame {
                Frame::Event(event) => {
                    heard.push(ksi_protocol::json::to_json(&event.data).unwrap().to_string());
                }
                Frame::End { .. } => heard.push("answer".into()),
                _ => {}
            }
        }
        heard
    }
}

fn tell(turn: &mut Turn<'_>, what: &Value) {
    let event = EventName::parse("a:b").unwrap();
    let daemon = turn.hub().daemon().clone();
    turn.emit(&daemon, Emission::new(event, from_json(what).unwrap())).unwrap();
}

fn answer() -> Delivery {
    let event = EventName::parse("a:c").unwrap();
    Delivery::Answer { id: 1, token: 1, event, answer: Answer::End(empty()), correlation_id: None }
}

#[tokio::test]
async fn who_does_not_read_hears_once_all_others_are_written_to() {
    let (hub, accounts) = (hub(), Accounts::new(Share::default(), 2));
    let (mut frozen, mut healthy) = (Reader::new(&hub, &accounts).await, Reader::new(&hub, &accounts).await);
    frozen.freeze();
    let mut turn = hub.turn();
    tell(&mut turn, &json!(1));
    turn.write();
    assert_eq!(healthy.heard().await, ["1"]);
    assert!(frozen.outbox.hears_late() && !turn.late.is_empty());
    turn.end();
    assert_eq!(frozen.heard().await, ["1"]);
    assert!(!frozen.outbox.hears_late(), "it reads now");
}

#[tokio::test]
async fn one_that_begins_to_read_in_the_middle_of_a_turn_hears_everything_in_order() {
    let (hub, accounts) = (hub(), Accounts::new(Share::default(), 2));
    let mut reader = Reader::new(&hub, &accounts).await;
    reader.freeze();
    let mut turn = hub.turn();
    tell(&mut turn, &json!(1));
    assert_eq!(reader.heard().await, [""; 0]);
    assert_eq!(reader.outbox.flush(), Flushed::Done, "it reads");
    tell(&mut turn, &json!(2));
    turn.deliver(&reader.port, answer());
    tell(&mut turn, &json!(3));
    turn.end();
    assert_eq!(reader.heard().await, ["1", "2", "answer", "3"]);
}

#[tokio::test]
async fn a_turn_puts_off_only_so_much_and_nothing_in_a_clients_own() {
    let (hub, accounts) = (hub(), Accounts::new(Share::default(), 2));
    let mut reader = Reader::new(&hub, &accounts).await;
    reader.freeze();
    let mut turn = hub.turn_of(&reader.outbox);
    tell(&mut turn, &json!(1));
    assert!(turn.late.is_empty());
    turn.end();
    let mut turn = hub.turn();
    for _ in 0..=LATE_MAX {
        tell(&mut turn, &json!(2));
    }
    assert!(turn.late.is_empty());
    turn.end();
    assert_eq!(reader.heard().await.len(), LATE_MAX + 2);
}
