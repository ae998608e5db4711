//! The life of an entry between its acceptance and its end: its turn, its
//! attempts, the pauses between them.

use ksi_sdk::protocol::{Bytes, Code, Refusal};

use super::{
    Effect, Ended, Ending, Entry, Id, KEY_MS, Ledger, Remembered, Run, State, Step,
    doubt::Ran,
    size,
    verdict::{CRASH_WINDOW_MS, CRASHES_MAX, Verdict},
};

/// A word of the handler moves its lease at most this often, milliseconds, and so
/// many times in its timeout: a stream of small parts must not cost more than it is
/// worth.
const HEARTBEAT_MS: u64 = 1_000;
const HEARTBEATS: u64 = 10;

/// When a lease runs out whose attempt was not begun yet.
const NOT_BEGUN_MS: u64 = u64::MAX;

/// Entries that one tick deals with, so that no record is large and nobody
/// waits long. What is left is due at once.
const TICK_MAX: usize = 256;

impl Entry {
    /// When a lease that begins, or is renewed, at this time is given up.
    pub(super) fn leased_until(&self, now_ms: u64) -> u64 {
        now_ms.saturating_add(self.policy.timeout_ms)
    }

    /// Somebody died while it ran, perhaps for another one; whether it has seen that
    /// before. Its time begins anew at the first: it was begun in time, and is not to
    /// expire for what it waits now.
    pub(super) fn sees_death(&mut self, now_ms: u64) -> bool {
        let again = std::mem::replace(&mut self.trouble().seen_death, true);
        if !again && now_ms < self.expires_ms {
            self.expires_ms = now_ms.saturating_add(self.policy.expires_ms);
        }
        again
    }
}

impl Ledger {
    /// The answer to an attempt. One to an older lease, or after the end, is an
    /// empty step.
    pub fn outcome(&mut self, now_ms: u64, id: Id, lease: u32, answer: Result<Bytes, Refusal>) -> Step {
        let mut step = Step::default();
        if !self.holds(id, lease) {
            return step;
        }
        let ran = self.release(id);
        match answer {
            Ok(result) => {
                if let Some(entry) = self.live.get_mut(&id) {
                    entry.result_bytes = size(&result);
                    self.lanes.get(entry.lane).widen(entry);
                }
                step.batch.put(id.result_key(), result);
                self.end(now_ms, id, Ending::Done, None, &mut step);
            }
            Err(refusal) => self.refused(now_ms, id, ran, refusal, &mut step),
        }
        self.pump(now_ms, &mut step);
        step
    }

    /// Its attempt begins now, and so does its lease: what the disk took until here is
    /// not the handler's time.
    pub fn begun(&mut self, now_ms: u64, id: Id, lease: u32) {
        if self.holds(id, lease)
            && let Some(entry) = self.live.get(&id)
        {
            let due_ms = entry.leased_until(now_ms);
            self.set_due(id, due_ms);
        }
    }

    /// A word of the handler that is not its answer: its lease begins anew.
    pub fn heartbeat(&mut self, now_ms: u64, id: Id, lease: u32) {
        if self.holds(id, lease)
            && let Some(entry) = self.live.get(&id)
        {
            let due_ms = entry.leased_until(now_ms);
            let least_ms = HEARTBEAT_MS.min(entry.policy.timeout_ms / HEARTBEATS);
            if due_ms >= entry.due_ms.saturating_add(least_ms) {
                self.set_due(id, due_ms);
            }
        }
    }

    /// What happens because time has passed: pauses end, entries expire, leases
    /// run out, the old is forgotten. To be called when [`Ledger::due_ms`] is.
    pub fn tick(&mut self, now_ms: u64) -> Step {
        let mut step = Step::default();
        for _ in 0..TICK_MAX {
            let Some(&(due_ms, id)) = self.due.first() else { break };
            if due_ms > now_ms {
                break;
            }
            self.due_now(now_ms, id, &mut step);
        }
        for _ in 0..TICK_MAX {
            let Some(gone) = self.ended.pop(now_ms) else { break };
            gone.erase(&mut step.batch);
        }
        self.pump(now_ms, &mut step);
        step
    }

    /// Ends every pause between attempts: what held them back is over.
    pub fn hurry(&mut self, now_ms: u64) -> Step {
        let waits = |entry: &Entry| matches!(entry.state, State::Waiting { .. });
        let waiting: Vec<Id> =
            self.live.iter().filter(|(_, entry)| waits(entry)).map(|(id, _)| *id).collect();
        for id in waiting {
            self.set_due(id, now_ms);
        }
        self.tick(now_ms)
    }

