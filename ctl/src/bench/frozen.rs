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
use tokio::time::{MissedTickBehavior, interval};

use super::{
    Measured, TEXT,
    facts::{name, next_event},
    over,
};
use crate::{
    error::{Failure, Result},
    invocation::{Invocation, encoded},
};

/// Turns that both take.
const TURNS: usize = 5;

/// Facts in one millisecond: with this many a daemon is busy, and not full.
const EACH_MS: usize = 2;

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
    let mut ways = Vec::new();
    for name in [&alone, &beside] {
        let heard = hearer.subscribe(name, Class::Live).await?;
        ways.push(Way { name, heard, times: Vec::new(), took: Duration::ZERO });
    }
    for _ in 0..FILL {
        ways[1].tell(&teller, &payload).await?;
    }
    ways[1].times.clear();
    for _ in 0..TURNS {
        for way in &mut ways {
            way.turn(&teller, &payload, count.div_ceil(TURNS)).await?;
        }
    }
    drop(frozen);
    let measured: Vec<Measured> = ways
        .into_iter()
        .zip(["facts-alone", "frozen"])
        .map(|(way, test)| Measured::of(test, way.times, way.took))
        .collect();
    let [alone, beside] = <[Measured; 2]>::try_from(measured).unwrap_or_default();
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

impl Way<'_> {
    /// Tells so many facts, a few in each millisecond.
    async fn turn(&mut self, teller: &Client, payload: &Bytes, count: usize) -> Result<()> {
        let mut beat = interval(Duration::from_millis(1));
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let began = Instant::now();
        for n in 0..count {
            if n % EACH_MS == 0 {
                beat.tick().await;
            }
            self.tell(teller, payload).await?;
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
