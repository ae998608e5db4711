//! Requests of a plugin's own, and their answers.

use std::{future::poll_fn, rc::Rc, task::Poll, time::Duration};

use ksi_abi::Kind;
use ksi_protocol::{Code, EventName, Refusal};
use serde::de::DeserializeOwned;

use crate::{
    core::{Core, Incoming},
    link::{Outgoing, send},
};

/// How to ask.
#[derive(Debug, Clone, Default)]
pub struct CallOptions {
    /// Time that the answer may take; without it the event's own.
    pub timeout: Option<Duration>,
    /// Two requests with one key are one request.
    pub idempotency_key: Option<String>,
    /// Whether the request goes on when the one on whose behalf it is asked
    /// ends. Needed by work that outlives its request.
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
        Some(match self.incoming().await? {
            Incoming::Chunk(data) => ksi_protocol::decode(&data).map(Part::Chunk),
            Incoming::Reply(data) | Incoming::End(data) => ksi_protocol::decode(&data).map(Part::End),
            Incoming::Refusal(refusal) => Err(refusal),
            Incoming::Accepted(request_id, seq) => {
                let accepted = serde_json::json!({ "request_id": request_id, "seq": seq });
                ksi_protocol::json::from_json(&accepted)
                    .and_then(|data| ksi_protocol::decode(&data))
                    .map(Part::End)
            }
        })
    }

    /// Waits for the end, passing over chunks.
    pub(crate) async fn last<E: DeserializeOwned>(mut self) -> Result<E, Refusal> {
        loop {
            match self.next::<serde::de::IgnoredAny, E>().await {
                Some(Ok(Part::End(end))) => return Ok(end),
                Some(Ok(Part::Chunk(_))) => {}
                Some(Err(refusal)) => return Err(refusal),
                None => return Err(Refusal::new(Code::Internal, "the answer had no end")),
            }
        }
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.core.close_call(self.id, self.ended);
    }
}
