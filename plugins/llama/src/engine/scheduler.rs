//! The loop of an engine's thread: continuous batching over the slots.
//!
//! Every round decodes one batch. It holds the next token of each generation
//! that speaks, then a part of the prompts that are read: as much as fits, and
//! beside speakers no more than they would notice, shared among the prompts.
//! Jobs beyond the slots wait in a [`Queue`]. A slot that is done keeps the
//! memory of its conversation for whoever begins with the same tokens.
//!
//! # Failure
//!
//! A prompt that is cancelled, or whose time is over, aborts the batch it is
//! in. What the batch had written is forgotten for all of its sequences, and
//! the others are decoded again in the next round: they lose time, never
//! tokens. Where llama.cpp fails, everybody in the batch is told, and the loop
//! goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Instant;

use ksi_sdk::prelude::{Code, Refusal};
use llama_cpp_2::token::LlamaToken;

use super::context::{Batch, Context, Fault};
use super::crowd::Crowd;
use super::figures::Figures;
use super::pace::{self, Pace};
use super::prefix::{self, Plan, View};
use super::queue::Queue;
use super::ranks::{self, Move, Rank};
use super::slot::{Next, Running};
use super::{Job, stopped};

/// A place for one conversation.
#[derive(Default)]
struct Slot {
    running: Option<Running>,
    /// While nothing runs: the tokens in the memory of the sequence.
    kept: Vec<LlamaToken>,
    /// The turn in which it was filled last.
    used: u64,
}

impl Slot {
    fn rank(&self) -> Rank {
        match &self.running {
            Some(_) => Rank::Runs,
            None if self.kept.is_empty() => Rank::Empty,
            None => Rank::Keeps(self.used),
        }
    }

    fn view(&self) -> View<'_> {
        match &self.running {
            None => View { free: true, tokens: &self.kept, decoded: self.kept.len(), used: self.used },
            Some(running) => {
                let (tokens, decoded) = (running.tokens(), running.decoded);
                View { free: false, tokens, decoded, used: self.used }
            }
        }
    }
}

/// Runs the jobs of one model.
pub(super) struct Scheduler {
    context: Context,
    batch: Batch,
    slots: Vec<Slot>,
    waiting: Queue<Box<Job>>,
    inbox: Receiver<Box<Job>>,
    stop: Arc<AtomicBool>,
    figures: Arc<Figures>,
    pace: Pace,
    crowd: Crowd,
    /// Counts the jobs that got a slot.
    turn: u64,
}

impl Scheduler {
    pub(super) fn new(
        context: Context,
        inbox: Receiver<Box<Job>>,
        stop: Arc<AtomicBool>,
        figures: Arc<Figures>,
    ) -> Self {
        let slots = (0..context.setup().slots).map(|_| Slot::default()).collect();
        let batch = context.batch();
        let (waiting, pace) = (Queue::new(), Pace::default());
        let crowd = Crowd::new(context.setup().threads);
        Self { context, batch, slots, waiting, inbox, stop, figures, pace, crowd, turn: 0 }
    }

    /// Works until the engine is dropped.
    pub(super) fn run(mut self) {
        loop {
            if self.waiting.is_empty() && self.slots.iter().all(|slot| slot.running.is_none()) {
                self.tell_load();
                match self.inbox.recv() {
                    Ok(job) => self.gather(job),
                    Err(_) => return,
                }
            }
            while let Ok(job) = self.inbox.try_recv() {
                self.waiting.push(job.priority, job);
            }
            if self.stop.load(Ordering::Acquire) {
                return self.refuse_all();
            }
            self.drop_gone();
            self.fill_slots();
            self.tell_load();
            self.close_ranks();
            self.decode_round();
        }
    }

    /// Takes the first job after a rest, and waits a moment for others: those who
    /// ask together read together, and then speak together.
    fn gather(&mut self, first: Box<Job>) {
        let mut tokens = 0;
        let mut next = Some(first);
        while let Some(job) = next {
            let views: Vec<View<'_>> = self.slots.iter().map(Slot::view).collect();
            tokens += prefix::unread(&job.prompt, &views);
            self.waiting.push(job.priority, job);
            if self.waiting.len() >= self.slots.len() {
                return;
            }
            // Where nobody can come any more, the loop finds out.
            next = self.inbox.recv_timeout(self.pace.patience(tokens)).ok();
        }
    }

