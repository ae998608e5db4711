//! An order: a request whose every field has been checked.
//!
//! What does not fit is refused here, before anything is queued, with the path
//! of the field. Nothing is adjusted silently.

use ksi_provider::{
    Generate, Message, ResponseFormat, Role,
    request::{CHOICES_MAX, LOGPROBS_MAX},
};
use ksi_sdk::prelude::{Ctx, Duration, Refusal, json};

use crate::{
    config::Config,
    context,
    payload::{Memory, Request},
    provider::Providers,
};

mod choice;

pub(crate) use choice::{Choice, Chosen, tier};

/// Longest time that a request may ask for: a day.
pub(crate) const TIMEOUT_MS_MAX: u64 = 86_400_000;
/// Longest name of a conversation or an agent: they are keys of tables.
const NAME_BYTES_MAX: usize = 128;
/// Most memories of a request.
const MEMORIES_MAX: usize = 64;
/// Longest name that a provider is told a conversation by.
const SCOPED_BYTES_MAX: usize = 256;

/// A checked request.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) choice: Choice,
    pub(crate) messages: Vec<Message>,
    /// How the answer is to be; without model and messages.
    pub(crate) settings: Generate,
    pub(crate) conversation: Option<String>,
    pub(crate) agent: Option<String>,
    /// Whether the conversation is remembered.
    pub(crate) remember: bool,
    pub(crate) memories: Vec<Memory>,
    /// Most tokens to read.
    pub(crate) context_tokens: Option<u64>,
    /// Whether the oldest messages may be left out.
    pub(crate) trim: bool,
    /// How many are read, where that is known better than from here.
    pub(crate) prompt_tokens: Option<u64>,
    /// Whether the model itself has counted them.
    pub(crate) counted: bool,
    pub(crate) priority: i8,
    pub(crate) timeout: Duration,
    /// Whether another attempt may begin after text was sent.
    pub(crate) restart: bool,
    /// Whether nothing may leave this machine.
    pub(crate) local_only: bool,
}

/// What a model must be able to do for an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Needs {
    pub(crate) tools: bool,
    pub(crate) json_schema: bool,
    /// How many answers are made.
    pub(crate) answers: u64,
    /// About how many tokens are read.
    pub(crate) prompt_tokens: u64,
    /// How many are read at least.
    pub(crate) least_tokens: u64,
    /// How many each answer has at most, where the order says.
    pub(crate) max_tokens: Option<u64>,
}

impl Needs {
    /// Whether not every model can.
    pub(crate) fn are_special(&self) -> bool {
        self.tools || self.json_schema || self.answers > 1
    }

    /// About how many tokens are read and made.
    pub(crate) fn tokens(&self) -> u64 {
        self.prompt_tokens + self.made(self.max_tokens.unwrap_or(0))
    }

    /// Tokens of all answers, where each has so many.
    pub(crate) fn made(&self, each: u64) -> u64 {
        each * self.answers
    }
}

impl Order {
    /// Checks a request.
    pub(crate) fn new(request: Request, config: &Config, providers: &Providers) -> Result<Self, Refusal> {
        let choice = Choice::new(&request, config, providers)?;
        let priority = integer("priority", request.priority, -10, 10)?.unwrap_or(0);
        let timeout = integer("timeout_ms", request.timeout_ms, 1, TIMEOUT_MS_MAX)?;
        let conversation = name("conversation_id", request.conversation_id.as_deref())?;
        let agent = name("agent", request.agent.as_deref())?;
        let (restart, local_only, remember) = (request.restart, request.local_only, request.remember);
        if remember && conversation.is_none() {
            return Err(invalid("conversation_id", "is missing: `remember` needs one"));
        }
        let memories = memories(&request.memories)?;
        let context_tokens = integer("context_tokens", request.context_tokens, 1, 100_000_000)?;
        let (settings, trim) = (settings(&request)?, request.trim);
        let messages = messages(request)?;
        let whole = Generate { messages: Some(messages), ..settings };
        whole.check()?;
        let Generate { messages, .. } = &whole;
        let messages = messages.clone().unwrap_or_default();
        Ok(Self {
            choice,
            messages,
            settings: Generate { messages: None, ..whole },
            conversation,
            agent,
            remember,
            memories,
            context_tokens,
            trim,
            prompt_tokens: None,
            counted: false,
            priority,
            timeout: Duration::from_millis(timeout.unwrap_or(config.timeout_ms)),
            restart,
            local_only,
        })
    }

