//! The only door to llama.cpp's contexts: memory of conversations, decoding,
//! scores.
//!
//! The safe crate hides the abort callback and the limit on outputs, so this
//! module calls the C interface itself. Everything that llama.cpp asserts on
//! is checked here: sizes of batches, numbers of sequences and positions,
//! indices of scores. Callers get a [`Fault`], never an abort.
//!
//! # Invariants
//!
//! - A [`Context`] is made, used and freed by one thread.
//! - Scores are handed out only for tokens that asked for them in the last
//!   batch, and only until the next batch.

#![expect(unsafe_code, reason = "the safe crate offers no abort callback and no limit on outputs")]

mod adapter;

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ksi_sdk::prelude::{CancelToken, Code, Refusal};
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_sys_2 as sys;

pub(super) use self::adapter::Adapter;
use super::model::Model;
use super::{Setup, log};
use crate::tuning::{CacheType, FlashAttention, RopeScaling, Tuning};

/// Most tokens that are decoded at once. Enough for the prompts of several who
/// have come together, few enough that one who comes later is not kept for long.
const BATCH_TOKENS_MAX: u32 = 1024;
/// Most tokens that are computed in one step: enough to keep the processor busy.
pub(crate) const STEP_TOKENS_MAX: u32 = 512;
/// llama.cpp rounds the context of a sequence up to this many tokens.
const CONTEXT_STEP: u32 = 256;

/// Making a context changes the model for a moment, so it happens one at a
/// time.
static MAKING: Mutex<()> = Mutex::new(());

/// Why a batch was not decoded. The memory of its sequences is undefined until
/// [`Context::forget_after`] has been called for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Somebody in the batch was cancelled, or has no time left.
    Aborted,
    /// llama.cpp returned this code.
    Failed(i32),
}

/// Who may end a running batch. Read by llama.cpp between any two steps of a
/// computation.
struct Watch {
    stop: Arc<AtomicBool>,
    /// Whether `cancels` is worth a look: a batch of single tokens is over
    /// sooner than it is worth.
    armed: AtomicBool,
    cancels: Mutex<(Vec<CancelToken>, Option<Instant>)>,
}

unsafe extern "C" fn is_over(data: *mut c_void) -> bool {
    // SAFETY: `data` is the `Watch` of the context that computes. The context
    // owns it in a box and frees itself before the box.
    let watch = unsafe { &*data.cast::<Watch>() };
    if watch.stop.load(Ordering::Relaxed) {
        return true;
    }
    if !watch.armed.load(Ordering::Relaxed) {
        return false;
    }
    let (cancels, until) = &*watch.cancels.lock().unwrap_or_else(PoisonError::into_inner);
    cancels.iter().any(CancelToken::is_cancelled) || until.is_some_and(|until| Instant::now() >= until)
}

/// A batch to be decoded: tokens with their places.
pub(super) struct Batch {
    tokens: Vec<sys::llama_token>,
    positions: Vec<sys::llama_pos>,
    sequences: Vec<sys::llama_seq_id>,
    outputs: Vec<i8>,
    capacity: usize,
    sequences_max: i32,
    context: i32,
    vocabulary: i32,
}

impl Batch {
    pub(super) fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.sequences.clear();
        self.outputs.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Tokens that still fit.
    pub(super) fn room(&self) -> usize {
        self.capacity - self.tokens.len()
    }

    /// Adds a token; whether it fits and its numbers are in range. `output`
    /// asks for scores after it.
    #[must_use]
    pub(super) fn push(&mut self, token: LlamaToken, position: usize, sequence: i32, output: bool) -> bool {
        let Ok(position) = i32::try_from(position) else { return false };
        let fits = self.room() > 0
            && (0..self.vocabulary).contains(&token.0)
            && (0..self.context).contains(&position)
            && (0..self.sequences_max).contains(&sequence);
        if fits {
            self.tokens.push(token.0);
            self.positions.push(position);
            self.sequences.push(sequence);
            self.outputs.push(i8::from(output));
        }
        fits
    }

