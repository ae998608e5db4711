//! A tiny daemon for the examples of this crate, and for tests of programs that
//! use it.
//!
//! It answers `echo:say {…}` with the same payload, streams `echo:count {to}`
//! as chunks `{n}` and an end `{count}`, and hands emitted events to those who
//! subscribed. It has no plugins, limits or permissions; whatever depends on
//! those needs the real daemon.

use std::{
    io,
    path::{Path, PathBuf},
    process,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::BytesMut;
use ksi_protocol::{
    Bytes, Code, Frame, PROTOCOL_VERSION, Pattern, Refusal,
    frame::{Emit, Event, Id, Request, Welcome},
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::mpsc,
    task::JoinHandle,
};

use crate::{Error, lock};

/// Frames that may wait for one client; more are dropped.
const QUEUE: usize = 4096;

/// A daemon in this process, on a socket in a directory of its own. Both go
/// when it is dropped.
#[derive(Debug)]
pub struct Echo {
    directory: PathBuf,
    socket: PathBuf,
    task: JoinHandle<()>,
}

#[derive(Deserialize)]
struct Count {
    to: u64,
}

#[derive(Serialize)]
struct Counting {
    n: u64,
}

#[derive(Serialize)]
struct Counted {
    count: u64,
}

#[derive(Serialize)]
struct Delivered {
    delivered: u64,
}

/// Who listens, over all clients.
type Listeners = Arc<Mutex<Vec<Listener>>>;

#[derive(Debug)]
struct Listener {
    session: u64,
    id: Id,
    pattern: Pattern,
    seq: u64,
    to: mpsc::Sender<Frame>,
}

impl Echo {
    /// Starts it. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// Where no socket can be made in the directory for temporary files.
    pub fn start() -> Result<Self, Error> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("ksi-echo-{}-{count}", process::id()));
        let socket = directory.join("ksid.sock");
        let listener = std::fs::create_dir(&directory)
            .and_then(|()| UnixListener::bind(&socket))
            .map_err(|error| Error::Connect { socket: socket.clone(), source: Arc::new(error) })?;
        Ok(Self { directory, socket, task: tokio::spawn(accept(listener)) })
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.task.abort();
        // What is left of a temporary directory harms nobody.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

async fn accept(listener: UnixListener) {
    let listeners = Listeners::default();
    let mut sessions = tokio::task::JoinSet::new();
    for session in 1.. {
        let Ok((stream, _)) = listener.accept().await else { return };
        sessions.spawn(serve(stream, session, Arc::clone(&listeners)));
    }
}

/// Serves one client until it goes.
async fn serve(stream: UnixStream, session: u64, listeners: Listeners) -> io::Result<()> {
    let (mut read, mut write) = stream.into_split();
    let (to, mut frames) = mpsc::channel(QUEUE);
    let reading = async {
        let mut buffer = BytesMut::new();
        loop {
            while let Some(frame) = Frame::split(&mut buffer).map_err(io::Error::other)? {
                answer(frame, session, &to, &listeners).await;
            }
            if read.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
    };
    let writing = async {
        let mut bytes = BytesMut::new();
        while let Some(frame) = frames.recv().await {
            Frame::encode(&frame, &mut bytes).map_err(io::Error::other)?;
            write.write_all(&bytes).await?;
            bytes.clear();
        }
        Ok(())
    };
    let result = tokio::select! { result = reading => result, result = writing => result };
    lock(&listeners).retain(|listener| listener.session != session);
    result
}

async fn answer(frame: Frame, session: u64, to: &mpsc::Sender<Frame>, listeners: &Listeners) {
    let answers = match frame {
        Frame::Hello(_) => vec![Frame::Welcome(Welcome {
            version: PROTOCOL_VERSION,
            server: concat!("echo ", env!("CARGO_PKG_VERSION")).into(),
            features: Vec::new(),
            session: format!("session:{session}"),
            boot: process::id().to_string(),
        })],
        Frame::Request(request) => request_answers(request),
        Frame::Emit(emit) => {
            let id = emit.id;
            let delivered = deliver(emit, session, listeners);
            id.map(|id| reply(id, &Delivered { delivered })).into_iter().collect()
        }
        Frame::Subscribe(wish) => {
            let listener = Listener { session, id: wish.id, pattern: wish.pattern, seq: 0, to: to.clone() };
            lock(listeners).push(listener);
            vec![Frame::Reply { id: wish.id, data: ksi_protocol::empty() }]
        }
        Frame::Unsubscribe { id } => {
            lock(listeners).retain(|listener| (listener.session, listener.id) != (session, id));
            Vec::new()
        }
        _ => Vec::new(),
    };
    for answer in answers {
        if to.send(answer).await.is_err() {
            return;
        }
    }
}

fn request_answers(request: Request) -> Vec<Frame> {
    let id = request.id;
    match request.event.as_str() {
        "echo:say" => vec![Frame::Reply { id, data: request.data }],
        "echo:count" => match ksi_protocol::decode::<Count>(&request.data) {
            Ok(Count { to }) => (1..=to)
                .map(|n| Frame::Chunk { id, data: payload(&Counting { n }) })
                .chain([Frame::End { id, data: payload(&Counted { count: to }) }])
                .collect(),
            Err(refusal) => vec![Frame::Refusal { id: Some(id), refusal }],
        },
        event => {
            let refusal = Refusal::new(Code::UnknownEvent, format!("nobody answers `{event}`"))
                .hint("there are `echo:say` and `echo:count`");
            vec![Frame::Refusal { id: Some(id), refusal }]
        }
    }
}

/// Hands an event to those who listen. Returns how many they are.
fn deliver(emit: Emit, session: u64, listeners: &Listeners) -> u64 {
    let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64);
    let mut delivered = 0;
    for listener in lock(listeners).iter_mut() {
        if !listener.pattern.matches(emit.event.as_str()) {
            continue;
        }
        let event = Event {
            sub: listener.id,
            seq: listener.seq + 1,
            event: emit.event.clone(),
            data: emit.data.clone(),
            origin: format!("session:{session}"),
            at_ms,
            correlation_id: emit.correlation_id.clone(),
        };
        if listener.to.try_send(Frame::Event(event)).is_ok() {
            listener.seq += 1;
            delivered += 1;
        }
    }
    delivered
}

fn reply(id: Id, value: &impl Serialize) -> Frame {
    Frame::Reply { id, data: payload(value) }
}

fn payload(value: &impl Serialize) -> Bytes {
    ksi_protocol::encode(value).expect("a struct of plain numbers can always be encoded")
}
