//! How providers fail, in the words of refusals.
//!
//! | what happened | failure | code | retryable |
//! |---|---|---|---|
//! | 401, 403, no key | `unauthorized` | `denied` | no |
//! | 402, an account that is used up | `quota` | `denied` | no |
//! | 404, a model that is not there | `model_not_found` | `not_found` | no |
//! | 413, a context that is too small | `too_large` | `too_large` | no |
//! | another 4xx | `rejected` | `invalid_payload` | no |
//! | 408, or any of the time limits | `timeout` | `timeout` | yes, before any text |
//! | 429 | `rate_limited` | `busy`, with `retry_after_ms` | yes |
//! | 5xx | `overloaded` | `unavailable`, with `retry_after_ms` if told | yes, before any text |
//! | no connection, no TLS | `unreachable` | `unavailable` | yes |
//! | the connection ends too early | `cut` | `unavailable` | yes, before any text |
//! | wrong content type, bad JSON, no end | `invalid_answer` | `unavailable` | no |
//! | more than a limit allows | `invalid_answer` | `too_large` | no |
//!
//! The details of each such refusal have `failure`, and `status` where there
//! was one, and `text_sent`: whether pieces of the answer were passed on. Once
//! they were, nothing is retryable, since a second answer is another text: who
//! asked would have to be told that it begins anew.

use std::time::Duration;

use ksi_protocol::{Code, Refusal};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Longest text of a provider that is passed on in a refusal, in bytes.
const TOLD_BYTES_MAX: usize = 500;

/// Of what kind a provider's failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// The key is missing or wrong, or may not do this.
    Unauthorized,
    /// The account has used up what it may spend.
    Quota,
    /// The provider has no such model.
    ModelNotFound,
    /// The input exceeds what the model or the provider takes.
    TooLarge,
    /// The provider says that the request is wrong.
    Rejected,
    /// It took too long.
    Timeout,
    /// Too many requests.
    RateLimited,
    /// The provider failed, and says so.
    Overloaded,
    /// There is no way to the provider.
    Unreachable,
    /// The connection ended in the middle of the answer.
    Cut,
    /// What came is not an answer.
    InvalidAnswer,
}

impl Failure {
    /// Every kind.
    pub const ALL: [Self; 11] = [
        Self::Unauthorized,
        Self::Quota,
        Self::ModelNotFound,
        Self::TooLarge,
        Self::Rejected,
        Self::Timeout,
        Self::RateLimited,
        Self::Overloaded,
        Self::Unreachable,
        Self::Cut,
        Self::InvalidAnswer,
    ];

    /// What an HTTP status means; `None` for one that is no failure.
    #[must_use]
    pub fn of_status(status: u16) -> Option<Self> {
        match status {
            200..=299 => None,
            401 | 403 => Some(Self::Unauthorized),
            402 => Some(Self::Quota),
            404 => Some(Self::ModelNotFound),
            408 => Some(Self::Timeout),
            413 => Some(Self::TooLarge),
            429 => Some(Self::RateLimited),
            400..=499 => Some(Self::Rejected),
            500..=599 => Some(Self::Overloaded),
            _ => Some(Self::InvalidAnswer),
        }
    }

    /// The kind of a provider's refusal; `None` for one that is not about the
    /// provider.
    #[must_use]
    pub fn of(refusal: &Refusal) -> Option<Self> {
        let failure = refusal.details.as_ref()?.get("failure")?;
        Self::deserialize(failure).ok()
    }

    /// The code of its refusals.
    #[must_use]
    pub fn code(self) -> Code {
        match self {
            Self::Unauthorized | Self::Quota => Code::Denied,
            Self::ModelNotFound => Code::NotFound,
            Self::TooLarge => Code::TooLarge,
            Self::Rejected => Code::InvalidPayload,
            Self::Timeout => Code::Timeout,
            Self::RateLimited => Code::Busy,
            Self::Overloaded | Self::Unreachable | Self::Cut | Self::InvalidAnswer => Code::Unavailable,
        }
    }

    /// Whether the same request may succeed later, as long as none of the answer
    /// was passed on.
    #[must_use]
    pub fn retryable(self) -> bool {
        matches!(self, Self::Timeout | Self::RateLimited | Self::Overloaded | Self::Unreachable | Self::Cut)
    }

