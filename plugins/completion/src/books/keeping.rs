//! The books on the disk.
//!
//! | key | value |
//! |---|---|
//! | `budget/[budget, scope]` | an [`Account`] |
//! | `begun/[request, number]` | a [`Reservation`], until it is settled; its key is never used again |
//! | `usage/DAY/[tenant, principal, agent, model]` | a [`Row`] of usage; days since 1970 |
//! | `written` | how often was written: says whether a write whose answer was lost was made |

use std::{cell::Cell, collections::BTreeMap, rc::Rc};

use ksi_sdk::{
    Signal,
    prelude::{Bytes, Code, Ctx, Deserialize, Refusal, Serialize},
};
use serde::de::DeserializeOwned;

use super::{Account, AccountName, Books, Reservation, ReservationName, Settlement, Taken, account::money};
use crate::payload::Used;

/// How the keys of usage begin.
pub(super) const USAGE: &str = "usage/";
pub(super) const DAY_MS: u64 = 86_400_000;
/// Changes that are written together: many fewer than the state takes, so that one more settlement always
/// fits.
const CHANGES_MAX: usize = 2048;

/// What was used of a model by somebody on one day.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) day: u64,
    pub(crate) tenant: Option<String>,
    pub(crate) principal: String,
    pub(crate) agent: Option<String>,
    pub(crate) model: String,
    counts: Counts,
}

impl Row {
    pub(crate) fn used(&self) -> Used {
        let Counts { calls, answered, prompt_tokens, completion_tokens, nanos } = self.counts;
        Used { calls, answered, prompt_tokens, completion_tokens, money: money(nanos) }
    }
}

/// Counts of a row.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Counts {
    calls: u64,
    answered: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
    nanos: u64,
}

impl Counts {
    fn add(&mut self, more: Self) {
        self.calls += more.calls;
        self.answered += more.answered;
        self.prompt_tokens += more.prompt_tokens;
        self.completion_tokens += more.completion_tokens;
        self.nanos += more.nanos;
    }
}

impl From<&Taken> for Counts {
    fn from(taken: &Taken) -> Self {
        Self {
            calls: 1,
            answered: u64::from(taken.answered),
            prompt_tokens: taken.prompt_tokens,
            completion_tokens: taken.completion_tokens,
            nanos: taken.nanos,
        }
    }
}

/// How far the writing is. One task writes, which nobody's end cuts off: so each
/// settlement is written once, and one after the other.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    /// Whether that task is under way: it goes on until nothing is left, or it is not possible.
    writing: Cell<bool>,
    /// Settlements that were ever written.
    written: Cell<u64>,
    /// Writes that were not possible.
    failures: Cell<u64>,
    /// Whether the last one was not.
    failing: Cell<bool>,
    /// Says that one of these has changed.
    moved: Signal,
}

fn key(kind: &str, name: &impl Serialize) -> String {
    // A list of texts and numbers can always be written.
    format!("{kind}/{}", serde_json::to_string(name).unwrap_or_default())
}

pub(super) fn day_key(day: u64) -> String {
    format!("{USAGE}{day:08}/")
}

fn row_key(day: u64, reservation: &Reservation) -> String {
    let who = &reservation.who;
    let name = (&who.tenant, &who.principal, &who.agent, &reservation.model);
    format!("{}{}", day_key(day), serde_json::to_string(&name).unwrap_or_default())
}

/// An account as it was written last; an empty one where it never was.
pub(super) async fn account(ctx: &Ctx, name: &AccountName) -> Result<Account, Refusal> {
    Ok(ctx.state().get(key("budget", name)).await?.map_or_else(Account::default, |kept| kept.value))
}

/// Writes down that an attempt begins, where budgets apply to it, in the place of
/// another one, where there is one.
pub(super) async fn begin(
    ctx: &Ctx,
    name: &ReservationName,
    reservation: &Reservation,
    instead: &[ReservationName],
) -> Result<(), Refusal> {
    let mut batch = ctx.state().batch();
    if !reservation.accounts.is_empty() {
        batch = batch.put(key("begun", name), reservation);
    }
    for other in instead {
        batch = batch.delete(key("begun", other));
    }
    batch.commit().await.map(drop)
}

/// All attempts that have begun and are not settled.
pub(super) async fn begun(ctx: &Ctx) -> Result<Vec<(ReservationName, Reservation)>, Refusal> {
    let found = scan::<Reservation>(ctx, "begun/").await?;
    let named = found.into_iter().filter_map(|(key, reservation)| {
        let name = std::str::from_utf8(&key).ok()?.strip_prefix("begun/")?.to_owned();
        Some((serde_json::from_str(&name).ok()?, reservation))
    });
    Ok(named.collect())
}

