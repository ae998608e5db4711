//! Whose turn it is, of all who wait for one provider.
//!
//! Every priority is a *class* of its own. In a class principals take turns, and of one
//! principal its agents; what one agent asks goes in the order of its arrival. The
//! highest class goes first, but for who has waited for long.
//!
//! **Turns** are start-time fair queueing. Each that waits has a *tag*, the time at
//! which its next turn is due; the smallest goes first, and who had a turn comes again
//! one round later. The clock goes on with every turn by its part of a round, of as
//! many parts as wait. Who begins to wait gets the time of the clock for its tag, or
//! its last one, where that is later: nobody saves up turns while it waits for nothing,
//! and nobody gets one more by leaving and coming back. A class has a clock of its own,
//! so a rush in one gives nobody in another an advance over those who come later.
//!
//! **Held back**: who has its share of what runs waits for no turn until some of that
//! has ended. Then it waits on, with its old tag, or the time of the clock, where that
//! is later: so it neither holds up the clock nor makes up for turns.
//!
//! **Ageing**: a principal that has to wait for as many starts as may wait
//! ([`Bounds::requests`]), since it came or had its last turn, is a class higher for
//! its next turn; for twice as many, two. That turn is counted as any other, and the
//! one after it is waited for anew: so a long backlog, however old, comes no faster
//! than turn by turn.
//!
//! # Invariants
//!
//! - Whenever anything is ready of somebody who is not held back, something is taken.
//! - Of one agent and priority, the first to arrive goes first.
//! - A lower class goes before a higher one only for a principal that has waited for as
//!   many starts as ageing asks for.
//! - Whatever arrives, the next turn comes at the latest when ageing has made more of a
//!   class than the highest of the others, and each that waits had one turn since.
//! - The clock of a class is less than a round ahead of the smallest tag. So whoever
//!   begins to wait, waits for at most one turn of each other in its class or below.
//! - Of those who wait all the time, in one class, none has two turns more than another.
//! - Of who waits for nothing, only a tag is remembered, until the clock is there; where
//!   nobody waits, nothing.
//!
//! [`Bounds::requests`]: super::Bounds::requests

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashSet},
};

use super::{Asker, Key, Ticket};

/// One round, in units of the clock: it can be divided among many.
const ROUND: i64 = 1 << 20;

/// What one has for its turns.
trait Portion: Default {
    fn is_empty(&self) -> bool;
}

impl Portion for BTreeSet<Ticket> {
    fn is_empty(&self) -> bool {
        self.is_empty()
    }
}

impl<T: Portion> Portion for Turns<T> {
    fn is_empty(&self) -> bool {
        self.by_tag.is_empty() && self.held == 0
    }
}

/// One of several, by name, of which each gets its turn.
#[derive(Debug, Clone, Default)]
struct One<T> {
    tag: i64,
    /// Its place among those that wait, by when they came or had their last turn ...
    place: u64,
    /// ... and how many had been started in the lane by then.
    since: u64,
    /// Whether it waits for a turn.
    waits: bool,
    has: T,
}

#[derive(Debug, Clone, Default)]
struct Turns<T> {
    clock: i64,
    places: u64,
    all: BTreeMap<String, One<T>>,
    /// Those that wait, in the order of their turns.
    by_tag: BTreeSet<(i64, u64, String)>,
    /// The same by their places: who has waited for longest is the first.
    by_place: BTreeMap<u64, String>,
    /// Those that have nothing, and whose tag is ahead of the clock.
    gone: BTreeSet<(i64, String)>,
    /// How many have something and do not wait, since they are held back.
    held: usize,
}

impl<T: Portion> Turns<T> {
    /// Whose turn it is.
    fn first(&self) -> Option<&str> {
        self.by_tag.first().map(|(_, _, name)| name.as_str())
    }

    /// Who has waited for longest, and since when.
    fn oldest(&self) -> Option<(u64, &str)> {
        let (_, name) = self.by_place.first_key_value()?;
        Some((self.all.get(name)?.since, name))
    }

    /// What one has that waits from now on, or does already, if it is not held back.
    /// It must be given something, if it has nothing.
    fn of(&mut self, name: &str, started: u64, is_held: bool) -> &mut T {
        let one = self.all.entry(name.to_owned()).or_default();
        if one.has.is_empty() {
            self.gone.remove(&(one.tag, name.to_owned()));
            (self.places, one.place, one.since) = (self.places + 1, self.places, started);
            self.held += 1;
            if !is_held {
                self.go_on(name);
            }
        }
        &mut self.all.get_mut(name).expect("it was there or was put in").has
    }

    /// Holds one back, if it waits.
    fn hold(&mut self, name: &str) {
        let Some(one) = self.all.get_mut(name).filter(|one| one.waits) else { return };
        one.waits = false;
        self.by_tag.remove(&(one.tag, one.place, name.to_owned()));
        self.by_place.remove(&one.place);
        self.held += 1;
    }

    /// Lets one wait that was held back, if it has something.
    fn go_on(&mut self, name: &str) {
        let Some(one) = self.all.get_mut(name) else { return };
        if one.waits || self.gone.contains(&(one.tag, name.to_owned())) {
            return;
        }
        one.waits = true;
        one.tag = one.tag.max(self.clock);
        self.by_tag.insert((one.tag, one.place, name.to_owned()));
        self.by_place.insert(one.place, name.to_owned());
        self.held -= 1;
    }

