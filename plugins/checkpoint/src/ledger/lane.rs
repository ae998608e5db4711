//! Lanes: the queue of each event, in order of acceptance, and how many of it
//! run.
//!
//! A lane feels its way: where nobody could take an entry, no more are begun
//! than run already, and none for a while where none runs. Each that is taken
//! widens it again by one, and each that comes back may try. So a hundred
//! thousand entries whose owner is away cost one attempt for each pause, not
//! one each.

use std::{
    collections::{BTreeSet, HashMap},
    rc::Rc,
};

use ksi_sdk::protocol::{EventName, work::Policy};

use super::id::Id;

/// The queue of one event.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) event: EventName,
    /// Whose turn comes, the oldest first. One that waits for its next attempt
    /// comes back to its old place.
    pub(super) ready: BTreeSet<Id>,
    /// Those that run.
    pub(super) running: BTreeSet<Id>,
    /// How many may run, as the lane has found out.
    window: usize,
    /// Before this none is begun, since nobody takes any.
    paused_ms: Option<u64>,
    /// Policies under which its entries were accepted: one, and another for
    /// each change of the manifest while there are entries of before.
    policies: Vec<Rc<Policy>>,
}

/// All lanes. They are never removed: there is one for each durable event of
/// the manifest.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    by_event: HashMap<EventName, usize>,
}

impl Lanes {
    /// The lane of an event.
    pub(super) fn of(&mut self, event: &EventName) -> usize {
        match self.by_event.get(event) {
            Some(&lane) => lane,
            None => {
                let lane = Lane {
                    event: event.clone(),
                    ready: BTreeSet::new(),
                    running: BTreeSet::new(),
                    window: usize::MAX,
                    paused_ms: None,
                    policies: Vec::new(),
                };
                self.lanes.push(lane);
                self.by_event.insert(event.clone(), self.lanes.len() - 1);
                self.lanes.len() - 1
            }
        }
    }

    pub(super) fn get(&mut self, lane: usize) -> &mut Lane {
        &mut self.lanes[lane]
    }

    pub(super) fn count(&self) -> usize {
        self.lanes.len()
    }

    /// When a lane that is paused goes on.
    pub(super) fn due_ms(&self) -> Option<u64> {
        self.lanes.iter().filter_map(Lane::due_ms).min()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.lanes.iter().map(|lane| lane.running.len()).sum()
    }

    /// What runs of one namespace.
    pub(super) fn running(&self, namespace: &str) -> impl Iterator<Item = Id> {
        let of_it = self.lanes.iter().filter(move |lane| lane.event.namespace() == namespace);
        of_it.flat_map(|lane| lane.running.iter().copied())
    }
}

impl Lane {
    /// Whether one more may be begun.
    pub(super) fn has_room(&self, now_ms: u64, limit: usize) -> bool {
        self.running.len() < limit.min(self.window)
            && self.paused_ms.is_none_or(|paused_ms| now_ms >= paused_ms)
    }

    /// Nobody could take one, who may be tried again then.
    pub(super) fn narrow(&mut self, until_ms: u64) {
        self.window = self.running.len().max(1);
        if self.running.is_empty() {
            self.paused_ms = Some(until_ms);
        }
    }

    /// One was taken.
    pub(super) fn widen(&mut self) {
        self.window = self.window.saturating_add(1);
        self.paused_ms = None;
    }

    /// One that nobody could take comes back.
    pub(super) fn probe(&mut self) {
        self.window = self.window.max(self.running.len().saturating_add(1));
    }

    /// When the lane goes on, where it holds somebody up.
    fn due_ms(&self) -> Option<u64> {
        self.paused_ms.filter(|_| self.running.is_empty() && !self.ready.is_empty())
    }

    /// The policy, shared with the other entries that have it.
    pub(super) fn share(&mut self, policy: Policy) -> Rc<Policy> {
        if let Some(shared) = self.policies.iter().find(|shared| ***shared == policy) {
            return shared.clone();
        }
        self.policies.retain(|shared| Rc::strong_count(shared) > 1);
        let shared = Rc::new(policy);
        self.policies.push(shared.clone());
        shared
    }
}
