//! The scheduler: which request may start next.
//!
//! A request belongs to a *lane* (its provider) and perhaps to a
//! conversation. A conversation is one serial queue: its next request starts
//! when the one before has ended, even where that one went to another lane.
//! A lane runs as many requests at once as its limit says.
//!
//! Among requests that may start, the higher priority goes first. Among equals
//! those who ask take turns: principals, and of one principal its agents, so that
//! nobody waits longer because another one asks a lot. What one asks goes in the
//! order of its arrival. How that is done, and what it promises, says `turns`.
//!
//! Nobody starves. A principal that has to wait for [`Bounds::requests`] starts of its
//! lane goes a level of priority higher, for one turn; inside a conversation, a waiting
//! request gains one for as many requests that arrive after it.
//!
//! Nobody fills a queue alone, nor the memory, nor what runs: a principal may have as
//! many requests wait and run in a lane, and hold as many bytes, as it leaves room for.
//! So whoever comes later starts also while nothing ends. Who may see what is every
//! tenant's may have all that a lane runs, and so may a user who is alone.
//!
//! It knows no futures, clocks or payloads: requests are tickets.
//!
//! # Invariants
//!
//! - At most `limit` tickets of a lane run, and at most one of a conversation.
//! - A principal starts no ticket where as many of it run in the lane as half of what
//!   those of others leave, but for [`Job::whole_lane`].
//! - A principal's waiting tickets in a lane are at most half of what those of others
//!   leave of it, but for what was transferred there; and so are its bytes, but for a
//!   single request.
//! - While no ticket of a conversation runs or is on its way to another lane,
//!   exactly its first waiting one is in its lane's `ready` set; while one does,
//!   no other is.
//! - A lane with room and a ready ticket of one who may start it is only left so
//!   between `push` or `release` and the `start` that follows.

use std::collections::{BTreeSet, HashMap};

use ksi_sdk::protocol::limits::fair_share;

mod turns;

use turns::Ready;

/// Names one request; tickets count upwards in the order of arrival.
pub type Ticket = u64;

/// How much may wait.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Requests waiting in one lane; also the number of starts, or inside a conversation
    /// of later arrivals, that raise what waits by one level of priority.
    pub requests: usize,
    /// Bytes of all requests, waiting and running.
    pub bytes: usize,
}

/// What the scheduler has to know of a request.
#[derive(Debug, Clone)]
pub struct Job {
    /// Index of its provider.
    pub lane: usize,
    /// Whose it is.
    pub asker: Asker,
    /// Its conversation; without one it is independent.
    pub conversation: Option<String>,
    /// Higher goes first.
    pub priority: i8,
    /// What it holds in memory.
    pub bytes: usize,
    /// Whether it starts wherever the lane has room, whatever else of its principal runs.
    pub whole_lane: bool,
}

/// Who takes turns with others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asker {
    /// In whose name it is asked.
    pub principal: String,
    /// Which of its agents asks; empty where that is not told.
    pub agent: String,
}

/// Why a request cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The lane's queue is full.
    #[error("{0} requests wait already")]
    Requests(usize),
    /// The principal has its share of the lane's queue.
    #[error("{0} requests of yours wait already, and the rest of the queue is for others")]
    Share(usize),
    /// The memory for requests is full.
    #[error("requests hold {held} bytes already, of {max} allowed")]
    Bytes {
        /// Bytes held now.
        held: usize,
        /// The bound.
        max: usize,
    },
    /// The principal has its share of the memory for requests.
    #[error("requests of yours hold {own} bytes already, and the rest of {max} is for others")]
    BytesShare {
        /// Bytes that its requests hold now.
        own: usize,
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

/// Order of the waiting tickets of a conversation: the virtual time of arrival, then
/// the ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    arrival: i64,
    ticket: Ticket,
    priority: i8,
}

#[derive(Debug)]
struct Slot {
    key: Key,
    lane: usize,
    asker: Asker,
    conversation: Option<String>,
    bytes: usize,
    whole_lane: bool,
    running: bool,
    /// Whether it has its conversation to itself: it runs, or did in another lane.
    begun: bool,
}

