//! Causal chains: what plugins send on account of what plugins have sent, and
//! how far that may go.
//!
//! A chain is a text of steps, oldest first, with a blank between them; a step
//! is `event@origin`. The kernel adds a step to whatever a plugin sends, the
//! plugin's side hands the chain of what it handles back with all that it sends
//! on its account. What a client sends has no chain, so it costs nothing.
//!
//! A plugin that keeps its chains back is not caught here; what it holds and
//! what waits for it is bounded all the same.

use std::sync::Arc;

use ksi_protocol::{EventName, Refusal, limits::NAME_BYTES_MAX};

use crate::{
    port::{Port, Role},
    refusals,
};

/// How far a causal chain may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chains {
    /// Steps of one chain.
    pub steps_max: usize,
    /// How often one event of one plugin may come in one chain.
    pub repeats_max: usize,
}

impl Default for Chains {
    fn default() -> Self {
        Self { steps_max: 64, repeats_max: 16 }
    }
}

impl Chains {
    /// The chain of what `port` sends on account of what `so_far` has led to;
    /// `None` for all but plugins.
    pub(crate) fn next<H>(
        &self,
        port: &Port<H>,
        event: &EventName,
        so_far: Option<&str>,
    ) -> Result<Option<Arc<str>>, Refusal> {
        if port.role != Role::Plugin {
            return Ok(None);
        }
        let step = format!("{event}@{}", port.origin);
        let Some(so_far) = so_far else { return Ok(Some(step.into())) };
        let repeats = so_far.split(' ').filter(|known| *known == step).count();
        if repeats >= self.repeats_max {
            return Err(refusals::circular(&step, so_far, self.repeats_max));
        }
        // A step is two names at most; what is longer is no chain of ours.
        if so_far.split(' ').count() >= self.steps_max || so_far.len() > self.steps_max * 3 * NAME_BYTES_MAX {
            return Err(refusals::too_deep(&step, so_far, self.steps_max));
        }
        Ok(Some(format!("{so_far} {step}").into()))
    }
}