/// Rows of the last days, oldest first.
pub(crate) async fn rows(ctx: &Ctx, days: u64) -> Result<Vec<Row>, Refusal> {
    let today = ctx.now_ms() / DAY_MS;
    let mut rows = Vec::new();
    for day in today.saturating_sub(days.saturating_sub(1))..=today {
        rows.extend(scan::<Row>(ctx, &day_key(day)).await?.into_iter().map(|(_, row)| row));
    }
    Ok(rows)
}

async fn scan<T: DeserializeOwned>(ctx: &Ctx, prefix: &str) -> Result<Vec<(Bytes, T)>, Refusal> {
    let mut found = Vec::new();
    let mut after: Option<Bytes> = None;
    loop {
        let page = ctx.state().scan::<T>(prefix, after.as_deref(), 1000).await?;
        found.extend(page.entries.into_iter().map(|entry| (entry.key, entry.value)));
        match found.last() {
            Some((key, _)) if page.more => after = Some(key.clone()),
            _ => return Ok(found),
        }
    }
}

impl Books {
    /// Waits until all is written down that is settled by now. Where that is not possible at
    /// present, it is left for the next time.
    pub(crate) async fn flush(self: &Rc<Self>, ctx: &Ctx) {
        let Keeping { written, failures, moved, .. } = &self.keeping;
        let (all, failed) = (written.get() + self.pending.borrow().len() as u64, failures.get());
        self.write_on(ctx);
        moved.until(|| written.get() >= all || failures.get() > failed).await;
    }

    /// Has all written down that is settled.
    pub(crate) fn write_on(self: &Rc<Self>, ctx: &Ctx) {
        if !self.pending.borrow().is_empty() && !self.keeping.writing.replace(true) {
            let (books, own) = (self.clone(), ctx.clone());
            ctx.spawn(async move { books.write_all(&own).await });
        }
    }

    async fn write_all(&self, ctx: &Ctx) {
        let Keeping { writing, written, failures, failing, moved } = &self.keeping;
        while !self.pending.borrow().is_empty() {
            match self.write(ctx).await {
                Ok(count) => {
                    self.pending.borrow_mut().drain(..count);
                    written.set(written.get() + count as u64);
                    failing.set(false);
                    moved.notify();
                }
                Err(refusal) => {
                    if !failing.replace(true) {
                        ctx.warn(&format!("usage cannot be written down now: {}", refusal.message));
                    }
                    failures.set(failures.get() + 1);
                    break;
                }
            }
        }
        writing.set(false);
        moved.notify();
    }

    /// Writes the first settlements, and says how many. Nobody else writes these keys, so what is
    /// read is still there when it is written.
    async fn write(&self, ctx: &Ctx) -> Result<usize, Refusal> {
        let state = ctx.state();
        let written = state.get::<u64>("written").await?.unwrap_or_default();
        let (mut rows, mut accounts, mut begun) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        let mut count = 0;
        for settlement in self.pending.borrow().iter() {
            if rows.len() + accounts.len() + begun.len() >= CHANGES_MAX {
                break;
            }
            count += 1;
            let Settlement { names, reservation, taken, at_ms } = settlement;
            let day = at_ms / DAY_MS;
            if taken.asked {
                let row = rows.entry(row_key(day, reservation)).or_insert_with(|| Row {
                    day,
                    tenant: reservation.who.tenant.clone(),
                    principal: reservation.who.principal.clone(),
                    agent: reservation.who.agent.clone(),
                    model: reservation.model.clone(),
                    counts: Counts::default(),
                });
                row.counts.add(taken.into());
            }
            let held = self.accounts.borrow();
            let named = reservation.accounts.iter();
            accounts.extend(named.filter_map(|name| Some((name.clone(), held.get(name)?.clone()))));
            if !reservation.accounts.is_empty() {
                begun.extend(names.iter().cloned());
            }
        }
        let mut batch =
            state.batch().check_version("written", written.version).put("written", &(written.value + 1));
        for (key, mut row) in rows {
            if let Some(before) = state.get::<Row>(&key).await? {
                row.counts.add(before.value.counts);
            }
            batch = batch.put(key, &row);
        }
        for (name, account) in accounts {
            batch = batch.put(key("budget", &name), &account);
        }
        for name in begun {
            batch = batch.delete(key("begun", &name));
        }
        match batch.commit().await {
            Ok(_) => Ok(count),
            // The answer may have been lost after the write was made.
            Err(refusal) => match state.get::<u64>("written").await? {
                Some(now) if now.value == written.value + 1 => Ok(count),
                _ if refusal.code == Code::Conflict => {
                    Err(Refusal::new(Code::Conflict, "somebody else writes the books"))
                }
                _ => Err(refusal),
            },
        }
    }
}
