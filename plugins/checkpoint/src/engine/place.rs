//! The directory on a real disk: whose it is, and what is where in it.

use std::{path::Path, sync::Arc};

use ksi_sdk::protocol::{Code, Refusal};

use super::{
    options::Options,
    recovery::{Opening, Places, recover},
    shared::{Log, Wakes},
};
use crate::{
    disk::{self, Directory, Lock},
    journal::{Committer, Journal},
    store::SledShelf,
};

/// What to do about a directory that stays taken.
const IN_USE: &str = "where this daemon has the directory, in a plugin that hangs, `ksi restart` frees it; where another \
                      daemon has it, stop that one, or give this one a directory of its own";

/// Takes the directory and opens what is in it.
pub(super) fn open_on_disk(dir: &Path, options: Options) -> Result<(Box<dyn Lock>, Opening), Refusal> {
    let cannot = |error: std::io::Error| {
        let hint = match error.kind() {
            std::io::ErrorKind::WouldBlock => IN_USE,
            _ => "look at the disk and the rights of the directory",
        };
        Refusal::new(Code::Unavailable, format!("cannot open {}: {error}", dir.display())).hint(hint)
    };
    let root = Directory::new(dir).map_err(cannot)?;
    let lock = disk::lock(&root, disk::PATIENCE).map_err(cannot)?;
    let places = Places {
        journal: Arc::new(Directory::new(dir.join("journal")).map_err(cannot)?),
        exports: Arc::new(Directory::new(dir.join("exports")).map_err(cannot)?),
        shelf: Box::new(SledShelf::new(dir.to_owned(), options.store_cache_bytes, options.open_timeout)),
    };
    Ok((lock, recover(places, options, Box::new(committer))?))
}

/// The journal with a thread of its own.
pub(super) fn committer(journal: Journal, wakes: Arc<Wakes>) -> std::io::Result<Box<dyn Log>> {
    Ok(Box::new(Committer::start(journal, Box::new(move || wakes.wake()))?))
}
