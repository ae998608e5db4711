//! What attempts are expected to take, and what they took.

use ksi_provider::Usage;
use ksi_sdk::prelude::Refusal;

use super::Run;
use crate::{
    books::{Expected, Reserved, Taken, cost},
    config::ModelConfig,
    order::{Order, estimated_tokens},
    payload::LimitedBy,
    provider::Target,
};

/// What an attempt spends. Dropped before it ended, it has spent what was read and said
/// by then: an answer that is given up at its last word is paid for.
pub(super) struct Spending<'a> {
    run: &'a Run<'a>,
    target: &'a Target,
    prompt_tokens: u64,
    reserved: Reserved<'a>,
    under_way: bool,
}

impl Spending<'_> {
    /// The budget that says how long each answer may be.
    pub(super) fn limited_by(&mut self) -> Option<LimitedBy> {
        self.reserved.limited_by.take()
    }

    /// Somebody is asked now.
    pub(super) fn begin(&mut self) {
        self.under_way = true;
    }

    /// The attempt was answered with so many bytes of words, by what was asked for or by something
    /// else. A provider that does not count tokens is not for free: they are estimated.
    pub(super) fn answered(&mut self, told: &Usage, bytes: usize, answered: bool) {
        let usage = self.counted(told, bytes.max(self.run.work.trail.words()));
        self.end(Taken { answered, ..self.run.took(self.target, &usage) });
    }

    /// What was used, with what nobody told.
    fn counted(&self, told: &Usage, bytes: usize) -> Usage {
        let or = |told: u64, estimate: u64| if told == 0 { estimate } else { told };
        Usage {
            prompt_tokens: or(told.prompt_tokens, self.prompt_tokens),
            completion_tokens: or(told.completion_tokens, estimated_tokens(bytes)),
            ..*told
        }
    }

    /// The attempt has ended, and that is what it took.
    pub(super) fn end(&mut self, taken: Taken) {
        (self.reserved.taken, self.under_way) = (taken, false);
    }
}

impl Drop for Spending<'_> {
    fn drop(&mut self) {
        if self.under_way {
            let usage = self.counted(&Usage::default(), self.run.work.trail.words());
            self.reserved.taken = Taken { answered: false, ..self.run.took(self.target, &usage) };
        }
    }
}

impl Run<'_> {
    /// Reserves in the budgets that apply what the next attempt is expected to take; of
    /// what is read nobody knows before whether it comes from a cache, or goes there.
    pub(super) async fn reserve<'s>(
        &'s self,
        target: &'s Target,
        order: &Order,
    ) -> Result<Spending<'s>, Refusal> {
        let plugin = self.plugin();
        let (needs, config) = (order.needs(), plugin.providers.of(target).model(&target.model));
        let expected = Expected {
            prompt_tokens: needs.prompt_tokens,
            answers: needs.answers,
            max_tokens: order.settings.max_tokens,
            answer_tokens: self.answer_tokens(target, needs.prompt_tokens),
            prompt_price: config.dearest_prompt_price(),
            completion_price: config.completion_price,
        };
        let who = crate::who(&self.work.ctx, order.agent.as_deref(), order.conversation.as_deref());
        let model = plugin.providers.name(target).to_string();
        let id = &self.work.place.entry.id;
        let reserved = plugin.books.reserve(&plugin.ctx, id, &who, &model, expected).await?;
        let prompt_tokens = needs.prompt_tokens;
        Ok(Spending { run: self, target, prompt_tokens, reserved, under_way: false })
    }

    /// Most tokens of an answer whose request does not say. More than the context has
    /// room for would be refused by some servers.
    fn answer_tokens(&self, target: &Target, prompt_tokens: u64) -> u32 {
        let plugin = self.plugin();
        let context = plugin.catalogue.context_length(target, plugin.providers.of(target));
        let room = context.map(|context| context.saturating_sub(prompt_tokens).max(1));
        let room = room.and_then(|room| u32::try_from(room).ok()).unwrap_or(u32::MAX);
        plugin.config.answer_tokens.min(room)
    }

    pub(super) fn took(&self, target: &Target, usage: &Usage) -> Taken {
        let model = self.plugin().providers.of(target).model(&target.model);
        let Usage { prompt_tokens, completion_tokens, .. } = *usage;
        let told = usage.cost_usd.map(|money| cost(1_000_000, Some(money)));
        let nanos = told.unwrap_or_else(|| price(&model, usage));
        Taken { prompt_tokens, completion_tokens, nanos, answered: true, asked: true }
    }
}

/// Money for what was read and made, in billionths. What came from a cache, or went
/// there, is a part of what was read, with a price of its own.
fn price(model: &ModelConfig, usage: &Usage) -> u64 {
    let cached = usage.cached_tokens.min(usage.prompt_tokens);
    let written = usage.cache_write_tokens.unwrap_or(0).min(usage.prompt_tokens - cached);
    let fresh = usage.prompt_tokens - cached - written;
    cost(fresh, model.prompt_price)
        + cost(cached, model.cached_price.or(model.prompt_price))
        + cost(written, model.cache_write_price.or(model.prompt_price))
        + cost(usage.completion_tokens, model.completion_price)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_a_cache_or_goes_there_has_its_own_price() {
        let plain =
            ModelConfig { prompt_price: Some(10.0), completion_price: Some(50.0), ..ModelConfig::default() };
        let dear = ModelConfig { cached_price: Some(1.0), cache_write_price: Some(12.5), ..plain };
        let usage = |prompt_tokens, cached_tokens, written| Usage {
            prompt_tokens,
            completion_tokens: 10,
            cached_tokens,
            cache_write_tokens: written,
            ..Usage::default()
        };
        for (usage, without, with) in [
            (usage(100, 0, None), 1_500_000, 1_500_000),
            (usage(100, 80, None), 1_500_000, 500_000 + 200_000 + 80_000),
            (usage(100, 0, Some(40)), 1_500_000, 500_000 + 600_000 + 500_000),
            (usage(100, 50, Some(40)), 1_500_000, 500_000 + 100_000 + 50_000 + 500_000),
            // What is told cannot be: no more was read than was read.
            (usage(100, 900, Some(900)), 1_500_000, 500_000 + 100_000),
        ] {
            assert_eq!((price(&plain, &usage), price(&dear, &usage)), (without, with), "{usage:?}");
        }
        assert_eq!((plain.dearest_prompt_price(), dear.dearest_prompt_price()), (Some(10.0), Some(12.5)));
    }
}
