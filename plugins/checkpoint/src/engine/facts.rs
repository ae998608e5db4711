//! Facts: records that are nothing but told, and told again to those who follow.

use std::task::{Poll, Waker};

use ksi_sdk::protocol::Refusal;

use super::{Engine, FactPage, thread::Job};
use crate::record::{Fact, Record, Seq};

impl Engine {
    /// Journals a fact.
    ///
    /// # Errors
    ///
    /// As [`Engine::commit`].
    pub fn append_fact(&self, fact: Fact) -> Result<Seq, Refusal> {
        let seq = self.submit(&mut Record::Fact(fact))?;
        self.last_fact.set(seq);
        self.fact_wakers.take().into_iter().for_each(Waker::wake);
        Ok(seq)
    }

    /// Synced facts from a position on, as many as a page holds.
    ///
    /// # Errors
    ///
    /// `unavailable` where the journal cannot be read.
    pub async fn facts(&self, from: Seq, limit: usize) -> Result<FactPage, Refusal> {
        self.ask(|answer| Job::Facts { from, limit, answer }).await
    }

    /// Resolves when there is a synced fact after `seq`, with the position of the newest. After an opening
    /// it resolves once without one: then nobody knows yet which of the records were facts.
    ///
    /// # Errors
    ///
    /// `unavailable` where the journal has stopped.
    pub async fn fact_after(&self, seq: Seq) -> Result<Seq, Refusal> {
        let told = std::future::poll_fn(|cx| {
            if self.last_fact.get() > seq {
                return Poll::Ready(Ok(self.last_fact.get()));
            }
            if let Some(refusal) = self.shared.stopped() {
                return Poll::Ready(Err(refusal));
            }
            let mut wakers = self.fact_wakers.borrow_mut();
            if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                wakers.push(cx.waker().clone());
            }
            Poll::Pending
        });
        let told = told.await?;
        self.durable(told).await?;
        Ok(told)
    }
}
