//! Tools: how a model is told of them, and its calls read back out of what it
//! writes.
//!
//! Every family of models has its own way to write a call. All of the common
//! ones are read, whatever the template says, since models mix them up:
//!
//! | written | by |
//! |---|---|
//! | `<tool_call>{"name": …, "arguments": …}</tool_call>` | Hermes, Qwen and many others |
//! | `<tool_call><function=NAME><parameter=NAME>…</parameter></function></tool_call>` | Qwen3-Coder |
//! | `<tool_call>NAME<arg_key>…</arg_key><arg_value>…</arg_value></tool_call>` | GLM |
//! | `[TOOL_CALLS][{"name": …, "arguments": …}]`, `[TOOL_CALLS]NAME[ARGS]{…}` | Mistral |
//! | `<|python_tag|>{"name": …, "parameters": …}` | Llama 3 |
//! | `<function=NAME>{…}</function>` | Llama 3.1 |
//! | `{"name": …, "parameters": …}` and nothing before it | Llama 3.2 and small models |
//! | `[NAME(KEY=VALUE)]` and nothing before it | Llama 3.2, and Llama 4 between marks |
//! | `<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{…}` | `DeepSeek` |
//! | `<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}` | gpt-oss |
//!
//! # Invariants
//!
//! - Only what names a tool that was offered is a call; all else is text.
//! - Nothing of a call is passed on as text, and no text is lost, wherever it
//!   stands; only blanks beside a call are.
//! - Reading takes time in proportion to the text, whatever is in it: behind
//!   [`MISSES_MAX`] marks that begin no call, all is text.

mod formats;
mod python;

use std::hash::{BuildHasher, RandomState};

use ksi_provider::{Message, Role, Tool, ToolCall, ToolChoice};
use serde_json::{Value, json};

use formats::Offered;

/// Marks that begin no call, at most, before no more calls are looked for. Each
/// may have cost a look at all of the text.
const MISSES_MAX: usize = 100;

/// A tool as templates know it.
pub(crate) fn described(tool: &Tool) -> Value {
    let function = json!({"name": tool.name, "description": tool.description, "parameters": tool.parameters});
    json!({"type": "function", "function": function})
}

/// A call as templates know it.
pub(crate) fn called(call: &ToolCall) -> Value {
    let function = json!({"name": call.name, "arguments": call.arguments});
    json!({"id": call.id, "type": "function", "function": function})
}

/// The conversation for a model whose template knows no tools: they, their calls
/// and their results are written into the messages.
pub(crate) fn spelled_out(messages: &[Message], tools: &[Tool]) -> Vec<Message> {
    let mut spelled: Vec<Message> = messages
        .iter()
        .map(|message| match message.role {
            Role::Tool => {
                Message::new(Role::User, format!("<tool_response>\n{}\n</tool_response>", message.content))
            }
            role => {
                let calls = message.tool_calls.iter().map(|call| {
                    let call = json!({"name": call.name, "arguments": call.arguments});
                    format!("<tool_call>\n{call}\n</tool_call>")
                });
                let parts: Vec<String> = Some(message.content.clone())
                    .filter(|text| !text.is_empty())
                    .into_iter()
                    .chain(calls)
                    .collect();
                Message::new(role, parts.join("\n"))
            }
        })
        .collect();
    if tools.is_empty() {
        return spelled;
    }
    let list: Vec<String> = tools.iter().map(|tool| described(tool).to_string()).collect();
    let told = format!(
        "You may call these tools:\n<tools>\n{}\n</tools>\nTo call one, write\n<tool_call>\n{{\"name\": NAME, \
         \"arguments\": OBJECT}}\n</tool_call>",
        list.join("\n")
    );
    match spelled.first_mut().filter(|first| first.role == Role::System) {
        Some(first) => first.content = format!("{}\n\n{told}", first.content),
        None => spelled.insert(0, Message::new(Role::System, told)),
    }
    spelled
}

