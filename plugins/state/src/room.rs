//! How much may be kept: every value and item is charged here before it is
//! written, and given back when it is gone.

use std::{cell::RefCell, collections::HashMap};

use ksi_sdk::{
    prelude::{Code, Refusal, json},
    protocol::limits::fair_share,
};

use crate::{config::Config, place::Place};

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

impl std::ops::SubAssign for Charge {
    fn sub_assign(&mut self, other: Self) {
        debug_assert!(self.entries >= other.entries && self.bytes >= other.bytes, "{self:?} {other:?}");
        self.entries = self.entries.saturating_sub(other.entries);
        self.bytes = self.bytes.saturating_sub(other.bytes);
    }
}

/// What is kept, by tenant, and the most that may be. One tenant has at most its
/// [`fair_share`], so that the others find room.
#[derive(Debug)]
pub(crate) struct Room {
    used: RefCell<Used>,
    max: Charge,
}

#[derive(Debug, Default)]
struct Used {
    all: Charge,
    of: HashMap<Box<str>, Charge>,
}

impl Room {
    pub(crate) fn new(config: &Config) -> Self {
        let max = Charge { entries: config.entries_max, bytes: config.bytes_max };
        Self { used: RefCell::default(), max }
    }

    /// Takes room for what is about to be written where this place is. What it
    /// replaces is given back once it is gone, but already counts as such here.
    ///
    /// # Errors
    ///
    /// `busy`, with the limit that is in the way.
    pub(crate) fn take(&self, place: &Place, charge: Charge, replaced: Charge) -> Result<(), Refusal> {
        let (all, own) = {
            let used = self.used.borrow();
            (used.all, used.of.get(place.owner()).copied().unwrap_or_default())
        };
        let after = |own: u64, more: u64, less: u64| (own + more).saturating_sub(less);
        let entries = after(own.entries, charge.entries, replaced.entries);
        let bytes = after(own.bytes, charge.bytes, replaced.bytes);
        let limits = [
            ("entries", own.entries, entries, all.entries - own.entries, self.max.entries),
            ("bytes", own.bytes, bytes, all.bytes - own.bytes, self.max.bytes),
        ];
        for (what, own, after, others, max) in limits {
            let share = share(max, others);
            // A share that others have made smaller is no reason to refuse what takes no more.
            if after > own && after > share {
                let message = format!(
                    "your state is full: it would have {after} {what}, and {share} of {max} are allowed; \
                     others find room, too"
                );
                return Err(Refusal::new(Code::Busy, message)
                    .hint(format!("delete what is not needed, or raise plugins.state.config.{what}_max"))
                    .details(json!({ "limit": format!("{what}_max"), "max": max, "share": share })));
            }
        }
        self.charge(place, charge);
        Ok(())
    }

    /// Counts what is there, whether it fits or not.
    pub(crate) fn charge(&self, place: &Place, charge: Charge) {
        let used = &mut *self.used.borrow_mut();
        used.all += charge;
        match used.of.get_mut(place.owner()) {
            Some(own) => *own += charge,
            None => drop(used.of.insert(place.owner().into(), charge)),
        }
    }

    /// Gives room back.
    pub(crate) fn free(&self, place: &Place, charge: Charge) {
        let used = &mut *self.used.borrow_mut();
        used.all -= charge;
        if let Some(own) = used.of.get_mut(place.owner()) {
            *own -= charge;
            if *own == Charge::default() {
                used.of.remove(place.owner());
            }
        }
    }
}

/// What one may have of so many, of which others have these.
fn share(max: u64, others: u64) -> u64 {
    let wide = |number| usize::try_from(number).unwrap_or(usize::MAX);
    fair_share(wide(max), wide(others)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(tenant: &str) -> Place {
        Place::new(Some(tenant), "a", "key", "k").unwrap()
    }

    fn room(entries_max: u64, bytes_max: u64) -> Room {
        Room::new(&Config { entries_max, bytes_max, ..Config::default() })
    }

    #[test]
    fn what_does_not_fit_is_refused_unless_it_replaces_enough() {
        let (room, place, none) = (room(4, 200), of("local"), Charge::default());
        assert_eq!(room.take(&place, Charge::one(60), none), Ok(()));
        let refusal = room.take(&place, Charge::one(60), none).unwrap_err();
        assert_eq!(refusal.code, Code::Busy);
        assert!(refusal.message.contains("120 bytes"), "{refusal}");
        assert_eq!(room.take(&place, Charge::one(60), Charge::one(20)), Ok(()));
        room.free(&place, Charge::one(20));
        assert_eq!(room.take(&place, Charge::one(0), none), Ok(()));
        let refusal = room.take(&place, Charge::one(0), none).unwrap_err();
        assert!(refusal.message.contains("3 entries"), "{refusal}");
        assert_eq!(room.take(&place, none, none), Ok(()), "what takes nothing is never refused");
        room.free(&place, Charge { entries: 2, bytes: 100 });
        assert_eq!(room.used.borrow().all, none);
        assert!(room.used.borrow().of.is_empty());
    }

    #[test]
    fn no_tenant_takes_the_room_of_the_others() {
        let (room, none) = (room(16, 1 << 20), Charge::default());
        let fill = |tenant: &str| {
            let place = of(tenant);
            (0..).find(|_| room.take(&place, Charge::one(1), none).is_err()).unwrap()
        };
        let filled = ["a-b", "a_b", "local", "c", "d", "e"].map(fill);
        assert_eq!(filled, [8, 4, 2, 1, 1, 0]);
        room.free(&of("a-b"), Charge::one(1));
        assert_eq!(room.take(&of("e"), Charge::one(1), none), Ok(()), "what is given back is shared again");
        assert!(room.take(&of("a-b"), Charge::one(1), none).is_err());
    }
}
