//! The ledger across starts of the daemon: what is read back, what ran when
//! the last one died, and what is handed back at a planned end.

use std::collections::HashMap;

use ksi_sdk::protocol::{Code, Refusal};

use super::{Effect, Entry, Id, Ledger, State, Step};

/// Pause before suspects run, after one of them was blamed once; doubled for
/// each further time.
const SUSPECTS_PAUSE_MS: u64 = 1_000;

/// Longest such pause. With it three deaths still fall into the time in which
/// crashes count.
const SUSPECTS_PAUSE_MS_MAX: u64 = 30_000;

/// What is said of an entry that ran when the daemon died.
const DIED: &str = "the daemon died while it ran";

/// What this process has begun under a journal that it has opened before.
#[derive(Debug, Default)]
pub struct Begun {
    /// Number of its first start; `None` where this is the first. What an earlier
    /// one had leased ran in a process that is no more.
    pub since: Option<u64>,
    /// Leases of the attempts that run, or whose answer waits to be heard.
    pub leases: HashMap<Id, u32>,
}

impl Entry {
    /// No pause is longer from now on than it may be at all, and no crash is still to come: the clock of an
    /// earlier start may have been ahead. Whether anything was. A life is left as it is, since it may as well be
    /// this clock that is behind: what lives too long loses nothing.
    fn draw_near(&mut self, now_ms: u64) -> bool {
        let (before, backoff_max_ms) = (self.state, self.policy.backoff_max_ms);
        let asked_ms = self.trouble.as_ref().and_then(|trouble| trouble.refusal.as_ref()?.retry_after_ms);
        if let State::Waiting { until_ms } = &mut self.state {
            let longest_ms = backoff_max_ms.max(asked_ms.unwrap_or(0));
            *until_ms = (*until_ms).min(now_ms.saturating_add(longest_ms));
        }
        let mut moved = before != self.state;
        for at_ms in
            self.trouble.iter_mut().flat_map(|trouble| &mut trouble.crashes).filter(|at_ms| **at_ms > now_ms)
        {
            (*at_ms, moved) = (now_ms, true);
        }
        moved
    }
}

impl Ledger {
    /// Puts an entry in as it was stored. Nothing begins before
    /// [`Ledger::recover`].
    pub fn load(&mut self, id: Id, entry: Entry) {
        self.last = self.last.max(Some(id));
        match entry.state {
            State::Ended { .. } => self.ended.insert(id, &entry),
            _ => self.adopt(id, entry),
        }
    }

    /// Goes on after all entries were loaded: blames or suspects what was
    /// leased by a daemon that died, lets go on what this one has begun itself,
    /// and begins what may begin.
    pub fn recover(&mut self, now_ms: u64, begun: &Begun) -> Step {
        let mut step = Step::default();
        let mut ids: Vec<Id> = self.live.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            let entry = self.live.get_mut(&id).expect("it was there before, and each is dealt with once");
            if entry.draw_near(now_ms) {
                self.write(id, &mut step);
            }
            let entry = self.live.get(&id).expect("it was there a moment ago");
            match entry.state {
                State::Accepted => self.enqueue(id),
                State::Suspect => self.suspect(id),
                State::Waiting { until_ms } => self.set_due(id, until_ms.min(entry.expires_ms)),
                State::Leased { epoch, suspect, .. } if begun.since.is_some_and(|since| epoch >= since) => {
                    match begun.leases.get(&id) == Some(&entry.leases) {
                        true => self.goes_on(now_ms, id, suspect),
                        // It was not begun, or was refused in a way that lets it be tried again.
                        false => self.hand_back(id, &mut step),
                    }
                }
                State::Leased { suspect, .. } => self.survived(now_ms, id, suspect, &mut step),
                State::Ended { .. } => {}
            }
        }
        let blamed = self.suspects.last().map_or(0, |(crashes, _)| *crashes);
        if blamed > 0 {
            let pause_ms = SUSPECTS_PAUSE_MS << (blamed - 1).min(16);
            self.suspects_from_ms = now_ms.saturating_add(pause_ms.min(SUSPECTS_PAUSE_MS_MAX));
        }
        self.pump(now_ms, &mut step);
        step
    }

    /// Hands back what still runs: the daemon or this plugin is about to end,
    /// as somebody wanted. No attempt counts for it, and nobody is suspected.
    pub fn close(&mut self) -> Step {
        self.stop();
        let mut step = Step::default();
        let leased = self.live.iter().filter(|(_, entry)| matches!(entry.state, State::Leased { .. }));
        let mut ids: Vec<Id> = leased.map(|(id, _)| *id).collect();
        ids.sort_unstable();
        for id in ids {
            self.release(id);
            let lease = self.live.get(&id).expect("it was there before").leases;
            step.effects.push(Effect::Abandon { id, lease });
            self.hand_back(id, &mut step);
        }
        step
    }

    /// Puts an entry that was leased, and runs no more, back into its place.
    fn hand_back(&mut self, id: Id, step: &mut Step) {
        let entry = self.live.get_mut(&id).expect("what was leased lives");
        entry.state = State::Accepted;
        entry.attempts -= 1;
        self.enqueue(id);
        self.write(id, step);
    }

    /// An entry that still runs; its lease begins anew.
    fn goes_on(&mut self, now_ms: u64, id: Id, suspect: bool) {
        let entry = self.live.get(&id).expect("what runs lives");
        let until_ms = entry.leased_until(now_ms);
        self.occupy(id, suspect, until_ms);
    }

    /// What becomes of an entry that ran when the daemon died.
    fn survived(&mut self, now_ms: u64, id: Id, alone: bool, step: &mut Step) {
        let entry = self.live.get_mut(&id).expect("what ran lives");
        if !entry.policy.repeat {
            return self.end_unknown(now_ms, id, DIED, step);
        }
        // One death is most often somebody's who kills a daemon, or a power cut.
        let again = entry.sees_death(now_ms);
        if !alone {
            // Many ran, and one of them may be to blame: no attempt counts.
            entry.attempts -= 1;
        } else if self.charge(now_ms, id) {
            return self.end_dead(now_ms, id, DIED, step);
        }
        let entry = self.live.get_mut(&id).expect("it has not ended");
        entry.trouble().refusal = Some(Refusal::new(Code::PluginRestarted, DIED));
        match again {
            true => {
                entry.state = State::Suspect;
                self.suspect(id);
            }
            false => {
                entry.state = State::Accepted;
                self.enqueue(id);
            }
        }
        self.write(id, step);
    }

    fn suspect(&mut self, id: Id) {
        let entry = self.live.get(&id).expect("a suspect lives");
        self.suspects.insert((entry.crashes(), id));
        self.set_due(id, entry.expires_ms);
    }

    /// Takes an entry in among what lives, into no queue yet.
    pub(super) fn adopt(&mut self, id: Id, mut entry: Entry) {
        entry.lane = self.lanes.of(&entry.event);
        let lane = self.lanes.get(entry.lane);
        entry.event = lane.event.clone();
        entry.policy = lane.share(*entry.policy);
        if let Some(key) = &entry.key {
            self.keys.insert(entry.key_hash(key), id);
        }
        entry.due_ms = 0;
        self.admit(id, entry);
    }

    /// Counts an entry among what lives.
    pub(super) fn admit(&mut self, id: Id, entry: Entry) {
        self.shares.add(&entry);
        self.lanes.get(entry.lane).enters(&entry);
        self.live.insert(id, Box::new(entry));
    }
}
