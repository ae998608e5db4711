//! The directory on a real disk: whose it is, and what is where in it.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use ksi_sdk::protocol::{Code, Refusal};

use super::{
    options::Options,
    recovery::{Opening, Places, recover},
    shared::{Log, Wakes},
};
use crate::{
    disk::{Directory, Disk, Lock},
    journal::{Committer, Journal},
    store::SledShelf,
};

/// How long an opening waits for whoever has the directory, and how often it looks.
const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_LOOK: Duration = Duration::from_millis(10);

/// What to do about a directory that stays taken.
const IN_USE: &str = "where this daemon has the directory, in a plugin that hangs, `ksi restart` frees it; where another \
                      daemon has it, stop that one, or give this one a directory of its own";

/// Takes the directory and opens what is in it.
pub(super) fn open_on_disk(dir: &Path, options: Options) -> Result<(Box<dyn Lock>, Opening), Refusal> {
    let cannot = |error: std::io::Error| {
        let (why, hint) = match error.kind() {
            std::io::ErrorKind::WouldBlock => ("it is in use".into(), IN_USE),
            _ => (error.to_string(), "look at the disk and the rights of the directory"),
        };
        Refusal::new(Code::Unavailable, format!("cannot open {}: {why}", dir.display())).hint(hint)
    };
    let root = Directory::new(dir).map_err(cannot)?;
    let lock = lock(&root).map_err(cannot)?;
    let places = Places {
        journal: Arc::new(Directory::new(dir.join("journal")).map_err(cannot)?),
        exports: Arc::new(Directory::new(dir.join("exports")).map_err(cannot)?),
        shelf: Box::new(SledShelf::new(dir.to_owned(), options.store_cache_bytes, options.open_timeout)),
    };
    Ok((lock, recover(places, options, Box::new(committer))?))
}

/// Takes the lock. One who has just been given up, in this process or another, lets it go in a moment.
fn lock(root: &Directory) -> std::io::Result<Box<dyn Lock>> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match root.lock() {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::park_timeout(LOCK_LOOK);
            }
            locked => return locked,
        }
    }
}

/// The journal with a thread of its own.
pub(super) fn committer(journal: Journal, wakes: Arc<Wakes>) -> std::io::Result<Box<dyn Log>> {
    Ok(Box::new(Committer::start(journal, Arc::new(move || wakes.wake()))?))
}
