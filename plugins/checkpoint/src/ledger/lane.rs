//! Lanes: the queues of each event, one for everybody who has work there, in
//! order of acceptance, and how much of it runs.
//!
//! Who has work in a lane takes turns with the others: whoever had none for the
//! longest time comes next. Of what may run one has at most half of what the others
//! leave, so that whoever comes later finds room, also while nothing ends.
//!
//! A queue feels its way: where nobody could take an entry, no more are begun
//! than run already, and none for a while where none runs. Each that is taken
//! widens it again by one, and each that comes back may try. So a hundred
//! thousand entries whose owner is away cost one attempt for each pause, not
//! one each; and who has used up a share somewhere holds up nobody else.

use std::{
    collections::{BTreeSet, HashMap},
    rc::Rc,
};

use ksi_sdk::protocol::{EventName, limits::fair_share, work::Policy};

use super::{entry::Entry, id::Id};

/// All work of one event.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) event: EventName,
    /// By principal; those who have work that has not ended.
    queues: HashMap<Box<str>, Queue>,
    /// Whose turn comes: those who have something ready, by their last one.
    turns: BTreeSet<(u64, Box<str>)>,
    /// Turns that were had so far.
    turn: u64,
    /// How many run, of all queues.
    running: usize,
    /// Policies under which its entries were accepted: one, and another for
    /// each change of the manifest while there are entries of before.
    policies: Vec<Rc<Policy>>,
}

/// What one has in a lane.
#[derive(Debug)]
struct Queue {
    /// Entries that have not ended, wherever they stand.
    live: usize,
    /// What waits for its turn, the oldest first. One that waits for its next
    /// attempt comes back to its old place.
    ready: BTreeSet<Id>,
    /// Those that run.
    running: BTreeSet<Id>,
    /// How many may run, as the queue has found out.
    window: usize,
    /// Before this none is begun, since nobody takes any.
    paused_ms: Option<u64>,
    /// Its last turn.
    turn: u64,
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
                    queues: HashMap::new(),
                    turns: BTreeSet::new(),
                    turn: 0,
                    running: 0,
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

    /// When a queue that is paused goes on.
    pub(super) fn due_ms(&self, limit: usize) -> Option<u64> {
        self.lanes.iter().filter_map(|lane| lane.due_ms(limit)).min()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.lanes.iter().map(|lane| lane.running).sum()
    }

    /// What runs of one namespace.
    pub(super) fn running(&self, namespace: &str) -> impl Iterator<Item = Id> {
        let of_it = self.lanes.iter().filter(move |lane| lane.event.namespace() == namespace);
        of_it.flat_map(|lane| lane.queues.values()).flat_map(|queue| queue.running.iter().copied())
    }
}

impl Lane {
    /// An entry that has not ended is here from now on.
    pub(super) fn enters(&mut self, entry: &Entry) {
        let payer = entry.payer();
        match self.queues.get_mut(payer) {
            Some(queue) => queue.live += 1,
            // Behind those who wait: nobody gets a turn more by leaving and coming back.
            None => {
                let queue = Queue { live: 1, turn: self.turn, ..Queue::default() };
                self.queues.insert(payer.into(), queue);
            }
        }
    }

    /// An entry that does not run is here no more.
    pub(super) fn leaves(&mut self, entry: &Entry, id: Id) {
        let payer = entry.payer();
        let live = self.with(payer, |queue, _| {
            queue.ready.remove(&id);
            queue.live -= 1;
            queue.live
        });
        if live == Some(0) {
            self.queues.remove(payer);
        }
    }

    /// An entry waits for its turn.
    pub(super) fn waits(&mut self, entry: &Entry, id: Id) {
        self.with(entry.payer(), |queue, _| queue.ready.insert(id));
    }

    /// An entry runs.
    pub(super) fn runs(&mut self, entry: &Entry, id: Id) {
        self.turn += 1;
        let began = self.with(entry.payer(), |queue, turn| {
            // Behind whoever comes before the next turn.
            queue.turn = turn + 1;
            queue.running.insert(id)
        });
        self.running += usize::from(began == Some(true));
    }

