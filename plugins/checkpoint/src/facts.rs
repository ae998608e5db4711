//! Durable facts: kept in the journal, followed from any position, with a
//! cursor for each consumer that has a name.
//!
//! Whoever follows is told his position first, so that he can go on there before
//! there was a fact.
//!
//! A fact is a record of the journal and nothing else, so it is read where it
//! was written. A follower gets what is kept from its position on, then what
//! comes. Only as much is read ahead as it has room for.
//!
//! # Invariants
//!
//! - A follower gets every matching fact from its position on once, in order,
//!   and is told which positions are not kept any more, or damaged.
//! - Nothing is given out that is not synced.
//! - A consumer's cursor never goes back, and is synced before its
//!   acknowledgement is answered.
//! - One follower at a time has a consumer's name: the newest.
//! - A consumer of which nothing was heard for long is forgotten; one that follows
//!   is not.

mod cursor;
mod sweep;
#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    convert::Infallible,
    pin::pin,
};

use futures_channel::oneshot;
use futures_util::future::{Either, select};
use ksi_sdk::{
    Chunks, Ctx,
    prelude::{Code, JsonSchema, Refusal, Serialize},
    protocol::work::{Ack, Follow, Followed, Kept, Missed},
};

use crate::{
    engine::Engine,
    journal::SegmentStat,
    record::{FACTS, Fact, Seq, keys},
};
use cursor::Cursor;
pub use sweep::sweep;

/// Facts that are read at a time: few, because each may be as long as a frame.
const PAGE: usize = 32;

/// Consumers that are known at a time; one more is refused `busy`.
const CONSUMERS_MAX: usize = 10_000;

/// Who follows under which name.
#[derive(Default)]
pub struct Facts {
    /// How many consumers there are, once they were counted.
    known: Cell<Option<usize>>,
    /// Dropping a sender ends its follower. Gone with the follower, or when a
    /// newer one takes the name.
    consumers: RefCell<HashMap<Vec<u8>, Held>>,
}

struct Held {
    /// Told apart from a newer one's.
    id: u64,
    _until: oneshot::Sender<Infallible>,
}

/// How far a consumer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(crate = "ksi_sdk::prelude::serde")]
#[schemars(crate = "ksi_sdk::prelude::schemars")]
pub struct Acknowledged {
    /// The position up to which it has dealt with every fact.
    pub seq: u64,
}

/// A follower's answer at its end; it has none but a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(crate = "ksi_sdk::prelude::serde")]
#[schemars(crate = "ksi_sdk::prelude::schemars")]
pub struct Unfollowed {}

impl Facts {
    /// Keeps a fact; answers once it is safe. The order of calls is the order
    /// in which it is followed.
    ///
    /// # Errors
    ///
    /// As [`Engine::append_fact`] and [`Engine::durable`].
    pub async fn keep(&self, engine: &Engine, fact: Fact) -> Result<(), Refusal> {
        let seq = engine.append_fact(fact)?;
        engine.durable(seq).await
    }

    /// `checkpoint:follow`: never ends by itself.
    ///
    /// # Errors
    ///
    /// `invalid_payload` for a name that is none, `conflict` once a newer
    /// follower has the name, `cancelled` when nobody listens any more,
    /// `unavailable` where the journal cannot be read or has stopped.
    pub async fn follow(
        &self,
        engine: &Engine,
        ctx: &Ctx,
        ask: Follow,
        out: &Chunks<Followed>,
    ) -> Result<Unfollowed, Refusal> {
        let name = ask.consumer.clone();
        let cursor = name.as_deref().map(|name| cursor::key(ctx.tenant(), name)).transpose()?;
        let taken_over = cursor.as_deref().map(|cursor| self.take(cursor));
        if let Some(key) = cursor.as_deref().filter(|_| ask.since_seq.is_none())
            && engine.latest(key).await?.is_none()
        {
            self.admit(engine).await?;
        }
        let following = pin!(run(engine, ctx.now_ms(), ask, cursor.clone(), out));
        let Some((_holding, taken_over)) = taken_over else { return following.await };
        match select(following, taken_over).await {
            Either::Left((ended, _)) => ended,
            Either::Right(_) => {
                let message =
                    format!("another follower has taken over as `{}`", name.as_deref().unwrap_or_default());
                let hint = "give each consumer that runs at the same time a name of its own";
                Err(Refusal::new(Code::Conflict, message).hint(hint))
            }
        }
    }

    /// `checkpoint:ack`.
    ///
    /// # Errors
    ///
    /// `invalid_payload` for a name that is none or a position that nobody can
    /// have seen, `busy` or `unavailable` where it cannot be written.
    pub async fn ack(&self, engine: &Engine, ctx: &Ctx, ask: Ack) -> Result<Acknowledged, Refusal> {
        let key = cursor::key(ctx.tenant(), &ask.consumer)?;
        let newest = engine.synced_seq();
        if ask.seq > newest {
            let message = format!("`seq` is {}, but nothing after {newest} was given to anybody", ask.seq);
            return Err(Refusal::invalid_payload(message));
        }
        let mut stored = engine.latest(&key).await?;
        if stored.is_none() {
            self.admit(engine).await?;
            stored = engine.latest(&key).await?;
        }
        // Nothing is committed between the last look and the commit.
        let cursor = stored.and_then(|value| Cursor::decode(&value));
        if let Some(cursor) = cursor.filter(|cursor| cursor.seq >= ask.seq) {
            cursor.refresh(engine, key, ctx.now_ms());
            return Ok(Acknowledged { seq: cursor.seq });
        }
        Cursor::at(ask.seq, ctx.now_ms()).write(engine, key).await?;
        Ok(Acknowledged { seq: ask.seq })
    }

