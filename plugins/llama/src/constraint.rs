//! What an answer may look like: JSON, JSON by a schema, or a text by a
//! grammar, enforced token by token.
//!
//! [`Grammars`] knows the tokens of one model and compiles; a [`Constraint`] is
//! the state of one answer. The grammar engine is llguidance: safe code with
//! limits on work and memory, where llama.cpp's own would abort the process on
//! some inputs and hold up all others on large vocabularies.
//!
//! # Invariants
//!
//! - What was accepted is the start of a text that fits.
//! - [`Constraint::ending`] turns such a start of JSON into a whole that fits,
//!   so that an answer that is cut is still JSON.
//!
//! # Failure
//!
//! A schema that the engine does not know, or that is too complex, is refused
//! with its own words. Nothing here quotes what the model wrote.

use std::sync::Arc;

use ksi_provider::ResponseFormat;
use ksi_provider::request::invalid;
use ksi_sdk::prelude::{Code, Refusal, json};
use llama_cpp_2::token::LlamaToken;
use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;

use crate::gbnf;

/// Largest schema, in bytes of its JSON text.
const SCHEMA_BYTES_MAX: usize = 256 * 1024;
/// Longest ending of an answer that was cut, in bytes.
const ENDING_BYTES_MAX: usize = 16 * 1024;
/// What ends things soonest, the best first: a string, an object, an array;
/// then what goes on to the next part; then the shortest value.
const ENDING_BYTES: &[u8] = b"\"}],:0";

/// Marks the text of a token that is none, a control token.
const CONTROL_MARK: u8 = 0xFF;

/// Tokens of a model: what each says, and which end the turn.
pub struct Vocabulary {
    /// The bytes of each token, empty for one that says nothing.
    pub pieces: Vec<Vec<u8>>,
    /// The tokens that end the turn; at least one.
    pub ends: Vec<u32>,
}

/// Compiles grammars for one model.
pub struct Grammars {
    tokens: ParserFactory,
    /// The same for single bytes, in which endings are sought.
    bytes: ParserFactory,
}

impl Grammars {
    /// Grammars over these tokens. Takes long for a large vocabulary.
    ///
    /// # Errors
    ///
    /// `unavailable` for a vocabulary that cannot be used.
    pub fn new(vocabulary: &Vocabulary) -> Result<Self, Refusal> {
        let unusable =
            |why: &str| Refusal::new(Code::Unavailable, format!("no grammar fits this model: {why}"));
        let Some(end) = vocabulary.ends.first() else { return Err(unusable("no token ends its turn")) };
        let size = u32::try_from(vocabulary.pieces.len()).map_err(|_| unusable("too many tokens"))?;
        let words: Vec<Vec<u8>> = vocabulary
            .pieces
            .iter()
            .enumerate()
            .map(|(token, piece)| match piece.is_empty() {
                true => [&[CONTROL_MARK], token.to_string().as_bytes()].concat(),
                false => piece.clone(),
            })
            .collect();
        let trie = TokTrie::from(&TokRxInfo::new(size, *end), &words).with_eos_tokens(&vocabulary.ends);
        let tokens: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let bytes: TokEnv = Arc::new(ApproximateTokEnv::single_byte());
        let factory = |tokens: &TokEnv| {
            let mut factory =
                ParserFactory::new_simple(tokens).map_err(|error| unusable(&error.to_string()))?;
            factory.quiet();
            // An error would quote the grammar and what was generated.
            factory.limits_mut().verbose_errors = false;
            Ok::<_, Refusal>(factory)
        };
        Ok(Self { tokens: factory(&tokens)?, bytes: factory(&bytes)? })
    }

    /// Compiles what the answer is to be; `None` for any text.
    ///
    /// # Errors
    ///
    /// `invalid_payload` where the schema cannot be used, `too_large`.
    pub fn compile(&self, format: &ResponseFormat) -> Result<Option<Constraint>, Refusal> {
        let schema = match format {
            ResponseFormat::Text => return Ok(None),
            ResponseFormat::Json => json!({ "type": "object" }),
            ResponseFormat::JsonSchema(schema) => Value::Object(schema.schema.clone()),
        };
        let bytes = schema.to_string().len();
        if bytes > SCHEMA_BYTES_MAX {
            let message = format!("the schema has {bytes} bytes; at most {SCHEMA_BYTES_MAX} are accepted");
            return Err(Refusal::new(Code::TooLarge, message).hint("use a smaller schema"));
        }
        let grammar = TopLevelGrammar::from_grammar(GrammarWithLexer::from_json_schema(spaced(schema)));
        let tokens = compile(&self.tokens, grammar.clone(), "response_format")?;
        let bytes = Some(compile(&self.bytes, grammar, "response_format")?);
        Ok(Some(Constraint { tokens, bytes }))
    }

