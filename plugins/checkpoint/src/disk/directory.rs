//! A directory of the file system.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::{Disk, File, Lock};

/// The name of the file that is locked. It names the process that has it, for
/// people: what counts is the lock.
const LOCK: &str = "lock";

/// A directory of the file system. Files in it are for their owner only.
#[derive(Debug, Clone)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Takes a directory; one that is not there is made. The way to it is durable from then on, whoever made it.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub fn new(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        make(&path, &mut sync_where_possible)?;
        Ok(Self { path })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// Makes a directory where it is not there, and syncs all above it: whoever made them may not have.
fn make(path: &Path, sync: &mut dyn FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    fs::create_dir_all(path)?;
    std::path::absolute(path)?.ancestors().skip(1).try_for_each(sync)
}

/// Syncs a directory, unless it is one that we may not open, or that its file system never syncs.
pub(super) fn sync_where_possible(path: &Path) -> io::Result<()> {
    use io::ErrorKind::{InvalidInput, ReadOnlyFilesystem, Unsupported};
    let Ok(directory) = fs::File::open(path) else { return Ok(()) };
    match directory.sync_all() {
        Err(error) if matches!(error.kind(), InvalidInput | ReadOnlyFilesystem | Unsupported) => Ok(()),
        synced => synced,
    }
}

/// What a lock says of who has it.
fn name() -> String {
    std::process::id().to_string()
}

impl Disk for Directory {
    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn lock(&self) -> io::Result<Box<dyn Lock>> {
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(self.at(LOCK))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                // On a full disk it names nobody, and is held all the same.
                let _ = lock.set_len(0).and_then(|()| lock.write_all_at(name().as_bytes(), 0));
                Ok(Box::new(lock))
            }
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                let _ = (&mut file).take(32).read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => "another process",
                    pid if pid == name() => "this process",
                    pid => &format!("process {pid}"),
                };
                Err(io::Error::new(io::ErrorKind::WouldBlock, format!("it is in use by {holder}")))
            }
            Err((_, errno)) => Err(errno.into()),
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            // A name that is not text is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        let mut options = fs::OpenOptions::new();
        let file = options.create(true).truncate(true).read(true).write(true).mode(0o600);
        Ok(Box::new(file.open(self.at(name))?))
    }

    fn open(&self, name: &str, write: bool) -> io::Result<Box<dyn File>> {
        Ok(Box::new(fs::OpenOptions::new().read(true).write(write).open(self.at(name))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.at(from), self.at(to))
    }

    fn protect(&self, name: &str) -> io::Result<()> {
        match fs::set_permissions(self.at(name), fs::Permissions::from_mode(0o400)) {
            // In a sandbox that lets nobody change modes it stays as it is: there is only us to write it.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            done => done,
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.at(name))
    }

    fn sync(&self) -> io::Result<()> {
        fs::File::open(&self.path)?.sync_all()
    }
}

impl File for fs::File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

impl Lock for Flock<fs::File> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_leads_to_a_directory_is_synced_whoever_made_it() {
        let place = tempfile::tempdir().unwrap();
        let above = [place.path().join("a/b"), place.path().join("a"), place.path().to_owned()];
        for _ in 0..2 {
            let mut synced = Vec::new();
            make(&place.path().join("a/b/c"), &mut |path| {
                synced.push(path.to_owned());
                Ok(())
            })
            .unwrap();
            assert_eq!(synced[..3], above);
            assert_eq!(synced.last().unwrap(), Path::new("/"));
        }
        Directory::new(place.path().join("a/b/c")).unwrap();
    }

    #[test]
    fn what_is_not_to_be_synced_is_no_hindrance() {
        sync_where_possible(Path::new("/proc/self")).unwrap();
        sync_where_possible(Path::new("/none")).unwrap();
    }
}
