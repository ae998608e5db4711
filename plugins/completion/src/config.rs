//! The plugin's configuration, and what it may be.

use std::collections::BTreeMap;

use ksi_sdk::prelude::{Code, Deserialize, Duration, Refusal};

use crate::{
    order::TIMEOUT_MS_MAX,
    provider::{Model, Provider},
    queue, results,
};

/// The `config` table of the plugin.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// The model of a request that names none.
    pub(crate) default_model: String,
    /// Requests that may wait for one provider; more are refused `busy`.
    pub(crate) queue_max: usize,
    /// Bytes that all requests may hold together; more are refused `busy`.
    pub(crate) queue_bytes_max: usize,
    /// Time from acceptance to result where a request does not say.
    pub(crate) timeout_ms: u64,
    /// Settings of providers, by name.
    pub(crate) providers: BTreeMap<String, ProviderConfig>,
    pub(crate) retry: RetryConfig,
    pub(crate) results: ResultsConfig,
}

/// Settings of one provider.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProviderConfig {
    /// Requests that it may work on at once.
    pub(crate) concurrency: usize,
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
            queue_max: 1024,
            queue_bytes_max: 64 * 1024 * 1024,
            timeout_ms: 600_000,
            providers: BTreeMap::new(),
            retry: RetryConfig::default(),
            results: ResultsConfig::default(),
        }
    }
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self { attempts: 2, base_ms: 200, jitter: true }
    }
}

impl Default for ResultsConfig {
    fn default() -> Self {
        Self { max: 1000, bytes_max: 16 * 1024 * 1024, age_s: 3600 }
    }
}

impl Config {
    /// Refuses values that make no sense, naming the key.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        let wrong = |key: &str, why: String| {
            Err(Refusal::new(Code::InvalidPayload, format!("configuration `{key}` {why}"))
                .hint("`ksi config show` prints the configuration with its sources"))
        };
        if let Err(refusal) = Model::parse(&self.default_model) {
            return wrong("default_model", format!("is no model: {}", refusal.message));
        }
        if let Some(name) = self.providers.keys().find(|name| Provider::named(name).is_none()) {
            return wrong(&format!("providers.{name}"), format!("is none of {}", Provider::names()));
        }
        if let Some((name, _)) = self.providers.iter().find(|(_, provider)| provider.concurrency == 0) {
            return wrong(&format!("providers.{name}.concurrency"), "must be at least 1".into());
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
        if self.retry.attempts > 10 || self.retry.base_ms > 60_000 {
            return wrong("retry", "allows at most 10 attempts and a base of 60000 ms".into());
        }
        Ok(())
    }

    /// How many requests each provider may work on at once, in the order of
    /// [`Provider::ALL`].
    pub(crate) fn limits(&self) -> Vec<usize> {
        let limit = |provider: Provider| {
            self.providers.get(provider.name()).map_or(provider.default_concurrency(), |p| p.concurrency)
        };
        Provider::ALL.map(limit).to_vec()
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
    /// Longest wait between two attempts.
    const WAIT_MAX: Duration = Duration::from_secs(30);

    /// How long to wait after attempt number `attempt` (the first is 1) was
    /// refused; `spread` is any number that differs between requests.
    pub(crate) fn wait(&self, attempt: u32, refusal: &Refusal, spread: u64) -> Duration {
        let doubled = self.base_ms.saturating_mul(1 << (attempt - 1).min(16));
        let spread_ms = match self.jitter {
            true => doubled / 2 + spread % (doubled / 2 + 1),
            false => doubled,
        };
        Duration::from_millis(spread_ms.max(refusal.retry_after_ms.unwrap_or(0))).min(Self::WAIT_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_and_respect_what_the_provider_asked_for() {
        let retry = RetryConfig { jitter: false, ..RetryConfig::default() };
        let plain = Refusal::new(Code::Unavailable, "");
        assert_eq!(retry.wait(1, &plain, 7), Duration::from_millis(200));
        assert_eq!(retry.wait(3, &plain, 7), Duration::from_millis(800));
        assert_eq!(retry.wait(1, &plain.clone().retry_after_ms(900), 7), Duration::from_millis(900));
        assert_eq!(retry.wait(1, &plain.clone().retry_after_ms(u64::MAX), 7), RetryConfig::WAIT_MAX);
        assert_eq!(retry.wait(60, &plain, 7), Duration::from_millis(200 << 16).min(RetryConfig::WAIT_MAX));
    }

    #[test]
    fn jitter_stays_between_half_and_all_of_a_wait() {
        let refusal = Refusal::new(Code::Unavailable, "");
        for spread in 0..1000 {
            let wait = RetryConfig::default().wait(1, &refusal, spread * 7919).as_millis();
            assert!((100..=200).contains(&wait), "{wait}");
        }
    }
}
