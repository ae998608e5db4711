//! The attempts at one request: who is asked, and what follows a refusal.
//!
//! # Invariants
//!
//! - Once a piece of text was passed on, the request is never tried again unless
//!   it allowed that; then whoever reads is told that the text starts over.
//! - A model reads what was prepared for it, and each is prepared for once.
//! - An attempt that began is ended at the router, whatever happens to the task.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use ksi_provider::Generated;
use ksi_sdk::prelude::{Code, Duration, Refusal};

use super::{
    Work,
    prepare::{Ground, Prepared, prepare},
};
use crate::{
    Completion,
    books::Taken,
    ledger::Phase,
    order::Order,
    payload::{Completed, LimitedBy, Restarted},
    provider::{Attempt, Piece, Stream, Target, is_absent},
    route::{self, Ranked, Ticket, View},
    schema, size,
};

mod hint;
mod spend;
mod told;

use spend::Spending;

/// Most bytes of an answer, with its alternatives and what is told of tokens: it
/// must fit a frame together with the rest.
const TEXT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A request that has its turn.
pub(super) struct Run<'a> {
    work: &'a Work,
    ground: Ground,
    /// What the request is to models that may be asked (again).
    prepared: RefCell<Vec<(Target, Rc<Prepared>)>>,
    /// Models that will not be tried again, and why.
    spent: RefCell<Vec<(Target, String)>>,
    /// The budget that limits the answer of the attempt under way.
    limited_by: RefCell<Option<LimitedBy>>,
}

/// What follows a refusal.
enum Next {
    /// Nothing: it is the refusal of the request.
    End,
    /// The same model, after a pause, or an equal one.
    Again(Duration),
    /// Another model.
    Other,
}

impl<'a> Run<'a> {
    /// Begins with a request whose turn it is.
    pub(super) async fn begin(work: &'a Work) -> Result<Self, Refusal> {
        work.started().await;
        let ground = Ground::read(work).await.map_err(|refusal| work.with_id(refusal))?;
        Ok(Self {
            work,
            ground,
            prepared: RefCell::default(),
            spent: RefCell::default(),
            limited_by: RefCell::default(),
        })
    }

    fn plugin(&self) -> &Completion {
        &self.work.place.plugin
    }

    pub(super) async fn to_the_end(&self) -> Result<Completed, Refusal> {
        let (entry, trail) = (&self.work.place.entry, &self.work.trail);
        loop {
            let ranked = self.rank();
            let Some(best) = ranked.first().filter(|best| best.is_eligible()) else {
                let nobody = || route::nobody(&ranked, &self.work.order, &self.plugin().providers);
                return Err(self.refused(None, trail.last().unwrap_or_else(nobody)));
            };
            let now_ms = self.plugin().now_ms();
            self.plugin().ledger.borrow_mut().go_on_with(entry, &best.target, now_ms);
            if entry.phase.get() == Phase::Queued {
                entry.changed.until(|| entry.phase.get() != Phase::Queued).await;
                continue;
            }
            if best.wait_ms > 0 {
                self.wait_for_pace(best).await;
                continue;
            }
            let Some(prepared) = self.prepared_for(&best.target) else {
                // What it needs, and so who is best, is known better afterwards.
                self.prepare(&best.target).await?;
                continue;
            };
            let order = &prepared.order;
            let spending = match self.reserve(&best.target, order).await {
                Ok(spending) => spending,
                Err(refusal) => {
                    self.spend(&best.target, refusal.message.clone());
                    trail.set_last(refusal);
                    continue;
                }
            };
            // Others may have gone first while that was written down.
            if self.plugin().books.has_budgets() && !self.is_its_turn(&best.target) {
                continue;
            }
            match self.attempt(&best.target, order, spending).await {
                Ok(answer) => return self.completed(&best.target, &prepared, answer).await,
                Err(refusal) => match self.next(&best.target, &refusal, &ranked) {
                    Next::End => return Err(self.refused(Some(&best.target), refusal)),
                    Next::Again(pause) => {
                        trail.set_last(refusal);
                        self.work.ctx.sleep(pause).await;
                    }
                    Next::Other => {
                        self.spend(&best.target, format!("it refused: {}", refusal.code));
                        trail.set_last(refusal);
                    }
                },
            }
        }
    }

    /// Makes of the request what a model is asked.
    async fn prepare(&self, target: &Target) -> Result<(), Refusal> {
        let prepared = prepare(self.work, &self.ground, target).await;
        let prepared = Rc::new(prepared.map_err(|refusal| self.work.with_id(refusal))?);
        self.prepared.borrow_mut().push((target.clone(), prepared));
        Ok(())
    }

