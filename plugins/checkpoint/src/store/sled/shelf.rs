//! Where stores on sled stand: opening, making, moving and putting aside.
//!
//! # Invariants
//!
//! - A name is there only with a whole store behind it: one is made as
//!   `x.new`, and renamed when it is synced.
//!
//! # Failure
//!
//! What does not open in time, or only with a panic, is `Damaged`, and so is a store of which a piece is missing or
//! cut. The thread that hangs is left behind; its file is taken from under it when the store is put aside, which
//! ends most hangs.

use std::{
    cell::Cell,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{RecvTimeoutError, sync_channel},
    },
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg};

use super::{CLEAN, SUM, SledStore, Sum, TREE, VALUES, guarded, sync_dir};
use crate::store::{Shelf, Shelved, StoreError};

/// Keys up to which the content of a store is compared at every opening: a few milliseconds.
const CHECKED_ALWAYS: u64 = 20_000;

/// How often sled tidies its file, in milliseconds. It syncs too then, which is of no use to us, so not
/// as often as it would by itself.
const TIDY_MS: u64 = 10_000;

/// Size of a segment of sled's file. Smaller than what it takes by itself: the file is then some 2.8 times what lives
/// in it under overwrites, not 3.1.
const SEGMENT: usize = 256 << 10;

/// A directory with stores in it.
#[derive(Debug, Clone)]
pub struct SledShelf {
    root: PathBuf,
    cache_bytes: u64,
    open_timeout: Duration,
}

impl SledShelf {
    /// Takes a directory, which must be there.
    #[must_use]
    pub fn new(root: PathBuf, cache_bytes: u64, open_timeout: Duration) -> Self {
        Self { root, cache_bytes, open_timeout }
    }

    /// Opens sled on a thread that is watched.
    fn open_watched(&self, dir: &Path) -> Result<sled::Db, StoreError> {
        let config = sled::Config::default()
            .path(dir.join(TREE))
            .cache_capacity(self.cache_bytes)
            .segment_size(SEGMENT)
            .flush_every_ms(Some(TIDY_MS));
        let file = dir.join(TREE).join("db");
        let given_up = Arc::new(AtomicBool::new(false));
        let still_wanted = given_up.clone();
        let (sender, receiver) = sync_channel(1);
        let opening = move || {
            wait_for_lock(&file);
            // By now another store may stand there.
            if !still_wanted.load(Ordering::Acquire) {
                // The asker may have given up meanwhile; then this is dropped here.
                let _ = sender.send(guarded("open", || config.open()).map_err(StoreError::from));
            }
        };
        std::thread::Builder::new()
            .name("store-open".into())
            .spawn(opening)
            .map_err(StoreError::io("open"))?;
        match receiver.recv_timeout(self.open_timeout) {
            Ok(opened) => opened,
            Err(RecvTimeoutError::Timeout) => {
                given_up.store(true, Ordering::Release);
                Err(StoreError::Damaged(format!("it does not open within {:?}", self.open_timeout)))
            }
            Err(RecvTimeoutError::Disconnected) => Err(StoreError::Damaged("sled panicked".into())),
        }
    }

    /// Makes an empty store as a whole or not at all.
    fn make(&self, name: &str) -> Result<(), StoreError> {
        let new = self.root.join(format!("{name}.new"));
        let failed = StoreError::io("make");
        let prepare = || -> io::Result<()> {
            remove_if_there(&new)?;
            fs::create_dir_all(new.join(VALUES))?;
            private(&new)
        };
        prepare().map_err(failed)?;
        let db = self.open_watched(&new)?;
        guarded("make", || {
            db.insert(SUM, &Sum::default().write()[..])?;
            db.flush()
        })?;
        drop(db);
        let finish = || -> io::Result<()> {
            sync_below(&new)?;
            fs::rename(&new, self.root.join(name))?;
            sync_dir(&self.root)
        };
        finish().map_err(StoreError::io("make"))
    }

    /// Opens what is there, and repairs what a crash of sled leaves.
    fn open_repaired(&self, dir: &Path, repairs: &mut Vec<String>) -> Result<sled::Db, StoreError> {
        let half = remove_snapshots(dir, true).map_err(StoreError::io("repair"))?;
        if half > 0 {
            repairs.push(format!(
                "removed {half} half-written snapshots of the store, which a crash during a start had left"
            ));
        }
        match self.open_watched(dir) {
            Err(StoreError::Damaged(why))
                if remove_snapshots(dir, false).map_err(StoreError::io("repair"))? > 0 =>
            {
                repairs.push(format!("removed the snapshot of the store, which sled makes anew ({why})"));
                self.open_watched(dir)
            }
            result => result,
        }
    }

