//! The attempts at one request: who is asked, what follows a refusal, and what
//! is told of it in the end.
//!
//! # Invariants
//!
//! - Once a piece of text was passed on, the request is never tried again unless
//!   it allowed that; then whoever reads is told that the text starts over.
//! - Every attempt is in the list of those that were tried, once.
//! - An attempt that began is ended at the router, whatever happens to the task.

use std::cell::{Cell, RefCell};

use ksi_provider::{Generated, Message, Role, Usage};
use ksi_sdk::prelude::{Code, Duration, Refusal};

use super::{
    Work,
    prepare::{Prepared, about, prepare},
};
use crate::{
    Completion,
    books::{Amounts, Reserved, Taken, cost},
    ledger::Phase,
    order::{Chosen, Order, estimated_tokens},
    payload::{Completed, ModelName, Restarted, Tried},
    provider::{Attempt, DEFAULT, Piece, Stream, Target, is_absent},
    route::{self, Ranked, Ticket, View},
    schema,
};

/// Longest text of an answer: it must fit a frame together with the rest.
const TEXT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A request that has its turn.
pub(super) struct Run<'a> {
    work: &'a Work,
    prepared: Prepared,
    tried: RefCell<Vec<Tried>>,
    /// Models that will not be tried again, and why.
    spent: RefCell<Vec<(Target, String)>>,
    /// What ended the last attempt.
    last: RefCell<Option<Refusal>>,
    /// Bytes that were passed on and are not void.
    said: Cell<usize>,
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
    /// Prepares a request whose turn it is.
    pub(super) async fn begin(work: &'a Work) -> Result<Self, Refusal> {
        work.started().await;
        let plugin = &work.place.plugin;
        let ranked = plugin.rank(&work.ctx, &work.order);
        let Some(best) = ranked.first().filter(|best| best.is_eligible()) else {
            return Err(work.with_id(route::nobody(&ranked, &plugin.providers), &[]));
        };
        let prepared = prepare(work, &best.target).await.map_err(|refusal| work.with_id(refusal, &[]))?;
        Ok(Self {
            work,
            prepared,
            tried: RefCell::default(),
            spent: RefCell::default(),
            last: RefCell::default(),
            said: Cell::new(0),
        })
    }

    fn order(&self) -> &Order {
        &self.prepared.order
    }

    fn plugin(&self) -> &Completion {
        &self.work.place.plugin
    }

    pub(super) async fn to_the_end(&self) -> Result<Completed, Refusal> {
        let entry = &self.work.place.entry;
        loop {
            let ranked = self.rank();
            let Some(best) = ranked.first().filter(|best| best.is_eligible()) else {
                let refusal = self.last.take();
                let refusal = refusal.unwrap_or_else(|| route::nobody(&ranked, &self.plugin().providers));
                return Err(self.work.with_id(refusal, &self.tried.borrow()));
            };
            let now_ms = self.plugin().now_ms();
            self.plugin().ledger.borrow_mut().go_on_with(entry, &best.target, now_ms);
            if entry.phase.get() == Phase::Queued {
                entry.changed.until(|| entry.phase.get() != Phase::Queued).await;
                continue;
            }
            if best.wait_ms > 0 {
                self.wait_for_pace(best).await?;
                continue;
            }
            let reserved = match self.reserve(&best.target).await {
                Ok(reserved) => reserved,
                Err(refusal) => {
                    let why = refusal.message.clone();
                    self.spent.borrow_mut().push((best.target.clone(), why));
                    self.last.replace(Some(refusal));
                    continue;
                }
            };
            // Others may have gone first while that was written down.
            if self.plugin().books.has_budgets() && !self.is_its_turn(&best.target) {
                continue;
            }
            match self.attempt(&best.target, reserved).await {
                Ok(answer) => return self.completed(&best.target, answer).await,
                Err(refusal) => match self.next(&best.target, &refusal, &ranked) {
                    Next::End => return Err(self.work.with_id(refusal, &self.tried.borrow())),
                    Next::Again(pause) => {
                        self.last.replace(Some(refusal));
                        self.work.ctx.sleep(pause).await;
                    }
                    Next::Other => {
                        let why = format!("it refused: {}", refusal.code);
                        self.spent.borrow_mut().push((best.target.clone(), why));
                        self.last.replace(Some(refusal));
                    }
                },
            }
        }
    }

    fn rank(&self) -> Vec<Ranked> {
        let plugin = self.plugin();
        let mut loads = plugin.ledger.borrow().loads();
        // It is not in its own way.
        let own = &mut loads[self.work.place.entry.lane.get()];
        own.running = own.running.saturating_sub(1);
        let view = View {
            config: &plugin.config,
            providers: &plugin.providers,
            catalogue: &plugin.catalogue,
            loads: &loads,
            tenant: self.work.ctx.tenant(),
            spent: &self.spent.borrow(),
        };
        plugin.router.borrow().rank(self.order(), &view, plugin.now_ms())
    }

    /// Whether a model is still the one to ask, and now.
    fn is_its_turn(&self, target: &Target) -> bool {
        let now = self.rank();
        now.first().is_some_and(|best| best.is_eligible() && best.target == *target && best.wait_ms == 0)
    }

    /// Waits until the limits of the provider let the request begin.
    async fn wait_for_pace(&self, best: &Ranked) -> Result<(), Refusal> {
        let wait = Duration::from_millis(best.wait_ms);
        if wait < self.left() {
            self.work.ctx.sleep(wait).await;
            return Ok(());
        }
        let name = &self.plugin().providers.of(&best.target).name;
        let refusal = Refusal::new(
            Code::Busy,
            format!("the limit of provider `{name}` is reached beyond the time of this request"),
        );
        let refusal = refusal.hint("try again later, or name `fallbacks`").retry_after_ms(best.wait_ms);
        Err(self.work.with_id(refusal, &self.tried.borrow()))
    }

    fn left(&self) -> Duration {
        let age_ms = self.plugin().now_ms().saturating_sub(self.work.place.entry.accepted_ms);
        self.order().timeout.saturating_sub(Duration::from_millis(age_ms))
    }

    /// Reserves in the budgets that apply what the next attempt is expected to take.
    async fn reserve(&self, target: &Target) -> Result<Reserved<'_>, Refusal> {
        let (plugin, order) = (self.plugin(), self.order());
        let needs = order.needs();
        let (made, price) = (needs.max_tokens.unwrap_or(0), plugin.providers.of(target).model(&target.model));
        let expected = Amounts {
            calls: 1,
            tokens: needs.tokens(),
            nanos: cost(needs.prompt_tokens, price.prompt_price) + cost(made, price.completion_price),
        };
        let attempt = (self.work.place.entry.id.clone(), self.number());
        let who = crate::who(&self.work.ctx, order.agent.as_deref(), order.conversation.as_deref());
        let model = plugin.providers.name(target).to_string();
        plugin.books.reserve(&plugin.ctx, attempt, &who, &model, expected).await
    }

    /// Number of the next attempt.
    fn number(&self) -> u32 {
        u32::try_from(self.tried.borrow().len()).unwrap_or(u32::MAX).saturating_add(1)
    }

    /// What an attempt has taken so far, where its provider does not say.
    fn guess(&self, target: &Target, said: usize) -> Taken {
        let price = self.plugin().providers.of(target).model(&target.model);
        let prompt_tokens = self.order().needs().prompt_tokens;
        let completion_tokens = estimated_tokens(said);
        let nanos = cost(prompt_tokens, price.prompt_price) + cost(completion_tokens, price.completion_price);
        Taken { prompt_tokens, completion_tokens, nanos, answered: false, asked: true }
    }

    fn took(&self, target: &Target, usage: &Usage) -> Taken {
        let price = self.plugin().providers.of(target).model(&target.model);
        let Usage { prompt_tokens, completion_tokens, .. } = *usage;
        let nanos = usage.cost_usd.map_or_else(
            || cost(prompt_tokens, price.prompt_price) + cost(completion_tokens, price.completion_price),
            |money| cost(1_000_000, Some(money)),
        );
        Taken { prompt_tokens, completion_tokens, nanos, answered: true, asked: true }
    }

    /// Asks a model once.
    async fn attempt(&self, target: &Target, mut reserved: Reserved<'_>) -> Result<Generated, Refusal> {
        let plugin = self.plugin();
        let began_ms = plugin.now_ms();
        let needs = self.order().needs();
        let begun = plugin.router.borrow_mut().begin(target, needs.tokens(), began_ms);
        // The ranking has just said that it is let through.
        let ticket =
            begun.map_err(|ms| Refusal::new(Code::Unavailable, "left alone for now").retry_after_ms(ms))?;
        let counted = Counted { plugin, target, ticket: Some(ticket) };
        let number = self.number();
        self.announce(number, target).await?;
        let first_ms = Cell::new(None);
        // As long as nothing else is known: it was asked, and read the request.
        reserved.taken = self.guess(target, 0);
        let asked = self.ask(target, &first_ms).await;
        let usage = asked.as_ref().ok().map(|answer| answer.usage);
        let asked = asked.and_then(|answer| {
            schema::check(self.order().settings.response_format.as_ref(), &answer).map(|()| answer)
        });
        let asked = asked.map_err(|refusal| plugin.providers.of(target).blame(refusal));
        let now_ms = plugin.now_ms();
        self.tried.borrow_mut().push(Tried {
            number,
            model: plugin.providers.name(target),
            outcome: asked.as_ref().map_or_else(|refusal| refusal.code.to_string(), |_| "answered".into()),
            message: asked.as_ref().err().map(|refusal| refusal.message.clone()),
            started_ms: began_ms.saturating_sub(self.work.place.entry.accepted_ms),
            took_ms: now_ms - began_ms,
            text_sent: self.said.get() > 0,
        });
        match &asked {
            Ok(answer) => {
                plugin.catalogue.found(target.lane);
                reserved.taken = self.took(target, &answer.usage);
                let first_ms = first_ms.get().unwrap_or(now_ms) - began_ms;
                counted.answered(first_ms, answer.usage.total_tokens, now_ms);
            }
            Err(refusal) => {
                reserved.taken = match (usage, self.said.get()) {
                    // It answered, and not what was asked for.
                    (Some(usage), _) => Taken { answered: false, ..self.took(target, &usage) },
                    (None, 0) => Taken { asked: !is_absent(refusal), ..Taken::default() },
                    (None, said) => self.guess(target, said),
                };
                if is_absent(refusal) {
                    plugin.catalogue.missed(target.lane, &refusal.message, now_ms);
                }
                let id = &self.work.place.entry.id;
                self.work.ctx.debug(&format!("{id}: attempt {number} refused: {}", refusal.code));
                counted.refused(refusal, now_ms);
            }
        }
        drop(reserved);
        self.work.write_books();
        asked
    }

    /// Says that the text starts over, where some was sent before.
    async fn announce(&self, attempt: u32, target: &Target) -> Result<(), Refusal> {
        if self.said.take() == 0 {
            return Ok(());
        }
        let because = self.last.borrow().as_ref().map_or_else(String::new, |refusal| refusal.message.clone());
        let model = self.plugin().providers.name(target);
        self.work.restarted(Restarted { attempt, model, because }).await
    }

    async fn ask(&self, target: &Target, first_ms: &Cell<Option<u64>>) -> Result<Generated, Refusal> {
        let plugin = self.plugin();
        let number = self.times(&plugin.providers.name(target)).saturating_add(1);
        let attempt = Attempt { target, number, left: self.left() };
        let mut stream = Stream::open(&self.work.ctx, &plugin.providers, self.order(), attempt)?;
        loop {
            match stream.next().await? {
                Piece::Delta(delta) => {
                    first_ms.set(first_ms.get().or(Some(plugin.now_ms())));
                    let calls = delta.tool_calls.iter().map(|call| call.arguments.len() + 1);
                    let bytes = delta.text.len() + calls.sum::<usize>();
                    if bytes == 0 {
                        continue;
                    }
                    self.said.set(self.said.get() + bytes);
                    if self.said.get() > TEXT_BYTES_MAX {
                        return Err(too_long());
                    }
                    self.work.pass_on(delta).await?;
                }
                Piece::Last(answer) if answer.text.len() > TEXT_BYTES_MAX => return Err(too_long()),
                Piece::Last(answer) => return Ok(*answer),
            }
        }
    }

    /// How often a model was asked.
    fn times(&self, name: &ModelName) -> u32 {
        let times = self.tried.borrow().iter().filter(|tried| tried.model == *name).count();
        u32::try_from(times).unwrap_or(u32::MAX)
    }

    fn next(&self, target: &Target, refusal: &Refusal, ranked: &[Ranked]) -> Next {
        let order = self.order();
        let retry = &self.plugin().config.retry;
        let said = self.said.get() > 0;
        if (said && !order.restart) || is_of_the_request(refusal) {
            return Next::End;
        }
        // A provider says of what was sent in part that it must not be repeated in
        // silence; here it is not.
        let retryable = refusal.retryable || (said && refusal.code.retryable());
        let others = ranked.iter().any(|other| other.is_eligible() && other.target != *target);
        let name = self.plugin().providers.name(target);
        let times = self.times(&name);
        let pause = retry.wait(times.max(1), refusal, spread(&self.work.place.entry.id, times));
        let patience = Duration::from_millis(retry.patience_ms);
        if retryable && times <= retry.attempts && !(others && pause > patience) {
            return Next::Again(pause);
        }
        if others { Next::Other } else { Next::End }
    }

    async fn completed(&self, target: &Target, answer: Generated) -> Result<Completed, Refusal> {
        let entry = &self.work.place.entry;
        let tried = self.tried.take();
        let asked = self.plugin().providers.name(target);
        let why = self.why(&asked, &answer.model, &tried);
        let answered = ModelName { provider: asked.provider, model: answer.model.clone() };
        let edited = about(self.work).after(answered.clone(), self.order(), answer).await;
        let answer = edited.map_err(|refusal| self.work.with_id(refusal, &tried))?;
        let said = Message {
            tool_calls: answer.tool_calls.clone(),
            ..Message::new(Role::Assistant, answer.text.clone())
        };
        let remembered = self.prepared.remember(self.work, said).await;
        Ok(Completed {
            request_id: entry.id.clone(),
            text: answer.text,
            tool_calls: answer.tool_calls,
            requested: self.order().choice.requested.clone(),
            answered,
            why,
            toy: answer.toy,
            stop_reason: answer.stop_reason.as_str().into(),
            seed: answer.seed,
            usage: answer.usage,
            timings: answer.timings,
            queued_ms: entry.started_ms.get().unwrap_or(entry.accepted_ms) - entry.accepted_ms,
            attempts: u32::try_from(tried.len()).unwrap_or(u32::MAX),
            tried,
            ignored: answer.ignored,
            conversation_id: self.order().conversation.clone(),
            context: self.prepared.report.clone(),
            remembered,
        })
    }

    /// Why the model called `answered` answered.
    fn why(&self, asked: &ModelName, answered: &str, tried: &[Tried]) -> String {
        let choice = &self.order().choice;
        let plain = match choice.chosen {
            _ if choice.is_alias() => format!("`{}` stands for it", choice.requested.model),
            Chosen::ByDefault => "default model".into(),
            Chosen::ByName if asked.model == DEFAULT => "default model".into(),
            Chosen::ByName if asked.model != answered => {
                format!("{} calls `{}` so", asked.provider, asked.model)
            }
            Chosen::ByName => "as requested".into(),
        };
        if choice.tiers[0].iter().any(|target| self.plugin().providers.name(target) == *asked) {
            return plain;
        }
        let mut failed: Vec<String> = Vec::new();
        for one in tried.iter().filter(|one| one.model != *asked) {
            let said = format!("{} refused ({})", one.model, one.outcome);
            if !failed.contains(&said) {
                failed.push(said);
            }
        }
        let ranked = self.rank();
        let left_out = ranked.iter().filter(|other| !other.is_eligible());
        for other in left_out.filter(|other| other.out != Some(crate::payload::Stage::Tried)) {
            let name = self.plugin().providers.name(&other.target);
            failed.push(format!("{name}: {}", other.reasons.first().map_or("", String::as_str)));
        }
        for other in ranked.iter().filter(|other| other.is_eligible() && other.last_resort) {
            let name = self.plugin().providers.name(&other.target);
            if name != *asked {
                failed.push(format!("{name}: {}", other.reasons.last().map_or("", String::as_str)));
            }
        }
        match failed.is_empty() {
            true => "fallback: the others would have to be waited for".into(),
            false => format!("fallback: {}", failed.join("; ")),
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

fn too_long() -> Refusal {
    Refusal::new(Code::TooLarge, format!("the answer is longer than {TEXT_BYTES_MAX} bytes"))
        .hint("`max_tokens` limits it")
}

/// A number that differs between requests and attempts, to spread waits.
fn spread(id: &str, attempt: u32) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (id, attempt).hash(&mut hasher);
    hasher.finish()
}
