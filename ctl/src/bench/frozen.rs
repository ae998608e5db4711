//! Readers that have stopped reading: what they cost one who reads.
//!
//! A fact is told and heard, many times a second, now under a name that nobody
//! else listens to and now under one that a hundred frozen readers listen to as
//! well. Their sockets and their queues are full by then, so each fact costs each
//! of them its oldest one.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use bytes::Bytes;
use ksi_client::{Class, Client, Subscription};
use serde_json::json;

use super::{
    Measured, TEXT,
    facts::{name, next_event},
    over,
};
use crate::{
    error::{Failure, Result},
    invocation::{Invocation, encoded},
};

/// Facts of one turn. Both take turns so short that the moods of the machine show in both.
const TURN: usize = 50;

/// Time from one fact to the next: with 2,000 a second a daemon is busy, and not full.
const PACE: Duration = Duration::from_micros(500);

/// Times that the text is repeated in a fact, so that a queue is soon full.
const TEXTS: usize = 16;

/// Facts that fill everything: a socket of 208 KiB, and a queue of 4 MiB.
const FILL: usize = 5_000;

/// Measures facts with so many frozen readers beside, and without: `frozen` has
/// the 99th of a hundred as a multiple of that without.
///
/// # Errors
///
/// Fails where the daemon goes away, or lets nobody in.
pub(super) async fn frozen(at: &Invocation, readers: usize, count: usize) -> Result<Vec<Measured>> {
    let (alone, beside) = (name("alone"), name("frozen"));
    let frozen: Vec<UnixStream> = (0..readers).map(|_| listener(at, &beside)).collect::<Result<_>>()?;
    let (teller, hearer) = (at.connect().await?, at.connect().await?);
    let payload = encoded(&json!({ "text": TEXT.repeat(TEXTS) }))?;
    let mut ways = [Way::new(&hearer, &alone).await?, Way::new(&hearer, &beside).await?];
    for _ in 0..FILL {
        ways[1].tell(&teller, &payload).await?;
    }
    ways[1].times.clear();
    for turn in 0..count.div_ceil(TURN) {
        // Who begins changes.
        for which in [turn % 2, (turn + 1) % 2] {
            ways[which].turn(&teller, &payload).await?;
        }
    }
    drop(frozen);
    let [alone, beside] = ways;
    let alone = Measured::of("facts-alone", alone.times, alone.took);
    let beside = Measured::of("frozen", beside.times, beside.took);
    let ratio = over(beside.p99_us, alone.p99_us);
    Ok(vec![alone, Measured { ratio, against: Some("alone at p99"), ..beside }])
}

/// Somebody who listens and never reads.
fn listener(at: &Invocation, name: &str) -> Result<UnixStream> {
    let socket = &at.paths.socket;
    let listens = || {
        let mut stream = UnixStream::connect(socket)?;
        stream.write_all(format!("{}\n", json!({ "subscribe": name })).as_bytes())?;
        // Only that it is taken, in one read.
        let mut answer = String::new();
        BufReader::new(&stream).read_line(&mut answer)?;
        Ok((stream, answer))
    };
    let (stream, answer) = listens().map_err(|error| Failure::to_file("connect to", socket, &error))?;
    match answer.contains("refusal") {
        true => Err(Failure::failed(format!("a listener is refused: {}", answer.trim()))),
        false => Ok(stream),
    }
}

/// A name under which facts are told, and one who hears them.
struct Way<'a> {
    name: &'a str,
    heard: Subscription,
    times: Vec<Duration>,
    took: Duration,
}

impl<'a> Way<'a> {
    async fn new(hearer: &Client, name: &'a str) -> Result<Self> {
        let heard = hearer.subscribe(name, Class::Live).await?;
        Ok(Self { name, heard, times: Vec::new(), took: Duration::ZERO })
    }

    /// Tells the facts of one turn, evenly.
    async fn turn(&mut self, teller: &Client, payload: &Bytes) -> Result<()> {
        let began = Instant::now();
        for _ in 0..TURN {
            let next = Instant::now() + PACE;
            self.tell(teller, payload).await?;
            // A timer of the runtime is not that precise, and nothing else is to be done on this thread.
            while let Some(left) = next.checked_duration_since(Instant::now()) {
                std::thread::park_timeout(left);
            }
        }
        self.took += began.elapsed();
        Ok(())
    }

    /// Tells one fact, and waits until it is heard.
    async fn tell(&mut self, teller: &Client, payload: &Bytes) -> Result<()> {
        let began = Instant::now();
        teller.emit_raw(self.name, payload.clone()).await?;
        next_event(&mut self.heard).await?;
        self.times.push(began.elapsed());
        Ok(())
    }
}