    /// Opens the store in a directory.
    fn open_there(&self, dir: PathBuf) -> Result<Shelved, StoreError> {
        // Nobody may look for them before the first large value is written.
        fs::read_dir(dir.join(VALUES)).map_err(StoreError::io("open"))?;
        let mut repairs = Vec::new();
        let db = self.open_repaired(&dir, &mut repairs)?;
        let file = fs::File::open(dir.join(TREE).join("db")).map_err(StoreError::io("open"))?;
        let mut store = SledStore {
            db: Some(db),
            file,
            dir,
            sum: Sum::default(),
            unused: Default::default(),
            broken: Cell::new(false),
            panicked: Cell::new(false),
        };
        let sum = store.call("read", |db| db.get(SUM))?;
        let sum = sum.as_deref().and_then(Sum::read);
        store.sum = sum.ok_or_else(|| store.damaged("its figures are missing"))?;
        let clean = fs::read(store.dir.join(CLEAN)).ok();
        if clean.as_deref().is_some_and(|then| then != store.sum.write()) {
            return Err(store.damaged("it is older than when it was closed"));
        }
        let verified = clean.is_none() || store.sum.keys <= CHECKED_ALWAYS;
        if verified {
            let used = store.check(false, &mut |_| {})?;
            let unused = store.collect(&used).map_err(StoreError::io("tidy"))?;
            if unused > 0 {
                repairs.push(format!("removed {unused} files of values that nothing names any more"));
            }
        }
        if clean.is_some() {
            let unmark = fs::remove_file(store.dir.join(CLEAN)).and_then(|()| sync_dir(&store.dir));
            unmark.map_err(StoreError::io("open"))?;
        }
        Ok(Shelved { store: Box::new(store), repairs, verified })
    }
}

impl Shelf for SledShelf {
    fn has(&self, name: &str) -> Result<bool, StoreError> {
        self.root.join(name).try_exists().map_err(StoreError::io("look for"))
    }

    fn open(&mut self, name: &str) -> Result<Shelved, StoreError> {
        if !self.has(name)? {
            self.make(name)?;
        }
        // A store of this name is there, so that what is not found now is lost.
        self.open_there(self.root.join(name)).map_err(damaged_where_cut)
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), StoreError> {
        let renamed =
            fs::rename(self.root.join(from), self.root.join(to)).and_then(|()| sync_dir(&self.root));
        renamed.map_err(StoreError::io("move"))
    }

    fn remove(&mut self, name: &str) -> Result<(), StoreError> {
        let dir = self.root.join(name);
        if !dir.exists() {
            return Ok(());
        }
        // Under its name it is whole or gone; what is half deleted has another.
        let half = self.root.join(format!("{name}.gone"));
        let removed = remove_if_there(&half)
            .and_then(|()| fs::rename(&dir, &half))
            .and_then(|()| remove_if_there(&half))
            .and_then(|()| sync_dir(&self.root));
        removed.map_err(StoreError::io("remove"))
    }

    fn put_aside(&mut self, name: &str) -> Result<Option<PathBuf>, StoreError> {
        let (dir, aside) = (self.root.join(name), self.root.join(format!("{name}.damaged")));
        if !dir.exists() {
            return Ok(None);
        }
        let moved = || -> io::Result<()> {
            // One is kept: the newest is what somebody may want to look at.
            remove_if_there(&aside)?;
            fs::rename(&dir, &aside)?;
            sync_dir(&self.root)?;
            end_hang(&aside.join(TREE))
        };
        moved().map_err(StoreError::io("put aside"))?;
        Ok(Some(aside))
    }
}

/// What is missing or cut of a store that is there, is damage: it can be rebuilt, and will not come back by itself.
fn damaged_where_cut(error: StoreError) -> StoreError {
    use io::ErrorKind::{NotADirectory, NotFound, UnexpectedEof};
    match error {
        StoreError::Io { doing, source }
            if matches!(source.kind(), NotFound | NotADirectory | UnexpectedEof) =>
        {
            StoreError::Damaged(format!(
                "a piece of it is missing or cut, so one cannot {doing} it: {source}"
            ))
        }
        error => error,
    }
}

/// Sled locks its file, threads of its own keep it a moment after it is closed, and an opening that was given up
/// for ever. Sled itself would fail at once.
fn wait_for_lock(file: &Path) {
    if let Ok(file) = fs::File::open(file) {
        // Given back at once, for sled to take. Where it cannot be had, sled says why.
        drop(Flock::lock(file, FlockArg::LockExclusive));
    }
}

/// A thread that hangs in the opening reads the file again and again; it finds an end where there is none of it any
/// more. What was in it is kept as a copy.
fn end_hang(tree: &Path) -> io::Result<()> {
    let (file, copy) = (tree.join("db"), tree.join("db.copy"));
    if !file.exists() {
        return Ok(());
    }
    // Its bytes alone: a sandbox may let nobody change a mode.
    io::copy(&mut fs::File::open(&file)?, &mut fs::File::create(&copy)?)?;
    fs::OpenOptions::new().write(true).open(&file)?.set_len(0)
}

/// Removes sled's snapshots, or the half-written ones only.
fn remove_snapshots(dir: &Path, half: bool) -> io::Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(dir.join(TREE))? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && (!half || name.ends_with(".generating")) {
            fs::remove_file(entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn remove_if_there(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn private(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let private = fs::Permissions::from_mode(0o700);
    // So is what a child makes, and a sandbox may let it change no mode.
    if dir.metadata()?.permissions().mode() & 0o777 == private.mode() {
        return Ok(());
    }
    fs::set_permissions(dir, private)
}

/// Syncs all files and directories below, and the directory itself.
fn sync_below(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        match path.is_dir() {
            true => sync_below(&path)?,
            false => fs::File::open(&path)?.sync_all()?,
        }
    }
    sync_dir(dir)
}
