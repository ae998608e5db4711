//! Events on their way from the connection to one subscription.
//!
//! Bounded in number and bytes. The task that reads the socket never waits
//! here: when the consumer is slow, the oldest events are dropped and counted.
//!
//! # Invariants
//!
//! - Every sequence number that the daemon sent is either handed out or counted
//!   in a gap that is handed out where it was.

use std::{
    collections::{HashMap, VecDeque},
    sync::Mutex,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use ksi_protocol::frame::{Class, Event, Gap};

use crate::{Error, incoming::Run, keep_waker, lock};

/// Bytes that may wait in one subscription.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// Events beyond this many are copied out of the buffer that they arrived in:
/// a slow consumer must not keep whole buffers alive for a few events each.
const SHARED_MAX: usize = 1024;

/// Reconnections that are told one by one; of more, the oldest two are told as
/// one.
const EPOCHS_MAX: usize = 16;

/// What waits.
#[derive(Debug)]
pub(crate) enum Entry {
    /// Events that are still encoded.
    Events(Run),
    /// An event in a form that only the long way decodes.
    Event(Box<Event>),
    /// Events that the daemon dropped.
    Gap(Gap),
}

impl Entry {
    /// How many events it stands for, and which.
    fn span(&self) -> Lost {
        match self {
            Self::Events(run) => {
                let (from, to) = run.span();
                Lost { missed: run.len() as u64, from, to }
            }
            Self::Event(event) => Lost { missed: 1, from: event.seq, to: event.seq },
            Self::Gap(gap) => Lost { missed: gap.missed, from: gap.from_seq, to: gap.to_seq },
        }
    }

    /// How much of the limit it takes.
    fn weight(&self) -> usize {
        match self {
            Self::Events(run) => run.len(),
            Self::Event(_) | Self::Gap(_) => 1,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Events(run) => run.bytes(),
            Self::Event(event) => event.data.len(),
            Self::Gap(_) => 0,
        }
    }
}

/// Events that were dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) missed: u64,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// What came over one connection and was not handed out yet, in the order in
/// which it is handed out.
#[derive(Debug, Default)]
pub(crate) struct Epoch {
    /// It began with a reconnect, with or without a restart of the daemon.
    pub(crate) restarted: Option<bool>,
    /// What was dropped before the first entry.
    pub(crate) lost: Option<Lost>,
    pub(crate) entries: VecDeque<Entry>,
    weight: usize,
    bytes: usize,
    /// For [`Class::Latest`]: where the newest event of a name waits, counted
    /// from the first entry that this epoch ever had.
    newest: HashMap<Bytes, usize>,
    /// Entries that were dropped from the front.
    dropped: usize,
}

impl Epoch {
    fn is_empty(&self) -> bool {
        self.restarted.is_none() && self.lost.is_none() && self.entries.is_empty()
    }

    fn lose(&mut self, lost: Lost) {
        self.lost = Some(match self.lost {
            None => lost,
            Some(before) => Lost { missed: before.missed + lost.missed, from: before.from, to: lost.to },
        });
    }

    /// Adds an entry. For [`Class::Latest`], where it is one event at most, it
    /// replaces the one of its name, in its place.
    fn push(&mut self, entry: Entry, class: Class) {
        self.weight += entry.weight();
        self.bytes += entry.bytes();
        if class == Class::Latest
            && let Some(name) = name(&entry)
        {
            let place = self.dropped + self.entries.len();
            if let Some(&older) = self.newest.get(&name) {
                let older = &mut self.entries[older - self.dropped];
                self.weight -= older.weight();
                self.bytes -= older.bytes();
                *older = entry;
                return;
            }
            self.newest.insert(name, place);
        }
        self.entries.push_back(entry);
    }

    fn drop_oldest(&mut self) -> bool {
        let entry = match self.entries.front_mut() {
            None => return false,
            Some(Entry::Events(run)) if run.len() > 1 => run.pop().map(Entry::Events),
            Some(_) => {
                self.dropped += 1;
                self.entries.pop_front()
            }
        };
        let Some(entry) = entry else { return false };
        self.weight -= entry.weight();
        self.bytes -= entry.bytes();
        if !self.newest.is_empty()
            && let Some(name) = name(&entry)
        {
            self.newest.remove(&name);
        }
        self.lose(entry.span());
        true
    }
}

fn name(entry: &Entry) -> Option<Bytes> {
    match entry {
        Entry::Events(run) => run.name(),
        Entry::Event(event) => Some(Bytes::copy_from_slice(event.event.as_str().as_bytes())),
        Entry::Gap(_) => None,
    }
}

/// The queue of one subscription.
#[derive(Debug)]
pub(crate) struct Ring {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Never empty; the last one is that of the connection now.
    epochs: VecDeque<Epoch>,
    class: Class,
    weight_max: usize,
    /// Why nothing more comes; told after what waits.
    closed: Option<Error>,
    waker: Option<Waker>,
}

impl State {
    fn waiting(&self) -> (usize, usize) {
        self.epochs.iter().fold((0, 0), |(weight, bytes), epoch| (weight + epoch.weight, bytes + epoch.bytes))
    }

    /// Drops from the front until the limits hold. Of what is durable nothing
    /// is dropped: there, the credit is the limit.
    fn trim(&mut self) {
        while self.class != Class::Durable {
            let (weight, bytes) = self.waiting();
            if weight <= self.weight_max && bytes <= BYTES_MAX {
                return;
            }
            if !self.epochs.iter_mut().any(Epoch::drop_oldest) {
                return;
            }
        }
    }

    fn current(&mut self) -> &mut Epoch {
        if self.epochs.is_empty() {
            self.epochs.push_back(Epoch::default());
        }
        let last = self.epochs.len() - 1;
        &mut self.epochs[last]
    }
}

impl Ring {
    pub(crate) fn new(class: Class, weight_max: usize) -> Self {
        let state = State { epochs: VecDeque::new(), class, weight_max, closed: None, waker: None };
        Self { state: Mutex::new(state) }
    }

    /// Adds an entry. Returns whom to wake.
    pub(crate) fn push(&self, mut entry: Entry) -> Option<Waker> {
        let mut state = lock(&self.state);
        if state.closed.is_some() {
            return None;
        }
        let class = state.class;
        let epoch = state.current();
        if epoch.weight >= SHARED_MAX
            && let Entry::Events(run) = &mut entry
        {
            run.detach();
        }
        match entry {
            Entry::Events(mut run) if class == Class::Latest => {
                while let Some(one) = run.pop() {
                    epoch.push(Entry::Events(one), class);
                }
            }
            entry => epoch.push(entry, class),
        }
        state.trim();
        state.waker.take()
    }

    /// What follows came over a new connection. Returns whom to wake.
    pub(crate) fn reconnected(&self, restarted: bool) -> Option<Waker> {
        let mut state = lock(&self.state);
        if state.epochs.len() >= EPOCHS_MAX
            && let Some(mut oldest) = state.epochs.pop_front()
        {
            while oldest.drop_oldest() {}
            let next = &mut state.epochs[0];
            next.restarted = Some(oldest.restarted.unwrap_or(false) | next.restarted.unwrap_or(false));
            if let Some(lost) = oldest.lost {
                let later = next.lost.unwrap_or(Lost { missed: 0, ..lost });
                next.lost = Some(Lost { missed: later.missed + lost.missed, ..later });
            }
        }
        state.epochs.push_back(Epoch { restarted: Some(restarted), ..Epoch::default() });
        state.waker.take()
    }

    /// Nothing more will come. Returns whom to wake.
    pub(crate) fn close(&self, error: Error) -> Option<Waker> {
        let mut state = lock(&self.state);
        state.closed.get_or_insert(error);
        state.waker.take()
    }

    /// Why nothing more comes.
    pub(crate) fn closed(&self) -> Option<Error> {
        lock(&self.state).closed.clone()
    }

    /// Takes all that waits from the oldest connection, leaving the memory of
    /// `spare` in its place. `None` when nothing more will come.
    pub(crate) fn poll(&self, spare: VecDeque<Entry>, cx: &Context<'_>) -> Poll<Option<Epoch>> {
        let mut state = lock(&self.state);
        while let Some(mut epoch) = state.epochs.pop_front() {
            if epoch.is_empty() {
                continue;
            }
            if state.epochs.is_empty() {
                state.epochs.push_back(Epoch { entries: spare, ..Epoch::default() });
            }
            epoch.newest = HashMap::new();
            return Poll::Ready(Some(epoch));
        }
        if state.closed.is_some() {
            return Poll::Ready(None);
        }
        state.epochs.push_back(Epoch { entries: spare, ..Epoch::default() });
        let old = keep_waker(&mut state.waker, cx);
        drop(state);
        drop(old);
        Poll::Pending
    }
}

#[cfg(test)]
mod tests;
