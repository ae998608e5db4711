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
//! - Consumers have a bound, and nobody has more of them than half of what others
//!   leave.

mod cursor;
mod shares;
mod sweep;
#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    pin::pin,
};

use futures_channel::oneshot;
use futures_util::future::{Either, select};
use ksi_sdk::{
    Chunks, Ctx,
    prelude::{Code, JsonSchema, Refusal, Serialize},
    protocol::{
        Pattern,
        checkpoint::{Consumer, Consumers, Forget},
        work::{Ack, Follow, Followed, Kept, Missed},
    },
};

use crate::{
    engine::Engine,
    record::{Batch, Fact, Seq},
};
use cursor::Cursor;
use shares::Shares;
pub use sweep::sweep;

/// Facts that are read at a time: few, because each may be as long as a frame.
const PAGE: usize = 32;

/// Who follows under which name, in one opening of the journal.
#[derive(Default)]
pub struct Facts {
    /// Whose the consumers are, once they were counted. From then on it changes with every cursor that is
    /// made or goes.
    known: RefCell<Option<Shares>>,
    /// How many went so far.
    gone: Cell<u64>,
    /// Gone with the follower, or when a newer one takes the name.
    consumers: RefCell<HashMap<Vec<u8>, Held>>,
}

struct Held {
    /// Told apart from a newer one's.
    id: u64,
    /// Dropped, it ends its follower for a newer one.
    until: oneshot::Sender<Forgotten>,
}

