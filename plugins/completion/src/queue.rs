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
//! - While no ticket of a conversation runs, exactly its first waiting one is
//!   in its lane's `ready` set; while one runs, none is.
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
    running: bool,
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
        self.slots.insert(ticket, Slot { key, lane, conversation, bytes, running: false });
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
        if let Some(name) = &slot.conversation {
            let conversation = self.conversations.get_mut(name).expect("it lives while a ticket names it");
            conversation.running = true;
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
        if slot.running {
            conversation.running = false;
        }
        if conversation.waiting.is_empty() && !conversation.running {
            self.conversations.remove(&name);
        } else {
            self.expose(&name);
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
    /// one of its tickets runs.
    fn expose(&mut self, name: &str) {
        let Some(first) = self.first(name) else { return };
        let lane = self.slots[&first.1].lane;
        self.lanes[lane].ready.insert(first);
    }

    fn first(&self, name: &str) -> Option<Key> {
        let conversation = self.conversations.get(name)?;
        if conversation.running { None } else { conversation.waiting.first().copied() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{
        collection::vec, option, prelude::ProptestConfig, prop_assert, prop_assert_eq, prop_oneof,
    };
    use proptest::{proptest, strategy::Strategy};

    use super::*;

    const LIMITS: [usize; 2] = [1, 3];
    const BOUNDS: Bounds = Bounds { requests: 16, bytes: 1000 };

    fn job(lane: usize, conversation: Option<&str>, priority: i8) -> Job {
        Job { lane, conversation: conversation.map(str::to_owned), priority, bytes: 1 }
    }

    fn started(scheduler: &mut Scheduler) -> Vec<Ticket> {
        std::iter::from_fn(|| scheduler.start()).collect()
    }

    #[test]
    fn the_higher_priority_goes_first_and_the_earlier_one_among_equals() {
        let mut scheduler = Scheduler::new(BOUNDS, &[1]);
        let tickets: Vec<_> =
            [0, 0, 5, -1, 5].map(|priority| scheduler.push(job(0, None, priority)).unwrap()).to_vec();
        let mut order = Vec::new();
        while let Some(ticket) = scheduler.start() {
            order.push(ticket);
            scheduler.release(ticket);
        }
        assert_eq!(order, [2, 4, 0, 1, 3].map(|i: usize| tickets[i]));
    }

    #[test]
    fn a_conversation_is_serial_even_across_lanes_and_does_not_hold_up_others() {
        let mut scheduler = Scheduler::new(BOUNDS, &[4, 4]);
        let first = scheduler.push(job(0, Some("a"), 0)).unwrap();
        let second = scheduler.push(job(1, Some("a"), 0)).unwrap();
        let other = scheduler.push(job(1, Some("b"), 0)).unwrap();
        assert_eq!(started(&mut scheduler), [first, other]);
        scheduler.release(first);
        assert_eq!(started(&mut scheduler), [second]);
    }

    #[test]
    fn an_urgent_request_overtakes_inside_its_conversation() {
        let mut scheduler = Scheduler::new(BOUNDS, &[1]);
        let running = scheduler.push(job(0, Some("a"), 0)).unwrap();
        assert_eq!(started(&mut scheduler), [running]);
        let late = scheduler.push(job(0, Some("a"), 0)).unwrap();
        let urgent = scheduler.push(job(0, Some("a"), 3)).unwrap();
        assert_eq!((scheduler.position(urgent), scheduler.position(late)), (Some(1), Some(2)));
        scheduler.release(running);
        assert_eq!(started(&mut scheduler), [urgent]);
    }

    #[test]
    fn a_stream_of_urgent_requests_does_not_starve_the_others() {
        let mut scheduler = Scheduler::new(BOUNDS, &[1]);
        let patient = scheduler.push(job(0, None, 0)).unwrap();
        for arrived in 1.. {
            scheduler.push(job(0, None, 10)).unwrap();
            let next = scheduler.start().unwrap();
            scheduler.release(next);
            if next == patient {
                assert_eq!(arrived, 10 * BOUNDS.requests);
                break;
            }
        }
    }

    #[test]
    fn what_is_beyond_the_bounds_is_refused_and_changes_nothing() {
        let mut scheduler = Scheduler::new(Bounds { requests: 2, bytes: 10 }, &[1, 1]);
        let big = |bytes| Job { bytes, ..job(0, None, 0) };
        assert_eq!(scheduler.push(big(11)), Err(Error::TooLarge { bytes: 11, max: 10 }));
        let first = scheduler.push(big(9)).unwrap();
        assert_eq!(scheduler.push(big(2)), Err(Error::Bytes { held: 9, max: 10 }));
        scheduler.release(first);
        scheduler.push(big(1)).unwrap();
        scheduler.push(big(1)).unwrap();
        assert_eq!(scheduler.push(big(1)), Err(Error::Requests(2)));
        assert!(scheduler.push(job(1, None, 0)).is_ok(), "another lane has its own queue");
        assert_eq!((scheduler.queued(0), scheduler.queued(1)), (2, 1));
    }

    #[test]
    fn nothing_is_remembered_of_what_has_ended() {
        let mut scheduler = Scheduler::new(BOUNDS, &LIMITS);
        for round in 0..10 {
            let ticket = scheduler.push(job(0, Some(&format!("c{round}")), 0)).unwrap();
            started(&mut scheduler);
            scheduler.release(ticket);
            scheduler.release(ticket);
        }
        assert!(scheduler.slots.is_empty() && scheduler.conversations.is_empty() && scheduler.bytes == 0);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push { lane: usize, conversation: Option<u8>, priority: i8 },
        Release(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let push = (0..LIMITS.len(), option::of(0..4_u8), -2..=2_i8)
            .prop_map(|(lane, conversation, priority)| Step::Push { lane, conversation, priority });
        vec(prop_oneof![3 => push, 2 => (0..64_usize).prop_map(Step::Release)], 0..200)
    }

    /// What a ticket is, as the model of the test knows it.
    #[derive(Debug, Clone)]
    struct Known {
        ticket: Ticket,
        lane: usize,
        conversation: Option<u8>,
        key: Key,
        running: bool,
    }

    /// Whether `one` could start now, by the rules and not by the indexes.
    fn may_start(all: &[Known], one: &Known) -> bool {
        let busy = |other: &&Known| other.running && other.lane == one.lane;
        let kin = |other: &&Known| one.conversation.is_some() && other.conversation == one.conversation;
        !one.running
            && all.iter().filter(busy).count() < LIMITS[one.lane]
            && !all.iter().filter(kin).any(|other| other.running || other.key < one.key)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn every_start_is_the_best_allowed_one_and_none_allowed_is_left_waiting(steps in steps()) {
            let mut scheduler = Scheduler::new(BOUNDS, &LIMITS);
            let mut all: Vec<Known> = Vec::new();
            for step in steps {
                match step {
                    Step::Push { lane, conversation, priority } => {
                        let name = conversation.map(|c| c.to_string());
                        if let Ok(ticket) = scheduler.push(job(lane, name.as_deref(), priority)) {
                            let step = BOUNDS.requests as i64;
                            let key = (ticket as i64 - i64::from(priority) * step, ticket);
                            all.push(Known { ticket, lane, conversation, key, running: false });
                        }
                    }
                    Step::Release(index) if !all.is_empty() => {
                        let known = all.swap_remove(index % all.len());
                        scheduler.release(known.ticket);
                    }
                    Step::Release(_) => {}
                }
                while let Some(ticket) = scheduler.start() {
                    let one = all.iter().find(|known| known.ticket == ticket).unwrap().clone();
                    prop_assert!(may_start(&all, &one), "{ticket} started against the rules");
                    let better = |other: &&Known| {
                        other.lane == one.lane && other.key < one.key && may_start(&all, other)
                    };
                    prop_assert!(!all.iter().any(|other| better(&other)), "{ticket} jumped the queue");
                    all.iter_mut().find(|known| known.ticket == ticket).unwrap().running = true;
                }
                prop_assert!(!all.iter().any(|one| may_start(&all, one)), "an allowed one waits");
                for (lane, limit) in LIMITS.iter().enumerate() {
                    let of = |running| all.iter().filter(|k| k.lane == lane && k.running == running).count();
                    prop_assert_eq!(scheduler.running(lane), of(true));
                    prop_assert_eq!(scheduler.queued(lane), of(false));
                    prop_assert!(scheduler.running(lane) <= *limit);
                }
            }
        }

        #[test]
        fn whatever_is_pushed_is_started_in_the_end(steps in steps()) {
            let mut scheduler = Scheduler::new(BOUNDS, &LIMITS);
            let mut waiting = BTreeSet::new();
            for step in steps {
                if let Step::Push { lane, conversation, priority } = step {
                    let name = conversation.map(|c| c.to_string());
                    waiting.extend(scheduler.push(job(lane, name.as_deref(), priority)));
                }
            }
            while let Some(ticket) = scheduler.start() {
                waiting.remove(&ticket);
                scheduler.release(ticket);
            }
            prop_assert!(waiting.is_empty(), "never started: {waiting:?}");
        }
    }
}
