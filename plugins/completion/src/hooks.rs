//! Hooks: other plugins' word on a prompt before a model is asked, and on its
//! answer.
//!
//! Each hook is an event that this plugin asks of itself and answers with what it
//! was asked: what plugins that intercept the event made of it on its way. So they
//! are ordered, granted (`intercepts` in the manifest), bounded in time, and skipped
//! or not where they fail, as all interceptors are.

use ksi_provider::{Alternative, Generate, Generated};
use ksi_sdk::prelude::{CallOptions, Code, Ctx, Duration, Refusal, Serialize};
use serde::de::DeserializeOwned;

use crate::{
    order::Order,
    payload::{ModelName, PostLlmResult, PreLlmPrompt},
};

/// The hooks.
pub(crate) const PRE: &str = "completion:pre_llm_prompt";
pub(crate) const POST: &str = "completion:post_llm_result";

/// Whose request it is about.
pub(crate) struct About<'a> {
    pub(crate) ctx: &'a Ctx,
    pub(crate) request_id: &'a str,
    pub(crate) limit: Duration,
}

impl About<'_> {
    async fn ask<T: Serialize + DeserializeOwned>(&self, hook: &str, what: &T) -> Result<T, Refusal> {
        let options = CallOptions { timeout: Some(self.limit), ..CallOptions::default() };
        self.ctx.request_with(hook, what, options).await.map_err(|refusal| match refusal.code {
            // Not the asker's fault, and not to be mistaken for its deadline.
            Code::InvalidPayload | Code::Timeout => {
                let message = format!("a plugin that has a word on `{hook}` failed: {}", refusal.message);
                Refusal::new(Code::Unavailable, message).hint("`ksi plugin list` shows who it may be")
            }
            _ => refusal,
        })
    }

    /// The order as plugins want it to reach the model.
    pub(crate) async fn before(&self, model: ModelName, mut order: Order) -> Result<Order, Refusal> {
        let settings = &order.settings;
        let prompt = PreLlmPrompt {
            request_id: self.request_id.into(),
            model,
            conversation_id: order.conversation.clone(),
            agent: order.agent.clone(),
            messages: std::mem::take(&mut order.messages),
            tools: settings.tools.clone(),
            tool_choice: settings.tool_choice.clone(),
            max_tokens: settings.max_tokens,
            temperature: settings.temperature,
            stop: settings.stop.clone(),
        };
        let PreLlmPrompt { messages, tools, tool_choice, max_tokens, temperature, stop, .. } =
            self.ask(PRE, &prompt).await?;
        let edited = Generate {
            messages: Some(messages),
            tools,
            tool_choice,
            max_tokens,
            temperature,
            stop,
            ..order.settings.clone()
        };
        if edited.messages.as_ref() != Some(&prompt.messages) {
            order.prompt_tokens = None;
        }
        edited.check().map_err(|refusal| {
            let message = format!("a plugin made of the prompt what cannot be asked: {}", refusal.message);
            Refusal::new(Code::Unavailable, message).hint("`ksi plugin list` shows who it may be")
        })?;
        Ok(Order {
            messages: edited.messages.clone().unwrap_or_default(),
            settings: Generate { messages: None, ..edited },
            ..order
        })
    }

    /// The answer as plugins want it to be read.
    pub(crate) async fn after(
        &self,
        model: ModelName,
        order: &Order,
        mut answer: Generated,
    ) -> Result<Generated, Refusal> {
        let result = PostLlmResult {
            request_id: self.request_id.into(),
            model,
            conversation_id: order.conversation.clone(),
            agent: order.agent.clone(),
            text: std::mem::take(&mut answer.text),
            tool_calls: std::mem::take(&mut answer.tool_calls),
            alternatives: answer.alternatives.iter().map(without_logprobs).collect(),
            stop_reason: answer.stop_reason,
            usage: answer.usage,
        };
        let edited = self.ask(POST, &result).await?;
        if edited.text != result.text {
            answer.logprobs.clear();
        }
        let PostLlmResult { text, tool_calls, alternatives, .. } = edited;
        let before = std::mem::take(&mut answer.alternatives);
        let alternatives = alternatives.into_iter().zip(before).map(|(edited, before)| Alternative {
            logprobs: if edited.text == before.text { before.logprobs } else { Vec::new() },
            ..edited
        });
        Ok(Generated { text, tool_calls, alternatives: alternatives.collect(), ..answer })
    }
}

/// An alternative as hooks see it.
fn without_logprobs(one: &Alternative) -> Alternative {
    Alternative {
        text: one.text.clone(),
        tool_calls: one.tool_calls.clone(),
        stop_reason: one.stop_reason,
        logprobs: Vec::new(),
    }
}
