//! A request in the words of the API.

use ksi_provider::{Generate, Message, ResponseFormat, Role, Tool, ToolChoice, request::invalid};
use ksi_sdk::prelude::{Refusal, json};
use serde_json::{Map, Value};

use crate::config::{Config, Setting};

/// What the schema of an answer is called where the request does not say.
const SCHEMA_NAME: &str = "answer";

/// A request that is ready to be sent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Request {
    pub(crate) body: Map<String, Value>,
    /// The model that is asked for.
    pub(crate) model: String,
    /// How many answers are asked for.
    pub(crate) choices: u32,
    /// Settings that the server does not have.
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
    let model = ask.model_or(config.default_model.as_deref(), crate::NAME)?;
    let mut body = Map::new();
    let mut put = |name: &str, value: Value| body.insert(name.to_owned(), value);
    put("model", json!(model));
    put("messages", messages.iter().map(message).collect());
    put("stream", json!(true));
    put("stream_options", json!({ "include_usage": true }));
    if let Some(tokens) = ask.token_limit(None) {
        put(config.max_tokens_field().as_str(), json!(tokens));
    }
    if !ask.tools.is_empty() {
        put("tools", ask.tools.iter().map(tool).collect());
        if let Some(choice) = &ask.tool_choice {
            put("tool_choice", tool_choice(choice));
        }
    }
    if let Some(format) = ask.response_format.as_ref().and_then(response_format) {
        put("response_format", format);
    }
    for (name, value) in [
        ("temperature", ask.temperature.map(|number| json!(number))),
        ("top_p", ask.top_p.map(|number| json!(number))),
        ("seed", ask.seed.map(|seed| json!(seed))),
        ("stop", (!ask.stop.is_empty()).then(|| json!(ask.stop))),
        ("n", ask.choices.filter(|choices| *choices > 1).map(|choices| json!(choices))),
        ("logprobs", ask.logprobs.map(|_| json!(true))),
        ("top_logprobs", ask.logprobs.filter(|most| *most > 0).map(|most| json!(most))),
    ] {
        if let Some(value) = value {
            put(name, value);
        }
    }
    let mut ignored = Vec::new();
    for (setting, name, value) in [
        (Setting::TopK, "top_k", ask.top_k.map(|number| json!(number))),
        (Setting::MinP, "min_p", ask.min_p.map(|number| json!(number))),
        (
            Setting::RepetitionPenalty,
            "repetition_penalty",
            ask.repetition_penalty.map(|number| json!(number)),
        ),
    ] {
        match value {
            Some(value) if config.settings.contains(&setting) => {
                put(name, value);
            }
            Some(_) => ignored.push(name.to_owned()),
            None => {}
        }
    }
    Ok(Request { body, model: model.to_owned(), choices: ask.choices.unwrap_or(1), ignored })
}

fn message(message: &Message) -> Value {
    let mut written = json!({ "role": message.role.as_str(), "content": message.content });
    if message.role == Role::Assistant && !message.tool_calls.is_empty() {
        if message.content.is_empty() {
            written["content"] = Value::Null;
        }
        let calls = message.tool_calls.iter().map(|call| {
            let function = json!({ "name": call.name, "arguments": call.arguments_text() });
            json!({ "id": call.id, "type": "function", "function": function })
        });
        written["tool_calls"] = calls.collect();
    }
    if let Some(id) = &message.tool_call_id {
        written["tool_call_id"] = json!(id);
    }
    written
}

fn tool(tool: &Tool) -> Value {
    let mut function = json!({ "name": tool.name, "parameters": tool.parameters });
    if !tool.description.is_empty() {
        function["description"] = json!(tool.description);
    }
    json!({ "type": "function", "function": function })
}

fn tool_choice(choice: &ToolChoice) -> Value {
    match choice {
        ToolChoice::Auto => json!("auto"),
        ToolChoice::None => json!("none"),
        ToolChoice::Required => json!("required"),
        ToolChoice::Tool(name) => json!({ "type": "function", "function": { "name": name } }),
    }
}

fn response_format(format: &ResponseFormat) -> Option<Value> {
    match format {
        ResponseFormat::Text => None,
        ResponseFormat::Json => Some(json!({ "type": "json_object" })),
        ResponseFormat::JsonSchema(schema) => {
            let schema_value = Value::Object(schema.schema.clone());
            let named = json!({
                "name": schema.name.as_deref().unwrap_or(SCHEMA_NAME),
                "strict": is_strict(&schema_value),
                "schema": schema_value,
            });
            Some(json!({ "type": "json_schema", "json_schema": named }))
        }
    }
}

/// Whether a schema is one that OpenAI enforces token by token: every object in
/// it is closed and needs all its properties. Others it takes as advice, and
/// refuses them where they are called strict.
fn is_strict(schema: &Value) -> bool {
    match schema {
        Value::Object(fields) => {
            let closed = match fields.get("properties") {
                Some(Value::Object(properties)) => {
                    let required = fields.get("required").and_then(Value::as_array);
                    let all = properties.keys().all(|name| {
                        required.is_some_and(|required| required.iter().any(|needed| needed == name))
                    });
                    all && fields.get("additionalProperties") == Some(&Value::Bool(false))
                }
                _ => fields.get("type") != Some(&json!("object")),
            };
            closed && fields.values().all(is_strict)
        }
        Value::Array(values) => values.iter().all(is_strict),
        _ => true,
    }
}

#[cfg(test)]
mod tests;