    /// Hears that what one has became less, by a turn or without; what it has waits on.
    fn took(&mut self, name: &str, by_turn: bool, started: u64) {
        let Some(one) = self.all.get_mut(name) else { return };
        if !by_turn && !one.has.is_empty() {
            return;
        }
        let smallest = self.by_tag.first().map_or(self.clock, |(tag, ..)| *tag);
        let part = ROUND / i64::try_from(self.by_tag.len().max(1)).unwrap_or(ROUND);
        if std::mem::take(&mut one.waits) {
            self.by_tag.remove(&(one.tag, one.place, name.to_owned()));
            self.by_place.remove(&one.place);
        } else {
            self.held -= 1;
        }
        if by_turn {
            one.tag += ROUND;
            self.clock = (self.clock + part).max(smallest);
        }
        if one.has.is_empty() {
            self.gone.insert((one.tag, name.to_owned()));
        } else {
            (self.places, one.place, one.since) = (self.places + 1, self.places, started);
            one.waits = true;
            self.by_tag.insert((one.tag, one.place, name.to_owned()));
            self.by_place.insert(one.place, name.to_owned());
        }
        match self.by_tag.first() {
            Some((tag, ..)) => self.clock = self.clock.min(tag + ROUND - 1),
            None if self.held == 0 => return *self = Self::default(),
            None => {}
        }
        while self.gone.first().is_some_and(|(tag, _)| *tag <= self.clock)
            && let Some((_, name)) = self.gone.pop_first()
        {
            self.all.remove(&name);
        }
    }
}

/// Those of one priority: by principal, and by what its agents ask.
type Class = Turns<Turns<BTreeSet<Ticket>>>;

/// What is ready in a lane.
#[derive(Debug, Clone)]
pub(super) struct Ready {
    /// By priority; each has something.
    classes: BTreeMap<i8, Class>,
    /// Who is held back.
    held: HashSet<String>,
    /// How many were taken, ever.
    started: u64,
    /// After how many one is a class higher.
    step: u64,
}

impl Ready {
    pub(super) fn new(requests: usize) -> Self {
        Self { classes: BTreeMap::new(), held: HashSet::new(), started: 0, step: requests.max(1) as u64 }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.classes.is_empty() && self.held.is_empty()
    }

    /// Holds a principal back until it may go on.
    pub(super) fn hold(&mut self, principal: &str) {
        if !self.held.contains(principal) {
            self.held.insert(principal.to_owned());
            self.classes.values_mut().for_each(|class| class.hold(principal));
        }
    }

    /// Holds a principal back no more.
    pub(super) fn go_on(&mut self, principal: &str) {
        if self.held.remove(principal) {
            self.classes.values_mut().for_each(|class| class.go_on(principal));
        }
    }

    /// How many principals are remembered.
    #[cfg(test)]
    pub(super) fn known(&self) -> usize {
        self.classes.values().map(|class| class.all.len()).sum()
    }

    /// Puts in what is ready from now on, or is already.
    pub(super) fn insert(&mut self, asker: &Asker, key: Key) {
        let class = self.classes.entry(key.priority).or_default();
        let is_held = self.held.contains(&asker.principal);
        let agents = class.of(&asker.principal, self.started, is_held);
        agents.of(&asker.agent, self.started, false).insert(key.ticket);
    }

    /// Takes out what is ready no more; returns whether it was.
    pub(super) fn remove(&mut self, asker: &Asker, key: Key) -> bool {
        self.take_out(key.priority, &asker.principal, &asker.agent, Some(key.ticket)).is_some()
    }

    /// Takes out what goes next, and counts that for its asker.
    pub(super) fn take(&mut self) -> Option<Ticket> {
        let (priority, principal) = self.next()?;
        let principal = principal.to_owned();
        let agent = self.classes.get(&priority)?.all.get(&principal)?.has.first()?.to_owned();
        self.take_out(priority, &principal, &agent, None)
    }

    /// The class and the principal whose turn it is.
    fn next(&self) -> Option<(i8, &str)> {
        let heads = self.classes.iter().filter_map(|(priority, class)| {
            let (since, oldest) = class.oldest()?;
            let gained = i64::try_from((self.started - since) / self.step).unwrap_or(i64::MAX);
            let name = if gained > 0 { oldest } else { class.first()? };
            Some((i64::from(*priority).saturating_add(gained), *priority, name))
        });
        // Who has gained its level goes before those to whom it was given.
        let (_, priority, name) = heads.max_by_key(|(level, priority, _)| (*level, Reverse(*priority)))?;
        Some((priority, name))
    }

    /// Takes a ticket of an agent out, or its first one, by a turn.
    fn take_out(
        &mut self,
        priority: i8,
        principal: &str,
        agent: &str,
        only: Option<Ticket>,
    ) -> Option<Ticket> {
        let class = self.classes.get_mut(&priority)?;
        let agents = &mut class.all.get_mut(principal)?.has;
        let tickets = &mut agents.all.get_mut(agent)?.has;
        let ticket = match only {
            Some(ticket) => tickets.take(&ticket)?,
            None => tickets.pop_first()?,
        };
        let by_turn = only.is_none();
        self.started += u64::from(by_turn);
        agents.took(agent, by_turn, self.started);
        class.took(principal, by_turn, self.started);
        if class.is_empty() {
            self.classes.remove(&priority);
        }
        Some(ticket)
    }

    /// The order in which all of these go, if nothing else comes, and nothing has to
    /// wait for its conversation, or for what else its principal has running.
    pub(super) fn order<'a>(&self, waiting: impl Iterator<Item = (&'a Asker, Key)>) -> Vec<Ticket> {
        let mut waiting: Vec<_> = waiting.collect();
        waiting.sort_by_key(|(_, key)| key.ticket);
        let mut all = self.clone();
        for principal in &self.held {
            all.go_on(principal);
        }
        for (asker, key) in waiting {
            all.insert(asker, key);
        }
        std::iter::from_fn(|| all.take()).collect()
    }
}

#[cfg(test)]
mod tests;
