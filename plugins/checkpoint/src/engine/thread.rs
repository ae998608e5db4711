//! The checkpointer's thread: one job after another, and checkpoints when it is time.
//!
//! Sleeps for ever while nothing has changed since the last checkpoint.
//!
//! # Failure
//!
//! Damage that a reader comes upon is told to him and ends the use of the store, as any other does: what
//! is there is opened anew, or rebuilt.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use futures_channel::oneshot::Sender;
use ksi_sdk::protocol::{Bytes, Refusal};

use super::{
    checkpointer::Checkpointer,
    report::{CheckpointReport, ExportReport, FactPage, RestoreReport, VerifyReport},
};
use crate::{
    journal::{Archive, JournalError},
    record::{Record, Seq, is_fact},
    store::{Store, StoreError},
};

/// Where an answer goes; nobody may be there any more.
type Answer<T> = Sender<Result<T, Refusal>>;

/// What the checkpointer is asked.
pub(super) enum Job {
    Get(Bytes, Answer<Option<Bytes>>),
    Range {
        from: Bytes,
        until: Option<Bytes>,
        limit: usize,
        answer: Answer<Vec<(Bytes, Bytes)>>,
    },
    Facts {
        from: Seq,
        limit: usize,
        answer: Answer<FactPage>,
    },
    /// Something changed for the first time since the last checkpoint: it is due in time.
    Changed,
    /// Much has changed: a checkpoint is due when nothing changes for a moment.
    Enough,
    Checkpoint(Option<Answer<CheckpointReport>>),
    Export(PathBuf, Answer<ExportReport>),
    Restore(PathBuf, u64, Answer<RestoreReport>),
    Verify(Answer<VerifyReport>),
    Close(Answer<()>),
    /// Nobody asks anything more.
    Look,
}

/// Bytes of the store that one page may have.
pub(super) const PAGE_BYTES: usize = 4 << 20;
/// Bytes of facts that one page may have, and of the journal that are read for it.
const FACTS_BYTES: usize = 1 << 20;
const FACTS_READ: usize = 16 << 20;
/// Time after a checkpoint that failed until the next is tried.
const RETRY: Duration = Duration::from_secs(5);

/// Runs until `Close`, until nobody can ask any more, or until the engine is abandoned.
pub(super) fn run(mut checkpointer: Checkpointer, jobs: &Receiver<Job>) {
    let mut due: Option<Instant> = None;
    // The end of a moment in which nothing may change for a checkpoint to begin, and the position at its begin.
    let mut pause: Option<(Instant, Seq)> = None;
    let mut later = VecDeque::new();
    loop {
        if checkpointer.shared.is_abandoned() {
            return abandon(checkpointer);
        }
        let job = match later.pop_front() {
            Some(job) => job,
            None => match next(jobs, due.into_iter().chain(pause.map(|(end, _)| end)).min()) {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) => match pause {
                    // Something has changed meanwhile, and it is not yet the time.
                    Some((_, seq))
                        if checkpointer.is_after(seq) && due.is_none_or(|due| Instant::now() < due) =>
                    {
                        Job::Enough
                    }
                    _ => Job::Checkpoint(None),
                },
                Err(RecvTimeoutError::Disconnected) => return,
            },
        };
        let job = match serve(&mut checkpointer, job) {
            Ok(()) => continue,
            Err(job) => job,
        };
        // While something is done that takes long, who only reads need not wait for its end.
        let archive = checkpointer.shared.archive.clone();
        let mut damage = None;
        let mut between = |store: &dyn Store| {
            while let Ok(job) = jobs.try_recv() {
                match serve_from(store, &archive, job) {
                    Ok(found) => damage = damage.take().or(found),
                    Err(job) => later.push_back(job),
                }
            }
        };
        match job {
            Job::Changed => due = due.or(Some(Instant::now() + checkpointer.options.checkpoint_age)),
            Job::Enough => {
                let end = Instant::now() + checkpointer.options.checkpoint_pause;
                pause = Some((end, checkpointer.shared.state().overlay.seq()));
            }
            Job::Checkpoint(answer) => {
                pause = None;
                let result = checkpointer.checkpoint(&mut between);
                due = if result.is_ok() { None } else { Some(Instant::now() + RETRY) };
                answer.map(|answer| answer.send(result));
            }
            Job::Export(path, answer) => drop(answer.send(checkpointer.export(&path, &mut between))),
            Job::Restore(path, epoch, answer) => drop(answer.send(checkpointer.restore(&path, epoch))),
            Job::Verify(answer) => drop(answer.send(checkpointer.verify(&mut between))),
            Job::Close(answer) => return close(checkpointer, answer),
            Job::Get(..) | Job::Range { .. } | Job::Facts { .. } | Job::Look => {}
        }
        give_up(&mut checkpointer, damage);
    }
}