    /// Compiles a grammar in GBNF. A text by it that is cut stays as it is: how
    /// it could end soonest cannot be known.
    ///
    /// # Errors
    ///
    /// As [`Grammars::compile`].
    pub fn compile_grammar(&self, gbnf: &str) -> Result<Constraint, Refusal> {
        let grammar = TopLevelGrammar::from_lark(gbnf::to_lark(gbnf)?);
        Ok(Constraint { tokens: compile(&self.tokens, grammar, "grammar")?, bytes: None })
    }

    /// Compiles a call of a tool, in the syntax of the grammar engine.
    ///
    /// # Errors
    ///
    /// As [`Grammars::compile`].
    pub fn compile_call(&self, lark: String) -> Result<Constraint, Refusal> {
        let grammar = TopLevelGrammar::from_lark(lark);
        Ok(Constraint { tokens: compile(&self.tokens, grammar, "tools")?, bytes: None })
    }
}

/// Compiles what the field at `path` says.
fn compile(factory: &ParserFactory, grammar: TopLevelGrammar, path: &str) -> Result<Matcher, Refusal> {
    let matcher = Matcher::new(factory.create_parser(grammar));
    match matcher.get_error() {
        None => Ok(matcher),
        Some(error) => {
            let error = error.lines().next().unwrap_or_default().to_owned();
            let message = format!("what `{path}` says cannot be enforced: {error}");
            let hint = format!("make it simpler, or ask without `{path}`");
            Err(invalid(path, message, &hint))
        }
    }
}

/// The schema with the one layout that is allowed: without it, a model may
/// write blanks for ever, and still be right.
fn spaced(mut schema: Value) -> Value {
    schema["x-guidance"] = json!({
        "item_separator": ", ", "key_separator": ": ", "whitespace_flexible": false,
        "json_allowed_escapes": "nrbtf\\\"",
    });
    schema
}

/// The grammar came to an end that it should not have: it got too complex.
#[derive(Debug, PartialEq, Eq)]
pub struct Stuck;

/// What one answer may go on with. A clone is that of another answer.
pub struct Constraint {
    tokens: Matcher,
    /// The same over single bytes, where an end can be found.
    bytes: Option<Matcher>,
}

impl Clone for Constraint {
    fn clone(&self) -> Self {
        Self { tokens: self.tokens.deep_clone(), bytes: self.bytes.as_ref().map(Matcher::deep_clone) }
    }
}

impl Constraint {
    /// The tokens that may come next, those that end the turn among them where
    /// the text is whole.
    ///
    /// # Errors
    ///
    /// [`Stuck`] where the grammar exceeds its limits.
    pub fn allowed(&mut self) -> Result<Allowed, Stuck> {
        self.tokens.compute_mask_or_eos().map(Allowed).map_err(|_| Stuck)
    }

    /// Takes a token that was allowed and does not end the turn.
    ///
    /// # Errors
    ///
    /// [`Stuck`] where the grammar exceeds its limits.
    pub fn accept(&mut self, token: LlamaToken) -> Result<(), Stuck> {
        let token = u32::try_from(token.0).map_err(|_| Stuck)?;
        self.tokens.consume_token(token).map_err(|_| Stuck)
    }

    /// Whether the text is whole and nothing may follow.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.tokens.is_stopped()
    }

    /// What turns `text`, the bytes of all accepted tokens, into a whole that
    /// fits. `None` where none of acceptable length was found, because the schema
    /// wants more than that, or none is sought.
    #[must_use]
    pub fn ending(self, text: &[u8]) -> Option<String> {
        let mut bytes = self.bytes?;
        for byte in text {
            bytes.consume_token(u32::from(*byte)).ok()?;
        }
        let mut ending = Vec::new();
        while !bytes.is_accepting().ok()? && !bytes.is_stopped() {
            let allowed = bytes.compute_mask().ok()?;
            let may = |byte: &u8| allowed.is_allowed(u32::from(*byte));
            let soonest = ENDING_BYTES.iter().copied().find(may);
            // Letters before blanks, which may follow each other for ever.
            let byte = soonest.or_else(|| (0x21..=0xFF).find(may)).or_else(|| (0..0x21).find(may))?;
            bytes.consume_token(u32::from(byte)).ok()?;
            ending.push(byte);
            if ending.len() > ENDING_BYTES_MAX {
                return None;
            }
        }
        // The end may begin in the middle of a character.
        let whole = [text, &ending].concat();
        std::str::from_utf8(&whole).ok()?;
        let valid_start = text.len() - incomplete(text);
        String::from_utf8(whole[valid_start..].to_vec()).ok()
    }
}

/// Bytes at the end that are the start of a character.
fn incomplete(text: &[u8]) -> usize {
    match std::str::from_utf8(text) {
        Err(error) if error.error_len().is_none() => text.len() - error.valid_up_to(),
        _ => 0,
    }
}

/// A set of tokens.
pub struct Allowed(SimpleVob);

impl Allowed {
    /// Whether a token is in it.
    #[must_use]
    pub fn has(&self, token: LlamaToken) -> bool {
        u32::try_from(token.0).is_ok_and(|token| (token as usize) < self.0.len() && self.0.is_allowed(token))
    }
}

#[cfg(test)]
mod tests;
