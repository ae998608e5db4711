//! What an attempt is expected to take, and how long budgets let its answer be: pure.

use super::{
    Amounts,
    account::{Account, Rule},
    cost,
};
use crate::payload::LimitedBy;

/// What an attempt is expected to take.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Expected {
    /// Tokens that are read.
    pub(crate) prompt_tokens: u64,
    /// How many answers are made.
    pub(crate) answers: u64,
    /// Most tokens of each, where the request says.
    pub(crate) max_tokens: Option<u32>,
    /// ... and where it does not, as far as budgets have them.
    pub(crate) answer_tokens: u32,
    /// Money for a million tokens.
    pub(crate) prompt_price: Option<f64>,
    pub(crate) completion_price: Option<f64>,
}

impl Expected {
    /// All of it, where each answer has so many tokens.
    pub(super) fn amounts(&self, each: u32) -> Amounts {
        let made = u64::from(each).saturating_mul(self.answers);
        let nanos = cost(self.prompt_tokens, self.prompt_price) + cost(made, self.completion_price);
        Amounts { calls: 1, tokens: self.prompt_tokens.saturating_add(made), nanos }
    }

    /// The least that it can take: an answer of one token, where the request does
    /// not say how many and a budget limits them.
    pub(super) fn least(&self, rule: &Rule) -> Amounts {
        let each = self.max_tokens.unwrap_or_else(|| u32::from(rule.limits_answers(self.completion_price)));
        self.amounts(each)
    }

    /// How long a budget that admits the least lets an answer be whose request does
    /// not say; nothing where it does not mind.
    pub(super) fn limit(&self, rule: &Rule, account: &Account) -> Option<LimitedBy> {
        if self.max_tokens.is_some() || !rule.limits_answers(self.completion_price) {
            return None;
        }
        // The longest that fits lies between the least and what is never exceeded.
        let (mut fits, mut most) = (1, self.answer_tokens.max(1));
        while fits < most {
            let middle = fits + (most - fits).div_ceil(2);
            match account.admits(rule, &self.amounts(middle)) {
                Ok(()) => fits = middle,
                Err(_) => most = middle - 1,
            }
        }
        Some(LimitedBy { budget: rule.name.clone(), max_tokens: fits })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn limit(budget: Value, used_tokens: u64, answers: u64) -> Option<u32> {
        let rule = Rule::new("b", &serde_json::from_value(budget).unwrap());
        let mut account = Account::default();
        let nanos = used_tokens * 1000;
        account.add(&Amounts { calls: 1, tokens: used_tokens, nanos });
        let expected = Expected {
            prompt_tokens: 100,
            answers,
            answer_tokens: 1000,
            prompt_price: Some(1.0),
            completion_price: Some(10.0),
            ..Expected::default()
        };
        account.admits(&rule, &expected.least(&rule)).ok()?;
        Some(expected.limit(&rule, &account).map_or(u32::MAX, |limited| limited.max_tokens))
    }

    #[test]
    fn an_answer_may_have_what_is_left_and_no_more_than_is_paid_for() {
        for (budget, used, answers, most) in [
            (json!({"tokens": 5000}), 0, 1, Some(1000)),
            (json!({"tokens": 5000}), 4000, 1, Some(900)),
            (json!({"tokens": 5000}), 4000, 4, Some(225)),
            (json!({"tokens": 5000}), 4899, 1, Some(1)),
            (json!({"tokens": 5000}), 4900, 1, None),
            (json!({"tokens": 5000}), 4897, 4, None),
            // 100 read cost 100 000 billionths; each one made 10 000.
            (json!({"money": 0.001}), 0, 1, Some(90)),
            (json!({"money": 0.001}), 890, 1, Some(1)),
            (json!({"money": 0.001}), 891, 1, None),
            (json!({"calls": 2}), 9999, 1, Some(u32::MAX)),
        ] {
            assert_eq!(limit(budget.clone(), used, answers), most, "{budget} {used} {answers}");
        }
    }
}
