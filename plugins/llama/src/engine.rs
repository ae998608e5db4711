//! The engine: one loaded model, one thread that owns its context, and many
//! conversations that generate on it at once.
//!
//! [`Ticket::generate`] hands a [`Job`] over and returns at once; the pieces of
//! the answer go straight to the asker, and the whole through a one-shot
//! channel. All calls into C that need `unsafe` are in `context`, `crowd` and
//! `log` below this module, and nowhere else in the plugin.
//!
//! # Invariants
//!
//! - A job that was accepted is answered exactly once: with its text, with a
//!   refusal, or, should the engine's thread die, by its channel closing.
//! - At most `slots + queue` jobs exist; each holds a [`Ticket`].
//! - A model with a ticket out is never unloaded.
//!
//! # Failure
//!
//! llama.cpp aborts the process where its own assertions fail. What a request
//! can contain is checked before it gets there; a bad model file may still do
//! it, which is why this plugin always runs in a child process.

pub mod backend;
mod context;
mod crowd;
pub mod embedder;
pub mod figures;
mod log;
mod logprobs;
pub mod model;
mod pace;
mod prefix;
mod queue;
mod ranks;
pub mod sampler;
mod scheduler;
mod slot;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_channel::oneshot;
use ksi_provider::request::invalid;
use ksi_provider::{Delta, StopReason, TokenLogprobs, Tool, ToolCall};
use ksi_sdk::prelude::{CancelToken, Chunks, Code, Refusal, json};
use llama_cpp_2::token::LlamaToken;

use crate::constraint::Constraint;
use crate::tuning::Tuning;
use context::Context;
pub(crate) use context::STEP_TOKENS_MAX;
use embedder::{Embedder, Texts};
use figures::Figures;
use model::Model;
use sampler::Settings;
use scheduler::Scheduler;

/// When to ask again after `busy` while nothing is known of how long answers
/// take: about the length of a short one.
pub const RETRY_AFTER_MS: u64 = 500;
/// The same where that is known, at least and at most.
const RETRY_AFTER_BOUNDS_MS: (u64, u64) = (50, 30_000);

/// How a model is set up to run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Setup {
    /// Tokens of context for each conversation.
    pub context: u32,
    /// Conversations at the same time; a power of two.
    pub slots: u32,
    /// Processor threads, at least 1 and at most the number of cores.
    pub threads: u32,
    /// Jobs that may wait for a slot, beyond those that have one.
    pub queue: u32,
    /// The rest, as far as it is given.
    pub tuning: Tuning,
}

impl Setup {
    /// Jobs that may exist at once.
    fn places(&self) -> usize {
        self.slots as usize + self.queue as usize
    }
}

/// One generation to be done.
pub struct Job {
    /// The input; at least one token, and fewer than the context holds.
    pub prompt: Vec<LlamaToken>,
    /// Most tokens to generate, at least 1.
    pub max_tokens: u32,
    /// How tokens are chosen.
    pub settings: Settings,
    /// Strings before which the text ends.
    pub stops: Vec<String>,
    /// What the text must fit.
    pub constraint: Option<Constraint>,
    /// Tools whose calls are looked for in the text.
    pub tools: Vec<Tool>,
    /// How many alternatives are to be told for each token.
    pub logprobs: Option<u32>,
    /// Which of several answers to one request it is.
    pub choice: u32,
    /// Higher goes first among those that wait.
    pub priority: i8,
    /// When the answer is of no use any more.
    pub deadline: Option<Instant>,
    /// Set once nobody waits for the answer.
    pub cancel: CancelToken,
    /// Where the pieces of the answer go.
    pub out: Chunks<Delta>,
    /// Where the whole answer goes.
    pub asker: Asker<Outcome>,
    /// When the request came in, for its timings.
    pub received: Instant,
}

impl Job {
    /// Whether its time is over.
    fn is_late(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| now >= deadline)
    }
}

