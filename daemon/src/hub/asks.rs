//! What the daemon itself asks of plugins, and waits for.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use ksi_kernel::{Answer, Ask};
use ksi_protocol::{Bytes, Code, EventName, Refusal, frame::Id};
use tokio::sync::oneshot;

use super::Hub;
use crate::woken;

/// Requests of the daemon that have no answer yet.
#[derive(Debug, Default)]
pub(super) struct Asks {
    next: AtomicU64,
    waiting: Mutex<HashMap<Id, oneshot::Sender<Result<Bytes, Refusal>>>>,
}

impl Asks {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Id, oneshot::Sender<Result<Bytes, Refusal>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands an answer to whoever waits for it.
    pub(super) fn answered(&self, id: Id, answer: Answer) {
        let answer = match answer {
            Answer::Reply(data) | Answer::End(data) => Ok(data),
            Answer::Refusal(refusal) => Err(*refusal),
            // Parts and acceptances are not asked for, and an end follows.
            Answer::Chunk(_) | Answer::Accepted { .. } => return,
        };
        woken::note();
        if let Some(waiting) = self.lock().remove(&id) {
            // Who has given up does not want it.
            let _ = waiting.send(answer);
        }
    }
}

impl Hub {
    /// Asks the owner of an event on behalf of the daemon.
    ///
    /// # Errors
    ///
    /// As the owner or the kernel refuses.
    pub async fn ask(&self, event: EventName, data: Bytes) -> Result<Bytes, Refusal> {
        let id = self.asks.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.asks.lock().insert(id, sender);
        let mut turn = self.turn();
        turn.request(self.daemon(), Ask::new(id, event, data));
        turn.end();
        let gone = || Refusal::new(Code::Internal, "the request has ended without an answer");
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}
