//! Pending: what somebody still has to answer.
//!
//! A sharded map from tokens to requests that wait for their owner and to
//! words that are waited for from interceptors, and when the first of them ends of
//! itself. Whoever takes an entry out is the only one who may end it; that is the
//! whole of the race between answer, cancel, timeout and detachment.
//!
//! # Invariants
//!
//! - No two shards are locked at once, and nothing else is locked under one.
//! - An entry with a holder is charged to it, until it is taken out of the table
//!   or the holder off it.
//! - `earliest` is never later than the end of an entry whose insertion
//!   has returned: a scan resets it first and looks second, an insertion writes
//!   first and lowers it second.

use std::{
    collections::hash_map,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use dashmap::DashMap;
use foldhash::fast::RandomState;
use ksi_identity::Caller;
use ksi_protocol::{
    EventName, Refusal,
    frame::{Id, Stage},
};

use crate::{
    effects::Effects,
    envelope::{Answer, Envelope, Token},
    interceptors::Remaining,
    port::{EndpointId, Hold, Port, Role},
    refusals::{self, Fault},
};

/// Something that is waited for.
pub(crate) struct Pending<H> {
    /// Who has to speak: owner or interceptor. `None` for a request over which
    /// interceptors have the word.
    pub(crate) holder: Option<Hold<H>>,
    /// When it is too late for whoever has to speak, and for all that exists on its behalf.
    pub(crate) deadline_ms: u64,
    /// The entry on whose behalf it exists.
    pub(crate) parent: Option<Token>,
    /// The entries that exist on its behalf and end with it.
    pub(crate) children: Vec<Token>,
    /// What it is.
    pub(crate) matter: Matter<H>,
}

pub(crate) enum Matter<H> {
    /// Somebody waits for an answer.
    Request(Request<H>),
    /// The kernel waits for an interceptor.
    Word(Box<Word<H>>),
    /// The port that keeps work has a durable fact to write down. Nobody waits
    /// for that; it is here so that the port is charged until it has.
    Fact,
}

/// A request: what its answers need.
pub(crate) struct Request<H> {
    pub(crate) asker: Arc<Port<H>>,
    pub(crate) id: Id,
    pub(crate) event: EventName,
    pub(crate) correlation_id: Option<Arc<str>>,
    pub(crate) asked_ms: u64,
    /// In whose name it is asked.
    pub(crate) caller: Arc<Caller>,
    /// What its asker must hold until it has its answer.
    pub(crate) bit: Option<u16>,
    /// Credit that came before there was an owner to pass it to.
    pub(crate) credit: u32,
    /// Whether the daemon answers it, or has answered: that has decided what it does by then.
    pub(crate) is_the_daemons: bool,
}

impl<H> Request<H> {
    /// Whether its asker may not ask it any more, and shall not have the answer, which
    /// somebody else than the daemon gives.
    pub(crate) fn is_revoked(&self, now_ms: u64) -> bool {
        !self.is_the_daemons && self.bit.is_some_and(|bit| !self.asker.authority.holds(bit, now_ms))
    }

    /// When that will be so, whatever is taken away before.
    fn expires_ms(&self) -> u64 {
        let lasts = self.is_the_daemons || self.bit.is_none();
        if lasts { u64::MAX } else { self.asker.authority.caller.principal.expires_ms }
    }
}

/// An interceptor's turn.
pub(crate) struct Word<H> {
    /// What goes on or ends with the verdict.
    pub(crate) held: Held,
    /// Who is to be heard next.
    pub(crate) rest: Remaining<H>,
    /// Whether it goes on without a verdict too.
    pub(crate) fail_open: bool,
    /// When the question was put.
    pub(crate) asked_ms: u64,
    /// When what is held is too late.
    pub(crate) deadline_ms: u64,
    /// On whose account it is.
    pub(crate) payer: Arc<str>,
}

impl<H> Word<H> {
    /// The turn of nobody yet.
    pub(crate) fn over(held: Held, payer: Arc<str>, rest: Remaining<H>, deadline_ms: u64) -> Box<Self> {
        Box::new(Self { held, rest, fail_open: false, asked_ms: 0, deadline_ms, payer })
    }
}

/// What interceptors hold up.
pub(crate) enum Held {
    /// A request that no owner has seen yet.
    Request { token: Token, envelope: Envelope },
    /// A reply or an end, whichever `last` makes of its payload, that its asker
    /// has not seen yet.
    Answer { token: Token, event: EventName, origin: Arc<str>, data: Bytes, last: fn(Bytes) -> Answer },
    /// Something emitted that nobody has seen yet; where it is durable, under
    /// the token by which the port that keeps work is charged for it. The bit is
    /// that of what it takes to hear of it.
    Emission { from: EndpointId, envelope: Envelope, bit: u16, kept: Option<Token> },
}

impl Held {
    pub(crate) fn stage(&self) -> Stage {
        match self {
            Self::Answer { .. } => Stage::After,
            Self::Request { .. } | Self::Emission { .. } => Stage::Before,
        }
    }

    pub(crate) fn request(&self) -> Option<Token> {
        match self {
            Self::Request { token, .. } | Self::Answer { token, .. } => Some(*token),
            Self::Emission { .. } => None,
        }
    }

    pub(crate) fn event(&self) -> &EventName {
        match self {
            Self::Request { envelope, .. } | Self::Emission { envelope, .. } => &envelope.event,
            Self::Answer { event, .. } => event,
        }
    }

    pub(crate) fn origin(&self) -> &Arc<str> {
        match self {
            Self::Request { envelope, .. } | Self::Emission { envelope, .. } => &envelope.origin,
            Self::Answer { origin, .. } => origin,
        }
    }

    pub(crate) fn caller(&self) -> Option<&Arc<Caller>> {
        match self {
            Self::Request { envelope, .. } | Self::Emission { envelope, .. } => Some(&envelope.caller),
            Self::Answer { .. } => None,
        }
    }

    fn correlation_id(&self) -> Option<Arc<str>> {
        match self {
            Self::Request { envelope, .. } | Self::Emission { envelope, .. } => {
                envelope.correlation_id.clone()
            }
            Self::Answer { .. } => None,
        }
    }

    pub(crate) fn data(&mut self) -> &mut Bytes {
        match self {
            Self::Request { envelope, .. } | Self::Emission { envelope, .. } => &mut envelope.data,
            Self::Answer { data, .. } => data,
        }
    }
}

impl<H> Pending<H> {
    /// When it ends of itself: at its deadline, or when the right to it expires before that.
    pub(crate) fn ends_ms(&self) -> u64 {
        match &self.matter {
            Matter::Request(request) => self.deadline_ms.min(request.expires_ms()),
            Matter::Word(_) | Matter::Fact => self.deadline_ms,
        }
    }

    pub(crate) fn is_held_by(&self, port: &Port<H>) -> bool {
        self.holder.as_ref().is_some_and(|hold| hold.port.id == port.id)
    }

    pub(crate) fn is_request(&self) -> bool {
        matches!(self.matter, Matter::Request(_))
    }

    pub(crate) fn is_word(&self) -> bool {
        matches!(self.matter, Matter::Word(_))
    }

    /// Where to send what is said to a request.
    pub(crate) fn address(&self) -> Option<Address<H>> {
        let Matter::Request(request) = &self.matter else { return None };
        Some(Address {
            asker: Arc::clone(&request.asker),
            id: request.id,
            event: request.event.clone(),
            correlation_id: request.correlation_id.clone(),
            bit: request.bit,
        })
    }

    pub(crate) fn is_of_a_client(&self) -> bool {
        matches!(&self.matter, Matter::Request(request) if request.asker.role == Role::Client)
    }
}

/// What a chunk needs to reach its asker.
pub(crate) struct Address<H> {
    pub(crate) asker: Arc<Port<H>>,
    pub(crate) id: Id,
    pub(crate) event: EventName,
    pub(crate) correlation_id: Option<Arc<str>>,
    /// As of the request.
    pub(crate) bit: Option<u16>,
}

impl<H> Address<H> {
    /// Whether the asker may still ask what it waits for.
    pub(crate) fn may_hear(&self, now_ms: u64) -> bool {
        self.bit.is_none_or(|bit| self.asker.authority.holds(bit, now_ms))
    }

    /// What the asker is told where it may not any more.
    pub(crate) fn revoked(&self, now_ms: u64) -> Refusal {
        refusals::revoked(&self.asker.authority.caller, &self.event, now_ms)
    }
}

/// What a request or word passes on to what is sent on its behalf.
#[derive(Default)]
pub(crate) struct Cause {
    pub(crate) deadline_ms: Option<u64>,
    pub(crate) correlation_id: Option<Arc<str>>,
    pub(crate) caller: Option<Arc<Caller>>,
}

/// All that is waited for.
pub(crate) struct Table<H> {
    entries: DashMap<Token, Pending<H>, RandomState>,
    last: AtomicU64,
    earliest: AtomicU64,
}

impl<H> Table<H> {
    pub(crate) fn new() -> Self {
        Self { entries: DashMap::default(), last: AtomicU64::new(0), earliest: AtomicU64::new(u64::MAX) }
    }

    pub(crate) fn issue(&self) -> Token {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn insert(&self, token: Token, entry: Pending<H>) {
        self.entries.insert(token, entry);
    }

    /// Inserts a request and charges its asker, both or neither.
    pub(crate) fn open(
        &self,
        token: Token,
        id: Id,
        asker: &Port<H>,
        entry: Pending<H>,
    ) -> Result<(), Refusal> {
        let mut asks = asker.asks();
        if !asker.is_open() {
            return Err(refusals::detached());
        }
        let limit = asker.quota.in_flight;
        let full = asks.len() >= limit as usize;
        match asks.entry(id) {
            hash_map::Entry::Occupied(_) => Err(refusals::duplicate_request(id)),
            hash_map::Entry::Vacant(_) if full => Err(refusals::asker_busy(limit)),
            hash_map::Entry::Vacant(ask) => {
                self.entries.insert(token, entry);
                ask.insert(token);
                Ok(())
            }
        }
    }

    /// Takes an entry out where it is as the caller thinks.
    pub(crate) fn take_if(&self, token: Token, is: impl FnOnce(&Pending<H>) -> bool) -> Option<Pending<H>> {
        self.entries.remove_if(&token, |_, entry| is(entry)).map(|(_, entry)| entry)
    }

    pub(crate) fn take(&self, token: Token) -> Option<Pending<H>> {
        self.take_if(token, |_| true)
    }

    /// Lets `child` end with `parent`; false where that has ended already.
    pub(crate) fn link(&self, parent: Token, child: Token) -> bool {
        self.entries.get_mut(&parent).map(|mut entry| entry.children.push(child)).is_some()
    }

    pub(crate) fn unlink(&self, parent: Token, child: Token) {
        if let Some(mut entry) = self.entries.get_mut(&parent) {
            entry.children.retain(|&other| other != child);
        }
    }

    /// Entrusts a request to an owner that is charged for it. Returns the
    /// credit that came early, or `None` where the request has ended.
    pub(crate) fn entrust(&self, token: Token, hold: Hold<H>) -> Option<u32> {
        let mut entry = self.entries.get_mut(&token)?;
        let is_the_daemons = hold.port.role == Role::Daemon;
        entry.holder = Some(hold);
        match &mut entry.matter {
            Matter::Request(request) => {
                request.is_the_daemons = is_the_daemons;
                Some(request.credit)
            }
            Matter::Word(_) | Matter::Fact => None,
        }
    }

    /// Who has to speak.
    pub(crate) fn holder(&self, token: Token) -> Option<Arc<Port<H>>> {
        self.entries.get(&token)?.holder.as_ref().map(|hold| Arc::clone(&hold.port))
    }

    /// Takes a request off its owner, who has spoken, where `wanted` finds
    /// somebody who wants a word about that. Returns these, the deadline and the
    /// charge.
    pub(crate) fn review(
        &self,
        token: Token,
        owner: &Port<H>,
        wanted: impl FnOnce(&Request<H>) -> Option<Remaining<H>>,
    ) -> Option<(Remaining<H>, EventName, u64, Hold<H>)> {
        let mut entry = self.entries.get_mut(&token).filter(|entry| entry.is_held_by(owner))?;
        let Matter::Request(request) = &entry.matter else { return None };
        let rest = wanted(request)?;
        let event = request.event.clone();
        let hold = entry.holder.take()?;
        Some((rest, event, entry.deadline_ms, hold))
    }

    /// Where to send a chunk of a request that `owner` holds.
    pub(crate) fn address(&self, token: Token, owner: &Port<H>) -> Option<Address<H>> {
        self.entries.get(&token).filter(|entry| entry.is_held_by(owner))?.address()
    }

    /// Who is to be told of credit; without an owner it is put aside.
    pub(crate) fn credit(&self, token: Token, n: u32) -> Option<Arc<Port<H>>> {
        let mut entry = self.entries.get_mut(&token)?;
        let entry = &mut *entry;
        if let (None, Matter::Request(request)) = (&entry.holder, &mut entry.matter) {
            request.credit = request.credit.saturating_add(n);
        }
        entry.holder.as_ref().map(|hold| Arc::clone(&hold.port))
    }

    /// What `port` holds under this token, for what comes of it.
    pub(crate) fn cause(&self, port: &Port<H>, token: Token) -> Result<Cause, Refusal> {
        let entry = self.entries.get(&token).ok_or_else(|| refusals::parent_ended(token))?;
        if !entry.is_held_by(port) {
            return Err(refusals::not_the_parent(token));
        }
        Ok(match &entry.matter {
            Matter::Request(request) => Cause {
                deadline_ms: Some(entry.deadline_ms),
                correlation_id: request.correlation_id.clone(),
                caller: Some(Arc::clone(&request.caller)),
            },
            Matter::Word(word) => Cause {
                deadline_ms: Some(word.deadline_ms),
                correlation_id: word.held.correlation_id(),
                caller: word.held.caller().cloned(),
            },
            Matter::Fact => Cause::default(),
        })
    }

    /// Why a port cannot answer a token; `None` where it has ended, or its
    /// owner has spoken already.
    pub(crate) fn fault(&self, token: Token, port: &Port<H>) -> Option<Fault> {
        let Some(entry) = self.entries.get(&token) else {
            let given_out = (1..=self.last.load(Ordering::Relaxed)).contains(&token);
            return (!given_out).then_some(Fault::Unknown(token));
        };
        let wrong = if entry.is_held_by(port) { Fault::WrongKind } else { Fault::NotTheirs };
        entry.holder.as_ref().map(|_| wrong(token))
    }

    /// All entries that are like this, in order. Looks at all there are.
    pub(crate) fn all(&self, are: impl Fn(&Pending<H>) -> bool) -> Vec<Token> {
        let mut all: Vec<_> =
            self.entries.iter().filter(|entry| are(entry)).map(|entry| *entry.key()).collect();
        all.sort_unstable();
        all
    }

    /// Requests that somebody waits for. Looks at all entries.
    pub(crate) fn requests(&self) -> usize {
        self.entries.iter().filter(|entry| entry.is_request()).count()
    }

    /// Takes note of when an entry ends, and tells the caller where none does earlier.
    pub(crate) fn schedule(&self, ends_ms: u64, effects: &mut Effects<H>) {
        // Read first: nearly always there is an earlier one, and then the
        // line stays shared between the processors.
        if ends_ms < self.earliest.load(Ordering::SeqCst)
            && ends_ms < self.earliest.fetch_min(ends_ms, Ordering::SeqCst)
        {
            effects.deadline = Some(effects.deadline.map_or(ends_ms, |other| other.min(ends_ms)));
        }
    }

    pub(crate) fn earliest(&self) -> Option<u64> {
        Some(self.earliest.load(Ordering::SeqCst)).filter(|&deadline| deadline != u64::MAX)
    }

    /// What is due, earliest first.
    pub(crate) fn due(&self, now_ms: u64) -> Vec<Token> {
        self.earliest.swap(u64::MAX, Ordering::SeqCst);
        let mut due = Vec::new();
        let mut next = u64::MAX;
        for entry in &self.entries {
            let ends_ms = entry.ends_ms();
            if ends_ms <= now_ms {
                due.push((ends_ms, *entry.key()));
            } else {
                next = next.min(ends_ms);
            }
        }
        self.earliest.fetch_min(next, Ordering::SeqCst);
        due.sort_unstable();
        due.into_iter().map(|(_, token)| token).collect()
    }
}