    fn tell_load(&self) {
        let running = self.slots.iter().filter(|slot| slot.running.is_some()).count();
        self.figures.running.store(running as u64, Ordering::Relaxed);
        self.figures.waiting.store(self.waiting.len() as u64, Ordering::Relaxed);
    }

    fn refuse_all(&mut self) {
        for job in self.waiting.take_all(|_| true) {
            job.asker.tell(Err(stopped()));
        }
        for running in self.slots.iter_mut().filter_map(|slot| slot.running.take()) {
            running.refuse(stopped());
        }
    }

    /// Frees what nobody waits for, and ends what has no time left.
    fn drop_gone(&mut self) {
        let now = Instant::now();
        let mut given_up = 0;
        for job in self.waiting.take_all(|job| job.cancel.is_cancelled() || job.is_late(now)) {
            let waited = now.saturating_duration_since(job.received);
            let message = format!("no slot was free within {} ms", waited.as_millis());
            job.asker.tell(Err(late(&message)));
            given_up += 1;
        }
        for index in 0..self.slots.len() {
            let Some(running) = &self.slots[index].running else { continue };
            if !running.is_gone() && !running.job().is_late(now) {
                continue;
            }
            if let Some(running) = self.free(index) {
                let message = format!("the time was over after {} tokens", running.generated());
                running.refuse(late(&message));
                given_up += 1;
            }
        }
        self.figures.given_up.fetch_add(given_up, Ordering::Relaxed);
    }

    /// Takes the generation out of a slot, which keeps its memory.
    fn free(&mut self, index: usize) -> Option<Running> {
        let slot = &mut self.slots[index];
        let running = slot.running.take()?;
        slot.kept = running.tokens()[..running.decoded].to_vec();
        Some(running)
    }

    fn fill_slots(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let model = self.context.model().clone();
        let (vocabulary, context) = (model.vocabulary(), self.context.setup().context as usize);
        let copies = self.context.can_copy().then(|| prefix::worth_a_copy(context));
        loop {
            let views: Vec<View<'_>> = self.slots.iter().map(Slot::view).collect();
            if !views.iter().any(|view| view.free) {
                return;
            }
            let Some((job, plan)) = self.waiting.take(|job| prefix::plan(&job.prompt, &views, copies)) else {
                return;
            };
            // From here on every token of a slot fits into a batch.
            let fits = (1..context).contains(&job.prompt.len())
                && job.prompt.iter().all(|token| (0..vocabulary).contains(&token.0));
            if !fits {
                job.asker.tell(Err(Refusal::new(Code::Internal, "the prompt does not fit the model")));
                continue;
            }
            let reused = self.remember(&plan);
            self.turn += 1;
            let slot = &mut self.slots[plan.slot];
            slot.used = self.turn;
            slot.kept = Vec::new();
            slot.running = Some(Running::new(*job, vocabulary, reused));
        }
    }

    /// Makes the memory of a slot hold what is reused, and nothing more; how
    /// many tokens that is.
    fn remember(&mut self, plan: &Plan) -> usize {
        let to = sequence(plan.slot);
        if let Some(from) = plan.copied_from
            && !self.context.copy(sequence(from), to)
        {
            self.context.forget_after(to, 0);
            return 0;
        }
        // Some models cannot go back a little, and some forget the start.
        if plan.reused > 0 && self.context.forget_after(to, plan.reused) && self.context.begins_at_zero(to) {
            return plan.reused;
        }
        self.context.forget_after(to, 0);
        0
    }

