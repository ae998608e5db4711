//! One attempt: the request to the owner of the event, and its answer.

use std::{pin::pin, rc::Rc, time::Duration};

use futures_channel::oneshot;
use futures_util::future::{Either, select};
use ksi_sdk::{
    ForwardOptions, Part,
    prelude::{Code, Refusal},
    protocol::{Bytes, limits::FRAME_BYTES_MAX},
};

use super::Work;
use crate::{ledger::Run, record::Seq};

/// Largest result. What is said about the work must fit into one frame with it.
const RESULT_BYTES_MAX: usize = FRAME_BYTES_MAX - 64 * 1024;

impl Work {
    /// Sees an attempt through to its answer, unless it is abandoned.
    pub(super) async fn attempt(
        self: Rc<Self>,
        run: Run,
        seq: Seq,
        payload: Option<Bytes>,
        abandoned: oneshot::Receiver<()>,
    ) {
        // It is begun only once it is known that it was.
        if let Err(refusal) = self.engine.durable(seq).await {
            return self.journal_stopped(&refusal);
        }
        let (id, lease) = (run.id, run.lease);
        let answer = match select(pin!(self.ask(run, payload)), abandoned).await {
            Either::Left((answer, _)) => answer,
            // Dropping the request cancels it.
            Either::Right(_) => return,
        };
        self.abandon(id, lease);
        let step = self.ledger.borrow_mut().outcome(self.now(), id, lease, answer);
        // A step that found no room waits in the backlog; if the journal has
        // stopped, the next start finds the attempt broken off.
        let _ = self.carry(step);
    }

    /// Asks the owner, and passes over parts: they only show that it is alive.
    async fn ask(&self, run: Run, payload: Option<Bytes>) -> Result<Bytes, Refusal> {
        let payload = match payload {
            Some(payload) => payload,
            None => self.engine.get(&run.id.payload_key()).await?.ok_or_else(lost)?,
        };
        let options = ForwardOptions {
            origin: Some(run.origin),
            idempotency_key: Some(run.id.to_string()),
            correlation_id: run.correlation_id,
            timeout: Some(Duration::from_millis(run.timeout_ms)),
            detached: true,
        };
        let mut answers = self.ctx.forward(&run.event, payload, options)?;
        loop {
            match answers.next_raw().await {
                Some(Ok(Part::Chunk(_))) => {
                    self.ledger.borrow_mut().heartbeat(self.now(), run.id, run.lease);
                }
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
