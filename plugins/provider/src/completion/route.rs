//! What `completion:route` answers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a candidate falls out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// It was tried for this request, and will not be again.
    Tried,
    /// It cannot do what the request needs.
    Capability,
    /// It may not be asked.
    Policy,
    /// It failed again and again, and is left alone for now.
    Health,
}

impl Stage {
    /// The stage as it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tried => "tried",
            Self::Capability => "capability",
            Self::Policy => "policy",
            Self::Health => "health",
        }
    }
}

/// A model that a request could be answered by.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Candidate {
    /// `provider/model`.
    pub model: String,
    /// 0 for what was asked for, 1 for its first fallback, and so on.
    pub tier: usize,
    /// Whether it can be asked now.
    pub eligible: bool,
    /// Where it falls out, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    /// What it is ranked by among those of its tier: about how long until its first
    /// text, in milliseconds, with its queue and its weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_ms: Option<f64>,
    /// Milliseconds for which the limits of its provider keep it waiting.
    pub wait_ms: u64,
    /// When it may be asked again, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// What speaks for and against it.
    pub reasons: Vec<String>,
}

/// The models that a request could be answered by.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Route {
    /// Which one it would go to; none where nobody can be asked.
    pub chosen: Option<String>,
    /// About how many tokens are read, four bytes each.
    pub prompt_tokens: u64,
    /// All of them, the best one first, those that cannot be asked last.
    pub candidates: Vec<Candidate>,
}
