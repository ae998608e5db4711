//! A siege: a normal workload beside a client and a plugin that do their worst.
//!
//! The workload asks, tells, listens and has work kept, first in quiet, then
//! while the attack goes on; what it lost and how long it waited is counted.
//! The attack is a crowd of connections that flood, freeze, break the framing
//! and vanish, and requests that make the plugin `faulty` fail in every way it
//! knows.

use std::{
    io::Write,
    os::unix::net::UnixStream,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use ksi_protocol::{
    Frame, PROTOCOL_VERSION,
    frame::{Class, Hello},
};
use serde_json::json;

use crate::{
    Lines,
    frames::{Frames, emit, encoded, request},
};

/// Pause between two requests of the workload: it is not to load the machine.
const PAUSE: Duration = Duration::from_millis(2);

/// Every how many requests one is kept as durable work.
const KEPT_EVERY: u64 = 50;

/// Ways in which the plugin is made to fail.
const FAULTS: [&str; 8] = ["abort", "segv", "panic", "panic_later", "hang", "flood", "never", "hang_later"];

/// What the workload saw.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// How long each request took.
    pub answered: Vec<Duration>,
    /// How long each event took to be heard.
    pub told: Vec<Duration>,
    /// How long it took to connect and have work accepted, each time.
    pub kept: Vec<Duration>,
    /// Requests that were refused or not answered, events that did not come, and
    /// work that was accepted and not done.
    pub lost: u64,
}

/// The time that so many of a hundred do not exceed.
#[must_use]
pub fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    let at = (times.len() * percent / 100).min(times.len().saturating_sub(1));
    times.get(at).copied().unwrap_or_default()
}

fn connect(socket: &Path) -> Option<Frames> {
    let mut frames = Frames::new(UnixStream::connect(socket).ok()?);
    frames.greet();
    Some(frames)
}

/// Does what a program does that means well, for so long.
///
/// # Panics
///
/// Where the daemon does not accept it, or breaks the protocol.
#[must_use]
pub fn workload(socket: &Path, time: Duration) -> Seen {
    let mut seen = Seen::default();
    let mut asker = connect(socket).expect("the daemon accepts a client");
    let mut listener = connect(socket).expect("the daemon accepts a client");
    listener.subscribe(1, "siege:*", Class::Live);
    let mut kept = Vec::new();
    let end = Instant::now() + time;
    let mut n = 0;
    while Instant::now() < end {
        n += 1;
        let since = Instant::now();
        let text = format!("still here {n}");
        let answer = asker.ask(n, "echo:say", &json!({ "text": text }));
        seen.answered.push(since.elapsed());
        seen.lost += u64::from(answer.ok() != Some(json!({ "text": text })));
        let since = Instant::now();
        asker.send(&emit(None, "siege:told", &json!({ "n": n })));
        // Every one comes, in order, and none twice.
        seen.lost += u64::from(!matches!(listener.receive(), Frame::Event(event) if event.seq == n));
        seen.told.push(since.elapsed());
        if n % KEPT_EVERY == 0 {
            let since = Instant::now();
            kept.push(keep(socket, n));
            seen.kept.push(since.elapsed());
        }
        thread::park_timeout(PAUSE);
    }
    seen.lost += kept.iter().filter(|name| !is_done(socket, name.as_deref())).count() as u64;
    seen
}

/// Has something kept as durable work; its name.
fn keep(socket: &Path, n: u64) -> Option<String> {
    let mut lines = Lines::new(UnixStream::connect(socket).ok()?);
    lines.send(&json!({"event": "echo:keep", "data": {"text": n.to_string()}}));
    lines.receive()["accepted"]["request_id"].as_str().map(str::to_owned)
}

fn is_done(socket: &Path, name: Option<&str>) -> bool {
    let (Some(name), Ok(stream)) = (name, UnixStream::connect(socket)) else { return false };
    let mut lines = Lines::new(stream);
    lines.send(&json!({"event": "work:wait", "data": {"request_id": name, "timeout_ms": 30_000}}));
    lines.receive()["data"]["state"] == "done"
}

