//! What `doctor --fix` does: only what cannot do harm, because nothing is lost
//! by it and nobody who is in the right is shut out.

use std::{
    fmt, fs, io,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
        net::UnixStream,
    },
    path::PathBuf,
};

/// One repair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Repair {
    /// Makes a directory that only its owner can use.
    MakeDir(PathBuf),
    /// Sets the mode of what is ours.
    Chmod(PathBuf, u32),
    /// Removes a socket that nobody answers on.
    RemoveSocket(PathBuf),
    /// Removes a file that a write has left half done.
    RemovePart(PathBuf),
    /// Gives a file another name beside it, that nothing has yet.
    MoveAway(PathBuf),
}

impl Repair {
    /// Does it.
    ///
    /// # Errors
    ///
    /// Where the system does not let it, or things are no longer as they were
    /// when they were looked at.
    pub(super) fn make(&self) -> io::Result<()> {
        match self {
            Self::MakeDir(path) => fs::DirBuilder::new().recursive(true).mode(0o700).create(path),
            Self::Chmod(path, mode) => fs::set_permissions(path, fs::Permissions::from_mode(*mode)),
            Self::RemoveSocket(path) => match is_deserted(path) {
                true => fs::remove_file(path),
                false => Err(io::Error::other("somebody answers there now")),
            },
            Self::RemovePart(path) => fs::remove_file(path),
            Self::MoveAway(path) => {
                let aside = aside(path);
                // Looked at first, since a rename takes the place of what is there.
                if aside.symlink_metadata().is_ok() {
                    return Err(io::Error::other(format!("{} is there already", aside.display())));
                }
                fs::rename(path, aside)
            }
        }
    }
}

fn aside(path: &std::path::Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".old");
    name.into()
}

/// Whether this is a socket that nobody answers on.
pub(super) fn is_deserted(path: &std::path::Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    is_socket && UnixStream::connect(path).is_err_and(|error| refused(&error))
}

/// As a command that does the same.
impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MakeDir(path) => write!(f, "mkdir -p -m 700 {}", path.display()),
            Self::Chmod(path, mode) => write!(f, "chmod {mode:o} {}", path.display()),
            Self::RemoveSocket(path) | Self::RemovePart(path) => write!(f, "rm {}", path.display()),
            Self::MoveAway(path) => write!(f, "mv {} {}", path.display(), aside(path).display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn only_a_socket_that_nobody_answers_on_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let remove = Repair::RemoveSocket(path.clone());
        let listener = UnixListener::bind(&path).unwrap();
        assert!(remove.make().is_err() && path.exists(), "it is answered");
        drop(listener);
        remove.make().unwrap();
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        assert!(remove.make().is_err() && path.exists(), "it is no socket");
    }

    #[test]
    fn what_is_moved_away_takes_the_place_of_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        fs::write(&path, "first").unwrap();
        let repair = Repair::MoveAway(path.clone());
        repair.make().unwrap();
        fs::write(&path, "second").unwrap();
        assert!(repair.make().is_err());
        assert_eq!(fs::read_to_string(dir.path().join("s.sock.old")).unwrap(), "first");
        assert_eq!(fs::read_to_string(&path).unwrap(), "second");
    }
}
