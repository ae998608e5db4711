//! Control groups of children: what holds them to memory, processes and
//! processor time, and what ends all that came of a child at once.
//!
//! Groups are made below the one that the daemon is in, where that is allowed.
//! Limits need the controllers of cgroup v2 handed down, and these may only be
//! handed down by a group without processes of its own; so the daemon goes into
//! a group beside those of its children, where nobody else is in its own. Where
//! that is not possible there may still be groups without limits: they end what
//! came of a child for sure.
//!
//! ```text
//! the daemon's own group (a service with `Delegate=yes`, or the root)
//!   ksi-PID/
//!     daemon/      the daemon itself, where controllers are handed down
//!     echo-1/      generation 1 of the plugin echo
//! ```
//!
//! # Failure
//!
//! Nothing here is needed to run: whatever fails becomes the reason why the
//! layer is off. A group that still has processes when it is let go is removed
//! when the next one is made; those of a daemon that is gone, with what is left
//! in them, at the next start.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use ksi_protocol::sandbox::{Cgroup, Limits};
use nix::{errno::Errno, sys::signal::kill, unistd::Pid};

/// What a child is held to.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Length of the period in which processor time is counted, in microseconds.
const PERIOD: u32 = 100_000;

/// Prefix of a daemon's group.
const PREFIX: &str = "ksi-";

/// The group in it that the daemon itself goes into. No plugin's is called so:
/// they end in a number.
const DAEMON: &str = "daemon";

/// Where groups are made.
#[derive(Debug, Clone)]
pub struct Cgroups {
    /// The daemon's group of groups; or why there is none.
    base: Result<PathBuf, String>,
    /// Why groups have no limits, where they have none.
    unlimited: Option<String>,
    /// Groups that could not be removed yet.
    left: Arc<Mutex<Vec<PathBuf>>>,
}

/// The group of one child; removed when dropped.
#[derive(Debug)]
pub struct Group {
    dir: PathBuf,
    left: Arc<Mutex<Vec<PathBuf>>>,
}

impl Cgroups {
    /// Finds out what can be had on this machine, and prepares it.
    #[must_use]
    pub fn prepare() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        match own_group(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup")) {
            Some(own) => Self::below(&own),
            None => Self::none("there is no cgroup v2 on this machine"),
        }
    }

    fn none(why: impl Into<String>) -> Self {
        Self { base: Err(why.into()), unlimited: None, left: Arc::default() }
    }

    fn below(own: &Path) -> Self {
        let us = format!("{PREFIX}{}", std::process::id());
        // This process was the daemon already, before it executed itself anew.
        let (own, base) = match own.parent() {
            Some(parent) if own.file_name() == Some(DAEMON.as_ref()) && parent.ends_with(&us) => {
                (parent.parent().unwrap_or(parent), parent.to_owned())
            }
            _ => (own, own.join(&us)),
        };
        remove_leftovers(own);
        match fs::create_dir(&base) {
            Ok(()) => {}
            // Of this process, or of one that had its number before.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => clear(&base),
            Err(error) => return Self::none(format!("not delegated: {error}")),
        }
        let unlimited = hand_down(own, &base).err();
        Self { base: Ok(base), unlimited, left: Arc::default() }
    }

    /// A group for a child, where there can be one; and what is to be told of it.
    #[must_use]
    pub fn make(&self, plugin: &str, generation: u32, limits: &Limits) -> (Option<Group>, Cgroup) {
        let base = match &self.base {
            Ok(base) => base,
            Err(why) => return (None, Cgroup::Off(why.clone())),
        };
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.retain(|dir| fs::remove_dir(dir).is_err());
        drop(left);
        let dir = base.join(format!("{plugin}-{generation}"));
        if let Err(error) = fs::create_dir(&dir) {
            return (None, Cgroup::Off(format!("cannot make a group: {error}")));
        }
        let group = Group { dir, left: self.left.clone() };
        let told = match &self.unlimited {
            Some(why) => Cgroup::Off(why.clone()),
            None => match group.limit(limits) {
                Ok(()) => Cgroup::Holds(group.dir.display().to_string()),
                Err((file, error)) => Cgroup::Off(format!("{file}: {error}")),
            },
        };
        (Some(group), told)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        // The last of all clones; where the daemon itself is in it, whoever
        // has delegated it cleans up.
        if Arc::strong_count(&self.left) == 1
            && let Ok(base) = &self.base
        {
            let _ = fs::remove_dir(base);
        }
    }
}

