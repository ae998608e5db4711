//! The models that there are: one built into the library, and the GGUF files
//! of one directory and those below it.
//!
//! Names come from the paths in it and lead to files only through the listing, so
//! a request can never name a path. Files are looked at again on every
//! request; their headers are read again only when they have changed.

mod scan;

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use ksi_sdk::prelude::{Code, Refusal, json};

use self::scan::Scan;
use crate::gguf::{self, Adapter, Header};

/// Name of the built-in model.
pub const BUILTIN_NAME: &str = "ksi-tiny";
/// The built-in model: a toy of 2.8 million weights that makes everything work
/// without a download. `MODEL.md` beside it says how it was made.
pub(crate) static BUILTIN: &[u8] = include_bytes!("../model/ksi-tiny.gguf");

/// A model file.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its name, unique in the library.
    pub name: String,
    /// Where the file is.
    pub path: PathBuf,
    /// Whether it is the built-in model.
    pub builtin: bool,
    /// Size of the file.
    pub size_bytes: u64,
    /// What its header says, or what is wrong with it.
    pub header: Result<Header, String>,
    /// What it is where it is no model but an adapter, which passes all checks.
    pub adapter: Option<Adapter>,
}

/// A header that was read, and the state of the file at that time.
struct Seen {
    size_bytes: u64,
    modified: Option<SystemTime>,
    header: Result<Header, String>,
    adapter: Option<Adapter>,
}

/// Whether a header is that of the toy. A copy of the built-in model under
/// another name is a toy as well.
#[must_use]
pub fn is_toy(header: &Header) -> bool {
    header.name.as_deref() == Some(BUILTIN_NAME)
}

/// All models that can be asked for.
pub struct Library {
    models_dir: PathBuf,
    builtin: PathBuf,
    /// Whether the built-in model was found to lie there: not before somebody
    /// wants it, since it is megabytes to read.
    placed: Mutex<bool>,
    /// Headers by path, so that a listing does not read every vocabulary
    /// again. Entries of files that are gone are dropped by the next listing.
    seen: Mutex<HashMap<PathBuf, Seen>>,
    /// What the last look at the directory has left out, and why.
    notes: Mutex<Vec<String>>,
}

impl Library {
    /// The models of a directory, and the built-in one, which will lie in
    /// `own_dir`.
    #[must_use]
    pub fn new(models_dir: PathBuf, own_dir: &Path) -> Self {
        let builtin = own_dir.join(format!("{BUILTIN_NAME}.gguf"));
        Self {
            models_dir,
            builtin,
            placed: Mutex::default(),
            seen: Mutex::default(),
            notes: Mutex::default(),
        }
    }

    /// The user's models.
    #[must_use]
    pub fn models_dir(&self) -> &Path {
        &self.models_dir
    }

    /// Every model: the built-in one, then the directory's by name.
    #[must_use]
    pub fn list(&self) -> Vec<Entry> {
        let placed = self.place_builtin();
        let mut builtin = self.entry(BUILTIN_NAME.to_owned(), self.builtin.clone(), true);
        if let Err(error) = placed {
            builtin.header = Err(format!("cannot be written: {error}"));
        }
        let mut entries = vec![builtin];
        for (name, path) in self.files() {
            let mut entry = self.entry(name, path, false);
            if entry.name == BUILTIN_NAME {
                entry.header = Err("has the name of the built-in model; rename the file".to_owned());
            }
            entries.push(entry);
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|path, _| entries.iter().any(|entry| &entry.path == path));
        entries
    }

    /// What the last look at the directory has left out, and why.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The model of this name, with a header that has passed all checks.
    ///
    /// # Errors
    ///
    /// `not_found` with the names that there are; `unavailable` for a file
    /// that is broken, with what is wrong, and where the built-in model cannot
    /// be written.
    pub fn find(&self, name: &str) -> Result<(Entry, Header), Refusal> {
        let found = if name == BUILTIN_NAME {
            self.place_builtin().map_err(|error| self.unwritable(&error))?;
            Some(self.entry(BUILTIN_NAME.to_owned(), self.builtin.clone(), true))
        } else {
            let file = self.files().into_iter().find(|(stem, _)| stem == name);
            file.map(|(stem, path)| self.entry(stem, path, false))
        };
        let Some(entry) = found else { return Err(self.unknown(name)) };
        match entry.header.clone() {
            Ok(header) => Ok((entry, header)),
            Err(error) if entry.adapter.is_some() => {
                Err(broken(name, &error).hint("`ksi model list` shows which files are models"))
            }
            Err(error) => Err(broken(name, &error)),
        }
    }

