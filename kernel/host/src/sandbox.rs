//! What a plugin host takes from itself before it loads anything.
//!
//! [`begin`] is the first thing that `main` does: L0, and what nothing that
//! comes of this process can undo. [`enter`] does the rest, once the daemon has
//! said what the plugin is granted. Each layer is best effort: where it cannot
//! be had, the report says why, and the others are tried all the same. A layer
//! counts as in force only after the host has tried what it forbids and was
//! denied; a return code alone proves nothing.
//!
//! # Invariants
//!
//! - All of it happens on the only thread, before a line of the plugin runs.
//! - `no_new_privs` is set before anything else: by it the daemon knows what
//!   comes of a plugin, however it has detached itself.
//!
//! # Failure
//!
//! L0 and L1 are to be had on every Linux; where they fail, nothing is loaded.
#![expect(unsafe_code, reason = "close_range has no safe wrapper")]

mod cgroup;
mod landlock;
mod limits;
mod namespaces;
mod place;
pub mod probe;
mod seccomp;
#[cfg(test)]
#[path = "../../../tests/it/skipped.rs"]
mod skipped;
mod view;

use ksi_protocol::{
    frame::Setup,
    sandbox::{Layer, Report, Sandbox, Standing},
};
use nix::{
    sys::{
        prctl,
        signal::Signal,
        stat::{Mode, umask},
    },
    unistd::{Pid, getppid},
};

use view::View;

/// What came of a layer: what it does not cover here, or why it is off.
type Taken = Result<String, String>;

/// Cuts this process off from all but its daemon: it dies with it, has none of
/// its descriptors, and collects the orphans of its own.
///
/// # Errors
///
/// Names the step that failed; the host then must not load anything.
pub fn begin(daemon: Pid) -> Result<(), String> {
    let failed = |what: &'static str| move |errno: nix::Error| format!("{what}: {errno}");
    prctl::set_no_new_privs().map_err(failed("no_new_privs"))?;
    bind_to(daemon)?;
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    // SAFETY: takes three integers; descriptors from 3 up are not in use yet,
    // since this runs first in `main`.
    if unsafe { nix::libc::close_range(3, u32::MAX, 0) } != 0 {
        return Err(format!("close_range: {}", nix::Error::last()));
    }
    // What its children leave behind stays below this process, so that it is
    // found and ended with it.
    prctl::set_child_subreaper(true).map_err(failed("subreaper"))
}

/// Makes this process die with the daemon.
fn bind_to(daemon: Pid) -> Result<(), String> {
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|errno| format!("death signal: {errno}"))?;
    // The daemon may have died before the line above; then nobody would ever
    // signal.
    if getppid() == daemon { Ok(()) } else { Err("the daemon is gone".into()) }
}

/// Takes from this process what the plugin is not granted; says what of it is
/// in force.
///
/// # Errors
///
/// Where even the limits cannot be had, where a grant leads through a link that a
/// plugin may have put there, or the plugin's own directory was lost on the way;
/// the host then must not load anything.
pub fn enter(daemon: Pid, setup: &Setup) -> Result<Report, String> {
    let sandbox = &*setup.sandbox;
    limits::open_many()?;
    let view = View::of(setup)?;
    // In this order, because each may only take what the next does not need.
    let cgroup = wanted(sandbox, Layer::Cgroup, || cgroup::holds(sandbox));
    let namespaces = wanted(sandbox, Layer::Namespaces, || {
        namespaces::enter(sandbox, &view)?;
        namespaces::holds(sandbox)
    });
    view.check()?;
    // A network of its own is granted as a whole.
    let own_network = namespaces.is_ok() && namespaces::has_network(sandbox);
    let rules = wanted(sandbox, Layer::Landlock, || landlock::rules(sandbox, &view, own_network));
    // It holds on to the files of another root, and to more of them than the
    // plugin may.
    drop(view);
    limits::enter(&sandbox.limits, namespaces.is_ok())?;
    // Changed credentials may have undone it.
    bind_to(daemon)?;
    let limits = limits::holds(&sandbox.limits);
    let landlock = rules.and_then(|rules| {
        let note = landlock::enter(rules)?;
        landlock::holds()?;
        Ok(note)
    });
    let seccomp = wanted(sandbox, Layer::Seccomp, || {
        seccomp::enter(sandbox, seccomp::Own { network: own_network, root: namespaces.is_ok() })?;
        seccomp::holds()
    });
    let layers = [Ok(String::new()), limits, seccomp, landlock, namespaces, cgroup];
    let standing = |(layer, taken): (Layer, Taken)| Standing {
        layer,
        on: taken.is_ok(),
        why: taken.unwrap_or_else(|why| why),
    };
    Ok(Report { layers: Layer::ALL.into_iter().zip(layers).map(standing).collect() })
}

/// Takes a layer unless the operator does not want it.
fn wanted<T>(sandbox: &Sandbox, layer: Layer, take: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    if sandbox.disable.contains(&layer) { Err("disabled by the configuration".into()) } else { take() }
}
