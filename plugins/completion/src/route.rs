//! The router: which model a request goes to, and why not to the others.
//!
//! Every candidate passes four stages: *capability* (can it do what the request
//! needs), *policy* (may it be asked), *health* (its circuit breaker lets
//! requests through), *score* (about how long it would take). What is left is
//! ranked by tier, then by score. A candidate that has to be waited for, whose
//! context may be too small, or whose plugin was not there when last looked, goes
//! behind the others, and is still asked where there is no other.
//!
//! It asks nobody and reads no clock: a pure state machine, the time is an
//! argument in milliseconds since 1970.

use std::collections::HashMap;

use ksi_provider::{Failure, failure::quoted};
use ksi_sdk::prelude::{Code, Refusal, json};

use crate::{
    config::Config,
    order::{Needs, Order},
    payload::{Candidate, Load, Stage},
    provider::{Providers, Target, is_absent},
};

pub mod breaker;
pub(crate) mod catalogue;
pub mod pace;
mod policy;

use breaker::{Breaker, Outcome, Pass, State};
use catalogue::Catalogue;
use pace::{Begun, Pace, Pause};

/// What a model is taken to need before its first text, as long as nothing was
/// measured, milliseconds.
const FIRST_GUESS_MS: f64 = 1000.0;
/// How much a new measurement counts.
const LATENCY_WEIGHT: f64 = 0.2;
/// Age at which a measurement counts no more.
const LATENCY_AGE_MS: u64 = 600_000;
/// Most models of which something is remembered: their names come from clients.
const MODELS_MAX: usize = 1024;

/// What is known of a model from requests to it.
#[derive(Debug)]
struct Health {
    breaker: Breaker,
    /// Time to the first text, a moving mean.
    latency_ms: Option<f64>,
    seen_ms: u64,
    /// Until when its provider asked that it be left alone, and others not.
    pause: Pause,
}

/// What the router knows.
pub(crate) struct Router {
    rules: breaker::Rules,
    patience_ms: u64,
    wait_max_ms: u64,
    pause_max_ms: u64,
    health: HashMap<Target, Health>,
    paces: Vec<Pace>,
}

/// An attempt under way, as the router counts it.
pub(crate) struct Ticket {
    pass: Pass,
    begun: Begun,
}

/// What a ranking looks at beside the router's own knowledge.
pub(crate) struct View<'a> {
    pub(crate) config: &'a Config,
    pub(crate) providers: &'a Providers,
    pub(crate) catalogue: &'a Catalogue,
    pub(crate) loads: &'a [Load],
    pub(crate) tenant: Option<&'a str>,
    /// Those that were tried and will not be tried again, and why.
    pub(crate) spent: &'a [(Target, String)],
    /// What the order needs of those that it was prepared for.
    pub(crate) needs: &'a [(Target, Needs)],
}

/// A candidate and where it stands.
pub(crate) struct Ranked {
    pub(crate) target: Target,
    pub(crate) tier: usize,
    /// How long it would have to wait for the provider's pace.
    pub(crate) wait_ms: u64,
    pub(crate) out: Option<Stage>,
    retry_after_ms: Option<u64>,
    /// Where its context is too small: how many tokens are read, and how many it has.
    too_small: Option<(u64, u64)>,
    score_ms: f64,
    /// Whether it goes behind the others; its last reason says why.
    pub(crate) last_resort: bool,
    pub(crate) reasons: Vec<String>,
}

impl Ranked {
    pub(crate) fn is_eligible(&self) -> bool {
        self.out.is_none()
    }

    /// As it is told to users.
    pub(crate) fn candidate(&self, providers: &Providers) -> Candidate {
        Candidate {
            model: providers.name(&self.target).to_string(),
            tier: self.tier,
            eligible: self.is_eligible(),
            stage: self.out,
            score_ms: self.is_eligible().then(|| self.score_ms.round()),
            wait_ms: self.wait_ms,
            retry_after_ms: self.retry_after_ms,
            reasons: self.reasons.clone(),
        }
    }
}