    /// Lets a consumer in that is new, unless there are too many. They are counted once, and by each walk.
    async fn admit(&self, engine: &Engine) -> Result<(), Refusal> {
        let known = match self.known.get() {
            Some(known) => known,
            None => engine.scan(&[keys::CURSOR], None, CONSUMERS_MAX).await?.len(),
        };
        if known >= CONSUMERS_MAX {
            return Err(Refusal::new(
                Code::Busy,
                format!("{known} consumers are known, and that is the limit"),
            )
            .hint("use a name again, or wait until those that are not heard of are forgotten"));
        }
        self.known.set(Some(known + 1));
        Ok(())
    }

    /// Takes a consumer's name, of which this is the key, from whoever has it.
    /// The receiver resolves when it is taken again.
    fn take<'a>(&'a self, cursor: &'a [u8]) -> (Holding<'a>, oneshot::Receiver<Infallible>) {
        let (sender, receiver) = oneshot::channel();
        let mut consumers = self.consumers.borrow_mut();
        let id = consumers.get(cursor).map_or(0, |held| held.id + 1);
        consumers.insert(cursor.to_owned(), Held { id, _until: sender });
        (Holding { facts: self, cursor, id }, receiver)
    }
}

/// Gives a name back when its follower goes.
struct Holding<'a> {
    facts: &'a Facts,
    cursor: &'a [u8],
    id: u64,
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        let mut consumers = self.facts.consumers.borrow_mut();
        if consumers.get(self.cursor).is_some_and(|held| held.id == self.id) {
            consumers.remove(self.cursor);
        }
    }
}

/// Gives out facts until something refuses.
async fn run(
    engine: &Engine,
    now_ms: u64,
    ask: Follow,
    cursor: Option<Vec<u8>>,
    out: &Chunks<Followed>,
) -> Result<Unfollowed, Refusal> {
    let mut from = begin(engine, now_ms, &ask, cursor).await?;
    // An empty gap is nothing to miss: it says where the follower stands.
    give(out, &missed((from, from - 1))).await?;
    loop {
        let page = engine.facts(from, PAGE).await?;
        if page.first_kept > from {
            give(out, &missed((from, page.first_kept - 1))).await?;
            from = page.first_kept;
        }
        let mut holes = page.holes.into_iter().peekable();
        for (seq, fact) in page.facts {
            while let Some(hole) = holes.next_if(|(hole, _)| *hole < seq) {
                give(out, &missed(hole)).await?;
            }
            if seq >= from && ask.pattern.matches(fact.event.as_str()) {
                give(out, &Followed::Fact(kept(seq, fact))).await?;
            }
        }
        for hole in holes {
            give(out, &missed(hole)).await?;
        }
        if page.next > from {
            from = page.next;
        } else {
            engine.fact_after(from - 1).await?;
        }
    }
}

/// Where a follower begins.
async fn begin(engine: &Engine, now_ms: u64, ask: &Follow, cursor: Option<Vec<u8>>) -> Result<Seq, Refusal> {
    let coming = engine.next_seq();
    let Some(key) = cursor else { return Ok(ask.since_seq.unwrap_or(coming).max(1)) };
    let cursor = engine.latest(&key).await?.and_then(|value| Cursor::decode(&value));
    if let Some(cursor) = cursor {
        cursor.refresh(engine, key.clone(), now_ms);
    }
    match (ask.since_seq, cursor) {
        (Some(since), _) => Ok(since.max(1)),
        (None, Some(cursor)) => Ok(cursor.seq + 1),
        (None, None) => {
            // From now on it misses nothing, also if it goes before it has acknowledged anything.
            Cursor::at(coming - 1, now_ms).write(engine, key).await?;
            Ok(coming)
        }
    }
}

async fn give(out: &Chunks<Followed>, part: &Followed) -> Result<(), Refusal> {
    out.ready().await;
    out.send(part)
}

fn missed((from_seq, to_seq): (Seq, Seq)) -> Followed {
    Followed::Gap(Missed { from_seq, to_seq })
}

fn kept(seq: Seq, fact: Fact) -> Kept {
    let Fact { at_ms, event, origin, correlation_id, tenant, data } = fact;
    Kept { seq, event, data, origin, at_ms, correlation_id, tenant }
}

/// The position before which the journal can be let go, so that the segments
/// with facts that are kept beyond what recovery needs have no more than so
/// many bytes. `covered` is what the store holds: recovery begins after it.
#[must_use]
pub fn retire_before(segments: &[SegmentStat], covered: Seq, keep_bytes: u64) -> Seq {
    let mut before = covered + 1;
    let mut bytes = 0;
    for segment in segments.iter().rev().filter(|segment| segment.last <= covered) {
        bytes += segment.bytes;
        if bytes > keep_bytes {
            break;
        }
        if segment.kinds & FACTS != 0 {
            before = segment.first;
        }
    }
    before
}
