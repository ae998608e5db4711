//! The way of a decision into the audit trail: a bounded queue, filled where
//! decisions are taken, and a task that carries it to the plugin that keeps the
//! trail, many at a time.
//!
//! Whoever takes a decision never waits: it leaves names and a reference to the
//! payload behind. The digest of the payload is made here, later, and the
//! payload goes no further. Where many payloads wait already, it is made at once,
//! but for a decision that finds no room: of that nothing is read.
//!
//! # Invariants
//!
//! * What finds no room, or cannot be written whoever asks how often, is counted,
//!   denials and permissions apart, and the counts are written down as a record of
//!   their own, in their place.
//! * A quarter of the room is for denials alone.
//! * One payer has at most half of what the others leave, and payloads take no
//!   room from decisions: so what somebody does is not hidden by what another, or
//!   the same one with large payloads, does at that time.
//! * Nobody fills the trail with denials, and no plugin with what it tells: those
//!   that repeat are counted.
//!
//! # Failure
//!
//! While the trail cannot be written, decisions wait here, and the daemon's
//! health says so; events go on. What waits when the process dies is lost: a
//! tenth of a second's worth while all is well.

mod line;
mod note;
mod queue;
mod repeats;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ksi_identity::Witness;
use ksi_protocol::{Bytes, Code, EventName, Refusal};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};

use self::{
    line::{Line, append},
    note::{Note, Payload},
    queue::{Pushed, Queue, Waiting},
};
use crate::{hub::Hub, woken};

/// Decisions that are written at once, and bytes that are read for that.
const BATCH_MAX: usize = 1_024;
const BATCH_BYTES: usize = 4 << 20;
/// Time for which decisions gather before they are written.
const GATHER: Duration = Duration::from_millis(100);
/// Time after which it is looked what was counted meanwhile.
const LOOK: Duration = Duration::from_secs(1);
/// First and longest pause after the trail could not be written.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Time for which the trail may not be written before anybody is told: a plugin
/// that is being restarted is no trouble.
const PATIENCE: Duration = Duration::from_secs(15);

/// The queue.
#[derive(Debug, Default)]
pub struct Trail {
    queue: Mutex<Queue>,
    /// Told when the first decision waits.
    filled: Notify,
    /// Told when nothing is to be waited for any more.
    hurry: Notify,
    /// Told when everything is written.
    empty: Notify,
}

/// What the trail is written by.
const APPEND: &str = "audit:append";

/// Whether this is the trail itself having decisions written, whatever a manifest says of that
/// event: each record would lead to another one, for ever.
fn is_ours(decision: &ksi_identity::Decision<'_>) -> bool {
    decision.allowed && decision.event.as_str() == APPEND && decision.origin == "daemon"
}

/// Whether there may be any number of such decisions: denials, and what a plugin
/// tells. What a principal asks for and gets is written down each time.
fn may_repeat(decision: &ksi_identity::Decision<'_>) -> bool {
    !decision.allowed || (decision.is_emission && decision.origin.starts_with("plugin:"))
}

/// Names are copied and the payload is referred to; all else happens later.
impl Witness for Trail {
    fn decided(&self, decision: &ksi_identity::Decision<'_>) {
        if is_ours(decision) || (may_repeat(decision) && !self.lock().admit(decision)) {
            return;
        }
        let caller = decision.caller;
        let principal = &caller.principal;
        self.note(Note {
            at_ms: decision.at_ms,
            payer: principal.payer.clone(),
            principal: principal.name.to_string(),
            tenant: principal.tenant.as_deref().map(str::to_owned),
            origin: decision.origin.to_owned(),
            behalf: (*caller.origin != *decision.origin).then(|| caller.origin.to_string()),
            event: decision.event.clone(),
            emitted: decision.is_emission,
            permission: decision.right.to_owned(),
            allowed: decision.allowed,
            correlation_id: decision.correlation_id.map(str::to_owned),
            payload: Payload::Whole(decision.data.clone()),
        });
    }
}

impl Trail {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a decision behind. Never waits; whoever sends more than can be digested
    /// later has it digested in its own turn.
    fn note(&self, note: Note) {
        let weight = note.weight();
        match self.push(note, weight) {
            Pushed::Waits => {}
            Pushed::Lost(note) => drop(note),
            Pushed::Heavy(mut note) => {
                let (digest, size) = note.payload.digested();
                note.payload = Payload::Digested { digest, size };
                self.push(note, weight);
            }
        }
    }

    fn push(&self, note: Note, weight: usize) -> Pushed {
        let mut queue = self.lock();
        let is_first = queue.waiting.is_empty();
        let pushed = queue.push(note, weight);
        let has_come = is_first && !queue.waiting.is_empty();
        drop(queue);
        if has_come {
            self.filled.notify_one();
            woken::note();
        }
        pushed
    }

