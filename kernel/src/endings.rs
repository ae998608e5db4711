//! Endings: how a request is over, whoever ends it.
//!
//! Answer, cancel, timeout, detachment and the end of a parent all come
//! together here. An entry that was taken out of the pending table is settled
//! first (charges taken back, what hangs on it ended), and only then its asker
//! hears the last answer; so its id is free again when it does.

use std::{sync::Arc, time::Duration};

use ksi_protocol::Refusal;

use crate::{
    effects::{Delivery, Effects},
    envelope::{Answer, Token},
    kernel::Kernel,
    pending::{Address, Matter, Pending, Request},
    port::{Port, Role},
    refusals,
};

impl<H: Clone + Send + Sync + 'static> Kernel<H> {
    /// Ends what was taken out of the table: settles it, and gives its asker
    /// the last answer.
    pub(crate) fn end(&self, token: Token, entry: Pending<H>, answer: Answer, effects: &mut Effects<H>) {
        if let Matter::Request(request) = self.settle(token, entry, effects) {
            self.deliver_answer(token, request.into(), answer, effects);
        }
    }

    /// Ends what was taken out of the table with what its owner says last. An
    /// answer is for whoever may still ask; that something was accepted, or refused,
    /// is also told to whoever may not.
    pub(crate) fn finish(
        &self,
        token: Token,
        entry: Pending<H>,
        answer: Answer,
        now_ms: u64,
        effects: &mut Effects<H>,
    ) {
        let Matter::Request(request) = self.settle(token, entry, effects) else { return };
        let is_revoked = matches!(answer, Answer::Reply(_) | Answer::End(_)) && request.is_revoked(now_ms);
        let to = Address::from(request);
        let answer = if is_revoked { to.revoked(now_ms).into() } else { answer };
        self.deliver_answer(token, to, answer, effects);
    }

    /// Ends, with a refusal, what is still in the table.
    pub(crate) fn fail(&self, token: Token, refusal: Refusal, effects: &mut Effects<H>) {
        if let Some(entry) = self.pending.take(token) {
            self.revoke(token, entry, refusal, effects);
        }
    }

    /// Ends what was taken out of the table against the will of its holder.
    fn revoke(&self, token: Token, entry: Pending<H>, refusal: Refusal, effects: &mut Effects<H>) {
        if let Some(hold) = &entry.holder {
            effects.push(&hold.port, Delivery::Cancel { token });
        }
        self.end(token, entry, refusal.into(), effects);
    }

    /// Takes back the charges of an entry that was taken out of the table, and
    /// ends all that was asked on its behalf.
    pub(crate) fn settle(&self, token: Token, entry: Pending<H>, effects: &mut Effects<H>) -> Matter<H> {
        let (matter, mut open) = self.discharge(token, entry);
        // A loop, because how deep requests nest is for others to decide.
        let mut next = 0;
        while let Some(&child) = open.get(next) {
            next += 1;
            let Some(entry) = self.pending.take(child) else { continue };
            if let Some(hold) = &entry.holder {
                effects.push(&hold.port, Delivery::Cancel { token: child });
            }
            let (matter, children) = self.discharge(child, entry);
            open.extend(children);
            if let Matter::Request(request) = matter {
                let refusal = refusals::parent_ended(token);
                self.deliver_answer(child, request.into(), refusal.into(), effects);
            }
        }
        matter
    }

    fn discharge(&self, token: Token, entry: Pending<H>) -> (Matter<H>, Vec<Token>) {
        drop(entry.holder);
        if let Some(parent) = entry.parent {
            self.pending.unlink(parent, token);
        }
        if let Matter::Request(request) = &entry.matter {
            request.asker.asks().remove(&request.id);
        }
        (entry.matter, entry.children)
    }

    pub(crate) fn deliver_answer(
        &self,
        token: Token,
        to: Address<H>,
        answer: Answer,
        effects: &mut Effects<H>,
    ) {
        if matches!(answer, Answer::Refusal(_)) {
            self.counters.refusals.add(1);
        }
        let Address { asker, id, event, correlation_id, .. } = to;
        effects.push(&asker, Delivery::Answer { id, token, event, answer, correlation_id });
    }

    /// Ends all that is due by now. Returns when to call next; until then, and
    /// until [`Effects::deadline`] says otherwise, nothing is due.
    pub fn expire(&self, now_ms: u64, effects: &mut Effects<H>) -> Option<u64> {
        if self.pending.earliest()? <= now_ms {
            for token in self.pending.due(now_ms) {
                let is_due = |entry: &Pending<H>| entry.ends_ms() <= now_ms;
                let Some(entry) = self.pending.take_if(token, is_due) else { continue };
                let refusal = overdue(&entry, now_ms);
                self.give_up(token, entry, refusal, Some(now_ms), effects);
            }
        }
        self.pending.earliest()
    }

    /// Ends with `reason` all that clients still wait for, once the daemon
    /// waits no longer for it.
    pub fn refuse_clients(&self, reason: &Refusal, effects: &mut Effects<H>) {
        for token in self.pending.all(Pending::is_of_a_client) {
            let Some(entry) = self.pending.take_if(token, Pending::is_of_a_client) else { continue };
            self.give_up(token, entry, reason.clone(), None, effects);
        }
    }

    /// Ends what clients wait for and may not ask any more, once rights were taken
    /// away: whoever works on it stops before it has done more. What the daemon itself
    /// answers goes on; it may be what took them away.
    pub fn end_revoked(&self, now_ms: u64, effects: &mut Effects<H>) {
        let is_revoked = |entry: &Pending<H>| {
            let Matter::Request(request) = &entry.matter else { return false };
            request.asker.role == Role::Client && request.is_revoked(now_ms)
        };
        for token in self.pending.all(is_revoked) {
            let Some(entry) = self.pending.take_if(token, is_revoked) else { continue };
            let Some(to) = entry.address() else { continue };
            self.revoke(token, entry, to.revoked(now_ms), effects);
        }
    }

    /// Detaches an endpoint. Requests that it holds are refused to their askers
    /// with `reason`, its own are cancelled at their owners, and its
    /// subscriptions and ownership end. Its events stay declared, and
    /// interceptors that fail closed stay in force, until [`Kernel::forget`].
    pub fn detach(&self, port: &Arc<Port<H>>, reason: &Refusal, effects: &mut Effects<H>) {
        if !port.close() {
            return;
        }
        self.subscriptions.remove_all(port);
        self.interceptors.remove(port);
        self.registry.disown(port);
        let mut asked: Vec<_> = port.asks().values().copied().collect();
        asked.sort_unstable();
        for token in asked {
            self.fail(token, refusals::detached(), effects);
        }
        // The table is searched only where there is something to find.
        if port.holding() > 0 {
            let is_theirs = |entry: &Pending<H>| entry.is_held_by(port);
            for token in self.pending.all(is_theirs) {
                let Some(entry) = self.pending.take_if(token, is_theirs) else { continue };
                let refusal = match &entry.matter {
                    Matter::Request(_) | Matter::Fact => reason.clone(),
                    Matter::Word(word) => refusals::interceptor_gone(&port.origin, word.held.event()),
                };
                self.give_up(token, entry, refusal, None, effects);
            }
        }
        self.slots.put_back(port.id);
    }

    /// Ends a request with this refusal, or goes on without a word; without a
    /// time, as if it were still when the question was put.
    fn give_up(
        &self,
        token: Token,
        entry: Pending<H>,
        refusal: Refusal,
        now_ms: Option<u64>,
        effects: &mut Effects<H>,
    ) {
        if entry.is_request() {
            return self.revoke(token, entry, refusal, effects);
        }
        if let Some(hold) = &entry.holder {
            effects.push(&hold.port, Delivery::Cancel { token });
        }
        if let Matter::Word(word) = self.settle(token, entry, effects) {
            let now_ms = now_ms.unwrap_or(word.asked_ms);
            self.go_without(word, refusal, now_ms, effects);
        }
    }
}

/// What to say of an entry that has ended of itself.
fn overdue<H>(entry: &Pending<H>, now_ms: u64) -> Refusal {
    match &entry.matter {
        Matter::Request(request) if entry.ends_ms() < entry.deadline_ms => {
            refusals::revoked(&request.asker.authority.caller, &request.event, now_ms)
        }
        Matter::Request(request) => {
            let after = Duration::from_millis(entry.deadline_ms.saturating_sub(request.asked_ms));
            refusals::timeout(&request.event, after)
        }
        Matter::Word(word) => {
            let origin = entry.holder.as_ref().map_or("an interceptor", |hold| &hold.port.origin);
            refusals::interceptor_silent(origin, word.held.event())
        }
        // Has no deadline, nor anybody to tell.
        Matter::Fact => refusals::cancelled(),
    }
}

impl<H> From<Request<H>> for Address<H> {
    fn from(request: Request<H>) -> Self {
        let Request { asker, id, event, correlation_id, bit, .. } = request;
        Self { asker, id, event, correlation_id, bit }
    }
}
