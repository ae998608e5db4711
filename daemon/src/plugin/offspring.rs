//! What comes of children, however it has detached itself.
//!
//! The daemon makes itself the collector of orphans, and so does every plugin
//! host. So whatever a plugin starts, and however often that forks and lets its
//! parents die, it has the host among its ancestors, and once the host is gone,
//! the daemon. A host gives up all privileges before anything else
//! (`no_new_privs`), which is inherited by all that comes of it and can never be
//! taken back. Both together are the mark of [`Offspring`]: a process that has
//! the daemon among its ancestors and that has given up its privileges. What was
//! started beside a plugin, by a script that became the daemon for example, does
//! not have the mark.
//!
//! Two things follow from it: offspring that connects to the control socket is
//! refused ([`Offspring::admit`]), and offspring without its host is killed
//! ([`Offspring::collect`]).
//!
//! # Failure
//!
//! Where the daemon itself runs without privileges to gain, its mark tells
//! nothing: then all that descends from it is refused, and nothing is killed
//! here. Where `/proc` hides other processes, who connects cannot be told from
//! offspring, and is refused. Offspring that outlives the daemon itself, which
//! takes a grant to start programs and a crash, is nobody's; a control group
//! finds it at the next start.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ksi_protocol::{Code, Refusal};
use nix::{
    errno::Errno,
    sys::{
        prctl,
        signal::{Signal, kill},
        socket::{
            getsockopt,
            sockopt::{PeerCredentials, PeerPidfd},
        },
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

/// Attempts to follow ancestors that die meanwhile.
const ATTEMPTS: usize = 16;

/// Knows the hosts that live, and tells what comes of them from all else.
#[derive(Debug, Clone, Default)]
pub struct Offspring {
    /// Children that the daemon itself waits for.
    hosts: Arc<Mutex<HashSet<i32>>>,
}

/// A host that lives, until it is dropped.
#[derive(Debug)]
pub struct Host {
    pid: i32,
    offspring: Offspring,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.offspring.lock().remove(&self.pid);
    }
}

/// What is known of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    parent: i32,
    unprivileged: bool,
}

impl Offspring {
    /// Makes this process the one that orphans below it fall to.
    ///
    /// # Errors
    ///
    /// Where the kernel does not know that, before Linux 3.4.
    pub fn adopt() -> io::Result<Self> {
        prctl::set_child_subreaper(true)?;
        Ok(Self::default())
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<i32>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a host. Under the lock, so that none is taken for an orphan before
    /// it is known.
    ///
    /// # Errors
    ///
    /// As `start`.
    pub fn host<T>(
        &self,
        start: impl FnOnce() -> io::Result<T>,
        pid: impl FnOnce(&T) -> Option<u32>,
    ) -> io::Result<(T, Host)> {
        let mut hosts = self.lock();
        let started = start()?;
        let pid = pid(&started).and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0);
        hosts.insert(pid);
        Ok((started, Host { pid, offspring: self.clone() }))
    }

    /// Whether whoever connected may: everybody but offspring, which is
    /// `denied`.
    ///
    /// # Errors
    ///
    /// Where that cannot be found out for now: a look takes descriptors.
    pub fn admit(&self, stream: &impl AsFd) -> io::Result<Result<(), Refusal>> {
        let denied = |message: &str| {
            Ok(Err(Refusal::new(Code::Denied, message)
                .hint("a plugin asks through its link; `may_call` in the configuration says what it may")))
        };
        let Ok(peer) = getsockopt(stream, PeerCredentials) else {
            return denied("the kernel does not tell which process connected");
        };
        // The kernel has no number here for a process of another world, and
        // what comes of this one is always in it.
        if peer.pid() <= 0 {
            return Ok(Ok(()));
        }
        let process = getsockopt(stream, PeerPidfd);
        let found = descends(peer.pid())?;
        let is_known = match process {
            // Where the number was its own after the look, it was during it.
            Ok(process) => number_of(&process) == Some(peer.pid()),
            // Before Linux 6.5 there is no such descriptor, and a number that is
            // used again so soon is taken for its former owner.
            Err(Errno::ENOPROTOOPT) => true,
            Err(errno @ (Errno::EMFILE | Errno::ENFILE)) => return Err(errno.into()),
            Err(_) => false,
        };
        match found.filter(|_| is_known) {
            Some(false) => Ok(Ok(())),
            Some(true) => denied("a process that comes of a plugin may not use the control socket"),
            None => denied("the process that connected is gone or hidden, so it may be a plugin's"),
        }
    }

