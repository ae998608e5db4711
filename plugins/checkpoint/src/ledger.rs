//! The ledger: every piece of durable work, from its acceptance to its end.
//!
//! A pure state machine. Time and chance are arguments; what comes in is a
//! method, what comes out is a [`Step`]: the changes of the keyspace that make
//! the transition, and what is to be done once they are durable. It does no
//! I/O, runs nothing and answers nobody; [`crate::work`] does. It holds indexes
//! of what lives and what is still kept, never what was asked or answered.
//!
//! ```text
//!            +-> leased -+-> done, failed, unknown, dead, cancelled
//! accepted --+     ^     |
//!   |              |     v
//!   +-> expired    +-- waiting -> expired, cancelled
//! ```
//!
//! Every transition is one write of the entry. The attempt is written before
//! it is begun, so an attempt that takes the daemon with it is known. What is
//! leased when a daemon dies is begun again: most daemons die of what comes from
//! outside. What sees another death becomes a *suspect*: suspects run
//! one at a time, later each time the one that ran alone died with the daemon, and
//! only that one is blamed. So poison is found, innocents are not blamed for it,
//! and the daemon comes up in between. The same for the deaths of a plugin is in
//! `ledger/doubt.rs`. What is leased when only the journal stops goes on: the
//! process that began it knows it.
//!
//! # Invariants
//!
//! - What is accepted ends exactly once, unless an operator asks for more.
//! - Two attempts of one entry never run at a time; an answer to an older lease
//!   changes nothing.
//! - What one asks of one event is begun in the order of its acceptance; one that
//!   comes back takes its old place. At most [`Limits::in_flight`] of an event run,
//!   of one principal at most half of what the others leave of that, and whoever
//!   had no turn for the longest time comes next.
//! - An entry whose time has passed is not begun.
//! - A key that is remembered names an entry that is there: what has ended under
//!   it is kept for as long, at least its end.
//! - The entries in memory equal those that a replay of all steps finds.
//!
//! # Failure
//!
//! Acceptance is refused `busy` when too much waits, and `conflict` where a key
//! was used for something else. Nothing else can fail: what makes no sense any
//! more is an empty step.

mod attempt;
mod digest;
mod doubt;
mod entry;
mod id;
mod jitter;
mod lane;
mod recovery;
mod retention;
mod shares;
pub mod verdict;

use std::collections::{BTreeSet, HashMap};

use ksi_sdk::protocol::{Bytes, Code, EventName, Refusal, work::Policy};

use doubt::Doubts;
pub use entry::{Ending, Entry, Key, KeyHash, Remembered, State, Trouble};
pub use id::Id;
pub(crate) use id::not_found;
use jitter::Jitter;
use lane::Lanes;
pub use recovery::Begun;
use retention::{Bounds, Retention};
use shares::Shares;

use crate::record::{Batch, Seq};

/// How long an idempotency key is remembered after its work ended: a day, so
/// that whoever tries again after a night gets the old answer.
pub const KEY_MS: u64 = 24 * 3600 * 1000;

/// What the ledger may hold.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Entries of one event that run at a time; of one principal not more than its
    /// [`fair_share`](ksi_sdk::protocol::limits::fair_share).
    pub in_flight: usize,
    /// Entries that have not ended; more are refused `busy`, and so is what is more
    /// than one's share of them.
    pub pending: usize,
    /// Bytes of their payloads, by the same rules.
    pub pending_bytes: usize,
    /// Ended entries that are kept whole.
    pub kept: usize,
    /// Bytes of their results and payloads.
    pub kept_bytes: u64,
    /// Crashes of one plugin in a minute, at least one, after which work that may be to blame waits: one less than those
    /// that hold a plugin, where its restart policy is the default.
    pub crashes_per_minute: usize,
    /// Entries beyond these of which the end is kept, for their keys. Each takes
    /// some 80 bytes of memory.
    pub keys: usize,
    /// How long dead and unknown ones are kept at least, milliseconds.
    pub dead_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            in_flight: 256,
            pending: 1_000_000,
            pending_bytes: 4 << 30,
            kept: 100_000,
            kept_bytes: 1024 * 1024 * 1024,
            crashes_per_minute: 4,
            keys: 1_000_000,
            dead_ms: 30 * 24 * 3600 * 1000,
        }
    }
}