    /// When the next tick is needed, milliseconds since 1970; it may have
    /// passed. `None`: never, as things are.
    #[must_use]
    pub fn due_ms(&self) -> Option<u64> {
        let entry = self.due.first().map(|(due_ms, _)| *due_ms);
        let suspect = self.alone.is_none() && !self.suspects.is_empty() && !self.stopping;
        let suspect = suspect.then_some(self.suspects_from_ms);
        let lane = self.lanes.due_ms(self.limits.in_flight).filter(|_| !self.stopping);
        let doubted = self.doubts.due_ms().filter(|_| !self.stopping);
        [entry, suspect, lane, doubted, self.ended.due_ms()].into_iter().flatten().min()
    }

    /// Whether this is the lease under way.
    #[must_use]
    pub fn holds(&self, id: Id, lease: u32) -> bool {
        self.live
            .get(&id)
            .is_some_and(|entry| entry.leases == lease && matches!(entry.state, State::Leased { .. }))
    }

    fn due_now(&mut self, now_ms: u64, id: Id, step: &mut Step) {
        let entry = self.live.get(&id).expect("what is due lives");
        let (state, expires_ms, lease) = (entry.state, entry.expires_ms, entry.leases);
        match state {
            State::Leased { .. } => {
                let ran = self.release(id);
                step.effects.push(Effect::Abandon { id, lease });
                let refusal = Refusal::new(Code::Timeout, "the attempt was not answered in time");
                self.refused(now_ms, id, ran, refusal, step);
            }
            _ if now_ms >= expires_ms => self.expire(now_ms, id, step),
            State::Waiting { .. } => {
                self.lanes.get(entry.lane).probe(entry);
                self.enqueue(id);
            }
            State::Accepted | State::Suspect | State::Ended { .. } => self.set_due(id, expires_ms),
        }
    }

    /// Whether an entry that has just come may be begun at once.
    pub(super) fn may_begin(&mut self, now_ms: u64, id: Id) -> bool {
        let entry = self.live.get(&id).expect("what comes lives");
        !self.stopping && self.lanes.get(entry.lane).is_open(entry, now_ms, self.limits.in_flight)
    }

    /// Begins what may begin.
    pub(super) fn pump(&mut self, now_ms: u64, step: &mut Step) {
        if self.stopping {
            return;
        }
        for lane in 0..self.lanes.count() {
            while let Some(id) = self.lanes.get(lane).next(now_ms, self.limits.in_flight) {
                self.begin(now_ms, id, false, step);
            }
        }
        while let Some(id) = self.doubts.next(now_ms) {
            self.begin(now_ms, id, false, step);
        }
        while self.alone.is_none()
            && now_ms >= self.suspects_from_ms
            && let Some((_, id)) = self.suspects.pop_first()
        {
            self.begin(now_ms, id, true, step);
        }
    }

    /// Begins an attempt of an entry whose turn it is, unless it is too late.
    fn begin(&mut self, now_ms: u64, id: Id, suspect: bool, step: &mut Step) {
        if self.live.get(&id).is_some_and(|entry| now_ms >= entry.expires_ms) {
            return self.expire(now_ms, id, step);
        }
        self.lease(now_ms, id, suspect, step);
        self.write(id, step);
    }

    /// Leases an entry. Whoever calls writes it.
    pub(super) fn lease(&mut self, now_ms: u64, id: Id, suspect: bool, step: &mut Step) {
        let entry = self.live.get_mut(&id).expect("what is leased lives");
        let until_ms = entry.leased_until(now_ms);
        entry.state = State::Leased { epoch: self.epoch, until_ms, suspect };
        entry.attempts += 1;
        entry.leases += 1;
        step.effects.push(Effect::Run(Run {
            id,
            lease: entry.leases,
            event: entry.event.clone(),
            origin: entry.origin.to_string(),
            principal: entry.principal.as_deref().map(str::to_owned),
            tenant: entry.tenant.as_deref().map(str::to_owned),
            correlation_id: entry.correlation_id.as_deref().map(str::to_owned),
        }));
        self.occupy(id, suspect, NOT_BEGUN_MS);
    }

    /// Gives an entry that runs its place among those that do.
    pub(super) fn occupy(&mut self, id: Id, suspect: bool, until_ms: u64) {
        let entry = self.live.get(&id).expect("what runs lives");
        self.lanes.get(entry.lane).runs(entry, id);
        self.doubts.runs(entry.event.namespace(), id);
        if suspect {
            self.alone = Some(id);
        }
        self.set_due(id, until_ms);
    }