/// The grammar of an answer that must be a call, in the Lark syntax of the
/// grammar engine; `None` where any answer will do.
pub(crate) fn required(choice: &ToolChoice, tools: &[Tool]) -> Option<String> {
    let allowed: Vec<Value> = tools
        .iter()
        .filter(|tool| match choice {
            ToolChoice::Tool(name) => tool.name == *name,
            ToolChoice::Required => true,
            ToolChoice::Auto | ToolChoice::None => false,
        })
        .map(|tool| {
            json!({"type": "object", "required": ["name", "arguments"], "additionalProperties": false,
                "properties": {"name": {"const": tool.name}, "arguments": tool.parameters}})
        })
        .collect();
    (!allowed.is_empty()).then(|| {
        let schema = json!({"anyOf": allowed, "x-guidance": {
            "item_separator": ", ", "key_separator": ": ", "whitespace_flexible": false,
        }});
        format!("start: \"<tool_call>\\n\" call \"\\n</tool_call>\"\ncall: %json {schema}\n")
    })
}

/// Takes calls out of a text that comes in pieces.
pub(crate) struct Calls {
    offered: Offered,
    /// Text that may be the beginning of a call, or is.
    held: String,
    /// Whether `held` begins with what begins a call.
    inside: bool,
    /// Whether any text was passed on.
    spoke: bool,
}

impl Calls {
    /// Looks for calls of these tools.
    pub(crate) fn new(tools: &[Tool]) -> Self {
        let parameters = |tool: &Tool| (tool.name.clone(), json!(tool.parameters));
        let offered = tools.iter().map(parameters).collect();
        Self { offered, held: String::new(), inside: false, spoke: false }
    }

    /// Adds a piece; what is certainly no part of a call comes back.
    pub(crate) fn push(&mut self, piece: &str) -> String {
        self.held.push_str(piece);
        if self.inside {
            return String::new();
        }
        // Blanks before a call say nothing.
        if !self.spoke && self.held.trim_start().is_empty() {
            return String::new();
        }
        let mark = self.bare().or_else(|| formats::find(&self.held));
        let end = mark.unwrap_or_else(|| self.held.len() - formats::begun(&self.held));
        self.inside = mark.is_some();
        if !self.spoke && self.held[..end].trim_start().is_empty() {
            return String::new();
        }
        self.spoke = true;
        let rest = self.held.split_off(end);
        std::mem::replace(&mut self.held, rest)
    }

    /// Where a call without a mark may begin: only at the start of all text.
    fn bare(&self) -> Option<usize> {
        let text = self.held.trim_start();
        (!self.spoke && text.starts_with(['{', '['])).then(|| self.held.len() - text.len())
    }

    /// The end of the text: what of it was no call, and the calls.
    pub(crate) fn finish(&mut self) -> (String, Vec<ToolCall>) {
        let mut next = self.bare().or_else(|| formats::find(&self.held));
        let held = std::mem::take(&mut self.held);
        let (mut said, mut calls) = (String::new(), Vec::new());
        // All before it is dealt with.
        let (mut done, mut misses) = (0, 0);
        while let Some(at) = next
            && misses < MISSES_MAX
        {
            // Every mark begins with one byte that is a character.
            let mut from = at + 1;
            if let Some((found, length)) = formats::read(&held[at..], &self.offered)
                && found.iter().any(|call| self.offered.contains_key(&call.name))
            {
                say(&mut said, &held[done..at]);
                for call in found {
                    match self.offered.contains_key(&call.name) {
                        true => calls.push(ToolCall {
                            id: id(calls.len()),
                            name: call.name,
                            arguments: call.arguments,
                        }),
                        false => say(&mut said, call.text),
                    }
                }
                done = at + length;
                from = done;
            } else {
                misses += 1;
            }
            next = formats::find(&held[from..]).map(|at| from + at);
        }
        if calls.is_empty() {
            return (held, calls);
        }
        say(&mut said, &held[done..]);
        (said, calls)
    }
}

/// Adds text beside calls, unless it says nothing.
fn say(said: &mut String, text: &str) {
    if !text.trim().is_empty() {
        said.push_str(text);
    }
}

/// A name for a call that no other has.
fn id(number: usize) -> String {
    // The hasher's keys are random for each instance.
    format!("call_{:016x}", RandomState::new().hash_one(number))
}

#[cfg(test)]
mod tests;