    /// Index of the token that was added last.
    pub(super) fn last(&self) -> usize {
        self.tokens.len().saturating_sub(1)
    }
}

/// A context of llama.cpp.
pub(super) struct Context {
    pointer: NonNull<sys::llama_context>,
    /// Freed after the context, which has a pointer to it.
    watch: Box<Watch>,
    /// Kept loaded as long as the context works on it.
    model: Arc<Model>,
    setup: Setup,
    batch_max: usize,
    /// Which tokens of the last batch have scores.
    scored: Vec<i8>,
}

impl Context {
    /// Makes the context of a model.
    ///
    /// # Errors
    ///
    /// `unavailable` with llama.cpp's words.
    pub(super) fn new(model: Arc<Model>, setup: Setup, stop: Arc<AtomicBool>) -> Result<Self, Refusal> {
        let watch = Box::new(Watch { stop, armed: AtomicBool::new(false), cancels: Mutex::default() });
        // SAFETY: returns a plain struct by value.
        let mut params = unsafe { sys::llama_context_default_params() };
        // Every sequence has its own part of the memory, so none can take
        // another's place, and attention looks at its own part only.
        params.kv_unified = false;
        params.n_ctx = setup.slots * setup.context.next_multiple_of(CONTEXT_STEP);
        params.n_seq_max = setup.slots;
        tune(&mut params, &setup.tuning);
        if model.pooling().is_some() {
            // A text is read in one piece, and each of its tokens counts.
            let batch = setup.context.next_multiple_of(CONTEXT_STEP).max(STEP_TOKENS_MAX);
            params.n_batch = batch;
            params.n_ubatch = batch;
            params.embeddings = true;
            params.pooling_type = match model.pooling() {
                Some("cls") => sys::LLAMA_POOLING_TYPE_CLS,
                Some("last") => sys::LLAMA_POOLING_TYPE_LAST,
                _ => sys::LLAMA_POOLING_TYPE_MEAN,
            };
        } else {
            // One token of each sequence needs scores; room for more would be
            // hundreds of megabytes with a large vocabulary.
            params.n_outputs_max = setup.slots;
        }
        params.n_threads = i32::try_from(setup.threads).unwrap_or(1);
        params.n_threads_batch =
            i32::try_from(setup.tuning.threads_batch.unwrap_or(setup.threads)).unwrap_or(1);
        params.abort_callback = Some(is_over);
        params.abort_callback_data = std::ptr::from_ref(watch.as_ref()).cast_mut().cast();
        params.no_perf = true;
        let making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the model is loaded and `model` keeps it so; `MAKING` makes
        // sure that no other thread makes a context of it now.
        let pointer = unsafe { sys::llama_init_from_model(raw(model.inner()), params) };
        drop(making);
        let Some(pointer) = NonNull::new(pointer) else {
            let reason = log::last_errors().unwrap_or_else(|| "no reason given".to_owned());
            return Err(Refusal::new(
                Code::Unavailable,
                format!("llama.cpp cannot make a context: {reason}"),
            )
            .hint("lower `context` or `slots` of the llama plugin"));
        };
        if let Err(code) = adapter::lay_over(pointer, model.adapters()) {
            // SAFETY: it was just made, and nobody else has it.
            unsafe { sys::llama_free(pointer.as_ptr()) };
            let message = format!("llama.cpp cannot lay the adapters over the model: code {code}");
            return Err(
                Refusal::new(Code::Unavailable, message).hint("`lora` of the llama plugin names them")
            );
        }
        // SAFETY: the pointer was just made.
        let batch_max = unsafe { sys::llama_n_batch(pointer.as_ptr()) };
        let batch_max = usize::try_from(batch_max).unwrap_or(1);
        Ok(Self { pointer, watch, model, setup, batch_max, scored: Vec::new() })
    }

