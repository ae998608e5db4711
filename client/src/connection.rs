//! The connection: made, greeted, read, lost and made anew.
//!
//! One task per client owns the connection: it reads, hands answers to those
//! who wait, and after a loss connects again. A second one writes what senders
//! do not write themselves. Both end when the last handle is dropped, after
//! what waits has been written.
//!
//! # Failure
//!
//! A frame that no daemon may send ends the connection with
//! [`Error::Protocol`] for all who wait. After a loss nothing is repeated but
//! subscriptions.

use std::{
    hash::{BuildHasher, RandomState},
    io,
    os::unix::fs::FileTypeExt,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::BytesMut;
use ksi_protocol::{
    Frame, PROTOCOL_VERSION, Refusal,
    frame::{Hello, Id, Welcome},
    limits::SOCKET_PATH_BYTES_MAX,
    work::Accepted,
};
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    Error, Fault, Loss, Options,
    incoming::{self, Incoming},
    lock,
    output::Output,
    pending::{Effects, Pending},
    subscription::ring::Entry,
};

/// Bytes that one read may bring.
const READ_BYTES: usize = 64 * 1024;

/// A read buffer with less room than this is replaced.
const READ_BYTES_MIN: usize = 4 * 1024;

/// First pause before a reconnect; it doubles each time.
pub(crate) const BACKOFF: Duration = Duration::from_millis(20);

/// Longest pause before a reconnect.
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Pause after which a full backlog of the socket is tried again.
const BACKLOG_PAUSE: Duration = Duration::from_millis(5);

/// Time that the end may take: to write what waits, and for the daemon to
/// close its side.
const CLOSE_TIME: Duration = Duration::from_secs(2);

/// One client, for as long as a handle or a task of it lives.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) options: Options,
    pub(crate) output: Output,
    pub(crate) pending: Mutex<Pending>,
    welcome: Mutex<Arc<Welcome>>,
    /// Ends the connection's task: the client finishes.
    finish: Notify,
    /// Ends the connection: what it brought is no protocol.
    accused: Notify,
    accused_of: Mutex<Option<Error>>,
    /// Turns true when the connection's task has ended.
    ended: watch::Sender<bool>,
}

/// What clients, streams and subscriptions hold. The last one to go ends the
/// connection.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) core: Arc<Core>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.core.finish();
    }
}

/// A connection that was welcomed, and what was read beyond the welcome.
pub(crate) struct Link {
    stream: UnixStream,
    buffer: BytesMut,
    welcome: Welcome,
}

/// What the tasks of one connection work on.
struct Attached {
    read: OwnedReadHalf,
    buffer: BytesMut,
    writer: JoinHandle<io::Result<()>>,
}

/// Connects once, and leaves a task that serves the connection.
pub(crate) async fn open(options: Options) -> Result<Handle, Error> {
    let link = match establish(&options).await {
        Err(Error::NotRunning { .. }) if options.auto_start => crate::start::start(&options).await?,
        link => link?,
    };
    let core = Arc::new(Core {
        options,
        output: Output::new(),
        pending: Mutex::default(),
        welcome: Mutex::new(Arc::new(link.welcome.clone())),
        finish: Notify::new(),
        accused: Notify::new(),
        accused_of: Mutex::default(),
        ended: watch::Sender::new(false),
    });
    let attached = attach(&core, link, false);
    tokio::spawn(supervise(Arc::clone(&core), attached));
    Ok(Handle { core })
}

/// Connects and exchanges greetings.
pub(crate) async fn establish(options: &Options) -> Result<Link, Error> {
    let deadline = Instant::now() + options.connect_timeout;
    let mut stream = loop {
        match connect(options).await {
            // The daemon listens but has not got round to accepting.
            Err(Error::Connect { source, .. })
                if source.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline =>
            {
                sleep(BACKLOG_PAUSE).await;
            }
            stream => break stream?,
        }
    };
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    let welcome = timeout_at(deadline, greet(&mut stream, &mut buffer, options))
        .await
        .map_err(|_| Error::TimedOut { after: options.connect_timeout })??;
    Ok(Link { stream, buffer, welcome })
}

