//! How a generation lives and ends: its heartbeat, its exit, its last words.

use std::{collections::VecDeque, process::ExitStatus, sync::Arc, time::Duration};

use ksi_protocol::{Frame, system::PluginState};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::Child,
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::{Keeper, reason_of};
use crate::{
    hub::Port,
    plugin::{actor::Actor, cgroup::Group, guest::Life, link::Link, offspring::Host},
    redaction,
};

/// Lines of a child's standard error that are kept as its last words.
const WORDS_MAX: usize = 12;
/// Longest line of a child's standard error that is kept.
const WORD_BYTES_MAX: u64 = 4096;
/// Longest time between two heartbeats of a child that is busy.
const BEAT_MAX: Duration = Duration::from_millis(500);
/// Time for what a child that is gone has left in its socket and pipe.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// The generation that runs.
pub(super) struct Running {
    pub(super) port: Arc<Port>,
    pub(super) body: Body,
}

pub(super) enum Body {
    Actor(Arc<Actor>),
    Child {
        link: Arc<Link>,
        child: Box<Child>,
        /// All processes that come of it.
        group: Option<Pid>,
        cgroup: Option<Group>,
        host: Host,
        serving: JoinHandle<()>,
        words: JoinHandle<Vec<String>>,
    },
}

/// Whether a busy child still answers pings.
#[derive(Default)]
pub(super) struct Heartbeat {
    /// When to look again.
    pub(super) next: Option<Instant>,
    /// Since when a ping is unanswered.
    pub(super) asked: Option<Instant>,
}

impl Keeper {
    /// Detaches what runs, and refuses what it held.
    pub(super) async fn lose(&mut self, why: &str) {
        let Some(running) = self.running.take() else { return };
        self.detach(&running.port, why);
        self.sandbox = None;
        // What it has said and nobody has heard was about a life that is over.
        self.life = mpsc::channel(1).1;
        match running.body {
            Body::Actor(actor) => {
                actor.stop();
                actor.cut_off_caller();
                self.stuck = Some(actor).filter(|actor| actor.is_stuck());
            }
            Body::Child { link, mut child, group, cgroup, host, serving, words } => {
                link.kill();
                kill(&mut child, group, cgroup.as_ref());
                let _ = child.wait().await;
                drop(host);
                // The kernel may take its time over a group.
                drop(tokio::task::spawn_blocking(move || drop(cgroup)));
                serving.abort();
                // Somebody who has left the group may still hold the other end.
                if let Ok(Ok(words)) = timeout(LAST_WORDS, words).await {
                    self.last_words(words);
                }
            }
        }
    }

    /// What a child said before it ended still counts: answers that are in the
    /// socket are delivered before what is left is refused.
    pub(super) async fn child_exited(&mut self, status: std::io::Result<ExitStatus>) {
        if let Some(Running { body: Body::Child { child, group, cgroup, serving, .. }, .. }) =
            &mut self.running
        {
            // Processes that it has left behind would keep the socket open.
            kill(child, *group, cgroup.as_ref());
            let _ = timeout(LAST_WORDS, serving).await;
        }
        while let Ok(life) = self.life.try_recv() {
            match life {
                Life::Sandboxed(report) => self.sandboxed(report),
                Life::Described(descriptor) => self.described(*descriptor),
                Life::Refused(refusal) => self.reason = Some(reason_of(refusal)),
                Life::Died(reason) => self.reason = Some(reason),
                Life::Ready | Life::Drained | Life::Pong => {}
            }
        }
        let crashed = status.as_ref().is_ok_and(|status| is_crash(*status));
        let how = match status {
            Ok(status) => describe_exit(status),
            Err(error) => format!("its exit status is unknown: {error}"),
        };
        let stopped = self.supervisor.state() == PluginState::Draining;
        self.reason = match self.reason.take() {
            Some(said) => Some(format!("{said} ({how})")),
            None if stopped && !crashed => None,
            None => Some(how),
        };
        self.lose(if stopped { "it was stopped" } else { "its process ended" }).await;
    }

    fn last_words(&mut self, words: Vec<String>) {
        if let (Some(last), Some(reason)) = (words.last(), &mut self.reason)
            && !reason.contains(last)
            && self.supervisor.state() != PluginState::Draining
        {
            *reason = format!("{reason}; it said: {last}");
        }
        self.words = words;
    }