    /// About how much memory the order holds.
    pub(crate) fn bytes(&self) -> usize {
        let texts = self.messages.iter().map(|message| message.bytes() + 64).sum::<usize>();
        let stops = self.settings.stop.iter().map(String::len).sum::<usize>();
        let memories = self.memories.iter().map(|memory| memory.text.len() + 64).sum::<usize>();
        512 + texts + stops + memories + self.schema_bytes()
    }

    fn schema_bytes(&self) -> usize {
        let tools = self.settings.tools.iter();
        let tools: usize =
            tools.map(|tool| tool.description.len() + json!(tool.parameters).to_string().len() + 64).sum();
        let schema = match &self.settings.response_format {
            Some(ResponseFormat::JsonSchema(schema)) => json!(schema.schema).to_string().len(),
            _ => 0,
        };
        tools + schema
    }

    pub(crate) fn needs(&self) -> Needs {
        // What may be left out does not have to be read.
        let (before, after) = match self.trim {
            true => {
                let earlier = context::earlier(&self.messages);
                (&self.messages[..earlier.start], &self.messages[earlier.end..])
            }
            false => (&self.messages[..], &[][..]),
        };
        let sizes = || before.iter().chain(after).map(Message::bytes);
        let texts = sizes().map(estimated_tokens).sum::<u64>();
        let memories = self.memories.iter().map(|memory| estimated_tokens(memory.text.len())).sum::<u64>();
        let bytes = sizes().sum::<usize>() as u64;
        let told = self.prompt_tokens;
        Needs {
            tools: !self.settings.tools.is_empty(),
            json_schema: matches!(self.settings.response_format, Some(ResponseFormat::JsonSchema(_))),
            answers: self.settings.choices.map_or(1, u64::from),
            prompt_tokens: told.unwrap_or(texts + memories) + estimated_tokens(self.schema_bytes()),
            // No tokenizer does much better than this with what people write.
            least_tokens: told.filter(|_| self.counted).unwrap_or(bytes / 8),
            max_tokens: self.settings.max_tokens.map(u64::from),
        }
    }

    /// Whether it would have less to read if it let itself be trimmed.
    pub(crate) fn could_be_trimmed(&self) -> bool {
        !self.trim && !context::earlier(&self.messages).is_empty()
    }

    /// The name by which providers know the conversation: no other tenant's has it.
    pub(crate) fn scoped_conversation(&self, ctx: &Ctx) -> Option<String> {
        let name = scoped(ctx.tenant(), self.conversation.as_deref()?);
        (name.len() <= SCOPED_BYTES_MAX).then_some(name)
    }
}

/// About how many tokens a text of a message has: four bytes each, as English
/// has with most models, and four more tokens for the frame of the message.
pub(crate) fn estimated_tokens(bytes: usize) -> u64 {
    if bytes == 0 { 0 } else { bytes.div_ceil(4) as u64 + 4 }
}

/// The name of a tenant's conversation among those of all. A tenant is preceded by
/// its length, so no two are one.
pub(crate) fn scoped(tenant: Option<&str>, name: &str) -> String {
    match tenant {
        Some(tenant) => format!("{}:{tenant}{name}", tenant.len()),
        None => format!("-:{name}"),
    }
}

/// A refusal that names the field.
pub(crate) fn invalid(path: &str, why: &str) -> Refusal {
    Refusal::invalid_payload(format!("`{path}` {why}")).details(json!({ "path": path }))
}

