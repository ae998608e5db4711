//! The loop of an engine's thread: continuous batching over the slots.
//!
//! Every round decodes one batch. It holds the next token of each generation
//! that speaks, then as much of the waiting prompts as fits, so a long prompt
//! neither stops the others nor waits for them. Jobs beyond the slots wait in
//! the order in which they came.
//!
//! # Failure
//!
//! A cancelled prompt aborts the batch it is in. What the batch had written is
//! forgotten for all of its sequences, and the others are decoded again in the
//! next round: they lose time, never tokens. Where llama.cpp fails, everybody
//! in the batch is told, and the loop goes on.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;

use ksi_sdk::prelude::{Code, Refusal};

use super::context::{Batch, Context, Fault};
use super::slot::{Next, Running, reply};
use super::{Job, stopped};

/// Runs the jobs of one model.
pub(super) struct Scheduler {
    context: Context,
    batch: Batch,
    slots: Vec<Option<Running>>,
    /// Bounded by the tickets, of which every job holds one.
    waiting: VecDeque<Box<Job>>,
    inbox: Receiver<Box<Job>>,
    stop: Arc<AtomicBool>,
    /// Counts rounds, so that each prompt comes first in its turn.
    round: usize,
}

impl Scheduler {
    pub(super) fn new(context: Context, inbox: Receiver<Box<Job>>, stop: Arc<AtomicBool>) -> Self {
        let slots = (0..context.setup().slots).map(|_| None).collect();
        let batch = context.batch();
        Self { context, batch, slots, waiting: VecDeque::new(), inbox, stop, round: 0 }
    }

    /// Works until the engine is dropped.
    pub(super) fn run(mut self) {
        loop {
            if self.waiting.is_empty() && self.slots.iter().all(Option::is_none) {
                match self.inbox.recv() {
                    Ok(job) => self.waiting.push_back(job),
                    Err(_) => return,
                }
            }
            while let Ok(job) = self.inbox.try_recv() {
                self.waiting.push_back(job);
            }
            if self.stop.load(Ordering::Acquire) {
                return self.refuse_all();
            }
            self.drop_gone();
            self.fill_slots();
            self.decode_round();
        }
    }

    fn refuse_all(&mut self) {
        for job in self.waiting.drain(..) {
            reply(*job, Err(stopped()));
        }
        for running in self.slots.iter_mut().filter_map(Option::take) {
            running.refuse(stopped());
        }
    }

    /// Frees what nobody waits for.
    fn drop_gone(&mut self) {
        self.waiting.retain(|job| !job.cancel.is_cancelled());
        for index in 0..self.slots.len() {
            if self.slots[index].as_ref().is_some_and(Running::is_gone) {
                self.free(index);
            }
        }
    }

    /// Empties a slot and the memory of its sequence.
    fn free(&mut self, index: usize) -> Option<Running> {
        self.context.forget_after(sequence(index), 0);
        self.slots[index].take()
    }

    fn fill_slots(&mut self) {
        let vocabulary = self.context.model().vocabulary();
        let context = self.context.setup().context as usize;
        for slot in self.slots.iter_mut().filter(|slot| slot.is_none()) {
            let Some(job) = self.waiting.pop_front() else { return };
            // From here on every token of a slot fits into a batch.
            let fits = (1..context).contains(&job.prompt.len())
                && job.prompt.iter().all(|token| (0..vocabulary).contains(&token.0));
            if fits {
                *slot = Some(Running::new(*job, vocabulary));
            } else {
                reply(*job, Err(Refusal::new(Code::Internal, "the prompt does not fit the model")));
            }
        }
    }

    fn decode_round(&mut self) {
        self.fill_batch();
        if self.batch.is_empty() {
            return;
        }
        let in_batch = self.slots.iter().flatten().filter(|running| running.in_batch > 0);
        // Only a prompt takes long enough to be worth an interruption.
        let cancels = match in_batch.clone().any(|running| running.in_batch > 1) {
            true => in_batch.map(|running| running.job().cancel.clone()).collect(),
            false => Vec::new(),
        };
        match self.context.decode(&mut self.batch, cancels) {
            Ok(()) => self.take_tokens(),
            Err(fault) => self.recover(fault),
        }
        self.round = self.round.wrapping_add(1);
    }

    fn fill_batch(&mut self) {
        self.batch.clear();
        for running in self.slots.iter_mut().flatten() {
            running.in_batch = 0;
            running.output = None;
        }
        let count = self.slots.len();
        // Those who speak come first: one token each always fits.
        for index in 0..count {
            if self.slots[index].as_ref().is_some_and(|running| running.pending().len() == 1) {
                self.add(index);
            }
        }
        for offset in 0..count {
            let index = (self.round + offset) % count;
            if self.slots[index].as_ref().is_some_and(|running| running.pending().len() > 1) {
                self.add(index);
            }
        }
    }

    /// Adds as many pending tokens of a slot to the batch as fit.
    fn add(&mut self, index: usize) {
        let Some(running) = &mut self.slots[index] else { return };
        let pending = running.pending();
        let mut added = 0;
        for (offset, token) in pending.iter().enumerate() {
            let last = offset + 1 == pending.len();
            if !self.batch.push(*token, running.decoded + offset, sequence(index), last) {
                break;
            }
            added += 1;
        }
        running.output = (added == pending.len()).then(|| self.batch.last());
        running.in_batch = added;
    }

    /// Takes one token for every slot that has read all it had.
    fn take_tokens(&mut self) {
        let limit = self.context.setup().context as usize;
        for index in 0..self.slots.len() {
            let Some(running) = &mut self.slots[index] else { continue };
            running.decoded += std::mem::take(&mut running.in_batch);
            let Some(output) = running.output.take() else { continue };
            let next = match self.context.scores(output) {
                Some(scores) => running.step(scores, self.context.model(), limit),
                None => Next::Broken,
            };
            match next {
                Next::Continue => {}
                Next::Finish(reason) => {
                    if let Some(running) = self.free(index) {
                        running.finish(reason);
                    }
                }
                Next::Broken => {
                    self.refuse(index, "the model gives no usable scores; its file may be damaged")
                }
            }
        }
    }

    /// Forgets what a failed batch has left in the memory.
    fn recover(&mut self, fault: Fault) {
        for index in 0..self.slots.len() {
            let Some(running) = &mut self.slots[index] else { continue };
            if std::mem::take(&mut running.in_batch) == 0 {
                continue;
            }
            if let Fault::Failed(code) = fault {
                self.refuse(index, &format!("llama.cpp could not decode the tokens (code {code})"));
            } else if !self.context.forget_after(sequence(index), running.decoded) {
                // This kind of model cannot go back a little: it reads
                // everything again.
                self.context.forget_after(sequence(index), 0);
                running.decoded = 0;
            }
        }
    }

    fn refuse(&mut self, index: usize, message: &str) {
        if let Some(running) = self.free(index) {
            running.refuse(Refusal::new(Code::Internal, message));
        }
    }
}

/// The number of a slot's sequence.
fn sequence(index: usize) -> i32 {
    i32::try_from(index).unwrap_or(i32::MAX)
}