/// What one input comes to.
#[derive(Debug, Default)]
pub struct Step {
    /// Changes of the keyspace, to be journaled together.
    pub batch: Batch,
    /// What is to be done once they are durable, in order.
    pub effects: Vec<Effect>,
}

/// Something to be done once its step is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Begin an attempt.
    Run(Run),
    /// Cancel an attempt: nobody wants its answer any more. Needs not wait.
    Abandon {
        /// Whose.
        id: Id,
        /// Which.
        lease: u32,
    },
    /// Tell whoever waits for it.
    Ended(Ended),
}

/// An attempt to be begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Whose.
    pub id: Id,
    /// Which; its answer must name it.
    pub lease: u32,
    /// What is asked.
    pub event: EventName,
    /// Who asked.
    pub origin: String,
    /// In whose name.
    pub principal: Option<String>,
    /// Whose it is.
    pub tenant: Option<String>,
    /// What it belongs to.
    pub correlation_id: Option<String>,
}

/// An entry that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Which.
    pub id: Id,
    /// What was asked.
    pub event: EventName,
    /// How it ended.
    pub how: Ending,
    /// Why, where it is not done.
    pub code: Option<Code>,
    /// Attempts that were begun and count.
    pub attempts: u32,
    /// What it belongs to.
    pub correlation_id: Option<String>,
    /// Whose it is.
    pub tenant: Option<String>,
}

/// Work to be accepted.
#[derive(Debug, Clone)]
pub struct Order {
    /// A fresh name for it.
    pub id: Id,
    /// Position that its acceptance will have in the journal.
    pub seq: Seq,
    /// What is asked.
    pub event: EventName,
    /// Who asks.
    pub origin: String,
    /// In whose name.
    pub principal: Option<String>,
    /// Whose it is.
    pub tenant: Option<String>,
    /// What it belongs to.
    pub correlation_id: Option<String>,
    /// How it is to be carried out.
    pub policy: Policy,
    /// The asker's key for it.
    pub key: Option<Key>,
}

/// What becomes of an order.
#[derive(Debug)]
pub enum Admission {
    /// It is new work.
    New {
        /// Its name, which may differ from the one in the order.
        id: Id,
        /// What is to be written and done.
        step: Step,
    },
    /// It is work that was accepted before under the same key.
    Same {
        /// Its name.
        id: Id,
        /// Position of its acceptance.
        seq: Seq,
    },
}

/// Figures for a status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Entries that have not ended.
    pub pending: usize,
    /// Bytes of their payloads.
    pub pending_bytes: usize,
    /// Those that run.
    pub running: usize,
    /// Those that wait to run alone.
    pub suspects: usize,
    /// Ended entries that are kept whole.
    pub kept: usize,
    /// What they take, bytes.
    pub kept_bytes: u64,
    /// Those of which only the end is kept, for their keys.
    pub remembered: usize,
}

/// The state machine.
#[derive(Debug)]
pub struct Ledger {
    limits: Limits,
    epoch: u64,
    jitter: Jitter,
    /// The newest name; later ones are greater.
    last: Option<Id>,
    /// Boxed, since the table has room for twice as many at times.
    live: HashMap<Id, Box<Entry>>,
    /// Of what lives.
    shares: Shares,
    lanes: Lanes,
    doubts: Doubts,
    /// Idempotency keys of what lives. Those of what ended are in the keyspace.
    keys: HashMap<KeyHash, Id>,
    /// When something happens to an entry by itself; each that lives is in it
    /// once.
    due: BTreeSet<(u64, Id)>,
    /// Suspects that wait, those that were blamed least first.
    suspects: BTreeSet<(usize, Id)>,
    /// The suspect that runs.
    alone: Option<Id>,
    /// Before this no suspect is begun.
    suspects_from_ms: u64,
    ended: Retention,
    stopping: bool,
}

