//! A loaded model: its weights, its vocabulary and its chat template.

use std::sync::{Arc, OnceLock};

use ksi_sdk::prelude::{Code, Refusal};
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;

use super::context::Adapter;
use super::{backend, context, log};
use crate::config::gpu_layer_count;
use crate::constraint::{Grammars, Vocabulary};
use crate::gguf::{Header, Pooling};
use crate::models::is_toy;
use crate::payload::Input;
use crate::template::{Part, Template};
use crate::tuning::Tuning;
use crate::vetting::Source;

/// Stack that llama.cpp's tokenizer may need per byte of input: some
/// vocabularies go through a recursive regular expression, measured at 325
/// bytes for each character of a long run.
const STACK_PER_BYTE: usize = 400;
/// Stack that a tokenizer needs besides.
const STACK_BASE: usize = 8 * 1024 * 1024;
/// Input that any thread's stack can take.
const SMALL_INPUT_BYTES: usize = 1024;

/// A model in memory. Immutable, so that many threads may use it.
pub struct Model {
    inner: LlamaModel,
    template: Template,
    /// Texts of the control tokens, which are looked for in what users write.
    controls: Vec<String>,
    vocabulary: i32,
    toy: bool,
    pooling: Option<Pooling>,
    /// What is laid over it in every context.
    adapters: Vec<Adapter>,
    dimensions: usize,
    /// Made when first needed, which takes a while.
    grammars: OnceLock<Result<Grammars, Refusal>>,
}

impl Model {
    /// Loads the weights from a file whose header has been checked, and lays its
    /// adapters over them. `progress` is called with 0 to 1 and ends the loading by
    /// returning false.
    ///
    /// # Errors
    ///
    /// `unavailable` with llama.cpp's own words; `cancelled` where `progress`
    /// said so.
    pub fn load(
        source: &Source,
        tuning: &Tuning,
        mut progress: impl FnMut(f32) -> bool + 'static,
    ) -> Result<Arc<Self>, Refusal> {
        let backend = backend::get()?;
        let Source { path, header, adapters, .. } = source;
        let cancelled = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let seen = cancelled.clone();
        let params = LlamaModelParams::default()
            .with_n_gpu_layers(gpu_layer_count(tuning.gpu_layers))
            .with_use_mmap(tuning.mmap.unwrap_or(true))
            .with_use_mlock(tuning.mlock.unwrap_or(false))
            .with_progress_callback(move |part| {
                let goes_on = progress(part);
                if !goes_on {
                    seen.store(true, std::sync::atomic::Ordering::Relaxed);
                }
                goes_on
            });
        log::clear();
        let inner = LlamaModel::load_from_file(backend, path, &params).map_err(|error| {
            if cancelled.load(std::sync::atomic::Ordering::Relaxed) {
                return Refusal::new(Code::Cancelled, "loading was cancelled");
            }
            let reason = log::last_errors().unwrap_or_else(|| error.to_string());
            let mut refusal =
                Refusal::new(Code::Unavailable, format!("llama.cpp refuses the model: {reason}"))
                    .hint("use another file of the model, or one that this version of llama.cpp knows");
            refusal.retryable = false;
            refusal
        })?;
        let adapters =
            adapters.iter().map(|overlay| Adapter::read(&inner, overlay)).collect::<Result<_, _>>()?;
        let able = match header.pooling {
            Some(Pooling::Unsupported) => false,
            Some(_) => context::can_embed(&inner),
            None => context::can_generate(&inner),
        };
        if !able {
            let message =
                format!("a model of the kind `{}` makes neither text nor vectors", header.architecture);
            let mut refusal =
                Refusal::new(Code::Unavailable, message).hint("use a model for chat, text or embeddings");
            refusal.retryable = false;
            return Err(refusal);
        }
        Ok(Arc::new(Self { adapters, ..Self::with_vocabulary(inner, header) }))
    }

    fn with_vocabulary(inner: LlamaModel, header: &Header) -> Self {
        let vocab = inner.vocab();
        let vocabulary = vocab.n_tokens();
        let text = |token: LlamaToken| {
            // Files may name ids outside of the vocabulary.
            let known = (0..vocabulary).contains(&token.0);
            let bytes = if known { vocab.token_to_piece(token, true, None) } else { Vec::new() };
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let controls = vocab.tokens().filter(|token| vocab.is_control(*token)).map(text).collect();
        let template = Template::new(header.chat_template.as_deref(), text(vocab.bos()), text(vocab.eos()));
        Self {
            dimensions: context::dimensions(&inner),
            pooling: header.pooling,
            adapters: Vec::new(),
            toy: is_toy(header),
            grammars: OnceLock::new(),
            inner,
            template,
            controls,
            vocabulary,
        }
    }

    pub(super) fn inner(&self) -> &LlamaModel {
        &self.inner
    }

    pub(super) fn adapters(&self) -> &[Adapter] {
        &self.adapters
    }

    /// Number of vocabulary entries.
    #[must_use]
    pub fn vocabulary(&self) -> i32 {
        self.vocabulary
    }

    /// Whether it is the toy, under whatever name.
    #[must_use]
    pub fn is_toy(&self) -> bool {
        self.toy
    }

    /// How it makes the vector of a text; `None` where it makes text.
    #[must_use]
    pub fn pooling(&self) -> Option<&'static str> {
        self.pooling.map(Pooling::as_str)
    }

