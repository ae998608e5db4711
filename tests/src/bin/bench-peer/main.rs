//! Programs that KSI is measured against, as one binary.
//!
//! `bench-peer echo` is the least that a MessagePack service on a Unix socket
//! can be: frames of the same bytes as KSI's, answered by a loop without a
//! router. `bench-peer nats` drives a NATS server, which must be installed.
//! Both start what they talk to as a process of its own, as KSI's daemon is
//! one, and print one JSON object a line: `test`, `p50_us`, `p99_us`, `per_s`.
//!
//! `bench-peer ksi SOCKET` drives a running daemon with the same thin client
//! that drives NATS, so that two routers are compared and no client libraries.
//! `bench-peer jetstream` and `bench-peer ksi durable SOCKET EVENT` do the same
//! with what is kept.
//!
//! What a user of `ksi-client` gets is what `ksi bench` measures, and what one
//! of NATS's official client gets, `tests/async-nats`; `scripts/bench` puts all
//! side by side.

#![expect(clippy::print_stdout, reason = "figures are this program's output")]

mod echo;
mod fanout;
mod figures;
mod ksi;
mod nats;

use std::process::ExitCode;

use tokio::runtime::Builder;

/// Requests one after the other.
const ONE_BY_ONE: usize = 20_000;
/// Requests in all where many are in flight.
const PIPELINED: usize = 200_000;
/// Requests in flight.
const IN_FLIGHT: usize = 256;
/// Receivers of each event in the fan-out.
const SUBSCRIBERS: usize = 64;
/// Events of the fan-out; each is delivered to every subscriber.
const FANOUT: usize = 20_000;

/// What is kept, one after the other.
const KEPT_ONE_BY_ONE: usize = 2_000;
/// What is kept in all where many are in flight.
const KEPT: usize = 100_000;

/// Which of tokio's runtimes the bare echo runs on, on both sides. The daemon
/// and its clients run on many threads; one thread is the floor below which no
/// program that serves more than one thing comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Threads {
    Many,
    One,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (threads, words) = match words.split_first() {
        Some((&"--one-thread", rest)) => (Threads::One, rest),
        _ => (Threads::Many, &words[..]),
    };
    let mut builder = match threads {
        Threads::Many => Builder::new_multi_thread(),
        Threads::One => Builder::new_current_thread(),
    };
    builder.enable_all().build()?.block_on(run(threads, words))
}

async fn run(threads: Threads, words: &[&str]) -> anyhow::Result<ExitCode> {
    match words {
        ["echo"] => echo::measure(threads).await?,
        ["echo", "serve", socket] => echo::serve(socket.as_ref()).await?,
        ["ksi", socket] => ksi::measure(socket.as_ref()).await?,
        ["ksi", "durable", socket, event] => ksi::durable::measure(socket.as_ref(), event).await?,
        ["nats"] => nats::measure().await?,
        ["jetstream"] => nats::jetstream::measure().await?,
        ["nats", "respond", port] => nats::respond(port.parse()?).await?,
        _ => {
            println!(
                "usage: bench-peer [--one-thread] echo | nats | jetstream | ksi SOCKET | \
                 ksi durable SOCKET EVENT"
            );
            return Ok(ExitCode::from(2));
        }
    }
    Ok(ExitCode::SUCCESS)
}