impl Ledger {
    /// An empty ledger of the start with this number. What was there before is
    /// put in with [`Ledger::load`].
    #[must_use]
    pub fn new(limits: Limits, epoch: u64, seed: u64) -> Self {
        let doubts = Doubts::new(limits.crashes_per_minute);
        let Limits { kept: count, kept_bytes: bytes, keys, dead_ms, .. } = limits;
        let bounds = Bounds { count, bytes, keys, dead_ms };
        Self {
            limits,
            epoch,
            jitter: Jitter::new(seed),
            last: None,
            live: HashMap::new(),
            shares: Shares::default(),
            lanes: Lanes::default(),
            doubts,
            keys: HashMap::new(),
            due: BTreeSet::new(),
            suspects: BTreeSet::new(),
            alone: None,
            suspects_from_ms: 0,
            ended: Retention::new(bounds),
            stopping: false,
        }
    }

    /// Takes work in. `remembered` is what the keyspace has for the order's key
    /// at this moment, where it has one.
    ///
    /// # Errors
    ///
    /// `conflict` where the key was used for another payload, `busy` when too
    /// much work waits.
    pub fn accept(
        &mut self,
        now_ms: u64,
        order: Order,
        payload: Bytes,
        remembered: Option<&Remembered>,
    ) -> Result<Admission, Refusal> {
        let hash = order.key.as_ref().map(|key| key.hash(&order.event, order.tenant.as_deref()));
        if let (Some(key), Some(hash)) = (&order.key, hash)
            && let Some((id, seq, known)) = self.known(now_ms, hash, remembered)
        {
            // Releases before this one knew a payload by its bytes.
            return match known == key.payload || known == digest::of_bytes(&payload) {
                true => Ok(Admission::Same { id, seq }),
                false => Err(conflict(&order.event, id)),
            };
        }
        self.shares.admit(&self.limits, order.principal.as_deref(), payload.len())?;
        let id = order.id.after(self.last);
        self.last = Some(id);
        if let Some(hash) = hash {
            self.keys.insert(hash, id);
        }
        let lane_index = self.lanes.of(&order.event);
        let lane = self.lanes.get(lane_index);
        let policy = lane.share(order.policy);
        let entry = Entry {
            event: lane.event.clone(),
            seq: order.seq,
            accepted_ms: now_ms,
            expires_ms: now_ms.saturating_add(policy.expires_ms),
            origin: order.origin.into(),
            principal: order.principal.map(Into::into),
            tenant: order.tenant.map(Into::into),
            correlation_id: order.correlation_id.map(Into::into),
            key: order.key.map(Box::new),
            state: State::Accepted,
            attempts: 0,
            // An attempt is what was asked for.
            attempts_max: policy.attempts.max(1),
            leases: 0,
            payload_bytes: size(&payload),
            result_bytes: 0,
            trouble: None,
            due_ms: 0,
            lane: lane_index,
            policy,
        };
        let mut step = Step::default();
        step.batch.put(id.payload_key(), payload);
        self.admit(id, entry);
        if self.may_begin(now_ms, id) {
            self.lease(now_ms, id, false, &mut step);
        } else {
            self.enqueue(id);
        }
        self.write(id, &mut step);
        Ok(Admission::New { id, step })
    }

    /// Takes back an acceptance whose step could not be journaled.
    pub fn withdraw(&mut self, id: Id) {
        if self.live.get(&id).is_some_and(|entry| matches!(entry.state, State::Leased { .. })) {
            self.release(id);
        }
        self.unlink(id);
    }

    /// Ends an entry that has not ended, whether it runs or not. An empty step
    /// where it has.
    pub fn cancel(&mut self, now_ms: u64, id: Id) -> Step {
        let mut step = Step::default();
        let Some(entry) = self.live.get(&id) else { return step };
        let lease = entry.leases;
        if matches!(entry.state, State::Leased { .. }) {
            self.release(id);
            step.effects.push(Effect::Abandon { id, lease });
        }
        let refusal = Refusal::new(Code::Cancelled, "the work was cancelled");
        self.end(now_ms, id, Ending::Cancelled, Some(refusal), &mut step);
        self.pump(now_ms, &mut step);
        step
    }

