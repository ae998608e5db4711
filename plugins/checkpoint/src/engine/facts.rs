//! Facts: records that are nothing but told, and told again to those who follow.

use std::task::{Poll, Waker};

use ksi_sdk::protocol::Refusal;

use super::{Engine, FactPage, thread::Job};
use crate::{
    journal::SegmentStat,
    record::{FACTS, Fact, Record, Seq},
};

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

/// First position of the oldest segment that is kept for its facts: the newest segments, together of no more
/// than so many bytes, are. [`Seq::MAX`] where none of them has a fact.
pub(super) fn floor(segments: &[SegmentStat], keep_bytes: u64) -> Seq {
    let mut bytes = 0;
    let mut floor = Seq::MAX;
    for segment in segments.iter().rev() {
        bytes += segment.bytes;
        if bytes > keep_bytes {
            break;
        }
        if segment.kinds & FACTS != 0 {
            floor = segment.first;
        }
    }
    floor
}

#[cfg(test)]
mod tests {
    use ksi_sdk::protocol::EventName;

    use super::*;

    #[test]
    fn segments_with_facts_are_kept_up_to_a_limit_and_others_are_not() {
        let fact = Fact {
            at_ms: 1,
            event: EventName::parse("a:b").unwrap(),
            origin: "test".into(),
            correlation_id: None,
            tenant: None,
            data: "x".into(),
        };
        let ours = Fact { tenant: Some("a".into()), ..fact.clone() };
        let first = |fact| Record::Fact(fact).encode()[0];
        assert_eq!(
            FACTS,
            1 << first(fact) | 1 << first(ours),
            "the bits are those of the records' first bytes"
        );
        let segment = |number: u64, kinds| SegmentStat {
            name: format!("{number}"),
            first: number * 10 + 1,
            last: number * 10 + 10,
            bytes: 100,
            begun_ms: 0,
            kinds,
            damaged: false,
        };
        let changes = 1 << 1;
        let segments: Vec<_> = [FACTS, FACTS | changes, changes, FACTS, changes]
            .into_iter()
            .zip(0..)
            .map(|(kinds, number)| segment(number, kinds))
            .collect();
        // The newest count whether they have facts or not, and none goes from between others.
        for (keep_bytes, first) in [
            (0, Seq::MAX),
            (100, Seq::MAX),
            (199, Seq::MAX),
            (200, 31),
            (399, 31),
            (400, 11),
            (499, 11),
            (500, 1),
            (1000, 1),
        ] {
            assert_eq!(floor(&segments, keep_bytes), first, "{keep_bytes} bytes");
        }
        assert_eq!(floor(&[], 100), Seq::MAX);
    }
}