impl Router {
    pub(crate) fn new(config: &Config, providers: &Providers) -> Self {
        Self {
            rules: config.breaker_rules(),
            patience_ms: config.retry.patience_ms,
            wait_max_ms: config.retry.wait_max_ms,
            pause_max_ms: config.retry.pause_max_ms,
            health: HashMap::new(),
            paces: providers.all().iter().map(|provider| Pace::new(provider.limits)).collect(),
        }
    }

    /// All models that an order may be answered by, the best one first, those that
    /// cannot be asked last.
    pub(crate) fn rank(&self, order: &Order, view: &View<'_>, now_ms: u64) -> Vec<Ranked> {
        let needs = order.needs();
        let mut ranked = Vec::new();
        for (tier, targets) in order.choice.tiers.iter().enumerate() {
            for target in targets {
                let prepared = view.needs.iter().find(|(other, _)| other == target);
                let needs = prepared.map_or(&needs, |(_, needs)| needs);
                ranked.push(self.judge(order, target, tier, needs, view, now_ms));
            }
        }
        ranked.sort_by(|one, other| {
            let class = |ranked: &Ranked| (!ranked.is_eligible(), ranked.last_resort, ranked.tier);
            class(one).cmp(&class(other)).then(one.score_ms.total_cmp(&other.score_ms))
        });
        ranked
    }

    fn judge(
        &self,
        order: &Order,
        target: &Target,
        tier: usize,
        needs: &Needs,
        view: &View<'_>,
        now_ms: u64,
    ) -> Ranked {
        let provider = view.providers.of(target);
        let wait_ms =
            self.paces[target.lane].wait_ms(needs.tokens(), now_ms).max(self.pause_ms(target, now_ms));
        let mut ranked = Ranked {
            target: target.clone(),
            tier,
            wait_ms,
            out: None,
            retry_after_ms: None,
            too_small: None,
            score_ms: 0.0,
            last_resort: false,
            reasons: Vec::new(),
        };
        if let Some((_, why)) = view.spent.iter().find(|(spent, _)| spent == target) {
            return out(ranked, Stage::Tried, why.clone());
        }
        if let Some(why) = view.catalogue.lacks(target, provider, needs) {
            return out(ranked, Stage::Capability, why);
        }
        let context = view.catalogue.context_length(target, provider);
        if let Some(context) = context.filter(|context| needs.least_tokens > *context) {
            let least = needs.least_tokens;
            ranked.too_small = Some((least, context));
            let why = format!("at least {least} tokens are to be read, and its context has {context}");
            return out(ranked, Stage::Capability, why);
        }
        if let Some(why) = policy::forbids(order, target, view) {
            return out(ranked, Stage::Policy, why);
        }
        let health = self.health.get(target);
        if let Some(Err(ms)) = health.map(|health| health.breaker.admits(now_ms)) {
            ranked.retry_after_ms = Some(ms);
            let why = "it failed again and again and is left alone for now (circuit breaker)";
            return out(ranked, Stage::Health, why.into());
        }
        let pause_ms = self.paces[target.lane].pause.left_ms(now_ms).max(self.pause_ms(target, now_ms));
        if pause_ms > self.wait_max_ms {
            ranked.retry_after_ms = Some(pause_ms);
            let why = format!("{} asked to be left alone for {pause_ms} ms", provider.name);
            return out(ranked, Stage::Health, why);
        }
        let measured = health.and_then(|health| {
            health.latency_ms.filter(|_| now_ms.saturating_sub(health.seen_ms) < LATENCY_AGE_MS)
        });
        ranked.reasons.push(match measured {
            Some(ms) => format!("first text after {ms:.0} ms, as measured"),
            None => "not measured yet".into(),
        });
        let load = &view.loads[target.lane];
        #[expect(clippy::cast_precision_loss, reason = "requests and milliseconds are no such large numbers")]
        let (queue, wait) = ((load.running + load.queued) as f64 / load.concurrency as f64, wait_ms as f64);
        if load.queued > 0 {
            ranked.reasons.push(format!("{} requests wait for {}", load.queued, provider.name));
        }
        ranked.score_ms = measured.unwrap_or(FIRST_GUESS_MS) * (1.0 + queue) / provider.weight + wait;
        if wait_ms > 0 {
            ranked.reasons.push(format!("the limit of {} lets it begin in {wait_ms} ms", provider.name));
        }
        if let Some(why) = view.catalogue.absent(target.lane, now_ms) {
            ranked.last_resort = true;
            ranked.reasons.push(why);
        }
        if let Some(why) = view.catalogue.is_tight(target, provider, needs) {
            ranked.last_resort = true;
            ranked.reasons.push(why);
        }
        ranked.last_resort |= wait_ms > self.patience_ms;
        ranked
    }

