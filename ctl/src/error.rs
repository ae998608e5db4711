//! Failures as a person and a program read them: what, why, and what next.
//!
//! Everything that goes wrong becomes a [`Failure`], which knows its exit
//! code. Printing happens once, in `main`.

use std::{io, path::Path};

use ksi_protocol::{Refusal, limits::FRAME_BYTES_MAX};
use serde_json::{Map, Value, json};

use crate::exit::Exit;

/// Why a verb did not do what it was asked.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    /// How the process ends.
    pub(crate) exit: Exit,
    /// A word for programs: a refusal's code, or one of our own.
    pub(crate) code: String,
    /// What happened.
    pub(crate) message: String,
    /// What to do next; empty where nothing helps.
    pub(crate) hint: String,
    /// Facts for a program.
    pub(crate) details: Option<Box<Value>>,
    /// Nothing is printed: the reader is gone, or all has been said.
    pub(crate) silent: bool,
}

/// What every verb returns.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure with this exit code, word and sentence.
    pub(crate) fn new(exit: Exit, code: &str, message: impl Into<String>) -> Self {
        Self {
            exit,
            code: code.into(),
            message: message.into(),
            hint: String::new(),
            details: None,
            silent: false,
        }
    }

    /// It failed, for a reason that has no exit code of its own.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, "failed", message)
    }

    /// The command line is wrong.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, "usage", message)
    }

    /// The thing named does not exist.
    pub(crate) fn not_found(what: &str, name: &str) -> Self {
        Self::new(Exit::NotFound, "not_found", format!("no {what} named `{name}`"))
    }

    /// The daemon is not running.
    pub(crate) fn not_running(socket: &Path) -> Self {
        Self::new(Exit::NotRunning, "not_running", format!("ksid is not running at {}", socket.display()))
            .hint("start it: ksi up")
    }

    /// The connection broke.
    fn disconnected(error: &ksi_client::Error) -> Self {
        let sent = error.may_have_arrived();
        let done = if sent { "it may have been done; look before asking again" } else { "nothing was sent" };
        Self {
            details: Some(Box::new(json!({ "may_have_arrived": sent }))),
            ..Self::new(Exit::Failed, "disconnected", error.to_string())
                .hint(format!("{done}; see why: ksi logs"))
        }
    }

    /// The time was over.
    pub(crate) fn timeout(message: impl Into<String>) -> Self {
        Self::new(Exit::Timeout, "timeout", message)
    }

    /// More than one request can carry.
    pub(crate) fn too_large(what: &str) -> Self {
        let message = format!("{what} is longer than {FRAME_BYTES_MAX} bytes, and no request carries more");
        Self::new(Exit::Usage, "too_large", message).hint("send less of it")
    }

    /// Ctrl-C.
    pub(crate) fn interrupted() -> Self {
        Self::new(Exit::Interrupted, "interrupted", "interrupted").silenced()
    }

    /// Ends with a code after all has been printed already.
    pub(crate) fn quietly(exit: Exit) -> Self {
        Self::new(exit, "", "").silenced()
    }

    /// Something about a file went wrong: `to_file("read", path, &error)`.
    pub(crate) fn to_file(verb: &str, path: &Path, error: &io::Error) -> Self {
        Self::failed(format!("cannot {verb} {}: {error}", path.display()))
    }

    /// Adds what to do next.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    fn silenced(mut self) -> Self {
        self.silent = true;
        self
    }

    /// As programs read it.
    pub(crate) fn to_json(&self) -> Value {
        let mut error = Map::new();
        error.insert("code".into(), self.code.clone().into());
        error.insert("message".into(), self.message.clone().into());
        if !self.hint.is_empty() {
            error.insert("hint".into(), self.hint.clone().into());
        }
        if let Some(details) = &self.details {
            error.insert("details".into(), details.as_ref().clone());
        }
        error.insert("exit".into(), (self.exit as u8).into());
        json!({ "error": error })
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let mut message = refusal.message;
        if let Some(ms) = refusal.retry_after_ms {
            message = format!("{message} (try again in {ms} ms)");
        }
        Self {
            exit: Exit::of(refusal.code),
            code: refusal.code.as_str().into(),
            message,
            hint: refusal.hint,
            details: refusal.details.map(Box::new),
            silent: false,
        }
    }
}

