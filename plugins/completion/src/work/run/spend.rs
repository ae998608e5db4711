//! What attempts are expected to take, and what they took.

use ksi_provider::Usage;
use ksi_sdk::prelude::Refusal;

use super::Run;
use crate::{
    books::{Expected, Reserved, Taken, cost},
    order::estimated_tokens,
    provider::Target,
};

impl Run<'_> {
    /// Reserves in the budgets that apply what the next attempt is expected to take.
    pub(super) async fn reserve(&self, target: &Target) -> Result<Reserved<'_>, Refusal> {
        let (plugin, order) = (self.plugin(), self.order());
        let (needs, config) = (order.needs(), plugin.providers.of(target).model(&target.model));
        let expected = Expected {
            prompt_tokens: needs.prompt_tokens,
            answers: needs.answers,
            max_tokens: order.settings.max_tokens,
            answer_tokens: self.answer_tokens(target),
            prompt_price: config.prompt_price,
            completion_price: config.completion_price,
        };
        let attempt = (self.work.place.entry.id.clone(), self.number());
        let who = crate::who(&self.work.ctx, order.agent.as_deref(), order.conversation.as_deref());
        let model = plugin.providers.name(target).to_string();
        plugin.books.reserve(&plugin.ctx, attempt, &who, &model, expected).await
    }

    /// Most tokens of an answer whose request does not say. More than the context has
    /// room for would be refused by some servers.
    fn answer_tokens(&self, target: &Target) -> u32 {
        let (plugin, needs) = (self.plugin(), self.order().needs());
        let context = plugin.catalogue.context_length(target, plugin.providers.of(target));
        let room = context.map(|context| context.saturating_sub(needs.prompt_tokens).max(1));
        let room = room.and_then(|room| u32::try_from(room).ok()).unwrap_or(u32::MAX);
        plugin.config.answer_tokens.min(room)
    }

    /// What an attempt has taken so far, where its provider does not say.
    pub(super) fn guess(&self, target: &Target, said: usize) -> Taken {
        let price = self.plugin().providers.of(target).model(&target.model);
        let prompt_tokens = self.order().needs().prompt_tokens;
        let completion_tokens = estimated_tokens(said);
        let nanos = cost(prompt_tokens, price.prompt_price) + cost(completion_tokens, price.completion_price);
        Taken { prompt_tokens, completion_tokens, nanos, answered: false, asked: true }
    }

    pub(super) fn took(&self, target: &Target, usage: &Usage) -> Taken {
        let price = self.plugin().providers.of(target).model(&target.model);
        let Usage { prompt_tokens, completion_tokens, .. } = *usage;
        let nanos = usage.cost_usd.map_or_else(
            || cost(prompt_tokens, price.prompt_price) + cost(completion_tokens, price.completion_price),
            |money| cost(1_000_000, Some(money)),
        );
        Taken { prompt_tokens, completion_tokens, nanos, answered: true, asked: true }
    }
}
