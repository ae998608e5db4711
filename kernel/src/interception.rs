//! Interception: what waits for the word of interceptors, and how it goes on.
//!
//! Interceptors are heard one after the other. A question is an entry of the
//! pending table, charged to the interceptor; over a request it is the
//! request's child, so that it ends with it.
//!
//! # Failure
//!
//! An interceptor that is gone, busy or silent is skipped where it fails open;
//! otherwise the request is refused, or the emission dropped. Silent is one that
//! fails open and has used half of the time that was left, and one that fails
//! closed and has used all of it.

use std::{sync::Arc, time::Duration};

use ksi_protocol::Refusal;

use crate::{
    effects::{Delivery, Effects},
    envelope::{Token, Verdict},
    interceptors::Interceptor,
    kernel::Kernel,
    pending::{Held, Matter, Pending, Word},
    port::Port,
    refusals::{self, Fault},
};

/// How long interceptors may hold up what was emitted, all of them together. A
/// request has its own deadline; a fact should be told while it is news.
pub const EMISSION_LIMIT: Duration = Duration::from_secs(1);

impl<H: Clone + Send + Sync + 'static> Kernel<H> {
    /// Hears the next interceptors, or goes on where there are no more.
    pub(crate) fn consult(&self, mut word: Box<Word<H>>, now_ms: u64, effects: &mut Effects<H>) {
        while let Some(next) = word.rest.next() {
            word = match self.put(&next, word, now_ms, effects) {
                Ok(()) => return,
                Err((word, _)) if next.fails_open() => word,
                Err((word, refusal)) => return self.stop(word.held, refusal, effects),
            };
        }
        match word.held {
            Held::Request { token, envelope } => {
                let events = self.registry.load();
                match events.find(&envelope.event).and_then(|entry| events.receiver(entry, false)) {
                    Ok(to) => self.hand_over(token, envelope, &to, effects),
                    Err(absent) => self.fail(token, absent, effects),
                }
            }
            Held::Answer { token, data, last, .. } => {
                if let Some(entry) = self.pending.take(token) {
                    self.finish(token, entry, last(data), now_ms, effects);
                }
            }
            Held::Emission { from, envelope, bit, kept } => {
                self.tell(from, envelope, bit, kept, effects);
            }
        }
    }

    /// Puts the question to one interceptor. Where that cannot be asked, gives
    /// back what it should have had a word on, and why.
    fn put(
        &self,
        to: &Interceptor<H>,
        mut word: Box<Word<H>>,
        now_ms: u64,
        effects: &mut Effects<H>,
    ) -> Result<(), (Box<Word<H>>, Refusal)> {
        let gone = |word: Box<Word<H>>| {
            let refusal = refusals::interceptor_gone(to.origin(), word.held.event());
            Err((word, refusal))
        };
        let (port, index) = match to {
            Interceptor::Port { port, index, .. } if port.is_open() => (port, *index),
            _ => return gone(word),
        };
        let hold = match port.hold(&word.payer) {
            Ok(hold) => hold,
            Err(refusal) => return Err((word, refusal)),
        };
        let token = self.pending.issue();
        let parent = word.held.request();
        word.fail_open = to.fails_open();
        word.asked_ms = now_ms;
        let deadline_ms = match parent {
            _ if word.fail_open => now_ms.midpoint(word.deadline_ms),
            Some(_) => u64::MAX,
            None => word.deadline_ms,
        };
        let question = Delivery::Intercept {
            token,
            index,
            stage: word.held.stage(),
            event: word.held.event().clone(),
            data: word.held.data().clone(),
            origin: Arc::clone(word.held.origin()),
            caller: word.held.caller().cloned(),
        };
        let holder = Some(hold);
        let matter = Matter::Word(word);
        self.pending.insert(token, Pending { holder, deadline_ms, parent, children: Vec::new(), matter });
        self.pending.schedule(deadline_ms, effects);
        if parent.is_some_and(|parent| !self.pending.link(parent, token)) {
            // The request has ended meanwhile, so there is no question.
            if let Some(entry) = self.pending.take(token) {
                self.settle(token, entry, effects);
            }
            return Ok(());
        }
        if !port.is_open() {
            // Whoever detached it may have found the question and gone on.
            let Some(entry) = self.pending.take(token) else { return Ok(()) };
            if let Matter::Word(word) = self.settle(token, entry, effects) {
                return gone(word);
            }
        }
        effects.push(port, question);
        Ok(())
    }

    /// Goes no further with what interceptors held up.
    fn stop(&self, held: Held, refusal: Refusal, effects: &mut Effects<H>) {
        if let Held::Emission { kept, .. } = held {
            self.counters.refusals.add(1);
            if let Some(token) = kept {
                self.fail(token, refusal, effects);
            }
        } else if let Some(request) = held.request() {
            self.fail(request, refusal, effects);
        }
    }

    /// Takes an interceptor's word and goes on accordingly. One that comes too
    /// late is dropped and counted.
    ///
    /// # Errors
    ///
    /// A fault where the token was never this port's to give a word on.
    pub fn verdict(
        &self,
        port: &Arc<Port<H>>,
        token: Token,
        verdict: Verdict,
        now_ms: u64,
        effects: &mut Effects<H>,
    ) -> Result<(), Fault> {
        let theirs = |entry: &Pending<H>| entry.is_word() && entry.is_held_by(port);
        let Some(entry) = self.pending.take_if(token, theirs) else { return self.missing(token, port) };
        if let Matter::Word(mut word) = self.settle(token, entry, effects) {
            match verdict {
                Verdict::Pass => self.consult(word, now_ms, effects),
                Verdict::Edit(data) => {
                    *word.held.data() = data;
                    self.consult(word, now_ms, effects);
                }
                Verdict::Refuse(refusal) => self.stop(word.held, refusal, effects),
            }
        }
        Ok(())
    }

    /// Goes on without the word of an interceptor that is gone or silent.
    pub(crate) fn go_without(
        &self,
        word: Box<Word<H>>,
        refusal: Refusal,
        now_ms: u64,
        effects: &mut Effects<H>,
    ) {
        if word.fail_open {
            self.consult(word, now_ms, effects);
        } else {
            self.stop(word.held, refusal, effects);
        }
    }
}

#[cfg(test)]
mod tests;