async fn connect(options: &Options) -> Result<UnixStream, Error> {
    let socket = &options.socket;
    let bytes = socket.as_os_str().len();
    if bytes > SOCKET_PATH_BYTES_MAX {
        return Err(Error::PathTooLong { socket: socket.clone(), bytes });
    }
    let error = match UnixStream::connect(socket).await {
        Ok(stream) => return Ok(stream),
        Err(error) => error,
    };
    Err(match error.kind() {
        io::ErrorKind::NotFound => Error::NotRunning { socket: socket.clone() },
        // Linux says so of files that are no sockets, too.
        io::ErrorKind::ConnectionRefused => match tokio::fs::metadata(socket).await {
            Ok(metadata) if !metadata.file_type().is_socket() => Error::NotASocket { socket: socket.clone() },
            _ => Error::NotRunning { socket: socket.clone() },
        },
        _ => Error::Connect { socket: socket.clone(), source: Arc::new(error) },
    })
}

/// Says hello and reads the welcome.
async fn greet(stream: &mut UnixStream, buffer: &mut BytesMut, options: &Options) -> Result<Welcome, Error> {
    let (client, token) = (options.name.clone(), options.read_token().await?);
    let hello = Hello { version: PROTOCOL_VERSION, client, features: Vec::new(), token };
    let mut bytes = BytesMut::new();
    Frame::Hello(hello).encode(&mut bytes).map_err(Error::from_encoding)?;
    stream.write_all(&bytes).await.map_err(Error::io)?;
    loop {
        if let Some(refusal) = refused(buffer) {
            return Err(Error::Refused(refusal));
        }
        match Frame::split(buffer).map_err(Error::from_decoding)? {
            Some(Frame::Welcome(welcome)) if welcome.version == PROTOCOL_VERSION => return Ok(welcome),
            Some(Frame::Welcome(welcome)) => {
                return Err(Error::Version {
                    ours: PROTOCOL_VERSION,
                    theirs: welcome.version,
                    server: welcome.server,
                });
            }
            Some(Frame::Refusal { refusal, .. }) => return Err(Error::Refused(refusal)),
            Some(_) => return Err(Error::unexpected("something before `welcome`")),
            None => {}
        }
        match stream.read_buf(buffer).await {
            Ok(0) if buffer.is_empty() => return Err(Error::Lost(Loss::Ended)),
            Ok(0) => return Err(Error::Lost(Loss::MidFrame)),
            Ok(_) => {}
            Err(error) => return Err(Error::io(error)),
        }
    }
}

/// The refusal of a daemon that takes no more connections, or not this one: a
/// line, since nobody has said which face to show.
fn refused(buffer: &[u8]) -> Option<Refusal> {
    #[derive(Deserialize)]
    struct Line {
        refusal: Refusal,
    }
    let line = buffer.strip_suffix(b"\n").filter(|line| line.starts_with(b"{"))?;
    serde_json::from_slice(line).ok().map(|Line { refusal }| refusal)
}

/// Makes a connection the one on which frames go out, and renews
/// subscriptions, before anything is read from it.
fn attach(core: &Arc<Core>, link: Link, restarted: bool) -> Attached {
    let (read, half) = link.stream.into_split();
    let half = Arc::new(half);
    let epoch = core.output.open(Arc::clone(&half));
    *lock(&core.welcome) = Arc::new(link.welcome);
    // What was found in the bytes of an older connection is no fault of this one.
    *lock(&core.accused_of) = None;
    let mut effects = Effects::default();
    let frames = lock(&core.pending).renew(epoch, restarted, &mut effects);
    for frame in &frames {
        // If it is lost again already, the next one renews them.
        let _ = core.output.send_in(epoch, frame);
        // A subscription that was dropped meanwhile has said so before this frame.
        if let Frame::Subscribe(subscribe) = frame
            && lock(&core.pending).subscription(subscribe.id).is_none()
        {
            let _ = core.output.send_in(epoch, &Frame::Unsubscribe { id: subscribe.id });
        }
    }
    core.apply(&mut effects);
    let writer = tokio::spawn(write(Arc::clone(core), epoch, half));
    Attached { read, buffer: link.buffer, writer }
}

/// The writing task: see [`Output::write`]. Ends with its connection.
async fn write(core: Arc<Core>, epoch: u64, half: Arc<OwnedWriteHalf>) -> io::Result<()> {
    core.output.write(epoch, half).await
}

