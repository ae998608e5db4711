//! Chat templates: a conversation in, the prompt that the model was trained on
//! out.
//!
//! The template comes with the model file and is a program of somebody else,
//! so it runs in an engine without any access to the machine, with a limit on
//! steps and on output. A model without a usable template gets ChatML, and
//! [`Template::describe`] says so: it is a guess, and never a silent one.
//!
//! # Invariants
//!
//! - What a user writes cannot turn into a control token: where a message
//!   contains the text of one, that text travels as a [`Part::Plain`], which
//!   is tokenized as ordinary text.

mod clock;

use std::io::Write;

use ksi_provider::request::invalid;
use ksi_provider::{Message, Role, Tool};
use ksi_sdk::prelude::{Code, Refusal, json};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, context};
use serde_json::Value;

use crate::tools;

/// Steps that one rendering may take: a long conversation needs some ten
/// thousand, an endless loop ends here within a second.
const STEPS_MAX: u64 = 2_000_000;
/// Bytes that a template may add to the messages.
const OVERHEAD_BYTES_MAX: usize = 1024 * 1024;
/// Name of the one template in its environment.
const NAME: &str = "chat";
/// Marks where text that looks like a control token was taken out of a
/// message. Noncharacters of Unicode, so they occur in no honest text.
const MARKS: [char; 4] = ['\u{FDD0}', '\u{FDD2}', '\u{FDD4}', '\u{FDD6}'];

/// The format for models that bring no usable template.
const CHATML: &str = "{%- for message in messages -%}\
    {{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\
    {%- endfor -%}\
    {%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}";

/// A piece of a rendered prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// May contain control tokens.
    Marked(String),
    /// Is text only, whatever it looks like.
    Plain(String),
}

/// A compiled chat template.
pub struct Template {
    environment: Environment<'static>,
    bos: String,
    eos: String,
    origin: String,
    /// Whether it says anything of tools.
    knows_tools: bool,
}

impl Template {
    /// Compiles the template of a model; `bos` and `eos` are the texts of its
    /// tokens for start and end.
    #[must_use]
    pub fn new(source: Option<&str>, bos: String, eos: String) -> Self {
        let (environment, origin) = match source.map(compile) {
            Some(Ok(environment)) => (environment, "model".to_owned()),
            Some(Err(error)) => {
                (chatml(), format!("chatml (fallback: the model's template does not compile: {error})"))
            }
            None => (chatml(), "chatml (fallback: the model has no template)".to_owned()),
        };
        let knows_tools = origin == "model" && source.is_some_and(|source| source.contains("tools"));
        Self { environment, bos, eos, origin, knows_tools }
    }

    /// Where the template is from.
    #[must_use]
    pub fn describe(&self) -> &str {
        &self.origin
    }

    /// Renders a conversation up to where the assistant speaks, with the tools
    /// that it may call. `controls` are the texts of the model's control tokens.
    ///
    /// # Errors
    ///
    /// `invalid_payload` with the template's own words where it refuses the
    /// conversation; `internal` where the template itself fails.
    pub fn render(
        &self,
        messages: &[Message],
        tools: &[Tool],
        controls: &[String],
    ) -> Result<Vec<Part>, Refusal> {
        let called =
            messages.iter().any(|message| message.role == Role::Tool || !message.tool_calls.is_empty());
        if !self.knows_tools && (called || !tools.is_empty()) {
            return self.render(&tools::spelled_out(messages, tools), &[], controls);
        }
        let mut list: Vec<Value> = messages.iter().map(told).collect();
        let mut tools: Vec<Value> = tools.iter().map(tools::described).collect();
        let bytes = list.iter().chain(&tools).map(|value| value.to_string().len()).sum::<usize>();
        let hidden = Hidden::new(list.iter().chain(&tools), controls)?;
        list.iter_mut().chain(&mut tools).for_each(|value| hidden.hide_in(value));
        let tools = (!tools.is_empty()).then_some(tools);
        let context = context! {
            messages => Serde(list),
            tools => tools.map(Serde),
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            add_generation_prompt => true,
        };
        // A template may repeat a message, but not without end.
        let mut output = Bounded { bytes: Vec::new(), left: bytes.saturating_mul(4) + OVERHEAD_BYTES_MAX };
        self.environment
            .get_template(NAME)
            .and_then(|template| template.render_captured_to(context, &mut output).map(drop))
            .map_err(|error| refused(&error))?;
        let text = String::from_utf8_lossy(&output.bytes).into_owned();
        Ok(hidden.reveal(&text))
    }

