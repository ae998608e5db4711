//! The stream of an answer, read event by event.

use std::collections::BTreeMap;

use ksi_provider::{Delta, StopReason, ToolCallDelta, Usage, failure::Failure};
use ksi_provider_http::{
    End, Output,
    problem::{Problem, invalid},
};
use ksi_sdk::prelude::{Deserialize, Refusal};
use serde_json::{Map, Value};

use crate::{NAME, request::ANSWER_TOOL};

/// One event of the stream. Whatever else is in it does not matter here.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Event {
    MessageStart {
        message: Message,
    },
    ContentBlockStart {
        index: u32,
        content_block: Block,
    },
    ContentBlockDelta {
        index: u32,
        delta: Piece,
    },
    MessageDelta {
        delta: Ending,
        #[serde(default)]
        usage: Option<Counts>,
    },
    MessageStop,
    /// Pings, ends of blocks, and what may come to be.
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    usage: Option<Counts>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block {
    Text {
        #[serde(default)]
        text: String,
    },
    ToolUse {
        id: String,
        name: String,
        #[serde(default)]
        input: Map<String, Value>,
    },
    /// Thoughts, and tools of the provider's own.
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Piece {
    TextDelta {
        text: String,
    },
    InputJsonDelta {
        partial_json: String,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Ending {
    #[serde(default)]
    stop_reason: Option<String>,
}

#[derive(Deserialize)]
struct Counts {
    #[serde(default)]
    input_tokens: Option<u64>,
    #[serde(default)]
    output_tokens: Option<u64>,
    #[serde(default)]
    cache_creation_input_tokens: Option<u64>,
    #[serde(default)]
    cache_read_input_tokens: Option<u64>,
}

/// What a block of the answer is to us.
#[derive(Debug, Clone, Copy)]
enum Part {
    /// Its text is text of the answer.
    Text,
    /// It is this tool call.
    Call(u32),
    /// Its JSON is the text of the answer.
    Answer,
    Nothing,
}

/// What is known of the answer so far, besides its pieces.
#[derive(Debug)]
pub(crate) struct Reading {
    model: String,
    by_schema: bool,
    id: Option<String>,
    blocks: BTreeMap<u32, Part>,
    calls: u32,
    /// Tokens of the input that were neither in the cache nor put there.
    fresh: u64,
    written: Option<u64>,
    cached: u64,
    made: u64,
    over: bool,
}

impl Reading {
    /// The reading of an answer by this model; `by_schema`: its text is the
    /// arguments of [`ANSWER_TOOL`].
    pub(crate) fn new(model: String, by_schema: bool) -> Self {
        Self {
            model,
            by_schema,
            id: None,
            blocks: BTreeMap::new(),
            calls: 0,
            fresh: 0,
            written: None,
            cached: 0,
            made: 0,
            over: false,
        }
    }

    /// Whether the last event was read.
    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    /// Reads an event: the piece in it.
    pub(crate) fn read(&mut self, data: &str, output: &mut Output) -> Result<Option<Delta>, Refusal> {
        let unread =
            |error: serde_json::Error| invalid(NAME, format!("an event of it cannot be read: {error}"));
        let value: Value = serde_json::from_str(data).map_err(unread)?;
        if let Some(problem) = Problem::read(&value) {
            return Err(problem.refusal(NAME, Failure::Overloaded));
        }
        match serde_json::from_value(value).map_err(unread)? {
            Event::MessageStart { message } => {
                self.id = message.id;
                self.model = message.model.unwrap_or_else(|| std::mem::take(&mut self.model));
                self.count(message.usage);
                Ok(None)
            }
            Event::ContentBlockStart { index, content_block } => Ok(self.begin(index, content_block)),
            Event::ContentBlockDelta { index, delta } => Ok(self.piece(index, delta)),
            Event::MessageDelta { delta, usage } => {
                self.count(usage);
                if let Some(reason) = delta.stop_reason {
                    output.stop(0, self.stop(&reason)?)?;
                }
                Ok(None)
            }
            Event::MessageStop => {
                self.over = true;
                Ok(None)
            }
            Event::Other => Ok(None),
        }
    }

    /// What is told at the end.
    pub(crate) fn end(self, ignored: Vec<String>) -> End {
        let prompt = self.fresh.saturating_add(self.cached).saturating_add(self.written.unwrap_or(0));
        let usage = Usage {
            prompt_tokens: prompt,
            completion_tokens: self.made,
            total_tokens: prompt.saturating_add(self.made),
            cached_tokens: self.cached,
            cache_write_tokens: self.written,
            ..Usage::default()
        };
        End { model: self.model, usage, seed: None, ignored, response_id: self.id }
    }

    /// Counts are of the whole answer so far; the last word counts.
    fn count(&mut self, counts: Option<Counts>) {
        let Some(counts) = counts else { return };
        self.fresh = counts.input_tokens.unwrap_or(self.fresh);
        self.cached = counts.cache_read_input_tokens.unwrap_or(self.cached);
        self.written = counts.cache_creation_input_tokens.or(self.written);
        self.made = counts.output_tokens.unwrap_or(self.made);
    }

    fn begin(&mut self, index: u32, block: Block) -> Option<Delta> {
        match block {
            // What is said around an answer by a schema is not a part of it.
            Block::Text { text } if !self.by_schema => {
                self.blocks.insert(index, Part::Text);
                Some(Delta::text(text))
            }
            Block::ToolUse { name, input, .. } if self.by_schema && name == ANSWER_TOOL => {
                self.blocks.insert(index, Part::Answer);
                Some(Delta::text(whole(&input)))
            }
            Block::ToolUse { id, name, input } if !self.by_schema => {
                let call = self.calls;
                self.calls += 1;
                self.blocks.insert(index, Part::Call(call));
                Some(of_call(ToolCallDelta {
                    index: call,
                    id: Some(id),
                    name: Some(name),
                    arguments: whole(&input),
                }))
            }
            Block::Text { .. } | Block::ToolUse { .. } | Block::Other => {
                self.blocks.insert(index, Part::Nothing);
                None
            }
        }
    }

    fn piece(&self, index: u32, piece: Piece) -> Option<Delta> {
        match (self.blocks.get(&index)?, piece) {
            (Part::Text, Piece::TextDelta { text })
            | (Part::Answer, Piece::InputJsonDelta { partial_json: text }) => Some(Delta::text(text)),
            (Part::Call(index), Piece::InputJsonDelta { partial_json }) => Some(of_call(ToolCallDelta {
                index: *index,
                arguments: partial_json,
                ..ToolCallDelta::default()
            })),
            _ => None,
        }
    }

    fn stop(&self, reason: &str) -> Result<StopReason, Refusal> {
        match reason {
            "end_turn" => Ok(StopReason::Stop),
            "tool_use" if self.by_schema => Ok(StopReason::Stop),
            "tool_use" => Ok(StopReason::ToolCalls),
            "max_tokens" | "model_context_window_exceeded" => Ok(StopReason::Length),
            "stop_sequence" => Ok(StopReason::StopString),
            "refusal" => Ok(StopReason::ContentFilter),
            other => Err(invalid(NAME, format!("it ends for the reason `{}`", other.escape_debug()))),
        }
    }
}

/// Arguments that came with the beginning of their block; mostly there are none
/// yet.
fn whole(input: &Map<String, Value>) -> String {
    if input.is_empty() { String::new() } else { Value::Object(input.clone()).to_string() }
}

fn of_call(piece: ToolCallDelta) -> Delta {
    Delta { tool_calls: vec![piece], ..Delta::default() }
}
