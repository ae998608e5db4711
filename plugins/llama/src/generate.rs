//! `llama:generate`: from a request to its answer.
//!
//! Everything that can be refused is refused before a model is loaded for it.
//! Several answers to one request are several jobs, which share what they read.

use std::time::{Duration, Instant};

use futures_channel::oneshot;
use ksi_provider::request::invalid;
use ksi_provider::{Alternative, Delta, Generate, Generated, ResponseFormat, Timings, ToolChoice, Usage};
use ksi_sdk::prelude::{Bytes, Chunks, Code, Ctx, Rc, Refusal, json};
use ksi_sdk::protocol::decode;
use llama_cpp_2::token::LlamaToken;

use crate::Llama;
use crate::constraint::Constraint;
use crate::engine::model::Model;
use crate::engine::sampler::Settings;
use crate::engine::{Job, Outcome, Ticket};
use crate::payload::{Input, check_bytes};
use crate::sending::{of_model, patiently};
use crate::tools;
use crate::tuning::Tuning;
use crate::workers::encoded;

/// Most tokens that the toy model generates: its longest answers have about
/// 120, and beyond that it only repeats itself.
const TOY_TOKENS_MAX: u32 = 200;

/// What all answers to a request have in common.
struct Shared {
    prompt: Vec<LlamaToken>,
    constraint: Option<Constraint>,
    settings: Settings,
    max_tokens: u32,
    received: Instant,
    deadline: Option<Instant>,
}

impl Llama {
    pub(crate) async fn asked_to_generate(
        self: Rc<Self>,
        ctx: Ctx,
        data: Bytes,
        out: Chunks<Delta>,
    ) -> Result<Bytes, Refusal> {
        let mut ask: Generate = decode(&data)?;
        let name = self.resolve(ask.model.clone());
        let Some(workers) = &self.workers else {
            let generated = self.generate(ctx, ask, name.clone(), out).await;
            return encoded(&generated.map_err(|refusal| of_model(&name, refusal))?);
        };
        ask.check()?;
        check(&ask)?;
        Settings::of(&ask)?;
        check_bytes(Input::take(&mut ask).bytes(), self.config.input_bytes_max)?;
        let generated = workers.generate(&ctx, &name, &data, &out).await;
        generated.map_err(|refusal| of_model(&name, refusal))
    }

    async fn generate(
        self: Rc<Self>,
        ctx: Ctx,
        mut ask: Generate,
        name: String,
        out: Chunks<Delta>,
    ) -> Result<Generated, Refusal> {
        let received = Instant::now();
        ask.check()?;
        check(&ask)?;
        let settings = Settings::of(&ask)?;
        let input = Input::take(&mut ask);
        check_bytes(input.bytes(), self.config.input_bytes_max)?;
        let (ticket, load_time) = match self.shelf.ticket(&name)? {
            Some(ticket) => (ticket, None),
            None => {
                let loaded = self.load_model(&ctx, name.clone(), Tuning::default(), |_| true).await?;
                (loaded.ticket, loaded.fresh.then(|| received.elapsed()))
            }
        };
        let toy = ticket.engine().model().is_toy();
        let max_tokens =
            ask.token_limit(Some(self.config.max_tokens_default)).unwrap_or(self.config.max_tokens_default);
        let (prompt, constraint) = read(&ctx, &ticket, input, &mut ask).await?;
        check_length(prompt.len(), ticket.engine().setup().context as usize)?;
        let seed = settings.seed();
        let shared = Shared {
            prompt,
            constraint,
            settings,
            max_tokens: if toy { max_tokens.min(TOY_TOKENS_MAX) } else { max_tokens },
            received,
            deadline: deadline(received, ask.timeout_ms, ctx.deadline()),
        };
        let outcomes = answers(&ctx, &ask, ticket, shared, &out).await?;
        Ok(generated(name, toy, seed, load_time, outcomes))
    }
}

