//! The processes of a run: the command, what it started, and what those did.
//!
//! A plugin in its sandbox can give them no process group of their own, since
//! nobody may leave the plugin's. So they bear a mark in their environment, which
//! is inherited; and whatever is below one that bears it belongs to them, too.

use std::{collections::BTreeMap, fs, time::Duration};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

/// The variable that is the mark.
pub(crate) const MARK: &str = "KSI_RUN";
/// Rounds in which processes are ended that were started meanwhile.
const ROUNDS_MAX: usize = 20;
/// How often it is looked whether the dead can be collected, and in between.
const COLLECTIONS_MAX: usize = 100;
const COLLECTION_PAUSE: Duration = Duration::from_millis(10);

/// All processes of a run, which are ended when it is dropped.
#[derive(Debug)]
pub(crate) struct Kin {
    mark: String,
    /// The command itself, which its own handle collects, and when it began.
    head: Option<(Pid, u64)>,
}

impl Kin {
    /// Of the run of this name.
    pub(crate) fn new(run: &str, head: Option<u32>) -> Self {
        let head = head.and_then(|pid| i32::try_from(pid).ok());
        let head = head.and_then(|pid| Some((Pid::from_raw(pid), Alive::look(pid)?.began)));
        Self { mark: format!("{MARK}={run}"), head }
    }

    /// Those that are alive.
    fn living(&self) -> Vec<Pid> {
        let mut parents = BTreeMap::new();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
            let Some((pid, alive)) = pid.and_then(|pid| Some((pid, Alive::look(pid)?))) else { continue };
            parents.insert(pid, alive.parent);
            // Unreadable is somebody else's.
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let marked =
                environment.split(|byte| *byte == 0).any(|variable| variable == self.mark.as_bytes());
            if marked || self.head == Some((Pid::from_raw(pid), alive.began)) {
                found.push(pid);
            }
        }
        // What cleared its environment is still below the others.
        loop {
            let below = parents
                .iter()
                .find(|(pid, parent)| found.contains(parent) && !found.contains(pid))
                .map(|(pid, _)| *pid);
            match below {
                Some(pid) => found.push(pid),
                None => return found.into_iter().map(Pid::from_raw).collect(),
            }
        }
    }
}

impl Drop for Kin {
    fn drop(&mut self) {
        let mut ended = Vec::new();
        for _ in 0..ROUNDS_MAX {
            let living = self.living();
            if living.is_empty() {
                break;
            }
            for pid in living {
                // It may have gone by itself.
                let _ = kill(pid, Signal::SIGKILL);
                if self.head.is_none_or(|(head, _)| head != pid) && !ended.contains(&pid) {
                    ended.push(pid);
                }
            }
        }
        if let (false, Ok(runtime)) = (ended.is_empty(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(collect(ended));
        }
    }
}

/// A process that has not ended.
struct Alive {
    parent: i32,
    /// When it began, in ticks since the machine did: with it, a number that is
    /// used again is told apart.
    began: u64,
}

impl Alive {
    fn look(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before may hold anything, a bracket too.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let [state, parent, ..] = fields[..] else { return None };
        let began = fields.get(19)?.parse().ok()?;
        (!matches!(state, "Z" | "X")).then_some(Self { parent: parent.parse().ok()?, began })
    }
}

/// Collects those that became this process's children when their parents died,
/// lest they stay as zombies.
async fn collect(mut dead: Vec<Pid>) {
    for _ in 0..COLLECTIONS_MAX {
        // One that is not ours is collected by whoever it belongs to, and may
        // become ours a moment later.
        dead.retain(|pid| {
            let waited = waitpid(*pid, Some(WaitPidFlag::WNOHANG));
            match waited {
                Ok(status) => status == WaitStatus::StillAlive,
                Err(Errno::ECHILD) => fs::exists(format!("/proc/{pid}")).unwrap_or(false),
                Err(_) => true,
            }
        });
        if dead.is_empty() {
            return;
        }
        tokio::time::sleep(COLLECTION_PAUSE).await;
    }
}
