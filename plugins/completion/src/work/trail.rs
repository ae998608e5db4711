//! What is told of the attempts at one request, however it ends.
//!
//! # Invariants
//!
//! - Every attempt is in the list once, in the order in which they began; one
//!   that is under way when the request is stopped is the last.

use std::cell::{Cell, RefCell};

use ksi_sdk::prelude::{Code, Refusal};

use crate::payload::{ModelName, Tried};

/// The attempts so far.
#[derive(Default)]
pub(crate) struct Trail {
    tried: RefCell<Vec<Tried>>,
    under_way: RefCell<Option<UnderWay>>,
    /// What ended the last one, or kept the next one from its beginning.
    last: RefCell<Option<Refusal>>,
    /// Bytes that were passed on and are not void.
    said: Cell<usize>,
    /// Those of them that are words, and not what is told about tokens.
    words: Cell<usize>,
}

/// An attempt that has not ended.
struct UnderWay {
    model: ModelName,
    /// Since the request was accepted.
    started_ms: u64,
    began_ms: u64,
}

impl Trail {
    /// Number of the next attempt, or of the one under way.
    pub(super) fn number(&self) -> u32 {
        u32::try_from(self.tried.borrow().len()).unwrap_or(u32::MAX).saturating_add(1)
    }

    /// How often a model was asked.
    pub(super) fn times(&self, name: &ModelName) -> u32 {
        let times = self.tried.borrow().iter().filter(|tried| tried.model == *name).count();
        u32::try_from(times).unwrap_or(u32::MAX)
    }

    pub(super) fn begin(&self, model: ModelName, accepted_ms: u64, now_ms: u64) {
        let started_ms = now_ms.saturating_sub(accepted_ms);
        self.under_way.replace(Some(UnderWay { model, started_ms, began_ms: now_ms }));
    }

    /// Writes down how the attempt under way has ended: answered, or refused.
    pub(super) fn end(&self, refusal: Option<&Refusal>, now_ms: u64) {
        let outcome = refusal.map_or_else(|| "answered".into(), |refusal| refusal.code.to_string());
        self.put(outcome, refusal.map(|refusal| refusal.message.clone()), now_ms);
    }

    /// Writes down that the attempt under way, where there is one, was given up.
    pub(super) fn give_up(&self, why: Code, now_ms: u64) {
        self.put(why.to_string(), None, now_ms);
    }

    fn put(&self, outcome: String, message: Option<String>, now_ms: u64) {
        let Some(UnderWay { model, started_ms, began_ms }) = self.under_way.take() else { return };
        let number = self.number();
        self.tried.borrow_mut().push(Tried {
            number,
            model,
            outcome,
            message,
            started_ms,
            took_ms: now_ms.saturating_sub(began_ms),
            text_sent: self.said.get() > 0,
        });
    }

    pub(super) fn tried(&self) -> Vec<Tried> {
        self.tried.borrow().clone()
    }

    /// What ended the last attempt.
    pub(super) fn last(&self) -> Option<Refusal> {
        self.last.borrow().clone()
    }

    pub(super) fn set_last(&self, refusal: Refusal) {
        self.last.replace(Some(refusal));
    }

    /// The same, where nothing better is known.
    pub(super) fn set_first(&self, refusal: Refusal) {
        self.last.borrow_mut().get_or_insert(refusal);
    }

    /// Bytes that were passed on and are not void.
    pub(super) fn said(&self) -> usize {
        self.said.get()
    }

    /// Bytes of words that were passed on and are not void.
    pub(super) fn words(&self) -> usize {
        self.words.get()
    }

    /// Counts what is passed on, words and what is told about them; returns how much it
    /// is by now.
    pub(super) fn say(&self, words: usize, told: usize) -> usize {
        self.words.set(self.words.get() + words);
        self.said.set(self.said.get() + words + told);
        self.said.get()
    }

    /// What was passed on is void; returns whether there was any.
    pub(super) fn unsay(&self) -> bool {
        self.words.set(0);
        self.said.take() > 0
    }
}
