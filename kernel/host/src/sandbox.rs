//! What a plugin host takes from itself before it loads anything.
//!
//! L0: own process, closed descriptors, death with the daemon, private umask.
//! L1: resource limits, no core dumps, no new privileges. The environment and
//! the working directory are set by the daemon when it spawns the host.
#![expect(unsafe_code, reason = "close_range has no safe wrapper")]

use nix::{
    sys::{
        prctl,
        resource::{Resource, setrlimit},
        signal::Signal,
        stat::{Mode, umask},
    },
    unistd::{Pid, getppid},
};

/// What a host may use. Absent: not limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Address space, bytes.
    pub memory_bytes: Option<u64>,
    /// Open files.
    pub files: Option<u64>,
    /// Largest file that may be written, bytes.
    pub file_bytes: Option<u64>,
}

/// The level in force, as the daemon reports it.
pub const LEVEL: &str = "L1";

/// Puts this process into the sandbox. `daemon` is the process that must
/// live for this one to live.
///
/// # Errors
///
/// Names the step that failed; the host then must not load anything.
pub fn enter(daemon: Pid, limits: &Limits) -> Result<(), String> {
    let failed = |what: &'static str| move |errno: nix::Error| format!("{what}: {errno}");
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(failed("death signal"))?;
    // The daemon may have died before the line above; then nobody would ever
    // signal.
    if getppid() != daemon {
        return Err("the daemon is gone".into());
    }
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    // SAFETY: takes three integers; descriptors from 3 up are not in use yet,
    // since this runs first in `main`.
    if unsafe { nix::libc::close_range(3, u32::MAX, 0) } != 0 {
        return Err(format!("close_range: {}", nix::Error::last()));
    }
    prctl::set_no_new_privs().map_err(failed("no_new_privs"))?;
    prctl::set_dumpable(false).map_err(failed("dumpable"))?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(failed("core limit"))?;
    for (resource, limit) in [
        (Resource::RLIMIT_AS, limits.memory_bytes),
        (Resource::RLIMIT_NOFILE, limits.files),
        (Resource::RLIMIT_FSIZE, limits.file_bytes),
    ] {
        if let Some(limit) = limit {
            setrlimit(resource, limit, limit).map_err(failed("resource limit"))?;
        }
    }
    Ok(())
}