    pub(super) fn kill_child(&mut self) {
        if let Some(Running { body: Body::Child { child, group, cgroup, .. }, .. }) = &mut self.running {
            kill(child, *group, cgroup.as_ref());
        }
    }

    /// Begins to watch a child that was idle and has been given work.
    pub(super) fn watch(&mut self) {
        self.heartbeat.next = Some(Instant::now() + self.beat_interval());
    }

    fn beat_interval(&self) -> Duration {
        (self.spec.plugin.restart.hang / 4).min(BEAT_MAX)
    }

    /// Pings a child that is busy; one that does not answer is given up.
    pub(super) fn beat(&mut self) {
        self.heartbeat.next = None;
        let hang = self.spec.plugin.restart.hang;
        let Some(Running { body: Body::Child { link, .. }, port }) = &self.running else { return };
        let now = Instant::now();
        if let Some(asked) = self.heartbeat.asked {
            if now >= asked + hang {
                self.reason = Some(format!("did not answer for {} ms", hang.as_millis()));
                self.heartbeat.asked = None;
                self.kill_child();
            } else {
                self.heartbeat.next = Some(asked + hang);
            }
            return;
        }
        if port.holding() == 0 {
            link.rest();
            // What came in between has seen a child that is busy.
            if port.holding() == 0 {
                return;
            }
        }
        link.send(&Frame::Ping { id: 0 });
        self.heartbeat.asked = Some(now);
        self.heartbeat.next = Some(now + self.beat_interval());
    }
}

/// Whether a line says something of its own: a panic is followed by advice and
/// by a backtrace, which the log has.
fn tells(line: &str) -> bool {
    !line.starts_with([' ', '\t']) && !line.starts_with("note: ") && line != "stack backtrace:"
}

/// Kills a child with all that it has started. Gone already is as good.
fn kill(child: &mut Child, group: Option<Pid>, cgroup: Option<&Group>) {
    if let Some(cgroup) = cgroup {
        cgroup.kill();
    }
    if let Some(group) = group {
        let _ = killpg(group, Signal::SIGKILL);
    }
    let _ = child.start_kill();
}

/// What a child shows without saying it.
pub(super) enum Sign {
    Exited(std::io::Result<ExitStatus>),
    /// It was idle, and has been given work.
    Busy,
}

pub(super) async fn sign_of_child(running: &mut Option<Running>) -> Sign {
    match running {
        Some(Running { body: Body::Child { link, child, .. }, .. }) => tokio::select! {
            status = child.wait() => Sign::Exited(status),
            () = link.busy.notified() => Sign::Busy,
        },
        _ => std::future::pending().await,
    }
}

/// Logs what a child writes to its standard error, and keeps the last of it.
pub(super) async fn listen(plugin: String, stderr: Option<tokio::process::ChildStderr>) -> Vec<String> {
    let mut kept = VecDeque::new();
    let Some(stderr) = stderr else { return Vec::new() };
    let mut reader = BufReader::new(stderr);
    loop {
        let mut line = Vec::new();
        match (&mut reader).take(WORD_BYTES_MAX).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return kept.into(),
            Ok(_) => {}
        }
        let text = redaction::text(String::from_utf8_lossy(&line).trim_end().to_owned());
        if text.is_empty() {
            continue;
        }
        tracing::info!(plugin, "stderr: {text}");
        if !tells(&text) {
            continue;
        }
        if kept.len() == WORDS_MAX {
            kept.pop_front();
        }
        kept.push_back(text);
    }
}

/// Whether a child has ended otherwise than of itself or by our own hand.
fn is_crash(status: ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt;
    match status.signal() {
        Some(signal) => ![Signal::SIGKILL, Signal::SIGTERM].iter().any(|ours| *ours as i32 == signal),
        None => !status.success(),
    }
}

fn describe_exit(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it exited with code {code}"),
        (None, Some(signal)) => {
            let name = nix::sys::signal::Signal::try_from(signal).map_or("unknown signal", |s| s.as_str());
            format!("it was killed by {name}")
        }
        (None, None) => "it ended".into(),
    }
}
