//! What is known of a plugin without asking its runner.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use ksi_protocol::{
    Descriptor,
    system::{Death, PluginState, PluginStatus},
};

use super::spec::Spec;
use crate::{
    hub::{Handle, Port},
    memory::resident_bytes,
};

/// What others may know of a plugin without asking its runner.
pub struct Board {
    /// State and figures, but for those that the kernel counts.
    pub status: PluginStatus,
    /// What it says of itself, once known.
    pub descriptor: Option<Arc<Descriptor>>,
    /// How it died, oldest first.
    pub deaths: VecDeque<Death>,
    /// The port of the present generation.
    pub port: Option<Arc<Port>>,
    /// Since when it is ready.
    pub ready_at_ms: Option<u64>,
}

impl Board {
    /// That of a plugin that has not run yet.
    #[must_use]
    pub fn new(spec: &Spec, wanted: bool) -> Self {
        let status = PluginStatus {
            name: spec.plugin.name.clone(),
            version: String::new(),
            about: String::new(),
            state: PluginState::Stopped,
            wanted,
            placement: spec.plugin.placement,
            sandbox: String::new(),
            sandbox_lacks: Vec::new(),
            pid: None,
            generation: 0,
            restarts: 0,
            ready_ms: None,
            rss_bytes: None,
            in_flight: 0,
            handled: 0,
            library: spec.library.display().to_string(),
            last_error: None,
            degraded: None,
            quarantined: None,
            not_granted: Vec::new(),
        };
        Self { status, descriptor: None, deaths: VecDeque::new(), port: None, ready_at_ms: None }
    }
}

/// A board that many may look at.
pub type Shared = Arc<Mutex<Board>>;

/// Looks at a board, or changes it.
pub fn with<T>(board: &Shared, look: impl FnOnce(&mut Board) -> T) -> T {
    look(&mut board.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The status on a board with the figures that are counted elsewhere.
pub(super) fn figures(board: &mut Board, now_ms: u64) -> PluginStatus {
    let mut status = board.status.clone();
    if let Some(port) = &board.port {
        status.in_flight = port.holding() as usize;
        status.handled = port.handled();
        status.degraded = match &port.handle {
            Handle::Actor(actor) => actor.guest.complaint(),
            Handle::Link(link) => link.guest.complaint(),
            Handle::Daemon | Handle::Session(_) => None,
        };
    }
    status.ready_ms = board.ready_at_ms.map(|since| now_ms.saturating_sub(since));
    status.rss_bytes = status.pid.and_then(resident_bytes);
    status
}
