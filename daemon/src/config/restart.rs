//! When and how often a plugin is started again.

use std::time::Duration;

use ksi_protocol::system::Placement;

/// `[plugins.NAME.restart]`: when and how often a plugin is started again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restart {
    /// What its supervisor decides by.
    pub policy: RestartPolicy,
    /// Silence of a plugin that has work, after which it counts as hung.
    pub hang: Duration,
    /// Time from start until it must have said that it is ready.
    pub start_timeout: Duration,
    /// Time it has to drain before it is ended by force.
    pub stop_timeout: Duration,
}

impl Restart {
    /// The defaults of a placement: inside the daemon a handler that does not
    /// yield for a second holds up others, a child only itself.
    #[must_use]
    pub fn of(placement: Placement) -> Self {
        Self {
            policy: RestartPolicy::default(),
            hang: Duration::from_secs(if placement == Placement::InProcess { 1 } else { 5 }),
            start_timeout: Duration::from_secs(10),
            stop_timeout: Duration::from_secs(5),
        }
    }
}

/// How a plugin that has failed is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestartPolicy {
    /// Pause before the first restart; doubles with each further one.
    pub backoff_min: Duration,
    /// Longest pause.
    pub backoff_max: Duration,
    /// Healthy time after which the pause is short again.
    pub reset_after: Duration,
    /// Failures within `window` after which the plugin is held.
    pub failures_max: usize,
    /// See `failures_max`.
    pub window: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(30),
            reset_after: Duration::from_secs(60),
            failures_max: 5,
            window: Duration::from_secs(60),
        }
    }
}