#[derive(Debug)]
struct Lane {
    limit: usize,
    running: usize,
    /// How many of them are whose; of those that are not free to take all.
    runs: HashMap<String, usize>,
    queued: usize,
    /// How many of them are whose.
    shares: HashMap<String, usize>,
    ready: Ready,
}

impl Lane {
    /// Whether one more of a principal may wait; one always may, as long as there is room.
    fn admits(&self, principal: &str, max: usize) -> Result<(), Error> {
        if self.queued >= max {
            return Err(Error::Requests(max));
        }
        let own = self.shares.get(principal).copied().unwrap_or(0);
        if own >= fair_share(max, self.queued - own) { Err(Error::Share(own)) } else { Ok(()) }
    }

    fn enters(&mut self, asker: &Asker) {
        self.queued += 1;
        *self.shares.entry(asker.principal.clone()).or_default() += 1;
    }

    fn leaves(&mut self, asker: &Asker) {
        self.queued -= 1;
        if let Some(share) = self.shares.get_mut(&asker.principal) {
            *share -= 1;
            if *share == 0 {
                self.shares.remove(&asker.principal);
            }
        }
    }

    /// A ticket runs.
    fn begins(&mut self, slot: &Slot) {
        self.running += 1;
        if !slot.whole_lane {
            *self.runs.entry(slot.asker.principal.clone()).or_default() += 1;
        }
        self.hold_back();
    }

    /// A ticket runs no more.
    fn ends(&mut self, slot: &Slot) {
        self.running -= 1;
        let principal = &slot.asker.principal;
        if !slot.whole_lane
            && let Some(own) = self.runs.get_mut(principal)
        {
            *own -= 1;
            if *own == 0 {
                self.runs.remove(principal);
                self.ready.go_on(principal);
            }
        }
        self.hold_back();
    }

    /// Holds back who has its share of what runs, and nobody else.
    fn hold_back(&mut self) {
        for (principal, own) in &self.runs {
            if *own >= fair_share(self.limit, self.running - own) {
                self.ready.hold(principal);
            } else {
                self.ready.go_on(principal);
            }
        }
    }
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
    /// How many of them are whose.
    held: HashMap<String, usize>,
    arrived: Ticket,
}

impl Bounds {
    /// What one level of priority is worth.
    fn step(self) -> i64 {
        i64::try_from(self.requests).unwrap_or(i64::MAX).min(1 << 32)
    }
}

impl Scheduler {
    /// A scheduler with one lane for each limit.
    #[must_use]
    pub fn new(bounds: Bounds, limits: &[usize]) -> Self {
        let lane = |&limit: &usize| Lane {
            limit,
            running: 0,
            runs: HashMap::new(),
            queued: 0,
            shares: HashMap::new(),
            ready: Ready::new(bounds.requests),
        };
        Self {
            bounds,
            lanes: limits.iter().map(lane).collect(),
            slots: HashMap::new(),
            conversations: HashMap::new(),
            bytes: 0,
            held: HashMap::new(),
            arrived: 0,
        }
    }

    /// Takes a request into its queue. Call [`Self::start`] afterwards.
    ///
    /// # Errors
    ///
    /// Refuses what is beyond the bounds; nothing has changed then.
    pub fn push(&mut self, job: Job) -> Result<Ticket, Error> {
        self.has_room(&job)?;
        self.lanes[job.lane].admits(&job.asker.principal, self.bounds.requests)?;
        let Job { lane, asker, conversation, priority, bytes, whole_lane } = job;
        self.arrived += 1;
        let ticket = self.arrived;
        let arrival = ticket.cast_signed() - i64::from(priority) * self.bounds.step();
        let key = Key { arrival, ticket, priority };
        self.bytes += bytes;
        *self.held.entry(asker.principal.clone()).or_default() += bytes;
        self.lanes[lane].enters(&asker);
        let name = conversation.clone();
        let (running, begun) = (false, false);
        let slot = Slot { key, lane, asker, conversation, bytes, whole_lane, running, begun };
        self.slots.insert(ticket, slot);
        let Some(name) = name else {
            self.make_ready(key);
            return Ok(ticket);
        };
        let before = self.first(&name);
        self.conversations.entry(name.clone()).or_default().waiting.insert(key);
        if self.first(&name) == Some(key) {
            self.make_ready(key);
            if let Some(before) = before {
                let slot = &self.slots[&before.ticket];
                self.lanes[slot.lane].ready.remove(&slot.asker, before);
            }
        }
        Ok(ticket)
    }

