//! One running generation: how far its input is read, what it has said, and
//! what it still holds back.

use std::time::Instant;

use ksi_provider::{Delta, StopReason, TokenLogprobs, ToolCall, ToolCallDelta};
use ksi_sdk::prelude::{Code, Refusal};
use llama_cpp_2::token::LlamaToken;

use super::figures::Figures;
use super::model::Model;
use super::sampler::{NotANumber, Sampler};
use super::{Job, Outcome, logprobs};
use crate::constraint::{Constraint, Stuck};
use crate::text::{Characters, Stops};
use crate::tools::Calls;

/// A generation that has a slot.
pub(super) struct Running {
    job: Job,
    sampler: Sampler,
    /// The prompt, then what was generated.
    tokens: Vec<LlamaToken>,
    prompt_length: usize,
    /// Tokens of the prompt that did not have to be read.
    reused: usize,
    /// Tokens that are in the memory of the sequence.
    pub(super) decoded: usize,
    /// Tokens of this slot in the batch under way.
    pub(super) in_batch: usize,
    /// Where in the batch the scores for the next token will be.
    pub(super) output: Option<usize>,
    characters: Characters,
    stops: Stops,
    /// Where calls of tools are looked for.
    calls: Option<Calls>,
    tool_calls: Vec<ToolCall>,
    text: String,
    /// The bytes of all tokens, kept where a constraint may have to end them.
    bytes: Vec<u8>,
    logprobs: Vec<TokenLogprobs>,
    /// What the host did not take yet because its queue was full.
    unsent: Delta,
    gone: bool,
    started: Instant,
    first: Option<Instant>,
}

/// What follows a new token.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Continue,
    Finish(StopReason),
    /// The weights are damaged.
    Broken,
    /// What the text must fit has become too complex to go on with.
    Stuck,
}

impl Running {
    /// `reused` tokens of the prompt are in the memory of the sequence already.
    pub(super) fn new(mut job: Job, vocabulary: i32, reused: usize) -> Self {
        let tokens = std::mem::take(&mut job.prompt);
        Self {
            sampler: Sampler::new(&job.settings, vocabulary, &tokens),
            prompt_length: tokens.len(),
            tokens,
            reused,
            decoded: reused,
            in_batch: 0,
            output: None,
            characters: Characters::default(),
            stops: Stops::new(&job.stops),
            calls: (!job.tools.is_empty()).then(|| Calls::new(&job.tools)),
            tool_calls: Vec::new(),
            text: String::new(),
            bytes: Vec::new(),
            logprobs: Vec::new(),
            unsent: Delta { choice: job.choice, ..Delta::default() },
            gone: false,
            started: Instant::now(),
            first: None,
            job,
        }
    }

    pub(super) fn job(&self) -> &Job {
        &self.job
    }

    /// Whether nobody waits for the answer any more.
    pub(super) fn is_gone(&self) -> bool {
        self.gone || self.job.cancel.is_cancelled()
    }

    /// The prompt, then what was generated.
    pub(super) fn tokens(&self) -> &[LlamaToken] {
        &self.tokens
    }

