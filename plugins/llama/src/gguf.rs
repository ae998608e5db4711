//! GGUF headers: a bounded reader that decides whether a file may be shown to
//! llama.cpp at all.
//!
//! llama.cpp aborts the whole process on some malformed files and has a
//! history of memory errors on others, so every count, length, type, offset
//! and size of a header is checked here first, in safe code. Tensor data is
//! never read, and nothing is repaired or guessed: a file that breaks one rule
//! is refused with a sentence that says which.
//!
//! # Invariants
//!
//! - No allocation is larger than what the rest of the file could fill.
//! - No arithmetic on a number from the file can overflow.
//!
//! # Failure
//!
//! Every malformed file is an [`Error`]; no input makes this panic.

mod adapter;
mod cursor;
mod kinds;
mod pooling;
mod tensors;
mod vocabulary;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

pub use adapter::Adapter;
use cursor::Cursor;
pub use pooling::Pooling;
use tensors::{Tensor, Totals};

/// Most tensors of a file; the largest known models have a few thousand.
const TENSORS_MAX: u64 = 65_536;
/// Most metadata entries of a file; usual ones have less than a hundred.
const ENTRIES_MAX: u64 = 65_536;
/// Longest key, in bytes.
const KEY_BYTES_MAX: u64 = 64 * 1024;
/// Longest string value, in bytes: chat templates and vocabularies fit.
const TEXT_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Most elements of an array; the largest known vocabularies have a quarter of
/// a million.
const ELEMENTS_MAX: u64 = 1 << 26;
/// Most layers; llama.cpp has fixed tables of this size.
const BLOCKS_MAX: u64 = 512;
/// Alignments that may be declared, in bytes.
const ALIGNMENT: std::ops::RangeInclusive<u64> = 8..=64 * 1024;
/// The alignment of a file that declares none, in bytes.
const ALIGNMENT_DEFAULT: u64 = 32;

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say what each variant and field means")]
pub enum Error {
    #[error("cannot be read: {0}")]
    Read(#[from] std::io::Error),
    #[error("is not a GGUF file (it starts with {0:02x?})")]
    Magic([u8; 4]),
    #[error("is GGUF version {0}; versions 2 and 3 are known")]
    Version(u32),
    #[error("is truncated: {missing} bytes or more are missing at the end")]
    Truncated { missing: u64 },
    #[error("claims {count} {what}; at most {max} are accepted")]
    Count { what: &'static str, count: u64, max: u64 },
    #[error("has a {what} of {bytes} bytes; at most {max} are accepted")]
    Long { what: &'static str, bytes: u64, max: u64 },
    #[error("has a key or name that is empty, not UTF-8, or has a NUL in it")]
    Name,
    #[error("has `{0}` twice")]
    Twice(String),
    #[error("has an unknown value type {kind} at `{key}`")]
    ValueType { key: String, kind: u32 },
    #[error("has an array of arrays at `{0}`")]
    Nested(String),
    #[error("lacks `{0}`")]
    Missing(String),
    #[error("has a value of the wrong type at `{0}`")]
    WrongType(String),
    #[error("has {value} at `{key}`; accepted is {min} to {max}")]
    Range { key: String, value: u64, min: u64, max: u64 },
    #[error("has the alignment {0}; it must be a power of two from 8 to 65536")]
    Alignment(u64),
    #[error("has no tensors")]
    NoTensors,
    #[error("has tensor `{name}` with {dimensions} dimensions; 1 to 4 are accepted")]
    Dimensions { name: String, dimensions: u32 },
    #[error("has tensor `{0}` with a dimension of zero or an overflowing size")]
    Shape(String),
    #[error("has tensor `{name}` of the unknown type {kind}")]
    TensorType { name: String, kind: u32 },
    #[error("has tensor `{0}` at an offset that is not aligned")]
    Offset(String),
    #[error("has overlapping tensors `{0}` and `{1}`")]
    Overlap(String, String),
    #[error("has `{0}` and the vocabulary with different lengths")]
    Vocabulary(&'static str),
    #[error("has two vocabulary entries with the same text, at {0}")]
    TokenTwice(usize),
    #[error("has a malformed byte token at {0}")]
    ByteToken(usize),
    #[error("is part {part} of {parts} of a split model; merge the parts into one file first")]
    Split { part: u64, parts: u64 },
    #[error("has no vocabulary, so it cannot read or write text")]
    NoVocabulary,
    #[error("is an adapter for models of the kind `{0}` and no model; name it in `lora` of such a model")]
    Adapter(String),
    #[error("is no adapter")]
    NoAdapter,
    #[error("is an adapter of the kind `{0}`; `lora` alone is known")]
    AdapterKind(String),
    #[error("has tensor `{name}`, {why}")]
    Unadaptable { name: String, why: &'static str },
}

/// What is known of a model from its header alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// The version of the format.
    pub version: u32,
    /// The family of the model, `llama` or `qwen2` for example.
    pub architecture: String,
    /// What the model calls itself.
    pub name: Option<String>,
    /// Number of weights.
    pub parameters: u64,
    /// How the weights are stored, `Q8_0` for example.
    pub quantization: String,
    /// Number of tokens that the model was trained to attend to.
    pub context_length: u64,
    /// Number of layers.
    pub block_count: u64,
    /// Numbers that stand for one token.
    pub embedding_length: u64,
    /// Whether the weights that stand for the tokens that are read make those that are
    /// written, too: such a model has no others for that.
    pub tied_output: bool,
    /// How the vector of a text is made of those of its tokens; only in models
    /// that make vectors and no text.
    pub pooling: Option<Pooling>,
    /// Bytes that one token takes in the memory of a conversation, an upper
    /// estimate.
    pub memory_bytes_per_token: u64,
    /// The Jinja template that turns messages into a prompt.
    pub chat_template: Option<String>,
    /// Number of vocabulary entries.
    pub vocabulary: usize,
    /// Size of the whole file.
    pub size_bytes: u64,
}

/// Checks the header of the file at `path`.
///
/// # Errors
///
/// The first rule that the file breaks.
pub fn inspect(path: &Path) -> Result<Header, Error> {
    let file = File::open(path)?;
    let size_bytes = file.metadata()?.len();
    parse(BufReader::with_capacity(256 * 1024, file), size_bytes)
}

/// Checks a header that `reader` yields; the file is `size_bytes` long.
///
/// # Errors
///
/// The first rule that the file breaks.
pub fn parse(reader: impl Read, size_bytes: u64) -> Result<Header, Error> {
    let Parsed { version, metadata, totals, .. } = Parsed::read(reader, size_bytes)?;
    if metadata.text("general.type")? == Some(adapter::TYPE) {
        return Err(Error::Adapter(metadata.architecture()?.to_owned()));
    }
    metadata.header(version, totals, size_bytes)
}

/// Checks the file of an adapter at `path`.
///
/// # Errors
///
/// The first rule that the file breaks.
pub fn inspect_adapter(path: &Path) -> Result<Adapter, Error> {
    let file = File::open(path)?;
    let size_bytes = file.metadata()?.len();
    parse_adapter(BufReader::with_capacity(256 * 1024, file), size_bytes)
}

/// Checks an adapter that `reader` yields; the file is `size_bytes` long.
///
/// # Errors
///
/// The first rule that the file breaks.
pub fn parse_adapter(reader: impl Read, size_bytes: u64) -> Result<Adapter, Error> {
    let Parsed { metadata, tensors, .. } = Parsed::read(reader, size_bytes)?;
    adapter::check(&metadata, &tensors, size_bytes)
}

/// What stands before the data of a file, each part right by itself.
struct Parsed {
    version: u32,
    metadata: Metadata,
    tensors: Vec<Tensor>,
    totals: Totals,
}

impl Parsed {
    fn read(reader: impl Read, size_bytes: u64) -> Result<Self, Error> {
        let mut cursor = Cursor::new(reader, size_bytes);
        let magic = cursor.array::<4>().map_err(|error| match error {
            Error::Truncated { .. } => Error::Magic([0; 4]),
            other => other,
        })?;
        if &magic != b"GGUF" {
            return Err(Error::Magic(magic));
        }
        let version = cursor.u32()?;
        if !(2..=3).contains(&version) {
            return Err(Error::Version(version));
        }
        let tensor_count = count("tensors", cursor.u64()?, TENSORS_MAX)?;
        let entry_count = count("metadata entries", cursor.u64()?, ENTRIES_MAX)?;
        let metadata = Metadata::read(&mut cursor, entry_count)?;
        let alignment = metadata.alignment()?;
        let tensors = tensors::read(&mut cursor, tensor_count)?;
        let totals = tensors::check_placement(&tensors, cursor.at(), alignment, size_bytes)?;
        Ok(Self { version, metadata, tensors, totals })
    }
}

fn count(what: &'static str, count: u64, max: u64) -> Result<u64, Error> {
    if count > max { Err(Error::Count { what, count, max }) } else { Ok(count) }
}

/// A metadata value that is kept. Long arrays and unused texts are checked,
/// then forgotten.
#[derive(Debug)]
enum Value {
    Integer(i64),
    /// Of this type; the value is of no interest.
    Float(u32),
    Bool(bool),
    Text(String),
    Integers {
        kind: u32,
        values: Vec<i64>,
    },
    Texts(Vec<Vec<u8>>),
    /// Checked and skipped: `kind` is the type of the elements.
    Skipped {
        kind: u32,
        count: u64,
    },
}

struct Metadata {
    entries: HashMap<String, Value>,
}

impl Metadata {
    fn read<R: Read>(cursor: &mut Cursor<R>, entry_count: u64) -> Result<Self, Error> {
        let mut entries = HashMap::new();
        for _ in 0..entry_count {
            let key = cursor.name("key", KEY_BYTES_MAX)?;
            let kind = cursor.u32()?;
            let value = read_value(cursor, &key, kind)?;
            if entries.contains_key(&key) {
                return Err(Error::Twice(key));
            }
            entries.insert(key, value);
        }
        Ok(Self { entries })
    }

    fn text(&self, key: &str) -> Result<Option<&str>, Error> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(Error::WrongType(key.to_owned())),
        }
    }

    fn integer(&self, key: &str) -> Result<Option<u64>, Error> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Integer(value)) => {
                u64::try_from(*value).map(Some).map_err(|_| Error::WrongType(key.to_owned()))
            }
            Some(_) => Err(Error::WrongType(key.to_owned())),
        }
    }

    fn required(&self, key: String, min: u64, max: u64) -> Result<u64, Error> {
        match self.integer(&key)? {
            None => Err(Error::Missing(key)),
            Some(value) if (min..=max).contains(&value) => Ok(value),
            Some(value) => Err(Error::Range { key, value, min, max }),
        }
    }

    /// The largest of a number that may be given once or per layer.
    fn largest(&self, key: &str) -> Result<Option<u64>, Error> {
        match self.entries.get(key) {
            Some(Value::Integers { values, .. }) => {
                let largest = values.iter().copied().max().unwrap_or(0);
                u64::try_from(largest).map(Some).map_err(|_| Error::WrongType(key.to_owned()))
            }
            _ => self.integer(key),
        }
    }

    fn alignment(&self) -> Result<u64, Error> {
        let alignment = self.integer("general.alignment")?.unwrap_or(ALIGNMENT_DEFAULT);
        if alignment.is_power_of_two() && ALIGNMENT.contains(&alignment) {
            Ok(alignment)
        } else {
            Err(Error::Alignment(alignment))
        }
    }

    fn architecture(&self) -> Result<&str, Error> {
        let name = self.text("general.architecture")?.filter(|name| !name.is_empty());
        name.ok_or_else(|| Error::Missing("general.architecture".to_owned()))
    }

    /// Checks what the model says of itself and gathers it.
    fn header(&self, version: u32, totals: Totals, size_bytes: u64) -> Result<Header, Error> {
        let architecture = self.architecture()?.to_owned();
        let parts = self.integer("split.count")?.unwrap_or(0);
        if parts > 1 {
            let part = self.integer("split.no")?.unwrap_or(0).saturating_add(1);
            return Err(Error::Split { part, parts });
        }
        let of = |name: &str| format!("{architecture}.{name}");
        let block_count = self.required(of("block_count"), 1, BLOCKS_MAX)?;
        let context_length = self.required(of("context_length"), 1, 1 << 31)?;
        let embedding = self.required(of("embedding_length"), 1, 1 << 20)?;
        let heads = self.largest(&of("attention.head_count"))?.unwrap_or(1).clamp(1, 1 << 16);
        let memory_heads = self.largest(&of("attention.head_count_kv"))?.unwrap_or(heads).clamp(1, 1 << 16);
        let head_size = (embedding / heads).max(1);
        let key_size = self.integer(&of("attention.key_length"))?.unwrap_or(head_size).clamp(1, 1 << 20);
        let value_size = self.integer(&of("attention.value_length"))?.unwrap_or(head_size).clamp(1, 1 << 20);
        let quantization = match self.integer("general.file_type")?.and_then(kinds::file_type) {
            Some(name) => name.to_owned(),
            None => totals.main_kind.to_owned(),
        };
        let vocabulary = self.vocabulary()?;
        Ok(Header {
            version,
            parameters: totals.parameters,
            name: self.text("general.name")?.map(str::to_owned),
            quantization,
            context_length,
            block_count,
            embedding_length: embedding,
            tied_output: !totals.has_output,
            pooling: Pooling::of(
                !matches!(self.entries.get(&of("attention.causal")), Some(Value::Bool(false))),
                self.integer(&of("pooling_type"))?,
            ),
            // Keys and values are held as 16-bit numbers. The product stays
            // below 2^9 * 2^16 * 2^21 * 2, far from overflow.
            memory_bytes_per_token: block_count * memory_heads * (key_size + value_size) * 2,
            chat_template: self.text("tokenizer.chat_template")?.map(str::to_owned),
            vocabulary,
            size_bytes,
            architecture,
        })
    }
}

