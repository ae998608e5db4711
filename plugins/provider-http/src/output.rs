//! The answer on its way out: every piece is passed on and kept, so that the
//! whole at the end is what was sent.

use std::time::{Duration, Instant};

use ksi_provider::{
    Alternative, Delta, Generated, StopReason, Timings, TokenLogprobs, ToolCall, ToolCallDelta, Usage,
    failure::after_text,
    request::{CHOICES_MAX, TOOL_CALLS_MAX},
};
use ksi_sdk::{
    Chunks,
    prelude::{Code, Refusal},
};

use crate::problem::invalid;

/// Pause before a piece is offered again that found no room.
const PAUSE: Duration = Duration::from_millis(50);

/// What is told of an answer at its end, besides its pieces.
#[derive(Debug, Default)]
pub struct End {
    /// The model that answered.
    pub model: String,
    /// What it cost.
    pub usage: Usage,
    /// The seed that was used.
    pub seed: Option<u32>,
    /// Settings that had no effect.
    pub ignored: Vec<String>,
    /// The provider's own name of the answer.
    pub response_id: Option<String>,
}

/// One of the answers to a request.
#[derive(Debug, Default)]
struct Choice {
    text: String,
    calls: Vec<Call>,
    logprobs: Vec<TokenLogprobs>,
    stop_reason: Option<StopReason>,
}

/// A tool call that is being made.
#[derive(Debug)]
struct Call {
    index: u32,
    id: String,
    name: String,
    arguments: String,
}

/// The answer, as far as it has come.
pub struct Output {
    plugin: &'static str,
    out: Chunks<Delta>,
    /// What the calls are named after that the provider does not name.
    name: String,
    received: Instant,
    first: Option<Instant>,
    choices: Vec<Choice>,
}

impl Output {
    /// An answer to whom `out` belongs. `name` is a name that no other has.
    #[must_use]
    pub fn new(plugin: &'static str, out: Chunks<Delta>, name: String) -> Self {
        Self { plugin, out, name, received: Instant::now(), first: None, choices: Vec::new() }
    }

    /// Passes a piece on, once its asker has room for it.
    ///
    /// # Errors
    ///
    /// `cancelled` where nobody waits any more; a piece that belongs nowhere.
    pub async fn send(&mut self, delta: Delta) -> Result<(), Refusal> {
        let delta = self.keep(delta)?;
        if delta.text.is_empty() && delta.tool_calls.is_empty() && delta.logprobs.is_empty() {
            return Ok(());
        }
        self.first.get_or_insert_with(Instant::now);
        loop {
            self.out.ready().await;
            match self.out.send(&delta) {
                Err(refusal) if refusal.code == Code::Busy => {
                    tokio::time::sleep(refusal.retry_after_ms.map_or(PAUSE, Duration::from_millis)).await;
                }
                sent => return sent,
            }
        }
    }

    /// Why one of the answers ends. The last word counts.
    ///
    /// # Errors
    ///
    /// An answer that nobody asked for.
    pub fn stop(&mut self, choice: u32, reason: StopReason) -> Result<(), Refusal> {
        self.choice(choice)?.stop_reason = Some(reason);
        Ok(())
    }

