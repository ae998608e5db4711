//! What is told of a plugin: to the world, on its board, and to those who ask
//! while nobody answers.

use std::sync::Arc;

use ksi_protocol::{
    Code, Refusal,
    system::{Death, Placement, PluginBorn, PluginNamed, PluginState, PluginStatus, PluginTrouble},
};
use serde_json::json;

use super::{
    Runner,
    body::{Body, Running},
};
use crate::{
    hub::Port,
    own,
    plugin::{board::with, spec::Keyed},
    redaction,
};

/// Deaths that are kept for `plugin:inspect`.
const DEATHS_MAX: usize = 32;

impl Runner {
    pub(super) fn announce(&mut self, before: PluginState, after: PluginState) {
        if before != after {
            let name = self.spec.plugin.name.clone();
            tracing::info!(plugin = name, state = after.as_str(), "plugin is {}", after.as_str());
            if after == PluginState::Stopped {
                self.means.hub.tell(own::PLUGIN_STOPPED, &PluginNamed { name: name.clone() });
            }
            if after == PluginState::Quarantined {
                let (name, reason) = (name.clone(), self.quarantine.clone().unwrap_or_default());
                self.means.hub.tell(own::PLUGIN_QUARANTINED, &PluginTrouble { name, reason });
            }
            if before == PluginState::Quarantined {
                self.means.hub.tell(own::PLUGIN_RELEASED, &PluginNamed { name });
            }
            if after == PluginState::Ready {
                self.means.hub.tell(own::PLUGIN_READY, &self.birth());
            }
            // Whoever waited for it finds it told.
            self.means.changed.notify_waiters();
        }
        let is_at_rest = matches!(after, PluginState::Stopped | PluginState::Quarantined);
        if is_at_rest && !with(&self.board, |board| board.status.wanted) {
            // Of one that is wanted and shall only not run now, what refuses in its place stays.
            self.means.hub.kernel.forget_interceptors(&self.origin());
            self.is_heard = false;
        }
        // With another state what is refused was declared where that was published; there may be another
        // reason.
        if after == PluginState::Stopped || (before == after && after != PluginState::Ready) {
            self.declare(self.absent());
        }
        if !matches!(after, PluginState::Starting | PluginState::Draining) {
            let status = self.publish();
            for waiting in self.waiting.drain(..) {
                // Whoever asked may be gone.
                let _ = waiting.send(status.clone());
            }
        }
    }

    pub(super) fn record_death(&mut self, at_ms: u64) {
        self.reason = self.reason.take().map(redaction::text);
        let reason = self.reason.clone().unwrap_or_else(|| "unknown".into());
        let name = self.spec.plugin.name.clone();
        tracing::warn!(plugin = name, "plugin died: {reason}");
        let known = std::mem::take(&mut self.death);
        with(&self.board, |board| {
            if board.deaths.len() == DEATHS_MAX {
                board.deaths.pop_front();
            }
            let generation = board.status.generation;
            board.deaths.push_back(Death { at_ms, reason: reason.clone(), generation, ..known });
            board.status.restarts += 1;
            board.status.last_error = Some(reason.clone());
        });
        // Whoever sees the new state, or hears of the death, finds why.
        self.publish();
        self.means.hub.tell(own::PLUGIN_DIED, &PluginTrouble { name, reason });
    }

    /// What is told of a generation that runs, or that is ready.
    pub(super) fn birth(&self) -> PluginBorn {
        let PluginStatus { name, generation, placement, sandbox, sandbox_lacks, pid, .. } = self.publish();
        PluginBorn { name, generation, placement, sandbox, sandbox_lacks, pid }
    }

    pub(super) fn tell_started(&self) {
        self.means.hub.tell(own::PLUGIN_STARTED, &self.birth());
    }