    /// Why the trail is not written, where it has not been for long.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.lock().trouble.clone()
    }

    /// Carries decisions to the trail, for ever.
    pub async fn run(self: Arc<Self>, hub: Arc<Hub>) {
        let event = EventName::parse(APPEND).expect("it is a name");
        loop {
            self.gather(&hub).await;
            let Some(records) = self.take() else { continue };
            let lines = tokio::task::spawn_blocking(|| records.into_iter().map(Line::from).collect());
            // It hashes and encodes, and does not panic.
            let Ok(lines) = lines.await else { continue };
            self.write(lines, |batch| hub.ask(event.clone(), batch)).await;
            let mut queue = self.lock();
            queue.writing = false;
            if queue.waiting.is_empty() {
                drop(queue);
                self.empty.notify_waiters();
            }
        }
    }

    /// Until something waits, and a moment more for what comes with it.
    async fn gather(&self, hub: &Hub) {
        let (waiting, repeat) = {
            let mut queue = self.lock();
            queue.end_repeats(Some(hub.now_ms()));
            (queue.waiting.len(), queue.counts())
        };
        if waiting >= BATCH_MAX {
            return;
        }
        let filled = self.filled.notified();
        let is_filled = match (waiting, repeat) {
            (1.., _) => true,
            (0, true) => timeout(LOOK, filled).await.is_ok(),
            (0, false) => {
                filled.await;
                true
            }
        };
        if is_filled {
            let _ = timeout(GATHER, self.hurry.notified()).await;
        }
    }

    fn take(&self) -> Option<Vec<Waiting>> {
        let mut queue = self.lock();
        let mut taken = Vec::with_capacity(queue.waiting.len().min(BATCH_MAX));
        let mut bytes = 0;
        while taken.len() < BATCH_MAX && (bytes < BATCH_BYTES || taken.is_empty()) {
            let Some((next, weight)) = queue.pop() else { break };
            bytes += weight;
            taken.push(next);
        }
        queue.writing = !taken.is_empty();
        (!taken.is_empty()).then_some(taken)
    }

    /// Has all of it written, but for what never will be: that is counted as lost,
    /// and holds up nobody behind it.
    async fn write<F, T>(&self, lines: Vec<Line>, ask: impl Fn(Bytes) -> F)
    where
        F: Future<Output = Result<T, Refusal>>,
    {
        let mut left = vec![lines];
        while let Some(mut lines) = left.pop() {
            let Err(refusal) = self.insist(append(&lines), &ask).await else { continue };
            if lines.len() > 1 {
                let later = lines.split_off(lines.len() / 2);
                left.extend([later, lines]);
                continue;
            }
            tracing::error!("a decision is not in the audit trail, but counted: {refusal}");
            let counted = lines.pop().and_then(|line| line.else_lost);
            left.extend(counted.map(|lost| vec![Waiting::Lost(lost).into()]));
        }
    }

    /// Asks until it is written, or until it is known that nothing of it can be.
    async fn insist<F, T>(&self, batch: Bytes, ask: impl Fn(Bytes) -> F) -> Result<(), Refusal>
    where
        F: Future<Output = Result<T, Refusal>>,
    {
        let began = Instant::now();
        let mut pause = PAUSE_MIN;
        loop {
            match ask(batch.clone()).await {
                Ok(_) => {
                    if self.lock().trouble.take().is_some() {
                        tracing::info!("the audit trail is written again");
                    }
                    return Ok(());
                }
                Err(refusal) if is_final(refusal.code) => return Err(refusal),
                Err(refusal) => {
                    let late = began.elapsed() > PATIENCE;
                    let why = format!("the audit trail is not written: {}", refusal.message);
                    if late && self.lock().trouble.replace(why.clone()).is_none() {
                        tracing::error!("{why}");
                    }
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Waits until everything that was left behind is written, or for `longest`.
    pub async fn flush(&self, longest: Duration) {
        let done = timeout(longest, async {
            loop {
                let empty = self.empty.notified();
                {
                    let mut queue = self.lock();
                    queue.end_repeats(None);
                    if queue.waiting.is_empty() && !queue.writing {
                        return;
                    }
                }
                self.filled.notify_one();
                self.hurry.notify_one();
                empty.await;
            }
        });
        if done.await.is_err() {
            let left = self.lock().waiting.len();
            tracing::error!(left, "decisions are not in the audit trail: it could not be written in time");
        }
    }
}

/// Whether what is refused so would be refused at any time. Everything else may be
/// a matter of the plugin that is not there, or of whoever has a word before it.
fn is_final(code: Code) -> bool {
    matches!(code, Code::TooLarge | Code::InvalidPayload | Code::InvalidFrame)
}

#[cfg(test)]
mod tests {
    use ksi_protocol::audit::{Append, Decision, Record};
    use ksi_trust::Digest;

    use super::{
        queue::{BYTES_MAX, NOTES_MAX, WHOLE_BYTES_MAX},
        *,
    };

    #[test]
    fn that_it_is_written_is_not_written_down_and_that_others_would_write_it_is() {
        let waits = |origin: &str, allowed| {
            let trail = Trail::default();
            let authority = ksi_identity::Authority::full(origin);
            let (event, data) = (EventName::parse(APPEND).unwrap(), Bytes::new());
            trail.decided(&ksi_identity::Decision {
                allowed,
                audited: true,
                right: "system.admin",
                ..authority.decision(&event, &data, 1)
            });
            trail.lock().waiting.len()
        };
        assert_eq!([waits("daemon", true), waits("session:1", true), waits("session:1", false)], [0, 1, 1]);
    }

    fn note(allowed: bool, data: usize) -> Note {
        Note {
            at_ms: 1,
            payer: "me".into(),
            principal: "me".into(),
            tenant: None,
            origin: "session:1".into(),
            behalf: None,
            event: EventName::parse("a:b").unwrap(),
            emitted: false,
            permission: "a.use".into(),
            allowed,
            correlation_id: None,
            payload: Payload::Whole(vec![7; data].into()),
        }
    }

    fn lost(trail: &Trail) -> Vec<(u64, u64)> {
        let queue = trail.lock();
        let count = |one: &Waiting| match one {
            Waiting::Lost(lost) => Some((lost.allowed, lost.denied)),
            Waiting::Note(..) | Waiting::Repeated(_) => None,
        };
        queue.waiting.iter().filter_map(count).collect()
    }

    fn of(payer: &str, note: Note) -> Note {
        Note { payer: payer.into(), ..note }
    }

    #[test]
    fn what_finds_no_room_is_counted_in_its_place_and_denials_find_room_for_longer() {
        let trail = Trail::default();
        for _ in 0..NOTES_MAX {
            trail.note(note(true, 0));
        }
        // Half of what is there for what was allowed.
        let own = NOTES_MAX / 4 * 3 / 2;
        assert_eq!(lost(&trail), [((NOTES_MAX - own) as u64, 0)]);
        for _ in 0..NOTES_MAX {
            trail.note(note(false, 0));
        }
        // And of what is there for denials.
        let more = NOTES_MAX / 2 - own;
        let (allowed, denied) = ((NOTES_MAX - own) as u64, (NOTES_MAX - more) as u64);
        assert_eq!(lost(&trail), [(allowed, 0), (0, denied)]);
        assert_eq!(trail.take().unwrap().len(), BATCH_MAX);
        trail.note(note(true, 0));
        assert_eq!(lost(&trail), [(allowed, 0), (1, denied)]);
    }

    #[test]
    fn who_fills_the_queue_leaves_room_for_what_others_do() {
        let trail = Trail::default();
        for _ in 0..2 * NOTES_MAX {
            trail.note(of("mallory", note(true, 0)));
        }
        for payer in ["alice", "bob", "carol"] {
            for _ in 0..500 {
                trail.note(of(payer, note(true, 0)));
            }
        }
        let waits = |payer: &str| trail.lock().by.get(payer).copied();
        assert_eq!((waits("alice"), waits("bob"), waits("carol")), (Some(500), Some(500), Some(500)));
        while trail.take().is_some() {}
        assert!(trail.lock().by.is_empty());
    }

    #[test]
    fn payloads_that_wait_are_bounded_in_bytes_and_no_decision_is_lost_for_them() {
        let trail = Trail::default();
        for n in 0..100 {
            trail.note(note(n % 2 == 0, 1 << 20));
            assert!(trail.lock().whole_bytes <= WHOLE_BYTES_MAX);
        }
        trail.note(note(true, BYTES_MAX + 1));
        assert_eq!(lost(&trail), []);
        // The bytes of one batch are bounded, too.
        assert_eq!(trail.take().unwrap().len(), BATCH_BYTES / (1 << 20));
        let mut decisions = Vec::new();
        while let Some(taken) = trail.take() {
            decisions.extend(taken.into_iter().filter_map(|one| match one {
                Waiting::Note(note, _) => Some(Decision::from(note)),
                Waiting::Repeated(_) | Waiting::Lost(_) => None,
            }));
        }
        assert_eq!(trail.lock().bytes, 0);
        assert_eq!(trail.lock().whole_bytes, 0);
        let digest = Digest::of(&vec![7; 1 << 20]).to_string();
        let (last, others) = decisions.split_last().unwrap();
        assert!(others.iter().all(|one| one.sha256 == digest && one.size == 1 << 20));
        assert_eq!((others.len(), last.size), (96, BYTES_MAX as u64 + 1));
    }

    /// How many payloads wait as they came.
    fn whole(trail: &Trail) -> usize {
        let is_whole = |one: &&Waiting| matches!(one, Waiting::Note(note, _) if matches!(note.payload, Payload::Whole(_)));
        trail.lock().waiting.iter().filter(is_whole).count()
    }

    #[test]
    fn one_payload_waits_where_no_other_does_however_large_it_is_and_however_much_else_waits() {
        let trail = Trail::default();
        let long = |n: usize| Note { correlation_id: Some("c".repeat(n)), ..note(true, 0) };
        trail.note(long(WHOLE_BYTES_MAX));
        trail.note(note(true, 2 * WHOLE_BYTES_MAX));
        trail.note(note(true, 1));
        // The long one has an empty payload, which is no more than its digest.
        assert_eq!(whole(&trail), 2);
        while trail.take().is_some() {}
        for _ in 0..9 {
            trail.note(note(true, 1 << 20));
        }
        assert_eq!(whole(&trail), 8);
    }

    #[test]
    fn what_finds_no_room_is_lost_before_its_payload_is_read() {
        let trail = Trail::default();
        let heavy = || note(true, WHOLE_BYTES_MAX);
        trail.note(heavy());
        let weight = heavy().weight();
        assert!(matches!(trail.push(heavy(), weight), Pushed::Heavy(_)));
        for _ in 0..NOTES_MAX {
            trail.note(note(true, 0));
        }
        let pushed = trail.push(heavy(), weight);
        assert!(matches!(pushed, Pushed::Lost(Note { payload: Payload::Whole(_), .. })));
    }

    #[test]
    fn a_record_has_the_digest_and_the_size_and_nothing_of_the_payload() {
        let payload = b"a prompt that nobody may read".to_vec();
        let one = Note { payload: Payload::Whole(payload.clone().into()), ..note(true, 0) };
        let batch = append(&[Waiting::Note(one, 0).into()]);
        assert!(!batch.windows(8).any(|part| part == &payload[..8]));
        let append: Append = ksi_protocol::decode(&batch).unwrap();
        let Ok(Record::Decision(decision)) = serde_json::from_str(&append.records[0]) else {
            panic!("{append:?}")
        };
        assert_eq!((decision.size, &decision.sha256), (29, &Digest::of(&payload).to_string()));
    }

    #[test]
    fn what_waits_is_charged_with_its_texts_and_not_only_with_its_payload() {
        let trail = Trail::default();
        let long = || Some("c".repeat(1 << 20));
        for _ in 0..40 {
            trail.note(Note { correlation_id: long(), ..note(false, 0) });
        }
        assert!(trail.lock().bytes <= BYTES_MAX);
        assert_eq!(lost(&trail), [(0, 9)]);
    }

    #[tokio::test]
    async fn a_record_that_can_never_be_written_is_counted_and_the_others_are_written_around_it() {
        let trail = Trail::default();
        let one = |n: u64, origin: &str| {
            Line::from(Waiting::Note(Note { at_ms: n, origin: origin.into(), ..note(false, 0) }, 0))
        };
        let lines = (0..10).map(|n| one(n, if n == 6 { "cursed" } else { "session:1" })).collect();
        let written = Mutex::new(Vec::new());
        let ask = |batch: Bytes| {
            let append: Append = ksi_protocol::decode(&batch).unwrap();
            let cursed = append.records.iter().any(|record| record.contains("cursed"));
            if !cursed {
                written.lock().unwrap().extend(append.records);
            }
            std::future::ready(match cursed {
                true => Err(Refusal::new(Code::TooLarge, "a record is too long")),
                false => Ok(()),
            })
        };
        trail.write(lines, ask).await;
        let written = written.into_inner().unwrap();
        let records = written.iter().map(|line| serde_json::from_str::<Record>(line).unwrap());
        let (mut at, mut counted) = (Vec::new(), Vec::new());
        for record in records {
            at.push(record.at_ms());
            if let Record::Lost(lost) = record {
                counted.push((lost.at_ms, lost.allowed, lost.denied));
            }
        }
        assert_eq!(at, (0..10).collect::<Vec<_>>());
        assert_eq!(counted, [(6, 0, 1)]);
    }
}
