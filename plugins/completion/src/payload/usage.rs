//! Payloads of `completion:usage`.

use ksi_sdk::prelude::{Deserialize, JsonSchema, Serialize};

/// Show what was used: attempts at models, tokens and money, and where the budgets
/// of whoever asks stand.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UsageRequest {
    /// How many days, today included; 30 by default. Days are those of UTC.
    #[schemars(range(min = 1, max = 366))]
    pub days: Option<i64>,
    /// By what it is added up, one row for each; by day and model if left out.
    pub by: Option<Vec<By>>,
    /// Also show where the budgets stand that apply to what this agent asks.
    #[schemars(length(min = 1, max = 128))]
    pub agent: Option<String>,
    /// Also show where the budgets stand that apply to this conversation.
    #[schemars(length(min = 1, max = 128))]
    pub conversation_id: Option<String>,
}

/// What usage is added up by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// The day.
    Day,
    /// Whose data it is about.
    Tenant,
    /// Who asked.
    Principal,
    /// The agent that the request named.
    Agent,
    /// The model, as `provider/model`.
    Model,
}
