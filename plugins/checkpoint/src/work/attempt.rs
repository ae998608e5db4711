//! Attempts: the request to the owner of the event, and its answer.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    pin::pin,
    rc::{Rc, Weak},
};

use futures_channel::oneshot;
use futures_util::future::{Either, select};
use ksi_sdk::{
    Answers, ForwardOptions, Part,
    prelude::{Code, Refusal},
    protocol::{
        Bytes,
        frame::Caller,
        limits::{CORRELATION_ID_BYTES_MAX, FRAME_BYTES_MAX, REQUEST_TIMEOUT_MAX},
    },
};

use super::Work;
use crate::{
    ledger::{Begun, Effect, Id, Run},
    record::Seq,
};

/// Largest result. What is said about the work must fit into one frame with it.
const RESULT_BYTES_MAX: usize = FRAME_BYTES_MAX - 64 * 1024;

/// An attempt that is to begin once its lease is durable.
pub(super) struct Start {
    pub(super) run: Run,
    pub(super) seq: Seq,
    /// What is asked, where it needs not be read back.
    pub(super) payload: Option<Bytes>,
    /// Resolves when nobody wants the attempt any more.
    pub(super) abandoned: oneshot::Receiver<()>,
}

/// Attempts under way. They outlive the journal that was open when they began:
/// whoever answers while none is open is heard by the next opening, so that
/// nothing is asked twice, or given up, because a disk was full for a moment.
#[derive(Default)]
pub struct Attempts {
    all: RefCell<HashMap<Id, Attempt>>,
    /// Who hears the answers.
    work: RefCell<Weak<Work>>,
    /// Number of the first start of this process.
    since: Cell<Option<u64>>,
    /// None begins yet.
    held: Cell<bool>,
}

/// One of them.
struct Attempt {
    lease: u32,
    /// Whether its owner was asked.
    begun: bool,
    /// Dropping it cancels the attempt.
    wanted: Option<oneshot::Sender<()>>,
    /// What came of it, until the end of the work is durable.
    answer: Option<Result<Bytes, Refusal>>,
}

impl Attempts {
    /// None yet, and none begins before [`Attempts::release`]: until the daemon knows who keeps work,
    /// whoever asks for an event that is kept is refused, and so would they be.
    #[must_use]
    pub fn held() -> Self {
        Self { held: Cell::new(true), ..Self::default() }
    }

    /// They may begin from now on.
    pub fn release(&self) {
        if self.held.replace(false)
            && let Some(work) = self.listener()
        {
            work.bell.ring();
        }
    }

    /// Has this opening hear of all of them from now on. What it is to go on with.
    pub(super) fn go_on(&self, work: &Rc<Work>) -> Begun {
        *self.work.borrow_mut() = Rc::downgrade(work);
        let since = self.since.get();
        self.since.set(since.or(Some(work.engine.epoch())));
        Begun { since, leases: self.all.borrow().iter().map(|(id, attempt)| (*id, attempt.lease)).collect() }
    }

    /// Cancels those that do not hold their lease any more. What came of the others meanwhile.
    pub(super) fn review(&self, holds: impl Fn(Id, u32) -> bool) -> Vec<(Id, u32, Result<Bytes, Refusal>)> {
        let mut all = self.all.borrow_mut();
        all.retain(|id, attempt| holds(*id, attempt.lease));
        let unheard = |(id, attempt): (&Id, &Attempt)| Some((*id, attempt.lease, attempt.answer.clone()?));
        all.iter().filter_map(unheard).collect()
    }

    /// One is to begin. Resolves when nobody wants it any more.
    pub(super) fn plan(&self, id: Id, lease: u32) -> oneshot::Receiver<()> {
        let (wanted, abandoned) = oneshot::channel();
        let attempt = Attempt { lease, begun: false, wanted: Some(wanted), answer: None };
        self.all.borrow_mut().insert(id, attempt);
        abandoned
    }

    /// One begins; whether anybody wants it.
    fn begin(&self, id: Id, lease: u32) -> bool {
        let mut all = self.all.borrow_mut();
        let attempt = all.get_mut(&id).filter(|attempt| attempt.lease == lease);
        attempt.is_some_and(|attempt| {
            attempt.begun = true;
            attempt.wanted.is_some()
        })
    }

    /// Nobody wants this one any more.
    pub(super) fn abandon(&self, id: Id, lease: u32) {
        let mut all = self.all.borrow_mut();
        match all.get_mut(&id).filter(|attempt| attempt.lease == lease && attempt.answer.is_none()) {
            Some(attempt) if attempt.begun => {
                attempt.wanted = None;
                attempt.answer = Some(Err(abandoned()));
            }
            Some(_) => drop(all.remove(&id)),
            None => {}
        }
    }

    /// What came of this one need not be known any more: the work is tried again.
    pub(super) fn forget(&self, id: Id, lease: u32) {
        let mut all = self.all.borrow_mut();
        if all.get(&id).is_some_and(|attempt| attempt.lease == lease) {
            all.remove(&id);
        }
    }

    /// The end of the work is durable. It may be under way once more by now.
    pub(super) fn ended(&self, id: Id) {
        let mut all = self.all.borrow_mut();
        if all.get(&id).is_some_and(|attempt| attempt.answer.is_some()) {
            all.remove(&id);
        }
    }

    /// Those that were not begun never are.
    pub(super) fn keep_begun(&self) {
        self.all.borrow_mut().retain(|_, attempt| attempt.begun);
    }