    /// Ends what has lost its host. To be called whenever a child has changed its
    /// state: what is ended here is a child by then, and found once more.
    pub fn collect(&self) {
        if is_unprivileged() {
            return;
        }
        let ours = own_pid();
        for pid in processes() {
            // One that cannot be looked at now is found the next time.
            let Ok(Some(seen)) = look(pid) else { continue };
            if seen.parent != ours || !seen.unprivileged {
                continue;
            }
            let hosts = self.lock();
            if hosts.contains(&pid) {
                continue;
            }
            // Nobody else waits for it, so the number stays its own until then.
            let pid = Pid::from_raw(pid);
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
        }
    }
}

fn own_pid() -> i32 {
    i32::try_from(std::process::id()).unwrap_or(i32::MAX)
}

/// Whether the daemon itself has given up its privileges.
fn is_unprivileged() -> bool {
    prctl::get_no_new_privs().unwrap_or(false)
}

/// Whether a process comes of a plugin; `None` where it is gone or hidden.
fn descends(pid: i32) -> io::Result<Option<bool>> {
    let ours = own_pid();
    'anew: for _ in 0..ATTEMPTS {
        let Some(first) = look(pid)? else { return Ok(None) };
        if pid == ours || !first.unprivileged {
            return Ok(Some(false));
        }
        let (mut at, mut seen) = (pid, first);
        loop {
            let parent = seen.parent;
            if parent == ours {
                return Ok(Some(true));
            }
            if parent <= 1 {
                return Ok(Some(false));
            }
            let next = look(parent)?;
            // Only what still is the parent was it while it was looked at: a
            // parent that dies is replaced before its number is free.
            match next {
                Some(next) if look(at)?.is_some_and(|look| look.parent == parent) => {
                    (at, seen) = (parent, next)
                }
                _ => continue 'anew,
            }
        }
    }
    Ok(None)
}

/// Looks at a process; `None` where it is gone or hidden.
fn look(pid: i32) -> io::Result<Option<Look>> {
    match std::fs::read_to_string(format!("/proc/{pid}/status")) {
        Ok(status) => Ok(parse(&status)),
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM) => Err(error),
            _ => Ok(None),
        },
    }
}

fn parse(status: &str) -> Option<Look> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    Some(Look {
        parent: field("PPid:")?.parse().ok()?,
        // A kernel that does not tell has it all the same.
        unprivileged: field("NoNewPrivs:").is_none_or(|set| set == "1"),
    })
}

/// All processes that can be seen.
fn processes() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The number of a process by its descriptor; `None` once somebody else may have
/// it.
fn number_of(process: &OwnedFd) -> Option<i32> {
    let told = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd())).ok()?;
    told.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_tells_of_a_process_is_read() {
        let told = "Name:\tsh\nPid:\t7\nPPid:\t42\nNoNewPrivs:\t1\nSeccomp:\t2\n";
        assert_eq!(parse(told), Some(Look { parent: 42, unprivileged: true }));
        let told = told.replace("NoNewPrivs:\t1", "NoNewPrivs:\t0");
        assert_eq!(parse(&told), Some(Look { parent: 42, unprivileged: false }));
        assert_eq!(parse("Name:\tsh\nPPid:\t1\n"), Some(Look { parent: 1, unprivileged: true }));
        assert_eq!(parse("Name:\tsh\n"), None);
    }

    #[test]
    fn whoever_is_no_child_is_no_offspring() {
        assert_eq!(descends(own_pid()).unwrap(), Some(false));
        assert_eq!(descends(1).unwrap(), Some(false));
        assert_eq!(descends(i32::MAX).unwrap(), None, "nobody");
    }

    #[test]
    fn a_child_is_offspring_once_it_has_given_up_its_privileges() {
        let mut child = std::process::Command::new("setpriv")
            .args(["--no-new-privs", "sh", "-c", "read line"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while descends(pid).unwrap() != Some(true) {
            assert!(std::time::Instant::now() < deadline, "it never was");
            std::thread::yield_now();
        }
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(descends(pid).unwrap(), None, "it is gone");
    }
}