    /// Whether a request may hold its memory; one of a principal always may, as long as
    /// there is room.
    fn has_room(&self, job: &Job) -> Result<(), Error> {
        let (bytes, max) = (job.bytes, self.bounds.bytes);
        if bytes > max {
            return Err(Error::TooLarge { bytes, max });
        }
        if self.bytes + bytes > max {
            return Err(Error::Bytes { held: self.bytes, max });
        }
        let own = self.held.get(&job.asker.principal).copied().unwrap_or(0);
        let fits = own == 0 || own + bytes <= fair_share(max, self.bytes - own);
        if fits { Ok(()) } else { Err(Error::BytesShare { own, max }) }
    }

    /// The next ticket that may run, which counts as running from now on.
    /// Call it until it has none.
    pub fn start(&mut self) -> Option<Ticket> {
        let mut open = self.lanes.iter_mut().filter(|lane| lane.running < lane.limit);
        let (lane, ticket) = open.find_map(|lane| {
            let ticket = lane.ready.take()?;
            Some((lane, ticket))
        })?;
        let slot = self.slots.get_mut(&ticket).expect("a ready ticket has a slot until it is released");
        lane.leaves(&slot.asker);
        lane.begins(slot);
        slot.running = true;
        slot.begun = true;
        if let Some(name) = &slot.conversation {
            let conversation = self.conversations.get_mut(name).expect("it lives while a ticket names it");
            conversation.busy = true;
            conversation.waiting.remove(&slot.key);
        }
        Some(ticket)
    }

    /// Forgets a ticket, waiting or running; an unknown one is no error. Call
    /// [`Self::start`] afterwards.
    pub fn release(&mut self, ticket: Ticket) {
        let Some(slot) = self.slots.remove(&ticket) else { return };
        self.bytes -= slot.bytes;
        if let Some(held) = self.held.get_mut(&slot.asker.principal) {
            *held -= slot.bytes;
            if *held == 0 {
                self.held.remove(&slot.asker.principal);
            }
        }
        let lane = &mut self.lanes[slot.lane];
        if slot.running {
            lane.ends(&slot);
        } else {
            lane.leaves(&slot.asker);
            lane.ready.remove(&slot.asker, slot.key);
        }
        let Some(name) = slot.conversation else { return };
        let conversation = self.conversations.get_mut(&name).expect("it lives while a ticket names it");
        conversation.waiting.remove(&slot.key);
        if slot.begun {
            conversation.busy = false;
        }
        if conversation.waiting.is_empty() && !conversation.busy {
            self.conversations.remove(&name);
        } else if let Some(first) = self.first(&name) {
            self.make_ready(first);
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
            from.ends(slot);
            true
        } else {
            from.leaves(&slot.asker);
            from.ready.remove(&slot.asker, slot.key)
        };
        self.lanes[lane].enters(&slot.asker);
        if is_ready {
            self.lanes[lane].ready.insert(&slot.asker, slot.key);
        }
    }

    /// The tickets of a lane that wait, in the order of their turns as it is now. A
    /// conversation may make one wait longer.
    #[must_use]
    pub fn waiting(&self, lane: usize) -> Vec<Ticket> {
        let waiting = self.slots.values().filter(|slot| !slot.running && slot.lane == lane);
        self.lanes[lane].ready.order(waiting.map(|slot| (&slot.asker, slot.key)))
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

    /// Puts a waiting ticket into its lane's ready set.
    fn make_ready(&mut self, key: Key) {
        let slot = &self.slots[&key.ticket];
        self.lanes[slot.lane].ready.insert(&slot.asker, key);
    }

    /// The first ticket of a conversation, unless one has begun.
    fn first(&self, name: &str) -> Option<Key> {
        let conversation = self.conversations.get(name)?;
        if conversation.busy { None } else { conversation.waiting.first().copied() }
    }
}

#[cfg(test)]
mod tests;
