//! L1: how much the process may use, and that it has no privileges.
#![expect(unsafe_code, reason = "mmap is tried without a wrapper that would use what it returns")]

use ksi_protocol::sandbox::Limits;
use nix::{
    errno::Errno,
    libc,
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
    },
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capability_is_in_bounding_set, remove_capability_from_bounding_set,
    set_capabilities,
};

use super::Taken;

/// Gives up privileges and puts the limits into force. `alone`: whether the
/// process is in a user namespace of its own, where its processes are counted
/// apart from those of its user.
pub(super) fn enter(limits: &Limits, alone: bool) -> Result<(), String> {
    give_up_privileges().map_err(|errno| format!("capabilities: {errno}"))?;
    prctl::set_dumpable(false).map_err(|errno| format!("dumpable: {errno}"))?;
    let processes = limits.processes.filter(|_| alone);
    for (resource, limit) in [
        (Resource::RLIMIT_CORE, Some(0)),
        (Resource::RLIMIT_AS, limits.memory_bytes),
        (Resource::RLIMIT_NOFILE, limits.files),
        (Resource::RLIMIT_FSIZE, limits.file_bytes),
        (Resource::RLIMIT_NPROC, processes),
    ] {
        let Some(limit) = limit else { continue };
        let failed = |errno: Errno| format!("limit {resource:?}: {errno}");
        // Nobody without privileges may raise what the daemon itself is held to.
        let (_, most) = getrlimit(resource).map_err(failed)?;
        let limit = limit.min(most);
        setrlimit(resource, limit, limit).map_err(failed)?;
    }
    Ok(())
}

/// As many open files as can be had, for as long as the grants are looked at.
pub(super) fn open_many() -> Result<(), String> {
    let most = getrlimit(Resource::RLIMIT_NOFILE).map(|(_, most)| most);
    most.and_then(|most| setrlimit(Resource::RLIMIT_NOFILE, most, most))
        .map_err(|errno| format!("limit of open files: {errno}"))
}

/// Drops all capabilities, and the right to have any: those of root, or those
/// that a namespace of its own has given.
fn give_up_privileges() -> rustix::io::Result<()> {
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        match capability_is_in_bounding_set(capability) {
            // Without the right to drop it, none can be gained either: that is
            // what `no_new_privs` says.
            Ok(true) => {
                let _ = remove_capability_from_bounding_set(capability);
            }
            Ok(false) => {}
            Err(_) => break,
        }
    }
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
}

/// Tries to take a limit back, and to go beyond those that can be tried.
pub(super) fn holds(limits: &Limits) -> Taken {
    if prctl::get_no_new_privs() != Ok(true) {
        return Err("privileges can be gained".into());
    }
    if setrlimit(Resource::RLIMIT_CORE, 1, 1).is_ok() {
        return Err("a limit can be taken back".into());
    }
    if limits.memory_bytes.is_some_and(more_memory) {
        return Err("there is more memory than granted".into());
    }
    Ok(String::new())
}

/// Whether this much memory can be mapped.
pub(super) fn more_memory(bytes: u64) -> bool {
    let Ok(length) = usize::try_from(bytes) else { return false };
    // SAFETY: a private mapping at a place of the kernel's choice, that nobody
    // can touch.
    let mapped = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if mapped == libc::MAP_FAILED {
        return false;
    }
    // SAFETY: exactly what was mapped above, and nobody has seen it.
    unsafe { libc::munmap(mapped, length) };
    true
}
