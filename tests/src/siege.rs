//! A siege: a normal workload beside a client and a plugin that do their worst.
//!
//! The workload asks, tells, listens and has work kept, first in quiet, then
//! while the attack goes on; what it lost and how long it waited is counted.
//! The attack is a crowd of connections that flood, freeze, break the framing
//! and vanish, and requests that make the plugin `faulty` fail in every way it
//! knows.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use ksi_protocol::{
    Frame, PROTOCOL_VERSION, Pattern,
    frame::{Class, Hello, Subscribe},
    token::Token,
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
const FAULTS: [&str; 15] = [
    "abort",
    "segv",
    "panic",
    "panic_later",
    "hang",
    "flood",
    "babble",
    "never",
    "hang_later",
    "stack",
    "leak",
    "garbage",
    "dead_reply",
    "sleep_blocking",
    "open",
];

/// Requests that one connection lets hang: more than one may have of a plugin.
const HANGING: u64 = 1100;

/// Durable subscriptions of one connection.
const FOLLOWED: u64 = 500;

/// What the workload saw.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// How long each request took.
    pub answered: Vec<Duration>,
    /// How long each event took to be heard.
    pub told: Vec<Duration>,
    /// How long it took to have work accepted, each time.
    pub kept: Vec<Duration>,
    /// How long it took to connect and be answered, each time.
    pub came: Vec<Duration>,
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

/// The connections of a program that means well. Whoever attacks as the same user
/// has a share of that user's connections, so these are made before.
#[derive(Debug)]
pub struct Neighbour {
    asker: Frames,
    listener: Frames,
    keeper: Lines,
}

impl Neighbour {
    /// Connects.
    ///
    /// # Panics
    ///
    /// Where the daemon does not accept it.
    #[must_use]
    pub fn connect(socket: &Path) -> Self {
        let connected = || connect(socket).expect("the daemon accepts a client");
        let (asker, mut listener) = (connected(), connected());
        listener.subscribe(1, "siege:*", Class::Live);
        Self { asker, listener, keeper: lines(socket).expect("the daemon accepts a client") }
    }
}

/// Does what a program does that means well, for so long. With a socket in `anew`
/// it also connects there now and then, as a command line does; then it needs to be
/// another user than those who attack.
///
/// # Panics
///
/// Where the daemon breaks the protocol.
#[must_use]
pub fn workload(neighbour: Neighbour, time: Duration, anew: Option<&Path>) -> Seen {
    let Neighbour { mut asker, mut listener, mut keeper } = neighbour;
    let mut seen = Seen::default();
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
            kept.push(keep(&mut keeper, n));
            seen.kept.push(since.elapsed());
        }
        if let Some(socket) = anew.filter(|_| n % KEPT_EVERY == 0) {
            let since = Instant::now();
            let answer = lines(socket).map(|mut lines| lines.ask("echo:say", json!({ "text": "new" })));
            seen.came.push(since.elapsed());
            seen.lost += u64::from(!matches!(answer, Some(Ok(_))));
        }
        thread::park_timeout(PAUSE);
    }
    seen.lost += kept.iter().filter(|name| !is_done(&mut keeper, name.as_deref())).count() as u64;
    seen
}

fn lines(socket: &Path) -> Option<Lines> {
    Some(Lines::new(UnixStream::connect(socket).ok()?))
}

/// Has something kept as durable work; its name.
fn keep(lines: &mut Lines, n: u64) -> Option<String> {
    lines.send(&json!({"event": "echo:keep", "data": {"text": n.to_string()}}));
    lines.receive()["accepted"]["request_id"].as_str().map(str::to_owned)
}

fn is_done(lines: &mut Lines, name: Option<&str>) -> bool {
    let Some(name) = name else { return false };
    lines.send(&json!({"event": "work:wait", "data": {"request_id": name, "timeout_ms": 30_000}}));
    lines.receive()["data"]["state"] == "done"
}

/// Attacks over so many connections, in the name of a token where there is one,
/// until it is told to stop. Returns how often something was sent.
///
/// # Panics
///
/// Where a thread cannot be started.
pub fn attack(socket: &Path, token: Option<&Token>, connections: usize, stop: &AtomicBool) -> u64 {
    let sent = AtomicU64::new(0);
    thread::scope(|scope| {
        for n in 0..connections {
            let sent = &sent;
            thread::Builder::new()
                .stack_size(128 * 1024)
                .spawn_scoped(scope, move || {
                    while !stop.load(Ordering::Relaxed) {
                        // One that is cut off or refused comes again.
                        sent.fetch_add(besiege(socket, token, n, stop), Ordering::Relaxed);
                        thread::park_timeout(Duration::from_millis(5));
                    }
                })
                .expect("the system has a thread left");
        }
    });
    sent.into_inner()
}

fn hello(token: Option<&Token>) -> Frame {
    let (client, token) = ("siege".into(), token.cloned());
    Frame::Hello(Hello { version: PROTOCOL_VERSION, client, token, ..Hello::default() })
}

/// One connection's worth of malice; how much it sent before it was cut off, not
/// counting what it sent where it was never let in.
fn besiege(socket: &Path, token: Option<&Token>, n: usize, stop: &AtomicBool) -> u64 {
    let Ok(stream) = UnixStream::connect(socket) else { return 0 };
    // A peer that does not read is met by one that does not read either.
    let _ = stream.set_write_timeout(Some(Duration::from_millis(100)));
    let hello = encoded(&hello(token));
    let listen = |id: u64, class: Class| {
        let pattern = Pattern::parse("**").expect("a pattern");
        encoded(&Frame::Subscribe(Subscribe::new(id, pattern, class)))
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
        (&stream).write_all(bytes).is_ok()
    };
    let wait = || {
        while !stop.load(Ordering::Relaxed) {
            thread::park_timeout(Duration::from_millis(50));
        }
    };
    match n % 16 {
        // Noise instead of a greeting, and a length without its frame.
        7 | 15 => {
            let _ = say(b"\x00\x00\x00\x05noise") && say(&[0, 0xff, 0xff, 0xff]);
        }
        _ if !say(&hello) || !is_welcome(&stream) => return 0,
        // Frozen: hears everything, reads nothing.
        5 | 6 | 13 => {
            let _ = say(&listen(1, Class::Live));
            wait();
        }
        // Takes all that there is, and keeps it.
        12 if (1..=HANGING).all(|id| {
            say(&encoded(&request(id, "completion:request", &json!({"prompt": "x", "model": "mock/hang"}))))
        }) =>
        {
            wait();
        }
        14 if (1..=FOLLOWED).all(|id| say(&listen(id, Class::Durable))) => wait(),
        12 | 14 => {}
        _ => {
            let mut id = 1;
            while !stop.load(Ordering::Relaxed) && say(&flood(id)) {
                id += 1;
            }
        }
    }
    sent
}

/// Whether the daemon lets one in. Whom it turns away it tells so in a line.
fn is_welcome(mut stream: &UnixStream) -> bool {
    // One that is not answered in time comes again.
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    let mut first = [0];
    stream.read_exact(&mut first).is_ok() && first != *b"{"
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
            let _ = frames.try_send(&hello(None));
            let _ = frames.try_send(&request(1, &format!("faulty:{fault}"), &json!({})));
            frames.hear_out();
        }
        times += 1;
    }
    times
}
