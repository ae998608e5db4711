//! The books: what was used, by whom, and what may still be used.
//!
//! Every attempt at a model is counted: in a row of usage (day, tenant,
//! principal, agent, model), and in the account of each budget that applies to
//! it. Where budgets apply, an attempt *reserves* what it is expected to take
//! before it begins, and *settles* with what it took; so requests that run
//! together cannot spend the same money twice.
//!
//! # Invariants
//!
//! - A reservation is on the disk before its attempt begins, under a name that no
//!   other one ever has, and is settled once; so what is written of one never
//!   touches another, and a crash loses none. Durable work that is handed over
//!   again takes over what its last attempt had reserved, and is counted once;
//!   whatever else a crash leaves behind counts with what was reserved, and so does
//!   that where its work ends, or is not handed over for a day.
//! - No answer may be longer than what is reserved for it: where a request does not
//!   say how long it may be, the budgets do.
//! - What is read from a budget is never less than what was settled.
//!
//! # Failure
//!
//! While the state cannot be written, requests under a budget are refused;
//! others go on, and their usage is written later. A provider that is not able to
//! limit its answers, or reads more tokens than was estimated, may exceed a
//! reservation: that counts, and the next request is refused.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    rc::Rc,
};

use ksi_sdk::prelude::{Ctx, Deserialize, Refusal, Serialize};

use crate::{
    config::BudgetConfig,
    order::scoped,
    payload::{Budget, LimitedBy},
};

pub(crate) mod account;
mod expected;
pub(crate) mod keeping;
pub(crate) mod report;
mod sweep;

pub(crate) use account::Amounts;
use account::{Account, Rule};
pub(crate) use expected::Expected;

/// Most accounts held in memory that nothing is reserved in: their names come
/// from clients.
const ACCOUNTS_MAX: usize = 4096;
/// Most names that a reservation may have on the disk.
const NAMES_MAX: usize = 16;
/// Most settlements that wait to be written.
const PENDING_MAX: usize = 100_000;

/// Whose attempt it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Who {
    pub(crate) tenant: Option<String>,
    pub(crate) principal: String,
    pub(crate) agent: Option<String>,
    pub(crate) conversation: Option<String>,
}

/// Names an account: its budget, and whose it is.
pub(crate) type AccountName = (String, String);

/// Names a reservation: its request, and a number that it has alone, over restarts too.
pub(crate) type ReservationName = (String, u64);

/// What is on the disk of an attempt that has begun.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Reservation {
    pub(crate) who: Who,
    /// `provider/model`.
    pub(crate) model: String,
    accounts: Vec<AccountName>,
    expected: Amounts,
    at_ms: u64,
}

impl Reservation {
    /// Whether it is so old that nobody hands its work over again.
    fn is_old(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.at_ms) > keeping::DAY_MS
    }
}

/// What an attempt took.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Taken {
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
    pub(crate) nanos: u64,
    pub(crate) answered: bool,
    /// Whether anybody was asked at all.
    pub(crate) asked: bool,
}

impl Taken {
    /// What an attempt counts with of whose end nobody knows.
    fn all_of(reservation: &Reservation) -> Self {
        let expected = reservation.expected;
        Self { prompt_tokens: expected.tokens, nanos: expected.nanos, asked: true, ..Self::default() }
    }
}

/// An attempt that has ended and is not written down yet.
struct Settlement {
    /// All names that its reservation may have on the disk.
    names: Vec<ReservationName>,
    reservation: Reservation,
    taken: Taken,
    at_ms: u64,
}

/// A reservation of an attempt that nobody makes any more.
struct Orphan {
    /// Its name on the disk; with others, of which it has one or the other, where nobody knows whether it
    /// was renamed.
    names: Vec<ReservationName>,
    reservation: Reservation,
}

/// What is held in memory for an attempt.
struct Held {
    reservation: Reservation,
    limited_by: Option<LimitedBy>,
    /// What the request had reserved before a crash, and is released.
    before: Option<Orphan>,
}