    /// Counts an attempt that begins.
    pub(crate) fn begin(&mut self, target: &Target, tokens: u64, now_ms: u64) -> Result<Ticket, u64> {
        let pass = self.health_of(target, now_ms).breaker.begin(now_ms)?;
        Ok(Ticket { pass, begun: self.paces[target.lane].begin(tokens, now_ms) })
    }

    /// What is known of a model, from now on at the latest.
    fn health_of(&mut self, target: &Target, now_ms: u64) -> &mut Health {
        if !self.health.contains_key(target) {
            self.make_room();
        }
        let rules = self.rules;
        self.health.entry(target.clone()).or_insert_with(|| Health {
            breaker: Breaker::new(rules),
            latency_ms: None,
            seen_ms: now_ms,
            pause: Pause::default(),
        })
    }

    /// Forgets the model that was asked longest ago, where there are too many.
    fn make_room(&mut self) {
        if self.health.len() < MODELS_MAX {
            return;
        }
        let oldest = self.health.iter().min_by_key(|(_, health)| health.seen_ms);
        if let Some(oldest) = oldest.map(|(target, _)| target.clone()) {
            self.health.remove(&oldest);
        }
    }

    /// Hears that an attempt was answered: after how long its first text came, and
    /// how many tokens it had.
    pub(crate) fn answered(
        &mut self,
        target: &Target,
        ticket: &Ticket,
        first_ms: u64,
        tokens: u64,
        now_ms: u64,
    ) {
        self.end(target, ticket, Outcome::Succeeded, now_ms);
        self.paces[target.lane].correct(ticket.begun, tokens);
        if let Some(health) = self.health.get_mut(target) {
            #[expect(clippy::cast_precision_loss, reason = "milliseconds of one request")]
            let first = first_ms as f64;
            let old = health.latency_ms.filter(|_| now_ms.saturating_sub(health.seen_ms) < LATENCY_AGE_MS);
            health.latency_ms = Some(old.map_or(first, |old| old + (first - old) * LATENCY_WEIGHT));
            health.seen_ms = now_ms;
        }
    }

    /// Hears that an attempt was refused.
    pub(crate) fn refused(&mut self, target: &Target, ticket: &Ticket, refusal: &Refusal, now_ms: u64) {
        let outcome = if is_sick(refusal) { Outcome::Failed } else { Outcome::Neither };
        self.end(target, ticket, outcome, now_ms);
        // What one asker has used up is no wish of the provider's.
        let senders = refusal.details.as_ref().is_some_and(|details| details["blame"] == "sender");
        let passes = !senders && (refusal.retryable || refusal.code.retryable());
        let Some(ms) = refusal.retry_after_ms.filter(|_| passes) else { return };
        let why = quoted(&format!("{} refused: {}", target.model, refusal.message));
        // Where it names a model, the others of the provider have room.
        let of_one = refusal.details.as_ref().is_some_and(|details| details["model"].is_string());
        let longest = self.pause_max_ms;
        let pause = match of_one {
            true => &mut self.health_of(target, now_ms).pause,
            false => &mut self.paces[target.lane].pause,
        };
        pause.wish(ms, longest, &why, now_ms);
    }

    /// For how long one model is to be left alone.
    fn pause_ms(&self, target: &Target, now_ms: u64) -> u64 {
        self.health.get(target).map_or(0, |health| health.pause.left_ms(now_ms))
    }

    /// Hears that an attempt was given up by its asker.
    pub(crate) fn given_up(&mut self, target: &Target, ticket: &Ticket, now_ms: u64) {
        self.end(target, ticket, Outcome::Neither, now_ms);
    }

