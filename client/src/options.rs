//! What a connection and a single call can be told.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ksi_protocol::{
    paths::Paths,
    token::{self, Token},
};

use crate::error::Error;

/// How to connect. Built step by step:
///
/// ```
/// use std::time::Duration;
/// use ksi_client::Options;
///
/// let options = Options::from_env().name("my-tool 1.0").patience(Duration::from_secs(3)).timeout(Duration::from_secs(5));
/// ```
#[derive(Debug, Clone)]
pub struct Options {
    pub(crate) socket: PathBuf,
    pub(crate) name: String,
    pub(crate) auto_start: bool,
    pub(crate) starter: Option<PathBuf>,
    pub(crate) reconnect: bool,
    pub(crate) timeout: Option<Duration>,
    pub(crate) connect_timeout: Duration,
    pub(crate) patience: Option<Duration>,
    pub(crate) start_timeout: Duration,
    pub(crate) event_queue: usize,
    pub(crate) token: TokenSource,
}

/// Where a token comes from.
#[derive(Debug, Clone, Default)]
pub(crate) enum TokenSource {
    #[default]
    None,
    Given(Token),
    /// Read at each connection, so that a new one takes effect.
    File(PathBuf),
}

/// Events that may wait in one subscription; see [`Options::event_queue`].
const EVENT_QUEUE: usize = 64 * 1024;

impl Options {
    /// The defaults, for a daemon that listens on `socket`.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            name: concat!("ksi-client ", env!("CARGO_PKG_VERSION")).to_owned(),
            auto_start: false,
            starter: None,
            reconnect: true,
            timeout: None,
            connect_timeout: Duration::from_secs(10),
            patience: None,
            start_timeout: Duration::from_secs(20),
            event_queue: EVENT_QUEUE,
            token: TokenSource::None,
        }
    }

    /// The defaults, for the daemon that the environment names: `KSI_SOCKET`,
    /// `KSI_HOME`, or the XDG directories; with [`Options::token_from_env`].
    #[must_use]
    pub fn from_env() -> Self {
        let uid = nix::unistd::getuid().as_raw();
        // Without a current directory what is relative stays so, and leads nowhere.
        let current = std::env::current_dir().unwrap_or_default();
        Self::new(Paths::resolve(|name| std::env::var_os(name), &current, uid).socket).token_from_env()
    }

    /// Shows this token to the daemon, and speaks in its name. Without one the
    /// daemon goes by the user of this process.
    #[must_use]
    pub fn token(mut self, token: Token) -> Self {
        self.token = TokenSource::Given(token);
        self
    }

    /// Shows the token in this file, which is read at each connection.
    #[must_use]
    pub fn token_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.token = TokenSource::File(path.into());
        self
    }

    /// Shows the token that the environment names, where it does: `KSI_TOKEN`, or
    /// the file in `KSI_TOKEN_FILE`.
    #[must_use]
    pub fn token_from_env(self) -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        match (set(token::VARIABLE), set(token::FILE_VARIABLE)) {
            (Some(text), _) => self.token(Token::new(&text.to_string_lossy())),
            (None, Some(path)) => self.token_file(path),
            (None, None) => self,
        }
    }

    /// The token to show, read now.
    pub(crate) async fn read_token(&self) -> Result<Option<Token>, Error> {
        match &self.token {
            TokenSource::None => Ok(None),
            TokenSource::Given(token) => Ok(Some(token.clone())),
            TokenSource::File(path) => match tokio::fs::read_to_string(path).await {
                Ok(text) => Ok(Some(Token::new(&text))),
                Err(error) => Err(Error::TokenFile { path: path.clone(), source: Arc::new(error) }),
            },
        }
    }

    /// What this client is, for the daemon's logs and the monitor: a name and
    /// a version.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Whether a daemon that does not run is started: by `ksi start`, or else
    /// `ksid`, beside the current executable or in `PATH`. Only the first
    /// connection does so, never a reconnect. Off by default.
    #[must_use]
    pub fn auto_start(mut self, yes: bool) -> Self {
        self.auto_start = yes;
        self
    }

    /// The program that [`Options::auto_start`] runs, with the argument
    /// `start`, instead of one that it searches.
    #[must_use]
    pub fn starter(mut self, program: impl Into<PathBuf>) -> Self {
        self.starter = Some(program.into());
        self
    }

    /// Whether a lost connection is made anew, with growing pauses, for as long
    /// as the client lives. Subscriptions are renewed and say
    /// [`crate::Item::Reconnected`]; requests under way end with
    /// [`crate::Error::Lost`] and are not repeated; new ones wait for the
    /// connection, up to [`Options::patience`]. On by default. The first
    /// connection is tried once either way.
    #[must_use]
    pub fn reconnect(mut self, yes: bool) -> Self {
        self.reconnect = yes;
        self
    }

    /// Time that each request may take unless its [`CallOptions`] say
    /// otherwise. Without it the daemon's policy for the event holds, and the
    /// client adds no limit of its own.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Time to connect and to be welcomed; 10 seconds by default.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Longest time for which a new request waits for a connection that is
    /// being made anew, or for room on one; then it ends with
    /// [`crate::Error::NotRunning`] or [`crate::Error::TimedOut`], and was not
    /// sent. [`Options::connect_timeout`] by default.
    #[must_use]
    pub fn patience(mut self, time: Duration) -> Self {
        self.patience = Some(time);
        self
    }

    /// Time for a daemon that is being started to answer; 20 seconds by
    /// default.
    #[must_use]
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = timeout;
        self
    }

    /// Events that may wait in each subscription for its consumer; 65,536 by
    /// default, at least 1. Beyond it the oldest are dropped, and an exact
    /// [`crate::Item::Gap`] says so.
    #[must_use]
    pub fn event_queue(mut self, events: usize) -> Self {
        self.event_queue = events.max(1);
        self
    }

    /// How long a new request waits for a connection.
    pub(crate) fn patient_for(&self) -> Duration {
        self.patience.unwrap_or(self.connect_timeout)
    }

    /// Where the daemon is sought.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

/// How to make one request. All fields may stay at their default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallOptions {
    /// Time after which the daemon gives up, with a `timeout` refusal. The
    /// client guards it with a slightly later limit of its own,
    /// [`crate::Error::TimedOut`].
    pub timeout: Option<Duration>,
    /// Chunks that may be on the way at once. The stream renews the credit as
    /// its chunks are taken, so that a slow consumer slows the sender. Without
    /// it the sender never waits, and a consumer that falls far behind ends
    /// with [`crate::Error::Overrun`].
    pub credit: Option<u32>,
    /// Ties together all that follows from one cause; found in events and
    /// logs.
    pub correlation_id: Option<String>,
    /// Two requests with one key are one request: makes it safe to repeat a
    /// request that was lost. Only durable events keep keys.
    pub idempotency_key: Option<String>,
    /// Of a durable event: time after its acceptance from which it is not begun
    /// any more, and ends as expired; without it, and at most, what the event
    /// declares. A request that is of no use later says so here.
    pub expires_in: Option<Duration>,
}

impl CallOptions {
    /// The defaults with a timeout.
    #[must_use]
    pub fn timeout(timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..Self::default() }
    }
}

/// Whole milliseconds, as times go on the wire.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
