//! What comes before the first attempt at a model: the conversation is put together
//! as this model can read it, and plugins have their word on it.

use futures_util::stream::{self, StreamExt, TryStreamExt};
use ksi_provider::{Message, Role};
use ksi_sdk::prelude::{CallOptions, Deserialize, Duration, Refusal, json};

use super::Work;
use crate::{
    context::{self, Parts, Sizes},
    history::History,
    hooks::About,
    order::{Order, estimated_tokens},
    payload::ContextReport,
    provider::{DEFAULT, Target},
};

/// Who counts tokens as its models do.
const TOKENIZER: &str = "llama";
const TOKENIZE: &str = "llama:tokenize";
/// Tokens that are left for the answer where the request does not say how many.
const ANSWER_TOKENS: u64 = 1024;
/// Time for the tokenizer.
const COUNT_LIMIT: Duration = Duration::from_secs(30);
/// Texts of one request that are counted at once: the tokenizer holds a limited number
/// of requests, and there are others.
const COUNTED_AT_ONCE: usize = 4;

/// What a request goes on from, whichever model is asked.
pub(super) struct Ground {
    history: Option<History>,
    /// What the request said itself, system text aside.
    own: Vec<Message>,
}

impl Ground {
    pub(super) async fn read(work: &Work) -> Result<Self, Refusal> {
        let (plugin, order) = (&work.place.plugin, &work.order);
        let own = order.messages.iter().filter(|message| message.role != Role::System).cloned().collect();
        let history = match (&order.conversation, order.remember) {
            (Some(name), true) => {
                let tenant = work.ctx.tenant();
                Some(History::read(&plugin.ctx, tenant, name, &work.place.entry.id).await?)
            }
            _ => None,
        };
        Ok(Self { history, own })
    }

    /// Remembers what was said, where that was asked for: whether it was possible.
    pub(super) async fn remember(&self, work: &Work, answer: Message) -> Option<bool> {
        let history = self.history.as_ref()?;
        let said: Vec<_> = self.own.iter().cloned().chain([answer]).collect();
        let added = history.add(&work.place.entry.id, &said).await;
        if let Err(refusal) = &added {
            let id = &work.place.entry.id;
            work.ctx.warn(&format!("{id}: the conversation was not remembered: {}", refusal.code));
        }
        Some(added.is_ok())
    }
}

/// A request as one model is asked it.
pub(super) struct Prepared {
    pub(super) order: Order,
    pub(super) report: Option<ContextReport>,
}

/// Makes of a request what a model is asked.
pub(super) async fn prepare(work: &Work, ground: &Ground, target: &Target) -> Result<Prepared, Refusal> {
    let plugin = &work.place.plugin;
    let mut order = work.order.clone();
    let trim = std::mem::take(&mut order.trim);
    let mut report = None;
    if trim || ground.history.is_some() || !order.memories.is_empty() || order.context_tokens.is_some() {
        let mut request = std::mem::take(&mut order.messages);
        let mut history = ground.history.as_ref().map(|history| history.messages.clone()).unwrap_or_default();
        if trim {
            history.extend(request.drain(context::earlier(&request)));
        }
        let parts = Parts { memories: std::mem::take(&mut order.memories), history, request };
        let room = room(work, target).await;
        let (sizes, counted_by) = sizes(work, target, &parts, room).await;
        let (messages, told) = context::assemble(parts, &sizes, room, counted_by);
        order.messages = messages;
        order.prompt_tokens = Some(told.tokens);
        order.counted = counted_by == TOKENIZE;
        report = Some(told);
    }
    let about = about(work);
    let order = about.before(plugin.providers.name(target), order).await?;
    Ok(Prepared { order, report })
}

pub(super) fn about(work: &Work) -> About<'_> {
    let limit = Duration::from_millis(work.place.plugin.config.hooks_timeout_ms);
    About { ctx: &work.ctx, request_id: &work.place.entry.id, limit }
}

/// Tokens that there is room for in front of the answer, for which no more than half
/// of the context is kept free: it may be asked to be longer than it will be.
async fn room(work: &Work, target: &Target) -> u64 {
    let (plugin, order) = (&work.place.plugin, &work.order);
    let provider = plugin.providers.of(target);
    if plugin.catalogue.context_length(target, provider).is_none() {
        plugin.learn(&work.ctx, order).await;
    }
    let context = plugin.catalogue.context_length(target, provider);
    let left = context.map(|context| {
        let answer = order.settings.max_tokens.map_or(ANSWER_TOKENS.min(context / 4), u64::from);
        context.saturating_sub(answer.min(context / 2))
    });
    match (order.context_tokens, left) {
        (Some(wish), Some(left)) => wish.min(left),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => plugin.config.context_tokens,
    }
}

/// Tokens of all parts: counted by the model where that can be, else estimated.
/// A text never has more tokens than bytes, so where even those fit nobody counts.
async fn sizes(work: &Work, target: &Target, parts: &Parts, room: u64) -> (Sizes, &'static str) {
    let memories: Vec<String> = parts.memories.iter().map(context::text).collect();
    let messages = || parts.history.iter().chain(&parts.request);
    let bytes = memories.iter().map(String::len).sum::<usize>()
        + messages().map(|message| message.bytes() + 8).sum::<usize>();
    let namespace = work.place.plugin.providers.of(target).namespace.as_deref();
    if namespace == Some(TOKENIZER) && bytes as u64 > room {
        let texts = memories.iter().cloned().chain(messages().map(text));
        let counts = texts.map(|text| count(work, target, text));
        match stream::iter(counts).buffered(COUNTED_AT_ONCE).try_collect().await {
            Ok(counted) => return (Sizes::of(parts, counted), TOKENIZE),
            Err(refusal) => {
                let id = &work.place.entry.id;
                work.ctx.debug(&format!("{id}: tokens are estimated: {}", refusal.code));
            }
        }
    }
    let estimates = memories.iter().map(String::len).chain(messages().map(Message::bytes));
    (Sizes::of(parts, estimates.map(estimated_tokens).collect()), "estimate")
}

/// All that a model reads of a message.
fn text(message: &Message) -> String {
    let calls = message.tool_calls.iter().map(|call| format!("{}{}", call.name, call.arguments_text()));
    message.content.clone() + &calls.collect::<String>()
}

#[derive(Deserialize)]
struct Tokenized {
    count: u64,
}

/// Tokens of a message with this text: those of the text, and a few for what the
/// chat template puts around it.
async fn count(work: &Work, target: &Target, text: String) -> Result<u64, Refusal> {
    const FRAME: u64 = 8;
    let mut ask = json!({ "text": text });
    if target.model != DEFAULT {
        ask["model"] = json!(target.model);
    }
    let options = CallOptions { timeout: Some(COUNT_LIMIT), ..CallOptions::default() };
    let counted: Tokenized = work.ctx.request_with(TOKENIZE, &ask, options).await?;
    Ok(counted.count + FRAME)
}