    /// The adapter of this name, which has passed all checks.
    ///
    /// # Errors
    ///
    /// `not_found`, or `unavailable` with what is wrong with the file.
    pub fn find_adapter(&self, name: &str) -> Result<(Entry, Adapter), Refusal> {
        let Some((_, path)) = self.files().into_iter().find(|(stem, _)| stem == name) else {
            return Err(Refusal::not_found("adapter", name)
                .hint(format!("adapters lie among the models: {}", self.models_dir.display())));
        };
        let entry = self.entry(name.to_owned(), path, false);
        match (entry.adapter.clone(), &entry.header) {
            (Some(adapter), _) => Ok((entry, adapter)),
            (None, Ok(_)) => Err(broken(name, &gguf::Error::NoAdapter.to_string())),
            (None, Err(error)) => Err(broken(name, error)),
        }
    }

    /// Makes sure that the built-in model lies where it should.
    fn place_builtin(&self) -> std::io::Result<()> {
        let mut placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
        if !*placed {
            place(&self.builtin, BUILTIN)?;
            *placed = true;
        }
        Ok(())
    }

    fn unwritable(&self, error: &std::io::Error) -> Refusal {
        let path = self.builtin.display();
        Refusal::new(Code::Unavailable, format!("cannot write the built-in model to {path}: {error}"))
            .hint("look at the disk and the rights of the directory")
    }

    fn unknown(&self, name: &str) -> Refusal {
        let mut known = vec![BUILTIN_NAME.to_owned()];
        known.extend(self.files().into_iter().map(|(stem, _)| stem));
        known.sort();
        known.dedup();
        Refusal::not_found("model", name)
            .hint(format!("known models: {}; `ksi model add PATH.gguf` adds one", known.join(", ")))
            .details(json!({ "known": known }))
    }

    /// Names and paths of the files that look like models, by name.
    fn files(&self) -> Vec<(String, PathBuf)> {
        let Scan { files, notes, .. } = Scan::of(&self.models_dir);
        *self.notes.lock().unwrap_or_else(PoisonError::into_inner) = notes;
        files
    }

    fn entry(&self, name: String, path: PathBuf, builtin: bool) -> Entry {
        let metadata = fs::metadata(&path);
        let size_bytes = metadata.as_ref().map_or(0, fs::Metadata::len);
        let modified = metadata.as_ref().ok().and_then(|metadata| metadata.modified().ok());
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = seen.get(&path).filter(|seen| seen.size_bytes == size_bytes && seen.modified == modified);
        let (header, adapter) = match fresh {
            Some(seen) => (seen.header.clone(), seen.adapter.clone()),
            None => {
                let (header, adapter) = look_at(&path);
                let now = Seen { size_bytes, modified, header: header.clone(), adapter: adapter.clone() };
                seen.insert(path.clone(), now);
                (header, adapter)
            }
        };
        Entry { name, path, builtin, size_bytes, header, adapter }
    }
}

/// The header of a model, or why it is none, and that of an adapter.
fn look_at(path: &Path) -> (Result<Header, String>, Option<Adapter>) {
    match gguf::inspect(path) {
        Err(error @ gguf::Error::Adapter(_)) => match gguf::inspect_adapter(path) {
            Ok(adapter) => (Err(error.to_string()), Some(adapter)),
            Err(error) => (Err(error.to_string()), None),
        },
        inspected => (inspected.map_err(|error| error.to_string()), None),
    }
}

/// The refusal for a file that cannot be used. Not retryable: the file must be
/// replaced first.
pub(crate) fn broken(name: &str, why: &str) -> Refusal {
    let mut refusal = Refusal::new(Code::Unavailable, format!("the file of `{name}` {why}"))
        .hint("get the file again and compare its checksum with the publisher's")
        .details(json!({ "model": name, "error": why }));
    refusal.retryable = false;
    refusal
}

