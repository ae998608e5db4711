//! What attempts are expected to take, and what they took.

use ksi_provider::Usage;
use ksi_sdk::prelude::Refusal;

use super::Run;
use crate::{
    books::{Amounts, Reserved, Taken, cost},
    order::estimated_tokens,
    provider::Target,
};

impl Run<'_> {
    /// Reserves in the budgets that apply what the next attempt is expected to take.
    pub(super) async fn reserve(&self, target: &Target) -> Result<Reserved<'_>, Refusal> {
        let (plugin, order) = (self.plugin(), self.order());
        let needs = order.needs();
        let (made, price) =
            (needs.made(needs.max_tokens.unwrap_or(0)), plugin.providers.of(target).model(&target.model));
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