/// The books.
pub(crate) struct Books {
    rules: Vec<Rule>,
    accounts: RefCell<HashMap<AccountName, Account>>,
    /// Reservations that a crash left behind, of work that may be handed over again: by
    /// its request.
    orphans: RefCell<BTreeMap<String, Orphan>>,
    /// The number of the next reservation.
    next: Cell<u64>,
    pending: RefCell<Vec<Settlement>>,
    keeping: keeping::Keeping,
}

impl Books {
    pub(crate) fn new(budgets: &BTreeMap<String, BudgetConfig>) -> Self {
        Self {
            rules: budgets.iter().map(|(name, config)| Rule::new(name, config)).collect(),
            accounts: RefCell::default(),
            orphans: RefCell::default(),
            next: Cell::new(1),
            pending: RefCell::default(),
            keeping: keeping::Keeping::default(),
        }
    }

    pub(crate) fn has_budgets(&self) -> bool {
        !self.rules.is_empty()
    }

    /// The budgets that apply to somebody, each with the name of the account.
    pub(crate) fn accounts_of(&self, who: &Who) -> Vec<(&Rule, AccountName)> {
        let applying = self.rules.iter().filter_map(|rule| {
            let scope = rule.scope(who)?;
            Some((rule, (rule.name.clone(), scope)))
        });
        applying.collect()
    }

