//! What is known of every value without reading it: version, size, and when
//! it is gone. Made anew at each start from the small records beside the values.
//!
//! Writes of one key may be under way at the same time, and their ends may be
//! heard in another order than they happened. A *flight* remembers for a key
//! the latest version that was heard while any write of it is under way, so
//! that an older one that is heard later changes nothing.
//!
//! # Invariants
//!
//! - An entry is what was safe at some moment, and never goes back to an older
//!   version.
//! - There are as many flights as keys that are being written.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
};

use crate::place::Place;

/// What is known of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) version: u64,
    /// Bytes of value and metadata.
    pub(crate) size: u64,
    /// Milliseconds since 1970; 0: never.
    pub(crate) expires_at_ms: u64,
}

impl Entry {
    /// Whether its time is over.
    pub(crate) fn expired(&self, now_ms: u64) -> bool {
        expired(self.expires_at_ms, now_ms)
    }
}

/// Whether a time, 0 being never, has come.
pub(crate) fn expired(at_ms: u64, now_ms: u64) -> bool {
    at_ms != 0 && at_ms <= now_ms
}

#[derive(Debug, Default)]
struct Flight {
    writes: u32,
    latest: u64,
}

/// All values.
#[derive(Debug, Default)]
pub(crate) struct Index {
    entries: BTreeMap<Place, Entry>,
    expiries: BTreeSet<(u64, Place)>,
    flights: HashMap<Place, Flight>,
}

impl Index {
    /// What stands under a key, its time over or not.
    pub(crate) fn entry(&self, place: &Place) -> Option<Entry> {
        self.entries.get(place).copied()
    }

    /// What stands under a key for whoever asks.
    pub(crate) fn live(&self, place: &Place, now_ms: u64) -> Option<Entry> {
        self.entry(place).filter(|entry| !entry.expired(now_ms))
    }

    /// Puts an entry in place; answers with the one before.
    pub(crate) fn put(&mut self, place: &Place, entry: Option<Entry>) -> Option<Entry> {
        let before = match entry {
            Some(entry) => self.entries.insert(place.clone(), entry),
            None => self.entries.remove(place),
        };
        if let Some(before) = before.filter(|before| before.expires_at_ms != 0) {
            self.expiries.remove(&(before.expires_at_ms, place.clone()));
        }
        if let Some(entry) = entry.filter(|entry| entry.expires_at_ms != 0) {
            self.expiries.insert((entry.expires_at_ms, place.clone()));
        }
        before
    }

    /// A write of a key begins.
    pub(crate) fn depart(&mut self, place: &Place) {
        self.flights.entry(place.clone()).or_default().writes += 1;
    }

    /// A write of a key has ended. `version` is its own, or `None` where it
    /// changed nothing. Whether it is the latest that was heard, so that the
    /// index and everyone else has to learn of it.
    pub(crate) fn arrive(&mut self, place: &Place, version: Option<u64>) -> bool {
        let Some(flight) = self.flights.get_mut(place) else { return false };
        let latest = version.is_some_and(|version| version > flight.latest);
        flight.latest = flight.latest.max(version.unwrap_or(0));
        flight.writes -= 1;
        if flight.writes == 0 {
            self.flights.remove(place);
        }
        latest
    }

    /// Whether a write of a key is under way.
    pub(crate) fn in_flight(&self, place: &Place) -> bool {
        self.flights.contains_key(place)
    }

    /// When the next value is gone.
    pub(crate) fn next_due(&self) -> Option<u64> {
        self.expiries.first().map(|(at, _)| *at)
    }

    /// Keys whose time is over, the longest ago first.
    pub(crate) fn due(&self, now_ms: u64, max: usize) -> Vec<(Place, Entry)> {
        let due = self.expiries.iter().take_while(|(at, _)| *at <= now_ms).take(max);
        due.filter_map(|(_, place)| Some((place.clone(), self.entry(place)?))).collect()
    }

    /// Keys that begin with a prefix, after one of them, in their order.
    pub(crate) fn range<'a>(
        &'a self,
        prefix: &'a Place,
        after: Option<&'a Place>,
    ) -> impl Iterator<Item = (&'a Place, &'a Entry)> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let range = self.entries.range((start, Bound::Unbounded));
        range.take_while(move |(place, _)| place.as_str().starts_with(prefix.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(key: &str) -> Place {
        Place::new(None, "n", "key", key).unwrap()
    }

    fn entry(version: u64, expires_at_ms: u64) -> Entry {
        Entry { version, size: 1, expires_at_ms }
    }

    #[test]
    fn an_older_write_that_is_heard_later_changes_nothing() {
        let mut index = Index::default();
        let key = place("a");
        for _ in 0..4 {
            index.depart(&key);
        }
        assert!(index.arrive(&key, Some(7)));
        assert!(!index.arrive(&key, Some(6)));
        assert!(!index.arrive(&key, None));
        assert!(index.in_flight(&key));
        assert!(index.arrive(&key, Some(8)));
        assert!(!index.in_flight(&key));
    }

    #[test]
    fn the_earliest_time_is_known_and_goes_with_its_value() {
        let mut index = Index::default();
        assert_eq!(index.next_due(), None);
        index.put(&place("a"), Some(entry(1, 50)));
        index.put(&place("b"), Some(entry(2, 30)));
        index.put(&place("c"), Some(entry(3, 0)));
        assert_eq!(index.next_due(), Some(30));
        assert_eq!(index.due(29, 9), []);
        assert_eq!(index.due(50, 1), [(place("b"), entry(2, 30))]);
        assert!(index.live(&place("b"), 29).is_some());
        assert!(index.live(&place("b"), 30).is_none());
        assert_eq!(index.put(&place("b"), Some(entry(4, 90))), Some(entry(2, 30)));
        assert_eq!(index.next_due(), Some(50));
        index.put(&place("a"), None);
        assert_eq!(index.next_due(), Some(90));
        index.put(&place("b"), Some(entry(5, 0)));
        assert_eq!(index.next_due(), None);
    }

    #[test]
    fn a_range_is_a_prefix_of_one_namespace() {
        let mut index = Index::default();
        for key in ["a", "ab", "abc", "ac", "b"] {
            index.put(&place(key), Some(entry(1, 0)));
            index.put(&Place::new(None, "n2", "key", key).unwrap(), Some(entry(1, 0)));
        }
        let names = |prefix: &str, after: Option<&str>| {
            let prefix = Place::prefix(None, "n", prefix).unwrap();
            let after = after.map(place);
            let range = index.range(&prefix, after.as_ref());
            range.map(|(place, _)| place.name().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names("", None), ["a", "ab", "abc", "ac", "b"]);
        assert_eq!(names("ab", None), ["ab", "abc"]);
        assert_eq!(names("ab", Some("ab")), ["abc"]);
        assert_eq!(names("ab", Some("a")), ["ab", "abc"], "an `after` before the prefix");
        assert_eq!(names("ab", Some("b")), [""; 0]);
    }
}