    /// Whether nothing was passed on yet.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.first.is_none()
    }

    /// Whether it is known of so many answers why they end.
    #[must_use]
    pub fn is_whole(&self, choices: u32) -> bool {
        let wanted = choices as usize;
        self.choices.len() >= wanted && self.choices.iter().all(|choice| choice.stop_reason.is_some())
    }

    /// The whole answer.
    ///
    /// # Errors
    ///
    /// Refuses one that was not ended, and tool calls without a name.
    pub fn finish(&mut self, end: End) -> Result<Generated, Refusal> {
        let timings = self.timings(&end.usage);
        let plugin = self.plugin;
        let mut answers = std::mem::take(&mut self.choices)
            .into_iter()
            .map(|choice| choice.finish(plugin))
            .collect::<Result<Vec<_>, _>>()?
            .into_iter();
        let Alternative { text, tool_calls, stop_reason, logprobs } =
            answers.next().ok_or_else(|| invalid(plugin, "it has no text and no end"))?;
        let End { model, usage, seed, ignored, response_id } = end;
        Ok(Generated {
            model,
            text,
            tool_calls,
            stop_reason,
            alternatives: answers.collect(),
            logprobs,
            toy: false,
            seed,
            usage,
            timings,
            ignored,
            response_id,
        })
    }

    /// A failure, with what was passed on before it.
    #[must_use]
    pub fn blame(&self, refusal: Refusal) -> Refusal {
        if self.first.is_some() { after_text(refusal) } else { refusal }
    }

    fn choice(&mut self, index: u32) -> Result<&mut Choice, Refusal> {
        if index >= CHOICES_MAX {
            return Err(invalid(self.plugin, format!("it has an answer number {index}")));
        }
        let index = index as usize;
        if self.choices.len() <= index {
            self.choices.resize_with(index + 1, Choice::default);
        }
        Ok(&mut self.choices[index])
    }

    /// Keeps a piece; gives it back with the names that it lacked.
    fn keep(&mut self, mut delta: Delta) -> Result<Delta, Refusal> {
        let (plugin, name) = (self.plugin, self.name.clone());
        let index = delta.choice;
        let choice = self.choice(index)?;
        choice.text.push_str(&delta.text);
        choice.logprobs.extend(delta.logprobs.iter().cloned());
        for piece in &mut delta.tool_calls {
            choice.keep_call(piece, plugin, || format!("call_{name}_{index}_"))?;
        }
        Ok(delta)
    }

    fn timings(&self, usage: &Usage) -> Timings {
        let now = Instant::now();
        let first = self.first.unwrap_or(now);
        let generate = now.duration_since(first);
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        // The first token belongs to the time before it.
        let tokens = usage.completion_tokens.saturating_sub(1);
        Timings {
            prompt_ms: ms(first.duration_since(self.received)),
            generate_ms: ms(generate),
            first_token_ms: ms(first.duration_since(self.received)),
            generate_per_second: if generate.is_zero() {
                0.0
            } else {
                tokens as f64 / generate.as_secs_f64()
            },
            ..Timings::default()
        }
    }
}

impl Choice {
    fn keep_call(
        &mut self,
        piece: &mut ToolCallDelta,
        plugin: &'static str,
        name: impl FnOnce() -> String,
    ) -> Result<(), Refusal> {
        let known = self.calls.iter_mut().find(|call| call.index == piece.index);
        let Some(call) = known else {
            if self.calls.len() >= TOOL_CALLS_MAX {
                return Err(invalid(plugin, format!("it has more than {TOOL_CALLS_MAX} tool calls")));
            }
            let given = piece.id.take().filter(|id| !id.is_empty());
            let id = given.unwrap_or_else(|| format!("{}{}", name(), piece.index));
            piece.id = Some(id.clone());
            self.calls.push(Call {
                index: piece.index,
                id,
                name: piece.name.clone().unwrap_or_default(),
                arguments: piece.arguments.clone(),
            });
            return Ok(());
        };
        // Some servers repeat both in every piece.
        piece.id = None;
        match piece.name.take() {
            Some(name) if call.name.is_empty() => {
                call.name.clone_from(&name);
                piece.name = Some(name);
            }
            _ => {}
        }
        call.arguments.push_str(&piece.arguments);
        Ok(())
    }

    fn finish(self, plugin: &str) -> Result<Alternative, Refusal> {
        let Self { text, calls, logprobs, stop_reason } = self;
        let stop_reason = stop_reason.ok_or_else(|| invalid(plugin, "it does not say why it ends"))?;
        let mut tool_calls = Vec::with_capacity(calls.len());
        for Call { id, name, arguments, .. } in calls {
            if name.is_empty() {
                return Err(invalid(plugin, "it has a tool call without a name"));
            }
            tool_calls.push(ToolCall { id, name, arguments: ToolCall::parse_arguments(&arguments) });
        }
        // Some servers call that a stop like any other.
        let waits = stop_reason == StopReason::Stop && !tool_calls.is_empty();
        let stop_reason = if waits { StopReason::ToolCalls } else { stop_reason };
        Ok(Alternative { text, tool_calls, stop_reason, logprobs })
    }
}