    /// Sees an attempt through to its answer, unless it is abandoned.
    async fn see_through(
        self: Rc<Self>,
        id: Id,
        lease: u32,
        answers: Answers,
        abandoned: oneshot::Receiver<()>,
    ) {
        match select(pin!(self.last(id, lease, answers)), abandoned).await {
            Either::Left((answer, _)) => self.answered(id, lease, answer),
            // Dropping the request cancels it.
            Either::Right(_) => {}
        }
    }

    /// The last answer. Parts before it only show that the handler is alive.
    async fn last(&self, id: Id, lease: u32, mut answers: Answers) -> Result<Bytes, Refusal> {
        loop {
            match answers.next_raw().await {
                Some(Ok(Part::Chunk(_))) => {
                    if let Some(work) = self.listener() {
                        work.ledger.borrow_mut().heartbeat(work.now(), id, lease);
                    }
                }
                Some(Ok(Part::End(result))) if result.len() > RESULT_BYTES_MAX => {
                    return Err(too_large(result.len()));
                }
                Some(Ok(Part::End(result))) => return Ok(result),
                Some(Err(refusal)) => return Err(refusal),
                None => return Err(Refusal::new(Code::Internal, "the answer had no end")),
            }
        }
    }

    fn answered(&self, id: Id, lease: u32, answer: Result<Bytes, Refusal>) {
        match self.all.borrow_mut().get_mut(&id) {
            Some(attempt) if attempt.lease == lease && attempt.answer.is_none() => {
                attempt.answer = Some(answer.clone());
            }
            _ => return,
        }
        if let Some(work) = self.listener() {
            work.hear(id, lease, answer);
        }
    }

    /// Who hears answers, while a journal is open.
    fn listener(&self) -> Option<Rc<Work>> {
        self.work.borrow().upgrade().filter(|work| !work.stopped.get())
    }
}

impl Work {
    /// Begins attempts, one after the other: so they are asked for in the order
    /// in which they were leased.
    pub(super) async fn begin_attempts(self: Rc<Self>) {
        while !self.stopped.get() {
            let next = match self.attempts.held.get() {
                true => None,
                false => self.starts.borrow_mut().pop_front(),
            };
            match next {
                Some(start) => self.begin(start).await,
                None => {
                    self.bell.set(None);
                    self.bell.rung().await;
                }
            }
        }
    }

    async fn begin(&self, start: Start) {
        let Start { run, seq, payload, abandoned } = start;
        // It is begun only once it is known that it was.
        if let Err(refusal) = self.engine.durable(seq).await {
            return self.journal_stopped(&refusal);
        }
        let payload = match payload {
            Some(payload) => Ok(payload),
            None => self.payload(run.id).await,
        };
        let (id, lease) = (run.id, run.lease);
        if !self.attempts.begin(id, lease) {
            return;
        }
        self.ledger.borrow_mut().begun(self.now(), id, lease);
        self.rearm();
        match payload.and_then(|payload| self.ask(run, payload)) {
            Ok(answers) => {
                self.ctx.spawn(self.attempts.clone().see_through(id, lease, answers, abandoned));
            }
            Err(refusal) => self.attempts.answered(id, lease, Err(refusal)),
        }
    }

    /// What is asked.
    async fn payload(&self, id: Id) -> Result<Bytes, Refusal> {
        self.engine.get(&id.payload_key()).await?.ok_or_else(lost)
    }

    /// Asks the owner.
    fn ask(&self, run: Run, payload: Bytes) -> Result<Answers, Refusal> {
        let options = ForwardOptions {
            origin: Some(run.origin),
            caller: run.principal.map(|principal| Caller {
                principal,
                tenant: run.tenant,
                every_tenant: false,
            }),
            idempotency_key: Some(run.id.to_string()),
            // One of an earlier release may be longer than what is sent today.
            correlation_id: run.correlation_id.filter(|id| id.len() <= CORRELATION_ID_BYTES_MAX),
            // The lease says when it is given up, and moves with each word of the handler.
            timeout: Some(REQUEST_TIMEOUT_MAX),
            detached: true,
        };
        self.ctx.forward(&run.event, payload, options)
    }

    /// What came of an attempt.
    pub(super) fn hear(self: &Rc<Self>, id: Id, lease: u32, answer: Result<Bytes, Refusal>) {
        let step = self.ledger.borrow_mut().outcome(self.now(), id, lease, answer);
        if self.ledger.borrow().is_stopping() {
            self.halted.notify();
        }
        let is_end = |effect: &Effect| matches!(effect, Effect::Ended(ended) if ended.id == id);
        if !step.effects.iter().any(is_end) {
            self.attempts.forget(id, lease);
        }
        // A step that found no room waits in the backlog; if the journal has
        // stopped, the next opening hears of the attempt.
        let _ = self.carry(step);
    }
}

/// What comes of an attempt that was cancelled on its way, unless that is noted in time.
fn abandoned() -> Refusal {
    Refusal::new(Code::Unknown, "the attempt was given up, and the journal stopped before that was noted")
}

fn lost() -> Refusal {
    Refusal::new(Code::Internal, "what was asked is not there any more")
        .hint("`ksi checkpoint verify` looks for damage")
}

fn too_large(bytes: usize) -> Refusal {
    let message = format!("the result of {bytes} bytes is larger than the {RESULT_BYTES_MAX} that are kept");
    Refusal::new(Code::TooLarge, message).hint("ask for less, or have it written to a file")
}
