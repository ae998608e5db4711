//! What one watch still has to tell: at most one change of each key, and at
//! most so many. A watch that falls further behind forgets all of it and
//! begins anew.
//!
//! # Invariants
//!
//! - Of each key, changes leave in the order of their versions.
//! - What waits is bounded, however slow the reader.

use std::{
    collections::{HashMap, VecDeque},
    rc::Rc,
};

use crate::{place::Place, watch::Change};

/// Most changes that wait for one watch.
pub(crate) const CHANGES_MAX: usize = 1024;
/// Most bytes of values that wait for one watch.
pub(crate) const BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The changes that wait for one watch.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    /// Keys in the order in which they changed first.
    order: VecDeque<Place>,
    waiting: HashMap<Place, Rc<Change>>,
    bytes: u64,
    /// Versions that were told before their change was heard.
    ahead: HashMap<Place, u64>,
    behind: bool,
}

impl Mailbox {
    /// A change was heard.
    pub(crate) fn hear(&mut self, change: &Rc<Change>) {
        if self.behind {
            return;
        }
        if let Some(told) = self.ahead.get(&change.place).copied() {
            if change.version >= told {
                self.ahead.remove(&change.place);
            }
            if change.version <= told {
                return;
            }
        }
        self.bytes += change.bytes();
        match self.waiting.insert(change.place.clone(), change.clone()) {
            Some(older) => self.bytes -= older.bytes(),
            None => self.order.push_back(change.place.clone()),
        }
        if self.order.len() > CHANGES_MAX || self.bytes > BYTES_MAX {
            self.fall_behind();
        }
    }

    /// The value of a key was read and told. What has been heard of it up to
    /// this version is old news; where a write of it is `in_flight`, so is what
    /// may still be heard.
    pub(crate) fn told(&mut self, place: &Place, version: u64, in_flight: bool) {
        if self.waiting.get(place).is_some_and(|change| change.version <= version) {
            self.drop_waiting(place);
        }
        if in_flight && !self.behind {
            self.ahead.insert(place.clone(), version);
        }
    }

    fn drop_waiting(&mut self, place: &Place) {
        if let Some(change) = self.waiting.remove(place) {
            self.bytes -= change.bytes();
            self.order.retain(|other| other != place);
        }
    }

    /// Too much was missed, so that the watch has to begin anew.
    pub(crate) fn fall_behind(&mut self) {
        *self = Self { behind: true, ..Self::default() };
    }

    /// Whether the watch has to begin anew; if so, from here on it listens
    /// again.
    pub(crate) fn begin_anew(&mut self) -> bool {
        std::mem::take(&mut self.behind)
    }

    /// Whether there is something to tell.
    pub(crate) fn has_news(&self) -> bool {
        self.behind || !self.order.is_empty()
    }

    /// The next change.
    pub(crate) fn next(&mut self) -> Option<Rc<Change>> {
        let place = self.order.pop_front()?;
        let change = self.waiting.remove(&place)?;
        self.bytes -= change.bytes();
        Some(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{payload::WatchKind, watch::Stored};

    fn change(key: &str, version: u64, size: u64) -> Rc<Change> {
        let place = Place::new(None, "n", "key", key).unwrap();
        let stored = (size > 0).then(|| Rc::new(Stored::of_size(size)));
        let kind = if size > 0 { WatchKind::Value } else { WatchKind::Deleted };
        Rc::new(Change { place, version, kind, stored })
    }

    fn next(mailbox: &mut Mailbox) -> Option<(String, u64)> {
        mailbox.next().map(|change| (change.place.name().to_owned(), change.version))
    }

    #[test]
    fn only_the_latest_of_each_key_waits() {
        let mut mailbox = Mailbox::default();
        for (key, version) in [("a", 1), ("b", 2), ("a", 3), ("a", 4)] {
            mailbox.hear(&change(key, version, 10));
        }
        assert_eq!(mailbox.bytes, 20);
        assert_eq!(next(&mut mailbox), Some(("a".into(), 4)));
        mailbox.hear(&change("a", 5, 0));
        assert_eq!(next(&mut mailbox), Some(("b".into(), 2)));
        assert_eq!(next(&mut mailbox), Some(("a".into(), 5)));
        assert_eq!((next(&mut mailbox), mailbox.bytes), (None, 0));
    }

    #[test]
    fn what_was_read_is_not_told_again() {
        let mut mailbox = Mailbox::default();
        let place = change("a", 1, 1).place.clone();
        mailbox.hear(&change("a", 5, 1));
        mailbox.told(&place, 7, true);
        assert_eq!(next(&mut mailbox), None);
        mailbox.hear(&change("a", 6, 1));
        mailbox.hear(&change("a", 7, 1));
        assert_eq!(next(&mut mailbox), None);
        assert!(mailbox.ahead.is_empty());
        mailbox.hear(&change("a", 8, 1));
        assert_eq!(next(&mut mailbox), Some(("a".into(), 8)));
        mailbox.hear(&change("a", 9, 1));
        mailbox.told(&place, 8, false);
        assert_eq!(next(&mut mailbox), Some(("a".into(), 9)), "newer than what was read");
    }

    #[test]
    fn a_watch_that_is_too_far_behind_begins_anew() {
        let mut mailbox = Mailbox::default();
        for n in 0..=CHANGES_MAX {
            mailbox.hear(&change(&n.to_string(), 1, 1));
        }
        assert!(mailbox.has_news());
        assert_eq!(next(&mut mailbox), None);
        assert!(mailbox.begin_anew());
        assert!(!mailbox.has_news());
        for n in 0..3 {
            mailbox.hear(&change(&n.to_string(), 2, BYTES_MAX / 2));
        }
        assert!(mailbox.begin_anew());
    }
}
