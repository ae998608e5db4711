//! What `completion:usage` answers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What was used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Used {
    /// Attempts at a model.
    pub calls: u64,
    /// Those that were answered.
    pub answered: u64,
    /// Tokens that were read.
    pub prompt_tokens: u64,
    /// Tokens that were made.
    pub completion_tokens: u64,
    /// What it cost, by the prices of the configuration.
    pub money: f64,
}

/// A row of usage. It has those of the first fields that it is added up by.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct UsageRow {
    /// The day, as `2026-05-31`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub day: Option<String>,
    /// Whose data it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Who asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// The agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// The model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What was used.
    #[serde(flatten)]
    pub used: Used,
}

/// Amounts of a budget.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Spent {
    /// Attempts at a model.
    pub calls: u64,
    /// Tokens, read and made.
    pub tokens: u64,
    /// Money.
    pub money: f64,
}

/// Limits of a budget; without a number there is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Limits {
    /// Attempts at a model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls: Option<u64>,
    /// Tokens, read and made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Money.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub money: Option<f64>,
}

/// A budget that limits an answer whose request sets no `max_tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LimitedBy {
    /// Its name in the configuration.
    pub budget: String,
    /// Most tokens of each answer. `max_tokens` of a request allows more, as far as
    /// the budget has them.
    pub max_tokens: u32,
}

/// Where a budget stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Budget {
    /// Its name in the configuration.
    pub name: String,
    /// What is used.
    pub used: Spent,
    /// What requests under way may still use.
    pub reserved: Spent,
    /// How much it allows.
    pub limits: Limits,
    /// Milliseconds until it starts over, where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resets_in_ms: Option<u64>,
}

/// What was used.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct UsageAnswer {
    /// Rows, in the order of what they are added up by.
    pub rows: Vec<UsageRow>,
    /// All of them together.
    pub total: Used,
    /// The budgets that apply to whoever asks, and those of the agent and of the
    /// conversation where they were named.
    pub budgets: Vec<Budget>,
}
