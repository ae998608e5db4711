//! Memory: how much of it a process has, and what the daemon gives back to the
//! system. That is what only the start needed, and later what a rush of clients
//! has left free.
//!
//! Nothing is looked at while no client leaves.

use std::time::Duration;

use tokio::{task::spawn_blocking, time::sleep};

/// Time from when the last plugin is ready, or a client has left, until memory
/// is given back: whoever waited has got what it wanted by then, and many who
/// leave at once are one rush.
const CALM: Duration = Duration::from_secs(1);

/// Bytes by which the daemon must have grown for that to be worth anything.
const GROWN: u64 = 8 << 20;

/// Gives memory back, for ever. To be begun once the start is over. `left` waits
/// until clients have left.
pub(crate) async fn give_back(left: impl AsyncFn()) {
    sleep(CALM).await;
    if let Ok(Err(error)) = spawn_blocking(ksi_host::memory::settle).await {
        tracing::debug!("memory of the start stays resident: {error}");
    }
    let mut least = resident();
    loop {
        left().await;
        // What it has left behind may take longer to end than it took to go.
        loop {
            sleep(CALM).await;
            let before = resident();
            if before <= least + GROWN {
                least = least.min(before);
                break;
            }
            // It does not panic.
            let _ = spawn_blocking(ksi_host::memory::trim).await;
            least = resident();
            if before < least + GROWN {
                break;
            }
        }
    }
}

fn resident() -> u64 {
    resident_bytes(std::process::id()).unwrap_or(0)
}

/// Resident memory of a process of this machine.
#[must_use]
pub(crate) fn resident_bytes(pid: u32) -> Option<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * u64::try_from(page).ok()?)
}