/// Makes `path` hold exactly `content`, never something in between.
fn place(path: &Path, content: &[u8]) -> std::io::Result<()> {
    // Comparing the bytes is stricter than comparing a checksum of them, and
    // takes as long as reading them. A file that cannot be read is replaced.
    let right_size = fs::metadata(path).is_ok_and(|metadata| metadata.len() == content.len() as u64);
    if right_size && fs::read(path).is_ok_and(|bytes| bytes == content) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let unfinished = path.with_extension(format!("{}.part", std::process::id()));
    let mut file = fs::File::create(&unfinished)?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    drop(file);
    if let Err(error) = written.and_then(|()| fs::rename(&unfinished, path)) {
        // The first error is the one to report.
        let _ = fs::remove_file(&unfinished);
        return Err(error);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    fn library() -> (tempfile::TempDir, Library) {
        let dir = tempfile::tempdir().unwrap();
        let library = Library::new(dir.path().join("models"), dir.path());
        (dir, library)
    }

    #[test]
    fn the_built_in_model_is_the_published_one() {
        let digest = Sha256::digest(BUILTIN);
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "d1126049f5719c928a5d9bb9a6c31461e7b03de427dee2c90cd4b10d85001fa9");
        assert!(include_str!("../model/MODEL.md").contains(&hex));
    }

    #[test]
    fn the_built_in_model_is_written_whole_when_it_is_wanted_and_repaired_when_damaged() {
        let (_dir, library) = library();
        assert!(!library.builtin.exists(), "nobody has asked for it");
        library.find(BUILTIN_NAME).unwrap();
        assert_eq!(fs::read(&library.builtin).unwrap(), BUILTIN);
        for damage in [&BUILTIN[..1000], &vec![7; BUILTIN.len()]] {
            fs::write(&library.builtin, damage).unwrap();
            place(&library.builtin, BUILTIN).unwrap();
            assert_eq!(fs::read(&library.builtin).unwrap(), BUILTIN);
        }
        let names: Vec<_> = fs::read_dir(library.builtin.parent().unwrap()).unwrap().flatten().collect();
        assert_eq!(names.len(), 1, "no unfinished file is left: {names:?}");
    }

    #[test]
    fn a_directory_that_cannot_be_written_costs_the_built_in_model_only() {
        let dir = tempfile::tempdir().unwrap();
        let (models_dir, no_directory) = (dir.path().join("models"), dir.path().join("file"));
        fs::write(&no_directory, "").unwrap();
        fs::create_dir(&models_dir).unwrap();
        fs::write(models_dir.join("own.gguf"), BUILTIN).unwrap();
        let library = Library::new(models_dir, &no_directory);
        let refusal = library.find(BUILTIN_NAME).unwrap_err();
        assert_eq!(refusal.code, Code::Unavailable);
        assert!(refusal.message.contains("cannot write the built-in model"), "{refusal}");
        let list = library.list();
        assert!(list[0].header.as_ref().unwrap_err().contains("cannot be written"));
        assert!(library.find("own").is_ok());
    }

    #[test]
    fn the_built_in_model_is_listed_without_a_models_directory() {
        let (_dir, library) = library();
        let list = library.list();
        assert_eq!(list.len(), 1);
        let header = list[0].header.as_ref().unwrap();
        assert_eq!(header.architecture, "llama");
        assert_eq!(header.context_length, 1024);
        assert_eq!(header.quantization, "Q8_0");
        assert_eq!(header.vocabulary, 2048);
        assert!(header.chat_template.as_ref().unwrap().contains("<|im_start|>"));
    }

    #[test]
    fn a_broken_file_is_listed_with_what_is_wrong() {
        let (_dir, library) = library();
        fs::create_dir(&library.models_dir).unwrap();
        fs::write(library.models_dir.join("cut.gguf"), &BUILTIN[..BUILTIN.len() - 10]).unwrap();
        fs::write(library.models_dir.join("copy.gguf"), BUILTIN).unwrap();
        fs::write(library.models_dir.join("ksi-tiny.gguf"), BUILTIN).unwrap();
        fs::write(library.models_dir.join("notes.txt"), "x").unwrap();
        fs::create_dir(library.models_dir.join("folder.gguf")).unwrap();
        let list = library.list();
        let names: Vec<&str> = list.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["ksi-tiny", "copy", "cut", "ksi-tiny"]);
        assert!(list[1].header.is_ok());
        let error = list[2].header.as_ref().unwrap_err();
        assert!(error.contains("truncated: 10 bytes"), "{error}");
        assert!(list[3].header.as_ref().unwrap_err().contains("rename"));
        let refusal = library.find("cut").unwrap_err();
        assert_eq!(refusal.code, Code::Unavailable);
        assert!(!refusal.retryable);
    }

    #[test]
    fn a_model_in_a_directory_below_has_its_path_as_its_name() {
        let (_dir, library) = library();
        fs::create_dir_all(library.models_dir.join("sub")).unwrap();
        for name in ["x", "sub/x", "sub/ksi-tiny"] {
            fs::write(library.models_dir.join(format!("{name}.gguf")), BUILTIN).unwrap();
        }
        let list = library.list();
        let names: Vec<&str> = list.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["ksi-tiny", "sub/ksi-tiny", "sub/x", "x"]);
        assert!(list.iter().all(|entry| entry.header.is_ok()));
        assert_eq!(library.find("sub/x").unwrap().0.path, library.models_dir.join("sub/x.gguf"));
        assert_eq!(library.notes(), Vec::<String>::new());
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let (_dir, library) = library();
        fs::create_dir(&library.models_dir).unwrap();
        let path = library.models_dir.join("new.gguf");
        fs::write(&path, b"nonsense").unwrap();
        assert!(library.find("new").is_err());
        fs::write(&path, BUILTIN).unwrap();
        assert!(library.find("new").is_ok());
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones_and_never_taken_as_a_path() {
        let (dir, library) = library();
        let path = dir.path().join("ksi-tiny").display().to_string();
        for name in ["nope", "../ksi-tiny", "sub/../x", "", ".", path.as_str()] {
            let refusal = library.find(name).unwrap_err();
            assert_eq!(refusal.code, Code::NotFound, "{name}");
            assert!(refusal.hint.contains("ksi-tiny"));
        }
    }
}
