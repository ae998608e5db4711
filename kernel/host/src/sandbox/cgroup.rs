//! L5: the control group that the daemon has put this process into. Only looked
//! at from here, while it is in sight; to fill it would cost more than a start.

use std::path::Path;

use ksi_protocol::sandbox::{Cgroup, Limits, Sandbox};

use super::Taken;

/// Whether this process is in its group, and the group has its limits.
pub(super) fn holds(sandbox: &Sandbox) -> Taken {
    let group = match &sandbox.cgroup {
        Cgroup::Holds(group) => Path::new(group),
        Cgroup::Off(why) => return Err(why.clone()),
    };
    let read = |file: &str| std::fs::read_to_string(group.join(file)).unwrap_or_default();
    let ours = std::process::id().to_string();
    if !read("cgroup.procs").lines().any(|pid| pid == ours) {
        return Err("the process is not in its group".into());
    }
    let Limits { memory_bytes, processes, cpu_percent, .. } = sandbox.limits;
    for (file, wanted) in [
        ("memory.max", memory_bytes.is_some()),
        ("pids.max", processes.is_some()),
        ("cpu.max", cpu_percent.is_some()),
    ] {
        let text = read(file);
        if text.is_empty() || (wanted && text.starts_with("max")) {
            return Err(format!("{file} is not in force"));
        }
    }
    Ok(String::new())
}