/// Whether the text at `key` is needed after the check.
fn is_kept_text(key: &str) -> bool {
    matches!(
        key,
        "general.architecture"
            | "general.name"
            | "general.type"
            | "adapter.type"
            | "tokenizer.ggml.model"
            | "tokenizer.chat_template"
    )
}

/// Whether the numbers at `key` are needed after the check.
fn are_kept_numbers(key: &str) -> bool {
    key == "tokenizer.ggml.token_type"
        || key.ends_with(".attention.head_count")
        || key.ends_with(".attention.head_count_kv")
}

fn read_value<R: Read>(cursor: &mut Cursor<R>, key: &str, kind: u32) -> Result<Value, Error> {
    match kind {
        kinds::TEXT if is_kept_text(key) => {
            let bytes = cursor.text("string", TEXT_BYTES_MAX)?;
            let text = String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
            text.map(Value::Text).ok_or_else(|| Error::WrongType(key.to_owned()))
        }
        kinds::TEXT => {
            let bytes = cursor.text_length("string", TEXT_BYTES_MAX)?;
            cursor.skip(bytes)?;
            Ok(Value::Skipped { kind, count: 1 })
        }
        kinds::ARRAY => read_array(cursor, key),
        kinds::FLOAT32 | kinds::FLOAT64 => {
            cursor.skip(if kind == kinds::FLOAT32 { 4 } else { 8 })?;
            Ok(Value::Float(kind))
        }
        kinds::BOOL => {
            // A C++ `bool` that is neither 0 nor 1 is undefined behaviour.
            match cursor.array::<1>()? {
                [byte @ (0 | 1)] => Ok(Value::Bool(byte == 1)),
                _ => Err(Error::WrongType(key.to_owned())),
            }
        }
        _ => match cursor.integer(kind)? {
            Some(value) => Ok(Value::Integer(value)),
            None => Err(Error::ValueType { key: key.to_owned(), kind }),
        },
    }
}

