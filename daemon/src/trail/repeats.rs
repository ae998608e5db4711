//! Decisions that repeat: whoever asks without end for what is denied shall not
//! fill the trail, and push out of it what was written before; nor shall a plugin
//! that tells much.
//!
//! Of each event and principal the first few within a while are written down
//! whole, and the others counted.

use std::collections::HashMap;

use ksi_identity::Decision;
use ksi_protocol::audit::Repeated;

/// Decisions on one event of one principal that are written down whole ...
const WHOLE_MAX: u32 = 10;
/// ... within so many milliseconds.
const WHILE_MS: u64 = 10_000;

/// Events of one principal that are told apart: names can be made up.
const EVENTS_MAX: usize = 256;

/// What stands for all other events.
const OTHERS: &str = "**";

/// What was decided of late, by principal and event; either denials or what was
/// allowed.
#[derive(Debug, Default)]
pub(super) struct Repeats(HashMap<String, HashMap<String, Window>>);

/// One event of one principal.
#[derive(Debug)]
struct Window {
    begun_ms: u64,
    whole: u32,
    counted: Repeated,
}

impl Window {
    fn new(event: &str, decision: &Decision<'_>) -> Self {
        let principal = &decision.caller.principal;
        Self {
            begun_ms: decision.at_ms,
            whole: if event == OTHERS { WHOLE_MAX } else { 0 },
            counted: Repeated {
                at_ms: decision.at_ms,
                until_ms: decision.at_ms,
                principal: principal.name.to_string(),
                tenant: principal.tenant.as_deref().map(str::to_owned),
                event: event.to_owned(),
                permission: decision.right.to_owned(),
                allowed: 0,
                denied: 0,
            },
        }
    }
}

impl Repeats {
    /// Whether there is nothing to be told later.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a decision is to be written down whole; it is counted otherwise.
    pub(super) fn admit(&mut self, decision: &Decision<'_>) -> bool {
        let principal = &decision.caller.principal;
        if !self.0.contains_key(&*principal.name) {
            self.0.insert(principal.name.to_string(), HashMap::new());
        }
        let Some(windows) = self.0.get_mut(&*principal.name) else { return true };
        let mut event = decision.event.as_str();
        if windows.len() >= EVENTS_MAX && !windows.contains_key(event) {
            event = OTHERS;
        }
        if !windows.contains_key(event) {
            windows.insert(event.to_owned(), Window::new(event, decision));
        }
        let Some(window) = windows.get_mut(event) else { return true };
        if window.whole < WHOLE_MAX {
            window.whole += 1;
            return true;
        }
        let counted = &mut window.counted;
        if counted.allowed + counted.denied == 0 {
            counted.at_ms = decision.at_ms;
        }
        counted.until_ms = decision.at_ms;
        match decision.allowed {
            true => counted.allowed += 1,
            false => counted.denied += 1,
        }
        false
    }

    /// Forgets what is older than a while at `now_ms`, or all with `None`; what
    /// was counted meanwhile.
    pub(super) fn end(&mut self, now_ms: Option<u64>) -> Vec<Repeated> {
        let mut counted = Vec::new();
        self.0.retain(|_, windows| {
            windows.retain(|_, window| {
                let goes_on = now_ms.is_some_and(|now| now < window.begun_ms.saturating_add(WHILE_MS));
                if !goes_on && window.counted.allowed + window.counted.denied > 0 {
                    counted.push(window.counted.clone());
                }
                goes_on
            });
            !windows.is_empty()
        });
        counted
    }
}

#[cfg(test)]
mod tests {
    use ksi_identity::{Caller, Principal};
    use ksi_protocol::EventName;

    use super::*;

    /// Denies an event to a principal; whether that is written down whole.
    fn deny(repeats: &mut Repeats, principal: &str, event: &str, at_ms: u64) -> bool {
        decide(repeats, principal, event, at_ms, false)
    }

    fn decide(repeats: &mut Repeats, principal: &str, event: &str, at_ms: u64, allowed: bool) -> bool {
        let principal = Principal::new(principal, None, u64::MAX);
        repeats.admit(&Decision {
            origin: "session:1",
            caller: &Caller { origin: "session:1".into(), principal },
            event: &EventName::parse(event).unwrap(),
            is_emission: false,
            data: &ksi_protocol::empty(),
            correlation_id: None,
            right: "a.admin",
            allowed,
            audited: true,
            at_ms,
        })
    }

    #[test]
    fn what_is_allowed_is_counted_as_that() {
        let mut repeats = Repeats::default();
        for n in 0..12 {
            decide(&mut repeats, "plugin:x", "x:told", n, true);
        }
        let counted = repeats.end(None);
        assert_eq!((counted[0].allowed, counted[0].denied), (2, 0));
    }

    fn told(repeats: &mut Repeats, now_ms: Option<u64>) -> Vec<(String, String, u64, u64, u64)> {
        let counted = repeats.end(now_ms).into_iter();
        let mut counted: Vec<_> =
            counted.map(|one| (one.principal, one.event, one.denied, one.at_ms, one.until_ms)).collect();
        counted.sort();
        counted
    }

    #[test]
    fn the_first_are_written_down_whole_and_the_rest_is_counted_and_told_once() {
        let mut repeats = Repeats::default();
        let whole = (0..1000).filter(|&n| deny(&mut repeats, "eve", "plugin:load", n)).count();
        assert_eq!(whole, 10);
        assert!(deny(&mut repeats, "eve", "plugin:list", 1000), "another event is news");
        assert!(deny(&mut repeats, "mallory", "plugin:load", 1000), "so is another principal");
        assert_eq!(told(&mut repeats, Some(9_999)), []);
        assert_eq!(told(&mut repeats, Some(10_000)), [("eve".into(), "plugin:load".into(), 990, 10, 999)]);
        assert!(deny(&mut repeats, "eve", "plugin:load", 10_000), "after a while it is news again");
        assert_eq!(told(&mut repeats, None), []);
        assert!(repeats.is_empty());
    }

    #[test]
    fn names_that_are_made_up_are_counted_together() {
        let mut repeats = Repeats::default();
        let whole = (0..1000).filter(|n| deny(&mut repeats, "eve", &format!("a:b{n}"), 1)).count();
        assert_eq!(whole, EVENTS_MAX);
        assert_eq!(told(&mut repeats, None), [("eve".into(), "**".into(), 744, 1, 1)]);
    }
}
