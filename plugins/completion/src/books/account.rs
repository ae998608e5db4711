//! One budget, and one account of it: pure, the time is an argument in
//! milliseconds since 1970.
//!
//! A window begins at a multiple of its length since 1970, so that a day is a
//! day of UTC.

use ksi_sdk::prelude::{Code, Deserialize, Refusal, Serialize, json};

use super::{Who, scoped};
use crate::{
    config::{BudgetConfig, Per},
    payload::{Budget, Limits, Spent},
};

/// What an attempt takes, or a budget has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Amounts {
    pub(crate) calls: u64,
    pub(crate) tokens: u64,
    /// Money in billionths.
    pub(crate) nanos: u64,
}

impl Amounts {
    fn plus(&self, more: &Self) -> Self {
        Self {
            calls: self.calls.saturating_add(more.calls),
            tokens: self.tokens.saturating_add(more.tokens),
            nanos: self.nanos.saturating_add(more.nanos),
        }
    }

    fn minus(&self, less: &Self) -> Self {
        Self {
            calls: self.calls.saturating_sub(less.calls),
            tokens: self.tokens.saturating_sub(less.tokens),
            nanos: self.nanos.saturating_sub(less.nanos),
        }
    }

    fn spent(&self) -> Spent {
        Spent { calls: self.calls, tokens: self.tokens, money: money(self.nanos) }
    }
}

/// Money of so many billionths.
pub(super) fn money(nanos: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "beyond 9 million the last billionth is lost")]
    let money = nanos as f64 / 1e9;
    money
}

/// A budget of the configuration.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) name: String,
    per: Per,
    only: Option<String>,
    /// 0 for one that never starts over.
    window_ms: u64,
    calls: Option<u64>,
    tokens: Option<u64>,
    nanos: Option<u64>,
}

impl Rule {
    pub(super) fn new(name: &str, config: &BudgetConfig) -> Self {
        Self {
            name: name.into(),
            per: config.per,
            only: config.only.clone(),
            window_ms: config.window_s.saturating_mul(1000),
            calls: config.calls,
            tokens: config.tokens,
            nanos: config.money.map(nanos),
        }
    }

    /// Whose account of this budget somebody uses; none where it is not for them.
    pub(super) fn scope(&self, who: &Who) -> Option<String> {
        if let Some(only) = &self.only {
            let fits = match only.strip_suffix('*') {
                Some(beginning) => who.principal.starts_with(beginning),
                None => who.principal == *only,
            };
            if !fits {
                return None;
            }
        }
        let tenant = who.tenant.as_deref();
        match self.per {
            Per::All => Some("all".into()),
            Per::Tenant => Some(scoped(tenant, "")),
            Per::Principal => Some(who.principal.clone()),
            Per::Agent => who.agent.as_deref().map(|agent| scoped(tenant, agent)),
            Per::Conversation => who.conversation.as_deref().map(|name| scoped(tenant, name)),
        }
    }

    /// What of it is exceeded, where so much more is added to what is taken.
    fn beyond(&self, taken: &Amounts, more: &Amounts) -> Option<&'static str> {
        let beyond = |limit: Option<u64>, taken: u64, more: u64| {
            more > 0 && limit.is_some_and(|limit| taken.saturating_add(more) > limit)
        };
        let limits = [
            ("calls", beyond(self.calls, taken.calls, more.calls)),
            ("tokens", beyond(self.tokens, taken.tokens, more.tokens)),
            ("money", beyond(self.nanos, taken.nanos, more.nanos)),
        ];
        limits.into_iter().find(|(_, beyond)| *beyond).map(|(what, _)| what)
    }

    /// Whether the length of an answer counts, at this price for a million tokens.
    pub(super) fn limits_answers(&self, price: Option<f64>) -> bool {
        self.tokens.is_some() || (self.nanos.is_some() && price.is_some_and(|price| price > 0.0))
    }

    fn limits(&self) -> Limits {
        Limits { calls: self.calls, tokens: self.tokens, money: self.nanos.map(money) }
    }

    fn window_start(&self, now_ms: u64) -> u64 {
        now_ms.checked_div(self.window_ms).map_or(0, |windows| windows * self.window_ms)
    }

    fn resets_in_ms(&self, now_ms: u64) -> Option<u64> {
        (self.window_ms > 0).then(|| self.window_start(now_ms) + self.window_ms - now_ms)
    }
}

