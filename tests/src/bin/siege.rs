//! Besieges a running daemon, and says whether a normal workload beside that lost
//! anything or waited more than twice as long as in quiet: what `scripts/soak`
//! runs.

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use ksi_tests::siege::{Seen, attack, torment, workload};
use serde_json::json;

/// Connections of the attack.
const CONNECTIONS: usize = 256;

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for a terminal")]
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["attack", socket, seconds] => {
            let stop = AtomicBool::new(false);
            let time = Duration::from_secs(seconds.parse().unwrap_or(1));
            let sent = thread::scope(|scope| {
                scope.spawn(|| after(time, &stop));
                attack(&PathBuf::from(socket), CONNECTIONS, &stop)
            });
            println!("{sent}");
            0.into()
        }
        [socket, seconds, more @ ..] if more.len() <= 1 => {
            let Ok(seconds) = seconds.parse() else { return 2.into() };
            siege(&PathBuf::from(socket), seconds, more.first().and_then(|uid| uid.parse().ok()))
        }
        _ => {
            eprintln!("usage: siege SOCKET SECONDS [UID]    the attack comes as user UID");
            2.into()
        }
    }
}

fn after(time: Duration, stop: &AtomicBool) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        thread::park_timeout(Duration::from_millis(20));
    }
    stop.store(true, Ordering::Relaxed);
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for a terminal")]
fn siege(socket: &PathBuf, seconds: u64, uid: Option<u32>) -> ExitCode {
    let quiet = workload(socket, Duration::from_secs((seconds / 6).clamp(2, 20)));
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
    let (times, beside) = thread::scope(|scope| {
        let tormenting = scope.spawn(|| torment(socket, &stop));
        // Ends a little before the attack, so that all of it is beside that.
        let beside = workload(socket, Duration::from_secs(seconds.saturating_sub(1).max(1)));
        stop.store(true, Ordering::Relaxed);
        (tormenting.join().unwrap_or_default(), beside)
    });
    let _ = attackers.wait();
    let p99 = |seen: &Seen| seen.percentile(99);
    let ratio = p99(&beside).as_secs_f64() / p99(&quiet).as_secs_f64();
    let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let figures = json!({
        "seconds": seconds, "connections": CONNECTIONS, "faults": times,
        "asked": beside.waits.len(), "lost": quiet.lost + beside.lost,
        "quiet_p50_us": us(quiet.percentile(50)), "quiet_p99_us": us(p99(&quiet)),
        "p50_us": us(beside.percentile(50)), "p99_us": us(p99(&beside)),
        "max_us": us(beside.percentile(100)), "p99_ratio": (ratio * 100.0).round() / 100.0,
    });
    println!("{figures}");
    u8::from(beside.lost + quiet.lost > 0).into()
}
