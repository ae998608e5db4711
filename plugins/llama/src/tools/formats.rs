//! How calls are written, and read.
//!
//! Each format has a mark that begins it, and a way to read what follows. What
//! cannot be read to its end is no call: the mark was a text.

use std::collections::HashMap;

use ksi_provider::ToolCall;
use serde_json::{Map, Value, json};

use super::python;

/// Tools that were offered: their parameters, by name.
pub(super) type Offered = HashMap<String, Value>;

/// Begins each call of a `DeepSeek` model.
const DEEPSEEK_CALL: &str = "<｜tool▁call▁begin｜>";

/// What begins calls.
const MARKS: [&str; 11] = [
    "<tool_call>",
    "<function=",
    "[TOOL_CALLS]",
    "<|python_tag|>",
    "<|python_start|>",
    "<｜tool▁calls▁begin｜>",
    DEEPSEEK_CALL,
    "<|start|>assistant<|channel|>commentary to=functions.",
    "<|start|>assistant to=functions.",
    "<|channel|>commentary to=functions.",
    "to=functions.",
];

/// A call as it was written.
pub(super) struct Written<'a> {
    pub(super) name: String,
    pub(super) arguments: Value,
    /// All of it.
    pub(super) text: &'a str,
}

/// Where the first mark is. Nothing behind it is looked at.
pub(super) fn find(text: &str) -> Option<usize> {
    let begins = |at: &usize| MARKS.iter().any(|mark| text[*at..].starts_with(mark));
    text.char_indices().map(|(at, _)| at).find(begins)
}

/// Length of the longest end of a text that begins a mark.
pub(super) fn begun(text: &str) -> usize {
    let begun = |mark: &str| {
        let ends = |length: &usize| text.as_bytes().ends_with(&mark.as_bytes()[..*length]);
        (1..mark.len()).rev().find(ends).unwrap_or(0)
    };
    MARKS.iter().map(|mark| begun(mark)).max().unwrap_or(0)
}

/// The calls with which a text begins, and how much of it they are.
pub(super) fn read<'a>(text: &'a str, offered: &'a Offered) -> Option<(Vec<Written<'a>>, usize)> {
    let mut reader = Reader { text, offered, calls: Vec::new() };
    let mark = MARKS.iter().find(|mark| reader.take(mark).is_some());
    match mark.copied() {
        None | Some("<|python_tag|>") => reader.values(),
        Some("<tool_call>") => reader.tagged(),
        Some("<function=") => reader.functions(),
        Some("[TOOL_CALLS]") => reader.mistral(),
        Some("<|python_start|>") => reader.python_block(),
        Some("<｜tool▁calls▁begin｜>") => reader.deepseek(),
        Some(DEEPSEEK_CALL) => reader.deepseek_calls(),
        Some(_) => reader.harmony(),
    }?;
    Some((reader.calls, text.len() - reader.text.len()))
}

/// Reads calls from the beginning of a text.
struct Reader<'a> {
    /// What is not read yet.
    text: &'a str,
    offered: &'a Offered,
    calls: Vec<Written<'a>>,
}

impl<'a> Reader<'a> {
    fn take(&mut self, part: &str) -> Option<()> {
        self.text = self.text.strip_prefix(part)?;
        Some(())
    }

    fn blanks(&mut self) {
        self.text = self.text.trim_start();
    }

