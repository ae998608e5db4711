//! What became of requests, kept for a while so that it can be fetched.
//!
//! Bounded three ways: by number, by bytes and by age. What is beyond a bound
//! is forgotten, the oldest first, whenever something is added or looked up;
//! nothing runs in the background. It never reads a clock: the time is an
//! argument, in milliseconds of any clock that does not go back.

use std::collections::{HashMap, VecDeque};

/// How much is kept, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Results.
    pub results: usize,
    /// Bytes of all results; a larger one than this is not kept at all.
    pub bytes: usize,
    /// Age in milliseconds.
    pub age_ms: u64,
}

#[derive(Debug)]
struct Kept<T> {
    value: T,
    bytes: usize,
    at_ms: u64,
}

/// Results by the id of their request.
#[derive(Debug)]
pub struct Results<T> {
    bounds: Bounds,
    kept: HashMap<String, Kept<T>>,
    /// Ids in the order in which they were added.
    order: VecDeque<String>,
    bytes: usize,
}

impl<T> Results<T> {
    /// Nothing kept yet.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, kept: HashMap::new(), order: VecDeque::new(), bytes: 0 }
    }

    /// Keeps `value`, which holds about `bytes`. Ids are unique; a second
    /// result of one id is ignored, because a request ends once.
    pub fn add(&mut self, id: String, value: T, bytes: usize, now_ms: u64) {
        if self.kept.contains_key(&id) || bytes > self.bounds.bytes {
            return;
        }
        self.order.push_back(id.clone());
        self.kept.insert(id, Kept { value, bytes, at_ms: now_ms });
        self.bytes += bytes;
        self.prune(now_ms);
    }

    /// What became of the request `id`, where that is still known.
    pub fn get(&mut self, id: &str, now_ms: u64) -> Option<&T> {
        self.prune(now_ms);
        self.kept.get(id).map(|kept| &kept.value)
    }

    fn prune(&mut self, now_ms: u64) {
        let Bounds { results, bytes, age_ms } = self.bounds;
        while let Some(oldest) = self.order.front() {
            let at_ms = self.kept[oldest].at_ms;
            let old = now_ms.saturating_sub(at_ms) > age_ms;
            if !old && self.kept.len() <= results && self.bytes <= bytes {
                return;
            }
            if let Some(kept) = self.kept.remove(oldest) {
                self.bytes -= kept.bytes;
            }
            self.order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { results: 3, bytes: 100, age_ms: 1000 };

    #[test]
    fn the_oldest_are_forgotten_beyond_the_number() {
        let mut results = Results::new(BOUNDS);
        for n in 0..5 {
            results.add(n.to_string(), n, 1, 0);
        }
        assert_eq!(results.get("1", 0).copied(), None);
        assert_eq!(results.get("2", 0).copied(), Some(2));
        assert_eq!(results.get("4", 0).copied(), Some(4));
    }

    #[test]
    fn the_oldest_are_forgotten_beyond_the_bytes() {
        let mut results = Results::new(BOUNDS);
        results.add("a".into(), 1, 60, 0);
        results.add("b".into(), 2, 40, 0);
        assert_eq!(results.get("a", 0).copied(), Some(1));
        results.add("c".into(), 3, 1, 0);
        assert_eq!((results.get("a", 0).copied(), results.bytes), (None, 41));
        results.add("larger than all".into(), 4, 101, 0);
        assert_eq!(
            (results.get("larger than all", 0).copied(), results.bytes, results.order.len()),
            (None, 41, 2)
        );
    }

    #[test]
    fn what_is_too_old_is_forgotten_when_anything_is_looked_up() {
        let mut results = Results::new(BOUNDS);
        results.add("a".into(), 1, 10, 0);
        results.add("b".into(), 2, 10, 900);
        assert_eq!(results.get("a", 1000).copied(), Some(1));
        assert_eq!(results.get("b", 1001).copied(), Some(2));
        assert_eq!((results.get("a", 1001).copied(), results.bytes), (None, 10));
    }

    #[test]
    fn a_request_ends_once() {
        let mut results = Results::new(BOUNDS);
        results.add("a".into(), 1, 10, 0);
        results.add("a".into(), 2, 10, 0);
        assert_eq!((results.get("a", 0).copied(), results.bytes), (Some(1), 10));
    }
}
