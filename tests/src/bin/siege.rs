//! Besieges a running daemon, and says whether a normal workload beside that lost
//! anything, and how long it waited: in quiet, besieged, and meanwhile at another
//! daemon on the same machine that nobody attacks. The last tells what the attack
//! costs through the processors that all of them share; the rest of it is the
//! daemon's. So besieged is judged by spared; by quiet it is only told, since 256
//! connections at full speed on two processors cost any neighbour processor time,
//! with or without this daemon. What `scripts/soak` runs.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use ksi_protocol::token::{self, Token};
use ksi_tests::siege::{Neighbour, Seen, attack, percentile, torment, workload};
use serde_json::{Value, json};

/// Connections of the attack.
const CONNECTIONS: usize = 256;

/// How many times as long as at the other daemon 99 of 100 requests may take.
const SLOWER_MAX: f64 = 2.0;

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for a terminal")]
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["attack", socket, seconds] => {
            let stop = AtomicBool::new(false);
            let time = Duration::from_secs(seconds.parse().unwrap_or(1));
            let token = std::env::var(token::VARIABLE).ok().map(|text| Token::new(&text));
            let sent = thread::scope(|scope| {
                scope.spawn(|| after(time, &stop));
                attack(&PathBuf::from(socket), token.as_ref(), CONNECTIONS, &stop)
            });
            println!("{sent}");
            u8::from(sent == 0).into()
        }
        [socket, control, seconds, more @ ..] if more.len() <= 1 => {
            let Ok(seconds) = seconds.parse() else { return 2.into() };
            let uid = more.first().and_then(|uid| uid.parse().ok());
            siege(&PathBuf::from(socket), &PathBuf::from(control), seconds, uid)
        }
        _ => {
            eprintln!("usage: siege SOCKET CONTROL SECONDS [UID]");
            eprintln!(
                "    The attack comes as user UID, and with the token in KSI_TOKEN where there is one."
            );
            2.into()
        }
    }
}

/// Parts of a workload, of as many requests each, whose times are shown one by
/// one: what gets worse with time shows there.
const PARTS: usize = 6;

/// What a workload saw, in numbers; times are microseconds, of which 50 and 99 of
/// a hundred are no longer than that, and all.
fn figures(seen: &Seen) -> Value {
    let of = |times: &[Duration]| {
        let us = |percent| u64::try_from(percentile(times, percent).as_micros()).unwrap_or(u64::MAX);
        json!({ "p50": us(50), "p99": us(99), "max": us(100) })
    };
    let parts = seen.answered.chunks(seen.answered.len().div_ceil(PARTS).max(1));
    json!({
        "asked": seen.answered.len(), "lost": seen.lost,
        "answered_us": of(&seen.answered), "told_us": of(&seen.told), "kept_us": of(&seen.kept),
        "came_us": of(&seen.came), "answered_us_in_parts": parts.map(of).collect::<Vec<_>>(),
    })
}

fn after(time: Duration, stop: &AtomicBool) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        thread::park_timeout(Duration::from_millis(20));
    }
    stop.store(true, Ordering::Relaxed);
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for a terminal")]
fn siege(socket: &Path, control: &Path, seconds: u64, uid: Option<u32>) -> ExitCode {
    let anew = |socket| uid.map(|_| socket);
    let quiet = Duration::from_secs((seconds / 6).clamp(2, 20));
    let quiet = workload(Neighbour::connect(socket), quiet, anew(socket));
    let (besieged, spared) = (Neighbour::connect(socket), Neighbour::connect(control));
    let mut command = match std::env::current_exe() {
        Ok(program) => Command::new(program),
        Err(error) => {
            eprintln!("siege: cannot find this program: {error}");
            return 1.into();
        }
    };
    command.arg("attack").arg(socket).arg(seconds.to_string());
    if let Some(uid) = uid {
        std::os::unix::process::CommandExt::uid(&mut command, uid);
    }
    let Ok(mut attackers) = command.spawn() else {
        eprintln!("siege: the attack cannot be started");
        return 1.into();
    };
    let stop = AtomicBool::new(false);
    // Ends a little before the attack, so that all of it is beside that.
    let time = Duration::from_secs(seconds.saturating_sub(1).max(1));
    let (times, besieged, spared) = thread::scope(|scope| {
        let tormenting = scope.spawn(|| torment(socket, &stop));
        let spared = scope.spawn(|| workload(spared, time, anew(control)));
        let besieged = workload(besieged, time, anew(socket));
        stop.store(true, Ordering::Relaxed);
        (tormenting.join().unwrap_or_default(), besieged, spared.join().unwrap_or_default())
    });
    if !attackers.wait().is_ok_and(|status| status.success()) {
        eprintln!("siege: nobody of those who attack was let in");
        return 1.into();
    }
    let ratio = |to: &Seen, times: fn(&Seen) -> &[Duration]| {
        let p99 = |seen: &Seen| percentile(times(seen), 99).as_secs_f64();
        (p99(&besieged) / p99(to) * 100.0).round() / 100.0
    };
    let [answered, told, kept]: [fn(&Seen) -> &[Duration]; 3] =
        [|seen| &seen.answered, |seen| &seen.told, |seen| &seen.kept];
    let lost = quiet.lost + besieged.lost + spared.lost;
    let slowest = [answered, told, kept].map(|times| ratio(&spared, times)).into_iter().fold(0.0, f64::max);
    let figures = json!({
        "seconds": seconds, "connections": CONNECTIONS, "faults": times, "lost": lost,
        "quiet": figures(&quiet), "besieged": figures(&besieged), "spared": figures(&spared),
        "p99_to_quiet": ratio(&quiet, answered), "p99_to_spared": ratio(&spared, answered),
        "told_p99_to_spared": ratio(&spared, told), "kept_p99_to_spared": ratio(&spared, kept),
        "to_spared_max": SLOWER_MAX,
    });
    println!("{figures}");
    if slowest > SLOWER_MAX {
        eprintln!(
            "siege: what was besieged waited {slowest} times as long as what was spared, of {SLOWER_MAX} at most"
        );
    }
    u8::from(lost > 0 || slowest > SLOWER_MAX).into()
}
