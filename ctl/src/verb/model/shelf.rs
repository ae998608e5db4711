//! The models directory: what lies there, what comes and goes.
//!
//! # Invariants
//!
//! - A model appears whole or not at all: it is written beside its place and
//!   then renamed.
//! - Nothing outside the directory is ever removed; of a link, only the link.

use std::{
    collections::{HashSet, VecDeque},
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink},
    path::{Path, PathBuf},
};

use crate::{
    error::{Failure, Result},
    exit::Exit,
};

/// First bytes of a GGUF file.
pub(super) const MAGIC: &[u8; 4] = b"GGUF";

/// Bytes copied at once, between two looks at the progress bar.
const COPY_BYTES: usize = 4 * 1024 * 1024;

/// Longest name of a model.
const NAME_BYTES_MAX: usize = 100;

/// Directories within the directory, at most: as the llama plugin looks.
const DEPTH_MAX: usize = 8;

/// Files of any kind that are looked at, at most: as the llama plugin looks.
const LOOKS_MAX: usize = 100_000;

/// A model in the directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its name: the path in the directory, without `.gguf`.
    pub(super) name: String,
    /// Its file or link.
    pub(super) path: PathBuf,
    /// Whether it is a link.
    pub(super) link: bool,
    /// Bytes of the file, or of what the link leads to.
    pub(super) size: u64,
}

/// Copies or links a file into `dir`. `progress` hears of bytes done and all.
///
/// # Errors
///
/// Refuses what is no GGUF file, a name that is none, and one that is taken.
pub(super) fn add(
    dir: &Path,
    source: &Path,
    name: Option<&str>,
    link: bool,
    progress: impl FnMut(u64, u64),
) -> Result<Entry> {
    let mut file = File::open(source).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure::not_found("file", &source.display().to_string()),
        _ => Failure::to_file("read", source, &error),
    })?;
    let size = check(&mut file, source)?;
    let name = match name {
        Some(name) => name.to_owned(),
        None => source.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
    };
    check_free(dir, &name)?;
    let path = dir.join(format!("{name}.gguf"));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| Failure::to_file("create", dir, &error))?;
    let part = Part(dir.join(format!(".{name}.{}.part", std::process::id())));
    let written = if link {
        source.canonicalize().and_then(|target| symlink(target, &part.0))
    } else {
        copy(&mut file, &part.0, size, progress)
    };
    let written =
        written.and_then(|()| if link { fs::rename(&part.0, &path) } else { settle(&part.0, &path) });
    written.map_err(|error| Failure::to_file("write", &path, &error))?;
    Ok(Entry { name, path, link, size })
}

/// Refuses a name that cannot be one, or is taken.
pub(super) fn check_free(dir: &Path, name: &str) -> Result<()> {
    check_name(name)?;
    if dir.join(format!("{name}.gguf")).symlink_metadata().is_err() {
        return Ok(());
    }
    let message = format!("a model named `{name}` exists already");
    Err(Failure::new(Exit::Conflict, "conflict", message)
        .hint(format!("choose another name: --name NAME, or remove it: ksi model rm {name}")))
}

/// Gives the copy its name. A hard link fails where somebody was faster, while
/// a rename would replace; but not every file system has hard links.
pub(super) fn settle(part: &Path, path: &Path) -> std::io::Result<()> {
    match fs::hard_link(part, path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => fs::rename(part, path),
        done => done,
    }
}

/// A file on its way, removed where it does not arrive.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        // After a rename there is nothing left to remove.
        let _ = fs::remove_file(&self.0);
    }
}

/// Looks at the first bytes; gives the size.
fn check(file: &mut File, source: &Path) -> Result<u64> {
    let mut magic = [0; MAGIC.len()];
    let meta = file.metadata().map_err(|error| Failure::to_file("read", source, &error))?;
    let read = file.read_exact(&mut magic);
    if !meta.is_file() || read.is_err() || &magic != MAGIC {
        return Err(Failure::usage(format!("{} is no GGUF file", source.display()))
            .hint("models for KSI are files in the GGUF format of llama.cpp"));
    }
    Ok(meta.len())
}

fn check_name(name: &str) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.starts_with('.') && name.bytes().all(allowed)
    {
        return Ok(());
    }
    Err(Failure::usage(format!("`{name}` cannot name a model"))
        .hint("letters, digits, `_`, `-` and `.`: --name NAME"))
}

/// Copies the whole of `file`, its first bytes included, and has it on disk.
fn copy(file: &mut File, to: &Path, size: u64, mut progress: impl FnMut(u64, u64)) -> std::io::Result<()> {
    use std::io::Seek;
    file.rewind()?;
    let mut out = OpenOptions::new().create_new(true).write(true).mode(0o600).open(to)?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut done = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return out.sync_all();
        }
        out.write_all(&buffer[..read])?;
        done += read as u64;
        progress(done, size);
    }
}

