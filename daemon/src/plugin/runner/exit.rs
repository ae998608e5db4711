//! How a child has ended: what its status says, how much memory it had, and
//! whether the system took its life for want of that.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    path::Path,
    process::ExitStatus,
};

use nix::sys::signal::Signal;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::{io::unix::AsyncFd, process::Child};

/// Sees a child end before it is collected, while the system still knows what
/// it had used.
pub(super) struct Watch {
    /// Absent where the system has no such descriptors; then only the status
    /// of the child is known.
    end: Option<AsyncFd<OwnedFd>>,
    /// What [`memory_kills`] was when the child began.
    kills: u64,
}

/// How a child has ended.
#[derive(Debug)]
pub(super) struct Exit {
    pub(super) status: io::Result<ExitStatus>,
    pub(super) peak_bytes: Option<u64>,
    /// Whether the system has killed some process for want of memory while
    /// this one lived.
    memory_was_short: bool,
}

impl Watch {
    pub(super) fn over(child: &Child) -> Self {
        let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let opened = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::NONBLOCK).ok());
        #[expect(deprecated, reason = "its flaw is with types whose descriptor changes; an OwnedFd's stays")]
        let end = opened.and_then(|fd| AsyncFd::new(fd).ok());
        Self { end, kills: memory_kills() }
    }

    /// Waits until the child has ended, and collects it.
    pub(super) async fn ended(&self, child: &mut Child) -> Exit {
        let mut peak_bytes = None;
        if let Some(end) = &self.end
            && end.readable().await.is_ok()
        {
            peak_bytes = child.id().and_then(ksi_host::usage::peak_bytes);
        }
        let status = child.wait().await;
        Exit { status, peak_bytes, memory_was_short: memory_kills() > self.kills }
    }
}

impl Exit {
    /// Its signal, by name.
    pub(super) fn signal(&self) -> Option<String> {
        let number = self.status.as_ref().ok()?.signal()?;
        let name = Signal::try_from(number).map(|signal| signal.as_str().to_owned());
        Some(name.unwrap_or_else(|_| format!("signal {number}")))
    }

    pub(super) fn code(&self) -> Option<i32> {
        self.status.as_ref().ok()?.code()
    }

    /// Whether it has ended otherwise than of itself or by our own hand.
    pub(super) fn is_crash(&self) -> bool {
        let Ok(status) = &self.status else { return false };
        match status.signal() {
            Some(signal) => ![Signal::SIGKILL, Signal::SIGTERM].iter().any(|ours| *ours as i32 == signal),
            None => !status.success(),
        }
    }

    /// Whether the system has killed it for want of memory: nobody else sends
    /// that signal here, and it did so to somebody.
    pub(super) fn is_out_of_memory(&self, killed_by_us: bool) -> bool {
        let killed = self.status.as_ref().is_ok_and(|status| status.signal() == Some(Signal::SIGKILL as i32));
        killed && !killed_by_us && self.memory_was_short
    }

    /// In words.
    pub(super) fn describe(&self) -> String {
        match (&self.status, self.signal(), self.code()) {
            (Err(error), ..) => format!("its exit status is unknown: {error}"),
            (_, Some(signal), _) => format!("it was killed by {signal}"),
            (_, None, Some(code)) => format!("it exited with code {code}"),
            (_, None, None) => "it ended".into(),
        }
    }
}

/// How many processes the system has killed for want of memory: in our control
/// group where that is told, else on the whole machine.
fn memory_kills() -> u64 {
    let ours = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = ours.lines().find_map(|line| line.strip_prefix("0::/"));
    let events = group.map(|group| Path::new("/sys/fs/cgroup").join(group).join("memory.events"));
    let told = events.and_then(|path| fs::read_to_string(path).ok());
    let counted = told.or_else(|| fs::read_to_string("/proc/vmstat").ok());
    counted.and_then(|text| counter(&text, "oom_kill")).unwrap_or(0)
}

/// The number behind a name in lines of `name number`.
fn counter(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(raw: i32, memory_was_short: bool) -> Exit {
        Exit { status: Ok(ExitStatus::from_raw(raw)), peak_bytes: None, memory_was_short }
    }

    #[test]
    fn a_status_is_told_by_its_signal_or_its_code() {
        assert_eq!(exit(11, false).describe(), "it was killed by SIGSEGV");
        assert_eq!(exit(11, false).signal().as_deref(), Some("SIGSEGV"));
        assert_eq!(exit(64, false).signal().as_deref(), Some("signal 64"));
        assert_eq!(exit(3 << 8, false).describe(), "it exited with code 3");
        assert_eq!(exit(3 << 8, false).code(), Some(3));
        assert!(exit(11, false).is_crash() && exit(1 << 8, false).is_crash());
        assert!(!exit(0, false).is_crash() && !exit(9, false).is_crash());
    }

    #[test]
    fn only_a_kill_that_nobody_here_sent_while_memory_was_short_is_for_want_of_it() {
        assert!(exit(9, true).is_out_of_memory(false));
        assert!(!exit(9, true).is_out_of_memory(true));
        assert!(!exit(9, false).is_out_of_memory(false));
        assert!(!exit(11, true).is_out_of_memory(false));
    }

    #[test]
    fn a_counter_is_found_by_its_whole_name() {
        let text = "low 0\noom 7\noom_kill 3\noom_group_kill 9\n";
        assert_eq!(counter(text, "oom_kill"), Some(3));
        assert_eq!(counter(text, "kill"), None);
    }
}
