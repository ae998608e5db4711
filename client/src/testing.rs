//! A tiny daemon for the examples of this crate, and for tests of programs that
//! use it.
//!
//! It answers `echo:say {…}` with the same payload, streams `echo:count {to}`
//! as chunks `{n}` and an end `{count}`, accepts `echo:keep {…}` as durable
//! work whose result is its payload, and hands emitted events to those who
//! subscribed. It keeps every event and all work, in memory. It has no plugins,
//! limits or permissions; whatever depends on those needs the real daemon.

use std::{
    collections::HashMap,
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
    Bytes, Code, Frame, PROTOCOL_VERSION, Pattern, Payload, Refusal,
    checkpoint::{Checkpoints, Journal, Store},
    frame::{Class, Emit, Event, Id, Request, Subscribe, Welcome},
    work::{Ack, WaitWork, WorkInfo, WorkState},
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

/// What all clients share.
type Shared = Arc<Mutex<State>>;

#[derive(Debug, Default)]
struct State {
    listeners: Vec<Listener>,
    /// Every event; its position is one more than its index here.
    journal: Vec<Event>,
    cursors: HashMap<String, u64>,
    work: Vec<WorkInfo>,
}

#[derive(Debug)]
struct Listener {
    class: Class,
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
    let shared = Shared::default();
    let mut sessions = tokio::task::JoinSet::new();
    for session in 1.. {
        let Ok((stream, _)) = listener.accept().await else { return };
        sessions.spawn(serve(stream, session, Arc::clone(&shared)));
    }
}

/// Serves one client until it goes.
async fn serve(stream: UnixStream, session: u64, shared: Shared) -> io::Result<()> {
    let (mut read, mut write) = stream.into_split();
    let (to, mut frames) = mpsc::channel(QUEUE);
    let reading = async {
        let mut buffer = BytesMut::new();
        loop {
            while let Some(frame) = Frame::split(&mut buffer).map_err(io::Error::other)? {
                let answers = answer(frame, session, &to, &mut lock(&shared));
                for answer in answers {
                    if to.send(answer).await.is_err() {
                        return Ok(());
                    }
                }
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
    lock(&shared).listeners.retain(|listener| listener.session != session);
    result
}

fn answer(frame: Frame, session: u64, to: &mpsc::Sender<Frame>, state: &mut State) -> Vec<Frame> {
    match frame {
        Frame::Hello(_) => vec![Frame::Welcome(Welcome {
            version: PROTOCOL_VERSION,
            server: concat!("echo ", env!("CARGO_PKG_VERSION")).into(),
            features: Vec::new(),
            session: format!("session:{session}"),
            boot: process::id().to_string(),
        })],
        Frame::Request(request) => request_answers(request, session, state),
        Frame::Emit(emit) => {
            let id = emit.id;
            let delivered = deliver(emit, session, state);
            id.map(|id| reply(id, &Delivered { delivered })).into_iter().collect()
        }
        Frame::Subscribe(wish) => subscribe(wish, session, to, state),
        Frame::Unsubscribe { id } => {
            state.listeners.retain(|listener| (listener.session, listener.id) != (session, id));
            Vec::new()
        }
        _ => Vec::new(),
    }
}

/// Adds a listener. A durable one first hears what is kept.
fn subscribe(wish: Subscribe, session: u64, to: &mpsc::Sender<Frame>, state: &mut State) -> Vec<Frame> {
    let Subscribe { id, pattern, class, since_seq, consumer, .. } = wish;
    let mut answers = vec![Frame::Reply { id, data: ksi_protocol::empty() }];
    if class == Class::Durable {
        let cursor = consumer.and_then(|name| state.cursors.get(&name).copied());
        let next = state.journal.len() as u64 + 1;
        let from = since_seq.or(cursor.map(|seq| seq + 1)).unwrap_or(next);
        let kept = state.journal.iter().filter(|event| event.seq >= from);
        let kept = kept.filter(|event| pattern.matches(event.event.as_str()));
        answers.extend(kept.map(|event| Frame::Event(Event { sub: id, ..event.clone() })));
    }
    state.listeners.push(Listener { class, session, id, pattern, seq: 0, to: to.clone() });
    answers
}

fn request_answers(request: Request, session: u64, state: &mut State) -> Vec<Frame> {
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
        "echo:keep" => vec![keep(request, session, state)],
        "work:wait" => {
            let ended = ksi_protocol::decode::<WaitWork>(&request.data).and_then(
                |WaitWork { request_id, .. }| {
                    let found = state.work.iter().find(|info| info.request_id == request_id);
                    found.map(|info| reply(id, info)).ok_or_else(|| Refusal::not_found("work", &request_id))
                },
            );
            vec![ended.unwrap_or_else(|refusal| Frame::Refusal { id: Some(id), refusal })]
        }
        "checkpoint:list" => {
            let last_seq = state.journal.len() as u64;
            let journal = Journal { segments: 1, bytes: 0, first_seq: last_seq.min(1), last_seq };
            vec![reply(id, &Checkpoints { checkpoints: Vec::new(), journal, store: Store::default() })]
        }
        "checkpoint:ack" => match ksi_protocol::decode::<Ack>(&request.data) {
            Ok(Ack { consumer, seq }) => {
                let cursor = state.cursors.entry(consumer).or_default();
                *cursor = seq.max(*cursor);
                vec![Frame::Reply { id, data: ksi_protocol::empty() }]
            }
            Err(refusal) => vec![Frame::Refusal { id: Some(id), refusal }],
        },
        event => {
            let refusal = Refusal::new(Code::UnknownEvent, format!("nobody answers `{event}`"))
                .hint("there are `echo:say`, `echo:count` and `echo:keep`");
            vec![Frame::Refusal { id: Some(id), refusal }]
        }
    }
}

/// Accepts work and does it at once.
fn keep(request: Request, session: u64, state: &mut State) -> Frame {
    let Request { id, event, data, idempotency_key, correlation_id, .. } = request;
    let same = |info: &&WorkInfo| idempotency_key.is_some() && info.idempotency_key == idempotency_key;
    if let Some(WorkInfo { request_id, seq, .. }) = state.work.iter().find(same).cloned() {
        return Frame::Accepted { id, request_id, seq };
    }
    let (seq, at_ms) = (state.work.len() as u64 + 1, now_ms());
    let request_id = format!("work-{seq}");
    state.work.push(WorkInfo {
        principal: None,
        tenant: None,
        request_id: request_id.clone(),
        seq,
        event,
        state: WorkState::Done,
        attempts: 1,
        crashes: 0,
        origin: format!("session:{session}"),
        correlation_id,
        idempotency_key,
        accepted_ms: at_ms,
        expires_ms: None,
        until_ms: None,
        ended_ms: Some(at_ms),
        result: Some(Payload(data)),
        refusal: None,
    });
    Frame::Accepted { id, request_id, seq }
}

/// Hands an event to those who listen. Returns how many they are.
fn deliver(emit: Emit, session: u64, state: &mut State) -> u64 {
    let kept = Event {
        sub: 0,
        seq: state.journal.len() as u64 + 1,
        event: emit.event,
        data: emit.data,
        origin: format!("session:{session}").into(),
        at_ms: now_ms(),
        correlation_id: emit.correlation_id,
        tenant: None,
        chain: None,
    };
    let mut delivered = 0;
    for listener in &mut state.listeners {
        if !listener.pattern.matches(kept.event.as_str()) {
            continue;
        }
        let seq = if listener.class == Class::Durable { kept.seq } else { listener.seq + 1 };
        let event = Event { sub: listener.id, seq, ..kept.clone() };
        if listener.to.try_send(Frame::Event(event)).is_ok() {
            listener.seq = seq;
            delivered += 1;
        }
    }
    state.journal.push(kept);
    delivered
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

fn reply(id: Id, value: &impl Serialize) -> Frame {
    Frame::Reply { id, data: payload(value) }
}

fn payload(value: &impl Serialize) -> Bytes {
    ksi_protocol::encode(value).expect("the payloads of this daemon can always be encoded")
}
