//! Exports, on their way from the daemon's directory to where somebody wants them.
//!
//! The daemon writes where it alone decides. What leads from there is done here,
//! with the rights of whoever runs this command and no others.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use crate::{
    error::{Failure, Result},
    exit::Exit,
};

/// Where an export is wanted. Nothing is there, unless somebody is faster.
pub(super) struct Wanted(PathBuf);

impl Wanted {
    /// # Errors
    ///
    /// Ends with 6 where something is there.
    pub(super) fn at(path: &Path) -> Result<Self> {
        if path.file_name().is_none() {
            return Err(Failure::usage(format!("{} names no file", path.display())));
        }
        let path = std::path::absolute(path).map_err(|error| Failure::to_file("find", path, &error))?;
        // A link that leads nowhere is there, too.
        if path.symlink_metadata().is_ok() { Err(taken(&path)) } else { Ok(Self(path)) }
    }

    /// Moves the daemon's file there; what has its place is left alone. Where it is then.
    ///
    /// # Errors
    ///
    /// Says where the export lies.
    pub(super) fn fetch(&self, made: &Path) -> Result<String> {
        let lies = |failure: Failure| failure.hint(format!("the export itself is made: {}", made.display()));
        let file = File::open(made).map_err(|error| lies(Failure::to_file("read", made, &error)))?;
        let moved = put(made, file, &self.0).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => taken(&self.0),
            _ => Failure::to_file("write", &self.0, &error),
        });
        moved.map_err(lies)?;
        // What cannot be removed is only space.
        let _ = fs::remove_file(made);
        Ok(self.0.display().to_string())
    }
}

fn taken(path: &Path) -> Failure {
    Failure::new(Exit::Conflict, "conflict", format!("{} is there already", path.display()))
        .hint("an export never overwrites: give another path")
}

/// Gives the file a name that it does not have yet, durably.
fn put(made: &Path, file: File, path: &Path) -> io::Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent)?;
    match fs::hard_link(made, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
        // It is another file system, or one without links.
        Err(_) => copy(file, path)?,
        Ok(()) => {}
    }
    File::open(parent)?.sync_all()
}

/// Copies it into a new file, for its owner only.
fn copy(mut file: File, path: &Path) -> io::Result<()> {
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let copied = io::copy(&mut file, &mut out).and_then(|_| out.sync_all());
    copied.inspect_err(|_| {
        // It is ours, and not whole.
        let _ = fs::remove_file(path);
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn made(dir: &Path) -> PathBuf {
        let made = dir.join("made");
        fs::write(&made, "export").unwrap();
        made
    }

    #[test]
    fn an_export_is_moved_into_directories_that_are_not_there_yet() {
        let dir = tempfile::tempdir().unwrap();
        let (made, path) = (made(dir.path()), dir.path().join("a/b/out"));
        assert_eq!(Wanted::at(&path).unwrap().fetch(&made).unwrap(), path.display().to_string());
        assert_eq!(fs::read(&path).unwrap(), b"export");
        assert!(!made.exists());
    }

    #[test]
    fn what_is_there_is_left_alone_whenever_it_came() {
        let dir = tempfile::tempdir().unwrap();
        let (made, file, link) = (made(dir.path()), dir.path().join("file"), dir.path().join("link"));
        let wanted = [&file, &link].map(|path| Wanted::at(path).unwrap());
        fs::write(&file, "old").unwrap();
        symlink(dir.path().join("nowhere"), &link).unwrap();
        for (wanted, path) in wanted.iter().zip([&file, &link]) {
            let failure = wanted.fetch(&made).unwrap_err();
            assert!(failure.exit == Exit::Conflict && failure.hint.contains("made"), "{failure:?}");
            assert_eq!(Wanted::at(path).err().map(|failure| failure.exit), Some(Exit::Conflict));
            assert_eq!(
                copy(File::open(&made).unwrap(), path).unwrap_err().kind(),
                io::ErrorKind::AlreadyExists
            );
        }
        assert_eq!((fs::read(&file).unwrap(), fs::read(&made).unwrap()), (b"old".into(), b"export".into()));
        assert!(!dir.path().join("nowhere").exists());
    }

    #[test]
    fn a_copy_is_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let (made, path) = (made(dir.path()), dir.path().join("out"));
        copy(File::open(made).unwrap(), &path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"export");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_path_without_a_name_and_an_export_that_is_elsewhere_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Wanted::at(Path::new("/")).err().map(|failure| failure.exit), Some(Exit::Usage));
        let path = dir.path().join("out");
        let failure = Wanted::at(&path).unwrap().fetch(Path::new("/nowhere/x")).unwrap_err();
        assert!(failure.message.contains("/nowhere/x") && !path.exists(), "{failure:?}");
    }
}
