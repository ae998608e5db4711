//! Which queue has to be looked at next.

use std::collections::{BTreeSet, HashMap};

use crate::place::Place;

/// One moment at most for each queue.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    moments: HashMap<Place, u64>,
    order: BTreeSet<(u64, Place)>,
}

impl Schedule {
    /// Plans a queue, or nothing for it.
    pub(super) fn set(&mut self, place: &Place, at_ms: Option<u64>) {
        if self.moments.get(place).copied() == at_ms {
            return;
        }
        if let Some(before) = self.moments.remove(place) {
            self.order.remove(&(before, place.clone()));
        }
        if let Some(at_ms) = at_ms {
            self.moments.insert(place.clone(), at_ms);
            self.order.insert((at_ms, place.clone()));
        }
    }

    /// The next moment.
    pub(super) fn next(&self) -> Option<u64> {
        self.order.first().map(|(at_ms, _)| *at_ms)
    }

    /// Queues whose moment has come.
    pub(super) fn due(&self, now_ms: u64, max: usize) -> Vec<Place> {
        let due = self.order.iter().take_while(|(at_ms, _)| *at_ms <= now_ms);
        due.take(max).map(|(_, place)| place.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_comes_first_and_each_queue_once() {
        let place = |name| Place::new(None, "n", "queue", name).unwrap();
        let mut schedule = Schedule::default();
        schedule.set(&place("a"), Some(30));
        schedule.set(&place("b"), Some(20));
        schedule.set(&place("a"), Some(10));
        assert_eq!(schedule.next(), Some(10));
        assert_eq!(schedule.due(20, 9), [place("a"), place("b")]);
        assert_eq!(schedule.due(20, 1), [place("a")]);
        schedule.set(&place("a"), None);
        assert_eq!(schedule.due(20, 9), [place("b")]);
        schedule.set(&place("b"), None);
        assert_eq!(schedule.next(), None);
    }
}