    pub(super) fn model(&self) -> &Arc<Model> {
        &self.model
    }

    pub(super) fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Threads that decode a batch of so many tokens.
    pub(super) fn threads_for(&self, tokens: usize) -> u32 {
        let threads = self.setup.threads;
        if tokens > 1 { self.setup.tuning.threads_batch.unwrap_or(threads) } else { threads }
    }

    /// An empty batch with the limits of this context.
    pub(super) fn batch(&self) -> Batch {
        Batch {
            tokens: Vec::with_capacity(self.batch_max),
            positions: Vec::with_capacity(self.batch_max),
            sequences: Vec::with_capacity(self.batch_max),
            outputs: Vec::with_capacity(self.batch_max),
            capacity: self.batch_max,
            sequences_max: i32::try_from(self.setup.slots).unwrap_or(1),
            context: i32::try_from(self.setup.context).unwrap_or(i32::MAX),
            vocabulary: self.model.vocabulary(),
        }
    }

    /// Decodes a batch. Ends early when one of `cancels` is set, or at `until`;
    /// neither counts where `cancels` is empty.
    ///
    /// # Errors
    ///
    /// See [`Fault`].
    pub(super) fn decode(
        &mut self,
        batch: &mut Batch,
        cancels: Vec<CancelToken>,
        until: Option<Instant>,
    ) -> Result<(), Fault> {
        self.scored.clear();
        let count = batch.tokens.len();
        if count == 0 || count > self.batch_max {
            return Err(Fault::Failed(-1));
        }
        self.watch.armed.store(!cancels.is_empty(), Ordering::Relaxed);
        *self.watch.cancels.lock().unwrap_or_else(PoisonError::into_inner) = (cancels, until);
        let mut counts = vec![1_i32; count];
        let mut sequences: Vec<*mut sys::llama_seq_id> =
            batch.sequences.iter_mut().map(std::ptr::from_mut).collect();
        let raw_batch = sys::llama_batch {
            n_tokens: i32::try_from(count).unwrap_or(i32::MAX),
            token: batch.tokens.as_mut_ptr(),
            embd: std::ptr::null_mut(),
            pos: batch.positions.as_mut_ptr(),
            n_seq_id: counts.as_mut_ptr(),
            seq_id: sequences.as_mut_ptr(),
            logits: batch.outputs.as_mut_ptr(),
        };
        // SAFETY: every array has `count` elements and lives through the call;
        // `Batch::push` has checked every number in them.
        let code = unsafe { sys::llama_decode(self.pointer.as_ptr(), raw_batch) };
        self.watch.armed.store(false, Ordering::Relaxed);
        match code {
            0 => {
                self.scored.clone_from(&batch.outputs);
                Ok(())
            }
            2 => Err(Fault::Aborted),
            code => Err(Fault::Failed(code)),
        }
    }

    /// Decodes a token and forgets it. Memory that llama.cpp takes only when it
    /// computes is there afterwards, and a model that cannot be computed is known.
    ///
    /// # Errors
    ///
    /// `unavailable` with llama.cpp's words, `cancelled`.
    pub(super) fn warm_up(&mut self, cancel: &CancelToken) -> Result<(), Refusal> {
        let mut batch = self.batch();
        let decoded = match batch.push(self.model.first_token(), 0, 0, true) {
            true => self.decode(&mut batch, vec![cancel.clone()], None),
            false => Err(Fault::Failed(-1)),
        };
        // SAFETY: the context is alive. Cards compute beside this thread.
        unsafe { sys::llama_synchronize(self.pointer.as_ptr()) };
        self.scored.clear();
        self.forget_all();
        decoded.map_err(|_| {
            if cancel.is_cancelled() {
                return Refusal::new(Code::Cancelled, "loading was cancelled");
            }
            let reason = log::last_errors().unwrap_or_else(|| "no reason given".to_owned());
            Refusal::new(Code::Unavailable, format!("llama.cpp cannot compute with the model: {reason}"))
                .hint("lower `context` or `slots` of the llama plugin, or get the file again")
        })
    }