/// A consumer is not known any more.
struct Forgotten;

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
    /// `invalid_payload` for a name that is none, `busy` where there are too many,
    /// `conflict` once a newer follower has the name, `not_found` once it is
    /// forgotten, `cancelled` when nobody listens any more, `unavailable` where the
    /// journal cannot be read or has stopped.
    pub async fn follow(
        &self,
        engine: &Engine,
        ctx: &Ctx,
        ask: Follow,
        out: &Chunks<Followed>,
    ) -> Result<Unfollowed, Refusal> {
        let cursor = ask.consumer.as_deref().map(|name| cursor::key(ctx.tenant(), name)).transpose()?;
        let held = cursor.as_deref().map(|cursor| self.take(cursor));
        let following = pin!(async {
            let from = self.begin(engine, ctx, &ask, cursor.clone()).await?;
            run(engine, from, &ask.pattern, out).await
        });
        let Some((_holding, ended)) = held else { return following.await };
        let name = ask.consumer.as_deref().unwrap_or_default();
        match select(following, ended).await {
            Either::Left((ended, _)) => ended,
            Either::Right((Ok(Forgotten), _)) => {
                let message = format!("the consumer `{name}` was forgotten");
                Err(Refusal::new(Code::NotFound, message).hint("who subscribes anew begins anew"))
            }
            Either::Right((Err(_), _)) => {
                let message = format!("another follower has taken over as `{name}`");
                let hint = "give each consumer that runs at the same time a name of its own";
                Err(Refusal::new(Code::Conflict, message).hint(hint))
            }
        }
    }

    /// Where a follower begins.
    async fn begin(
        &self,
        engine: &Engine,
        ctx: &Ctx,
        ask: &Follow,
        cursor: Option<Vec<u8>>,
    ) -> Result<Seq, Refusal> {
        let coming = engine.next_seq();
        if let Some(since) = ask.since_seq.filter(|since| *since > coming) {
            let message = format!("`since_seq` is {since}, but the last position is {}", coming - 1);
            return Err(Refusal::invalid_payload(message).hint(
                "it is a position of another journal: leave it out, and what comes from now on is told",
            ));
        }
        let Some(key) = cursor else {
            if let Some(since) = ask.since_seq {
                return Ok(since.max(1));
            }
            // Whoever is told where he stands must be able to go on there, whatever happens to the journal.
            engine.durable(coming - 1).await?;
            return Ok(coming);
        };
        let cursor = engine.latest(&key).await?.and_then(|value| Cursor::decode(&value));
        // One that is ahead of the journal is of another one: to it, all that is kept here is new.
        let beyond = cursor.as_ref().is_some_and(|cursor| cursor.seq >= engine.next_seq());
        if let Some(cursor) = cursor.clone().filter(|_| !beyond) {
            cursor.refresh(engine, key.clone(), ctx.now_ms());
        }
        match (ask.since_seq, cursor) {
            (since, Some(cursor)) if beyond => {
                let written = engine.commit(Cursor { seq: 0, ..cursor }.seen(ctx.now_ms()).put(key))?;
                engine.durable(written).await?;
                Ok(since.unwrap_or_default().max(1))
            }
            (Some(since), _) => Ok(since.max(1)),
            (None, Some(cursor)) => Ok(cursor.seq + 1),
            (None, None) => {
                // From now on it misses nothing, also if it goes before it has acknowledged anything.
                let cursor = self.make(engine, key, Cursor::of(ctx, coming - 1)).await?;
                Ok(cursor.seq + 1)
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
        let cursor = match engine.latest(&key).await?.and_then(|value| Cursor::decode(&value)) {
            Some(cursor) => cursor,
            None => self.make(engine, key.clone(), Cursor::of(ctx, ask.seq)).await?,
        };
        // Nothing is committed between the last look and the commit.
        if cursor.seq >= ask.seq {
            let seq = cursor.seq;
            cursor.refresh(engine, key, ctx.now_ms());
            return Ok(Acknowledged { seq });
        }
        let cursor = Cursor { seq: ask.seq, ..cursor }.seen(ctx.now_ms());
        let written = engine.commit(cursor.put(key))?;
        engine.durable(written).await?;
        Ok(Acknowledged { seq: ask.seq })
    }

    /// `checkpoint:consumers`: those that whoever asks may see.
    ///
    /// # Errors
    ///
    /// `unavailable` where they cannot be read.
    pub async fn list(&self, engine: &Engine, ctx: &Ctx) -> Result<Consumers, Refusal> {
        let cursors = cursor::all(engine).await?;
        let consumers = self.consumers.borrow();
        let known = cursors.into_iter().filter_map(|(key, cursor)| {
            let (tenant, name) = cursor::named(&key)?;
            ctx.sees(tenant).then(|| shown(tenant, name, cursor, consumers.contains_key(&*key)))
        });
        Ok(Consumers { consumers: known.collect() })
    }

    /// `checkpoint:forget`: ends its follower, too. What it was.
    ///
    /// # Errors
    ///
    /// `invalid_payload` for a name that is none, `not_found` where nobody is known
    /// by it, `busy` or `unavailable` where that cannot be written.
    pub async fn forget(&self, engine: &Engine, ctx: &Ctx, ask: Forget) -> Result<Consumer, Refusal> {
        let Forget { consumer: name, tenant } = ask;
        let tenant = tenant.as_deref().or(ctx.tenant());
        let key = cursor::key(tenant, &name)?;
        let stored = if ctx.sees(tenant) { engine.latest(&key).await? } else { None };
        let Some(cursor) = stored.and_then(|value| Cursor::decode(&value)) else {
            return Err(Refusal::not_found("consumer", &name).hint("`ksi checkpoint consumers` shows them"));
        };
        // Nothing is committed between the last look and the commit.
        let written = self.let_go(engine, key.clone(), &cursor)?;
        let held = self.consumers.borrow_mut().remove(&key);
        let shown = shown(tenant, &name, cursor, held.is_some());
        if let Some(held) = held {
            // It may end of itself.
            let _ = held.until.send(Forgotten);
        }
        engine.durable(written).await?;
        Ok(shown)
    }

    /// Makes the cursor of a new consumer, durably, unless there are too many. Where somebody was faster, the
    /// cursor is the one that is there.
    async fn make(&self, engine: &Engine, key: Vec<u8>, cursor: Cursor) -> Result<Cursor, Refusal> {
        while self.known.borrow().is_none() {
            let gone = self.gone.get();
            let mut counted = Shares::default();
            cursor::all(engine)
                .await?
                .iter()
                .for_each(|(_, cursor)| counted.add(cursor.principal.as_deref()));
            // One that went meanwhile may be among those that were read.
            if self.gone.get() == gone {
                // Whoever was faster has counted what came since.
                self.known.borrow_mut().get_or_insert(counted);
            }
        }
        if let Some(there) = engine.latest(&key).await?.and_then(|value| Cursor::decode(&value)) {
            return Ok(there);
        }
        // Nothing is committed between the last look and the commit.
        let written = {
            let mut known = self.known.borrow_mut();
            let shares = known.get_or_insert_default();
            let principal = cursor.principal.as_deref();
            shares.admit(principal.unwrap_or_default())?;
            let written = engine.commit(cursor.put(key))?;
            shares.add(principal);
            written
        };
        engine.durable(written).await?;
        Ok(cursor)
    }

    /// Deletes a cursor that is stored as it is here; where that is written.
    fn let_go(&self, engine: &Engine, key: Vec<u8>, cursor: &Cursor) -> Result<Seq, Refusal> {
        let mut batch = Batch::new();
        batch.delete(key);
        let written = engine.commit(batch)?;
        self.gone.set(self.gone.get() + 1);
        if let Some(shares) = &mut *self.known.borrow_mut() {
            shares.remove(cursor.principal.as_deref());
        }
        Ok(written)
    }

    /// Takes a consumer's name, of which this is the key, from whoever has it.
    /// The receiver resolves when it is taken again, or forgotten.
    fn take<'a>(&'a self, cursor: &'a [u8]) -> (Holding<'a>, oneshot::Receiver<Forgotten>) {
        let (sender, receiver) = oneshot::channel();
        let mut consumers = self.consumers.borrow_mut();
        let id = consumers.get(cursor).map_or(0, |held| held.id + 1);
        consumers.insert(cursor.to_owned(), Held { id, until: sender });
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

/// Gives out facts from a position on until something refuses.
async fn run(
    engine: &Engine,
    mut from: Seq,
    pattern: &Pattern,
    out: &Chunks<Followed>,
) -> Result<Unfollowed, Refusal> {
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
            if seq >= from && pattern.matches(fact.event.as_str()) {
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

/// A consumer as others see it.
fn shown(tenant: Option<&str>, name: &str, cursor: Cursor, followed: bool) -> Consumer {
    Consumer {
        consumer: name.to_owned(),
        tenant: tenant.map(str::to_owned),
        seq: cursor.seq,
        seen_ms: cursor.seen_ms,
        principal: cursor.principal.map(Into::into),
        followed,
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
