//! How much may be kept: every value and item is charged here before it is
//! written, and given back when it is gone.

use std::cell::Cell;

use ksi_sdk::prelude::{Code, Refusal, json};

use crate::config::Config;

/// Entries and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Charge {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

impl Charge {
    /// One entry of so many bytes.
    pub(crate) fn one(bytes: u64) -> Self {
        Self { entries: 1, bytes }
    }
}

impl std::ops::AddAssign for Charge {
    fn add_assign(&mut self, other: Self) {
        self.entries += other.entries;
        self.bytes += other.bytes;
    }
}

/// What is kept, and the most that may be.
#[derive(Debug)]
pub(crate) struct Room {
    used: Cell<Charge>,
    max: Charge,
}

impl Room {
    pub(crate) fn new(config: &Config) -> Self {
        Self { used: Cell::default(), max: Charge { entries: config.entries_max, bytes: config.bytes_max } }
    }

    /// Takes room for what is about to be written. What it replaces is given
    /// back once it is gone, but already counts as such here.
    ///
    /// # Errors
    ///
    /// `busy`, with the limit that is in the way.
    pub(crate) fn take(&self, charge: Charge, replaced: Charge) -> Result<(), Refusal> {
        let used = self.used.get();
        let after = |used: u64, more: u64, less: u64| (used + more).saturating_sub(less);
        let limits = [
            (
                "entries",
                charge.entries,
                after(used.entries, charge.entries, replaced.entries),
                self.max.entries,
            ),
            ("bytes", charge.bytes, after(used.bytes, charge.bytes, replaced.bytes), self.max.bytes),
        ];
        for (what, more, after, max) in limits {
            if more > 0 && after > max {
                let message =
                    format!("the state is full: it would have {after} {what}, and at most {max} are allowed");
                return Err(Refusal::new(Code::Busy, message)
                    .hint(format!("delete what is not needed, or raise plugins.state.config.{what}_max"))
                    .details(json!({ "limit": format!("{what}_max"), "max": max })));
            }
        }
        self.charge(charge);
        Ok(())
    }

    /// Counts what is there, whether it fits or not.
    pub(crate) fn charge(&self, charge: Charge) {
        let mut used = self.used.get();
        used += charge;
        self.used.set(used);
    }

    /// Gives room back.
    pub(crate) fn free(&self, charge: Charge) {
        let used = self.used.get();
        debug_assert!(used.entries >= charge.entries && used.bytes >= charge.bytes, "{used:?} {charge:?}");
        self.used.set(Charge {
            entries: used.entries.saturating_sub(charge.entries),
            bytes: used.bytes.saturating_sub(charge.bytes),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_unless_it_replaces_enough() {
        let room = Room::new(&Config { entries_max: 2, bytes_max: 100, ..Config::default() });
        let none = Charge::default();
        assert_eq!(room.take(Charge::one(60), none), Ok(()));
        let refusal = room.take(Charge::one(60), none).unwrap_err();
        assert_eq!(refusal.code, Code::Busy);
        assert!(refusal.message.contains("120 bytes"), "{refusal}");
        assert_eq!(room.take(Charge::one(60), Charge::one(20)), Ok(()));
        room.free(Charge::one(20));
        assert_eq!(room.take(Charge::one(0), none), Ok(()));
        let refusal = room.take(Charge::one(0), none).unwrap_err();
        assert!(refusal.message.contains("3 entries"), "{refusal}");
        assert_eq!(room.take(none, none), Ok(()), "what takes nothing is never refused");
        room.free(Charge { entries: 2, bytes: 100 });
        assert_eq!(room.used.get(), none);
    }
}