    /// Numbers in a vector that it makes.
    #[must_use]
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// The tokens of a text of which a vector is to be made, none of them a
    /// control token but those that the vocabulary adds.
    ///
    /// # Errors
    ///
    /// `unavailable` where no thread with enough stack can be made.
    pub fn tokens_to_embed(&self, text: &str) -> Result<Vec<LlamaToken>, Refusal> {
        self.tokenize(&[Part::Plain(text.to_owned())], true)
    }

    /// Where the chat template is from.
    #[must_use]
    pub fn template_origin(&self) -> &str {
        self.template.describe()
    }

    /// The token with which texts begin, or any.
    pub(super) fn first_token(&self) -> LlamaToken {
        let first = self.inner.vocab().bos();
        if (0..self.vocabulary).contains(&first.0) { first } else { LlamaToken(0) }
    }

    /// Whether a token ends the turn.
    #[must_use]
    pub fn is_end(&self, token: LlamaToken) -> bool {
        self.inner.vocab().is_eog(token)
    }

    /// The bytes of a token. Control tokens have none, unless they are asked for.
    #[must_use]
    pub fn piece(&self, token: LlamaToken, control: bool) -> Vec<u8> {
        if (0..self.vocabulary).contains(&token.0) {
            self.inner.vocab().token_to_piece(token, control, None)
        } else {
            Vec::new()
        }
    }

    /// Compiles constraints of answers. The first call takes long.
    ///
    /// # Errors
    ///
    /// `unavailable` where the vocabulary cannot be used for that.
    pub fn grammars(&self) -> Result<&Grammars, Refusal> {
        let vocab = self.inner.vocab();
        let grammars = self.grammars.get_or_init(|| {
            let pieces = vocab.tokens().map(|token| vocab.token_to_piece(token, false, None)).collect();
            let ends = vocab.tokens().filter(|token| vocab.is_eog(*token));
            let ends = ends.filter_map(|token| u32::try_from(token.0).ok()).collect();
            Grammars::new(&Vocabulary { pieces, ends })
        });
        grammars.as_ref().map_err(Clone::clone)
    }

    /// Whether reading this input needs no thread with a larger stack.
    #[must_use]
    pub fn is_small(input: &Input) -> bool {
        input.bytes() <= SMALL_INPUT_BYTES
    }

    /// Turns an input into tokens. Takes long for long inputs.
    ///
    /// # Errors
    ///
    /// As the chat template refuses, and `unavailable` where no thread with
    /// enough stack can be made.
    pub fn read(&self, input: &Input) -> Result<Vec<LlamaToken>, Refusal> {
        match input {
            Input::Prompt(prompt) => self.tokenize(&[Part::Marked(prompt.clone())], true),
            Input::Messages(messages, tools) => {
                let mut parts = self.template.render(messages, tools, &self.controls)?;
                let vocab = self.inner.vocab();
                // A template that writes the start token itself would give two
                // of them where the vocabulary adds one as well.
                if let Some(Part::Marked(first)) = parts.first_mut()
                    && vocab.should_add_bos()
                    && !self.template.bos().is_empty()
                    && let Some(rest) = first.strip_prefix(self.template.bos())
                {
                    *first = rest.to_owned();
                }
                self.tokenize(&parts, true)
            }
        }
    }

    /// The tokens of a text as it is, without any that the vocabulary would
    /// add.
    ///
    /// # Errors
    ///
    /// `unavailable` where no thread with enough stack can be made.
    pub fn tokens_of(&self, text: &str) -> Result<Vec<LlamaToken>, Refusal> {
        self.tokenize(&[Part::Marked(text.to_owned())], false)
    }

    fn tokenize(&self, parts: &[Part], add_special: bool) -> Result<Vec<LlamaToken>, Refusal> {
        let longest = parts.iter().map(|part| text_of(part).len()).max().unwrap_or(0);
        if longest <= SMALL_INPUT_BYTES {
            return Ok(self.tokenize_here(parts, add_special));
        }
        let stack = longest.saturating_mul(STACK_PER_BYTE).saturating_add(STACK_BASE);
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("tokenizer".to_owned())
                .stack_size(stack)
                .spawn_scoped(scope, || self.tokenize_here(parts, add_special))
                .map_err(|error| {
                    Refusal::new(
                        Code::Unavailable,
                        format!("no memory for a tokenizer with {stack} bytes of stack: {error}"),
                    )
                    .hint("shorten the input, or raise the memory limit of the llama plugin")
                })?;
            thread.join().map_err(|_| Refusal::new(Code::Internal, "the tokenizer failed"))
        })
    }

    fn tokenize_here(&self, parts: &[Part], add_special: bool) -> Vec<LlamaToken> {
        let vocab = self.inner.vocab();
        let mut tokens = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            let marked = matches!(part, Part::Marked(_));
            // The text is a `str`: llama.cpp throws on anything but UTF-8.
            let bytes = text_of(part).as_bytes();
            tokens.extend(vocab.tokenize(bytes, add_special && index == 0, marked));
        }
        tokens
    }
}

fn text_of(part: &Part) -> &str {
    match part {
        Part::Marked(text) | Part::Plain(text) => text,
    }
}

/// Warnings that llama.cpp has logged since the last load began.
#[must_use]
pub fn warnings() -> Vec<String> {
    log::warnings()
}
