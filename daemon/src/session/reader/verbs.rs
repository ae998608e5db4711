//! What the verbs of a client do, through whichever face they come. A face cuts and
//! parses what was read, calls one of these, and writes in its own way what comes of it.

use ksi_kernel::{Ask, Emission};
use ksi_protocol::{
    EventName, PROTOCOL_VERSION, Refusal,
    frame::{Id, Welcome},
    token::Token,
};

use super::{Next, Session};
use crate::{hub::Turn, wire::check_size};

impl Session<'_> {
    /// Lets the client in, in the name of a token where it shows one.
    pub(super) fn greet(&self, token: Option<&Token>) -> Result<Welcome, Refusal> {
        let port = self.seat.take(token)?;
        Ok(Welcome {
            version: PROTOCOL_VERSION,
            server: concat!("ksid ", env!("CARGO_PKG_VERSION")).into(),
            features: vec!["latest".into(), "credit".into(), "durable".into()],
            session: (*port.origin).to_owned(),
            boot: self.hub.boot.clone(),
        })
    }

    /// Asks; the last answer comes in its own time.
    pub(super) fn ask(&self, mut ask: Ask, turn: &mut Turn<'_>) -> Result<(), Refusal> {
        check_size(&ask.data, [ask.correlation_id.as_deref(), ask.idempotency_key.as_deref()])?;
        self.may_ask(&ask.event, turn)?;
        self.outbox.begin(ask.id, ask.credit)?;
        // A client has no parent to speak for, and nothing leads to it.
        (ask.parent, ask.chain) = (None, None);
        self.outbox.owe();
        turn.request(self.seat.port(), ask);
        Ok(())
    }

    /// Whether its user has room for a request. Who administers what the daemon
    /// itself answers finds room there at all times, and can see to the rest.
    fn may_ask(&self, event: &EventName, turn: &Turn<'_>) -> Result<(), Refusal> {
        let principal = &self.seat.port().authority.caller.principal;
        self.outbox.account().may_ask(turn.now_ms()).or_else(|busy| {
            let administers = self.hub.administers(principal, event, turn.now_ms());
            if administers { Ok(()) } else { Err(busy) }
        })
    }

    /// Tells; how many were told.
    pub(super) fn tell(&self, emission: Emission, turn: &mut Turn<'_>) -> Result<usize, Refusal> {
        self.outbox.account().may_send(turn.now_ms())?;
        turn.emit(self.seat.port(), emission)
    }

    pub(super) fn cancel(&self, id: Id, turn: &mut Turn<'_>) {
        turn.cancel(self.seat.port(), id);
        self.outbox.give_up(id);
    }

    pub(super) fn credit(&self, id: Id, n: u32, turn: &mut Turn<'_>) {
        self.outbox.add_credit(id, n);
        turn.credit(self.seat.port(), id, n);
    }

    /// Says of something that the client has opened that it is refused, where it is.
    pub(super) fn or_refuse(&self, id: Id, done: Result<(), Refusal>) {
        if let Err(refusal) = done {
            self.outbox.refuse(Some(id), refusal);
        }
    }
}

/// With a token another account pays from now on, so this turn, which has its place
/// from the one before, ends.
pub(super) fn after_hello(token: Option<&Token>) -> Next {
    if token.is_some() { Next::Yield } else { Next::Read }
}
