//! The books of a run of kills: what was killed where, and what became of the work.

use std::collections::BTreeMap;

/// The books.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Kills while it worked.
    pub working: usize,
    /// Kills before it was ready.
    pub starting: usize,
    /// Kills during a checkpoint.
    pub checkpointing: usize,
    /// Kills during a restart in place.
    pub restarting: usize,
    /// Kills during a restore.
    pub restoring: usize,
    /// Kills while the first store is made.
    pub newborn: usize,
    /// Requests that were accepted.
    pub accepted: usize,
    /// How those ended, by state.
    pub ended: BTreeMap<String, usize>,
    /// Accepted, and not to be found or not ended.
    pub lost: usize,
    /// Accepted under two names, or under one position.
    pub doubled: usize,
    /// Ended in another way than it had to, or with the answer to something else.
    pub wrong: usize,
    /// In the books, and never accepted.
    pub foreign: usize,
    /// Records of a journal that are not as they were written, at the end.
    pub holes: usize,
    /// Attempts beyond the first: begun again after a kill.
    pub repeated: u64,
}

impl Tally {
    /// Whether nothing went wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.lost + self.doubled + self.wrong + self.foreign + self.holes == 0
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { working, starting, checkpointing, restarting, restoring, newborn, .. } = self;
        let Self { accepted, ended, lost, doubled, wrong, foreign, holes, repeated, .. } = self;
        let kills = working + starting + checkpointing + restarting + restoring + newborn;
        writeln!(
            f,
            "kills {kills}: {working} at work, {starting} while starting, {checkpointing} in a checkpoint, \
             {restarting} in a restart, {restoring} in a restore, {newborn} at the first store"
        )?;
        write!(f, "accepted {accepted}")?;
        // What every run ends with is always shown; what none should, only where it was.
        let usual = ["done", "failed", "dead", "unknown"];
        let others = ended.keys().map(String::as_str).filter(|state| !usual.contains(state));
        for state in usual.into_iter().chain(others) {
            write!(f, ", {state} {}", ended.get(state).copied().unwrap_or_default())?;
        }
        write!(f, ", lost {lost}, doubled {doubled}, wrong {wrong}, foreign {foreign}, holes {holes}")?;
        write!(f, "; begun again {repeated}")
    }
}