    /// Moves generations so that one pass over the weights serves them all.
    fn close_ranks(&mut self) {
        if !self.context.can_copy() {
            return;
        }
        loop {
            let ranks: Vec<Rank> = self.slots.iter().map(Slot::rank).collect();
            let Some(Move { from, to, aside }) = ranks::close(&ranks) else { return };
            if let Some(aside) = aside {
                self.shift(to, aside);
            }
            self.shift(from, to);
            self.figures.moved.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What is in one slot is in the other from now on; what was there is lost.
    fn shift(&mut self, from: usize, to: usize) {
        let (source, target) = (sequence(from), sequence(to));
        match self.slots[from].view().decoded {
            0 => self.context.forget_after(target, 0),
            _ => self.context.copy(source, target),
        };
        self.context.forget_after(source, 0);
        self.slots[to] = std::mem::take(&mut self.slots[from]);
    }

    fn decode_round(&mut self) {
        self.fill_batch();
        if self.batch.is_empty() {
            return;
        }
        let running = || self.slots.iter().filter_map(|slot| slot.running.as_ref());
        let in_batch = || running().filter(|running| running.in_batch > 0);
        let prompts = || in_batch().filter(|running| running.in_batch > 1);
        let read = prompts().map(|running| running.in_batch).sum();
        // Only a prompt takes long enough to be worth an interruption.
        let (cancels, until) = match prompts().next() {
            Some(_) => (
                in_batch().map(|running| running.job().cancel.clone()).collect(),
                in_batch().filter_map(|running| running.job().deadline).min(),
            ),
            None => (Vec::new(), None),
        };
        let computing = self.crowd.begin(self.context.threads_for(self.batch.len()));
        let decoded = self.context.decode(&mut self.batch, cancels, until);
        let took = self.crowd.end(&computing);
        match decoded {
            Ok(()) => {
                self.pace.observe(read, took);
                self.take_tokens();
            }
            Err(fault) => self.recover(fault),
        }
    }

    fn fill_batch(&mut self) {
        self.batch.clear();
        let running = || self.slots.iter().map(|slot| slot.running.as_ref());
        let pending = running().map(|running| running.map_or(0, |running| running.pending().len()));
        let pending: Vec<usize> = pending.collect();
        // Those who speak have one token, which always fits.
        let speakers = pending.iter().filter(|pending| **pending == 1).count();
        let wants: Vec<usize> = pending.iter().copied().filter(|pending| *pending > 1).collect();
        let room = self.batch.room().saturating_sub(speakers);
        let room = match speakers {
            0 => room,
            _ => room.min(self.pace.chunk(speakers, wants.len())),
        };
        let mut shares = pace::share(room, &wants).into_iter();
        // In the order of the slots, since only so one pass serves them all.
        for (index, pending) in pending.into_iter().enumerate() {
            let count = if pending > 1 { shares.next().unwrap_or(0) } else { pending };
            self.add(index, count);
        }
    }

    /// Adds this many pending tokens of a slot to the batch, or as many as fit.
    fn add(&mut self, index: usize, count: usize) {
        let Some(running) = &mut self.slots[index].running else { return };
        let pending = running.pending();
        let mut added = 0;
        for (offset, token) in pending.iter().take(count).enumerate() {
            let last = offset + 1 == pending.len();
            if !self.batch.push(*token, running.decoded + offset, sequence(index), last) {
                break;
            }
            added += 1;
        }
        running.output = (added > 0 && added == pending.len()).then(|| self.batch.last());
        running.in_batch = added;
    }

    /// Takes one token for every slot that has read all it had.
    fn take_tokens(&mut self) {
        let limit = self.context.setup().context as usize;
        for index in 0..self.slots.len() {
            let Some(running) = &mut self.slots[index].running else { continue };
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
                        running.finish(reason, &self.figures);
                    }
                }
                Next::Broken => {
                    self.refuse(index, "the model gives no usable scores; its file may be damaged")
                }
                Next::Stuck => self.refuse(
                    index,
                    "what the answer must fit became too complex; use a simpler schema or grammar",
                ),
            }
        }
    }

    /// Forgets what a failed batch has left in the memory.
    fn recover(&mut self, fault: Fault) {
        for index in 0..self.slots.len() {
            let Some(running) = &mut self.slots[index].running else { continue };
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

    /// Ends a generation whose memory cannot be trusted any more.
    fn refuse(&mut self, index: usize, message: &str) {
        if let Some(running) = self.free(index) {
            self.context.forget_after(sequence(index), 0);
            self.slots[index].kept = Vec::new();
            running.refuse(Refusal::new(Code::Internal, message));
        }
    }
}

fn late(message: &str) -> Refusal {
    Refusal::new(Code::Timeout, message).hint("give it more time, or ask for fewer tokens")
}

/// The number of a slot's sequence.
fn sequence(index: usize) -> i32 {
    i32::try_from(index).unwrap_or(i32::MAX)
}
