//! What no provider can do, refused with the path of the field.

use std::collections::HashSet;

use ksi_protocol::{Code, Refusal};
use serde_json::{Value, json};

use super::{
    CHOICES_MAX, CONVERSATION_BYTES_MAX, Generate, LOGPROBS_MAX, MESSAGES_MAX, MODEL_BYTES_MAX, Message,
    PRIORITY_MAX, ResponseFormat, Role, STOP_BYTES_MAX, STOPS_MAX, TIMEOUT_MS_MAX, TOOL_CALLS_MAX,
    TOOL_NAME_BYTES_MAX, TOOLS_MAX, Tool, ToolChoice, invalid,
};

impl Generate {
    /// Checks what holds for every provider: that there is one input, that
    /// numbers are in their ranges, that tools and their results fit together.
    ///
    /// # Errors
    ///
    /// `invalid_payload` with the path of the first field that does not fit.
    pub fn check(&self) -> Result<(), Refusal> {
        self.check_input()?;
        self.check_numbers()?;
        self.check_stops()?;
        self.check_tools()?;
        if self.grammar.is_some() && !matches!(self.response_format, None | Some(ResponseFormat::Text)) {
            return Err(invalid(
                "grammar",
                "both `grammar` and `response_format` say what the answer is to be",
                "give one of the two",
            ));
        }
        within("model", self.model.as_deref(), MODEL_BYTES_MAX)?;
        within("conversation_id", self.conversation_id.as_deref(), CONVERSATION_BYTES_MAX)
    }

    /// Most tokens of an answer, where the provider's default is this.
    #[must_use]
    pub fn token_limit(&self, default: Option<u32>) -> Option<u32> {
        match (self.max_tokens.or(default), self.tokens_left) {
            (Some(limit), Some(left)) => Some(limit.min(left)),
            (limit, left) => limit.or(left),
        }
    }

    /// The messages, for a provider that has chats only.
    ///
    /// # Errors
    ///
    /// Refuses a bare text to continue.
    pub fn chat(&self) -> Result<&[Message], Refusal> {
        self.messages.as_deref().ok_or_else(|| {
            let hint = "give `messages`; only `llama` continues a bare text";
            invalid("prompt", "this provider has chats only", hint)
        })
    }

    /// The model that is asked for, or else the default of this plugin.
    ///
    /// # Errors
    ///
    /// Refuses where there is neither.
    pub fn model_or<'a>(&'a self, default: Option<&'a str>, plugin: &str) -> Result<&'a str, Refusal> {
        self.model.as_deref().or(default).ok_or_else(|| {
            let hint = format!("name one, or set `default_model` under [plugins.{plugin}.config]");
            invalid("model", "no model is named, and there is no default", &hint)
        })
    }

    fn check_input(&self) -> Result<(), Refusal> {
        let one = "give one of the two";
        let messages = match (&self.messages, &self.prompt) {
            (Some(messages), None) => messages,
            (None, Some(prompt)) if prompt.is_empty() => {
                return Err(invalid("prompt", "`prompt` is empty", "give a text to continue"));
            }
            (None, Some(_)) => return Ok(()),
            (Some(_), Some(_)) => {
                return Err(invalid("messages", "both `messages` and `prompt` are given", one));
            }
            (None, None) => {
                return Err(invalid("messages", "neither `messages` nor `prompt` is given", one));
            }
        };
        if messages.is_empty() {
            return Err(invalid("messages", "`messages` is empty", "give at least one message"));
        }
        if messages.len() > MESSAGES_MAX {
            let refusal = Refusal::new(
                Code::TooLarge,
                format!("{} messages; at most {MESSAGES_MAX} are accepted", messages.len()),
            );
            return Err(refusal.details(json!({ "messages": messages.len(), "max": MESSAGES_MAX })));
        }
        check_messages(messages)
    }

    fn check_numbers(&self) -> Result<(), Refusal> {
        let range = |path: &str, value: Option<f64>, min: f64, max: f64| match value {
            Some(value) if !(min..=max).contains(&value) => Err(invalid(
                path,
                format!("`{path}` is {value}; accepted is {min} to {max}"),
                "leave it out for the default",
            )),
            _ => Ok(()),
        };
        let whole = |value: Option<u32>| value.map(f64::from);
        range("max_tokens", whole(self.max_tokens), 1.0, f64::from(u32::MAX))?;
        range("tokens_left", whole(self.tokens_left), 1.0, f64::from(u32::MAX))?;
        range("temperature", self.temperature, 0.0, 5.0)?;
        if let Some(share) = self.top_p
            && !(share > 0.0 && share <= 1.0)
        {
            let message = format!("`top_p` is {share}; accepted is above 0 to 1");
            return Err(invalid("top_p", message, "leave it out for the default"));
        }
        range("min_p", self.min_p, 0.0, 1.0)?;
        range("repetition_penalty", self.repetition_penalty, 0.1, 10.0)?;
        range("choices", whole(self.choices), 1.0, f64::from(CHOICES_MAX))?;
        range("logprobs", whole(self.logprobs), 0.0, f64::from(LOGPROBS_MAX))?;
        let priority = f64::from(PRIORITY_MAX);
        range("priority", self.priority.map(f64::from), -priority, priority)?;
        match self.timeout_ms {
            Some(ms) if !(1..=TIMEOUT_MS_MAX).contains(&ms) => Err(invalid(
                "timeout_ms",
                format!("`timeout_ms` is {ms}; accepted is 1 to {TIMEOUT_MS_MAX}"),
                "leave it out for the default",
            )),
            _ => Ok(()),
        }
    }