fn read_array<R: Read>(cursor: &mut Cursor<R>, key: &str) -> Result<Value, Error> {
    let kind = cursor.u32()?;
    let elements = cursor.u64()?;
    if kind == kinds::ARRAY {
        return Err(Error::Nested(key.to_owned()));
    }
    let Some(element_bytes) = kinds::value_bytes_min(kind) else {
        return Err(Error::ValueType { key: key.to_owned(), kind });
    };
    let absurd = Error::Count { what: "array elements", count: elements, max: ELEMENTS_MAX };
    let Some(bytes) = elements.checked_mul(element_bytes).filter(|_| elements <= ELEMENTS_MAX) else {
        return Err(absurd);
    };
    // Past this point the rest of the file can hold the array, so memory for
    // its elements is bounded by the size of the file.
    cursor.need(bytes)?;
    if kind == kinds::TEXT {
        if key == "tokenizer.ggml.tokens" {
            let tokens =
                (0..elements).map(|_| cursor.text("token", KEY_BYTES_MAX)).collect::<Result<_, _>>()?;
            return Ok(Value::Texts(tokens));
        }
        for _ in 0..elements {
            let bytes = cursor.text_length("string", TEXT_BYTES_MAX)?;
            cursor.skip(bytes)?;
        }
    } else if are_kept_numbers(key) && kinds::is_integer(kind) {
        let mut values = Vec::new();
        for _ in 0..elements {
            values.extend(cursor.integer(kind)?);
        }
        return Ok(Value::Integers { kind, values });
    } else {
        cursor.skip(bytes)?;
    }
    Ok(Value::Skipped { kind, count: elements })
}