    /// Scores of the whole vocabulary after the token at this index of the
    /// last batch; `None` where it has none.
    pub(super) fn scores(&self, index: usize) -> Option<&[f32]> {
        if self.scored.get(index) != Some(&1) {
            return None;
        }
        // SAFETY: the index has scores, as the line above has checked.
        let scores = unsafe { sys::llama_get_logits_ith(self.pointer.as_ptr(), i32::try_from(index).ok()?) };
        let length = usize::try_from(self.model.vocabulary()).ok()?;
        if scores.is_null() {
            return None;
        }
        // SAFETY: llama.cpp keeps one number for each vocabulary entry there
        // until the next batch, which needs `&mut self`.
        Some(unsafe { std::slice::from_raw_parts(scores, length) })
    }

    /// The vector of the text that was this sequence in the last batch.
    pub(super) fn vector(&self, sequence: usize) -> Option<Vec<f32>> {
        let sequence = i32::try_from(sequence).ok().filter(|sequence| self.has(*sequence))?;
        self.model.pooling()?;
        // SAFETY: the context is alive and pools, so this is null or a vector.
        let vector = unsafe { sys::llama_get_embeddings_seq(self.pointer.as_ptr(), sequence) };
        // SAFETY: it has as many numbers as the model says, and is copied before
        // the next batch, which needs `&mut self`.
        (!vector.is_null())
            .then(|| unsafe { std::slice::from_raw_parts(vector, self.model.dimensions()) }.to_vec())
    }

    /// Forgets all sequences.
    pub(super) fn forget_all(&mut self) {
        for sequence in 0..i32::try_from(self.setup.slots).unwrap_or(1) {
            self.forget_after(sequence, 0);
        }
    }

    /// Forgets a sequence from a position on; whether that was possible. Some
    /// models can only forget a whole sequence.
    pub(super) fn forget_after(&mut self, sequence: i32, position: usize) -> bool {
        let Ok(position) = i32::try_from(position) else { return false };
        // SAFETY: the context is alive, and the number of the sequence is one
        // that it has.
        self.has(sequence)
            && unsafe {
                let memory = sys::llama_get_memory(self.pointer.as_ptr());
                !memory.is_null() && sys::llama_memory_seq_rm(memory, sequence, position, -1)
            }
    }

    /// Whether [`Context::copy`] is possible: not where the memory of a model
    /// is one state that only goes forward.
    pub(super) fn can_copy(&self) -> bool {
        let model = raw(self.model.inner());
        // SAFETY: the model is kept loaded.
        self.setup.slots > 1
            && unsafe { !sys::llama_model_is_recurrent(model) && !sys::llama_model_is_hybrid(model) }
    }

    /// Replaces the memory of one sequence by that of another; whether that was
    /// possible. The copy is made with the next batch.
    pub(super) fn copy(&mut self, from: i32, to: i32) -> bool {
        let possible = self.can_copy() && from != to && self.has(from) && self.has(to);
        // SAFETY: the context is alive, the sequences are two that it has, and
        // the whole of the memory is copied, which is all that llama.cpp can do.
        possible
            && unsafe {
                let memory = sys::llama_get_memory(self.pointer.as_ptr());
                if !memory.is_null() {
                    sys::llama_memory_seq_cp(memory, from, to, -1, -1);
                }
                !memory.is_null()
            }
    }

    /// Whether the memory of a sequence reaches back to its start. Models that
    /// attend to a window only may have dropped it.
    pub(super) fn begins_at_zero(&self, sequence: i32) -> bool {
        // SAFETY: the context is alive, and the number of the sequence is one
        // that it has.
        self.has(sequence)
            && unsafe {
                let memory = sys::llama_get_memory(self.pointer.as_ptr());
                !memory.is_null() && sys::llama_memory_seq_pos_min(memory, sequence) == 0
            }
    }