/// The connection's task: serves one connection after the other.
async fn supervise(core: Arc<Core>, first: Attached) {
    let mut next = Some(first);
    while let Some(attached) = next.take() {
        let cause = serve(&core, attached).await;
        if core.output.is_finishing() {
            core.lose(&Error::Closed, true);
        } else if !core.options.reconnect {
            core.lose(&cause, true);
        } else {
            core.lose(&cause, false);
            let attached = tokio::select! {
                attached = reconnect(&core) => attached,
                () = core.finish.notified() => Err(Error::Closed),
            };
            match attached {
                Ok(attached) => next = Some(attached),
                Err(error) => core.lose(&error, true),
            }
        }
    }
    core.ended.send_replace(true);
}

/// Serves one connection to its end, and says what that was.
async fn serve(core: &Core, attached: Attached) -> Error {
    let Attached { read, buffer, mut writer } = attached;
    let cause = {
        let mut reading = std::pin::pin!(self::read(core, read, buffer));
        tokio::select! {
            cause = &mut reading => cause,
            written = &mut writer => {
                // What the daemon sent before it stopped reading still counts:
                // it may say why.
                let ours = match written {
                    Ok(Err(error)) => Error::io(error),
                    _ => Error::Closed,
                };
                timeout(CLOSE_TIME, reading).await.unwrap_or(ours)
            }
            accusation = core.accusation() => accusation,
            () = core.overdue() => Error::Closed,
        }
    };
    writer.abort();
    cause
}

/// Reads until the connection ends, and says how it did.
async fn read(core: &Core, mut read: OwnedReadHalf, mut buffer: BytesMut) -> Error {
    let mut frames = Vec::new();
    let mut effects = Effects::default();
    // Why the daemon is about to close the connection, where it says so.
    let mut farewell: Option<Refusal> = None;
    loop {
        let taken = incoming::take(&mut buffer, &mut frames);
        let dispatched = core.dispatch(&mut frames, &mut effects, &mut farewell);
        core.apply(&mut effects);
        let missing = match (taken, dispatched) {
            (Ok(missing), Ok(())) => missing,
            (_, Err(fault)) => return Error::Protocol(fault),
            (Err(error), Ok(())) => return Error::from_decoding(error),
        };
        if buffer.capacity() - buffer.len() < missing.max(READ_BYTES_MIN) {
            buffer.reserve(missing.max(READ_BYTES));
        }
        let loss = match read.read_buf(&mut buffer).await {
            Ok(0) if buffer.is_empty() => Loss::Ended,
            Ok(0) => Loss::MidFrame,
            Ok(_) => continue,
            Err(error) => Loss::Io(Arc::new(error)),
        };
        return Error::Lost(farewell.map_or(loss, Loss::Refused));
    }
}

/// Connects again, with growing pauses, until it succeeds or cannot ever.
async fn reconnect(core: &Arc<Core>) -> Result<Attached, Error> {
    let mut pause = BACKOFF;
    loop {
        sleep(jittered(pause)).await;
        pause = (pause * 2).min(BACKOFF_MAX);
        match establish(&core.options).await {
            Ok(link) => {
                let restarted = link.welcome.boot != core.welcome().boot;
                return Ok(attach(core, link, restarted));
            }
            // Another program, or another version, will not become ours by
            // waiting.
            Err(error @ (Error::Version { .. } | Error::Protocol(_))) => return Err(error),
            Err(_) => {}
        }
    }
}

/// Between half and all of `pause`, so that many clients of a daemon that
/// restarts do not all come at once.
pub(crate) fn jittered(pause: Duration) -> Duration {
    let random = RandomState::new().hash_one(0) % 1024;
    pause / 2 + pause.mul_f64(random as f64 / 2048.0)
}

impl Core {
    /// The last welcome.
    pub(crate) fn welcome(&self) -> Arc<Welcome> {
        Arc::clone(&lock(&self.welcome))
    }

    /// Waits for a connection with room, but no longer than the connection may
    /// take.
    pub(crate) async fn ready(&self) -> Result<u64, Error> {
        if let Some(epoch) = self.output.ready_now()? {
            return Ok(epoch);
        }
        let limit = self.options.patient_for();
        timeout(limit, self.output.ready()).await.unwrap_or_else(|_| {
            Err(if self.output.is_up() {
                Error::TimedOut { after: limit }
            } else {
                Error::NotRunning { socket: self.options.socket.clone() }
            })
        })
    }

