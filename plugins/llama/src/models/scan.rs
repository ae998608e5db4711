//! The files in a directory that look like models, and in those below it.
//!
//! Links are followed, to directories as well, which is how models may lie in
//! several places. A directory that was seen is not looked at again, so links
//! may lead in a circle. What is hidden is passed over.

use std::collections::{HashSet, VecDeque};
use std::fs;
use std::io::Error;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Most models that are known.
const FILES_MAX: usize = 1000;
/// Most files of any kind that are looked at.
const LOOKS_MAX: usize = 100_000;
/// Directories within directories, at most.
const DEPTH_MAX: usize = 8;

/// What helps where a link in the directory cannot be followed.
const START_ANEW: &str =
    "; where links lead is granted when the plugin starts, if something is there: ksi plugin restart llama";
/// What helps where a link further down cannot be followed.
const GRANT: &str =
    "; where links further down lead must be granted, if something is there: plugins.llama.sandbox.read";

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Names and paths, by name. A name is the path in the directory without
    /// `.gguf`.
    pub(super) files: Vec<(String, PathBuf)>,
    /// What was not looked at, and why.
    pub(super) notes: Vec<String>,
    seen: HashSet<(u64, u64)>,
    looks: usize,
    /// Whether some directories are too far down.
    deep: bool,
    /// What cannot be looked at, and why.
    unseen: Vec<(PathBuf, Error)>,
}

impl Scan {
    /// Looks at a directory. One that is not there holds no models.
    pub(super) fn of(dir: &Path) -> Self {
        let mut scan = Self::default();
        let Ok(metadata) = fs::metadata(dir) else { return scan };
        scan.seen.insert((metadata.dev(), metadata.ino()));
        // The nearest first, so that what is there twice has the shorter name.
        let mut dirs = VecDeque::from([(dir.to_owned(), String::new(), DEPTH_MAX)]);
        while let Some((dir, prefix, depth)) = dirs.pop_front().filter(|_| scan.looks <= LOOKS_MAX) {
            scan.look(&dir, &prefix, depth, &mut dirs);
        }
        scan.files.sort();
        scan.sum_up(dir);
        scan
    }

    fn look(
        &mut self,
        dir: &Path,
        prefix: &str,
        depth: usize,
        dirs: &mut VecDeque<(PathBuf, String, usize)>,
    ) {
        let read = match fs::read_dir(dir) {
            Ok(read) => read,
            Err(error) => return self.unseen.push((dir.to_owned(), error)),
        };
        let mut paths: Vec<PathBuf> = read.flatten().map(|entry| entry.path()).take(LOOKS_MAX + 1).collect();
        paths.sort();
        self.looks += paths.len();
        for path in paths {
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(name) = name.filter(|name| !name.starts_with('.')) else { continue };
            let metadata = match fs::metadata(&path) {
                Ok(metadata) => metadata,
                Err(error) => {
                    if may_hold_models(name) {
                        self.unseen.push((path, error));
                    }
                    continue;
                }
            };
            if metadata.is_dir() {
                match depth.checked_sub(1) {
                    None => self.deep = true,
                    Some(depth) if self.seen.insert((metadata.dev(), metadata.ino())) => {
                        dirs.push_back((path.clone(), format!("{prefix}{name}/"), depth));
                    }
                    Some(_) => {}
                }
            } else if let Some(stem) = name.strip_suffix(".gguf").filter(|_| metadata.is_file()) {
                self.files.push((format!("{prefix}{stem}"), path.clone()));
            }
        }
    }

    /// Leaves out what is too much, and says so.
    fn sum_up(&mut self, top: &Path) {
        let dir = top.display();
        if self.looks > LOOKS_MAX {
            self.notes.push(format!("{dir} has more than {LOOKS_MAX} files; not all were looked at"));
        }
        if self.deep {
            let note = format!("{dir} has directories more than {DEPTH_MAX} deep; they were not looked at");
            self.notes.push(note);
        }
        for remedy in [START_ANEW, GRANT, ""] {
            let mut unseen = self.unseen.iter().filter(|(path, _)| remedy_for(top, path) == remedy);
            let Some((path, error)) = unseen.next() else { continue };
            let more = match unseen.count() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            self.notes.push(format!("{}{more} cannot be looked at: {error}{remedy}", path.display()));
        }
        if self.files.len() > FILES_MAX {
            let (count, last) = (self.files.len(), &self.files[FILES_MAX - 1].0);
            let note =
                format!("{dir} has {count} models; the first {FILES_MAX} by name are known, up to `{last}`");
            self.notes.push(note);
            self.files.truncate(FILES_MAX);
        }
    }
}