    /// Whether it says something about the provider's health, and not only about
    /// this one request.
    #[must_use]
    pub fn is_of_the_provider(self) -> bool {
        !matches!(self, Self::ModelNotFound | Self::TooLarge | Self::Rejected)
    }

    /// A refusal of this kind. A `message` that quotes the provider is passed
    /// through [`quoted`] first.
    #[must_use]
    pub fn refusal(self, message: impl Into<String>) -> Refusal {
        Refusal {
            retryable: self.retryable(),
            ..Refusal::new(self.code(), message).details(json!({ "failure": self, "text_sent": false }))
        }
    }
}

/// Adds the HTTP status, and when the provider wants to be asked again.
#[must_use]
pub fn with_status(refusal: Refusal, status: u16, retry_after: Option<Duration>) -> Refusal {
    let refusal = with_detail(refusal, "status", json!(status));
    match retry_after {
        // A wish to wait is of use only where asking again is.
        Some(time) if refusal.retryable => {
            let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            refusal.retry_after_ms(ms)
        }
        _ => refusal,
    }
}

/// The refusal of a request of whose answer some was passed on already: nobody
/// may repeat it in silence.
#[must_use]
pub fn after_text(refusal: Refusal) -> Refusal {
    let refusal = with_detail(refusal, "text_sent", json!(true));
    Refusal { retryable: false, retry_after_ms: None, ..refusal }
}

fn with_detail(mut refusal: Refusal, name: &str, value: Value) -> Refusal {
    match &mut refusal.details {
        Some(Value::Object(details)) => {
            details.insert(name.to_owned(), value);
        }
        details => *details = Some(json!({ name: value })),
    }
    refusal
}

/// What a provider said, as one short line without control characters.
#[must_use]
pub fn quoted(text: &str) -> String {
    let mut line = String::new();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if line.len() > TOLD_BYTES_MAX {
            line.truncate(line.floor_char_boundary(TOLD_BYTES_MAX));
            line.push('…');
            break;
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_is_read_back_from_its_refusal() {
        for failure in Failure::ALL {
            let refusal = failure.refusal("x");
            assert_eq!(Failure::of(&refusal), Some(failure));
            assert_eq!(refusal.retryable, failure.retryable());
            let told = after_text(with_status(refusal, 500, Some(Duration::from_secs(2))));
            assert_eq!((told.retryable, told.retry_after_ms), (false, None), "{failure:?}");
            let details = told.details.unwrap();
            assert_eq!((&details["status"], &details["text_sent"]), (&json!(500), &json!(true)));
        }
        assert_eq!(Failure::of(&Refusal::new(Code::Busy, "the queue is full")), None);
    }

    #[test]
    fn a_status_has_its_failure_and_only_success_has_none() {
        for (status, code, retryable) in [
            (400, Code::InvalidPayload, false),
            (401, Code::Denied, false),
            (402, Code::Denied, false),
            (403, Code::Denied, false),
            (404, Code::NotFound, false),
            (408, Code::Timeout, true),
            (413, Code::TooLarge, false),
            (422, Code::InvalidPayload, false),
            (429, Code::Busy, true),
            (500, Code::Unavailable, true),
            (503, Code::Unavailable, true),
            (529, Code::Unavailable, true),
            (302, Code::Unavailable, false),
        ] {
            let failure = Failure::of_status(status).unwrap();
            assert_eq!((failure.code(), failure.retryable()), (code, retryable), "{status}");
        }
        assert_eq!(Failure::of_status(200), None);
    }

    #[test]
    fn a_wish_to_wait_is_passed_on_where_asking_again_helps() {
        let wait = Some(Duration::from_millis(1500));
        let busy = with_status(Failure::RateLimited.refusal("x"), 429, wait);
        assert_eq!((busy.retryable, busy.retry_after_ms), (true, Some(1500)));
        let denied = with_status(Failure::Unauthorized.refusal("x"), 401, wait);
        assert_eq!((denied.retryable, denied.retry_after_ms), (false, None));
    }

    #[test]
    fn what_is_quoted_is_one_short_line() {
        assert_eq!(quoted(" a\n\tb\u{1b}[31m c "), "a b [31m c");
        let long = quoted(&"é".repeat(1000));
        assert!(long.len() <= TOLD_BYTES_MAX + '…'.len_utf8() && long.ends_with('…'), "{}", long.len());
    }
}
