//! The vocabulary of a model: the rules on which llama.cpp asserts.

use std::collections::HashSet;

use super::{Error, Metadata, Value, kinds};

/// The kind of a vocabulary entry that stands for one byte.
const TOKEN_KIND_BYTE: i64 = 6;

impl Metadata {
    /// Checks them; the number of entries.
    pub(super) fn vocabulary(&self) -> Result<usize, Error> {
        match self.text("tokenizer.ggml.model")? {
            None | Some("none" | "no_vocab" | "") => return Err(Error::NoVocabulary),
            Some(_) => {}
        }
        let tokens = match self.entries.get("tokenizer.ggml.tokens") {
            None => return Err(Error::NoVocabulary),
            Some(Value::Texts(tokens)) if tokens.is_empty() => return Err(Error::NoVocabulary),
            Some(Value::Texts(tokens)) => tokens,
            Some(_) => return Err(Error::WrongType("tokenizer.ggml.tokens".to_owned())),
        };
        match self.entries.get("tokenizer.ggml.scores") {
            None => {}
            Some(Value::Skipped { kind: kinds::FLOAT32, count }) if *count == tokens.len() as u64 => {}
            Some(Value::Skipped { kind: kinds::FLOAT32, .. }) => {
                return Err(Error::Vocabulary("tokenizer.ggml.scores"));
            }
            Some(_) => return Err(Error::WrongType("tokenizer.ggml.scores".to_owned())),
        }
        match self.entries.get("tokenizer.ggml.token_type") {
            None => {}
            Some(Value::Integers { kind: kinds::INT32 | kinds::UINT32, values }) => {
                if values.len() != tokens.len() {
                    return Err(Error::Vocabulary("tokenizer.ggml.token_type"));
                }
                check_byte_tokens(tokens, values)?;
            }
            Some(_) => return Err(Error::WrongType("tokenizer.ggml.token_type".to_owned())),
        }
        match self.entries.get("tokenizer.ggml.merges") {
            None | Some(Value::Skipped { kind: kinds::TEXT, .. }) => {}
            Some(_) => return Err(Error::WrongType("tokenizer.ggml.merges".to_owned())),
        }
        check_unique(tokens)?;
        Ok(tokens.len())
    }
}

fn check_byte_tokens(tokens: &[Vec<u8>], kinds: &[i64]) -> Result<(), Error> {
    for (index, (token, kind)) in tokens.iter().zip(kinds).enumerate() {
        let well_formed = match token.as_slice() {
            [b'<', b'0', b'x', high, low, b'>'] => {
                [high, low].into_iter().all(|digit| digit.is_ascii_digit() || (b'A'..=b'F').contains(digit))
            }
            _ => false,
        };
        if *kind == TOKEN_KIND_BYTE && !well_formed {
            return Err(Error::ByteToken(index));
        }
    }
    Ok(())
}

fn check_unique(tokens: &[Vec<u8>]) -> Result<(), Error> {
    let mut seen = HashSet::with_capacity(tokens.len());
    for (index, token) in tokens.iter().enumerate() {
        // What must be unique is what llama.cpp makes of an entry: it ends at
        // its first NUL, and an empty one gets this name.
        let text = token.split(|byte| *byte == 0).next().unwrap_or_default();
        let token = if text.is_empty() { format!("[EMPTY_{index}]").into_bytes() } else { text.to_vec() };
        if !seen.insert(token) {
            return Err(Error::TokenTwice(index));
        }
    }
    Ok(())
}
