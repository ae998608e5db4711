//! What waits to be written, in order, and the sleep of the thread that writes it.

use std::{
    mem,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ksi_sdk::protocol::Bytes;

use super::{PAYLOAD_MAX, WRITE_MAX, error::JournalError, format::FRAME};
use crate::record::Seq;

/// Longest time for which a record waits that nobody waits for.
pub const LAZY: Duration = Duration::from_millis(5);

/// Why a payload was not taken. Nothing of it is or will be in the journal.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SubmitError {
    /// More waits to be written than memory may hold; ask again after the
    /// next wake.
    #[error("{0} bytes wait to be written")]
    Busy(usize),
    /// One record may not be that long.
    #[error("a record of {bytes} bytes is too large, the limit is {limit}")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// What a record may have.
        limit: usize,
    },
    /// The journal stopped after an error, or was closed.
    #[error("{0}")]
    Stopped(Arc<JournalError>),
}

/// See the module.
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    stopped: AtomicBool,
    limit: usize,
}

struct State {
    waiting: Vec<Bytes>,
    /// Bytes that wait or are being written, with their frames.
    bytes: usize,
    /// Position of the next submission.
    next: Seq,
    /// Since when the oldest of what waits does.
    since: Option<Instant>,
    /// Somebody waits for everything up to here.
    wanted: Seq,
    /// How many wait, of those in line.
    urgent: usize,
    sleep: Sleep,
    closing: bool,
    stopped: Option<Arc<JournalError>>,
}

/// What the thread is woken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sleep {
    /// It is not asleep.
    Awake,
    /// Anything.
    Sound,
    /// That somebody waits for something.
    Light,
    /// That so many wait for what is in line.
    Gathering(usize),
}

impl State {
    /// Whether somebody waits for what waits here.
    fn is_urgent(&self) -> bool {
        self.wanted + (self.waiting.len() as Seq) >= self.next && !self.waiting.is_empty()
    }

    /// Whether nothing more is taken.
    fn is_ending(&self) -> bool {
        self.closing || self.stopped.is_some()
    }

    /// Whether it is to be written now: somebody waits for it, or it has waited long enough.
    fn is_due(&self) -> bool {
        self.is_urgent() || self.since.is_some_and(|since| since.elapsed() >= LAZY)
    }

    /// Whether the thread is to be woken; it is awake then.
    fn rouses(&mut self) -> bool {
        let rouses = match self.sleep {
            Sleep::Awake => false,
            Sleep::Sound => true,
            Sleep::Light => self.is_urgent(),
            Sleep::Gathering(count) => self.urgent >= count,
        };
        if rouses {
            self.sleep = Sleep::Awake;
        }
        rouses
    }
}

impl Queue {
    /// Empty; `next` is the position of the first submission, and `limit` how
    /// many bytes may wait.
    pub(super) fn new(next: Seq, limit: usize) -> Self {
        let state = State {
            waiting: Vec::new(),
            bytes: 0,
            next,
            since: None,
            wanted: 0,
            urgent: 0,
            sleep: Sleep::Awake,
            closing: false,
            stopped: None,
        };
        let (changed, stopped) = (Condvar::new(), AtomicBool::new(false));
        Self { state: Mutex::new(state), changed, stopped, limit }
    }

    /// Puts a payload in line; its position.
    pub(super) fn submit(&self, payload: Bytes) -> Result<Seq, SubmitError> {
        let length = payload.len();
        if length > PAYLOAD_MAX {
            return Err(SubmitError::TooLarge { bytes: length, limit: PAYLOAD_MAX });
        }
        let (seq, wakes) = {
            let mut state = self.lock();
            if let Some(error) = &state.stopped {
                return Err(SubmitError::Stopped(error.clone()));
            }
            if state.closing {
                return Err(SubmitError::Stopped(Arc::new(JournalError::Closed)));
            }
            // One that is longer than the limit is taken when nothing else waits.
            if state.bytes > 0 && state.bytes + FRAME + length > self.limit {
                return Err(SubmitError::Busy(state.bytes));
            }
            state.bytes += FRAME + length;
            state.waiting.push(payload);
            state.since.get_or_insert_with(Instant::now);
            let seq = state.next;
            state.next += 1;
            if state.bytes > WRITE_MAX {
                // More than one write: it is no use to let more of it gather.
                state.wanted = seq;
            }
            (seq, state.rouses())
        };
        if wakes {
            self.changed.notify_one();
        }
        Ok(seq)
    }

    /// So many wait for what is in line up to a position.
    pub(super) fn hurry(&self, seq: Seq, waiting: usize) {
        let wakes = {
            let mut state = self.lock();
            // Nobody can wait for what is not there.
            let seq = seq.min(state.next - 1);
            if seq > state.wanted {
                state.wanted = seq;
                state.urgent += waiting;
            }
            state.rouses()
        };
        if wakes {
            self.changed.notify_one();
        }
    }

    /// Position of the next submission.
    pub(super) fn next(&self) -> Seq {
        self.lock().next
    }

