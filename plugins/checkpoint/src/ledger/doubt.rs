//! Doubts: over which entry a plugin has crashed.
//!
//! A plugin that dies takes all that it was about with it, and one entry at most
//! is to blame. Whoever ran alone is charged. Where several ran, nobody is, and all
//! run again as before: most crashes are not for what was asked. Those that see
//! another one are in doubt: each runs again, one of those in doubt at a time, beside
//! all that are not, and whoever of them runs when the plugin crashes is charged.
//! Those that were charged least come first, so nobody is charged for another's
//! fault twice before that other has had its turn.
//!
//! A plugin is known by the namespace of its events. Nothing of this is kept: a
//! daemon that has started doubts nobody yet.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use super::id::Id;

const MINUTE_MS: u64 = 60_000;

/// All doubts.
#[derive(Debug)]
pub(super) struct Doubts {
    /// Crashes of one plugin in a minute after which nothing in doubt is begun there.
    crashes_max: usize,
    plugins: HashMap<Box<str>, Plugin>,
    /// Entries in doubt that have not ended, wherever they stand.
    doubted: HashSet<Id>,
    /// Those that run and are known to have run when their plugin crashed: their
    /// own refusals are on their way.
    shaken: HashSet<Id>,
}

/// Those in doubt of one plugin.
#[derive(Debug, Default)]
struct Plugin {
    /// Those that wait for their turn, by how often they were charged.
    waiting: BTreeSet<(usize, Id)>,
    /// The one that runs.
    alone: Option<Id>,
    /// When the plugin crashed, the oldest first; as many as count.
    crashes: VecDeque<u64>,
}

/// How an entry ran that runs no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ran {
    /// The only one in doubt.
    alone: bool,
    /// Beside another one that was refused for a crash.
    shaken: bool,
}

impl Doubts {
    pub(super) fn new(crashes_max: usize) -> Self {
        Self { crashes_max, plugins: HashMap::new(), doubted: HashSet::new(), shaken: HashSet::new() }
    }

    /// Whether this entry may only run alone.
    pub(super) fn has(&self, id: Id) -> bool {
        self.doubted.contains(&id)
    }

    /// One in doubt waits for its turn.
    pub(super) fn wait(&mut self, namespace: &str, charged: usize, id: Id) {
        self.plugins.entry(namespace.into()).or_default().waiting.insert((charged, id));
    }

    /// Takes out one whose turn has come.
    pub(super) fn next(&mut self, now_ms: u64) -> Option<Id> {
        let most = self.crashes_max;
        let due = |plugin: &&mut Plugin| plugin.due_ms(most).is_some_and(|due_ms| due_ms <= now_ms);
        let plugin = self.plugins.values_mut().find(due)?;
        plugin.waiting.pop_first().map(|(_, id)| id)
    }

    /// When somebody's turn comes; 0 where it has come.
    pub(super) fn due_ms(&self) -> Option<u64> {
        self.plugins.values().filter_map(|plugin| plugin.due_ms(self.crashes_max)).min()
    }

    /// Those that wait for their turn.
    pub(super) fn waiting(&self) -> usize {
        self.plugins.values().map(|plugin| plugin.waiting.len()).sum()
    }

    /// An entry runs.
    pub(super) fn runs(&mut self, namespace: &str, id: Id) {
        if self.has(id) {
            self.plugins.entry(namespace.into()).or_default().alone = Some(id);
        }
    }

    /// An entry runs no more.
    pub(super) fn ran(&mut self, namespace: &str, id: Id) -> Ran {
        let plugin = self.plugins.get_mut(namespace);
        let alone = plugin.and_then(|plugin| plugin.alone.take_if(|alone| *alone == id)).is_some();
        Ran { alone, shaken: self.shaken.remove(&id) }
    }

    /// An entry that ran so was refused because its plugin crashed, and others run
    /// there still; whether it is charged. It is in doubt from now on where it is, or
    /// has seen a crash before.
    pub(super) fn crashed(
        &mut self,
        now_ms: u64,
        namespace: &str,
        id: Id,
        ran: Ran,
        others: impl Iterator<Item = Id>,
        again: bool,
    ) -> bool {
        // Those of one crash are refused one after the other, and the first speaks for all.
        let mut others = others.peekable();
        let charged = ran.alone || (!ran.shaken && others.peek().is_none());
        if !ran.shaken {
            self.plugins.entry(namespace.into()).or_default().note(now_ms, self.crashes_max);
        }
        self.shaken.extend(others);
        if charged || again {
            self.doubted.insert(id);
        }
        charged
    }

    /// An entry has ended, or is taken back.
    pub(super) fn forget(&mut self, namespace: &str, charged: usize, id: Id) {
        if self.doubted.remove(&id)
            && let Some(plugin) = self.plugins.get_mut(namespace)
        {
            plugin.waiting.remove(&(charged, id));
        }
    }
}

impl Plugin {
    fn note(&mut self, now_ms: u64, most: usize) {
        self.crashes.push_back(now_ms);
        if self.crashes.len() > most {
            self.crashes.pop_front();
        }
    }

    /// When the next of those that wait may run.
    fn due_ms(&self, most: usize) -> Option<u64> {
        self.waiting.first().filter(|_| self.alone.is_none())?;
        let oldest = self.crashes.front().filter(|_| self.crashes.len() == most);
        Some(oldest.map_or(0, |oldest| oldest.saturating_add(MINUTE_MS)))
    }
}