    fn end(&mut self, target: &Target, ticket: &Ticket, outcome: Outcome, now_ms: u64) {
        if let Some(health) = self.health.get_mut(target) {
            health.breaker.end(ticket.pass, outcome, now_ms);
        }
    }

    /// Who of one provider is left alone at its own wish: all of it, and models alone.
    pub(crate) fn pauses(&self, lane: usize, now_ms: u64) -> Vec<(Option<&str>, &Pause)> {
        let of = self.health.iter().filter(|(target, _)| target.lane == lane);
        let models = of.map(|(target, health)| (Some(target.model.as_str()), &health.pause));
        let all = [(None, &self.paces[lane].pause)].into_iter().chain(models);
        let mut pauses: Vec<_> = all.filter(|(_, pause)| pause.left_ms(now_ms) > 0).collect();
        pauses.sort_by_key(|(model, _)| *model);
        pauses
    }

    /// Models of one provider whose breaker is not closed, with where it stands.
    pub(crate) fn sick(&self, lane: usize, now_ms: u64) -> Vec<(String, State)> {
        let of = self.health.iter().filter(|(target, _)| target.lane == lane);
        let state = of.map(|(target, health)| (target.model.clone(), health.breaker.state(now_ms)));
        let mut sick: Vec<_> = state.filter(|(_, state)| *state != State::Closed).collect();
        sick.sort_by(|one, other| one.0.cmp(&other.0));
        sick
    }
}

fn out(mut ranked: Ranked, stage: Stage, why: String) -> Ranked {
    ranked.out = Some(stage);
    ranked.reasons.push(why);
    ranked
}

/// Whether a refusal says that something is wrong with the model or its
/// provider, and not with the request. One that has too much to do is not sick.
fn is_sick(refusal: &Refusal) -> bool {
    match Failure::of(refusal) {
        Some(Failure::RateLimited) => false,
        Some(failure) => failure.is_of_the_provider(),
        None if is_absent(refusal) => false,
        None => matches!(
            refusal.code,
            Code::Timeout | Code::PluginRestarted | Code::Unavailable | Code::Internal | Code::Unknown
        ),
    }
}

/// The refusal where no candidate can be asked. The stage that could pass by
/// itself decides over the others.
pub(crate) fn nobody(ranked: &[Ranked], order: &Order, providers: &Providers) -> Refusal {
    let at = |stage| ranked.iter().find(|one| one.out == Some(stage));
    let told: Vec<_> = ranked.iter().map(|one| one.candidate(providers)).collect();
    let sentence = |one: &Ranked| {
        let name = providers.name(&one.target);
        format!("{name}: {}", one.reasons.first().map_or("", String::as_str))
    };
    let (code, first) = match (at(Stage::Health), at(Stage::Policy), at(Stage::Capability)) {
        (Some(one), ..) => (Code::Unavailable, one),
        (None, Some(one), _) => (Code::Denied, one),
        (None, None, Some(one)) if one.too_small.is_some() => (Code::TooLarge, one),
        (None, None, Some(one)) => (Code::InvalidPayload, one),
        (None, None, None) => {
            return Refusal::new(Code::Unavailable, "no model is left to ask")
                .details(json!({ "candidates": told }));
        }
    };
    let message = match ranked.len() {
        1 => sentence(first),
        n => format!("none of {n} models can be asked; {}", sentence(first)),
    };
    let mut details = json!({ "candidates": told });
    let mut hint = "`completion:route` shows every candidate with its reasons; `fallbacks` names others";
    if let Some((tokens, context)) = first.too_small {
        (details["prompt_tokens"], details["context"]) = (json!(tokens), json!(context));
        hint = match order.could_be_trimmed() {
            true => "`trim` leaves out the oldest messages; `fallbacks` names models with more room",
            false => "shorten it, or name models with more room in `fallbacks`",
        };
    }
    let refusal = Refusal::new(code, message).hint(hint).details(details);
    match ranked.iter().filter_map(|one| one.retry_after_ms).min() {
        Some(ms) => refusal.retry_after_ms(ms),
        None => refusal,
    }
}

#[cfg(test)]
mod tests;
