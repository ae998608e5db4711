//! The official NATS client (`async-nats`), measured as `ksi bench` measures
//! `ksi-client`: what a program gets that uses either as its manual says.
//!
//! Starts a `nats-server` of its own, which must be installed, and prints one
//! JSON object a line: `test` and `per_s`. The first two tests have the payload,
//! the number of tasks and connections, the runtime and the pacing of
//! `ctl/src/bench/requests.rs` and `ctl/src/bench/facts.rs`. The third is the
//! first with JetStream in the place of the responder: what is published is kept
//! in a file, not synced, before it is acknowledged (`ctl/src/bench/durable.rs`).

use std::{
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use async_nats::{Client, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::{
    process::{Child, Command},
    runtime,
    sync::Notify,
    task::JoinSet,
};

/// Text of every payload, 64 bytes, as in `ksi bench`.
const TEXT: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
/// Requests in flight, and in all.
const IN_FLIGHT: usize = 256;
const PIPELINED: usize = 200_000;
/// Requests of each task before the clock starts.
const WARM_UP: usize = 4;
/// Receivers of each event, and events.
const SUBSCRIBERS: usize = 64;
const FANOUT: u64 = 20_000;
/// Events after which the emitter looks how far the subscribers are.
const LOOK_EVERY: u64 = 64;
/// Events that the slowest subscriber may be behind.
const WINDOW: u64 = 4096;
/// Events after which a subscriber says how far it is.
const REPORT_EVERY: u64 = 256;
/// Time that a server and a responder may take to come up.
const START: Duration = Duration::from_secs(10);

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => {
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
            // One thread for one connection and a thread for each core for
            // many, as `ksi bench` has.
            let one = runtime::Builder::new_current_thread().enable_all().build()?;
            let store = std::env::temp_dir().join(format!("bench-async-nats-{port}"));
            let measured = {
                let _server = one.block_on(server(port, &store))?;
                one.block_on(pipelined(port))?;
                one.block_on(kept(port))?;
                runtime::Builder::new_multi_thread().enable_all().build()?.block_on(fanout(port))
            };
            // What is left of a temporary directory harms nobody.
            let _ = std::fs::remove_dir_all(&store);
            measured
        }
        ["respond", port] => {
            let port = port.parse()?;
            runtime::Builder::new_multi_thread().enable_all().build()?.block_on(respond(port))
        }
        _ => anyhow::bail!("usage: bench-async-nats"),
    }
}