    /// The text of the token that starts a sequence.
    #[must_use]
    pub fn bos(&self) -> &str {
        &self.bos
    }
}

/// A message as templates know it.
fn told(message: &Message) -> Value {
    let mut told = json!({"role": message.role.as_str(), "content": message.content});
    if !message.tool_calls.is_empty() {
        told["tool_calls"] = message.tool_calls.iter().map(tools::called).collect();
    }
    if let Some(id) = &message.tool_call_id {
        told["tool_call_id"] = json!(id);
    }
    told
}

fn compile(source: &str) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    // The settings that templates are written for.
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    environment.set_syntax(syntax);
    environment.set_fuel(Some(STEPS_MAX));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<minijinja::Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
    });
    environment.add_function("strftime_now", |format: String| clock::now(&format));
    environment.add_template_owned(NAME, source.to_owned())?;
    Ok(environment)
}

/// Starts the text of an error that the template raised itself.
const RAISED: &str = "raised: ";

fn chatml() -> Environment<'static> {
    compile(CHATML).expect("the built-in template is constant and a test compiles it")
}

fn refused(error: &Error) -> Refusal {
    if let Some(words) = error.detail().and_then(|detail| detail.strip_prefix(RAISED)) {
        return Refusal::new(Code::InvalidPayload, format!("the model's chat template refuses: {words}"))
            .hint("change the order or the roles of the messages")
            .details(json!({ "template": words }));
    }
    Refusal::new(Code::Internal, format!("the model's chat template fails: {error}"))
        .hint("give `prompt` instead of `messages`, or use another file of the model")
}

/// A writer that ends where its limit is.
struct Bounded {
    bytes: Vec<u8>,
    left: usize,
}

impl Write for &mut Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if bytes.len() > self.left {
            return Err(std::io::Error::other("the output of the template is too large"));
        }
        self.left -= bytes.len();
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Texts of control tokens taken out of messages, to be put back after
/// rendering as plain text.
struct Hidden<'a> {
    controls: Vec<&'a str>,
    mark: char,
}

impl<'a> Hidden<'a> {
    fn new<'v>(values: impl Iterator<Item = &'v Value>, controls: &'a [String]) -> Result<Self, Refusal> {
        let mut controls: Vec<&str> =
            controls.iter().map(String::as_str).filter(|control| !control.is_empty()).collect();
        // The longest first, so that none hides a part of another.
        controls.sort_by_key(|control| std::cmp::Reverse(control.len()));
        let texts: Vec<String> = values.map(Value::to_string).collect();
        let unused = |mark: &char| !texts.iter().any(|text| text.contains(*mark));
        let Some(mark) = MARKS.into_iter().find(unused) else {
            return Err(invalid(
                "messages",
                "the messages contain noncharacters that are reserved",
                "remove U+FDD0 to U+FDD6 from the messages",
            ));
        };
        Ok(Self { controls, mark })
    }

    fn hide(&self, content: &str) -> String {
        let mut content = content.to_owned();
        for (index, control) in self.controls.iter().enumerate() {
            if content.contains(control) {
                content = content.replace(control, &format!("{0}{index}{0}", self.mark));
            }
        }
        content
    }

    /// The same for every text in a value.
    fn hide_in(&self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.hide(text),
            Value::Array(list) => list.iter_mut().for_each(|value| self.hide_in(value)),
            Value::Object(fields) => fields.values_mut().for_each(|value| self.hide_in(value)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn reveal(&self, text: &str) -> Vec<Part> {
        let mut parts = Vec::new();
        // Marks come in pairs, so every second piece is a number.
        for (at, piece) in text.split(self.mark).enumerate() {
            if at % 2 == 0 {
                if !piece.is_empty() {
                    parts.push(Part::Marked(piece.to_owned()));
                }
            } else if let Some(control) = piece.parse::<usize>().ok().and_then(|at| self.controls.get(at)) {
                parts.push(Part::Plain((*control).to_owned()));
            }
        }
        parts
    }
}

#[cfg(test)]
mod tests;