    /// Sends a frame, waiting for a connection with room only where there is
    /// none.
    pub(crate) async fn send(&self, frame: &Frame) -> Result<(), Error> {
        self.ready().await?;
        self.output.send(frame)
    }

    /// Closes the request or stream `id` that nobody waits for any more, and
    /// cancels it in the daemon if it is under way there.
    pub(crate) fn give_up(&self, id: Id) {
        let open = lock(&self.pending).remove(id);
        if open.is_some_and(|open| open.needs_cancel()) {
            // A lost connection has cancelled it already.
            let _ = self.output.send(&Frame::Cancel { id });
        }
    }

    /// The daemon broke the protocol, as somebody found who decoded later.
    pub(crate) fn accuse(&self, error: Error) {
        *lock(&self.accused_of) = Some(error);
        self.accused.notify_one();
    }

    /// Waits until somebody accuses the daemon.
    async fn accusation(&self) -> Error {
        loop {
            if let Some(error) = lock(&self.accused_of).take() {
                return error;
            }
            self.accused.notified().await;
        }
    }

    /// Takes nothing more, writes what waits, ends.
    pub(crate) fn finish(&self) {
        self.output.finish();
        self.finish.notify_one();
    }

    /// Finishes, and waits until the connection is closed.
    pub(crate) async fn close(&self) {
        self.finish();
        let mut effects = Effects::default();
        lock(&self.pending).lose(&Error::Closed, true, &mut effects);
        self.apply(&mut effects);
        let mut ended = self.ended.subscribe();
        // The sender lives in `self`, so this ends only when it says true.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// Waits until the client has been finishing for too long.
    async fn overdue(&self) {
        self.finish.notified().await;
        sleep(CLOSE_TIME).await;
    }

    fn lose(&self, cause: &Error, for_good: bool) {
        self.output.lose(for_good.then(|| cause.clone()));
        let mut effects = Effects::default();
        lock(&self.pending).lose(cause, for_good, &mut effects);
        self.apply(&mut effects);
    }

    /// Hands frames to those who wait for them.
    fn dispatch(
        &self,
        frames: &mut Vec<Incoming>,
        effects: &mut Effects,
        farewell: &mut Option<Refusal>,
    ) -> Result<(), Fault> {
        if frames.is_empty() {
            return Ok(());
        }
        let mut pending = lock(&self.pending);
        for frame in frames.drain(..) {
            match frame {
                Incoming::Answer { id, kind, data } => pending.answer(id, kind, data, effects),
                Incoming::Events { sub, run } => pending.event(sub, Entry::Events(run), effects),
                Incoming::Other(frame) => match *frame {
                    Frame::Accepted { id, request_id, seq } => {
                        pending.accept(id, Accepted { request_id, seq }, effects);
                    }
                    Frame::Refusal { id: Some(id), refusal } => {
                        pending.refuse(id, refusal, self.options.reconnect, effects);
                    }
                    Frame::Refusal { id: None, refusal } => *farewell = Some(refusal),
                    Frame::Event(event) => {
                        pending.event(event.sub, Entry::Event(Box::new(event)), effects);
                    }
                    Frame::Gap(gap) => pending.event(gap.sub, Entry::Gap(gap), effects),
                    frame => return Err(Fault::Unexpected(kind_of(&frame))),
                },
            }
        }
        Ok(())
    }

    fn apply(&self, effects: &mut Effects) {
        for waker in effects.wake.drain(..) {
            waker.wake();
        }
        for id in effects.cancel.drain(..) {
            // A lost connection has cancelled it already.
            let _ = self.output.send(&Frame::Cancel { id });
        }
    }
}

/// Name of a frame that a daemon may not send to a client.
fn kind_of(frame: &Frame) -> &'static str {
    match frame {
        Frame::Hello(_) => "hello",
        Frame::Welcome(_) => "welcome",
        Frame::Request(_) => "request",
        Frame::Emit(_) => "emit",
        Frame::Subscribe(_) | Frame::Unsubscribe { .. } => "subscribe or unsubscribe",
        Frame::Cancel { .. } | Frame::Credit { .. } => "cancel or credit",
        _ => "a frame of plugin links",
    }
}