/// Money in billionths.
fn nanos(money: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the configuration is checked to be from 0 to a billion"
    )]
    let nanos = (money * 1e9).round() as u64;
    nanos
}

/// What was used of a budget, and what is reserved.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Account {
    /// When the window began for which this counts.
    window_ms: u64,
    used: Amounts,
    /// Not kept: what is under way is kept by itself.
    #[serde(skip)]
    reserved: Amounts,
}

/// After how long it is worth asking again where requests under way hold what is
/// left, milliseconds.
const RESERVED_RETRY_MS: u64 = 1000;

/// A budget that does not allow any more.
#[derive(Debug)]
pub(super) struct Exceeded {
    what: &'static str,
    /// Whether it would, if requests under way took nothing.
    passing: bool,
    used: Amounts,
    reserved: Amounts,
}

impl Account {
    /// Starts over where a new window has begun.
    pub(super) fn turn(&mut self, rule: &Rule, now_ms: u64) {
        let start = rule.window_start(now_ms);
        if start > self.window_ms {
            (self.window_ms, self.used) = (start, Amounts::default());
        }
    }

    /// Whether there is room for what is expected. What costs nothing is let through
    /// by a limit of money, whatever was spent.
    pub(super) fn admits(&self, rule: &Rule, expected: &Amounts) -> Result<(), Exceeded> {
        let Some(what) = rule.beyond(&self.used.plus(&self.reserved), expected) else { return Ok(()) };
        let passing = rule.beyond(&self.used, expected).is_none();
        Err(Exceeded { what, passing, used: self.used, reserved: self.reserved })
    }

    pub(super) fn reserve(&mut self, amounts: &Amounts) {
        self.reserved = self.reserved.plus(amounts);
    }

    pub(super) fn release(&mut self, amounts: &Amounts) {
        self.reserved = self.reserved.minus(amounts);
    }

    pub(super) fn add(&mut self, amounts: &Amounts) {
        self.used = self.used.plus(amounts);
    }

    pub(super) fn is_held(&self) -> bool {
        self.reserved != Amounts::default()
    }

    pub(super) fn standing(&self, rule: &Rule, now_ms: u64) -> Budget {
        Budget {
            name: rule.name.clone(),
            used: self.used.spent(),
            reserved: self.reserved.spent(),
            limits: rule.limits(),
            resets_in_ms: rule.resets_in_ms(now_ms),
        }
    }
}

impl Exceeded {
    pub(super) fn refusal(&self, rule: &Rule, now_ms: u64) -> Refusal {
        let resets = rule.resets_in_ms(now_ms);
        let (name, what) = (&rule.name, self.what);
        let coins = |nanos: u64| format!("{:.4}", money(nanos));
        let (Amounts { calls, tokens, nanos }, held) = (self.used, self.reserved);
        let (used, reserved, limit) = match what {
            "calls" => (calls.to_string(), held.calls.to_string(), rule.calls.unwrap_or(0).to_string()),
            "tokens" => (tokens.to_string(), held.tokens.to_string(), rule.tokens.unwrap_or(0).to_string()),
            _ => (coins(nanos), coins(held.nanos), coins(rule.nanos.unwrap_or(0))),
        };
        let message = match self.passing {
            true => format!(
                "the budget `{name}` allows {limit} {what}, {used} are used, and requests under way hold {reserved}"
            ),
            false => format!("the budget `{name}` allows {limit} {what}, {used} are used"),
        };
        let details = json!({
            "budget": name, "what": what, "used": self.used.spent(), "reserved": self.reserved.spent(),
            "limits": rule.limits(), "resets_in_ms": resets,
        });
        let hint = "`ksi completion usage` shows what was used; `max_tokens` makes a request smaller";
        let wait = if self.passing { Some(RESERVED_RETRY_MS) } else { resets };
        let code = if wait.is_some() { Code::Busy } else { Code::Denied };
        let refusal = Refusal::new(code, message).hint(hint).details(details);
        match wait {
            Some(ms) => refusal.retry_after_ms(ms),
            None => refusal,
        }
    }
}
