//! Restarting in place: the same process, no client refused.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ksi_tests::{Daemon, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Longest time that a request may wait for a restart on a busy machine.
const PAUSE_MAX: Duration = Duration::from_secs(10);

fn boot(daemon: &Daemon) -> String {
    daemon.status().boot
}

/// Asks on a connection of its own; `None` where the daemon closed it before
/// the question was answered, or said that it stops.
fn ask(socket: &PathBuf) -> Option<Value> {
    let mut stream = UnixStream::connect(socket).expect("nobody is ever refused a connection");
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    // A daemon that stops may close before it has read.
    stream.write_all(b"{\"event\":\"system:health\"}\n").ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok().filter(|&got| got > 0)?;
    let answer: Value = serde_json::from_str(&line).unwrap();
    answer.get("refusal").is_none().then_some(answer)
}

#[test]
fn clients_that_connect_while_it_restarts_wait_and_are_answered() {
    let mut daemon = Daemon::without_model();
    daemon.ready();
    let (pid, socket) = (daemon.pid(), daemon.home.paths().socket);
    let done = Arc::new(AtomicBool::new(false));
    let asking = std::thread::spawn({
        let (done, socket) = (done.clone(), socket.clone());
        move || {
            let (mut answered, mut longest, mut last) = (0, Duration::ZERO, Instant::now());
            while !done.load(Ordering::Relaxed) {
                if ask(&socket).is_some() {
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                    answered += 1;
                }
            }
            (answered, longest)
        }
    });
    for round in 0..3 {
        let before = boot(&daemon);
        if round == 1 {
            daemon.signal(Signal::SIGUSR2);
        } else {
            daemon.ask("system:restart", json!({})).unwrap();
        }
        wait_until("another daemon answers", || {
            ask(&socket).is_some()
                && daemon.ask("system:status", json!({})).is_ok_and(|it| it["boot"] != before)
        });
        daemon.ready();
    }
    done.store(true, Ordering::Relaxed);
    let (answered, longest) = asking.join().unwrap();
    assert!(answered > 10 && longest < PAUSE_MAX, "{answered} answers, {longest:?} without one");
    assert!(daemon.is_alive());
    assert_eq!(daemon.health().pid, pid);
    assert_eq!(daemon.home.holder().map(|holder| holder.pid), Some(pid));
    let out = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    assert!(out < 100, "{out} descriptors are open");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.ended().code(), Some(0));
    assert!(!socket.exists(), "it was the daemon's own to remove");
}

#[test]
fn a_program_that_would_not_start_stops_nothing() {
    let mut daemon = Daemon::without_model();
    daemon.ready();
    let before = boot(&daemon);
    std::fs::write(daemon.home.paths().config_file, "[daemon]\nbogus = 1\n").unwrap();
    let refusal = daemon.ask("system:restart", json!({})).unwrap_err();
    assert_eq!(refusal["code"], "conflict");
    assert!(refusal["message"].as_str().unwrap().contains("bogus"), "{refusal}");
    daemon.signal(Signal::SIGUSR2);
    wait_until("the log says why", || daemon.log().contains("not restarted"));
    assert_eq!(boot(&daemon), before);
    assert!(daemon.is_alive());
}
