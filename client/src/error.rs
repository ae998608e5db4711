//! Everything that can go wrong, the daemon's "no" kept apart from all else.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use ksi_protocol::{Code, Refusal, frame, limits, name::NameError};

/// Why a call did not end with an answer. Cheap to clone, because one lost
/// connection ends many calls.
///
/// ```
/// # use ksi_client::{Client, Code, Error, Options, testing::Echo};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// # let daemon = Echo::start()?;
/// # let client = Client::connect(Options::new(daemon.socket())).await?;
/// let asked = client.request::<_, ()>("echo:shout", &()).await;
/// match asked {
///     Err(Error::Refused(refusal)) => assert_eq!(refusal.code, Code::UnknownEvent),
///     other => panic!("the daemon knows no such event, but: {other:?}"),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody listens on the socket.
    #[error("no daemon answers at {}", socket.display())]
    NotRunning {
        /// Where it was sought.
        socket: PathBuf,
    },
    /// The path does not fit a socket address.
    #[error(
        "socket path is {bytes} bytes long, and the system allows {}: {}",
        limits::SOCKET_PATH_BYTES_MAX,
        socket.display()
    )]
    PathTooLong {
        /// The path.
        socket: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// There is something at the path, but no socket.
    #[error("{} is not a socket", socket.display())]
    NotASocket {
        /// The path.
        socket: PathBuf,
    },
    /// The system refused the connection, for lack of permission for example.
    #[error("cannot connect to {}: {source}", socket.display())]
    Connect {
        /// The path.
        socket: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The file with the token cannot be read.
    #[error("cannot read the token in {}: {source}", path.display())]
    TokenFile {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The daemon should have been started, but could not.
    #[error("cannot start the daemon: {0}")]
    Start(#[from] crate::StartFailure),
    /// The daemon speaks another version of the protocol.
    #[error("the daemon ({server}) speaks protocol version {theirs}, this client {ours}")]
    Version {
        /// This client's version.
        ours: u16,
        /// The daemon's version.
        theirs: u16,
        /// What the daemon is.
        server: String,
    },
    /// Disconnected: the connection broke before the answer came. Whether the
    /// request was done is not known, unless [`Error::may_have_arrived`] says
    /// no. It is never sent again by the library.
    #[error("connection to the daemon lost: {0}")]
    Lost(Loss),
    /// The client was closed with [`crate::Client::close`].
    #[error("client is closed")]
    Closed,
    /// The daemon sent what is not in the protocol; the connection is closed.
    #[error("the daemon broke the protocol: {0}")]
    Protocol(Fault),
    /// The text is no event name or pattern.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The payload cannot be written as MessagePack.
    #[error("payload of {event} cannot be encoded: {source}")]
    Encode {
        /// The event that was to be sent.
        event: String,
        /// Why.
        source: Arc<rmp_serde::encode::Error>,
    },
    /// The frame would be longer than the wire allows; nothing was sent.
    #[error("frame of {bytes} bytes is longer than the limit of {} bytes", limits::FRAME_BYTES_MAX)]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// The answer came, but is not of the type that was asked for.
    #[error("answer to {event} does not fit: {reason}")]
    Decode {
        /// The event that was asked.
        event: String,
        /// What the decoder expected.
        reason: String,
    },
    /// The time of a call passed without even a refusal from the daemon.
    #[error("no answer within {after:?}")]
    TimedOut {
        /// The limit that passed.
        after: Duration,
    },
    /// More of a stream waits here than the client holds; the stream was
    /// cancelled. `credit` in [`crate::CallOptions`] prevents it.
    #[error(
        "stream was cancelled: {chunks} chunks ({bytes} bytes) wait for a consumer that does not take them"
    )]
    Overrun {
        /// Chunks that were waiting.
        chunks: usize,
        /// Their bytes.
        bytes: usize,
    },
    /// A durable request was expected, and the event is not durable: it was
    /// answered at once.
    #[error("`{event}` is not durable: it was answered, and there is nothing to wait for")]
    NotDurable {
        /// The event.
        event: String,
    },
    /// Too much is open on this connection.
    #[error("{open} requests and subscriptions are open, and no more fit")]
    Full {
        /// How much is open.
        open: usize,
    },
    /// The daemon said no.
    #[error("{0}")]
    Refused(#[from] Refusal),
}

/// How a connection was lost.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Loss {
    /// The daemon closed it.
    #[error("the daemon closed it")]
    Ended,
    /// The daemon closed it in the middle of a frame.
    #[error("the daemon closed it in the middle of a frame")]
    MidFrame,
    /// The daemon said why before it closed the connection.
    #[error("{0}")]
    Refused(Refusal),
    /// The system reported an error.
    #[error("{0}")]
    Io(Arc<io::Error>),
    /// It is lost already and not yet made anew.
    #[error("not connected")]
    Down,
}

/// How the daemon broke the protocol.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// Bytes that are no frame.
    #[error("{0}")]
    Frame(Arc<frame::Error>),
    /// A frame that a daemon may not send, or not now.
    #[error("unexpected frame: {0}")]
    Unexpected(&'static str),
}

impl Error {
    /// The refusal, where the daemon said no.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// Whether the same call may succeed later. After [`Error::Lost`] and
    /// [`Error::TimedOut`] it may, but it may also have been done already.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.retryable,
            Self::NotRunning { .. } | Self::Lost(_) | Self::TimedOut { .. } | Self::Full { .. } => true,
            Self::Connect { source, .. } => source.kind() == io::ErrorKind::WouldBlock,
            _ => false,
        }
    }

    /// Whether the request that ended so may have reached the daemon, and so
    /// may have been done. Where it is `false`, it has not.
    ///
    /// ```
    /// # use ksi_client::{Error, Loss};
    /// assert!(Error::Lost(Loss::Ended).may_have_arrived());
    /// assert!(!Error::Lost(Loss::Down).may_have_arrived());
    /// ```
    #[must_use]
    pub fn may_have_arrived(&self) -> bool {
        match self {
            Self::Lost(Loss::Down)
            | Self::NotRunning { .. }
            | Self::PathTooLong { .. }
            | Self::NotASocket { .. }
            | Self::Connect { .. }
            | Self::TokenFile { .. }
            | Self::Start(_)
            | Self::Version { .. }
            | Self::Name(_)
            | Self::Encode { .. }
            | Self::TooLarge { .. }
            | Self::Full { .. } => false,
            Self::Lost(_)
            | Self::Closed
            | Self::Protocol(_)
            | Self::Decode { .. }
            | Self::TimedOut { .. }
            | Self::NotDurable { .. }
            | Self::Overrun { .. }
            | Self::Refused(_) => true,
        }
    }

    /// Whether a question that changes nothing may be asked again: the
    /// connection, the daemon or the plugin went away and is coming back.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Lost(_) | Self::NotRunning { .. } | Self::TimedOut { .. } => true,
            Self::Connect { source, .. } => source.kind() == io::ErrorKind::WouldBlock,
            Self::Refused(refusal) => {
                refusal.retryable
                    || matches!(
                        refusal.code,
                        Code::Unavailable
                            | Code::Busy
                            | Code::PluginRestarted
                            | Code::ShuttingDown
                            | Code::Timeout
                    )
            }
            _ => false,
        }
    }

    pub(crate) fn io(error: io::Error) -> Self {
        Self::Lost(Loss::Io(Arc::new(error)))
    }

    pub(crate) fn unexpected(kind: &'static str) -> Self {
        Self::Protocol(Fault::Unexpected(kind))
    }

    pub(crate) fn from_decoding(error: frame::Error) -> Self {
        Self::Protocol(Fault::Frame(Arc::new(error)))
    }

    /// The error for a frame of ours that cannot be encoded.
    pub(crate) fn from_encoding(error: frame::Error) -> Self {
        match error {
            frame::Error::TooLarge(bytes) => Self::TooLarge { bytes },
            error => Self::from_decoding(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_pass_later_is_retryable() {
        let refused = |code| Error::Refused(Refusal::new(code, "no"));
        for (error, expected) in [
            (refused(Code::Busy), true),
            (refused(Code::Denied), false),
            (Error::NotRunning { socket: "/s".into() }, true),
            (Error::Lost(Loss::Ended), true),
            (Error::TimedOut { after: Duration::from_secs(1) }, true),
            (Error::unexpected("hello"), false),
            (Error::Closed, false),
        ] {
            assert_eq!(error.is_retryable(), expected, "{error}");
        }
    }

    #[test]
    fn a_refusal_is_found_only_where_the_daemon_refused() {
        assert_eq!(
            Error::from(Refusal::new(Code::Denied, "no")).refusal().map(|r| r.code),
            Some(Code::Denied)
        );
        let lost = Error::Lost(Loss::Refused(Refusal::new(Code::ShuttingDown, "bye")));
        assert!(lost.refusal().is_none());
    }
}