    fn prepared_for(&self, target: &Target) -> Option<Rc<Prepared>> {
        let prepared = self.prepared.borrow();
        prepared.iter().find(|(other, _)| other == target).map(|(_, prepared)| prepared.clone())
    }

    /// A model will not be tried again.
    fn spend(&self, target: &Target, why: String) {
        self.prepared.borrow_mut().retain(|(other, _)| other != target);
        self.spent.borrow_mut().push((target.clone(), why));
    }

    fn rank(&self) -> Vec<Ranked> {
        let plugin = self.plugin();
        let mut loads = plugin.ledger.borrow().loads();
        // It is not in its own way.
        let own = &mut loads[self.work.place.entry.lane.get()];
        own.running = own.running.saturating_sub(1);
        let prepared = self.prepared.borrow();
        let needs = prepared.iter().map(|(target, prepared)| (target.clone(), prepared.order.needs()));
        let view = View {
            config: &plugin.config,
            providers: &plugin.providers,
            catalogue: &plugin.catalogue,
            loads: &loads,
            tenant: self.work.ctx.tenant(),
            spent: &self.spent.borrow(),
            needs: &needs.collect::<Vec<_>>(),
        };
        plugin.router.borrow().rank(&self.work.order, &view, plugin.now_ms())
    }

    /// Whether a model is still the one to ask, and now.
    fn is_its_turn(&self, target: &Target) -> bool {
        let now = self.rank();
        now.first().is_some_and(|best| best.is_eligible() && best.target == *target && best.wait_ms == 0)
    }

    /// Waits until the limits of the provider let the request begin; where that is
    /// beyond its time, the model is not for it.
    async fn wait_for_pace(&self, best: &Ranked) {
        let wait = Duration::from_millis(best.wait_ms);
        if wait < self.left() {
            return self.work.ctx.sleep(wait).await;
        }
        let name = &self.plugin().providers.of(&best.target).name;
        let why = format!("the limit of provider `{name}` is reached beyond the time of this request");
        self.spend(&best.target, why.clone());
        let refusal = Refusal::new(Code::Busy, why).hint("try again later, or name `fallbacks`");
        self.work.trail.set_first(refusal.retry_after_ms(best.wait_ms));
    }

    fn left(&self) -> Duration {
        let age_ms = self.plugin().now_ms().saturating_sub(self.work.place.entry.accepted_ms);
        self.work.order.timeout.saturating_sub(Duration::from_millis(age_ms))
    }

    /// Asks a model once.
    async fn attempt(
        &self,
        target: &Target,
        order: &Order,
        mut spending: Spending<'_>,
    ) -> Result<Generated, Refusal> {
        let (plugin, trail) = (self.plugin(), &self.work.trail);
        let began_ms = plugin.now_ms();
        let begun = plugin.router.borrow_mut().begin(target, order.needs().tokens(), began_ms);
        // The ranking has just said that it is let through.
        let ticket =
            begun.map_err(|ms| Refusal::new(Code::Unavailable, "left alone for now").retry_after_ms(ms))?;
        let counted = Counted { plugin, target, ticket: Some(ticket) };
        let number = trail.number();
        self.limited_by.replace(spending.limited_by());
        self.announce(number, target).await?;
        let first_ms = Cell::new(None);
        spending.begin();
        trail.begin(plugin.providers.name(target), self.work.place.entry.accepted_ms, began_ms);
        let asked = self.ask(target, order, &first_ms).await;
        let told = asked.as_ref().ok().map(|answer| (answer.usage, size::of_words(answer)));
        let asked = asked.and_then(|answer| {
            schema::check(order.settings.response_format.as_ref(), &answer).map(|()| answer)
        });
        let asked = asked.map_err(|refusal| plugin.providers.of(target).blame(refusal));
        let now_ms = plugin.now_ms();
        trail.end(asked.as_ref().err(), now_ms);
        let first_ms = first_ms.get().unwrap_or(now_ms) - began_ms;
        match &asked {
            Ok(answer) => {
                plugin.catalogue.found(target.lane);
                spending.answered(&answer.usage, size::of_words(answer), true);
                counted.answered(first_ms, answer.usage.total_tokens, now_ms);
            }
            Err(refusal) => {
                match (told, trail.said()) {
                    // It answered, and not what was asked for.
                    (Some((usage, bytes)), _) => spending.answered(&usage, bytes, false),
                    (None, 0) => spending.end(Taken { asked: !is_absent(refusal), ..Taken::default() }),
                    // It ends with what was said.
                    (None, _) => {}
                }
                if is_absent(refusal) {
                    plugin.catalogue.missed(target.lane, &refusal.message, now_ms);
                }
                let id = &self.work.place.entry.id;
                self.work.ctx.debug(&format!("{id}: attempt {number} refused: {}", refusal.code));
                match told {
                    // Whoever answers is well: what was asked for is the asker's to choose, and nobody
                    // takes a provider from others with a schema that nothing fits.
                    Some((usage, _)) => counted.answered(first_ms, usage.total_tokens, now_ms),
                    None => counted.refused(refusal, now_ms),
                }
            }
        }
        drop(spending);
        plugin.books.write_on(&plugin.ctx);
        asked
    }