/// Only standard output is written with `?`; a reader that has gone is no
/// failure worth a word.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::quietly(Exit::Ok),
            _ => Self::failed(format!("cannot write the output: {error}")),
        }
    }
}

impl From<ksi_client::Error> for Failure {
    fn from(error: ksi_client::Error) -> Self {
        use ksi_client::Error;
        match error {
            Error::Refused(refusal) => refusal.into(),
            Error::NotRunning { socket } => Self::not_running(&socket),
            Error::TimedOut { after } => Self::timeout(format!("no answer within {after:?}"))
                .hint("give it more: --timeout 2m; what runs: ksi status"),
            error @ Error::Lost(_) => Self::disconnected(&error),
            Error::Connect { ref source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Self::new(Exit::Denied, "denied", error.to_string())
                    .hint("only the user who runs the daemon may open its socket: ksi doctor")
            }
            error @ (Error::PathTooLong { .. } | Error::NotASocket { .. } | Error::Connect { .. }) => {
                Self::failed(error.to_string()).hint("see what is wrong: ksi doctor")
            }
            Error::TooLarge { .. } => Self::too_large("the request"),
            Error::Name(error) => Self::usage(error.to_string()).hint("what there is: ksi discover"),
            other => Self::failed(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ksi_protocol::Code;

    #[test]
    fn a_refusal_keeps_its_code_hint_and_details() {
        let refusal = Refusal::new(Code::NotFound, "no model named `x`")
            .hint("ksi model list")
            .details(json!({"known": ["y"]}));
        let failure = Failure::from(refusal);
        assert_eq!(failure.exit, Exit::NotFound);
        assert_eq!(
            failure.to_json(),
            json!({"error": {"code": "not_found", "message": "no model named `x`",
                             "hint": "ksi model list", "details": {"known": ["y"]}, "exit": 4}})
        );
    }

    #[test]
    fn a_lost_connection_says_whether_the_request_may_have_been_done() {
        use ksi_client::{Error, Loss};
        for (loss, sent, word) in [(Loss::Ended, true, "may have been done"), (Loss::Down, false, "nothing")]
        {
            let failure = Failure::from(Error::Lost(loss));
            assert_eq!((failure.code.as_str(), failure.exit), ("disconnected", Exit::Failed));
            assert_eq!(failure.details.unwrap()["may_have_arrived"], sent);
            assert!(failure.hint.contains(word), "{}", failure.hint);
        }
    }

    #[test]
    fn a_socket_without_rights_and_a_request_without_room_have_their_codes() {
        use ksi_client::Error;
        let connect = |kind: io::ErrorKind| {
            Failure::from(Error::Connect { socket: "/s".into(), source: std::sync::Arc::new(kind.into()) })
        };
        let denied = connect(io::ErrorKind::PermissionDenied);
        assert_eq!((denied.exit, denied.code.as_str()), (Exit::Denied, "denied"));
        assert_eq!(connect(io::ErrorKind::Other).exit, Exit::Failed);
        let large = Failure::from(Error::TooLarge { bytes: 20_000_000 });
        assert_eq!((large.exit, large.code.as_str()), (Exit::Usage, "too_large"));
        assert!(!large.hint.is_empty());
    }

    #[test]
    fn a_reader_that_has_gone_ends_quietly_with_zero() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(failure.silent);
        assert_eq!(failure.exit, Exit::Ok);
    }

    #[test]
    fn an_overloaded_daemon_says_when_to_try_again() {
        let failure = Failure::from(Refusal::new(Code::Busy, "queue is full").retry_after_ms(250));
        assert_eq!(failure.message, "queue is full (try again in 250 ms)");
    }
}
