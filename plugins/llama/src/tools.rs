//! Tools: how a model is told of them, and its calls read back out of what it
//! writes.
//!
//! Every family of models has its own way to write a call. All of the common
//! ones are read, whatever the template says, since models mix them up:
//!
//! | written | by |
//! |---|---|
//! | `<tool_call>{"name": …, "arguments": …}</tool_call>` | Hermes, Qwen and many others |
//! | `[TOOL_CALLS][{"name": …, "arguments": …}]` | Mistral |
//! | `<|python_tag|>{"name": …, "parameters": …}` | Llama 3 |
//! | `<function=NAME>{…}</function>` | Llama 3.1 |
//! | `{"name": …, "parameters": …}` and nothing else | Llama 3.2 and small models |
//!
//! # Invariants
//!
//! - Only what names a tool that was offered is a call; all else is text.
//! - Nothing of a call is passed on as text, and no text is lost.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use ksi_provider::{Message, Role, Tool, ToolCall, ToolChoice};
use serde_json::{Value, json};

/// What begins a call.
const MARKS: [&str; 4] = ["<tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<function="];

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
    names: HashSet<String>,
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
        let names = tools.iter().map(|tool| tool.name.clone()).collect();
        Self { names, held: String::new(), inside: false, spoke: false }
    }

    /// Adds a piece; what is certainly no part of a call comes back.
    pub(crate) fn push(&mut self, piece: &str) -> String {
        self.held.push_str(piece);
        if self.inside {
            return String::new();
        }
        let mark = MARKS.iter().filter_map(|mark| self.held.find(mark)).min();
        let bare = !self.spoke && self.held.trim_start().starts_with(['{', '[']);
        let end = match (mark, bare) {
            (_, true) => 0,
            (Some(at), false) => at,
            (None, false) => {
                self.held.len() - MARKS.iter().map(|mark| begun(&self.held, mark)).max().unwrap_or(0)
            }
        };
        self.inside = bare || mark.is_some();
        // Blanks before a call say nothing.
        if self.held[..end].trim().is_empty() && !self.spoke {
            return String::new();
        }
        self.spoke = true;
        let rest = self.held.split_off(end);
        std::mem::replace(&mut self.held, rest)
    }

    /// The end of the text: what of it was no call, and the calls.
    pub(crate) fn finish(&mut self) -> (String, Vec<ToolCall>) {
        let held = std::mem::take(&mut self.held);
        let mut calls = Vec::new();
        for (name, arguments) in read(&held) {
            if self.names.contains(&name) {
                calls.push(ToolCall { id: id(calls.len()), name, arguments });
            }
        }
        if calls.is_empty() { (held, calls) } else { (String::new(), calls) }
    }
}

/// Length of the longest end of `text` that begins `mark`.
fn begun(text: &str, mark: &str) -> usize {
    (1..mark.len()).rev().find(|length| text.as_bytes().ends_with(&mark.as_bytes()[..*length])).unwrap_or(0)
}

/// A name for a call that no other has.
fn id(number: usize) -> String {
    // The hasher's keys are random for each instance.
    format!("call_{:016x}", RandomState::new().hash_one(number))
}

/// Everything in a text that is written like a call: names and arguments.
fn read(text: &str) -> Vec<(String, Value)> {
    let mut calls = Vec::new();
    let mut rest = text.trim();
    // Mistral and Llama 3 write a mark once, others before each call.
    for mark in MARKS.iter().filter(|mark| !mark.starts_with("<function")) {
        if let Some(at) = rest.find(mark).filter(|at| rest[..*at].trim().is_empty()) {
            rest = rest[at + mark.len()..].trim_start();
        }
    }
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix("<function=") {
            let Some((name, body)) = after.split_once('>') else { break };
            let body = body.split_once("</function>").unwrap_or((body, ""));
            calls.push((name.trim().to_owned(), ToolCall::parse_arguments(body.0)));
            rest = body.1.trim_start();
            continue;
        }
        let Some(mut at) = rest.find(['{', '[']) else { break };
        // `[TOOL_CALLS]name[ARGS]{…}` of newer Mistral models.
        let before = rest[..at].trim();
        if let Some(after) = rest[at..].strip_prefix("[ARGS]") {
            at = rest.len() - after.len();
        }
        let mut values = serde_json::Deserializer::from_str(&rest[at..]).into_iter::<Value>();
        let Some(Ok(value)) = values.next() else { break };
        let end = at + values.byte_offset();
        match value {
            Value::Array(list) => calls.extend(list.iter().filter_map(call)),
            value => match call(&value) {
                Some(call) => calls.push(call),
                None if !before.is_empty() && value.is_object() => calls.push((before.to_owned(), value)),
                None => {}
            },
        }
        rest = rest[end..].trim_start();
        for between in ["</tool_call>", ";", ",", "<tool_call>", "[TOOL_CALLS]"] {
            rest = rest.strip_prefix(between).unwrap_or(rest).trim_start();
        }
    }
    calls
}

/// A call as JSON, in the ways that models have for it.
fn call(value: &Value) -> Option<(String, Value)> {
    let inner = value.get("function").filter(|inner| inner.is_object()).unwrap_or(value);
    let name = inner.get("name")?.as_str()?.to_owned();
    let arguments = inner.get("arguments").or_else(|| inner.get("parameters"));
    let arguments = match arguments {
        None => json!({}),
        Some(Value::String(text)) => ToolCall::parse_arguments(text),
        Some(arguments) => arguments.clone(),
    };
    Some((name, arguments))
}

#[cfg(test)]
mod tests;
