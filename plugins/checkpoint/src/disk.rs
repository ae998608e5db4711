//! The disk as the journal sees it: one flat directory of files.
//!
//! Behind a trait, so that the tests can lose power at every step. It knows
//! nothing of records. Real files are in `disk/directory.rs`, the simulated
//! disk in `disk/sim.rs`.
//!
//! # Invariants
//!
//! - What was written is on the disk only after `sync` of the file returned
//!   without an error; a name is there only after `sync` of the directory.
//! - After a `sync` that failed, nothing is known of what was written before
//!   it; whoever asks again is told a lie. So nobody asks again.

mod directory;
mod part;
#[cfg(test)]
pub mod sim;

use std::{
    io,
    time::{Duration, Instant},
};

pub use self::{
    directory::Directory,
    part::{Part, remove_parts},
};

/// A flat directory.
pub trait Disk: Send + Sync {
    /// Where it is, for messages.
    fn place(&self) -> String;

    /// Takes the lock of the directory, which is free again when the returned
    /// value is dropped, or the process dies.
    ///
    /// # Errors
    ///
    /// `WouldBlock` where somebody else has it, with the words who.
    fn lock(&self) -> io::Result<Box<dyn Lock>>;

    /// Names of all files, in no order.
    ///
    /// # Errors
    ///
    /// What the system said; so everywhere here.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes an empty file, to be read and written. What had the name is gone.
    fn create(&self, name: &str) -> io::Result<Box<dyn File>>;

    /// Opens a file, to be read and written, or to be read only.
    fn open(&self, name: &str, write: bool) -> io::Result<Box<dyn File>>;

    /// Gives a file another name; what had that name is gone.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Takes the right to write from everybody.
    fn protect(&self, name: &str) -> io::Result<()>;

    /// Deletes a file. Whoever has it open still reads it.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes names durable: what was created, renamed and removed before.
    fn sync(&self) -> io::Result<()>;
}

/// An open file.
pub trait File: Send + Sync {
    /// Length in bytes.
    fn length(&self) -> io::Result<u64>;

    /// Fills the buffer from a position.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` where the file ends before.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all the bytes at a position.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes content and length durable (`fdatasync`).
    fn sync(&self) -> io::Result<()>;
}

/// A lock that is held as long as it lives.
pub trait Lock: Send + Sync {}

/// How long whoever has a lock is usually waited for, and how often it is looked.
pub const PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);

/// Takes the lock of a directory. Whoever has just been given up or killed, in
/// this process or another, lets it go in a moment.
///
/// # Errors
///
/// Those of [`Disk::lock`].
pub fn lock(disk: &dyn Disk, patience: Duration) -> io::Result<Box<dyn Lock>> {
    lock_pausing(disk, patience, || std::thread::park_timeout(LOOK))
}

/// [`lock`] with what is done between two looks.
fn lock_pausing(disk: &dyn Disk, patience: Duration, mut pause: impl FnMut()) -> io::Result<Box<dyn Lock>> {
    let until = Instant::now() + patience;
    loop {
        match disk.lock() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {
                pause();
            }
            locked => return locked,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{sim::SimDisk, *};

    #[test]
    fn whoever_has_the_lock_is_waited_for() {
        let disk = SimDisk::default();
        let mut held = Some(disk.lock().unwrap());
        let mut looked = 0;
        let lock = lock_pausing(&disk, PATIENCE, || {
            looked += 1;
            drop(held.take());
        });
        assert!(lock.is_ok());
        assert_eq!(looked, 1);
        let refused = lock_pausing(&disk, Duration::ZERO, || looked += 1).map(drop).unwrap_err();
        assert_eq!((refused.kind(), looked), (io::ErrorKind::WouldBlock, 1));
    }
}
