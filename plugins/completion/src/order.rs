//! An order: a request whose every field has been checked.
//!
//! What does not fit is refused here, before anything is queued, with the path
//! of the field. Nothing is adjusted silently.

use ksi_sdk::prelude::{Duration, Refusal, Serialize, json};

use crate::{
    config::Config,
    payload::{Message, Request},
    provider::{Chosen, Model},
};

/// Longest time that a request may ask for: a day.
pub(crate) const TIMEOUT_MS_MAX: u64 = 86_400_000;
/// Longest name of a conversation: they are keys of a table.
const CONVERSATION_BYTES_MAX: usize = 128;
/// Most stop texts, and the longest of them: every piece of the answer is
/// compared with each.
const STOPS_MAX: usize = 16;
const STOP_BYTES_MAX: usize = 256;
const ROLES: [&str; 4] = ["system", "user", "assistant", "tool"];

/// A checked request.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) model: Model,
    /// Whether the request named the model.
    pub(crate) chosen: Chosen,
    pub(crate) messages: Vec<Message>,
    pub(crate) sampling: Sampling,
    pub(crate) conversation: Option<String>,
    pub(crate) priority: i8,
    pub(crate) timeout: Duration,
}

/// How tokens are chosen; the provider's defaults hold for what is absent.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Sampling {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) top_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) top_k: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) min_p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) repetition_penalty: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) seed: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) stop: Vec<String>,
}

impl Order {
    /// Checks a request.
    pub(crate) fn new(request: Request, config: &Config) -> Result<Self, Refusal> {
        let chosen = if request.model.is_some() { Chosen::ByName } else { Chosen::ByDefault };
        let model = Model::parse(request.model.as_deref().unwrap_or(&config.default_model))?;
        let sampling = sampling(&request)?;
        let priority = integer("priority", request.priority, -10, 10)?.unwrap_or(0);
        let timeout = integer("timeout_ms", request.timeout_ms, 1, TIMEOUT_MS_MAX)?;
        let conversation = request.conversation_id.clone();
        if let Some(name) = &conversation
            && !(1..=CONVERSATION_BYTES_MAX).contains(&name.len())
        {
            let why = format!("must have 1 to {CONVERSATION_BYTES_MAX} bytes");
            return Err(invalid("conversation_id", &why));
        }
        Ok(Self {
            model,
            chosen,
            messages: messages(request)?,
            sampling,
            conversation,
            priority,
            timeout: Duration::from_millis(timeout.unwrap_or(config.timeout_ms)),
        })
    }

    /// About how much memory the order holds.
    pub(crate) fn bytes(&self) -> usize {
        let texts = self.messages.iter().map(|message| message.content.len() + 64).sum::<usize>();
        512 + texts + self.sampling.stop.iter().map(String::len).sum::<usize>()
    }
}

/// A refusal that names the field.
pub(crate) fn invalid(path: &str, why: &str) -> Refusal {
    Refusal::invalid_payload(format!("`{path}` {why}")).details(json!({ "path": path }))
}

/// An integer of the payload, in its range and its type.
pub(crate) fn integer<T: TryFrom<i64>>(
    path: &str,
    value: Option<i64>,
    min: i64,
    max: impl TryInto<i64>,
) -> Result<Option<T>, Refusal> {
    let max = max.try_into().unwrap_or(i64::MAX);
    let Some(value) = value else { return Ok(None) };
    match T::try_from(value) {
        Ok(fitting) if (min..=max).contains(&value) => Ok(Some(fitting)),
        _ => Err(invalid(path, &format!("must be from {min} to {max}, and is {value}"))),
    }
}

fn number(path: &str, value: Option<f64>, min: f64, max: f64) -> Result<Option<f64>, Refusal> {
    match value {
        Some(value) if !(min..=max).contains(&value) => {
            Err(invalid(path, &format!("must be from {min} to {max}, and is {value}")))
        }
        _ => Ok(value),
    }
}

fn sampling(request: &Request) -> Result<Sampling, Refusal> {
    let stop = request.stop.clone().unwrap_or_default();
    if stop.len() > STOPS_MAX {
        return Err(invalid("stop", &format!("has {} texts, of {STOPS_MAX} allowed", stop.len())));
    }
    for (index, text) in stop.iter().enumerate() {
        if !(1..=STOP_BYTES_MAX).contains(&text.len()) {
            return Err(invalid(
                &format!("stop[{index}]"),
                &format!("must have 1 to {STOP_BYTES_MAX} bytes"),
            ));
        }
    }
    Ok(Sampling {
        max_tokens: integer("max_tokens", request.max_tokens, 1, 1_048_576)?,
        temperature: number("temperature", request.temperature, 0.0, 5.0)?,
        top_p: number("top_p", request.top_p, 0.0, 1.0)?,
        top_k: integer("top_k", request.top_k, 0, 1_000_000)?,
        min_p: number("min_p", request.min_p, 0.0, 1.0)?,
        repetition_penalty: number("repetition_penalty", request.repetition_penalty, 0.1, 10.0)?,
        seed: integer("seed", request.seed, 0, u32::MAX)?,
        stop,
    })
}