/// Who waits for an answer, and the place that it takes up.
pub struct Asker<T> {
    answer: oneshot::Sender<Result<T, Refusal>>,
    ticket: Ticket,
}

impl<T> Asker<T> {
    /// Answers. The ticket is given back first, so that whoever has the answer
    /// finds the model idle. Nobody may be there any more; then nobody is told.
    fn tell(self, answer: Result<T, Refusal>) {
        drop(self.ticket);
        let _ = self.answer.send(answer);
    }
}

/// What came of a job.
#[derive(Debug)]
pub struct Outcome {
    /// The whole text.
    pub text: String,
    /// The tools that it wishes called.
    pub tool_calls: Vec<ToolCall>,
    /// How likely its tokens were, where that was asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// The end of the answer, where the host's queue was too full for it. It is
    /// to be sent before the answer, unless it is empty.
    pub unsent: Delta,
    /// Why it ended.
    pub stop_reason: StopReason,
    /// Tokens of the input.
    pub prompt_tokens: usize,
    /// Those of them that were in memory from an earlier job.
    pub cached_tokens: usize,
    /// Tokens of the answer, without the one that ended the turn.
    pub completion_tokens: usize,
    /// From the arrival to the start in a slot.
    pub queued: Duration,
    /// From the start in a slot to the first token.
    pub prompt_time: Duration,
    /// From the arrival to the first token.
    pub first_token: Duration,
    /// From the first token to the end.
    pub generate_time: Duration,
}

/// The right to use an engine. While one exists, the model stays loaded.
pub struct Ticket {
    engine: Arc<Engine>,
}

impl Ticket {
    /// The engine that may be used.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// One more for the same engine.
    ///
    /// # Errors
    ///
    /// As [`Engine::ticket`].
    pub fn another(&self) -> Result<Self, Refusal> {
        self.engine.ticket()
    }

    /// Hands a generation over, with this ticket in it.
    ///
    /// # Errors
    ///
    /// `unavailable` where the engine's thread has died, `invalid_payload` where
    /// the model makes no text.
    pub fn generate(
        self,
        answer: oneshot::Sender<Result<Outcome, Refusal>>,
        job: impl FnOnce(Asker<Outcome>) -> Job,
    ) -> Result<(), Refusal> {
        let Jobs::Text(jobs) = self.engine.jobs.clone() else {
            let hint = "ask `llama:embed` of it, or use a model for chat or text";
            return Err(invalid("model", "the model makes vectors and no text", hint));
        };
        // There is room for every ticket that can exist, so this never blocks
        // and only fails where nobody receives any more.
        jobs.try_send(Box::new(job(Asker { answer, ticket: self }))).map_err(|_| stopped())
    }

