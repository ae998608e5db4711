//! The loop of the thread of a model that makes vectors: texts of all jobs in
//! batches, as many side by side as fit.
//!
//! # Failure
//!
//! A batch that is cancelled is made again for the others in it. Where
//! llama.cpp fails, everybody in the batch is told.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Instant;

use ksi_sdk::prelude::{CancelToken, Code, Refusal};
use llama_cpp_2::token::LlamaToken;

use super::context::{Batch, Context, Fault};
use super::figures::{Figures, Read};
use super::{Asker, stopped};

/// Texts to be turned into vectors.
pub struct Texts {
    /// The tokens of each, at least one and no more than the context holds.
    pub texts: Vec<Vec<LlamaToken>>,
    /// Set once nobody waits for the answer.
    pub cancel: CancelToken,
    /// When the answer is of no use any more.
    pub deadline: Option<Instant>,
    /// When the request came in, for its timings.
    pub received: Instant,
    /// Where the vectors go, in the order of the texts.
    pub asker: Asker<Vec<Vec<f32>>>,
}

/// A job and what is done of it.
struct Running {
    job: Texts,
    vectors: Vec<Vec<f32>>,
    started: Instant,
}

impl Running {
    /// Whether all is done, or nobody waits.
    fn is_over(&self, now: Instant) -> bool {
        self.vectors.len() == self.job.texts.len()
            || self.job.cancel.is_cancelled()
            || self.job.deadline.is_some_and(|deadline| now >= deadline)
    }

    /// Ends the last of so many that have shared so many slots.
    fn end(self, jobs: usize, slots: u32, figures: &Figures) {
        let whole = self.vectors.len() == self.job.texts.len();
        if whole {
            let (from_arrival, from_start) = (self.job.received.elapsed(), self.started.elapsed());
            let share = f64::from(slots) / jobs.max(1) as f64;
            let read = Read { from_arrival, from_start, slot: from_start.mul_f64(share) };
            figures.count_vectors(self.job.texts.iter().map(Vec::len).sum(), read);
        } else {
            figures.given_up.fetch_add(1, Ordering::Relaxed);
        }
        let late = || Refusal::new(Code::Timeout, "the time was over before all texts were done");
        self.job.asker.tell(if whole { Ok(self.vectors) } else { Err(late().hint("give fewer at once")) });
    }
}

/// Makes the vectors of one model.
pub(super) struct Embedder {
    context: Context,
    batch: Batch,
    inbox: Receiver<Texts>,
    stop: Arc<AtomicBool>,
    figures: Arc<Figures>,
    jobs: VecDeque<Running>,
}

impl Embedder {
    pub(super) fn new(
        context: Context,
        inbox: Receiver<Texts>,
        stop: Arc<AtomicBool>,
        figures: Arc<Figures>,
    ) -> Self {
        let batch = context.batch();
        Self { context, batch, inbox, stop, figures, jobs: VecDeque::new() }
    }

    /// Works until the engine is dropped.
    pub(super) fn run(mut self) {
        loop {
            if self.jobs.is_empty() {
                self.tell_load();
                match self.inbox.recv() {
                    Ok(job) => self.take(job),
                    Err(_) => return,
                }
            }
            while let Ok(job) = self.inbox.try_recv() {
                self.take(job);
            }
            if self.stop.load(Ordering::Acquire) {
                for running in self.jobs.drain(..) {
                    running.job.asker.tell(Err(stopped()));
                }
                return;
            }
            self.tell_load();
            self.round();
            let (now, jobs) = (Instant::now(), self.jobs.len());
            while let Some(at) = self.jobs.iter().position(|running| running.is_over(now)) {
                if let Some(running) = self.jobs.remove(at) {
                    running.end(jobs, self.context.setup().slots, &self.figures);
                }
            }
        }
    }

    fn take(&mut self, job: Texts) {
        self.jobs.push_back(Running { job, vectors: Vec::new(), started: Instant::now() });
    }

    /// All of them share the slots, and none waits.
    fn tell_load(&self) {
        self.figures.running.store(self.jobs.len() as u64, Ordering::Relaxed);
    }

    /// One batch: the next texts of each job in turn, so that a large job does
    /// not keep a small one waiting.
    fn round(&mut self) {
        self.batch.clear();
        // Which job and how many of its texts; their sequences are in order.
        let mut placed = vec![0_usize; self.jobs.len()];
        let mut owners = Vec::new();
        loop {
            let before = owners.len();
            for (index, running) in self.jobs.iter().enumerate() {
                let Some(text) = running.job.texts.get(running.vectors.len() + placed[index]) else {
                    continue;
                };
                let sequence = owners.len();
                if sequence < self.context.setup().slots as usize && push(&mut self.batch, text, sequence) {
                    placed[index] += 1;
                    owners.push(index);
                }
            }
            if owners.len() == before {
                break;
            }
        }
        let cancels = self.jobs.iter().map(|running| running.job.cancel.clone()).collect();
        let until = self.jobs.iter().filter_map(|running| running.job.deadline).min();
        let done = match self.batch.is_empty() {
            true => Err(Fault::Failed(0)),
            false => self.context.decode(&mut self.batch, cancels, until),
        };
        match done {
            Ok(()) => {
                for (sequence, owner) in owners.iter().enumerate() {
                    match self.context.vector(sequence) {
                        Some(vector) => self.jobs[*owner].vectors.push(vector),
                        None => return self.fail("the model gives no vectors"),
                    }
                }
            }
            Err(Fault::Aborted) => {}
            Err(Fault::Failed(code)) => {
                self.fail(&format!("llama.cpp could not read the texts (code {code})"))
            }
        }
        self.context.forget_all();
    }

    fn fail(&mut self, message: &str) {
        for running in self.jobs.drain(..) {
            running.job.asker.tell(Err(Refusal::new(Code::Internal, message)));
        }
        self.context.forget_all();
    }
}

/// Adds a whole text; whether it fits.
fn push(batch: &mut Batch, text: &[LlamaToken], sequence: usize) -> bool {
    let Ok(sequence) = i32::try_from(sequence) else { return false };
    text.len() <= batch.room()
        && !text.is_empty()
        && text.iter().enumerate().all(|(position, token)| batch.push(*token, position, sequence, true))
}
