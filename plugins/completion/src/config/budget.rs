//! What may be used: `[plugins.completion.config.budgets.NAME]`.

use ksi_sdk::prelude::Deserialize;

/// One budget. Each of whom it is for has an account of their own.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct BudgetConfig {
    pub(crate) per: Per,
    /// Only for this principal (`user:alice`, `token:*`); for all if left out.
    pub(crate) only: Option<String>,
    /// Seconds after which it starts over; 0: never.
    pub(crate) window_s: u64,
    /// Attempts at a model.
    pub(crate) calls: Option<u64>,
    /// Tokens, read and made.
    pub(crate) tokens: Option<u64>,
    /// Money, by the prices of the models.
    pub(crate) money: Option<f64>,
}

/// Who has an account of a budget.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Per {
    /// All together have one.
    #[default]
    All,
    Tenant,
    Principal,
    /// The agent that a request names; it does not hold for requests without.
    Agent,
    /// The conversation of a request; it does not hold for requests without.
    Conversation,
}

impl BudgetConfig {
    pub(super) fn fault(&self) -> Option<&'static str> {
        if self.calls.is_none() && self.tokens.is_none() && self.money.is_none() {
            return Some("must limit `calls`, `tokens` or `money`");
        }
        let sum = self.money.is_none_or(|money| (0.0..=1e9).contains(&money));
        (!sum).then_some("has `money` that is not from 0 to a billion")
    }
}
