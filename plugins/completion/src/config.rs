//! The plugin's configuration, and what it may be.

use std::collections::BTreeMap;

use ksi_sdk::prelude::{Code, Deserialize, Duration, Refusal};

use crate::{
    order::{TIMEOUT_MS_MAX, tier},
    provider::Providers,
    queue, results,
    route::breaker,
};

mod budget;
mod provider;

pub(crate) use budget::{BudgetConfig, Per};
pub(crate) use provider::{ModelConfig, ProviderConfig};

/// Most days for which usage may be kept: a century.
const USAGE_DAYS_MAX: u64 = 36_500;

/// The `config` table of the plugin.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// The model of a request that names none.
    pub(crate) default_model: String,
    /// Names that stand for a model, or for several that are equals: the best at
    /// the time answers.
    pub(crate) aliases: BTreeMap<String, OneOrMore>,
    /// Models that answer, one after the other, where that of a request cannot and
    /// it names no fallbacks itself.
    pub(crate) fallbacks: Vec<String>,
    pub(crate) policy: PolicyConfig,
    /// Requests that may wait for one provider, half of them of one principal alone; more
    /// are refused `busy`.
    pub(crate) queue_max: usize,
    /// Bytes that all requests may hold together, half of them those of one principal
    /// alone, but for a single request; more are refused `busy`.
    pub(crate) queue_bytes_max: usize,
    /// Time from acceptance to result where a request does not say.
    pub(crate) timeout_ms: u64,
    /// Time for the word of plugins on a prompt, and again on its answer.
    pub(crate) hooks_timeout_ms: u64,
    /// Tokens that a model is given to read of a remembered conversation where
    /// nobody knows how many it can.
    pub(crate) context_tokens: u64,
    /// Settings of providers, by name.
    pub(crate) providers: BTreeMap<String, ProviderConfig>,
    /// What may be used, by name.
    pub(crate) budgets: BTreeMap<String, BudgetConfig>,
    /// Most tokens of an answer that budgets pay for where its request says none.
    pub(crate) answer_tokens: u32,
    /// Days for which usage is kept.
    pub(crate) usage_days: u64,
    pub(crate) retry: RetryConfig,
    pub(crate) breaker: BreakerConfig,
    pub(crate) results: ResultsConfig,
}

/// A text or a list of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    pub(crate) fn all(&self) -> impl Iterator<Item = &String> {
        match self {
            Self::One(one) => std::slice::from_ref(one).iter(),
            Self::More(more) => more.iter(),
        }
    }
}

/// Which models may be asked at all. A pattern is a model, or ends in `*`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PolicyConfig {
    /// Only these; empty: any.
    pub(crate) allow: Vec<String>,
    /// None of these.
    pub(crate) deny: Vec<String>,
    /// The same for requests of one tenant, in addition.
    pub(crate) tenants: BTreeMap<String, TenantPolicy>,
}

/// Which models a tenant may ask.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TenantPolicy {
    pub(crate) allow: Vec<String>,
    pub(crate) deny: Vec<String>,
}

/// When a model that fails is left alone, see [`breaker`].
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct BreakerConfig {
    /// Failures in a row.
    pub(crate) failures: u32,
    /// Time within which they must lie.
    pub(crate) window_s: u64,
    /// How long it is left alone at first; that doubles ...
    pub(crate) open_ms: u64,
    /// ... up to this.
    pub(crate) open_max_ms: u64,
}

/// What happens when a provider refuses in a way that may pass.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RetryConfig {
    /// How many more times one request is tried after its first attempt.
    pub(crate) attempts: u32,
    /// Wait before the second attempt; it doubles for each further one.
    pub(crate) base_ms: u64,
    /// Whether waits are spread between half and all of their length, so that
    /// requests refused together do not come back together.
    pub(crate) jitter: bool,
    /// Longest wait for a model as long as there is another one to ask.
    pub(crate) patience_ms: u64,
    /// Longest wait for a model at all. A provider that wants to be left alone for
    /// longer is not waited for.
    pub(crate) wait_max_ms: u64,
    /// Longest time for which a provider is left alone because it says so; where it says
    /// more, it is tried again after that.
    pub(crate) pause_max_ms: u64,
}