/// Whether something of this name may be a model or a directory of models, such
/// as `data` or `qwen-2.5`, and not `notes.txt`.
fn may_hold_models(name: &str) -> bool {
    let is_word = |ending: &str| ending.starts_with(|c: char| c.is_ascii_alphabetic());
    name.ends_with(".gguf") || !name.rsplit_once('.').is_some_and(|(_, ending)| is_word(ending))
}

/// What helps where this cannot be looked at; empty where it is no link.
fn remedy_for(top: &Path, path: &Path) -> &'static str {
    match path.is_symlink() && path != top {
        true if path.parent() == Some(top) => START_ANEW,
        true => GRANT,
        false => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn names(dir: &Path) -> Vec<String> {
        Scan::of(dir).files.into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn models_are_found_in_directories_and_behind_links_and_each_directory_once() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let write = |path: PathBuf| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        };
        for file in ["b.gguf", "sub/a.gguf", "sub/deeper/c.d.gguf", ".hidden/x.gguf", ".x.gguf", "notes.txt"]
        {
            write(dir.path().join(file));
        }
        write(elsewhere.path().join("big.gguf"));
        symlink(elsewhere.path(), dir.path().join("more")).unwrap();
        // One that leads in a circle, and one that leads nowhere.
        symlink(dir.path().join("sub"), dir.path().join("sub/deeper/loop")).unwrap();
        symlink(dir.path().join("sub/deeper"), dir.path().join("a-deeper")).unwrap();
        symlink("/nowhere.gguf", dir.path().join("gone.gguf")).unwrap();
        assert_eq!(names(dir.path()), ["a-deeper/c.d", "b", "more/big", "sub/a"]);
        let notes = Scan::of(dir.path()).notes;
        assert!(notes.len() == 1 && notes[0].contains("gone.gguf cannot be looked at"), "{notes:?}");
        assert!(names(&dir.path().join("nothing")).is_empty());
    }

    #[test]
    fn what_cannot_be_looked_at_is_told_with_what_helps() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        for link in ["gone.gguf", "data", "qwen-2.5", "notes.txt", "sub/deep.gguf", "sub/old.bak"] {
            symlink("/nowhere", dir.path().join(link)).unwrap();
        }
        let notes = Scan::of(dir.path()).notes;
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert!(
            notes[0].contains("data and 2 more") && notes[0].ends_with("ksi plugin restart llama"),
            "{notes:?}"
        );
        assert!(notes[1].contains("sub/deep.gguf cannot") && notes[1].ends_with("sandbox.read"), "{notes:?}");
        // A file in the place of the directory is no link that leads nowhere.
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let notes = Scan::of(&file).notes;
        assert!(notes.len() == 1 && !notes[0].contains(';'), "{notes:?}");
    }

    #[test]
    fn a_circle_to_the_directory_itself_ends() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.gguf"), "").unwrap();
        symlink(dir.path(), dir.path().join("self")).unwrap();
        assert_eq!(names(dir.path()), ["a"]);
    }

    #[test]
    fn what_is_not_looked_at_is_told() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..=FILES_MAX {
            fs::write(dir.path().join(format!("m{number:04}.gguf")), "").unwrap();
        }
        let deep = dir.path().join("d/".repeat(DEPTH_MAX));
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("a.gguf"), "").unwrap();
        let scan = Scan::of(dir.path());
        assert_eq!(scan.files.len(), FILES_MAX);
        assert!(scan.files[0].0.starts_with("d/d/"), "as deep as is allowed");
        assert!(scan.notes[0].contains("1002 models") && scan.notes[0].contains("m0998"), "{:?}", scan.notes);
        fs::create_dir(deep.join("d")).unwrap();
        assert!(Scan::of(dir.path()).notes[0].contains("8 deep"));
    }
}