    fn check_stops(&self) -> Result<(), Refusal> {
        if self.stop.len() > STOPS_MAX {
            let message = format!("{} stop strings; at most {STOPS_MAX} are accepted", self.stop.len());
            return Err(invalid("stop", message, "give fewer"));
        }
        for (index, stop) in self.stop.iter().enumerate() {
            if !(1..=STOP_BYTES_MAX).contains(&stop.len()) {
                return Err(invalid(
                    &format!("stop[{index}]"),
                    format!("a stop string of {} bytes; 1 to {STOP_BYTES_MAX} are accepted", stop.len()),
                    "leave it out or shorten it",
                ));
            }
        }
        Ok(())
    }

    fn check_tools(&self) -> Result<(), Refusal> {
        if self.tools.len() > TOOLS_MAX {
            let message = format!("{} tools; at most {TOOLS_MAX} are accepted", self.tools.len());
            return Err(invalid("tools", message, "give fewer"));
        }
        let mut names = HashSet::new();
        for (index, tool) in self.tools.iter().enumerate() {
            check_tool(index, tool)?;
            if !names.insert(tool.name.as_str()) {
                let message = format!("two tools are named `{}`", tool.name);
                return Err(invalid(&format!("tools[{index}].name"), message, "name each differently"));
            }
        }
        match &self.tool_choice {
            Some(ToolChoice::Tool(name)) if !names.contains(name.as_str()) => Err(invalid(
                "tool_choice",
                format!("`tool_choice` names `{}`, which is none of the tools", name.escape_debug()),
                "name one of `tools`",
            )),
            Some(ToolChoice::Required) if names.is_empty() => Err(invalid(
                "tool_choice",
                "`tool_choice` is `required`, and there are no tools",
                "give `tools`, or leave `tool_choice` out",
            )),
            _ => Ok(()),
        }
    }
}

fn check_tool(index: usize, tool: &Tool) -> Result<(), Refusal> {
    let named = (1..=TOOL_NAME_BYTES_MAX).contains(&tool.name.len())
        && tool.name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    if !named {
        return Err(invalid(
            &format!("tools[{index}].name"),
            format!("a tool cannot be named `{}`", tool.name.escape_debug()),
            "a name has 1 to 64 letters, digits, `_` and `-`",
        ));
    }
    match tool.parameters.get("type") {
        Some(Value::String(kind)) if kind == "object" => Ok(()),
        _ => Err(invalid(
            &format!("tools[{index}].parameters"),
            "the schema of a tool's arguments is not that of an object",
            "give it `\"type\": \"object\"`",
        )),
    }
}

fn check_messages(messages: &[Message]) -> Result<(), Refusal> {
    let mut called = HashSet::new();
    for (index, message) in messages.iter().enumerate() {
        let at = |field: &str| format!("messages[{index}].{field}");
        if !message.tool_calls.is_empty() && message.role != Role::Assistant {
            let message = "only a message of the assistant has tool calls";
            return Err(invalid(&at("tool_calls"), message, "leave them out, or change the role"));
        }
        if message.tool_calls.len() > TOOL_CALLS_MAX {
            let text = format!(
                "{} tool calls in one message; at most {TOOL_CALLS_MAX} are accepted",
                message.tool_calls.len()
            );
            return Err(invalid(&at("tool_calls"), text, "give fewer"));
        }
        called.extend(message.tool_calls.iter().map(|call| call.id.as_str()));
        match (&message.tool_call_id, message.role) {
            (Some(id), Role::Tool) if called.contains(id.as_str()) => {}
            (Some(id), Role::Tool) => {
                let text = format!("no message before has a tool call `{}`", id.escape_debug());
                return Err(invalid(&at("tool_call_id"), text, "give the `id` of the call"));
            }
            (None, Role::Tool) => {
                let text = "the result of a tool does not say of which call";
                return Err(invalid(&at("tool_call_id"), text, "give the `id` of the call"));
            }
            (Some(_), _) => {
                let text = "only a message of the role `tool` is the result of a call";
                return Err(invalid(&at("tool_call_id"), text, "leave it out, or change the role"));
            }
            (None, _) => {}
        }
    }
    Ok(())
}

fn within(path: &str, text: Option<&str>, bytes_max: usize) -> Result<(), Refusal> {
    match text {
        Some(text) if !(1..=bytes_max).contains(&text.len()) => Err(invalid(
            path,
            format!("`{path}` has {} bytes; 1 to {bytes_max} are accepted", text.len()),
            "leave it out or shorten it",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
