//! How a generation lives and ends: its heartbeat, its exit, its last words.

use std::{sync::Arc, time::Duration};

use ksi_protocol::system::PluginState;
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

use super::{
    Runner,
    exit::{Exit, Watch},
    reason_of,
};
use crate::{
    hub::{Hub, Port},
    plugin::{
        actor::Actor,
        board::with,
        cgroup::Group,
        guest::{Guest, Life, Word},
        link::Link,
        offspring::Host,
    },
};

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
        watch: Watch,
        /// All processes that come of it.
        group: Option<Pid>,
        cgroup: Option<Group>,
        host: Host,
        serving: JoinHandle<()>,
        words: JoinHandle<()>,
    },
}

impl Running {
    pub(super) fn guest(&self) -> &Guest {
        match &self.body {
            Body::Actor(actor) => &actor.guest,
            Body::Child { link, .. } => &link.guest,
        }
    }
}

/// Whether a child's own loop still answers.
///
/// A child is pinged after it was given anything, be it a request or an event
/// that nobody waits for, and then for as long as it holds something. One that
/// was given nothing since its last pong is left in peace.
#[derive(Default)]
pub(super) struct Heartbeat {
    /// When to look again.
    pub(super) next: Option<Instant>,
    /// Since when a ping is unanswered.
    asked: Option<Instant>,
    /// Whether it was given something after that ping.
    again: bool,
}

impl Runner {
    /// Detaches what runs, and refuses what it held.
    pub(super) async fn lose(&mut self, why: &str) {
        let Some(running) = self.running.take() else { return };
        self.detach(&running.port, why);
        if self.spec.plugin.instances {
            with(&self.board, |board| board.port = None);
            self.means.lost.notify_one();
        }
        self.sandbox = None;
        // What it has said and nobody has heard was about a life that is over.
        self.life = mpsc::channel(1).1;
        match running.body {
            Body::Actor(actor) => {
                self.last_words(actor.guest.words());
                actor.stop();
                actor.cut_off_caller();
                self.stuck = Some(actor);
            }
            Body::Child { link, mut child, group, cgroup, host, serving, words, .. } => {
                link.kill();
                kill(&mut child, group, cgroup.as_ref());
                let _ = child.wait().await;
                drop(host);
                // The kernel may take its time over a group.
                drop(tokio::task::spawn_blocking(move || drop(cgroup)));
                serving.abort();
                // Somebody who has left the group may still hold the other end.
                let _ = timeout(LAST_WORDS, words).await;
                self.last_words(link.guest.words());
            }
        }
    }

    /// What a child said before it ended still counts: answers that are in the
    /// socket are delivered before what is left is refused.
    pub(super) async fn child_exited(&mut self, exit: Exit) {
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
                Life::Described(descriptor) => {
                    if let Err(refusal) = self.described(descriptor.into()) {
                        self.reason = Some(reason_of(refusal));
                    }
                }
                Life::Refused(refusal) => self.reason = Some(reason_of(refusal)),
                Life::Died(reason) => self.reason = Some(reason),
                Life::Ready | Life::Drained | Life::Pong => {}
            }
        }
        self.death.signal = exit.signal();
        self.death.code = exit.code();
        self.death.peak_bytes = exit.peak_bytes;
        self.death.out_of_memory = exit.is_out_of_memory(self.killed);
        let how = match self.death.out_of_memory {
            true => format!("{}: the system was out of memory", exit.describe()),
            false => exit.describe(),
        };
        let stopped = self.supervisor.state() == PluginState::Draining;
        self.reason = match self.reason.take() {
            Some(said) => Some(format!("{said} ({how})")),
            None if stopped && !exit.is_crash() => None,
            None => Some(how),
        };
        self.lose(if stopped { self.wish() } else { "its process ended" }).await;
    }

    fn last_words(&mut self, words: Vec<Word>) {
        let cried = words.iter().rev().find(|word| word.cried);
        if let (Some(last), Some(reason)) = (cried, &mut self.reason)
            && !reason.contains(&last.text)
            && self.supervisor.state() != PluginState::Draining
        {
            *reason = format!("{reason}; it said: {}", last.text);
        }
        self.death.last_words = words.into_iter().map(|word| word.text).collect();
    }

    pub(super) fn kill_child(&mut self) {
        if let Some(Running { body: Body::Child { child, group, cgroup, .. }, .. }) = &mut self.running {
            self.killed = true;
            kill(child, *group, cgroup.as_ref());
        }
    }

    /// A child that was at rest has been given something.
    pub(super) fn watch(&mut self) {
        self.heartbeat.again = true;
        if self.heartbeat.asked.is_none() && self.heartbeat.next.is_none() {
            self.heartbeat.next = Some(Instant::now() + self.beat_interval());
        }
    }

    fn beat_interval(&self) -> Duration {
        (self.spec.plugin.restart.hang / 4).min(BEAT_MAX)
    }

    /// Pings a child; one that does not answer in time is given up.
    pub(super) fn beat(&mut self) {
        self.heartbeat.next = None;
        let Some(Running { body: Body::Child { link, .. }, .. }) = &self.running else { return };
        let hang = self.spec.plugin.restart.hang;
        let now = Instant::now();
        match self.heartbeat.asked {
            Some(asked) if now >= asked + hang => {
                self.reason = Some(format!("did not answer for {} ms", hang.as_millis()));
                self.heartbeat = Heartbeat::default();
                self.kill_child();
            }
            Some(asked) => self.heartbeat.next = Some(asked + hang),
            None => {
                // What it is given from here on, this ping says nothing of.
                link.rest();
                link.ping();
                self.heartbeat = Heartbeat { next: Some(now + hang), asked: Some(now), again: false };
            }
        }
    }

    /// It has answered: asked again where it has more to do.
    pub(super) fn pong(&mut self) {
        let holds = self.running.as_ref().is_some_and(|running| running.port.holding() > 0);
        let again = self.heartbeat.again || holds;
        let next = again.then(|| Instant::now() + self.beat_interval());
        self.heartbeat = Heartbeat { next, asked: None, again: false };
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
    Exited(Exit),
    /// It was at rest, and has been given something.
    Busy,
}

pub(super) async fn sign_of_child(running: &mut Option<Running>) -> Sign {
    match running {
        Some(Running { body: Body::Child { link, child, watch, .. }, .. }) => tokio::select! {
            exit = watch.ended(child) => Sign::Exited(exit),
            () = link.busy.notified() => Sign::Busy,
        },
        _ => std::future::pending().await,
    }
}

/// Logs what a child writes to its standard error, and keeps the last of it.
pub(super) async fn listen(link: Arc<Link>, stderr: Option<tokio::process::ChildStderr>, hub: Arc<Hub>) {
    let Some(stderr) = stderr else { return };
    let mut reader = BufReader::new(stderr);
    loop {
        let mut line = Vec::new();
        match (&mut reader).take(WORD_BYTES_MAX).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if text.is_empty() {
            continue;
        }
        link.guest.log("info", &format!("stderr: {text}"), hub.now_ms());
        if tells(text) {
            link.guest.remember(Word { text: text.to_owned(), cried: true });
        }
    }
}
