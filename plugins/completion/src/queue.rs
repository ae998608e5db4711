//! The scheduler: which request may start next.
//!
//! A request belongs to a *lane* (its provider) and perhaps to a
//! conversation. A conversation is one serial queue: its next request starts
//! when the one before has ended, even where that one went to another lane.
//! A lane runs as many requests at once as its limit says.
//!
//! Among requests that may start, the higher priority goes first, and the
//! earlier one among equals. A waiting request gains one level of priority
//! for every [`Bounds::requests`] requests that arrive after it, so a steady
//! stream of urgent requests delays the others but never starves them.
//!
//! It knows no futures, clocks or payloads: requests are tickets.
//!
//! # Invariants
//!
//! - At most `limit` tickets of a lane run, and at most one of a conversation.
//! - While no ticket of a conversation runs or is on its way to another lane,
//!   exactly its first waiting one is in its lane's `ready` set; while one does,
//!   no other is.
//! - A lane with room and a ready ticket is only left so between `push` or
//!   `release` and the `start` that follows.

use std::collections::{BTreeSet, HashMap};

/// Names one request; tickets count upwards in the order of arrival.
pub type Ticket = u64;

/// How much may wait.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Requests waiting in one lane; also the number of later arrivals that
    /// raise a waiting request by one level of priority.
    pub requests: usize,
    /// Bytes of all requests, waiting and running.
    pub bytes: usize,
}

/// What the scheduler has to know of a request.
#[derive(Debug, Clone)]
pub struct Job {
    /// Index of its provider.
    pub lane: usize,
    /// Its conversation; without one it is independent.
    pub conversation: Option<String>,
    /// Higher goes first.
    pub priority: i8,
    /// What it holds in memory.
    pub bytes: usize,
}

/// Why a request cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The lane's queue is full.
    #[error("{0} requests wait already")]
    Requests(usize),
    /// The memory for requests is full.
    #[error("requests hold {held} bytes already, of {max} allowed")]
    Bytes {
        /// Bytes held now.
        held: usize,
        /// The bound.
        max: usize,
    },
    /// The request alone is larger than the memory for all.
    #[error("request of {bytes} bytes is larger than the {max} bytes allowed for all requests together")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The bound.
        max: usize,
    },
}

/// Order of waiting tickets: the virtual time of arrival, then the ticket.
type Key = (i64, Ticket);

#[derive(Debug)]
struct Slot {
    key: Key,
    lane: usize,
    conversation: Option<String>,
    bytes: usize,
    running: bool,
    /// Whether it has its conversation to itself: it runs, or did in another lane.
    begun: bool,
}

#[derive(Debug)]
struct Lane {
    limit: usize,
    running: usize,
    queued: usize,
    ready: BTreeSet<Key>,
}

#[derive(Debug, Default)]
struct Conversation {
    /// Whether one of its tickets has begun.
    busy: bool,
    waiting: BTreeSet<Key>,
}

/// The queues of all providers and conversations.
#[derive(Debug)]
pub struct Scheduler {
    bounds: Bounds,
    lanes: Vec<Lane>,
    slots: HashMap<Ticket, Slot>,
    conversations: HashMap<String, Conversation>,
    bytes: usize,
    arrived: Ticket,
}

impl Scheduler {
    /// A scheduler with one lane for each limit.
    #[must_use]
    pub fn new(bounds: Bounds, limits: &[usize]) -> Self {
        let lane = |&limit: &usize| Lane { limit, running: 0, queued: 0, ready: BTreeSet::new() };
        Self {
            bounds,
            lanes: limits.iter().map(lane).collect(),
            slots: HashMap::new(),
            conversations: HashMap::new(),
            bytes: 0,
            arrived: 0,
        }
    }

    /// Takes a request into its queue. Call [`Self::start`] afterwards.
    ///
    /// # Errors
    ///
    /// Refuses what is beyond the bounds; nothing has changed then.
    pub fn push(&mut self, job: Job) -> Result<Ticket, Error> {
        let Bounds { requests, bytes } = self.bounds;
        if job.bytes > bytes {
            return Err(Error::TooLarge { bytes: job.bytes, max: bytes });
        }
        if self.bytes + job.bytes > bytes {
            return Err(Error::Bytes { held: self.bytes, max: bytes });
        }
        if self.lanes[job.lane].queued >= requests {
            return Err(Error::Requests(requests));
        }
        self.arrived += 1;
        let ticket = self.arrived;
        let step = i64::try_from(requests).unwrap_or(i64::MAX / 256);
        let key = (ticket.cast_signed() - i64::from(job.priority) * step, ticket);
        self.bytes += job.bytes;
        self.lanes[job.lane].queued += 1;
        let Job { lane, conversation, bytes, .. } = job;
        match &conversation {
            None => {
                self.lanes[lane].ready.insert(key);
            }
            Some(name) => {
                self.hide(name);
                self.conversations.entry(name.clone()).or_default().waiting.insert(key);
            }
        }
        let name = conversation.clone();
        self.slots.insert(ticket, Slot { key, lane, conversation, bytes, running: false, begun: false });
        if let Some(name) = name {
            self.expose(&name);
        }
        Ok(ticket)
    }

