//! Why the journal cannot do something, in words for an operator.

use std::{io, sync::Arc};

use ksi_sdk::protocol::{Code, Refusal};

use super::report::Damage;

/// Why the journal cannot be opened, written or read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Somebody else holds the lock.
    #[error("cannot open the journal in {place}: {source}")]
    Locked {
        /// The directory.
        place: String,
        /// Who does.
        source: io::Error,
    },
    /// There is no space left. What was acknowledged before is safe.
    #[error("the disk is full: cannot {doing} {file}")]
    Full {
        /// What was tried.
        doing: &'static str,
        /// The file, or the directory itself.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused.
    #[error("cannot {doing} {file}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The file, or the directory itself.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// Records are damaged. Those around them can still be read.
    #[error("{0}")]
    Damaged(Damage),
    /// One record would not fit into any segment.
    #[error("a record of {bytes} bytes is too large, the limit is {limit}")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// What a record may have.
        limit: usize,
    },
    /// An earlier error stopped this journal; nothing is written any more.
    #[error("the journal has stopped: {0}")]
    Stopped(Arc<JournalError>),
    /// The thread that writes ended with a panic.
    #[error("the thread that writes the journal has failed")]
    Panicked,
    /// The journal was closed in order.
    #[error("the journal is closed")]
    Closed,
}

impl JournalError {
    /// What the system said, with what was tried; tells a full disk apart.
    pub(crate) fn io(doing: &'static str, file: &str, source: io::Error) -> Self {
        let file = file.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { doing, file, source },
            _ => Self::Io { doing, file, source },
        }
    }

    /// The refusal that a client gets, with what to do next.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        let (code, hint) = match self {
            Self::Locked { .. } => {
                (Code::Unavailable, "stop the other daemon, or give this one a directory of its own")
            }
            Self::Full { .. } => {
                (Code::Unavailable, "free some space; the plugin starts again by itself and goes on")
            }
            Self::Io { .. } => (
                Code::Unavailable,
                "look at the disk and the kernel's log; what was accepted is read again at start",
            ),
            Self::Damaged(_) => {
                (Code::Unavailable, "the damaged file is kept aside; restore an export, or accept the loss")
            }
            Self::TooLarge { .. } => (Code::TooLarge, "split it, or pass a file by its name"),
            Self::Stopped(first) => return first.refusal(),
            Self::Panicked => {
                (Code::Unavailable, "this is a bug; the plugin starts again and reads what is on the disk")
            }
            Self::Closed => (Code::ShuttingDown, "ask again after the start"),
        };
        Refusal::new(code, self.to_string()).hint(hint)
    }
}