async fn server(port: u16, store: &Path) -> anyhow::Result<Child> {
    Command::new("nats-server")
        .args(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd"])
        .arg(store)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("nats-server cannot be started; is it installed?")
}

async fn connect(port: u16) -> anyhow::Result<Client> {
    let connecting = async {
        loop {
            if let Ok(client) = async_nats::connect(format!("127.0.0.1:{port}")).await {
                return client;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(START, connecting).await.context("nats-server does not answer")
}

fn payload() -> Bytes {
    serde_json::json!({ "text": TEXT }).to_string().into()
}

fn print(test: &str, count: u64, took: Duration) {
    let per_s = (count as f64 / took.as_secs_f64()).round();
    println!("{}", serde_json::json!({ "test": test, "per_s": per_s }));
}

/// Answers every request on `echo` until it is ended.
async fn respond(port: u16) -> anyhow::Result<()> {
    let client = connect(port).await?;
    let mut asked = client.subscribe("echo").await?;
    while let Some(request) = asked.next().await {
        if let Some(reply) = request.reply {
            client.publish(reply, request.payload).await?;
        }
    }
    Ok(())
}

async fn pipelined(port: u16) -> anyhow::Result<()> {
    let _responder = Command::new(std::env::current_exe()?)
        .args(["respond", &port.to_string()])
        .kill_on_drop(true)
        .spawn()?;
    let client = connect(port).await?;
    let answered = async {
        while client.request("echo", payload()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(START, answered).await.context("the responder does not answer")?;
    many(&client, "echo", "async-nats-pipelined").await
}

/// Publishes to a stream, as a request whose answer is the acknowledgement:
/// what the client's own JetStream interface does, too.
async fn kept(port: u16) -> anyhow::Result<()> {
    let client = connect(port).await?;
    let stream = r#"{"name":"kept","subjects":["keep"],"storage":"file"}"#;
    let made = client.request("$JS.API.STREAM.CREATE.kept", stream.into()).await?;
    let made: serde_json::Value = serde_json::from_slice(&made.payload)?;
    ensure!(made["config"]["storage"] == "file", "no stream: {made}");
    let answer = client.request("keep", payload()).await?;
    ensure!(answer.payload.starts_with(br#"{"stream":"kept""#), "not kept: {:?}", answer.payload);
    many(&client, "keep", "async-nats-jetstream").await
}

async fn many(client: &Client, subject: &'static str, test: &str) -> anyhow::Result<()> {
    ask(client, subject, WARM_UP).await?;
    let began = Instant::now();
    let each = PIPELINED.div_ceil(IN_FLIGHT);
    ask(client, subject, each).await?;
    print(test, (each * IN_FLIGHT) as u64, began.elapsed());
    Ok(())
}

/// Asks `each` times from every task.
async fn ask(client: &Client, subject: &'static str, each: usize) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    let payload = payload();
    for _ in 0..IN_FLIGHT {
        let (client, payload) = (client.clone(), payload.clone());
        tasks.spawn(async move {
            for _ in 0..each {
                client.request(subject, payload.clone()).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// How far the subscribers are.
struct Progress {
    heard: Vec<AtomicU64>,
    moved: Notify,
}

impl Progress {
    async fn reaches(&self, mark: u64) {
        let slowest = || self.heard.iter().map(|heard| heard.load(Ordering::Acquire)).min();
        loop {
            let moved = self.moved.notified();
            if slowest() >= Some(mark) {
                return;
            }
            moved.await;
        }
    }
}

async fn fanout(port: u16) -> anyhow::Result<()> {
    let heard = (0..SUBSCRIBERS).map(|_| AtomicU64::new(0)).collect();
    let progress = Arc::new(Progress { heard, moved: Notify::new() });
    let mut hearing = JoinSet::new();
    for index in 0..SUBSCRIBERS {
        let client = connect(port).await?;
        let subscriber = client.subscribe("bench.fan").await?;
        client.flush().await?;
        // The server has taken the subscription in once it answers what came after it.
        client.request("nobody", Bytes::new()).await.err().context("`nobody` answers")?;
        hearing.spawn(hear(client, subscriber, Arc::clone(&progress), index));
    }
    let emitter = connect(port).await?;
    let payload = payload();
    let began = Instant::now();
    for turn in 1..=FANOUT {
        emitter.publish("bench.fan", payload.clone()).await?;
        if turn % LOOK_EVERY == 0 {
            progress.reaches(turn.saturating_sub(WINDOW)).await;
        }
    }
    emitter.flush().await?;
    progress.reaches(FANOUT).await;
    print("async-nats-fanout", FANOUT * SUBSCRIBERS as u64, began.elapsed());
    while let Some(done) = hearing.join_next().await {
        done??;
    }
    Ok(())
}

/// Counts what one subscriber hears. The client is kept, for the connection
/// ends with it.
async fn hear(
    _client: Client,
    mut subscriber: Subscriber,
    progress: Arc<Progress>,
    index: usize,
) -> anyhow::Result<()> {
    for count in 1..=FANOUT {
        ensure!(subscriber.next().await.is_some(), "the server has gone");
        if count % REPORT_EVERY == 0 || count == FANOUT {
            progress.heard[index].store(count, Ordering::Release);
            progress.moved.notify_one();
        }
    }
    Ok(())
}