/// Has all answers made, side by side.
async fn answers(
    ctx: &Ctx,
    ask: &Generate,
    ticket: Ticket,
    shared: Shared,
    out: &Chunks<Delta>,
) -> Result<Vec<Outcome>, Refusal> {
    let mut tickets = vec![ticket];
    while tickets.len() < ask.choices.unwrap_or(1) as usize {
        tickets.push(tickets[0].another()?);
    }
    let called = ask.tool_choice != Some(ToolChoice::None);
    let mut waiting = Vec::new();
    for (choice, ticket) in (0..).zip(tickets) {
        let (answer, answered) = oneshot::channel();
        ticket.generate(answer, |asker| Job {
            prompt: shared.prompt.clone(),
            max_tokens: shared.max_tokens,
            settings: shared.settings.with_seed_after(choice),
            stops: ask.stop.clone(),
            constraint: shared.constraint.clone(),
            tools: if called { ask.tools.clone() } else { Vec::new() },
            logprobs: ask.logprobs,
            choice,
            priority: ask.priority.unwrap_or(0),
            deadline: shared.deadline,
            cancel: ctx.cancel_token(),
            out: out.clone(),
            asker,
            received: shared.received,
        })?;
        waiting.push(answered);
    }
    let mut outcomes = Vec::new();
    for answered in waiting {
        let failed = |_| Refusal::new(Code::Internal, "the engine failed while it generated");
        let mut outcome = answered.await.map_err(failed)??;
        send_rest(ctx, out, std::mem::take(&mut outcome.unsent)).await?;
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

/// Refuses what this provider does not have.
fn check(ask: &Generate) -> Result<(), Refusal> {
    if !ask.tools.is_empty() && ask.prompt.is_some() {
        let message = "tools belong to a conversation, and `prompt` is none";
        return Err(invalid("tools", message, "give `messages` instead of `prompt`"));
    }
    let shaped = ask.grammar.is_some() || !matches!(ask.response_format, None | Some(ResponseFormat::Text));
    if shaped && !ask.tools.is_empty() {
        let message = "an answer cannot both fit a form and call tools";
        return Err(invalid("tools", message, "leave one of them out"));
    }
    let any_text = matches!(ask.response_format, None | Some(ResponseFormat::Text));
    if !any_text && !ask.stop.is_empty() {
        let message = "a stop string would cut the JSON that `response_format` asks for";
        return Err(invalid("stop", message, "leave `stop` out: the answer ends where the JSON does"));
    }
    Ok(())
}

/// Turns an input into tokens, and what the answer must fit into a grammar.
async fn read(
    ctx: &Ctx,
    ticket: &Ticket,
    input: Input,
    ask: &mut Generate,
) -> Result<(Vec<LlamaToken>, Option<Constraint>), Refusal> {
    let model = ticket.engine().model().clone();
    let (format, grammar) = (ask.response_format.take().unwrap_or_default(), ask.grammar.take());
    let call = ask.tool_choice.as_ref().and_then(|choice| tools::required(choice, &ask.tools));
    let free = format == ResponseFormat::Text && grammar.is_none() && call.is_none();
    if free && Model::is_small(&input) {
        return Ok((model.read(&input)?, None));
    }
    ctx.spawn_blocking(move || {
        let constraint = match (&format, &grammar, call) {
            (_, _, Some(call)) => Some(model.grammars()?.compile_call(call)?),
            (_, Some(grammar), None) => Some(model.grammars()?.compile_grammar(grammar)?),
            (ResponseFormat::Text, None, None) => None,
            (format, None, None) => model.grammars()?.compile(format)?,
        };
        Ok((model.read(&input)?, constraint))
    })
    .await?
}

/// When an answer is of no use any more: after the asker's own time or the
/// daemon's, whichever is over first.
fn deadline(received: Instant, asked_ms: Option<u64>, left: Option<Duration>) -> Option<Instant> {
    let asked = asked_ms.map(Duration::from_millis);
    let time = asked.into_iter().chain(left).min()?;
    received.checked_add(time)
}

/// Refuses a prompt that leaves no room for an answer: it is never cut in
/// silence.
fn check_length(tokens: usize, context: usize) -> Result<(), Refusal> {
    if tokens == 0 {
        return Err(invalid("prompt", "the input has no tokens", "give some text"));
    }
    if tokens < context {
        return Ok(());
    }
    let message =
        format!("the input has {tokens} tokens; the context of {context} tokens must also hold the answer");
    Err(Refusal::new(Code::TooLarge, message)
        .hint("shorten the conversation, or load the model with a larger `context`")
        .details(json!({ "prompt_tokens": tokens, "context": context })))
}

/// Sends the last piece of an answer once the host's queue has room for it.
async fn send_rest(ctx: &Ctx, out: &Chunks<Delta>, rest: Delta) -> Result<(), Refusal> {
    if rest.text.is_empty() && rest.tool_calls.is_empty() && rest.logprobs.is_empty() {
        return Ok(());
    }
    patiently(ctx, || out.send(&rest)).await
}

fn generated(
    model: String,
    toy: bool,
    seed: u32,
    load_time: Option<Duration>,
    outcomes: Vec<Outcome>,
) -> Generated {
    let completion_tokens = outcomes.iter().map(|outcome| outcome.completion_tokens as u64).sum();
    let mut outcomes = outcomes.into_iter();
    let first = outcomes.next().expect("a request has at least one answer");
    let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
    let per_second = |count: usize, time: Duration| {
        if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
    };
    let prompt_tokens = first.prompt_tokens as u64;
    Generated {
        model,
        usage: Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            cached_tokens: first.cached_tokens as u64,
            ..Usage::default()
        },
        timings: Timings {
            load_ms: load_time.map(milliseconds),
            queued_ms: Some(milliseconds(first.queued)),
            prompt_ms: milliseconds(first.prompt_time),
            generate_ms: milliseconds(first.generate_time),
            first_token_ms: milliseconds(first.first_token),
            prompt_per_second: per_second(first.prompt_tokens - first.cached_tokens, first.prompt_time),
            // The first token belongs to the prompt's time.
            generate_per_second: per_second(first.completion_tokens.saturating_sub(1), first.generate_time),
        },
        text: first.text,
        tool_calls: first.tool_calls,
        stop_reason: first.stop_reason,
        logprobs: first.logprobs,
        alternatives: outcomes
            .map(|outcome| Alternative {
                text: outcome.text,
                tool_calls: outcome.tool_calls,
                stop_reason: outcome.stop_reason,
                logprobs: outcome.logprobs,
            })
            .collect(),
        toy,
        seed: Some(seed),
        ignored: Vec::new(),
        response_id: None,
    }
}
