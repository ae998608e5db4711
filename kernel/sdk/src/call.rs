//! Requests of a plugin's own, and their answers.

use std::{future::poll_fn, rc::Rc, task::Poll, time::Duration};

use ksi_abi::Kind;
use ksi_protocol::{Bytes, Code, EventName, Refusal, frame::Caller, work::Accepted};
use serde::de::DeserializeOwned;

use crate::{
    core::{Core, Incoming},
    link::{Outgoing, encode, send},
};

/// How to ask.
#[derive(Debug, Clone, Default)]
pub struct CallOptions {
    /// Time that the answer may take; without it the event's own.
    pub timeout: Option<Duration>,
    /// Of a durable event, two requests with one key are one request.
    pub idempotency_key: Option<String>,
    /// Of a durable event: time after its acceptance from which it is not begun any
    /// more; without it, and at most, what the event declares.
    pub expires_in: Option<Duration>,
    /// Whether the request goes on when the one on whose behalf it is asked
    /// ends. Needed by work that outlives its request. What is asked so is asked
    /// in the plugin's own name.
    pub detached: bool,
    /// Whether whoever the plugin answers must hold what this takes, too. A
    /// plugin asks with its own rights; one that asks whatever it is told to must
    /// set this, or it lends them to everybody.
    pub on_behalf: bool,
}

/// How to ask with a payload that is passed on as it is.
#[derive(Debug, Clone, Default)]
pub struct ForwardOptions {
    /// Who asked in the first place. The daemon heeds it from the plugin that
    /// keeps work, under a durable event, and from nobody else.
    pub origin: Option<String>,
    /// In whose name: what the context of the kept request said. As `origin`.
    pub caller: Option<Caller>,
    /// Of a durable event, two requests with one key are one request.
    pub idempotency_key: Option<String>,
    /// What it belongs to; without it, what the context belongs to.
    pub correlation_id: Option<String>,
    /// As in [`CallOptions`].
    pub timeout: Option<Duration>,
    /// As in [`CallOptions`].
    pub detached: bool,
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part<C, E> {
    /// One of several.
    Chunk(C),
    /// The last, or the only one.
    End(E),
}

/// The answers to one request. Dropping it before the end cancels the
/// request.
pub struct Answers {
    core: Rc<Core>,
    id: u64,
    ended: bool,
}

impl Answers {
    pub(crate) fn open(
        core: &Rc<Core>,
        event: &EventName,
        payload: &[u8],
        meta: &[u8],
    ) -> Result<Self, Refusal> {
        let id = core.next_id();
        core.calls.borrow_mut().insert(id, Default::default());
        let mut answers = Self { core: core.clone(), id, ended: false };
        let message = Outgoing { name: event.as_str(), payload, meta, ..Outgoing::new(Kind::Request, id) };
        send(&core.link, &message).inspect_err(|_| answers.ended = true)?;
        Ok(answers)
    }

    async fn incoming(&mut self) -> Option<Incoming> {
        if self.ended {
            return None;
        }
        let answer = poll_fn(|cx| {
            let mut calls = self.core.calls.borrow_mut();
            let slot = calls.get_mut(&self.id).expect("the slot lives as long as these answers");
            match slot.answers.pop_front() {
                Some(answer) => Poll::Ready(answer),
                None => {
                    slot.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await;
        self.ended = !matches!(answer, Incoming::Chunk(_));
        Some(answer)
    }

    /// The next part, or `None` after the last.
    pub async fn next<C: DeserializeOwned, E: DeserializeOwned>(
        &mut self,
    ) -> Option<Result<Part<C, E>, Refusal>> {
        Some(self.next_raw().await?.and_then(|part| match part {
            Part::Chunk(data) => ksi_protocol::decode(&data).map(Part::Chunk),
            Part::End(data) => ksi_protocol::decode(&data).map(Part::End),
        }))
    }

    /// The same, each part as the payload that it is. That a durable request is
    /// safe is an end: a [`ksi_protocol::work::Accepted`].
    pub async fn next_raw(&mut self) -> Option<Result<Part<Bytes, Bytes>, Refusal>> {
        Some(match self.incoming().await? {
            Incoming::Chunk(data) => Ok(Part::Chunk(data)),
            Incoming::Reply(data) | Incoming::End(data) => Ok(Part::End(data)),
            Incoming::Refusal(refusal) => Err(refusal),
            Incoming::Accepted(request_id, seq) => encode(&Accepted { request_id, seq }).map(Part::End),
        })
    }

    /// Waits for the end, passing over chunks, and returns it as the payload
    /// that it is.
    ///
    /// # Errors
    ///
    /// The refusal that ended it instead.
    pub async fn last_raw(mut self) -> Result<Bytes, Refusal> {
        loop {
            match self.next_raw().await {
                Some(Ok(Part::End(end))) => return Ok(end),
                Some(Ok(Part::Chunk(_))) => {}
                Some(Err(refusal)) => return Err(refusal),
                None => return Err(Refusal::new(Code::Internal, "the answer had no end")),
            }
        }
    }

    pub(crate) async fn last<E: DeserializeOwned>(self) -> Result<E, Refusal> {
        ksi_protocol::decode(&self.last_raw().await?)
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.core.close_call(self.id, self.ended);
    }
}