impl Group {
    fn limit(&self, limits: &Limits) -> Result<(), (&'static str, io::Error)> {
        let set = |file: &'static str, text: String| {
            fs::write(self.dir.join(file), text).map_err(|error| (file, error))
        };
        if let Some(bytes) = limits.memory_bytes {
            set("memory.max", bytes.to_string())?;
            // Half of a child that lost one process to the limit is no child.
            set("memory.oom.group", "1".into())?;
        }
        if let Some(processes) = limits.processes {
            set("pids.max", processes.to_string())?;
        }
        if let Some(percent) = limits.cpu_percent {
            set("cpu.max", format!("{} {PERIOD}", u64::from(percent) * u64::from(PERIOD) / 100))?;
        }
        Ok(())
    }

    /// What puts a process in. The kernel lets it wait until every processor has
    /// come round, for 10 ms and more, so it belongs on a thread that may block.
    pub fn adding(&self, pid: u32) -> impl FnOnce() -> io::Result<()> + Send + 'static {
        let procs = self.dir.join("cgroup.procs");
        move || fs::write(procs, pid.to_string())
    }

    /// Kills all that is in it.
    pub fn kill(&self) {
        // Before Linux 5.14 there is no such file; then the process group has
        // to do.
        let _ = fs::write(self.dir.join("cgroup.kill"), "1");
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
        if fs::remove_dir(&self.dir).is_err() {
            // What was killed just now takes a moment to go.
            self.left.lock().unwrap_or_else(PoisonError::into_inner).push(self.dir.clone());
        }
    }
}

/// The directory of this process's group in the hierarchy of version 2.
fn own_group(mountinfo: &str, cgroup: &str) -> Option<PathBuf> {
    let path = Path::new(cgroup.lines().find_map(|line| line.strip_prefix("0::"))?);
    mountinfo.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        if kind.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = place.split(' ').skip(3);
        let (root, mounted) = (fields.next()?, fields.next()?);
        // What lies outside of what is mounted cannot be reached.
        Some(Path::new(mounted).join(path.strip_prefix(root).ok()?))
    })
}

/// Hands the controllers down to the groups in `base`; says why not.
fn hand_down(own: &Path, base: &Path) -> Result<(), String> {
    let there = fs::read_to_string(own.join("cgroup.controllers")).unwrap_or_default();
    let missing: Vec<&str> =
        CONTROLLERS.into_iter().filter(|name| !there.split_whitespace().any(|have| have == *name)).collect();
    if !missing.is_empty() {
        let missing = missing.join(", ");
        return Err(format!("the controllers {missing} are not delegated, or cgroup v1 has them"));
    }
    let all = CONTROLLERS.map(|name| format!("+{name}")).join(" ");
    let enable = |dir: &Path| fs::write(dir.join("cgroup.subtree_control"), &all);
    if enable(own).is_err() {
        let us = std::process::id().to_string();
        let inside = fs::read_to_string(own.join("cgroup.procs")).unwrap_or_default();
        if inside.lines().any(|pid| pid != us) {
            return Err(
                "other processes are in the daemon's group; `Delegate=yes` of systemd gives it one".into()
            );
        }
        let daemon = base.join(DAEMON);
        let moved = fs::create_dir(&daemon).and_then(|()| fs::write(daemon.join("cgroup.procs"), us));
        moved.and_then(|()| enable(own)).map_err(|error| format!("not delegated: {error}"))?;
    }
    enable(base).map_err(|error| format!("not delegated: {error}"))
}

/// Removes the groups of daemons that are gone, and kills what is left in them.
fn remove_leftovers(own: &Path) {
    for dir in fs::read_dir(own).into_iter().flatten().flatten() {
        let name = dir.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse().ok());
        let Some(pid) = pid.map(Pid::from_raw) else { continue };
        if kill(pid, None) != Err(Errno::ESRCH) {
            continue;
        }
        clear(&dir.path());
        let _ = fs::remove_dir(dir.path());
    }
}

