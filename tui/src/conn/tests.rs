//! Tests of both connections against a daemon that is a script: it answers
//! with fixtures, floods, goes away and comes back.

use std::{path::Path, time::Duration};

use bytes::BytesMut;
use ksi_client::Options;
use ksi_protocol::{
    Code, Frame, PROTOCOL_VERSION, Refusal,
    frame::{Event, Welcome},
    system::HealthStatus,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::mpsc,
    task::{JoinHandle, JoinSet},
};

use super::*;
use crate::state::{
    Arrival, Connection, State, View,
    tests::{event, inspection, press, status},
};

/// Longest time that a test waits for anything.
const DEADLINE: Duration = Duration::from_secs(20);

/// A daemon in this process. Its connections end when it is dropped.
pub(crate) struct Fake {
    task: JoinHandle<()>,
}

impl Fake {
    /// Listens. Whoever subscribes is sent `flood` events at once.
    pub(crate) fn start(socket: &Path, boot: &'static str, health: HealthStatus, flood: u64) -> Self {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        let task = tokio::spawn(async move {
            let mut sessions = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                sessions.spawn(serve(stream, boot, health, flood));
            }
        });
        Self { task }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: UnixStream, boot: &str, health: HealthStatus, flood: u64) {
    let mut read = BytesMut::new();
    loop {
        while let Ok(Some(frame)) = Frame::split(&mut read) {
            let mut out = BytesMut::new();
            for answer in answers(frame, boot, health, flood) {
                answer.encode(&mut out).unwrap();
            }
            if stream.write_all(&out).await.is_err() {
                return;
            }
        }
        if !matches!(stream.read_buf(&mut read).await, Ok(1..)) {
            return;
        }
    }
}

fn answers(frame: Frame, boot: &str, health: HealthStatus, flood: u64) -> Vec<Frame> {
    match frame {
        Frame::Hello(_) => vec![Frame::Welcome(Welcome {
            version: PROTOCOL_VERSION,
            server: "ksid 0.1.0".into(),
            features: vec![],
            session: "session:1".into(),
            boot: boot.into(),
        })],
        Frame::Subscribe(wish) => {
            let accepted = Frame::Reply { id: wish.id, data: ksi_protocol::empty() };
            let events =
                (1..=flood).map(|seq| Frame::Event(Event { sub: wish.id, ..event("agent:spawned", seq) }));
            std::iter::once(accepted).chain(events).collect()
        }
        Frame::Request(request) => {
            let mut status = status();
            status.boot = boot.into();
            status.health.status = health;
            let data = match request.event.as_str() {
                "system:health" => ksi_protocol::encode(&status.health).unwrap(),
                "system:status" => ksi_protocol::encode(&status).unwrap(),
                "plugin:inspect" => ksi_protocol::encode(&inspection("echo")).unwrap(),
                _ => {
                    let refusal = Refusal::new(Code::UnknownEvent, "nobody answers that");
                    return vec![Frame::Refusal { id: Some(request.id), refusal }];
                }
            };
            vec![Frame::Reply { id: request.id, data }]
        }
        _ => vec![],
    }
}

/// A monitor without a screen.
struct Monitor {
    state: State,
    inputs: mpsc::Receiver<Input>,
    asks: mpsc::Sender<Ask>,
    /// Batches of events so far.
    batches: usize,
}

impl Monitor {
    fn start(socket: &Path) -> Self {
        let (sender, inputs) = mpsc::channel(16);
        let (asks, asked) = mpsc::channel(8);
        let options = Options::new(socket).name(CLIENT_NAME);
        tokio::spawn(watch(options.clone(), sender.clone(), asked));
        feed::start(options, sender).unwrap();
        Self { state: State::new(socket.display().to_string(), false), inputs, asks, batches: 0 }
    }

    /// Takes inputs until the state is as wanted.
    async fn until(&mut self, what: &str, wanted: impl Fn(&State) -> bool) {
        let waiting = async {
            while !wanted(&self.state) {
                let input = self.inputs.recv().await.expect("the connections live as long as the test");
                self.batches += usize::from(matches!(input, Input::Heard(_)));
                self.state.apply(input);
            }
        };
        let in_time = tokio::time::timeout(DEADLINE, waiting).await;
        assert!(in_time.is_ok(), "never: {what}; {:?} {:?}", self.state.requests, self.state.feed);
    }
}