    /// Takes back the place of an entry that ran; how it did.
    pub(super) fn release(&mut self, id: Id) -> Ran {
        let entry = self.live.get(&id).expect("what ran lives");
        self.lanes.get(entry.lane).ran(entry, id);
        if self.alone == Some(id) {
            self.alone = None;
        }
        self.doubts.ran(entry.event.namespace(), id)
    }

    fn refused(&mut self, now_ms: u64, id: Id, ran: Ran, refusal: Refusal, step: &mut Step) {
        let entry = self.live.get_mut(&id).expect("what was refused lives");
        let verdict = Verdict::of(&refusal, entry.policy.repeat);
        if verdict != (Verdict::Again { counts: false }) {
            // Somebody took it.
            self.lanes.get(entry.lane).widen(entry);
        }
        match verdict {
            Verdict::Again { counts: false } => {
                entry.attempts -= 1;
                let longest_ms = now_ms.saturating_add(entry.policy.backoff_max_ms);
                let until_ms = self.pause(now_ms, id, refusal, step);
                // Another entry need not wait as long as this one asked for.
                let entry = self.live.get(&id).expect("what pauses lives");
                self.lanes.get(entry.lane).narrow(entry, until_ms.min(longest_ms));
            }
            Verdict::Again { counts: true } if entry.attempts < entry.attempts_max => {
                let _ = self.pause(now_ms, id, refusal, step);
            }
            Verdict::Again { counts: true } | Verdict::Failed => {
                self.end(now_ms, id, Ending::Failed, Some(refusal), step);
            }
            Verdict::Unknown => self.end_unknown(now_ms, id, &refusal.message, step),
            Verdict::Crash => match self.crashed(now_ms, id, ran) {
                true => self.end_dead(now_ms, id, &refusal.message, step),
                false if self.live.get(&id).is_some_and(|entry| entry.policy.repeat) => {
                    let _ = self.pause(now_ms, id, refusal, step);
                }
                false => self.end_unknown(now_ms, id, &refusal.message, step),
            },
        }
    }

    /// The plugin crashed while an entry ran there; whether that is the end of it.
    fn crashed(&mut self, now_ms: u64, id: Id, ran: Ran) -> bool {
        let entry = self.live.get_mut(&id).expect("whose handler crashed lives");
        let again = entry.sees_death(now_ms);
        let namespace = entry.event.namespace();
        let others = self.lanes.running(namespace);
        if self.doubts.crashed(now_ms, namespace, id, ran, others, again) {
            return self.charge(now_ms, id);
        }
        // Another one may be to blame: no attempt counts.
        entry.attempts -= 1;
        false
    }

    /// Charges an entry with a crash; whether that is the end of it.
    pub(super) fn charge(&mut self, now_ms: u64, id: Id) -> bool {
        let entry = self.live.get_mut(&id).expect("whose handler crashed lives");
        let exhausted = entry.policy.repeat && entry.attempts >= entry.attempts_max;
        let crashes = &mut entry.trouble().crashes;
        crashes.push(now_ms);
        crashes.retain(|at_ms| now_ms.saturating_sub(*at_ms) < CRASH_WINDOW_MS);
        exhausted || crashes.len() >= CRASHES_MAX
    }

    /// Lets an entry wait before its next attempt; until when.
    fn pause(&mut self, now_ms: u64, id: Id, refusal: Refusal, step: &mut Step) -> u64 {
        let entry = self.live.get_mut(&id).expect("what pauses lives");
        let pause_ms = self.jitter.pause_ms(&entry.policy, entry.leases, refusal.retry_after_ms);
        let until_ms = now_ms.saturating_add(pause_ms);
        entry.state = State::Waiting { until_ms };
        entry.trouble().refusal = Some(refusal);
        let due_ms = until_ms.min(entry.expires_ms);
        self.set_due(id, due_ms);
        self.write(id, step);
        until_ms
    }

    /// Puts an entry into the queue of its event.
    pub(super) fn enqueue(&mut self, id: Id) {
        let entry = self.live.get(&id).expect("what waits lives");
        if self.doubts.has(id) {
            self.doubts.wait(entry.event.namespace(), entry.crashes(), id);
        } else {
            self.lanes.get(entry.lane).waits(entry, id);
        }
        self.set_due(id, entry.expires_ms);
    }