/// Ends what is in the groups of children, and removes them.
fn clear(base: &Path) {
    for group in fs::read_dir(base).into_iter().flatten().flatten() {
        if group.path().is_dir() && group.file_name() != DAEMON {
            let _ = fs::write(group.path().join("cgroup.kill"), "1");
            let _ = fs::remove_dir(group.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "24 1 8:1 / / rw - ext4 /dev/vda rw\n\
        30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_own_group_is_found_where_it_is_mounted() {
        let found = |mounts: &str, cgroup: &str| own_group(mounts, cgroup);
        assert_eq!(
            found(MOUNTS, "0::/user.slice/ksid.service\n"),
            Some("/sys/fs/cgroup/user.slice/ksid.service".into())
        );
        assert_eq!(found(MOUNTS, "4:memory:/a\n0::/\n"), Some("/sys/fs/cgroup".into()));
        assert_eq!(found(MOUNTS, "4:memory:/a\n"), None, "cgroup v1 alone");
        assert_eq!(found("", "0::/\n"), None, "not mounted");
        let container = MOUNTS.replace("0:26 /", "0:26 /docker/7");
        assert_eq!(found(&container, "0::/docker/7/a\n"), Some("/sys/fs/cgroup/a".into()));
        assert_eq!(found(&container, "0::/elsewhere\n"), None);
    }

    /// A directory that looks like a group with these controllers.
    fn group(controllers: &str, procs: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), controllers).unwrap();
        fs::write(dir.path().join("cgroup.procs"), procs).unwrap();
        fs::write(dir.path().join("cgroup.subtree_control"), "").unwrap();
        dir
    }

    #[test]
    fn limits_are_written_as_the_kernel_reads_them() {
        let own = group("cpuset cpu io memory pids", "");
        let groups = Cgroups::below(own.path());
        let limits = Limits {
            memory_bytes: Some(64 << 20),
            processes: Some(12),
            cpu_percent: Some(150),
            ..Limits::default()
        };
        let (group, told) = groups.make("echo", 3, &limits);
        let group = group.unwrap();
        let dir = own.path().join(format!("ksi-{}/echo-3", std::process::id()));
        assert_eq!(told, Cgroup::Holds(dir.display().to_string()));
        for (file, text) in [
            ("memory.max", "67108864"),
            ("memory.oom.group", "1"),
            ("pids.max", "12"),
            ("cpu.max", "150000 100000"),
        ] {
            assert_eq!(fs::read_to_string(dir.join(file)).unwrap(), text, "{file}");
        }
        group.adding(42)().unwrap();
        assert_eq!(fs::read_to_string(dir.join("cgroup.procs")).unwrap(), "42");
        drop(group);
        assert_eq!(fs::read_to_string(dir.join("cgroup.kill")).unwrap(), "1");
    }

    #[test]
    fn controllers_that_are_missing_are_named_and_groups_are_made_all_the_same() {
        let own = group("cpu pids", "");
        let groups = Cgroups::below(own.path());
        let (group, told) = groups.make("echo", 1, &Limits::default());
        assert!(group.is_some());
        let Cgroup::Off(why) = told else { panic!("{told:?}") };
        assert!(why.contains("memory") && !why.contains("pids,"), "{why}");
    }

    #[test]
    fn without_the_right_to_make_groups_there_are_none() {
        let (group, told) = Cgroups::below(Path::new("/proc/1")).make("echo", 1, &Limits::default());
        assert!(group.is_none());
        assert!(matches!(told, Cgroup::Off(why) if why.contains("not delegated")));
    }

    #[test]
    fn groups_of_daemons_that_are_gone_are_removed() {
        let own = group("", "");
        // No process has so high a number.
        let gone = own.path().join("ksi-2147483646");
        fs::create_dir_all(gone.join("echo-1")).unwrap();
        let alive = own.path().join("ksi-1");
        fs::create_dir_all(&alive).unwrap();
        remove_leftovers(own.path());
        assert!(alive.exists());
        assert_eq!(fs::read_to_string(gone.join("echo-1/cgroup.kill")).unwrap(), "1");
    }
}
