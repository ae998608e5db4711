//! An answer, read event by event; or all of it at once, from a server that does
//! not stream.

use std::collections::BTreeSet;

use ksi_provider::{Delta, StopReason, TokenLogprob, TokenLogprobs, ToolCallDelta, Usage, failure::Failure};
use ksi_provider_http::{
    End, Output,
    problem::{Problem, invalid},
};
use ksi_sdk::prelude::{Deserialize, Refusal};
use serde_json::Value;

/// The event after which nothing comes.
pub(crate) const DONE: &str = "[DONE]";

/// One event of the stream. Whatever else is in it does not matter here.
#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    choices: Vec<ChunkChoice>,
    #[serde(default)]
    usage: Option<Counts>,
}

#[derive(Deserialize)]
struct ChunkChoice {
    #[serde(default)]
    index: u32,
    #[serde(default)]
    delta: Option<ChunkDelta>,
    #[serde(default)]
    finish_reason: Option<String>,
    /// vLLM tells here which stop string it was.
    #[serde(default)]
    stop_reason: Option<Value>,
    #[serde(default)]
    logprobs: Option<Logprobs>,
}

/// The whole answer of a server that does not stream.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    model: Option<String>,
    choices: Vec<DocumentChoice>,
    #[serde(default)]
    usage: Option<Counts>,
}

#[derive(Deserialize)]
struct DocumentChoice {
    #[serde(default)]
    index: Option<u32>,
    message: ChunkDelta,
    #[serde(default)]
    finish_reason: Option<String>,
    #[serde(default)]
    stop_reason: Option<Value>,
    #[serde(default)]
    logprobs: Option<Logprobs>,
}

#[derive(Deserialize)]
struct ChunkDelta {
    #[serde(default)]
    content: Option<String>,
    /// What the model says instead where it declines.
    #[serde(default)]
    refusal: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<CallPiece>>,
}

#[derive(Deserialize)]
struct CallPiece {
    #[serde(default)]
    index: u32,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    function: Option<FunctionPiece>,
}

#[derive(Deserialize)]
struct FunctionPiece {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    arguments: Option<String>,
}

#[derive(Deserialize)]
struct Logprobs {
    #[serde(default)]
    content: Option<Vec<Token>>,
}

#[derive(Deserialize)]
struct Token {
    token: String,
    logprob: f32,
    #[serde(default)]
    top_logprobs: Vec<TopToken>,
}

#[derive(Deserialize)]
struct TopToken {
    token: String,
    logprob: f32,
}

#[derive(Deserialize)]
struct Counts {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
    #[serde(default)]
    prompt_tokens_details: Option<PromptDetails>,
    #[serde(default)]
    completion_tokens_details: Option<CompletionDetails>,
}

#[derive(Deserialize)]
struct PromptDetails {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct CompletionDetails {
    #[serde(default)]
    reasoning_tokens: Option<u64>,
}

/// What is known of the answer so far, besides its pieces.
#[derive(Debug)]
pub(crate) struct Reading {
    model: String,
    choices: u32,
    id: Option<String>,
    usage: Usage,
    /// Answers in which the model declines.
    declined: BTreeSet<u32>,
}

impl Reading {
    /// The reading of an answer of so many choices by this model.
    pub(crate) fn new(model: String, choices: u32) -> Self {
        Self { model, choices, id: None, usage: Usage::default(), declined: BTreeSet::new() }
    }

    pub(crate) fn choices(&self) -> u32 {
        self.choices
    }

    /// Reads an event: the pieces in it, in their order.
    pub(crate) fn read(&mut self, data: &str, output: &mut Output) -> Result<Vec<Delta>, Refusal> {
        let unread = |error: serde_json::Error| {
            invalid(crate::NAME, format!("an event of it cannot be read: {error}"))
        };
        let value: Value = serde_json::from_str(data).map_err(unread)?;
        if let Some(problem) = Problem::read(&value) {
            return Err(problem.refusal(crate::NAME, Failure::Overloaded));
        }
        self.take(serde_json::from_value(value).map_err(unread)?, output)
    }

    /// Reads an answer that came as one document: a piece for each of its choices.
    pub(crate) fn read_document(
        &mut self,
        document: Value,
        output: &mut Output,
    ) -> Result<Vec<Delta>, Refusal> {
        let document: Document = serde_json::from_value(document)
            .map_err(|error| invalid(crate::NAME, format!("it is JSON, and no completion: {error}")))?;
        let Document { id, model, choices, usage } = document;
        let choices = (0..).zip(choices).map(|(index, choice)| choice.at(index)).collect();
        let deltas = self.take(Chunk { id, model, choices, usage }, output)?;
        match output.is_whole(self.choices) {
            true => Ok(deltas),
            false => {
                let why = "it does not have each of the answers that were asked for, and why they end";
                Err(invalid(crate::NAME, why))
            }
        }
    }