/// Attacks over so many connections until it is told to stop. Returns how often
/// something was sent.
///
/// # Panics
///
/// Where a thread cannot be started.
pub fn attack(socket: &Path, connections: usize, stop: &AtomicBool) -> u64 {
    let sent = AtomicU64::new(0);
    thread::scope(|scope| {
        for n in 0..connections {
            let sent = &sent;
            thread::Builder::new()
                .stack_size(128 * 1024)
                .spawn_scoped(scope, move || {
                    while !stop.load(Ordering::Relaxed) {
                        // One that is cut off or refused comes again.
                        sent.fetch_add(besiege(socket, n, stop), Ordering::Relaxed);
                        thread::park_timeout(Duration::from_millis(5));
                    }
                })
                .expect("the system has a thread left");
        }
    });
    sent.into_inner()
}

fn hello() -> Frame {
    Frame::Hello(Hello { version: PROTOCOL_VERSION, client: "siege".into(), ..Hello::default() })
}

/// One connection's worth of malice; how much it sent before it was cut off.
fn besiege(socket: &Path, n: usize, stop: &AtomicBool) -> u64 {
    let Ok(mut stream) = UnixStream::connect(socket) else { return 0 };
    // A peer that does not read is met by one that does not read either.
    let _ = stream.set_write_timeout(Some(Duration::from_millis(100)));
    let hello = encoded(&hello());
    let listen = |pattern: &str| {
        let pattern = ksi_protocol::Pattern::parse(pattern).expect("a pattern");
        encoded(&Frame::Subscribe(ksi_protocol::frame::Subscribe::new(1, pattern, Class::Live)))
    };
    let flood = |id: u64| match n % 4 {
        // Floods of requests, of facts that others of its kind hear, of both with nobody reading.
        0 => encoded(&request(id, "echo:say", &json!({"text": "x".repeat(64)}))),
        1 => encoded(&emit(None, "flood:told", &json!({"text": "x".repeat(256)}))),
        2 => encoded(&request(id, "state:set", &json!({"key": format!("k{}", id % 100), "value": id}))),
        _ => encoded(&request(id, "nobody:knows", &json!({}))),
    };
    let mut sent = 0;
    let mut say = |bytes: &[u8]| {
        sent += 1;
        stream.write_all(bytes).is_ok()
    };
    match n % 8 {
        // Noise instead of a greeting, and a length without its frame.
        7 => {
            let _ = say(b"\x00\x00\x00\x05noise") && say(&[0, 0xff, 0xff, 0xff]);
        }
        _ if !say(&hello) => {}
        // Frozen: hears everything, reads nothing.
        5 | 6 => {
            let _ = say(&listen("**"));
            while !stop.load(Ordering::Relaxed) {
                thread::park_timeout(Duration::from_millis(50));
            }
        }
        _ => {
            let mut id = 1;
            while !stop.load(Ordering::Relaxed) && say(&flood(id)) {
                id += 1;
            }
        }
    }
    sent
}

/// Makes the plugin fail, one way after the other, until it is told to stop.
/// Returns how often.
pub fn torment(socket: &Path, stop: &AtomicBool) -> u64 {
    let mut times = 0;
    while !stop.load(Ordering::Relaxed) {
        let fault = FAULTS[usize::try_from(times).unwrap_or(0) % FAULTS.len()];
        if let Ok(stream) = UnixStream::connect(socket) {
            // What never answers is given up after a moment.
            let _ = stream.set_read_timeout(Some(Duration::from_millis(1500)));
            let mut frames = Frames::new(stream);
            let _ = frames.try_send(&hello());
            let _ = frames.try_send(&request(1, &format!("faulty:{fault}"), &json!({})));
            frames.hear_out();
        }
        times += 1;
    }
    times
}