/// Gives up a store in which somebody has found damage, unless that is done already.
fn give_up(checkpointer: &mut Checkpointer, damage: Option<StoreError>) {
    if let Some(damage) = damage.filter(|_| checkpointer.store.is_some()) {
        let _ = checkpointer.fail(&damage);
    }
}

fn next(jobs: &Receiver<Job>, due: Option<Instant>) -> Result<Job, RecvTimeoutError> {
    match due {
        None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
        Some(due) => jobs.recv_timeout(due.saturating_duration_since(Instant::now())),
    }
}

/// Answers who only reads; gives any other job back.
fn serve(checkpointer: &mut Checkpointer, job: Job) -> Result<(), Job> {
    let archive = &checkpointer.shared.archive;
    let refusal = match checkpointer.store() {
        Ok(store) => {
            let damage = serve_from(store, archive, job)?;
            give_up(checkpointer, damage);
            return Ok(());
        }
        Err(refusal) => refusal,
    };
    match job {
        Job::Get(_, answer) => drop(answer.send(Err(refusal))),
        Job::Range { answer, .. } => drop(answer.send(Err(refusal))),
        Job::Facts { from, limit, answer } => drop(answer.send(facts(archive, from, limit))),
        job => return Err(job),
    }
    Ok(())
}

/// The same without the checkpointer: damage that was found on the way.
fn serve_from(store: &dyn Store, archive: &Archive, job: Job) -> Result<Option<StoreError>, Job> {
    match job {
        Job::Get(key, answer) => Ok(tell(answer, store.get(&key))),
        Job::Range { from, until, limit, answer } => {
            Ok(tell(answer, store.range(&from, until.as_deref(), limit, PAGE_BYTES)))
        }
        Job::Facts { from, limit, answer } => {
            drop(answer.send(facts(archive, from, limit)));
            Ok(None)
        }
        job => Err(job),
    }
}

/// Answers with what the store said; the damage, where it said so.
fn tell<T>(answer: Answer<T>, said: Result<T, StoreError>) -> Option<StoreError> {
    let (told, damage) = match said {
        Ok(value) => (Ok(value), None),
        Err(error @ StoreError::Damaged(_)) => (Err(error.refusal()), Some(error)),
        Err(error) => (Err(error.refusal()), None),
    };
    // Nobody may be there any more.
    let _ = answer.send(told);
    damage
}

/// A page of facts.
pub(super) fn facts(archive: &Archive, from: Seq, limit: usize) -> Result<FactPage, Refusal> {
    let from = from.max(1);
    let mut page = FactPage { next: from, first_kept: archive.stat().first.max(1), ..FactPage::default() };
    let (mut bytes, mut read) = (0, 0);
    for item in archive.read(from) {
        let (seq, payload) = match item {
            Ok(record) => record,
            Err(JournalError::Damaged(damage)) => {
                if damage.to >= damage.from {
                    page.holes.push((damage.from, damage.to));
                }
                page.next = page.next.max(damage.to + 1);
                continue;
            }
            Err(error) => return Err(error.refusal()),
        };
        // No record has had the positions between: the journal went on later, since others were given out
        // elsewhere.
        let due = page.next.max(page.first_kept);
        if seq > due {
            page.holes.push((due, seq - 1));
        }
        read += payload.len();
        if payload.first().is_some_and(|&first| is_fact(first))
            && let Ok(Record::Fact(fact)) = Record::decode(&payload)
        {
            bytes += payload.len();
            page.facts.push((seq, fact));
        }
        page.next = seq + 1;
        if page.facts.len() >= limit || bytes >= FACTS_BYTES || read >= FACTS_READ {
            return Ok(page);
        }
    }
    page.end = true;
    Ok(page)
}

/// The end of the journal, and of everything that keeps the directory. The handle is never dropped, so what it has a
/// part in is let go of by hand.
fn abandon(checkpointer: Checkpointer) {
    let log = checkpointer.shared.state().log.take();
    // Nobody is there to be told; the next opening sees what there is.
    let _ = log.map(|log| log.close());
    let archive = checkpointer.shared.archive.clone();
    drop(checkpointer);
    archive.let_go();
}

/// The last checkpoint, and the end of the journal.
fn close(mut checkpointer: Checkpointer, answer: Answer<()>) {
    let mut result = checkpointer.checkpoint(&mut |_| {}).map(drop);
    if let Some(store) = checkpointer.store.take() {
        result = result.and(store.close().map_err(|error| error.refusal()));
    }
    let log = checkpointer.shared.state().log.take();
    if let Some(log) = log {
        result = result.and(log.close().map_err(|error| error.refusal()));
    }
    let shared = Arc::clone(&checkpointer.shared);
    drop(checkpointer);
    // Tasks that sleep may still have the handle.
    shared.archive.let_go();
    shared.waker().wake();
    drop(answer.send(result));
}
