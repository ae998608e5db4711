//! The lock of the runtime directory: taken, or whose it is.
//!
//! It belongs to the open file and goes with its last descriptor, which is a
//! moment after a daemon that was killed: its memory goes first, and a child
//! that it was just starting has a copy until it is its own program. So a lock
//! whose daemon is no more is waited for; one whose daemon runs is not, lest a
//! daemon start when that one stops.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, ErrorKind, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
    time::Instant,
};

use ksi_protocol::paths::Holder;
use nix::libc;

use super::{Error, LEAVING};

/// More than a process id and the longest path that Linux knows.
const CONTENT_BYTES_MAX: u64 = 8 * 1024;

/// Takes the lock, or says who has it. Between two looks it pauses.
pub(super) fn take(path: &Path, socket: &Path, mut pause: impl FnMut()) -> Result<File, Error> {
    let failed = |error| Error::Lock { path: path.to_owned(), error };
    let patience = Instant::now() + LEAVING;
    loop {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            // A file that was removed between opening and locking guards nothing.
            Ok(()) if is_at(&file, path).map_err(failed)? => return Ok(file),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => match named(&mut file) {
                Some(Holder { pid, socket: theirs }) if runs(pid) => {
                    return Err(Error::Running { pid, socket: theirs.unwrap_or_else(|| socket.to_owned()) });
                }
                holder if Instant::now() > patience => {
                    return Err(Error::Held { path: path.to_owned(), pid: holder.map(|holder| holder.pid) });
                }
                _ => pause(),
            },
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let held = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) == (held.dev(), held.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The daemon that a lock file names. It names none while one begins or ends.
fn named(file: &mut File) -> Option<Holder> {
    let mut content = Vec::new();
    file.take(CONTENT_BYTES_MAX).read_to_end(&mut content).ok()?;
    Holder::parse(&content)
}

/// Whether a process runs and is not about to end.
fn runs(pid: u32) -> bool {
    const EXITING: u64 = 0x4;
    const KILLED: u64 = 1 << (libc::SIGKILL - 1);
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The name may have anything in it; after its end come the state, as a
    // letter, and numbers, the flags the sixth and pending signals the 28th.
    let Some((_, figures)) = stat.rsplit_once(')') else { return false };
    let figures: Vec<&str> = figures.split_ascii_whitespace().collect();
    let number = |at: usize| figures.get(at).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    !matches!(figures.first(), Some(&("Z" | "X"))) && number(6) & EXITING == 0 && number(28) & KILLED == 0
}