    /// Reserves what an attempt of a request is expected to take, in every budget that applies.
    /// Where the request does not say how long its answer may be, they do.
    ///
    /// # Errors
    ///
    /// `busy` or, where a budget never starts over, `denied`: what is used, and
    /// when it starts over. `unavailable` where the state cannot be had.
    pub(crate) async fn reserve<'a>(
        &'a self,
        ctx: &Ctx,
        request: &str,
        who: &Who,
        model: &str,
        expected: Expected,
    ) -> Result<Reserved<'a>, Refusal> {
        let applying = self.accounts_of(who);
        let names: Vec<_> = applying.iter().map(|(_, name)| name.clone()).collect();
        self.load(ctx, &names).await?;
        let Held { reservation, limited_by, before } =
            self.hold_for(request, &applying, who, model, &expected, ctx.now_ms())?;
        let name = (request.to_owned(), self.next.replace(self.next.get() + 1));
        let is_kept = before.is_some() || !reservation.accounts.is_empty();
        let (ctx, taken) = (ctx.clone(), Taken::default());
        let mut reserved =
            Reserved { books: self, ctx, name, reservation, before, is_begun: false, limited_by, taken };
        if is_kept {
            let Reserved { ctx, name, reservation, before, .. } = &reserved;
            let instead = before.as_ref().map_or(&[][..], |before| &before.names);
            keeping::begin(ctx, name, reservation, instead).await.map_err(|refusal| {
                let message = format!("a budget applies, and it cannot be written down: {}", refusal.message);
                Refusal { message, ..refusal }
            })?;
        }
        reserved.is_begun = true;
        Ok(reserved)
    }

    /// A reservation stays what it was: begun, with an outcome that nobody knows.
    fn leave(&self, orphan: Orphan) {
        hold(&mut self.accounts.borrow_mut(), &orphan.reservation);
        if let Some((request, _)) = orphan.names.first() {
            self.orphans.borrow_mut().insert(request.clone(), orphan);
        }
    }

    /// Hears that nobody makes another attempt at a request; what a crash has left of it counts with what
    /// was reserved.
    pub(crate) fn ends(&self, request: &str, now_ms: u64) {
        let orphan = self.orphans.borrow_mut().remove(request);
        if let Some(orphan) = orphan {
            self.settle_left(orphan, now_ms);
        }
    }

    /// The same of all that nobody has handed over for a day; what is open is under way.
    fn give_up_old(&self, now_ms: u64, is_open: impl Fn(&str) -> bool) {
        let mut orphans = self.orphans.borrow_mut();
        let is_old = |request: &str, orphan: &Orphan| orphan.reservation.is_old(now_ms) && !is_open(request);
        let old: Vec<_> = orphans.extract_if(.., |request, orphan| is_old(request, orphan)).collect();
        drop(orphans);
        for (_, orphan) in old {
            self.settle_left(orphan, now_ms);
        }
    }

    fn settle_left(&self, orphan: Orphan, now_ms: u64) {
        let taken = Taken::all_of(&orphan.reservation);
        self.settle(orphan.names, orphan.reservation, taken, now_ms);
    }

    /// Holds what is expected, in memory, where every budget has room for it.
    fn hold_for(
        &self,
        request: &str,
        applying: &[(&Rule, AccountName)],
        who: &Who,
        model: &str,
        expected: &Expected,
        now_ms: u64,
    ) -> Result<Held, Refusal> {
        let before = self.orphans.borrow_mut().remove(request);
        let mut accounts = self.accounts.borrow_mut();
        if let Some(before) = &before {
            release(&mut accounts, &before.reservation);
        }
        for (rule, name) in applying {
            let account = accounts.entry(name.clone()).or_default();
            account.turn(rule, now_ms);
            if let Err(exceeded) = account.admits(rule, &expected.least(rule)) {
                drop(accounts);
                if let Some(before) = before {
                    self.leave(before);
                }
                return Err(exceeded.refusal(rule, now_ms));
            }
        }
        let limits = applying.iter().filter_map(|(rule, name)| expected.limit(rule, accounts.get(name)?));
        let limited_by = limits.min_by_key(|limited| limited.max_tokens);
        let each = limited_by.as_ref().map(|limited| limited.max_tokens).or(expected.max_tokens);
        let expected = expected.amounts(each.unwrap_or(0));
        let names = applying.iter().map(|(_, name)| name.clone()).collect();
        let (who, model) = (who.clone(), model.into());
        let reservation = Reservation { who, model, accounts: names, expected, at_ms: now_ms };
        hold(&mut accounts, &reservation);
        Ok(Held { reservation, limited_by, before })
    }

    /// Reads accounts that are not in memory.
    async fn load(&self, ctx: &Ctx, names: &[AccountName]) -> Result<(), Refusal> {
        for name in names {
            if self.accounts.borrow().contains_key(name) {
                continue;
            }
            let kept = keeping::account(ctx, name).await.map_err(|refusal| {
                let message = format!("a budget applies, and it cannot be read: {}", refusal.message);
                Refusal { message, ..refusal }
            })?;
            let mut accounts = self.accounts.borrow_mut();
            if accounts.len() >= ACCOUNTS_MAX && self.pending.borrow().is_empty() {
                accounts.retain(|name, account| account.is_held() || names.contains(name));
            }
            accounts.entry(name.clone()).or_insert(kept);
        }
        Ok(())
    }

    /// Counts what an attempt took; [`Books::flush`] writes it down.
    fn settle(&self, names: Vec<ReservationName>, reservation: Reservation, taken: Taken, now_ms: u64) {
        let mut accounts = self.accounts.borrow_mut();
        release(&mut accounts, &reservation);
        let amounts = Amounts {
            calls: u64::from(taken.asked),
            tokens: taken.prompt_tokens + taken.completion_tokens,
            nanos: taken.nanos,
        };
        for name in &reservation.accounts {
            if let (Some(account), Some(rule)) = (accounts.get_mut(name), self.rule(&name.0)) {
                account.turn(rule, now_ms);
                account.add(&amounts);
            }
        }
        let mut pending = self.pending.borrow_mut();
        if pending.len() < PENDING_MAX {
            pending.push(Settlement { names, reservation, taken, at_ms: now_ms });
        }
    }

    fn rule(&self, name: &str) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.name == name)
    }

    /// Reads what a crash left behind. Of a request that may be handed over again, the
    /// last attempt is; any other counts with what it had reserved, and so does what was
    /// not handed over for a day.
    ///
    /// # Errors
    ///
    /// Where the state cannot be read.
    pub(crate) async fn recover(self: &Rc<Self>, ctx: &Ctx) -> Result<(), Refusal> {
        let mut begun = keeping::begun(ctx).await?;
        begun.sort_by(|(one, _), (other, _)| one.cmp(other));
        let mut begun = begun.into_iter().peekable();
        while let Some((name, reservation)) = begun.next() {
            self.next.set(self.next.get().max(name.1.saturating_add(1)));
            self.load(ctx, &reservation.accounts).await?;
            let now_ms = ctx.now_ms();
            let is_last = begun.peek().is_none_or(|(next, _)| next.0 != name.0);
            let goes_on = is_last && !reservation.is_old(now_ms) && !name.0.starts_with(crate::LIVE);
            let orphan = Orphan { names: vec![name], reservation };
            if goes_on {
                self.leave(orphan);
            } else {
                hold(&mut self.accounts.borrow_mut(), &orphan.reservation);
                self.settle_left(orphan, now_ms);
            }
        }
        self.flush(ctx).await;
        Ok(())
    }

    /// Where somebody's budgets stand.
    ///
    /// # Errors
    ///
    /// Where the state cannot be read.
    pub(crate) async fn standing(&self, ctx: &Ctx, who: &Who) -> Result<Vec<Budget>, Refusal> {
        let applying = self.accounts_of(who);
        let names: Vec<_> = applying.iter().map(|(_, name)| name.clone()).collect();
        self.load(ctx, &names).await?;
        let mut accounts = self.accounts.borrow_mut();
        let now_ms = ctx.now_ms();
        let standing = applying.into_iter().map(|(rule, name)| {
            let account = accounts.entry(name).or_default();
            account.turn(rule, now_ms);
            account.standing(rule, now_ms)
        });
        Ok(standing.collect())
    }
}