/// An integer of the payload, in its range and its type.
pub(crate) fn integer<T: TryFrom<i64>>(
    path: &str,
    value: Option<i64>,
    min: i64,
    max: impl TryInto<i64>,
) -> Result<Option<T>, Refusal> {
    let max = max.try_into().unwrap_or(i64::MAX);
    let Some(value) = value else { return Ok(None) };
    match T::try_from(value) {
        Ok(fitting) if (min..=max).contains(&value) => Ok(Some(fitting)),
        _ => Err(invalid(path, &format!("must be from {min} to {max}, and is {value}"))),
    }
}

pub(crate) fn name(path: &str, name: Option<&str>) -> Result<Option<String>, Refusal> {
    match name {
        Some(name) if !(1..=NAME_BYTES_MAX).contains(&name.len()) => {
            Err(invalid(path, &format!("must have 1 to {NAME_BYTES_MAX} bytes")))
        }
        name => Ok(name.map(str::to_owned)),
    }
}

/// How the answer is to be. Ranges are those of the contract of providers, which
/// [`Generate::check`] knows.
fn settings(request: &Request) -> Result<Generate, Refusal> {
    Ok(Generate {
        tools: request.tools.clone(),
        tool_choice: request.tool_choice.clone(),
        response_format: request.response_format.clone(),
        max_tokens: integer("max_tokens", request.max_tokens, 1, 1_048_576)?,
        temperature: request.temperature,
        top_p: request.top_p,
        top_k: integer("top_k", request.top_k, 0, 1_000_000)?,
        min_p: request.min_p,
        repetition_penalty: request.repetition_penalty,
        seed: integer("seed", request.seed, 0, u32::MAX)?,
        stop: request.stop.clone().unwrap_or_default(),
        choices: integer("choices", request.choices, 1, CHOICES_MAX)?,
        logprobs: integer("logprobs", request.logprobs, 0, LOGPROBS_MAX)?,
        ..Generate::default()
    })
}

fn memories(memories: &[Memory]) -> Result<Vec<Memory>, Refusal> {
    if memories.len() > MEMORIES_MAX {
        let why = format!("has {} texts, of {MEMORIES_MAX} allowed", memories.len());
        return Err(invalid("memories", &why));
    }
    for (index, memory) in memories.iter().enumerate() {
        name(&format!("memories[{index}].name"), Some(&memory.name))?;
    }
    Ok(memories.to_vec())
}

fn messages(request: Request) -> Result<Vec<Message>, Refusal> {
    let mut messages = match (request.prompt, request.messages) {
        (Some(_), Some(_)) => return Err(invalid("messages", "and `prompt` exclude each other: give one")),
        (None, None) => return Err(invalid("prompt", "is missing, and so is `messages`: give one")),
        (Some(prompt), None) if prompt.trim().is_empty() => return Err(invalid("prompt", "is empty")),
        (Some(prompt), None) => vec![Message::new(Role::User, prompt)],
        (None, Some(messages)) => messages,
    };
    if messages.is_empty() {
        return Err(invalid("messages", "is empty"));
    }
    for (index, message) in messages.iter().enumerate() {
        let may_be_empty = message.role == Role::Tool || !message.tool_calls.is_empty();
        if message.content.trim().is_empty() && !may_be_empty {
            return Err(invalid(&format!("messages[{index}].content"), "is empty"));
        }
    }
    if let Some(system) = request.system {
        if system.trim().is_empty() {
            return Err(invalid("system", "is empty"));
        }
        if messages.iter().any(|message| message.role == Role::System) {
            return Err(invalid("system", "is given twice: here and in `messages`"));
        }
        messages.insert(0, Message::new(Role::System, system));
    }
    if !messages.iter().any(|message| message.role == Role::User) {
        return Err(invalid("messages", "has no message of the role `user`"));
    }
    Ok(messages)
}

#[cfg(test)]
mod tests;