/// Finds a model of this name in `dir`.
///
/// # Errors
///
/// Ends with 4 where there is none, and says so where it is built in.
pub(super) fn find(dir: &Path, name: &str) -> Result<Entry> {
    name.split('/').try_for_each(check_name)?;
    let path = dir.join(format!("{name}.gguf"));
    let meta = path.symlink_metadata().map_err(|_| {
        Failure::new(Exit::NotFound, "not_found", format!("no model named `{name}` in {}", dir.display()))
            .hint("only models that were added can be removed; all models: ksi model list")
    })?;
    let size = fs::metadata(&path).map_or(0, |meta| meta.len());
    Ok(Entry { name: name.to_owned(), link: meta.is_symlink(), path, size })
}

/// All models of `dir` and the directories below it, by name. `warn` hears of
/// what was not looked at.
///
/// # Errors
///
/// Fails where `dir` cannot be read; one that is not there is empty.
pub(super) fn all(dir: &Path, warn: impl FnMut(&str)) -> Result<Vec<Entry>> {
    names(dir, files, warn)?.iter().map(|name| find(dir, name)).collect()
}

/// The names of what lies in a directory, as many as are looked at and one more.
fn files(dir: &Path) -> io::Result<Vec<String>> {
    let names = fs::read_dir(dir)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.take(LOOKS_MAX + 1).collect())
}

fn names(
    top: &Path,
    files: impl Fn(&Path) -> io::Result<Vec<String>>,
    mut warn: impl FnMut(&str),
) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let mut looks = 0;
    let mut seen: HashSet<_> = fs::metadata(top).map(|meta| (meta.dev(), meta.ino())).into_iter().collect();
    // The nearest first, as the llama plugin does it: links may lead in a circle.
    let mut dirs = VecDeque::from([(top.to_owned(), String::new(), DEPTH_MAX)]);
    while let Some((dir, prefix, depth)) = dirs.pop_front().filter(|_| looks <= LOOKS_MAX) {
        let mut found = match files(&dir) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) if dir == top => return Err(Failure::to_file("read", &dir, &error)),
            Err(error) => {
                warn(&format!("{} was not looked at: {error}", dir.display()));
                continue;
            }
        };
        looks += found.len();
        found.sort();
        for file in found {
            let path = dir.join(&file);
            match fs::metadata(&path) {
                Ok(meta) if meta.is_dir() => {
                    if depth > 0 && check_name(&file).is_ok() && seen.insert((meta.dev(), meta.ino())) {
                        dirs.push_back((path, format!("{prefix}{file}/"), depth - 1));
                    }
                }
                _ => {
                    let name = file.strip_suffix(".gguf").filter(|name| check_name(name).is_ok());
                    names.extend(name.map(|name| format!("{prefix}{name}")));
                }
            }
        }
    }
    if looks > LOOKS_MAX {
        warn(&format!("{} has more than {LOOKS_MAX} files; not all were looked at", top.display()));
    }
    names.sort();
    Ok(names)
}

/// Whether a model of `dir` may be removed.
///
/// # Errors
///
/// Refuses one that lies behind a link to another directory, or where nobody
/// can tell.
pub(super) fn check_inside(dir: &Path, entry: &Entry) -> Result<()> {
    let resolve = |path: &Path| {
        let unresolved = |error| Failure::to_file("resolve", path, &error);
        path.canonicalize().map_err(|error| {
            unresolved(error)
                .hint(format!("`{}` stays: it may lie outside of the models directory", entry.name))
        })
    };
    let place = resolve(entry.path.parent().unwrap_or(dir))?;
    if place.starts_with(resolve(dir)?) {
        return Ok(());
    }
    let message = format!("`{}` lies outside of the models directory, in {}", entry.name, place.display());
    Err(Failure::usage(message).hint("remove the file there, or the link to its directory"))
}