/// How results are kept for `completion:get`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ResultsConfig {
    pub(crate) max: usize,
    pub(crate) bytes_max: usize,
    pub(crate) age_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            default_model: "llama/default".into(),
            aliases: BTreeMap::new(),
            fallbacks: Vec::new(),
            policy: PolicyConfig::default(),
            queue_max: 2048,
            queue_bytes_max: 64 * 1024 * 1024,
            timeout_ms: 600_000,
            hooks_timeout_ms: 5000,
            context_tokens: 8192,
            providers: BTreeMap::new(),
            budgets: BTreeMap::new(),
            answer_tokens: 8192,
            usage_days: 400,
            retry: RetryConfig::default(),
            breaker: BreakerConfig::default(),
            results: ResultsConfig::default(),
        }
    }
}

impl Default for RetryConfig {
    fn default() -> Self {
        let (patience_ms, wait_max_ms, pause_max_ms) = (2000, 60_000, 900_000);
        Self { attempts: 2, base_ms: 200, jitter: true, patience_ms, wait_max_ms, pause_max_ms }
    }
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self { failures: 5, window_s: 60, open_ms: 5000, open_max_ms: 300_000 }
    }
}

impl Default for ResultsConfig {
    fn default() -> Self {
        Self { max: 1000, bytes_max: 16 * 1024 * 1024, age_s: 3600 }
    }
}

impl Config {
    /// Refuses values that make no sense, naming the key.
    pub(crate) fn check(&self, providers: &Providers) -> Result<(), Refusal> {
        let wrong = |key: &str, why: String| {
            Err(Refusal::new(Code::InvalidPayload, format!("configuration `{key}` {why}"))
                .hint("`ksi config show` prints the configuration with its sources"))
        };
        for (name, provider) in &self.providers {
            if let Some((key, why)) = provider.fault() {
                return wrong(&format!("providers.{name}.{key}"), why.into());
            }
            let letters =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
            if name.is_empty() || !name.bytes().all(letters) {
                return wrong(
                    &format!("providers.{name}"),
                    "is no name: lower-case letters, digits, - and _".into(),
                );
            }
        }
        for (name, models) in &self.aliases {
            let key = format!("aliases.{name}");
            if name.contains('/') || name.is_empty() || models.all().next().is_none() {
                return wrong(&key, "must be a name without `/` for at least one model".into());
            }
            if let Some(refusal) = models.all().find_map(|model| providers.target(model, &key).err()) {
                return wrong(&key, format!("has what is no model: {}", refusal.message));
            }
        }
        if let Err(refusal) = tier(&self.default_model, "default_model", self, providers) {
            return wrong("default_model", format!("is no model: {}", refusal.message));
        }
        for fallback in &self.fallbacks {
            if let Err(refusal) = tier(fallback, "fallbacks", self, providers) {
                return wrong("fallbacks", format!("has what is no model: {}", refusal.message));
            }
        }
        if let Some((name, why)) = self.budgets.iter().find_map(|(name, one)| Some((name, one.fault()?))) {
            return wrong(&format!("budgets.{name}"), why.into());
        }
        let counts = [
            ("queue_max", self.queue_max, 16_384),
            ("queue_bytes_max", self.queue_bytes_max, 1 << 40),
            ("results.max", self.results.max, 1_000_000),
            ("results.bytes_max", self.results.bytes_max, 1 << 40),
        ];
        if let Some((key, _, max)) = counts.into_iter().find(|(_, value, max)| !(1..=*max).contains(value)) {
            return wrong(key, format!("must be from 1 to {max}"));
        }
        if !(1..=TIMEOUT_MS_MAX).contains(&self.timeout_ms) {
            return wrong("timeout_ms", format!("must be from 1 to {TIMEOUT_MS_MAX}"));
        }
        if !(1..=600_000).contains(&self.hooks_timeout_ms) {
            return wrong("hooks_timeout_ms", "must be from 1 to 600000".into());
        }
        if !(1..=USAGE_DAYS_MAX).contains(&self.usage_days) {
            return wrong("usage_days", format!("must be from 1 to {USAGE_DAYS_MAX}"));
        }
        if !(1..=1_048_576).contains(&self.answer_tokens) {
            return wrong("answer_tokens", "must be from 1 to 1048576".into());
        }
        if let Some(why) = self.retry.fault() {
            return wrong("retry", why.into());
        }
        let BreakerConfig { failures, open_ms, open_max_ms, .. } = self.breaker;
        if failures == 0 || open_ms == 0 || open_max_ms < open_ms {
            return wrong(
                "breaker",
                "needs at least 1 failure and 1 ms, and open_max_ms no less than open_ms".into(),
            );
        }
        Ok(())
    }

