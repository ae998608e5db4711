//! Whose turn it is: several wait, and each that waits gets as much as the others.
//!
//! Each has a *turn*, a time of a clock that shows how many rounds were made; who is
//! behind the others goes first. Being served moves one on by a round, and the clock
//! by its part of a round. Nobody saves up turns while they wait for nothing: who
//! begins to wait is not behind the clock. A level of priority is worth
//! [`Bounds::requests`] rounds: one that has to wait for that many gains a level.
//!
//! [`Bounds::requests`]: super::Bounds::requests

use std::collections::{BTreeMap, BTreeSet};

use super::{Asker, Key, Ticket};

/// One round, in units of the clock: it can be divided among many.
const ROUND: i64 = 1 << 20;

/// What one has that waits.
trait Waiting: Default {
    fn first(&self, step: i64) -> Option<Key>;
    fn is_idle(&self) -> bool;
}

impl Waiting for BTreeSet<Key> {
    fn first(&self, _step: i64) -> Option<Key> {
        Self::first(self).copied()
    }

    fn is_idle(&self) -> bool {
        self.is_empty()
    }
}

/// Several, by name, of which each gets its turn.
#[derive(Debug, Default)]
struct Turns<T> {
    clock: i64,
    /// Those that wait, each with its turn; and those that do not, but have had a turn
    /// in this round.
    each: BTreeMap<String, (i64, T)>,
}

impl<T: Waiting> Waiting for Turns<T> {
    fn first(&self, step: i64) -> Option<Key> {
        self.next(step).map(|(_, key)| key)
    }

    fn is_idle(&self) -> bool {
        self.each.values().all(|(_, of)| of.is_idle())
    }
}

impl<T: Waiting> Turns<T> {
    /// Who goes next, with what.
    fn next(&self, step: i64) -> Option<(&String, Key)> {
        let heads = self.each.iter().filter_map(|(name, (turn, of))| Some((name, *turn, of.first(step)?)));
        heads.min_by_key(|(_, turn, key)| due(*turn, *key, step)).map(|(name, _, key)| (name, key))
    }

    /// What one has that begins to wait, or waits already.
    fn of(&mut self, name: &str) -> &mut T {
        let clock = self.clock;
        let (turn, of) = self.each.entry(name.to_owned()).or_default();
        if of.is_idle() {
            *turn = clock.max(*turn);
        }
        of
    }

    /// Counts that one of those that wait has its turn.
    fn serve(&mut self, name: &str) {
        let waiting = self.each.values().filter(|(_, of)| !of.is_idle()).count();
        let part = ROUND / i64::try_from(waiting.max(1)).unwrap_or(ROUND);
        if let Some((turn, _)) = self.each.get_mut(name) {
            self.clock = (self.clock + part).max(*turn);
            *turn += ROUND;
        }
    }

    /// Forgets those that do not wait, and could begin to as anybody could.
    fn tidy(&mut self) {
        let clock = self.clock;
        self.each.retain(|_, (turn, of)| *turn > clock || !of.is_idle());
    }

    /// The turn of one that waits, or would begin to.
    fn turn(&self, name: &str) -> i64 {
        match self.each.get(name) {
            Some((turn, of)) if of.is_idle() => self.clock.max(*turn),
            Some((turn, _)) => *turn,
            None => self.clock,
        }
    }
}

/// When one goes whose turn it is at this time, before those with a later one.
fn due(turn: i64, key: Key, step: i64) -> (i64, Ticket) {
    (turn - i64::from(key.priority) * step * ROUND, key.ticket)
}

/// What is ready in a lane: by principal, and by what its agents ask.
#[derive(Debug)]
pub(super) struct Ready {
    principals: Turns<Turns<BTreeSet<Key>>>,
    step: i64,
}

impl Ready {
    pub(super) fn new(step: i64) -> Self {
        Self { principals: Turns::default(), step }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.principals.is_idle()
    }

    /// How many principals are remembered.
    #[cfg(test)]
    pub(super) fn known(&self) -> usize {
        self.principals.each.len()
    }

    pub(super) fn insert(&mut self, asker: &Asker, key: Key) {
        self.principals.of(&asker.principal).of(&asker.agent).insert(key);
    }

    /// Takes out what is ready no more; returns whether it was.
    pub(super) fn remove(&mut self, asker: &Asker, key: Key) -> bool {
        let agents = self.principals.each.get_mut(&asker.principal).map(|(_, agents)| agents);
        let Some(agents) = agents else { return false };
        let was = agents.each.get_mut(&asker.agent).is_some_and(|(_, keys)| keys.remove(&key));
        agents.tidy();
        self.principals.tidy();
        was
    }

    /// Takes out what goes next, and counts that for its asker.
    pub(super) fn take(&mut self) -> Option<Key> {
        let principal = self.principals.next(self.step)?.0.clone();
        self.principals.serve(&principal);
        let (_, agents) = self.principals.each.get_mut(&principal)?;
        let (agent, key) = agents.next(self.step)?;
        let agent = agent.clone();
        agents.serve(&agent);
        agents.each.get_mut(&agent)?.1.remove(&key);
        agents.tidy();
        self.principals.tidy();
        Some(key)
    }

    /// The order in which all of these go, if nothing else comes and nothing has to
    /// wait for its conversation.
    pub(super) fn order<'a>(&self, waiting: impl Iterator<Item = (&'a Asker, Key)>) -> Vec<Key> {
        let mut all: BTreeMap<&str, BTreeMap<&str, BTreeSet<Key>>> = BTreeMap::new();
        for (asker, key) in waiting {
            all.entry(&asker.principal).or_default().entry(&asker.agent).or_default().insert(key);
        }
        let none = Turns::default();
        let merged = all.into_iter().map(|(principal, agents)| {
            let turns = self.principals.each.get(principal).map_or(&none, |(_, turns)| turns);
            let agents =
                agents.into_iter().map(|(agent, keys)| (turns.turn(agent), keys.into_iter().collect()));
            (self.principals.turn(principal), in_turn(agents, self.step))
        });
        in_turn(merged, self.step)
    }
}

/// Merges what each has into the order of their turns.
fn in_turn(each: impl Iterator<Item = (i64, Vec<Key>)>, step: i64) -> Vec<Key> {
    let turns = |(turn, keys): (i64, Vec<Key>)| {
        let rounds = (0..).map(move |round| turn + round * ROUND);
        rounds.zip(keys).scan((i64::MIN, 0), move |latest, (turn, key)| {
            // Who goes behind another of the same asker does not go before it.
            *latest = due(turn, key, step).max(*latest);
            Some((*latest, key))
        })
    };
    let mut all: Vec<_> = each.flat_map(turns).collect();
    all.sort_by_key(|(latest, _)| *latest);
    all.into_iter().map(|(_, key)| key).collect()
}