    pub(super) fn set_due(&mut self, id: Id, due_ms: u64) {
        let entry = self.live.get_mut(&id).expect("what is due lives");
        if entry.due_ms != 0 {
            self.due.remove(&(entry.due_ms, id));
        }
        // 0 means that it is not among what is due.
        entry.due_ms = due_ms.max(1);
        self.due.insert((entry.due_ms, id));
    }

    fn expire(&mut self, now_ms: u64, id: Id, step: &mut Step) {
        let entry = self.live.get(&id).expect("what expires lives");
        let mut message = format!("it was not done within {} ms", entry.policy.expires_ms);
        // What held it up until then is what somebody has to see to.
        if let Some(last) = entry.trouble.as_ref().and_then(|trouble| trouble.refusal.as_ref()) {
            message = format!("{message}; the last attempt: {}: {}", last.code, last.message);
        }
        let refusal = Refusal { retryable: false, ..Refusal::new(Code::Timeout, message) }
            .hint(format!("`ksi work retry {id}` runs it all the same"));
        self.end(now_ms, id, Ending::Expired, Some(refusal), step);
    }

    pub(super) fn end_unknown(&mut self, now_ms: u64, id: Id, why: &str, step: &mut Step) {
        let message = format!("nobody knows whether it had its effect: {why}");
        let refusal = Refusal::new(Code::Unknown, message)
            .hint(format!("look whether it had, and run `ksi work retry {id}` where it had not"));
        self.end(now_ms, id, Ending::Unknown, Some(refusal), step);
    }

    pub(super) fn end_dead(&mut self, now_ms: u64, id: Id, why: &str, step: &mut Step) {
        let crashes = self.live.get(&id).map_or(0, |entry| entry.crashes());
        let times = if crashes == 1 { "once".to_owned() } else { format!("{crashes} times") };
        let message = format!("its handler crashed over it {times}, and it was given up: {why}");
        let refusal = Refusal { retryable: false, ..Refusal::new(Code::PluginRestarted, message) }
            .hint(format!("`ksi plugin inspect` shows the crashes, `ksi work retry {id}` runs it again"));
        self.end(now_ms, id, Ending::Dead, Some(refusal), step);
    }

    /// Ends an entry that does not run.
    pub(super) fn end(
        &mut self,
        now_ms: u64,
        id: Id,
        how: Ending,
        refusal: Option<Refusal>,
        step: &mut Step,
    ) {
        let mut entry = self.unlink(id).expect("what ends lives");
        entry.state = State::Ended { how, at_ms: now_ms };
        let code = refusal.as_ref().map(|refusal| refusal.code);
        if how == Ending::Done {
            // Why an attempt before failed is of no use any more.
            if let Some(trouble) = entry.trouble.as_mut() {
                trouble.refusal = None;
            }
        } else {
            entry.trouble().refusal = refusal;
        }
        if let Some(key) = &entry.key {
            let (seq, payload, until_ms) = (entry.seq, key.payload, now_ms.saturating_add(KEY_MS));
            let remembered = Remembered { id, seq, payload, until_ms };
            let value = ksi_sdk::protocol::encode(&remembered).expect("names and numbers only");
            step.batch.put(entry.key_hash(key).table_key(), value);
        }
        if !how.keeps_payload() {
            entry.payload_bytes = 0;
            step.batch.delete(id.payload_key());
        }
        step.batch.put(id.work_key(), entry.encode());
        self.ended.insert(id, &entry);
        step.effects.push(Effect::Ended(Ended {
            id,
            how,
            code,
            attempts: entry.attempts,
            correlation_id: entry.correlation_id.take().map(String::from),
            event: entry.event.clone(),
            tenant: entry.tenant.as_deref().map(str::to_owned),
        }));
    }

    /// Takes an entry out of all that lives.
    pub(super) fn unlink(&mut self, id: Id) -> Option<Box<Entry>> {
        let entry = self.live.remove(&id)?;
        self.shares.remove(&entry);
        self.due.remove(&(entry.due_ms, id));
        self.lanes.get(entry.lane).leaves(&entry, id);
        self.suspects.remove(&(entry.crashes(), id));
        self.doubts.forget(entry.event.namespace(), entry.crashes(), id);
        if let Some(key) = &entry.key {
            let hash = entry.key_hash(key);
            if self.keys.get(&hash) == Some(&id) {
                self.keys.remove(&hash);
            }
        }
        Some(entry)
    }

    pub(super) fn write(&self, id: Id, step: &mut Step) {
        let entry = self.live.get(&id).expect("what is written lives");
        step.batch.put(id.work_key(), entry.encode());
    }
}