    /// Tokens that were generated so far.
    pub(super) fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_length
    }

    /// Tokens that are still to be decoded: one while generating, more while
    /// the prompt is read.
    pub(super) fn pending(&self) -> &[LlamaToken] {
        &self.tokens[self.decoded..]
    }

    /// Chooses the next token by these scores.
    pub(super) fn step(&mut self, scores: &[f32], model: &Model, context: usize) -> Next {
        let allowed = match self.job.constraint.as_mut().map(Constraint::allowed) {
            Some(Err(Stuck)) => return Next::Stuck,
            Some(Ok(allowed)) => Some(allowed),
            None => None,
        };
        let token = match self.sampler.choose(scores, allowed.as_ref()) {
            Ok(token) => token,
            Err(NotANumber) => return Next::Broken,
        };
        self.first.get_or_insert_with(Instant::now);
        if model.is_end(token) {
            return Next::Finish(StopReason::Stop);
        }
        if let Some(count) = self.job.logprobs {
            let text = |token| String::from_utf8_lossy(&model.piece(token, false)).into_owned();
            let likely = logprobs::of(scores, token, count, text);
            self.unsent.logprobs.push(likely.clone());
            self.logprobs.push(likely);
        }
        self.tokens.push(token);
        // What begins a call is a control token in some vocabularies.
        let piece = model.piece(token, self.calls.is_some());
        let mut done = false;
        if let Some(constraint) = &mut self.job.constraint {
            if constraint.accept(token) == Err(Stuck) {
                return Next::Stuck;
            }
            self.bytes.extend_from_slice(&piece);
            done = constraint.is_done();
        }
        let text = self.characters.push(&piece);
        let passed = self.stops.push(&text);
        self.send(&passed.text);
        if passed.stopped {
            Next::Finish(StopReason::StopString)
        } else if done {
            Next::Finish(StopReason::Stop)
        } else if self.generated() >= self.job.max_tokens as usize || self.tokens.len() >= context {
            Next::Finish(StopReason::Length)
        } else {
            Next::Continue
        }
    }

    fn send(&mut self, text: &str) {
        match self.calls.as_mut().map(|calls| calls.push(text)) {
            Some(spoken) => self.pass_on(&spoken),
            None => self.pass_on(text),
        }
    }

    /// Sends what is certainly text.
    fn pass_on(&mut self, text: &str) {
        self.text.push_str(text);
        self.unsent.text.push_str(text);
        if (self.unsent.text.is_empty() && self.unsent.tool_calls.is_empty()) || self.gone {
            return;
        }
        match self.job.out.send(&self.unsent) {
            Ok(()) => {
                self.unsent.text.clear();
                self.unsent.tool_calls.clear();
                self.unsent.logprobs.clear();
            }
            // The asker reads too slowly: the next piece takes this one along.
            Err(refusal) if refusal.code == Code::Busy => {}
            Err(_) => self.gone = true,
        }
    }

    /// Sends what was held back. An answer that must fit something and was cut
    /// is ended so that it does.
    fn send_rest(&mut self, reason: StopReason) -> StopReason {
        let constraint = self.job.constraint.take().filter(|_| reason == StopReason::Length);
        let rest = match constraint.and_then(|constraint| constraint.ending(&self.bytes)) {
            Some(ending) => ending,
            None => self.characters.finish(),
        };
        let passed = self.stops.push(&rest);
        self.send(&passed.text);
        if passed.stopped {
            return StopReason::StopString;
        }
        let held = self.stops.finish();
        self.send(&held);
        reason
    }

    /// Ends the generation and answers.
    pub(super) fn finish(mut self, mut reason: StopReason, figures: &Figures) {
        if reason != StopReason::StopString {
            reason = self.send_rest(reason);
        }
        if let Some(mut calls) = self.calls.take() {
            let (rest, found) = calls.finish();
            self.unsent.tool_calls =
                (0..).zip(&found).map(|(index, call)| in_one_piece(index, call)).collect();
            self.pass_on(&rest);
            if !found.is_empty() && reason != StopReason::Length {
                reason = StopReason::ToolCalls;
            }
            self.tool_calls = found;
        }
        let ended = Instant::now();
        let first = self.first.unwrap_or(ended);
        let outcome = Outcome {
            text: self.text,
            tool_calls: self.tool_calls,
            logprobs: self.logprobs,
            unsent: self.unsent,
            stop_reason: reason,
            prompt_tokens: self.prompt_length,
            cached_tokens: self.reused,
            completion_tokens: self.tokens.len() - self.prompt_length,
            queued: self.started.saturating_duration_since(self.job.received),
            prompt_time: first.saturating_duration_since(self.started),
            first_token: first.saturating_duration_since(self.job.received),
            generate_time: ended.saturating_duration_since(first),
        };
        figures.count(&outcome);
        self.job.asker.tell(Ok(outcome));
    }

    /// Ends the generation with a refusal.
    pub(super) fn refuse(self, refusal: Refusal) {
        self.job.asker.tell(Err(refusal));
    }
}

fn in_one_piece(index: u32, call: &ToolCall) -> ToolCallDelta {
    let (id, name) = (Some(call.id.clone()), Some(call.name.clone()));
    ToolCallDelta { index, id, name, arguments: call.arguments_text() }
}