    /// What is before this part, which is taken, too.
    fn until(&mut self, part: &str) -> Option<&'a str> {
        let (before, after) = self.text.split_once(part)?;
        self.text = after;
        Some(before)
    }

    /// Reads what may be there. Where it is not, nothing was read.
    fn attempt<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        let (text, known) = (self.text, self.calls.len());
        let there = read(self);
        if there.is_none() {
            self.text = text;
            self.calls.truncate(known);
        }
        there
    }

    /// Takes what ends something, if it is there.
    fn closed(&mut self, part: &str) {
        self.attempt(|reader| {
            reader.blanks();
            reader.take(part)
        });
    }

    fn json(&mut self) -> Option<Value> {
        let mut values = serde_json::Deserializer::from_str(self.text).into_iter::<Value>();
        let value = values.next()?.ok()?;
        self.text = &self.text[values.byte_offset()..];
        Some(value)
    }

    /// An object, which may be fenced in as code.
    fn object(&mut self) -> Option<Value> {
        self.blanks();
        let fenced = self.take("```json").is_some();
        self.blanks();
        let object = self.json().filter(Value::is_object)?;
        if fenced {
            self.closed("```");
        }
        Some(object)
    }

    /// The name of a tool that was offered; that of another ends the calls, so
    /// that all of what it would be stays text, with its mark.
    fn known(&self, name: &'a str) -> Option<&'a str> {
        Some(name.trim()).filter(|name| self.offered.contains_key(*name))
    }

    /// A call has been read that began here.
    fn add(&mut self, from: &'a str, name: &str, arguments: Value) {
        let text = &from[..from.len() - self.text.len()];
        self.calls.push(Written { name: name.trim().to_owned(), arguments, text });
    }

    /// A value that was written as a text, as the tool says what it is.
    fn typed(&self, tool: &str, name: &str, text: &str) -> Value {
        let schema = self.offered.get(tool).map_or(&Value::Null, |schema| &schema["properties"][name]);
        let as_it_is = || Value::String(text.to_owned());
        if allows(schema, "string") {
            let nothing = text.trim() == "null" && allows(schema, "null");
            return if nothing { Value::Null } else { as_it_is() };
        }
        match schema["type"] {
            Value::Null => serde_json::from_str(text.trim()).unwrap_or_else(|_| as_it_is()),
            _ => serde_json::from_str(text.trim())
                .ok()
                .or_else(|| python::value(text))
                .unwrap_or_else(as_it_is),
        }
    }

    /// `{…}`, `[{…}, {…}]` or `[NAME(…), …]`, and more of them.
    fn values(&mut self) -> Option<()> {
        self.blanks();
        self.value()?;
        let more = |reader: &mut Self| {
            reader.blanks();
            let _ = reader.take(";").or_else(|| reader.take(","));
            reader.blanks();
            reader.value()
        };
        while self.attempt(more).is_some() {}
        Some(())
    }

    fn value(&mut self) -> Option<()> {
        if !self.text.starts_with('[') {
            return self.call();
        }
        self.attempt(|reader| reader.list(Self::call))
            .or_else(|| self.attempt(|reader| reader.list(Self::python)))
    }

    fn list(&mut self, one: fn(&mut Self) -> Option<()>) -> Option<()> {
        self.take("[")?;
        loop {
            self.blanks();
            one(self)?;
            self.blanks();
            if self.take("]").is_some() {
                return Some(());
            }
            self.take(",")?;
        }
    }

    /// `{"name": …, "arguments": …}`
    fn call(&mut self) -> Option<()> {
        let from = self.text;
        let object = self.object()?;
        let inner = object.get("function").filter(|inner| inner.is_object()).unwrap_or(&object);
        let arguments = match inner.get("arguments").or_else(|| inner.get("parameters")) {
            None => json!({}),
            Some(Value::String(text)) => ToolCall::parse_arguments(text),
            Some(arguments) => arguments.clone(),
        };
        self.add(from, inner.get("name")?.as_str()?, arguments);
        Some(())
    }

    /// `NAME(…)`
    fn python(&mut self) -> Option<()> {
        let from = self.text;
        let (name, arguments, rest) = python::call(from)?;
        self.text = rest;
        self.add(from, name, arguments);
        Some(())
    }

    fn python_block(&mut self) -> Option<()> {
        self.values()?;
        self.closed("<|python_end|>");
        Some(())
    }

    fn tagged(&mut self) -> Option<()> {
        self.blanks();
        if self.take("<function=").is_some() {
            return self.functions();
        }
        if self.attempt(Self::values).is_none() {
            return self.keyed();
        }
        self.closed("</tool_call>");
        Some(())
    }

    /// `NAME`, then `<arg_key>…</arg_key><arg_value>…</arg_value>` for each
    /// argument, then the end of the tag.
    fn keyed(&mut self) -> Option<()> {
        let from = self.text;
        let name = from[..from.find(['<', '\n'])?].trim();
        self.text = &from[from.find(['<', '\n'])?..];
        let mut arguments = Map::new();
        loop {
            self.blanks();
            if self.take("</tool_call>").is_some() {
                self.add(from, name, Value::Object(arguments));
                return Some(());
            }
            self.take("<arg_key>")?;
            let key = self.until("</arg_key>")?.trim();
            self.blanks();
            self.take("<arg_value>")?;
            let value = self.until("</arg_value>")?;
            arguments.insert(key.to_owned(), self.typed(name, key, value));
        }
    }

    /// `NAME>…</function>`, and more of them.
    fn functions(&mut self) -> Option<()> {
        self.function()?;
        let more = |reader: &mut Self| {
            reader.blanks();
            reader.take("<function=")?;
            reader.function()
        };
        while self.attempt(more).is_some() {}
        // Some write the end of the tag only.
        self.closed("</tool_call>");
        Some(())
    }

    fn function(&mut self) -> Option<()> {
        let from = self.text;
        let name = self.until(">").and_then(|name| self.known(name))?;
        let read = self.attempt(Self::object).or_else(|| self.attempt(|reader| reader.parameters(name)));
        let arguments = match read {
            Some(arguments) => {
                self.closed("</function>");
                arguments
            }
            // The end is another's where that begins before it.
            None => {
                let body = self.until("</function>").filter(|body| !body.contains("<function="))?;
                ToolCall::parse_arguments(body)
            }
        };
        self.add(from, name, arguments);
        Some(())
    }

    /// `<parameter=NAME>…</parameter>`, and more of them, to the end of all.
    fn parameters(&mut self, tool: &str) -> Option<Value> {
        let mut arguments = Map::new();
        loop {
            self.blanks();
            if self.text.starts_with("</function>") {
                return Some(Value::Object(arguments));
            }
            self.take("<parameter=")?;
            let name = self.until(">")?.trim();
            let value = self.until("</parameter>")?;
            let value = value.strip_prefix('\n').unwrap_or(value);
            let value = value.strip_suffix('\n').unwrap_or(value);
            arguments.insert(name.to_owned(), self.typed(tool, name, value));
        }
    }

    /// A list, or `NAME[ARGS]{…}`, where a number may stand before the arguments.
    fn mistral(&mut self) -> Option<()> {
        self.blanks();
        if self.text.starts_with(['[', '{']) {
            return self.values();
        }
        let from = self.text;
        let name = &from[..from.find(['[', '{'])?];
        self.text = &from[name.len()..];
        if self.take("[CALL_ID]").is_some() {
            self.until("[ARGS]")?;
        }
        let _ = self.take("[ARGS]");
        let arguments = self.object()?;
        self.add(from, name, arguments);
        Some(())
    }

    fn deepseek(&mut self) -> Option<()> {
        self.blanks();
        self.take(DEEPSEEK_CALL)?;
        self.deepseek_calls()
    }

    fn deepseek_calls(&mut self) -> Option<()> {
        self.deepseek_call()?;
        let more = |reader: &mut Self| {
            reader.blanks();
            reader.take(DEEPSEEK_CALL)?;
            reader.deepseek_call()
        };
        while self.attempt(more).is_some() {}
        self.closed("<｜tool▁calls▁end｜>");
        Some(())
    }

    /// `NAME<｜tool▁sep｜>{…}` of newer models, the kind of tool in place of the name
    /// and a line for that of older ones.
    fn deepseek_call(&mut self) -> Option<()> {
        let from = self.text;
        let kind = self.until("<｜tool▁sep｜>").filter(|kind| !kind.contains(DEEPSEEK_CALL))?;
        let name = if self.text.trim_start().starts_with('{') { kind } else { self.until("\n")? };
        let name = self.known(name)?;
        let arguments = self.object()?;
        self.closed("<｜tool▁call▁end｜>");
        self.add(from, name, arguments);
        Some(())
    }

    /// `NAME`, what else is in the head of the message, and the arguments.
    fn harmony(&mut self) -> Option<()> {
        let from = self.text;
        let name = &from[..from.find(|c: char| c.is_whitespace() || c == '<')?];
        self.text = &from[name.len()..];
        let mut head = self.until("<|message|>")?.to_owned();
        for known in ["<|channel|>commentary", "<|constrain|>", "json"] {
            head = head.replacen(known, "", 1);
        }
        if !head.trim().is_empty() {
            return None;
        }
        let arguments = self.object()?;
        self.closed("<|call|>");
        self.add(from, name, arguments);
        Some(())
    }
}

/// Whether a schema says that a value may be of this type.
fn allows(schema: &Value, kind: &str) -> bool {
    let named = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().any(|named| named == kind),
        named => named == kind,
    };
    let branches = ["anyOf", "oneOf"].into_iter().filter_map(|key| schema[key].as_array()).flatten();
    named
        || branches.into_iter().any(|branch| allows(branch, kind))
        || (kind == "string"
            && schema["enum"].as_array().is_some_and(|values| values.iter().all(Value::is_string)))
}