fn messages(request: Request) -> Result<Vec<Message>, Refusal> {
    let user = |content| Message { role: "user".into(), content };
    let mut messages = match (request.prompt, request.messages) {
        (Some(_), Some(_)) => return Err(invalid("messages", "and `prompt` exclude each other: give one")),
        (None, None) => return Err(invalid("prompt", "is missing, and so is `messages`: give one")),
        (Some(prompt), None) if prompt.trim().is_empty() => return Err(invalid("prompt", "is empty")),
        (Some(prompt), None) => vec![user(prompt)],
        (None, Some(messages)) => messages,
    };
    if messages.is_empty() {
        return Err(invalid("messages", "is empty"));
    }
    for (index, Message { role, content }) in messages.iter().enumerate() {
        if !ROLES.contains(&role.as_str()) {
            let why = format!("is `{}`, and must be one of {}", role.escape_debug(), ROLES.join(", "));
            return Err(invalid(&format!("messages[{index}].role"), &why));
        }
        if content.trim().is_empty() {
            return Err(invalid(&format!("messages[{index}].content"), "is empty"));
        }
    }
    if let Some(system) = request.system {
        if system.trim().is_empty() {
            return Err(invalid("system", "is empty"));
        }
        if messages.iter().any(|message| message.role == "system") {
            return Err(invalid("system", "is given twice: here and in `messages`"));
        }
        messages.insert(0, Message { role: "system".into(), content: system });
    }
    if !messages.iter().any(|message| message.role == "user") {
        return Err(invalid("messages", "has no message of the role `user`"));
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use ksi_sdk::prelude::Code;
    use serde_json::Value;

    use super::*;

    fn order(request: Value) -> Result<Order, Refusal> {
        Order::new(serde_json::from_value(request).unwrap(), &Config::default())
    }

    #[test]
    fn every_wrong_field_is_refused_with_its_path() {
        for (request, path) in [
            (json!({}), "prompt"),
            (json!({"prompt": " \n"}), "prompt"),
            (json!({"prompt": "x", "messages": []}), "messages"),
            (json!({"messages": []}), "messages"),
            (json!({"messages": [{"role": "user", "content": ""}]}), "messages[0].content"),
            (
                json!({"messages": [{"role": "user", "content": "x"}, {"role": "boss", "content": "y"}]}),
                "messages[1].role",
            ),
            (json!({"messages": [{"role": "assistant", "content": "x"}]}), "messages"),
            (json!({"prompt": "x", "system": ""}), "system"),
            (
                json!({"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}],
                       "system": "z"}),
                "system",
            ),
            (json!({"prompt": "x", "max_tokens": 0}), "max_tokens"),
            (json!({"prompt": "x", "max_tokens": -1}), "max_tokens"),
            (json!({"prompt": "x", "temperature": -0.1}), "temperature"),
            (json!({"prompt": "x", "top_p": 1.1}), "top_p"),
            (json!({"prompt": "x", "top_k": -1}), "top_k"),
            (json!({"prompt": "x", "min_p": 2}), "min_p"),
            (json!({"prompt": "x", "repetition_penalty": 0}), "repetition_penalty"),
            (json!({"prompt": "x", "seed": 4_294_967_296_u64}), "seed"),
            (json!({"prompt": "x", "stop": ["a", ""]}), "stop[1]"),
            (json!({"prompt": "x", "stop": vec!["a"; 17]}), "stop"),
            (json!({"prompt": "x", "priority": 11}), "priority"),
            (json!({"prompt": "x", "timeout_ms": 0}), "timeout_ms"),
            (json!({"prompt": "x", "conversation_id": ""}), "conversation_id"),
            (json!({"prompt": "x", "conversation_id": "c".repeat(129)}), "conversation_id"),
            (json!({"prompt": "x", "model": "tiny"}), "model"),
            (json!({"prompt": "x", "model": "mock/slow:fast"}), "model"),
        ] {
            let refusal = order(request.clone()).unwrap_err();
            assert_eq!(refusal.code, Code::InvalidPayload, "{request}: {refusal}");
            assert_eq!(refusal.details.unwrap()["path"], path, "{request}");
        }
        let mut request = Request { prompt: Some("x".into()), ..Request::default() };
        request.temperature = Some(f64::NAN);
        assert!(Order::new(request, &Config::default()).is_err(), "not a number is in no range");
    }

    #[test]
    fn a_prompt_is_a_message_of_the_user_and_the_system_text_goes_first() {
        let order = order(json!({"prompt": "hi", "system": "be kind"})).unwrap();
        let roles: Vec<_> = order.messages.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
        assert_eq!(roles, [("system", "be kind"), ("user", "hi")]);
        assert_eq!((order.priority, order.timeout), (0, Duration::from_secs(600)));
    }

    #[test]
    fn settings_are_taken_as_they_are() {
        let order = order(json!({"prompt": "x", "max_tokens": 5, "temperature": 0, "top_p": 0.5, "top_k": 0,
            "min_p": 0.1, "repetition_penalty": 1.1, "seed": 4_294_967_295_u32, "stop": ["."],
            "priority": -10, "timeout_ms": 10}))
        .unwrap();
        assert_eq!(
            json!(order.sampling),
            json!({"max_tokens": 5, "temperature": 0.0, "top_p": 0.5, "top_k": 0, "min_p": 0.1,
                "repetition_penalty": 1.1, "seed": 4_294_967_295_u32, "stop": ["."]})
        );
        assert_eq!((order.priority, order.timeout), (-10, Duration::from_millis(10)));
    }
}