    /// Takes what an event says: the pieces in it, in their order.
    fn take(&mut self, chunk: Chunk, output: &mut Output) -> Result<Vec<Delta>, Refusal> {
        self.id = self.id.take().or(chunk.id);
        if let Some(model) = chunk.model.filter(|model| !model.is_empty()) {
            self.model = model;
        }
        if let Some(counts) = chunk.usage {
            self.usage = counts.usage();
        }
        let mut deltas = Vec::with_capacity(chunk.choices.len());
        for choice in chunk.choices {
            if choice.index >= self.choices {
                return Err(invalid(crate::NAME, format!("answer {} was not asked for", choice.index)));
            }
            if choice.declines() {
                self.declined.insert(choice.index);
            }
            if let Some(reason) = choice.stop()? {
                let declined = self.declined.contains(&choice.index);
                output.stop(choice.index, if declined { StopReason::ContentFilter } else { reason })?;
            }
            deltas.push(choice.delta());
        }
        Ok(deltas)
    }

    /// What is told at the end.
    pub(crate) fn end(self, seed: Option<u32>, ignored: Vec<String>) -> End {
        End { model: self.model, usage: self.usage, seed, ignored, response_id: self.id }
    }
}

impl DocumentChoice {
    /// The same as a piece of a stream. A document mostly does not number the calls
    /// of tools.
    fn at(mut self, place: u32) -> ChunkChoice {
        for (index, call) in (0..).zip(self.message.tool_calls.iter_mut().flatten()) {
            call.index = index;
        }
        ChunkChoice {
            index: self.index.unwrap_or(place),
            delta: Some(self.message),
            finish_reason: self.finish_reason,
            stop_reason: self.stop_reason,
            logprobs: self.logprobs,
        }
    }
}

impl ChunkChoice {
    fn declines(&self) -> bool {
        self.delta.as_ref().is_some_and(|delta| delta.refusal.is_some())
    }

    fn stop(&self) -> Result<Option<StopReason>, Refusal> {
        let Some(reason) = self.finish_reason.as_deref().filter(|reason| !reason.is_empty()) else {
            return Ok(None);
        };
        match reason {
            "stop" if matches!(self.stop_reason, Some(Value::String(_))) => Ok(Some(StopReason::StopString)),
            "stop" | "eos" | "end_turn" => Ok(Some(StopReason::Stop)),
            "length" | "max_tokens" => Ok(Some(StopReason::Length)),
            "tool_calls" | "function_call" => Ok(Some(StopReason::ToolCalls)),
            "content_filter" => Ok(Some(StopReason::ContentFilter)),
            other => Err(invalid(crate::NAME, format!("it ends for the reason `{}`", other.escape_debug()))),
        }
    }

    fn delta(self) -> Delta {
        let mut delta = Delta { choice: self.index, ..Delta::default() };
        if let Some(piece) = self.delta {
            delta.text = piece.content.or(piece.refusal).unwrap_or_default();
            delta.tool_calls = piece.tool_calls.into_iter().flatten().map(CallPiece::delta).collect();
        }
        let tokens = self.logprobs.and_then(|logprobs| logprobs.content).into_iter().flatten();
        delta.logprobs = tokens.map(Token::logprobs).collect();
        delta
    }
}

impl CallPiece {
    fn delta(self) -> ToolCallDelta {
        let (name, arguments) =
            self.function.map_or((None, None), |function| (function.name, function.arguments));
        ToolCallDelta { index: self.index, id: self.id, name, arguments: arguments.unwrap_or_default() }
    }
}

impl Token {
    fn logprobs(self) -> TokenLogprobs {
        let top = self.top_logprobs.into_iter();
        let top = top.map(|TopToken { token, logprob }| TokenLogprob { token, logprob }).collect();
        TokenLogprobs { token: self.token, logprob: self.logprob, top }
    }
}

impl Counts {
    fn usage(self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
            total_tokens: self.prompt_tokens.saturating_add(self.completion_tokens),
            cached_tokens: self.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0),
            reasoning_tokens: self.completion_tokens_details.and_then(|details| details.reasoning_tokens),
            ..Usage::default()
        }
    }
}