fn connected(state: &State) -> bool {
    state.requests == Connection::Up && state.feed == Connection::Up && state.status.is_some()
}

#[tokio::test]
async fn a_monitor_waits_for_a_daemon_and_survives_its_restart() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("ksid.sock");
    let mut monitor = Monitor::start(&socket);
    monitor.until("no daemon", |s| matches!(s.requests, Connection::Absent(_))).await;
    let first = Fake::start(&socket, "boot-1", HealthStatus::Ok, 3);
    monitor.until("connected", |s| connected(s) && s.events.heard == 3).await;
    assert!(monitor.state.banner().is_none());
    assert!(monitor.state.rates.latency_us.last().is_some());

    drop(first);
    monitor.until("lost", |s| s.banner().is_some_and(|banner| banner.contains("connection lost"))).await;
    assert!(monitor.state.status.is_some(), "the last figures stay");

    let _second = Fake::start(&socket, "boot-2", HealthStatus::Ok, 3);
    let renewed = |s: &State| {
        connected(s) && s.events.heard == 6 && s.status.as_ref().is_some_and(|status| status.boot == "boot-2")
    };
    monitor.until("connected and subscribed again", renewed).await;
    assert!(monitor.state.banner().is_none());
    press(&mut monitor.state, "2/restarted");
    assert_eq!(monitor.state.view, View::Events);
    let marks = monitor.state.events.len();
    assert_eq!(marks, 2, "the loss and the restart are noted in the stream");
}

#[tokio::test]
async fn an_inspection_is_answered() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("ksid.sock");
    let _fake = Fake::start(&socket, "boot-1", HealthStatus::Ok, 0);
    let mut monitor = Monitor::start(&socket);
    monitor.until("connected", connected).await;
    let status =
        Status { plugins: vec![inspection("echo").status], ..*monitor.state.status.clone().unwrap() };
    monitor.state.status = Some(Box::new(status));
    let ask = press(&mut monitor.state, "3d").unwrap();
    monitor.asks.send(ask).await.unwrap();
    monitor
        .until("inspected", |s| {
            s.plugins.described.as_ref().is_some_and(|described| matches!(described.answer, Some(Ok(_))))
        })
        .await;
}

#[tokio::test]
async fn a_flood_comes_whole_in_order_and_in_few_batches() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("ksid.sock");
    let _fake = Fake::start(&socket, "boot-1", HealthStatus::Ok, 8_000);
    let (sender, mut inputs) = mpsc::channel(16);
    feed::start(Options::new(&socket), sender).unwrap();
    let mut seqs = Vec::new();
    let mut batches = 0;
    while seqs.len() < 8_000 {
        let input = tokio::time::timeout(DEADLINE, inputs.recv()).await.unwrap().unwrap();
        if let Input::Heard(arrivals) = input {
            batches += 1;
            seqs.extend(arrivals.iter().map(|arrival| match arrival {
                Arrival::Event(event) => event.seq,
                Arrival::Gap(gap) => panic!("a gap within the bounds of the queue: {gap:?}"),
            }));
        }
    }
    assert!(seqs.iter().copied().eq(1..=8_000));
    assert!(batches <= 200, "{batches} batches");
}

#[tokio::test]
async fn both_connections_end_when_the_monitor_leaves() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("ksid.sock");
    let _fake = Fake::start(&socket, "boot-1", HealthStatus::Ok, 0);
    let (sender, inputs) = mpsc::channel(16);
    let (asks, asked) = mpsc::channel(1);
    let watching = tokio::spawn(watch(Options::new(&socket), sender.clone(), asked));
    let feeding = feed::start(Options::new(&socket), sender).unwrap();
    drop((inputs, asks));
    tokio::time::timeout(DEADLINE, watching).await.unwrap().unwrap();
    let joined = tokio::task::spawn_blocking(move || feeding.join().is_ok());
    assert!(tokio::time::timeout(DEADLINE, joined).await.unwrap().unwrap());
}
