//! A request in the words of the API.
//!
//! Roles are only `user` and `assistant`, and take turns: the system's text goes
//! in front, results of tools are blocks of the user, and what one side says in
//! a row becomes one message.

use ksi_provider::{Generate, Message, ResponseFormat, Role, Tool, ToolCall, ToolChoice, request::invalid};
use ksi_sdk::prelude::{Refusal, json};
use serde_json::{Map, Value};

use crate::config::Config;

/// The tool whose arguments are the answer where a schema was given.
pub(crate) const ANSWER_TOOL: &str = "answer";

/// A request that is ready to be sent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Request {
    pub(crate) body: Map<String, Value>,
    /// The model that is asked for.
    pub(crate) model: String,
    /// Whether the answer is the arguments of [`ANSWER_TOOL`].
    pub(crate) by_schema: bool,
    /// Settings that the API does not have.
    pub(crate) ignored: Vec<String>,
}

/// Puts a request into the words of the API.
///
/// # Errors
///
/// Refuses what the API has no words for and would change what the answer is.
pub(crate) fn of(ask: &Generate, config: &Config) -> Result<Request, Refusal> {
    let messages = ask.chat()?;
    if ask.grammar.is_some() {
        let hint = "use `response_format` with a JSON schema, or a model of `llama`";
        return Err(invalid("grammar", "this provider has no grammars", hint));
    }
    if ask.choices.is_some_and(|choices| choices > 1) {
        let hint = "ask several times, or another provider";
        return Err(invalid("choices", "this provider gives one answer to a request", hint));
    }
    let model = ask.model_or(config.default_model.as_deref(), crate::NAME)?;
    let (system, mut turns) = turns(messages)?;
    let mut body = Map::new();
    let mut put = |name: &str, value: Value| body.insert(name.to_owned(), value);
    put("model", json!(model));
    put("max_tokens", json!(ask.token_limit(Some(config.max_tokens_default))));
    put("stream", json!(true));
    if !system.is_empty() {
        put("system", json!([{ "type": "text", "text": system }]));
    }
    // Only a conversation that goes on is worth the price of writing it.
    if config.prompt_cache
        && ask.conversation_id.is_some()
        && let Some(block) = turns.last_mut().and_then(|turn| turn.blocks.last_mut())
    {
        block["cache_control"] = json!({ "type": "ephemeral" });
    }
    put("messages", turns.into_iter().map(Turn::written).collect());
    let schema = schema(ask)?;
    let by_schema = schema.is_some();
    match schema {
        Some(schema) => {
            let about = "Gives the answer. Call it with the whole answer as its arguments.";
            put("tools", json!([{ "name": ANSWER_TOOL, "description": about, "input_schema": schema }]));
            put("tool_choice", json!({ "type": "tool", "name": ANSWER_TOOL }));
        }
        None if !ask.tools.is_empty() => {
            put("tools", ask.tools.iter().map(tool).collect());
            if let Some(choice) = &ask.tool_choice {
                put("tool_choice", tool_choice(choice));
            }
        }
        None => {}
    }
    for (name, value) in [
        ("temperature", ask.temperature.map(|number| json!(number))),
        ("top_p", ask.top_p.map(|number| json!(number))),
        ("top_k", ask.top_k.filter(|most| *most > 0).map(|most| json!(most))),
        ("stop_sequences", (!ask.stop.is_empty()).then(|| json!(ask.stop))),
    ] {
        if let Some(value) = value {
            put(name, value);
        }
    }
    let unknown = [
        ("min_p", ask.min_p.is_some()),
        ("repetition_penalty", ask.repetition_penalty.is_some()),
        ("seed", ask.seed.is_some()),
        ("logprobs", ask.logprobs.is_some()),
    ];
    let ignored = unknown.into_iter().filter(|(_, asked)| *asked).map(|(name, _)| name.to_owned()).collect();
    Ok(Request { body, model: model.to_owned(), by_schema, ignored })
}

/// What one side says at a time.
struct Turn {
    role: &'static str,
    blocks: Vec<Value>,
}

impl Turn {
    fn written(self) -> Value {
        json!({ "role": self.role, "content": self.blocks })
    }
}

/// The system's text, and the turns after it.
fn turns(messages: &[Message]) -> Result<(String, Vec<Turn>), Refusal> {
    let mut system = Vec::new();
    let mut turns: Vec<Turn> = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        let (role, blocks) = match message.role {
            Role::System if turns.is_empty() => {
                system.push(message.content.as_str());
                continue;
            }
            Role::System => {
                return Err(invalid(
                    &format!("messages[{index}].role"),
                    "this provider takes the system's text only before everything else",
                    "put it first, or say it as the user",
                ));
            }
            Role::User => ("user", vec![text(&message.content)]),
            Role::Assistant => ("assistant", spoken(message)),
            Role::Tool => {
                let id = message.tool_call_id.as_deref().unwrap_or_default();
                (
                    "user",
                    vec![json!({ "type": "tool_result", "tool_use_id": id, "content": message.content })],
                )
            }
        };
        match turns.last_mut() {
            Some(last) if last.role == role => last.blocks.extend(blocks),
            _ => turns.push(Turn { role, blocks }),
        }
    }
    Ok((system.join("\n\n"), turns))
}

fn text(text: &str) -> Value {
    json!({ "type": "text", "text": text })
}

/// What the assistant said, and the tools that it called.
fn spoken(message: &Message) -> Vec<Value> {
    let said = (!message.content.is_empty()).then(|| text(&message.content));
    let called = message.tool_calls.iter().map(|ToolCall { id, name, arguments }| {
        // The API takes objects only. What the model wrote stays readable for it.
        let input = match arguments {
            Value::Object(_) => arguments.clone(),
            other => json!({ "not_an_object": other }),
        };
        json!({ "type": "tool_use", "id": id, "name": name, "input": input })
    });
    said.into_iter().chain(called).collect()
}

fn tool(tool: &Tool) -> Value {
    let mut written = json!({ "name": tool.name, "input_schema": tool.parameters });
    if !tool.description.is_empty() {
        written["description"] = json!(tool.description);
    }
    written
}

fn tool_choice(choice: &ToolChoice) -> Value {
    match choice {
        ToolChoice::Auto => json!({ "type": "auto" }),
        ToolChoice::None => json!({ "type": "none" }),
        ToolChoice::Required => json!({ "type": "any" }),
        ToolChoice::Tool(name) => json!({ "type": "tool", "name": name }),
    }
}

/// The schema of the answer, where it is to be JSON.
fn schema(ask: &Generate) -> Result<Option<Value>, Refusal> {
    let schema = match &ask.response_format {
        None | Some(ResponseFormat::Text) => return Ok(None),
        Some(ResponseFormat::Json) => json!({ "type": "object" }),
        Some(ResponseFormat::JsonSchema(schema)) => Value::Object(schema.schema.clone()),
    };
    if !ask.tools.is_empty() {
        let hint = "ask for the one and then for the other";
        return Err(invalid("response_format", "this provider has tools or a schema, not both", hint));
    }
    if schema.get("type") != Some(&json!("object")) {
        let hint = "make it an object, with what you want as a property";
        return Err(invalid("response_format", "this provider answers by schemas of objects only", hint));
    }
    Ok(Some(schema))
}

#[cfg(test)]
mod tests;
