//! What can be set in `[plugins.checkpoint.config]`.

use ksi_sdk::prelude::{Deserialize, Duration, Refusal};

use crate::{engine::Options, ledger::Limits, trail::Retention};

/// The table; what is absent has the value of [`Options`] or [`Limits`].
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Size of a file of the journal; the first ones are smaller.
    pub segment_bytes: Option<u64>,
    /// Changes in memory at which they are written to the store, once nothing changes for a moment.
    pub checkpoint_bytes: Option<usize>,
    /// Seconds after which changes are written to the store in any case.
    pub checkpoint_seconds: Option<u64>,
    /// Changes in memory at which more are refused `busy`; at half of it they are written to the store in any case.
    pub memory_bytes_max: Option<usize>,
    /// Journal that is kept for durable subscriptions.
    pub facts_bytes: Option<u64>,
    /// Days after which a consumer that neither follows nor acknowledges anything is forgotten.
    pub consumers_days: Option<u64>,
    /// Memory for what was read from the store.
    pub cache_bytes: Option<u64>,
    /// Work of one event that is carried out at once.
    pub in_flight: Option<usize>,
    /// Crashes of one plugin in a minute after which work that may be to blame waits.
    pub crashes_per_minute: Option<usize>,
    /// Work that may wait; more is refused `busy`.
    pub pending_max: Option<usize>,
    /// And the bytes of what it asks.
    pub pending_bytes_max: Option<usize>,
    /// Results that are kept, in number.
    pub results_max: Option<usize>,
    /// And in bytes.
    pub results_bytes_max: Option<u64>,
    /// Idempotency keys, with the end of their work, that are kept beyond these.
    pub keys_max: Option<usize>,
    /// Checkpoints that are kept.
    pub checkpoints_kept: Option<usize>,
    /// Days for which the audit trail is kept.
    pub audit_days: Option<u64>,
    /// Size of the audit trail beyond which its oldest files go.
    pub audit_bytes_max: Option<u64>,
    /// Days for which nothing of it goes for its size, as far as the disk allows.
    pub audit_days_min: Option<u64>,
}

impl Config {
    /// Checks what would not work.
    ///
    /// # Errors
    ///
    /// Names the key and what it may be.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        let between = |key: &str, value: Option<u64>, low: u64, high: u64| match value {
            Some(value) if !(low..=high).contains(&value) => {
                Err(Refusal::invalid_payload(format!("`{key}` must be from {low} to {high}, and is {value}")))
            }
            _ => Ok(()),
        };
        let wide = |value: Option<usize>| value.map(|value| value as u64);
        const MIB: u64 = 1 << 20;
        between("segment_bytes", self.segment_bytes, 64 << 10, 1 << 30)?;
        between("checkpoint_bytes", wide(self.checkpoint_bytes), 4 << 10, 1 << 30)?;
        between("checkpoint_seconds", self.checkpoint_seconds, 1, 24 * 3600)?;
        between("memory_bytes_max", wide(self.memory_bytes_max), MIB, 16 << 30)?;
        between("facts_bytes", self.facts_bytes, 0, 1 << 40)?;
        between("consumers_days", self.consumers_days, 1, 36_500)?;
        between("cache_bytes", self.cache_bytes, MIB, 16 << 30)?;
        between("in_flight", wide(self.in_flight), 1, 65_536)?;
        between("crashes_per_minute", wide(self.crashes_per_minute), 1, 1_000_000)?;
        between("pending_max", wide(self.pending_max), 1, 100_000_000)?;
        // Half of it is one principal's, and a payload may have 16 MiB.
        between("pending_bytes_max", wide(self.pending_bytes_max), 32 * MIB, 1 << 44)?;
        between("results_max", wide(self.results_max), 0, 100_000_000)?;
        between("keys_max", wide(self.keys_max), 0, 100_000_000)?;
        between("checkpoints_kept", wide(self.checkpoints_kept), 1, 1000)?;
        between("audit_days", self.audit_days, 1, 36_500)?;
        between("audit_bytes_max", self.audit_bytes_max, 4 * MIB, 1 << 44)?;
        between("audit_days_min", self.audit_days_min, 0, 36_500)?;
        let options = self.options();
        if options.overlay_max_bytes < options.checkpoint_bytes {
            return Err(Refusal::invalid_payload(format!(
                "`memory_bytes_max` ({}) is below `checkpoint_bytes` ({})",
                options.overlay_max_bytes, options.checkpoint_bytes
            )));
        }
        Ok(())
    }

    /// How long the audit trail is kept.
    #[must_use]
    pub(crate) fn retention(&self) -> Retention {
        let unset = Retention::default();
        Retention {
            days: self.audit_days.unwrap_or(unset.days),
            bytes: self.audit_bytes_max.unwrap_or(unset.bytes),
            days_min: self.audit_days_min.unwrap_or(unset.days_min),
        }
    }

    /// What the engine is told.
    #[must_use]
    pub(crate) fn options(&self) -> Options {
        let unset = Options::default();
        Options {
            segment_bytes: self.segment_bytes.unwrap_or(unset.segment_bytes),
            checkpoint_bytes: self.checkpoint_bytes.unwrap_or(unset.checkpoint_bytes),
            checkpoint_age: self.checkpoint_seconds.map_or(unset.checkpoint_age, Duration::from_secs),
            overlay_max_bytes: self.memory_bytes_max.unwrap_or(unset.overlay_max_bytes),
            keep_facts_bytes: self.facts_bytes.unwrap_or(unset.keep_facts_bytes),
            store_cache_bytes: self.cache_bytes.unwrap_or(unset.store_cache_bytes),
            ..unset
        }
    }

    /// What the ledger is told.
    #[must_use]
    pub(crate) fn limits(&self) -> Limits {
        let unset = Limits::default();
        Limits {
            in_flight: self.in_flight.unwrap_or(unset.in_flight),
            crashes_per_minute: self.crashes_per_minute.unwrap_or(unset.crashes_per_minute),
            pending: self.pending_max.unwrap_or(unset.pending),
            pending_bytes: self.pending_bytes_max.unwrap_or(unset.pending_bytes),
            kept: self.results_max.unwrap_or(unset.kept),
            kept_bytes: self.results_bytes_max.unwrap_or(unset.kept_bytes),
            keys: self.keys_max.unwrap_or(unset.keys),
            ..unset
        }
    }

    /// How long a consumer of which nothing is heard is kept.
    #[must_use]
    pub(crate) fn consumers_days(&self) -> Duration {
        Duration::from_secs(self.consumers_days.unwrap_or(90) * 24 * 3600)
    }

    /// Checkpoints that are kept.
    #[must_use]
    pub(crate) fn checkpoints_kept(&self) -> usize {
        self.checkpoints_kept.unwrap_or(10)
    }
}