/// An attempt that has begun. Dropped, it is settled with what it has taken by
/// then.
pub(crate) struct Reserved<'a> {
    books: &'a Books,
    ctx: Ctx,
    name: ReservationName,
    reservation: Reservation,
    /// In whose place it is: an attempt that was under way at a crash.
    before: Option<Orphan>,
    /// Whether it is on the disk, and that is not there any more.
    is_begun: bool,
    /// The budget that says how long each answer may be.
    pub(crate) limited_by: Option<LimitedBy>,
    pub(crate) taken: Taken,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let Self { books, taken, .. } = *self;
        let (name, reservation) = (self.name.clone(), self.reservation.clone());
        let Some(mut before) = self.before.take().filter(|_| !taken.asked) else {
            return books.settle(vec![name], reservation, taken, self.ctx.now_ms());
        };
        // Nobody was asked, so the attempt before is still the last one.
        release(&mut books.accounts.borrow_mut(), &reservation);
        if self.is_begun {
            before.names.clear();
        } else if before.names.len() == NAMES_MAX {
            // Of this one even the write before has failed.
            before.names.pop();
        }
        before.names.push(name);
        books.leave(before);
    }
}

fn hold(accounts: &mut HashMap<AccountName, Account>, reservation: &Reservation) {
    for name in &reservation.accounts {
        accounts.entry(name.clone()).or_default().reserve(&reservation.expected);
    }
}

fn release(accounts: &mut HashMap<AccountName, Account>, reservation: &Reservation) {
    for name in &reservation.accounts {
        if let Some(account) = accounts.get_mut(name) {
            account.release(&reservation.expected);
        }
    }
}

/// Money for so many tokens, in billionths.
pub(crate) fn cost(tokens: u64, price: Option<f64>) -> u64 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "prices are checked to be from 0 to a million, and tokens of one request are few"
    )]
    let nanos = (tokens as f64 * price.unwrap_or(0.0) * 1000.0).ceil() as u64;
    nanos
}

#[cfg(test)]
mod tests;