    /// Hands texts over that are to become vectors.
    ///
    /// # Errors
    ///
    /// As [`Ticket::generate`], for a model that makes text.
    pub fn embed(
        self,
        answer: oneshot::Sender<Result<Vec<Vec<f32>>, Refusal>>,
        job: impl FnOnce(Asker<Vec<Vec<f32>>>) -> Texts,
    ) -> Result<(), Refusal> {
        let Jobs::Vectors(jobs) = self.engine.jobs.clone() else {
            return Err(invalid("model", "the model makes text and no vectors", "use one for embeddings"));
        };
        jobs.try_send(job(Asker { answer, ticket: self })).map_err(|_| stopped())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.engine.tickets.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The way to an engine's thread.
#[derive(Clone)]
enum Jobs {
    Text(SyncSender<Box<Job>>),
    Vectors(SyncSender<Texts>),
}

/// A loaded model with the thread that runs it.
pub struct Engine {
    model: Arc<Model>,
    setup: Setup,
    jobs: Jobs,
    /// Tickets that exist.
    tickets: AtomicUsize,
    figures: Arc<Figures>,
    stop: Arc<AtomicBool>,
    /// Joined on drop, so that no thread outlives what it works on.
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Makes the context of a model, tries it with one token, and starts its
    /// thread.
    ///
    /// # Errors
    ///
    /// `unavailable` with llama.cpp's own words where the context cannot be
    /// made or used, which is nearly always a lack of memory; `cancelled`.
    pub fn start(model: Arc<Model>, setup: Setup, cancel: &CancelToken) -> Result<Arc<Self>, Refusal> {
        let (ready, started) = sync_channel(1);
        let stop = Arc::new(AtomicBool::new(false));
        let figures = Arc::new(Figures::default());
        let (jobs, work): (Jobs, Box<dyn FnOnce(Context) + Send>) = if model.pooling().is_some() {
            let (jobs, inbox) = sync_channel(setup.places());
            let (stop, figures) = (stop.clone(), figures.clone());
            (Jobs::Vectors(jobs), Box::new(move |context| Embedder::new(context, inbox, stop, figures).run()))
        } else {
            let (jobs, inbox) = sync_channel(setup.places());
            let (stop, figures) = (stop.clone(), figures.clone());
            let work = move |context| Scheduler::new(context, inbox, stop, figures).run();
            (Jobs::Text(jobs), Box::new(work))
        };
        let thread = {
            let (model, setup, stop, cancel) = (model.clone(), setup.clone(), stop.clone(), cancel.clone());
            std::thread::Builder::new()
                .name("engine".to_owned())
                .spawn(move || {
                    // The context is made, used and freed on this one thread.
                    let warm = |mut context: Context| context.warm_up(&cancel).map(|()| context);
                    match Context::new(model, setup, stop).and_then(warm) {
                        Ok(context) => {
                            if ready.send(Ok(())).is_ok() {
                                work(context);
                            }
                        }
                        Err(refusal) => drop(ready.send(Err(refusal))),
                    }
                })
                .map_err(|error| {
                    Refusal::new(Code::Unavailable, format!("cannot start the engine's thread: {error}"))
                })?
        };
        started.recv().map_err(|_| stopped())??;
        let tickets = AtomicUsize::new(0);
        Ok(Arc::new(Self { model, setup, jobs, tickets, figures, stop, thread: Some(thread) }))
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// How it runs.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// What it has done so far.
    #[must_use]
    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// Whether its thread still runs. One that has died must be replaced.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Tickets that exist: the engine is idle at 0.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.tickets.load(Ordering::Acquire)
    }

    /// Takes a place among the jobs.
    ///
    /// # Errors
    ///
    /// `busy` where all slots and all places to wait are taken.
    pub fn ticket(self: &Arc<Self>) -> Result<Ticket, Refusal> {
        let places = self.setup.places();
        let taken = self
            .tickets
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |taken| (taken < places).then_some(taken + 1));
        match taken {
            Ok(_) => Ok(Ticket { engine: self.clone() }),
            Err(taken) => {
                let waiting = taken.saturating_sub(self.setup.slots as usize);
                Err(Refusal::new(Code::Busy, format!("{waiting} requests wait for this model already"))
                    .hint("ask again later, or raise `slots` or `queue` of the llama plugin")
                    .details(json!({ "slots": self.setup.slots, "waiting": waiting }))
                    .retry_after_ms(self.retry_after_ms()))
            }
        }
    }

    /// When a place is likely to be free: once the next of the slots is.
    fn retry_after_ms(&self) -> u64 {
        let slot_time = self.figures.slot_time() / self.setup.slots.max(1);
        if slot_time.is_zero() {
            return RETRY_AFTER_MS;
        }
        let (least, most) = RETRY_AFTER_BOUNDS_MS;
        u64::try_from(slot_time.as_millis()).unwrap_or(most).clamp(least, most)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Closing the channel ends a thread that waits for a job.
        let (closed, _) = sync_channel(0);
        self.jobs = Jobs::Text(closed);
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // A thread that panicked has told its askers already.
            let _ = thread.join();
        }
    }
}

fn stopped() -> Refusal {
    Refusal::new(Code::Unavailable, "the model was stopped").hint("ask again; it is loaded anew")
}
