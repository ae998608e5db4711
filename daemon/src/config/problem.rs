//! What is wrong with a configuration, where, and what to do; and where a
//! value comes from.
//!
//! Nothing here decides what is wrong. Texts name keys and shapes; values are
//! quoted only by those who know that they are no secret.

use std::{fmt, sync::Arc};

use ksi_protocol::nearest;

/// Where a value or key comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// A place in a file; line and column count from 1, columns in characters.
    File {
        /// The file, as it was named.
        file: Arc<str>,
        /// Line.
        line: usize,
        /// Column.
        column: usize,
    },
    /// An environment variable.
    Variable(Arc<str>),
    /// A key given with `--set`.
    Flag(Arc<str>),
}

impl Origin {
    /// With the column, for an error.
    fn place(&self) -> String {
        match self {
            Self::File { file, line, column } => format!("{file}:{line}:{column}"),
            other => other.to_string(),
        }
    }
}

/// As `config:show` has it: `ksi.toml:12`, a variable's name, `--set KEY` or
/// `default`.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { file, line, .. } => write!(f, "{file}:{line}"),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(key) => write!(f, "--set {key}"),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where: a place, or the name of a file that cannot be read.
    pub place: String,
    /// What.
    pub message: String,
    /// What to do; empty where nothing can be said.
    pub hint: String,
}

impl Problem {
    pub(super) fn new(at: &Origin, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { place: at.place(), message: message.into(), hint: hint.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)?;
        if !self.hint.is_empty() {
            write!(f, "\n  hint: {}", self.hint)?;
        }
        Ok(())
    }
}

/// Why there is no configuration: all that is wrong, in the order of layers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Invalid {
    /// Never empty.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

/// `did you mean …`, or else what there is.
pub(super) fn suggest(text: &str, names: &[&str], else_say: &str) -> String {
    match nearest::best(text, names.iter().copied()) {
        Some(name) => format!("did you mean `{name}`?"),
        None if names.is_empty() => String::new(),
        None => format!("{else_say} {}", names.join(", ")),
    }
}
