//! Authority: what the endpoint behind a port may send and hear.

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use ksi_protocol::{Bytes, EventName, Pattern};

use crate::{Caller, Decision, Principal};

/// What a plugin is granted, or asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rights {
    /// Requests.
    pub may_call: Vec<Pattern>,
    /// Emissions.
    pub emits: Vec<Pattern>,
    /// What it hears of others' emissions.
    pub listens: Vec<Pattern>,
    /// What it has a word on.
    pub intercepts: Vec<Pattern>,
}

/// Which of the [`Rights`] is meant.
pub type Right = fn(&Rights) -> &[Pattern];

enum Grant {
    /// Anything.
    All,
    /// What takes a permission that the principal holds, of its own tenant.
    Held,
    /// What these patterns cover, and those that the plugin has asked for.
    Only(ArcSwap<Rights>),
}

/// What an endpoint may send and hear, and in whose name.
pub struct Authority {
    /// In whose name it speaks, where it speaks for itself.
    pub caller: Arc<Caller>,
    grant: Grant,
    /// What a plugin has asked for; until it has, it may do nothing.
    asked: OnceLock<Rights>,
}

impl Authority {
    fn new(origin: &str, principal: Arc<Principal>, grant: Grant) -> Self {
        let caller = Arc::new(Caller { origin: origin.into(), principal });
        Self { caller, grant, asked: OnceLock::new() }
    }

    /// Anything: that of the daemon itself.
    #[must_use]
    pub fn full(origin: &str) -> Self {
        Self::new(origin, Principal::new(origin, None, u64::MAX), Grant::All)
    }

    /// What a principal holds: that of a client.
    #[must_use]
    pub fn of(origin: &str, principal: Arc<Principal>) -> Self {
        Self::new(origin, principal, Grant::Held)
    }

    /// What is granted and asked for: that of a plugin.
    #[must_use]
    pub fn granted(origin: &str, rights: Rights) -> Self {
        let granted = Grant::Only(ArcSwap::from_pointee(rights));
        Self::new(origin, Principal::new(origin, None, u64::MAX), granted)
    }

    /// From now on a plugin is granted this; to anybody else it is nothing.
    pub fn grant(&self, rights: Rights) {
        if let Grant::Only(granted) = &self.grant {
            granted.store(Arc::new(rights));
        }
    }

    /// What a plugin asks for, which counts as far as it is granted. Only the
    /// first word does.
    pub fn ask_for(&self, rights: Rights) {
        // A plugin that changes its mind asks for nothing more.
        let _ = self.asked.set(rights);
    }

    /// Whether a plugin is granted this and has asked for it; of anybody else
    /// other things decide.
    #[must_use]
    pub fn is_granted(&self, right: Right, event: &EventName) -> bool {
        let Grant::Only(granted) = &self.grant else { return true };
        covers(right(&granted.load()), event)
            && self.asked.get().is_some_and(|asked| covers(right(asked), event))
    }

    /// Whether a client's principal holds what an event takes; of anybody else
    /// other things decide.
    #[must_use]
    pub fn holds(&self, bit: u16, now_ms: u64) -> bool {
        !matches!(self.grant, Grant::Held) || self.caller.principal.holds(bit, now_ms)
    }

    /// What is decided of something that is sent: as it is where it is the
    /// endpoint's own, allowed, and no emission.
    #[must_use]
    pub fn decision<'a>(&'a self, event: &'a EventName, data: &'a Bytes, at_ms: u64) -> Decision<'a> {
        Decision {
            origin: &self.caller.origin,
            caller: &self.caller,
            event,
            is_emission: false,
            data,
            correlation_id: None,
            right: "",
            allowed: true,
            audited: false,
            at_ms,
        }
    }

    /// Whether it may hear of something that belongs to a tenant, or to nobody.
    #[must_use]
    pub fn hears(&self, event: &EventName, tenant: Option<&str>, bit: u16, now_ms: u64) -> bool {
        match &self.grant {
            Grant::All => true,
            Grant::Only(_) => self.is_granted(|rights| &rights.listens, event),
            Grant::Held => {
                let principal = &self.caller.principal;
                principal.holds(bit, now_ms) && principal.sees(tenant, now_ms)
            }
        }
    }
}

fn covers(patterns: &[Pattern], event: &EventName) -> bool {
    patterns.iter().any(|pattern| pattern.matches(event.as_str()))
}
