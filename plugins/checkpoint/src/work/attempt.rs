//! Attempts: the request to the owner of the event, and its answer.

use std::{pin::pin, rc::Rc, time::Duration};

use futures_channel::oneshot;
use futures_util::future::{Either, select};
use ksi_sdk::{
    Answers, ForwardOptions, Part,
    prelude::{Code, Refusal},
    protocol::{Bytes, frame::Caller, limits::FRAME_BYTES_MAX},
};

use super::Work;
use crate::{
    ledger::{Id, Run},
    record::Seq,
};

/// Largest result. What is said about the work must fit into one frame with it.
const RESULT_BYTES_MAX: usize = FRAME_BYTES_MAX - 64 * 1024;

/// An attempt that is to begin once its lease is durable.
pub(super) struct Start {
    pub(super) run: Run,
    pub(super) seq: Seq,
    /// What is asked, where it needs not be read back.
    pub(super) payload: Option<Bytes>,
    /// Resolves when nobody wants the attempt any more.
    pub(super) abandoned: oneshot::Receiver<()>,
}

impl Work {
    /// Begins attempts, one after the other: so they are asked for in the order
    /// in which they were leased.
    pub(super) async fn begin_attempts(self: Rc<Self>) {
        while !self.stopped.get() {
            let next = self.starts.borrow_mut().pop_front();
            match next {
                Some(start) => self.begin(start).await,
                None => {
                    self.bell.set(None);
                    self.bell.rung().await;
                }
            }
        }
    }

    async fn begin(self: &Rc<Self>, start: Start) {
        let Start { run, seq, payload, mut abandoned } = start;
        // It is begun only once it is known that it was.
        if let Err(refusal) = self.engine.durable(seq).await {
            return self.journal_stopped(&refusal);
        }
        let (id, lease) = (run.id, run.lease);
        let asked = self.ask(run, payload).await;
        if !matches!(abandoned.try_recv(), Ok(None)) {
            return;
        }
        match asked {
            Ok(answers) => self.ctx.spawn(self.clone().see_through(id, lease, answers, abandoned)),
            Err(refusal) => self.answered(id, lease, Err(refusal)),
        }
    }

    /// Asks the owner.
    async fn ask(&self, run: Run, payload: Option<Bytes>) -> Result<Answers, Refusal> {
        let payload = match payload {
            Some(payload) => payload,
            None => self.engine.get(&run.id.payload_key()).await?.ok_or_else(lost)?,
        };
        let options = ForwardOptions {
            origin: Some(run.origin),
            caller: run.principal.map(|principal| Caller {
                principal,
                tenant: run.tenant,
                every_tenant: false,
            }),
            idempotency_key: Some(run.id.to_string()),
            correlation_id: run.correlation_id,
            timeout: Some(Duration::from_millis(run.timeout_ms)),
            detached: true,
        };
        self.ctx.forward(&run.event, payload, options)
    }

    /// Sees an attempt through to its answer, unless it is abandoned.
    async fn see_through(
        self: Rc<Self>,
        id: Id,
        lease: u32,
        answers: Answers,
        abandoned: oneshot::Receiver<()>,
    ) {
        match select(pin!(self.last(id, lease, answers)), abandoned).await {
            Either::Left((answer, _)) => self.answered(id, lease, answer),
            // Dropping the request cancels it.
            Either::Right(_) => {}
        }
    }

    fn answered(self: &Rc<Self>, id: Id, lease: u32, answer: Result<Bytes, Refusal>) {
        self.abandon(id, lease);
        let step = self.ledger.borrow_mut().outcome(self.now(), id, lease, answer);
        // A step that found no room waits in the backlog; if the journal has
        // stopped, the next start finds the attempt broken off.
        let _ = self.carry(step);
    }

    /// The last answer. Parts before it only show that the handler is alive.
    async fn last(&self, id: Id, lease: u32, mut answers: Answers) -> Result<Bytes, Refusal> {
        loop {
            match answers.next_raw().await {
                Some(Ok(Part::Chunk(_))) => self.ledger.borrow_mut().heartbeat(self.now(), id, lease),
                Some(Ok(Part::End(result))) if result.len() > RESULT_BYTES_MAX => {
                    return Err(too_large(result.len()));
                }
                Some(Ok(Part::End(result))) => return Ok(result),
                Some(Err(refusal)) => return Err(refusal),
                None => return Err(Refusal::new(Code::Internal, "the answer had no end")),
            }
        }
    }
}

fn lost() -> Refusal {
    Refusal::new(Code::Internal, "what was asked is not there any more")
        .hint("`ksi checkpoint verify` looks for damage")
}

fn too_large(bytes: usize) -> Refusal {
    let message = format!("the result of {bytes} bytes is larger than the {RESULT_BYTES_MAX} that are kept");
    Refusal::new(Code::TooLarge, message).hint("ask for less, or have it written to a file")
}