    /// Says that the text starts over, where some was sent before.
    async fn announce(&self, attempt: u32, target: &Target) -> Result<(), Refusal> {
        if !self.work.trail.unsay() {
            return Ok(());
        }
        let because = self.work.trail.last().map_or_else(String::new, |refusal| refusal.message);
        let model = self.plugin().providers.name(target);
        self.work.restarted(Restarted { attempt, model, because }).await
    }

    async fn ask(
        &self,
        target: &Target,
        order: &Order,
        first_ms: &Cell<Option<u64>>,
    ) -> Result<Generated, Refusal> {
        let plugin = self.plugin();
        let number = self.work.trail.times(&plugin.providers.name(target)).saturating_add(1);
        let tokens_left = self.limited_by.borrow().as_ref().map(|limited| limited.max_tokens);
        let attempt = Attempt { target, number, left: self.left(), tokens_left };
        let mut stream = Stream::open(&self.work.ctx, &plugin.providers, order, attempt)?;
        loop {
            match stream.next().await? {
                Piece::Delta(delta) => {
                    first_ms.set(first_ms.get().or(Some(plugin.now_ms())));
                    let calls = delta.tool_calls.iter().map(|call| call.arguments.len() + 1);
                    let words = delta.text.len() + calls.sum::<usize>();
                    let told = size::of_logprobs(&delta.logprobs);
                    if words + told == 0 {
                        continue;
                    }
                    if self.work.trail.say(words, told) > TEXT_BYTES_MAX {
                        return Err(hint::too_long(TEXT_BYTES_MAX));
                    }
                    self.work.pass_on(delta).await?;
                }
                Piece::Last(answer) if size::of_answer(&answer) > TEXT_BYTES_MAX => {
                    return Err(hint::too_long(TEXT_BYTES_MAX));
                }
                Piece::Last(answer) => return Ok(*answer),
            }
        }
    }

    fn next(&self, target: &Target, refusal: &Refusal, ranked: &[Ranked]) -> Next {
        let retry = &self.plugin().config.retry;
        let said = self.work.trail.said() > 0;
        if (said && !self.work.order.restart) || is_of_the_request(refusal) {
            return Next::End;
        }
        // A provider says of what was sent in part that it must not be repeated in
        // silence; here it is not.
        let retryable = refusal.retryable || (said && refusal.code.retryable());
        let others = ranked.iter().any(|other| other.is_eligible() && other.target != *target);
        let name = self.plugin().providers.name(target);
        let times = self.work.trail.times(&name);
        let pause = retry.wait(times.max(1), refusal, spread(&self.work.place.entry.id, times));
        let patience = Duration::from_millis(retry.patience_ms);
        // A pause beyond the time of the request would only hide why it ends.
        let pause = pause.filter(|pause| *pause < self.left() && !(others && *pause > patience));
        match pause.filter(|_| retryable && times <= retry.attempts) {
            Some(pause) => Next::Again(pause),
            None if others => Next::Other,
            None => Next::End,
        }
    }
}

/// An attempt that the router counts. Dropped before it ended, it was given up.
struct Counted<'a> {
    plugin: &'a Completion,
    target: &'a Target,
    ticket: Option<Ticket>,
}

impl Counted<'_> {
    fn answered(mut self, first_ms: u64, tokens: u64, now_ms: u64) {
        if let Some(ticket) = self.ticket.take() {
            self.plugin.router.borrow_mut().answered(self.target, &ticket, first_ms, tokens, now_ms);
        }
    }

    fn refused(mut self, refusal: &Refusal, now_ms: u64) {
        if let Some(ticket) = self.ticket.take() {
            self.plugin.router.borrow_mut().refused(self.target, &ticket, refusal, now_ms);
        }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            let now_ms = self.plugin.now_ms();
            self.plugin.router.borrow_mut().given_up(self.target, &ticket, now_ms);
        }
    }
}

/// Whether a refusal is about the request itself, so that no other model would
/// answer it.
fn is_of_the_request(refusal: &Refusal) -> bool {
    matches!(
        refusal.code,
        Code::InvalidPayload | Code::InvalidFrame | Code::Cancelled | Code::Conflict | Code::ShuttingDown
    )
}

/// A number that differs between requests and attempts, to spread waits.
fn spread(id: &str, attempt: u32) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (id, attempt).hash(&mut hasher);
    hasher.finish()
}