    /// Puts an ended entry, as it is stored, back into the queue. Its attempts
    /// are counted on; it gets as many new ones as its policy has.
    ///
    /// # Errors
    ///
    /// `conflict` where it has not ended, or ended well, or what was asked is not
    /// kept any more; `not_found` where it is forgotten.
    pub fn retry(&mut self, now_ms: u64, id: Id, mut entry: Entry) -> Result<Step, Refusal> {
        let State::Ended { how, at_ms } = entry.state else { return Err(not_ended(id)) };
        if self.live.contains_key(&id) {
            return Err(not_ended(id));
        }
        if !how.keeps_payload() {
            let message = format!("the work {id} ended as {}, and is not done again", how.state());
            return Err(Refusal::new(Code::Conflict, message)
                .hint("ask for the event again, with another idempotency key if it has one"));
        }
        self.ended.take_whole(id, &entry)?;
        entry.state = State::Accepted;
        entry.attempts_max = entry.attempts.saturating_add(entry.policy.attempts.max(1));
        entry.expires_ms = now_ms.saturating_add(entry.policy.expires_ms);
        // What ended it is not what holds it up now.
        entry.trouble = None;
        if now_ms.saturating_sub(at_ms) >= KEY_MS {
            // The key is forgotten, and may be another's by now.
            entry.key = None;
        }
        self.adopt(id, entry);
        self.enqueue(id);
        let mut step = Step::default();
        self.pump(now_ms, &mut step);
        if self.live.get(&id).is_some_and(|entry| entry.state == State::Accepted) {
            self.write(id, &mut step);
        }
        Ok(step)
    }

    /// Nothing is begun from now on.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// Whether nothing is begun any more.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Whether this entry stays as it is until the next start, since it does not run
    /// and is not begun any more.
    #[must_use]
    pub fn rests(&self, id: Id) -> bool {
        let runs = |entry: &Entry| matches!(entry.state, State::Leased { .. });
        self.stopping && self.live.get(&id).is_some_and(|entry| !runs(entry))
    }

    /// Whether this entry has not ended.
    #[must_use]
    pub fn is_live(&self, id: Id) -> bool {
        self.live.contains_key(&id)
    }

    /// Figures for a status.
    #[must_use]
    pub fn figures(&self) -> Figures {
        Figures {
            pending: self.live.len(),
            pending_bytes: self.shares.bytes(),
            running: self.lanes.in_flight(),
            suspects: self.suspects.len() + self.doubts.waiting(),
            kept: self.ended.count(),
            kept_bytes: self.ended.bytes(),
            remembered: self.ended.remembered(),
        }
    }

    /// Whose this key is, if anybody's: name, position, payload.
    fn known(
        &self,
        now_ms: u64,
        hash: KeyHash,
        remembered: Option<&Remembered>,
    ) -> Option<(Id, Seq, [u8; 16])> {
        if let Some(id) = self.keys.get(&hash) {
            let entry = self.live.get(id)?;
            return Some((*id, entry.seq, entry.key.as_ref()?.payload));
        }
        let remembered = remembered.filter(|remembered| now_ms < remembered.until_ms)?;
        Some((remembered.id, remembered.seq, remembered.payload))
    }
}

fn conflict(event: &EventName, id: Id) -> Refusal {
    let message = format!("the idempotency key was used for another payload of `{event}`: the work {id}");
    Refusal::new(Code::Conflict, message)
        .hint("a new request needs a new key")
        .details(serde_json::json!({ "request_id": id.to_string() }))
}

fn not_ended(id: Id) -> Refusal {
    Refusal::new(Code::Conflict, format!("the work {id} has not ended")).hint("`ksi work cancel` ends it")
}

/// Payloads are at most a frame, 16 MiB.
fn size(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