    fn has(&self, sequence: i32) -> bool {
        (0..i32::try_from(self.setup.slots).unwrap_or(1)).contains(&sequence)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed only here; model and watch outlive it.
        unsafe { sys::llama_free(self.pointer.as_ptr()) };
    }
}

/// Puts settings into llama.cpp's form; what is not given stays as it is.
fn tune(params: &mut sys::llama_context_params, tuning: &Tuning) {
    let cache = |kind: CacheType| match kind {
        CacheType::F32 => sys::GGML_TYPE_F32,
        CacheType::F16 => sys::GGML_TYPE_F16,
        CacheType::Bf16 => sys::GGML_TYPE_BF16,
        CacheType::Q8_0 => sys::GGML_TYPE_Q8_0,
        CacheType::Q5_1 => sys::GGML_TYPE_Q5_1,
        CacheType::Q5_0 => sys::GGML_TYPE_Q5_0,
        CacheType::Q4_1 => sys::GGML_TYPE_Q4_1,
        CacheType::Q4_0 => sys::GGML_TYPE_Q4_0,
    };
    params.n_batch = tuning.batch_size.unwrap_or(BATCH_TOKENS_MAX);
    params.n_ubatch = tuning.ubatch_size.unwrap_or(STEP_TOKENS_MAX).min(params.n_batch);
    params.type_k = tuning.cache_type_k.map_or(params.type_k, cache);
    params.type_v = tuning.cache_type_v.map_or(params.type_v, cache);
    params.flash_attn_type = match tuning.flash_attn {
        None | Some(FlashAttention::Auto) => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
        Some(FlashAttention::On) => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
        Some(FlashAttention::Off) => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
    };
    params.rope_scaling_type = match tuning.rope_scaling {
        None => params.rope_scaling_type,
        Some(RopeScaling::None) => sys::LLAMA_ROPE_SCALING_TYPE_NONE,
        Some(RopeScaling::Linear) => sys::LLAMA_ROPE_SCALING_TYPE_LINEAR,
        Some(RopeScaling::Yarn) => sys::LLAMA_ROPE_SCALING_TYPE_YARN,
    };
    params.rope_freq_base = tuning.rope_freq_base.unwrap_or(params.rope_freq_base);
    params.rope_freq_scale = tuning.rope_freq_scale.unwrap_or(params.rope_freq_scale);
}

/// Whether a model generates text, and not only embeddings or translations.
pub(super) fn can_generate(model: &LlamaModel) -> bool {
    let model = raw(model);
    // SAFETY: the model is borrowed, so it is alive.
    unsafe {
        sys::llama_model_has_decoder(model)
            && !sys::llama_model_has_encoder(model)
            && !sys::llama_model_is_diffusion(model)
    }
}

/// Whether a model makes vectors of texts.
pub(super) fn can_embed(model: &LlamaModel) -> bool {
    let model = raw(model);
    // SAFETY: the model is borrowed, so it is alive.
    unsafe { !sys::llama_model_has_encoder(model) && !sys::llama_model_is_recurrent(model) }
}

/// Numbers in a vector that a model makes.
pub(super) fn dimensions(model: &LlamaModel) -> usize {
    // SAFETY: the model is borrowed, so it is alive.
    usize::try_from(unsafe { sys::llama_model_n_embd_out(raw(model)) }).unwrap_or(0)
}

/// The pointer inside a model of the safe crate.
fn raw(model: &LlamaModel) -> *mut sys::llama_model {
    const {
        assert!(size_of::<LlamaModel>() == size_of::<*mut sys::llama_model>());
        assert!(align_of::<LlamaModel>() == align_of::<*mut sys::llama_model>());
    }
    // SAFETY: `LlamaModel` is `repr(transparent)` around a non-null pointer in
    // the one version of the crate that the workspace pins.
    unsafe { std::ptr::from_ref(model).cast::<*mut sys::llama_model>().read() }
}

#[cfg(test)]
mod tests;
