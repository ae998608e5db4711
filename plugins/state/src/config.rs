//! The plugin's configuration, and what it may be.

use ksi_sdk::prelude::{Code, Deserialize, Refusal};

/// The `config` table of the plugin.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Values and items of queues that may be kept, all together; of one tenant at
    /// most half of what the others leave.
    pub(crate) entries_max: u64,
    /// Bytes that they may have, by the same rule.
    pub(crate) bytes_max: u64,
    /// Watches that may be open at once. As many as requests that the plugin may
    /// hold, of which nobody has all.
    pub(crate) watches_max: usize,
    /// Requests that may wait at once for an item of a queue.
    pub(crate) waiters_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { entries_max: 1_000_000, bytes_max: 4 << 30, watches_max: 2048, waiters_max: 2048 }
    }
}

impl Config {
    /// Refuses values that make no sense, naming the key.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        let counts = [
            ("entries_max", self.entries_max, 100_000_000),
            ("bytes_max", self.bytes_max, 1 << 50),
            ("watches_max", self.watches_max as u64, 100_000),
            ("waiters_max", self.waiters_max as u64, 100_000),
        ];
        match counts.into_iter().find(|(_, value, max)| !(1..=*max).contains(value)) {
            None => Ok(()),
            Some((key, _, max)) => Err(Refusal::new(
                Code::InvalidPayload,
                format!("configuration `{key}` must be from 1 to {max}"),
            )
            .hint("`ksi config show` prints the configuration with its sources")),
        }
    }
}
