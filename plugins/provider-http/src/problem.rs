//! What a server's error means.
//!
//! Providers put an object `error` into the answer, with a `message` and a name
//! of its kind under `type` or `code`. The name says more than the status: the
//! same 429 stands for "slower, please" and for "your money is gone".

use ksi_provider::failure::{Failure, quoted};
use ksi_sdk::prelude::Refusal;
use serde_json::Value;

/// Names of kinds, as OpenAI, Anthropic and those that imitate them write them.
const KINDS: [(&str, Failure); 25] = [
    ("invalid_api_key", Failure::Unauthorized),
    ("authentication_error", Failure::Unauthorized),
    ("permission_error", Failure::Unauthorized),
    ("permission_denied", Failure::Unauthorized),
    ("insufficient_quota", Failure::Quota),
    ("billing_hard_limit_reached", Failure::Quota),
    ("billing_not_active", Failure::Quota),
    ("billing_error", Failure::Quota),
    ("model_not_found", Failure::ModelNotFound),
    ("not_found_error", Failure::ModelNotFound),
    ("context_length_exceeded", Failure::TooLarge),
    ("exceed_context_size_error", Failure::TooLarge),
    ("string_above_max_length", Failure::TooLarge),
    ("request_too_large", Failure::TooLarge),
    ("rate_limit_exceeded", Failure::RateLimited),
    ("rate_limit_error", Failure::RateLimited),
    ("too_many_requests", Failure::RateLimited),
    ("timeout_error", Failure::Timeout),
    ("server_error", Failure::Overloaded),
    ("internal_server_error", Failure::Overloaded),
    ("unavailable_error", Failure::Overloaded),
    ("overloaded_error", Failure::Overloaded),
    ("overloaded", Failure::Overloaded),
    ("api_error", Failure::Overloaded),
    ("invalid_request_error", Failure::Rejected),
];

/// An error that a server told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problem {
    /// What it is, where the server named a kind that is known here.
    pub failure: Option<Failure>,
    /// What the server said, as one line; may be empty.
    pub message: String,
}

impl Problem {
    /// Reads an answer that may hold an error; `None` where it holds none.
    #[must_use]
    pub fn read(answer: &Value) -> Option<Self> {
        let error = answer.get("error").filter(|error| !error.is_null())?;
        if let Value::String(message) = error {
            return Some(Self { failure: None, message: quoted(message) });
        }
        let text = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default();
        // The code is the more exact of the two, where it is known.
        let known = |name: &str| KINDS.iter().find(|(kind, _)| *kind == name).map(|(_, failure)| *failure);
        let status = error.get("code").and_then(Value::as_u64).and_then(|status| u16::try_from(status).ok());
        let failure = known(text("code")).or_else(|| known(text("type")));
        Some(Self {
            failure: failure.or_else(|| Failure::of_status(status?)),
            message: quoted(text("message")),
        })
    }

    /// The refusal of a request that met with this; `otherwise` is what it is
    /// where the server did not say.
    #[must_use]
    pub fn refusal(&self, plugin: &str, otherwise: Failure) -> Refusal {
        let failure = self.failure.unwrap_or(otherwise);
        let what = match failure {
            Failure::Unauthorized => "does not accept the key",
            Failure::Quota => "says that the account is used up",
            Failure::ModelNotFound => "has no such model",
            Failure::TooLarge => "says that the request is too large",
            Failure::Rejected => "says that the request is wrong",
            Failure::RateLimited => "wants to be asked less often",
            Failure::Timeout => "took too long, by its own word",
            Failure::InvalidAnswer => "answered with something else than an answer",
            Failure::Overloaded | Failure::Unreachable | Failure::Cut => "failed",
        };
        let told = if self.message.is_empty() { String::new() } else { format!(": {}", self.message) };
        failure.refusal(format!("provider `{plugin}` {what}{told}")).hint(hint(plugin, failure))
    }
}

/// The refusal of an answer that cannot be understood.
#[must_use]
pub fn invalid(plugin: &str, why: impl std::fmt::Display) -> Refusal {
    let failure = Failure::InvalidAnswer;
    failure
        .refusal(format!("provider `{plugin}` answered what cannot be understood: {why}"))
        .hint(hint(plugin, failure))
}

/// What to do about a failure.
fn hint(plugin: &str, failure: Failure) -> String {
    match failure {
        Failure::Unauthorized => format!(
            "`ksi secret set NAME`, then `api_key = \"secret:NAME\"` under [plugins.{plugin}.config] and \
             `ksi plugin reload {plugin}`"
        ),
        Failure::Quota => "look at the account's limits and bills at the provider".into(),
        Failure::ModelNotFound => {
            format!("`ksi send {plugin}:models` lists those that there are; `base_url` may be wrong, too")
        }
        Failure::TooLarge => "shorten the conversation, or choose a model with a larger context".into(),
        Failure::Rejected => "what the provider says is about the request as it was sent".into(),
        Failure::RateLimited | Failure::Overloaded | Failure::Timeout => {
            "try again later, or with another provider".into()
        }
        Failure::InvalidAnswer => format!("is `base_url` under [plugins.{plugin}.config] right?"),
        Failure::Unreachable | Failure::Cut => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use ksi_sdk::prelude::{Code, json};

    use super::*;

    #[test]
    fn the_name_of_an_error_says_more_than_its_status() {
        for (error, code, retryable) in [
            (json!({ "code": "insufficient_quota", "type": "insufficient_quota" }), Code::Denied, false),
            (json!({ "code": "rate_limit_exceeded", "type": "tokens" }), Code::Busy, true),
            (
                json!({ "code": "context_length_exceeded", "type": "invalid_request_error" }),
                Code::TooLarge,
                false,
            ),
            (json!({ "type": "overloaded_error" }), Code::Unavailable, true),
            (json!({ "code": 503, "type": "other" }), Code::Unavailable, true),
            (json!({ "code": "unheard_of", "message": "x" }), Code::InvalidPayload, false),
            (json!("just a text"), Code::InvalidPayload, false),
        ] {
            let problem = Problem::read(&json!({ "error": error })).unwrap();
            let refusal = problem.refusal("openai", Failure::Rejected);
            assert_eq!((refusal.code, refusal.retryable), (code, retryable), "{error}");
            assert!(!refusal.hint.is_empty(), "{error}");
        }
        assert_eq!(Problem::read(&json!({ "error": null })), None);
        assert_eq!(Problem::read(&json!({ "choices": [] })), None);
        assert_eq!(Problem::read(&json!([])), None);
    }

    #[test]
    fn what_the_server_said_is_in_the_refusal() {
        let answer = json!({ "error": { "message": "no\nsuch key", "type": "authentication_error" } });
        let refusal = Problem::read(&answer).unwrap().refusal("openai", Failure::Rejected);
        assert_eq!(refusal.message, "provider `openai` does not accept the key: no such key");
        assert!(refusal.hint.contains("ksi secret set"), "{}", refusal.hint);
    }
}
