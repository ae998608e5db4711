//! What is told of a request that was answered: the result, and why that model.

use ksi_provider::{Generated, Message, Role};
use ksi_sdk::prelude::Refusal;

use super::Run;
use crate::{
    order::Chosen,
    payload::{Completed, ModelName, Stage, Tried},
    provider::{DEFAULT, Target},
    work::prepare::{Prepared, about},
};

impl Run<'_> {
    pub(super) async fn completed(
        &self,
        target: &Target,
        prepared: &Prepared,
        answer: Generated,
    ) -> Result<Completed, Refusal> {
        let (entry, order) = (&self.work.place.entry, &prepared.order);
        let tried = self.work.trail.tried();
        let asked = self.plugin().providers.name(target);
        let why = self.why(&asked, &answer.model, &tried);
        let answered = ModelName { provider: asked.provider, model: answer.model.clone() };
        let edited = about(self.work).after(answered.clone(), order, answer).await;
        let answer = edited.map_err(|refusal| self.work.with_id(refusal))?;
        let said = Message {
            tool_calls: answer.tool_calls.clone(),
            ..Message::new(Role::Assistant, answer.text.clone())
        };
        let remembered = self.ground.remember(self.work, said).await;
        // A provider that cannot limit its answers says so, and was not limited.
        let (unlimited, ignored): (Vec<_>, Vec<_>) =
            answer.ignored.into_iter().partition(|setting| setting == "tokens_left");
        let limited_by = self.limited_by.take().filter(|_| unlimited.is_empty());
        Ok(Completed {
            request_id: entry.id.clone(),
            text: answer.text,
            tool_calls: answer.tool_calls,
            alternatives: answer.alternatives,
            logprobs: answer.logprobs,
            requested: order.choice.requested.clone(),
            answered,
            why,
            toy: answer.toy,
            stop_reason: answer.stop_reason.as_str().into(),
            limited_by,
            seed: answer.seed,
            usage: answer.usage,
            timings: answer.timings,
            queued_ms: entry.started_ms.get().unwrap_or(entry.accepted_ms) - entry.accepted_ms,
            attempts: u32::try_from(tried.len()).unwrap_or(u32::MAX),
            tried,
            ignored,
            conversation_id: order.conversation.clone(),
            context: prepared.report.clone(),
            remembered,
        })
    }

    /// Why the model called `answered` answered.
    fn why(&self, asked: &ModelName, answered: &str, tried: &[Tried]) -> String {
        let choice = &self.work.order.choice;
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
        for other in left_out.filter(|other| other.out != Some(Stage::Tried)) {
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
