//! Shares: how much of the work that has not ended is whose.

use std::collections::HashMap;

/// Counts by principal; nobody with none.
#[derive(Debug, Default)]
pub(super) struct Shares(HashMap<Box<str>, usize>);

impl Shares {
    /// How many one has. Work of releases without principals is nobody's.
    pub(super) fn of(&self, principal: Option<&str>) -> usize {
        principal.and_then(|name| self.0.get(name)).copied().unwrap_or(0)
    }

    /// One has one more.
    pub(super) fn add(&mut self, principal: Option<&str>) {
        let Some(name) = principal else { return };
        match self.0.get_mut(name) {
            Some(count) => *count += 1,
            None => drop(self.0.insert(name.into(), 1)),
        }
    }

    /// One has one less.
    pub(super) fn remove(&mut self, principal: Option<&str>) {
        let Some(name) = principal else { return };
        if let Some(count) = self.0.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(name);
            }
        }
    }
}
