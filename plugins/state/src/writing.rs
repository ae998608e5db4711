//! Writes under way, and the most of them that one principal may have.
//!
//! A write goes on to its end also where its asker has given up, and then
//! nobody else counts it: whoever asks, vanishes and comes again would have as
//! many as the disk is slow.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use ksi_sdk::prelude::{Code, Refusal};

/// Writes of one principal that are under way at once, whether or not it still
/// waits for them. As many as the plugin may hold requests, so only those who
/// give up what they have asked for notice.
const WRITES_MAX: usize = 1024;

/// The writes that are under way, by principal. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Writings(Rc<RefCell<HashMap<Rc<str>, usize>>>);

/// One of them; until it is dropped.
#[derive(Debug)]
pub(crate) struct Writing {
    all: Writings,
    principal: Rc<str>,
}

impl Writings {
    /// # Errors
    ///
    /// `busy` where the principal has too many.
    pub(crate) fn begin(&self, principal: &str) -> Result<Writing, Refusal> {
        let mut all = self.0.borrow_mut();
        let known = all.get_key_value(principal).map(|(name, count)| (name.clone(), *count));
        let (principal, count) = known.unwrap_or_else(|| (principal.into(), 0));
        if count >= WRITES_MAX {
            let message = format!("{WRITES_MAX} writes of `{principal}` are under way already");
            return Err(Refusal::new(Code::Busy, message)
                .hint("those that were given up are made all the same; wait for their answers")
                .retry_after_ms(100));
        }
        all.insert(principal.clone(), count + 1);
        drop(all);
        Ok(Writing { all: self.clone(), principal })
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let mut all = self.all.0.borrow_mut();
        match all.get_mut(&self.principal) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(all.remove(&self.principal)),
        }
    }
}
