//! What a process that has ended had used.
#![expect(unsafe_code, reason = "waiting with resource usage and without collecting has no safe wrapper")]

use std::mem;

use nix::libc;

/// The most memory that a child of this process ever had, in bytes; a little
/// too much where it never had more than this process when it was started.
///
/// Only of a child that has ended and that nobody has collected yet, which it
/// stays; `None` of any other.
#[must_use]
pub fn peak_bytes(child: u32) -> Option<u64> {
    // SAFETY: both are plain data of the system, for which all zeros is a value.
    let (mut info, mut usage): (libc::siginfo_t, libc::rusage) = unsafe { (mem::zeroed(), mem::zeroed()) };
    // The library's `waitid` has no place for the usage.
    // SAFETY: five arguments as waitid(2) takes them; both pointers are to what
    // lives in this frame, and the system fills in no more than their types.
    let waited = unsafe {
        libc::syscall(
            libc::SYS_waitid,
            libc::c_long::from(libc::P_PID),
            libc::c_long::from(child),
            &raw mut info,
            libc::c_long::from(libc::WEXITED | libc::WNOHANG | libc::WNOWAIT),
            &raw mut usage,
        )
    };
    // SAFETY: waitid fills in the pid of whoever has ended, and leaves the zero
    // where that is nobody.
    let ended = waited == 0 && unsafe { info.si_pid() } != 0;
    ended.then(|| u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_child_that_has_ended_has_a_peak_and_it_can_still_be_collected() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        assert_eq!(peak_bytes(child.id()), None, "it lives");
        drop(child.stdin.take());
        let mut peak = None;
        while peak.is_none() {
            std::thread::yield_now();
            peak = peak_bytes(child.id());
        }
        assert!(peak > Some(64 * 1024), "{peak:?}");
        assert!(child.wait().unwrap().success());
        assert_eq!(peak_bytes(child.id()), None, "it was collected");
    }
}
