//! Jobs that wait for a slot, and the order in which they get one: the highest
//! priority first, and of one priority whoever came first. Pure: who waits for
//! what is decided by its caller.
//!
//! Its length is bounded by the tickets of the engine, of which every job
//! holds one.

use std::cmp::Reverse;
use std::collections::BTreeMap;

/// How many of those who wait are offered a slot that fits the first of them
/// less well.
const OFFERED_MAX: usize = 16;

/// Things that wait in the order of their turns.
#[derive(Debug)]
pub(super) struct Queue<T> {
    waiting: BTreeMap<(Reverse<i8>, u64), T>,
    /// Arrivals so far: the number of the next one.
    arrivals: u64,
}

impl<T> Queue<T> {
    pub(super) fn new() -> Self {
        Self { waiting: BTreeMap::new(), arrivals: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn push(&mut self, priority: i8, item: T) {
        self.waiting.insert((Reverse(priority), self.arrivals), item);
        self.arrivals += 1;
    }

    /// Takes the first for whom `offer` has something; what that is comes along.
    pub(super) fn take<P>(&mut self, mut offer: impl FnMut(&T) -> Option<P>) -> Option<(T, P)> {
        let mut taken = self.waiting.iter().take(OFFERED_MAX);
        let (turn, found) = taken.find_map(|(turn, item)| Some((*turn, offer(item)?)))?;
        self.waiting.remove(&turn).map(|item| (item, found))
    }

    /// Takes out all of whom this holds, in the order of their turns.
    pub(super) fn take_all(&mut self, mut gone: impl FnMut(&T) -> bool) -> Vec<T> {
        self.waiting.extract_if(.., |_, item| gone(item)).map(|(_, item)| item).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn drain<T>(queue: &mut Queue<T>) -> Vec<T> {
        std::iter::from_fn(|| queue.take(|_| Some(())).map(|(item, ())| item)).collect()
    }

    #[test]
    fn who_is_not_served_now_keeps_its_turn() {
        let mut queue = Queue::new();
        for item in 0..40 {
            queue.push(0, item);
        }
        assert_eq!(queue.take(|item| (*item == 3).then_some("slot")), Some((3, "slot")));
        assert_eq!(queue.take(|item| (*item == 39).then_some(())), None, "too far behind");
        assert_eq!(queue.take_all(|item| item % 2 == 1).len(), 19);
        assert_eq!(drain(&mut queue), (0..40).filter(|item| item % 2 == 0).collect::<Vec<_>>());
        assert!(queue.is_empty());
    }

    proptest! {
        #[test]
        fn the_order_is_that_of_a_stable_sort_by_priority(
            priorities in proptest::collection::vec(-10i8..=10, 0..1000),
        ) {
            let mut queue = Queue::new();
            for (arrival, priority) in priorities.iter().enumerate() {
                queue.push(*priority, arrival);
            }
            let mut expected: Vec<usize> = (0..priorities.len()).collect();
            expected.sort_by_key(|arrival| Reverse(priorities[*arrival]));
            prop_assert_eq!(drain(&mut queue), expected);
        }
    }
}