/// Removes a model of `dir`; of a link, only the link.
///
/// # Errors
///
/// Refuses as [`check_inside`] does; fails where the system does.
pub(super) fn remove(dir: &Path, entry: &Entry) -> Result<()> {
    check_inside(dir, entry)?;
    fs::remove_file(&entry.path).map_err(|error| Failure::to_file("remove", &entry.path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gguf(dir: &Path) -> PathBuf {
        let path = dir.join("some-model.gguf");
        fs::write(&path, [MAGIC.as_slice(), &[7; 100]].concat()).unwrap();
        path
    }

    #[test]
    fn a_copied_model_is_whole_and_leaves_nothing_beside_it() {
        let temp = tempfile::tempdir().unwrap();
        let (source, dir) = (gguf(temp.path()), temp.path().join("models"));
        let mut last = (0, 0);
        let entry = add(&dir, &source, None, false, |done, total| last = (done, total)).unwrap();
        assert_eq!((entry.name.as_str(), entry.link, last), ("some-model", false, (104, 104)));
        assert_eq!(fs::read(&entry.path).unwrap(), fs::read(&source).unwrap());
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        assert_eq!(find(&dir, "some-model").unwrap(), entry);
    }

    #[test]
    fn a_name_that_is_taken_is_a_conflict() {
        let temp = tempfile::tempdir().unwrap();
        let (source, dir) = (gguf(temp.path()), temp.path().join("models"));
        add(&dir, &source, Some("x"), false, |_, _| ()).unwrap();
        assert_eq!(add(&dir, &source, Some("x"), true, |_, _| ()).unwrap_err().exit, Exit::Conflict);
    }

    #[test]
    fn removing_a_link_keeps_what_it_leads_to() {
        let temp = tempfile::tempdir().unwrap();
        let (source, dir) = (gguf(temp.path()), temp.path().join("models"));
        let entry = add(&dir, &source, Some("y"), true, |_, _| ()).unwrap();
        assert!(entry.link && find(&dir, "y").unwrap().link);
        remove(&dir, &entry).unwrap();
        assert!(source.exists());
        assert_eq!(find(&dir, "y").unwrap_err().exit, Exit::NotFound);
    }

    #[test]
    fn models_in_directories_are_found_and_those_behind_links_are_never_removed() {
        let temp = tempfile::tempdir().unwrap();
        let (source, dir) = (gguf(temp.path()), temp.path().join("models"));
        for place in [dir.join("sub/deeper"), dir.join(".hidden"), temp.path().join("elsewhere")] {
            fs::create_dir_all(&place).unwrap();
            fs::copy(&source, place.join("x.gguf")).unwrap();
        }
        fs::copy(&source, dir.join("x.gguf")).unwrap();
        symlink(temp.path().join("elsewhere"), dir.join("more")).unwrap();
        symlink(&dir, dir.join("sub/circle")).unwrap();
        let all = |dir: &Path| all(dir, |warning| panic!("{warning}")).unwrap();
        let names: Vec<String> = all(&dir).into_iter().map(|entry| entry.name).collect();
        assert_eq!(names, ["more/x", "sub/deeper/x", "x"]);
        remove(&dir, &find(&dir, "sub/deeper/x").unwrap()).unwrap();
        let behind = find(&dir, "more/x").unwrap();
        let refused = remove(&dir, &behind).unwrap_err();
        assert!(refused.message.contains("elsewhere"), "{}", refused.message);
        assert!(temp.path().join("elsewhere/x.gguf").exists());
        assert!(all(&temp.path().join("nothing")).is_empty());
        // Where nobody can tell, it stays.
        let refused = remove(&temp.path().join("nothing"), &behind).unwrap_err();
        assert!(refused.message.contains("cannot resolve"), "{}", refused.message);
        assert!(temp.path().join("elsewhere/x.gguf").exists());
    }

    #[test]
    fn a_directory_that_cannot_be_read_is_passed_over_unless_it_is_the_first() {
        let temp = tempfile::tempdir().unwrap();
        for place in ["sub", "lost+found", "shut"] {
            fs::create_dir(temp.path().join(place)).unwrap();
        }
        gguf(temp.path());
        gguf(&temp.path().join("sub"));
        let mut warnings = Vec::new();
        let read = |shut: &'static str| {
            move |dir: &Path| match dir.ends_with(shut) {
                true => Err(io::ErrorKind::PermissionDenied.into()),
                false => files(dir),
            }
        };
        let found = names(temp.path(), read("shut"), |warning| warnings.push(warning.to_owned())).unwrap();
        assert_eq!(found, ["some-model", "sub/some-model"]);
        assert!(warnings.len() == 1 && warnings[0].contains("shut was not looked at"), "{warnings:?}");
        let top = temp.path().join("sub");
        assert!(names(&top, read("sub"), |_| ()).unwrap_err().message.contains("cannot read"));
    }

    #[test]
    fn a_walk_ends_where_there_is_too_much_and_says_so() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir_all(temp.path().join("a/b")).unwrap();
        gguf(temp.path());
        gguf(&temp.path().join("a/b"));
        let mut warnings = Vec::new();
        let many = |dir: &Path| {
            let mut found = files(dir)?;
            if dir.ends_with("a") {
                found.resize(LOOKS_MAX, "-".to_owned());
            }
            Ok(found)
        };
        let found = names(temp.path(), many, |warning| warnings.push(warning.to_owned())).unwrap();
        assert_eq!(found, ["some-model"]);
        assert!(warnings.len() == 1 && warnings[0].contains("not all were looked at"), "{warnings:?}");
    }

    #[test]
    fn what_is_no_model_is_refused_before_anything_is_written() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("models");
        let text = temp.path().join("notes.gguf");
        fs::write(&text, "hello").unwrap();
        for (source, exit) in [(text.as_path(), 2), (temp.path(), 2), (Path::new("/nowhere.gguf"), 4)] {
            assert_eq!(add(&dir, source, None, false, |_, _| ()).unwrap_err().exit as u8, exit);
        }
        for name in ["../x", "", ".hidden", "a/b"] {
            assert_eq!(
                add(&dir, &gguf(temp.path()), Some(name), false, |_, _| ()).unwrap_err().exit as u8,
                2
            );
            // Models that lie in directories may be found, but are not added.
            let expected = if name == "a/b" { 4 } else { 2 };
            assert_eq!(find(&dir, name).unwrap_err().exit as u8, expected, "{name}");
        }
        assert!(!dir.exists());
    }
}
