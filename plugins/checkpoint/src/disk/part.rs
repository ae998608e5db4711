//! A file in somebody else's directory: under a name of its own until it is whole.
//!
//! # Invariants
//!
//! - Nothing that is there is changed or replaced, whoever made it and whenever it came.
//! - What is not put in its place is removed, unless a crash comes first.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::directory::sync_where_possible;

const PREFIX: &str = ".ksi-export-";
const SUFFIX: &str = ".new";

/// A file that is being written, for its owner only.
pub struct Part {
    path: PathBuf,
    file: fs::File,
}

impl Part {
    /// Makes one beside the file that it is to become.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub fn beside(path: &Path) -> io::Result<Self> {
        let path = path.with_file_name(format!("{PREFIX}{}{SUFFIX}", uuid::Uuid::now_v7()));
        // A new file is made, or none; a link is not followed.
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { path, file })
    }

    /// Where it is written.
    pub fn file(&self) -> &fs::File {
        &self.file
    }

    /// Gives it its name, durably.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` where something has that name, else what the system said.
    pub fn place(self, path: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        match fs::hard_link(&self.path, path) {
            // A file system that has no links: the name is taken first, and is ours then.
            Err(error) if is_refused(&error) => self.take(path)?,
            linked => linked?,
        }
        drop(self);
        sync_where_possible(path.parent().unwrap_or(path))
    }

    fn take(&self, path: &Path) -> io::Result<()> {
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        fs::rename(&self.path, path).inspect_err(|_| {
            // The name was ours, and nothing is in it.
            let _ = fs::remove_file(path);
        })
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Where it has taken its name it is not there any more; else nobody could do more about it.
        let _ = fs::remove_file(&self.path);
    }
}

fn is_refused(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported)
}

/// Removes from a directory of our own what a crash left half written. Only while nobody writes there.
///
/// # Errors
///
/// What the system said.
pub fn remove_parts(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX)) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        os::unix::fs::{PermissionsExt, symlink},
    };

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    fn part(path: &Path) -> Part {
        let part = Part::beside(path).unwrap();
        part.file().write_all(b"new").unwrap();
        part
    }

    #[test]
    fn what_is_there_is_neither_replaced_nor_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "old").unwrap();
        symlink(dir.path().join("nowhere"), &link).unwrap();
        for taken in [&file, &link] {
            // It came after the part was begun.
            let refused = part(taken).place(taken).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
            let refused = part(taken).take(taken).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        }
        assert_eq!(fs::read(&file).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["file", "link"]);
    }

    #[test]
    fn what_is_whole_has_its_name_alone_and_is_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let (placed, taken) = (dir.path().join("placed"), dir.path().join("taken"));
        part(&placed).place(&placed).unwrap();
        part(&taken).take(&taken).unwrap();
        for path in [&placed, &taken] {
            assert_eq!(fs::read(path).unwrap(), b"new");
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(names(dir.path()), ["placed", "taken"]);
    }

    #[test]
    fn what_a_crash_left_goes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("export.new");
        fs::write(&file, "kept").unwrap();
        std::mem::forget(part(&file));
        assert_eq!(names(dir.path()).len(), 2);
        remove_parts(dir.path()).unwrap();
        assert_eq!(names(dir.path()), ["export.new"]);
        remove_parts(&dir.path().join("none")).unwrap();
    }
}