    pub(crate) fn breaker_rules(&self) -> breaker::Rules {
        let BreakerConfig { failures, window_s, open_ms, open_max_ms } = self.breaker;
        breaker::Rules { failures, window_ms: window_s.saturating_mul(1000), open_ms, open_max_ms }
    }

    pub(crate) fn queue_bounds(&self) -> queue::Bounds {
        queue::Bounds { requests: self.queue_max, bytes: self.queue_bytes_max }
    }

    pub(crate) fn result_bounds(&self) -> results::Bounds {
        let ResultsConfig { max, bytes_max, age_s } = self.results;
        results::Bounds { results: max, bytes: bytes_max, age_ms: age_s.saturating_mul(1000) }
    }
}

impl RetryConfig {
    fn fault(&self) -> Option<&'static str> {
        let checks = [
            (self.attempts <= 10, "allows at most 10 attempts"),
            (self.base_ms <= 60_000, "has a base_ms of more than 60000"),
            (
                (1..=TIMEOUT_MS_MAX).contains(&self.wait_max_ms),
                "has a wait_max_ms that is not from 1 to 86400000",
            ),
            (
                (1..=TIMEOUT_MS_MAX).contains(&self.pause_max_ms),
                "has a pause_max_ms that is not from 1 to 86400000",
            ),
        ];
        checks.into_iter().find(|(fits, _)| !fits).map(|(_, why)| why)
    }

    /// How long to wait after attempt number `attempt` (the first is 1) was refused, where
    /// that is not too long; `spread` is any number that differs between requests.
    pub(crate) fn wait(&self, attempt: u32, refusal: &Refusal, spread: u64) -> Option<Duration> {
        let doubled = self.base_ms.saturating_mul(1 << (attempt - 1).min(16));
        let spread_ms = match self.jitter {
            true => doubled / 2 + spread % (doubled / 2 + 1),
            false => doubled,
        };
        let told_ms = refusal.retry_after_ms.unwrap_or(0).min(self.pause_max_ms);
        let wait_ms = spread_ms.min(self.wait_max_ms).max(told_ms);
        (wait_ms <= self.wait_max_ms).then_some(Duration::from_millis(wait_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_and_respect_what_the_provider_asked_for() {
        let retry = RetryConfig { jitter: false, ..RetryConfig::default() };
        let plain = Refusal::new(Code::Unavailable, "");
        for (attempt, told, wait) in [
            (1, None, Some(200)),
            (3, None, Some(800)),
            (1, Some(900), Some(900)),
            (1, Some(60_000), Some(60_000)),
            (1, Some(60_001), None),
            (1, Some(u64::MAX), None),
            (60, None, Some(60_000)),
        ] {
            let refusal = Refusal { retry_after_ms: told, ..plain.clone() };
            assert_eq!(
                retry.wait(attempt, &refusal, 7),
                wait.map(Duration::from_millis),
                "{attempt} {told:?}"
            );
        }
        let short = RetryConfig { pause_max_ms: 5000, ..retry };
        let told = plain.retry_after_ms(86_400_000);
        assert_eq!(short.wait(1, &told, 7), Some(Duration::from_secs(5)), "no more is believed");
    }

    #[test]
    fn jitter_stays_between_half_and_all_of_a_wait() {
        let refusal = Refusal::new(Code::Unavailable, "");
        for spread in 0..1000 {
            let wait = RetryConfig::default().wait(1, &refusal, spread * 7919).unwrap().as_millis();
            assert!((100..=200).contains(&wait), "{wait}");
        }
    }
}