    /// Bytes that wait or are being written, with their frames.
    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// So many of them are on the disk.
    pub(super) fn written(&self, bytes: usize) {
        self.lock().bytes -= bytes;
    }

    /// Why nothing is taken any more after an error, if so.
    pub(super) fn stopped(&self) -> Option<Arc<JournalError>> {
        // Asked often, true once: the lock is not taken before.
        self.stopped.load(Ordering::Acquire).then(|| self.lock().stopped.clone())?
    }

    /// Takes nothing more; what waits is still to be written.
    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes nothing more, and drops what waits.
    pub(super) fn stop(&self, error: Arc<JournalError>) {
        let dropped = {
            let mut state = self.lock();
            state.stopped.get_or_insert(error);
            state.bytes = 0;
            state.since = None;
            mem::take(&mut state.waiting)
        };
        self.stopped.store(true, Ordering::Release);
        self.changed.notify_one();
        drop(dropped);
    }

    /// Waits for something to write; `false` once there will be nothing.
    /// `before` is how many waited for the last batch, `patience` how long as
    /// many are waited for.
    pub(super) fn wait(&self, before: usize, patience: Duration) -> bool {
        let mut state = self.lock();
        while !state.is_due() && !state.is_ending() {
            let next = state.next;
            // What comes meanwhile, and nobody waits for, needs not wake the thread.
            let until = state.since.unwrap_or_else(Instant::now) + LAZY;
            state = self.sleep(state, Sleep::Light, Some(until), State::is_urgent);
            if state.next == next && state.waiting.is_empty() {
                // Whatever comes may be written by whoever has submitted it before this thread looks; to fall
                // asleep over that at once would cost the next one a wake, too.
                state = self.sleep(state, Sleep::Sound, None, |state| state.next != next);
            }
        }
        if before > 1 {
            let enough = |state: &State| state.urgent >= before;
            let until = Instant::now() + patience;
            state = self.sleep(state, Sleep::Gathering(before), Some(until), enough);
        }
        state.stopped.is_none() && !(state.closing && state.waiting.is_empty())
    }

    /// Takes all that is in line; how many wait for it.
    pub(super) fn take(&self, batch: &mut Vec<Bytes>) -> usize {
        let mut state = self.lock();
        mem::swap(batch, &mut state.waiting);
        state.since = None;
        mem::take(&mut state.urgent)
    }

    /// Sleeps until something is so, until then at most, or until the end.
    fn sleep<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        how: Sleep,
        until: Option<Instant>,
        over: impl Fn(&State) -> bool,
    ) -> MutexGuard<'a, State> {
        while !over(&state) && !state.is_ending() {
            state.sleep = how;
            state = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => break,
                Some(left) => {
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
        state.sleep = Sleep::Awake;
        state
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Positions 11 to 13 wait.
    fn state(wanted: Seq, sleep: Sleep) -> State {
        let waiting = vec![Bytes::new(); 3];
        State {
            waiting,
            bytes: 0,
            next: 14,
            since: None,
            wanted,
            urgent: 3,
            sleep,
            closing: false,
            stopped: None,
        }
    }

    #[test]
    fn what_is_written_already_makes_nothing_urgent() {
        assert!(!state(10, Sleep::Light).is_urgent());
        assert!(state(11, Sleep::Light).is_urgent());
        assert!(!State { waiting: Vec::new(), ..state(13, Sleep::Light) }.is_urgent());
    }

    #[test]
    fn a_light_sleeper_is_roused_only_for_what_somebody_waits_for() {
        let cases = [
            (10, Sleep::Awake, false),
            (13, Sleep::Awake, false),
            (10, Sleep::Sound, true),
            (10, Sleep::Light, false),
            (11, Sleep::Light, true),
            (13, Sleep::Gathering(4), false),
            (10, Sleep::Gathering(3), true),
        ];
        for (wanted, sleep, roused) in cases {
            let mut state = state(wanted, sleep);
            assert_eq!(state.rouses(), roused, "{wanted} {sleep:?}");
            assert!(!state.rouses(), "once is enough");
        }
    }

    #[test]
    fn who_is_woken_for_what_another_has_written_does_not_have_the_next_one_wake_it_too() {
        let queue = Queue::new(1, 1 << 20);
        let asleep = || loop {
            match queue.lock().sleep {
                Sleep::Awake => thread::yield_now(),
                sleep => return sleep,
            }
        };
        thread::scope(|scope| {
            scope.spawn(|| while queue.wait(0, Duration::ZERO) {});
            let deadline = Instant::now() + Duration::from_secs(10);
            loop {
                while asleep() != Sleep::Sound {}
                {
                    // Submitted and taken, before the thread can look.
                    let mut state = queue.lock();
                    state.next += 1;
                    assert!(state.rouses());
                }
                queue.changed.notify_one();
                // A machine that is busy may let the moment of it pass unseen.
                if asleep() == Sleep::Light {
                    break;
                }
                assert!(Instant::now() < deadline, "it sleeps soundly at once");
            }
            queue.close();
        });
    }
}