    /// An entry runs no more.
    pub(super) fn ran(&mut self, entry: &Entry, id: Id) {
        let ended = self.with(entry.payer(), |queue, _| queue.running.remove(&id));
        self.running -= usize::from(ended == Some(true));
    }

    /// Whether an entry that has just come may be begun at once.
    pub(super) fn is_open(&self, entry: &Entry, now_ms: u64, limit: usize) -> bool {
        let queue = self.queues.get(entry.payer());
        queue.is_some_and(|queue| queue.ready.is_empty() && self.has_room(queue, now_ms, limit))
    }

    /// Takes out the entry whose turn it is.
    pub(super) fn next(&mut self, now_ms: u64, limit: usize) -> Option<Id> {
        let has_room =
            |payer| self.queues.get(payer).is_some_and(|queue| self.has_room(queue, now_ms, limit));
        let (_, payer) = self.turns.iter().find(|(_, payer)| has_room(payer))?;
        self.with(&payer.clone(), |queue, _| queue.ready.pop_first())?
    }

    /// Nobody could take an entry, who may be tried again then.
    pub(super) fn narrow(&mut self, entry: &Entry, until_ms: u64) {
        self.with(entry.payer(), |queue, _| {
            queue.window = queue.running.len().max(1);
            if queue.running.is_empty() {
                queue.paused_ms = Some(until_ms);
            }
        });
    }

    /// One was taken.
    pub(super) fn widen(&mut self, entry: &Entry) {
        self.with(entry.payer(), |queue, _| {
            queue.window = queue.window.saturating_add(1);
            queue.paused_ms = None;
        });
    }

    /// One that nobody could take comes back.
    pub(super) fn probe(&mut self, entry: &Entry) {
        self.with(entry.payer(), |queue, _| {
            queue.window = queue.window.max(queue.running.len().saturating_add(1));
        });
    }

    /// Whether it knows of nobody.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.queues.is_empty() && self.turns.is_empty() && self.running == 0
    }

    /// Whether one more of a queue may be begun.
    fn has_room(&self, queue: &Queue, now_ms: u64, limit: usize) -> bool {
        let own = queue.running.len();
        own < fair_share(limit, self.running - own).min(queue.window)
            && queue.paused_ms.is_none_or(|paused_ms| now_ms >= paused_ms)
    }

    /// When a queue goes on that holds somebody up. Where the lane is full, whatever
    /// ends lets it go on.
    fn due_ms(&self, limit: usize) -> Option<u64> {
        if self.running >= limit {
            return None;
        }
        let ready = self.turns.iter().filter_map(|(_, payer)| self.queues.get(payer));
        ready.filter(|queue| queue.running.is_empty()).filter_map(|queue| queue.paused_ms).min()
    }

    /// Changes a queue, told the number of the last turn, and keeps its place among
    /// the turns true.
    fn with<T>(&mut self, payer: &str, change: impl FnOnce(&mut Queue, u64) -> T) -> Option<T> {
        let queue = self.queues.get_mut(payer)?;
        let before = queue.place();
        let made = change(queue, self.turn);
        let after = queue.place();
        if before != after {
            if let Some(turn) = before {
                self.turns.remove(&(turn, payer.into()));
            }
            if let Some(turn) = after {
                self.turns.insert((turn, payer.into()));
            }
        }
        Some(made)
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

impl Default for Queue {
    fn default() -> Self {
        Self {
            live: 0,
            ready: BTreeSet::new(),
            running: BTreeSet::new(),
            window: usize::MAX,
            paused_ms: None,
            turn: 0,
        }
    }
}

impl Queue {
    /// Its place among the turns, where it has something ready.
    fn place(&self) -> Option<u64> {
        (!self.ready.is_empty()).then_some(self.turn)
    }
}