    /// The next ticket that may run, which counts as running from now on.
    /// Call it until it has none.
    pub fn start(&mut self) -> Option<Ticket> {
        let lane = self.lanes.iter_mut().find(|lane| lane.running < lane.limit && !lane.ready.is_empty())?;
        let key = lane.ready.pop_first()?;
        lane.running += 1;
        lane.queued -= 1;
        let slot = self.slots.get_mut(&key.1).expect("a ready ticket has a slot until it is released");
        slot.running = true;
        slot.begun = true;
        if let Some(name) = &slot.conversation {
            let conversation = self.conversations.get_mut(name).expect("it lives while a ticket names it");
            conversation.busy = true;
            conversation.waiting.remove(&key);
        }
        Some(key.1)
    }

    /// Forgets a ticket, waiting or running; an unknown one is no error. Call
    /// [`Self::start`] afterwards.
    pub fn release(&mut self, ticket: Ticket) {
        let Some(slot) = self.slots.remove(&ticket) else { return };
        self.bytes -= slot.bytes;
        let lane = &mut self.lanes[slot.lane];
        if slot.running {
            lane.running -= 1;
        } else {
            lane.queued -= 1;
            lane.ready.remove(&slot.key);
        }
        let Some(name) = slot.conversation else { return };
        let conversation = self.conversations.get_mut(&name).expect("it lives while a ticket names it");
        conversation.waiting.remove(&slot.key);
        if slot.begun {
            conversation.busy = false;
        }
        if conversation.waiting.is_empty() && !conversation.busy {
            self.conversations.remove(&name);
        } else {
            self.expose(&name);
        }
    }

    /// Lets a ticket wait for another lane, where it has the place that its arrival
    /// and priority give it. One that ran keeps its conversation waiting; one that
    /// waits goes on waiting for it. An unknown one is no error. Call
    /// [`Self::start`] afterwards.
    pub fn transfer(&mut self, ticket: Ticket, lane: usize) {
        let Some(slot) = self.slots.get_mut(&ticket) else { return };
        let from = &mut self.lanes[std::mem::replace(&mut slot.lane, lane)];
        let is_ready = if std::mem::take(&mut slot.running) {
            from.running -= 1;
            true
        } else {
            from.queued -= 1;
            from.ready.remove(&slot.key)
        };
        self.lanes[lane].queued += 1;
        if is_ready {
            self.lanes[lane].ready.insert(slot.key);
        }
    }

    /// 0 for a running ticket, 1 for the next of its lane, and so on; `None`
    /// for an unknown one. A conversation may make it wait longer.
    #[must_use]
    pub fn position(&self, ticket: Ticket) -> Option<usize> {
        let slot = self.slots.get(&ticket)?;
        if slot.running {
            return Some(0);
        }
        let before = |other: &&Slot| !other.running && other.lane == slot.lane && other.key < slot.key;
        Some(1 + self.slots.values().filter(before).count())
    }

    /// Requests of a lane that wait.
    #[must_use]
    pub fn queued(&self, lane: usize) -> usize {
        self.lanes[lane].queued
    }

    /// Requests of a lane that run.
    #[must_use]
    pub fn running(&self, lane: usize) -> usize {
        self.lanes[lane].running
    }

    /// How many requests of a lane may run at once.
    #[must_use]
    pub fn limit(&self, lane: usize) -> usize {
        self.lanes[lane].limit
    }

    /// Takes the conversation's first ticket out of its lane's ready set, so
    /// that another may become the first.
    fn hide(&mut self, name: &str) {
        let Some(first) = self.first(name) else { return };
        let lane = self.slots[&first.1].lane;
        self.lanes[lane].ready.remove(&first);
    }

    /// Puts the conversation's first ticket into its lane's ready set, unless
    /// one of its tickets has begun.
    fn expose(&mut self, name: &str) {
        let Some(first) = self.first(name) else { return };
        let lane = self.slots[&first.1].lane;
        self.lanes[lane].ready.insert(first);
    }

    fn first(&self, name: &str) -> Option<Key> {
        let conversation = self.conversations.get(name)?;
        if conversation.busy { None } else { conversation.waiting.first().copied() }
    }
}

#[cfg(test)]
mod tests;