    /// Writes the board; what it now says.
    pub(super) fn publish(&self) -> PluginStatus {
        let state = self.supervisor.state();
        // Whoever sees that it is away is refused for the reason that he sees.
        if state != PluginState::Ready && with(&self.board, |board| board.status.state) != state {
            self.declare(self.absent());
        }
        let (placement, pid) = match &self.running {
            Some(Running { body: Body::Child { child, .. }, .. }) => (Placement::Child, child.id()),
            Some(Running { body: Body::Actor(_), .. }) => (Placement::InProcess, None),
            None => (self.placement, None),
        };
        with(&self.board, |board| {
            let status = &mut board.status;
            status.state = state;
            status.placement = placement;
            (status.sandbox, status.sandbox_lacks) = match (placement, &self.sandbox) {
                (Placement::InProcess, _) => ("none".into(), Vec::new()),
                (Placement::Child, None) => (String::new(), Vec::new()),
                (Placement::Child, Some(report)) => (report.level().into(), report.reasons()),
            };
            status.pid = pid;
            status.library = self.spec.library.display().to_string();
            status.quarantined.clone_from(&self.quarantine);
            board.ready_at_ms = self.supervisor.ready_at_ms();
            board.port = self.running.as_ref().map(|running| running.port.clone());
            board.status.clone()
        })
    }

    /// What is told to those who wait for a generation that is gone. A planned
    /// end is told from a crash, so that nobody blames what it was working on.
    pub(super) fn detach(&self, port: &Arc<Port>, why: &str) {
        let name = &self.spec.plugin.name;
        let planned = self.reason.is_none() && self.supervisor.state() == PluginState::Draining;
        let reason = self.reason.as_deref().unwrap_or(why);
        let refusal = if planned && self.means.hub.is_closing() {
            Refusal::new(Code::ShuttingDown, format!("plugin {name} ends with the daemon"))
                .details(json!({ "planned": true }))
        } else {
            let gone = Refusal::new(Code::PluginRestarted, format!("plugin {name} is gone: {reason}"))
                .retry_after_ms(200);
            if planned { gone.details(json!({ "planned": true })) } else { gone }
        };
        let refusal =
            refusal.hint("whether it did what was asked is not known; ask again if that does no harm");
        let mut turn = self.means.hub.turn();
        turn.detach(port, &refusal);
        turn.end();
    }

    /// What is said to whoever asks before the plugin is ready.
    pub(in crate::plugin) fn starting(&self) -> Refusal {
        let name = &self.spec.plugin.name;
        let refusal = Refusal::new(Code::Unavailable, format!("plugin {name} is starting"));
        self.told(refusal.retry_after_ms(200))
    }

    /// What is said to whoever asks while the plugin does not answer.
    pub(in crate::plugin) fn absent(&self) -> Refusal {
        self.told(self.absence())
    }

    /// A manager is told by the details that its instance has not seen what it
    /// asked.
    fn told(&self, refusal: Refusal) -> Refusal {
        match &self.spec.instance {
            Some(Keyed { key, .. }) => refusal.details(json!({ "absent": key })),
            None => refusal,
        }
    }

    fn absence(&self) -> Refusal {
        let name = &self.spec.plugin.name;
        let why = self.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
        match self.supervisor.state() {
            PluginState::Starting | PluginState::Ready => self.starting(),
            // Whoever asks between two generations shall come again.
            PluginState::Draining if self.supervisor.is_restarting() => self.starting(),
            PluginState::Backoff => {
                Refusal::new(Code::Unavailable, format!("plugin {name} is being restarted{why}"))
                    .retry_after_ms(500)
            }
            PluginState::Held => {
                let mut refusal = Refusal::new(
                    Code::Unavailable,
                    format!("plugin {name} is held after repeated failures{why}"),
                )
                .hint(format!(
                    "`ksi plugin inspect {name}` shows how it died, `ksi plugin restart {name}` tries again"
                ));
                refusal.retryable = false;
                refusal
            }
            PluginState::Quarantined => quarantined(name, self.quarantine.as_deref().unwrap_or_default()),
            PluginState::Draining | PluginState::Stopped => {
                Refusal::new(Code::NoOwner, format!("plugin {name} is not loaded"))
                    .hint(format!("`ksi plugin load {name}` loads it"))
            }
        }
    }
}

/// What is said to whoever wants a plugin to run that is quarantined.
pub(in crate::plugin) fn quarantined(name: &str, why: &str) -> Refusal {
    let mut refusal = Refusal::new(Code::Unavailable, format!("plugin {name} is quarantined: {why}"))
        .hint(format!("`ksi plugin release {name}` lets it run again"));
    refusal.retryable = false;
    refusal
}
