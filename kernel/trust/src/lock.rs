//! A lock file: which files may be loaded, by name, size and digest, signed as
//! a whole.
//!
//! `models.lock` and `plugins.lock` are TOML; the signature lies beside them
//! with `.minisig` appended, as the minisign tool expects. A lock names its
//! kind, so that one cannot stand in for the other where both have one key.
//!
//! # Invariants
//!
//! * A [`Lock`] that was opened with [`Lock::open`] is word for word what the
//!   holder of the key has signed. The text is not looked at before the
//!   signature has been verified.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{Digest, Key, Unverified};

/// Version of the form.
const VERSION: u32 = 1;
/// What every lock begins with.
const PREFACE: &str = "# The files that KSI may load where signatures are required. Signed beside it, in .minisig;\n\
    # do not edit: `ksi model sign` and `ksi plugin sign` write it.\n\n";
/// Largest text that is looked at: some ten thousand files.
const LOCK_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What the files of a lock are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// GGUF files.
    Models,
    /// Libraries of plugins.
    Plugins,
}

impl Kind {
    /// As it is written in a lock, and as its file and keys are named.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Models => "models",
            Self::Plugins => "plugins",
        }
    }

    /// Whether a file can be known by this name: a model by its path in the models
    /// directory, a library by the last part of its path.
    fn names(self, file: &str) -> bool {
        let sound = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
        match self {
            Self::Models => file.split('/').all(sound),
            Self::Plugins => !file.contains('/') && sound(file),
        }
    }

    /// The command that signs such a file.
    #[must_use]
    pub fn sign_command(self) -> &'static str {
        match self {
            Self::Models => "ksi model sign",
            Self::Plugins => "ksi plugin sign",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The name under which users know it: that of the model or the plugin.
    pub name: String,
    /// Size, bytes.
    pub size: u64,
    /// Digest of all its bytes.
    pub sha256: Digest,
    /// When it was signed, RFC 3339.
    pub signed: String,
}

/// The files that may be loaded: models by their paths in the models directory,
/// libraries by the last part of theirs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    version: u32,
    /// What they are.
    pub kind: Kind,
    /// By file name; that of a model has the directories in it.
    #[serde(default)]
    pub files: BTreeMap<String, Entry>,
}

/// Why the lock of a file is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct Unusable {
    /// The lock.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: LockError,
}

/// Why a lock is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// There is no lock, or no signature beside it.
    #[error("there is no {0}")]
    Absent(&'static str),
    /// The system does not let it be read.
    #[error("the {what} cannot be read: {why}")]
    Unreadable {
        /// The lock or its signature.
        what: &'static str,
        /// In the system's words.
        why: String,
    },
    /// It is absurdly large.
    #[error("it is larger than {LOCK_BYTES_MAX} bytes")]
    TooLarge,
    /// Its signature is not what it should be.
    #[error(transparent)]
    Unverified(#[from] Unverified),
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Form(String),
    /// A release that this one does not know has written it.
    #[error("it is of version {0}, this KSI reads version {VERSION}")]
    Version(u32),
    /// It is about something else.
    #[error("it is a lock of {0}")]
    Kind(Kind),
}

/// Why a file may not be loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mistrust {
    /// The lock does not name it.
    #[error("{file} is not signed: its digest is {found}, and {kind}.lock does not list it")]
    Unlisted {
        /// Which lock.
        kind: Kind,
        /// Name of the file.
        file: String,
        /// Its digest.
        found: Digest,
    },
    /// The lock names other bytes.
    #[error("{file} is not what was signed: its digest is {found}, {kind}.lock expects {expected}")]
    Other {
        /// Which lock.
        kind: Kind,
        /// Name of the file.
        file: String,
        /// Its digest.
        found: Digest,
        /// The one that was signed.
        expected: Digest,
    },
}

impl Lock {
    /// A lock without files.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self { version: VERSION, kind, files: BTreeMap::new() }
    }

    /// Reads a lock and the signature beside it, that of the key's holder.
    ///
    /// # Errors
    ///
    /// Says why it is not believed.
    pub fn load(kind: Kind, path: &Path, key: &Key) -> Result<Self, Unusable> {
        let opened = read("lock", path).and_then(|text| {
            let signature = read("signature", &signature_path(path))?;
            Self::open(kind, &text, &signature, key)
        });
        opened.map_err(|why| Unusable { path: path.to_owned(), why })
    }

    /// Reads a lock that the holder of the key has signed.
    ///
    /// # Errors
    ///
    /// Says why it is not believed.
    pub fn open(kind: Kind, text: &str, signature: &str, key: &Key) -> Result<Self, LockError> {
        if text.len() > LOCK_BYTES_MAX {
            return Err(LockError::TooLarge);
        }
        key.verify(text.as_bytes(), signature)?;
        let lock = Self::parse(text)?;
        if lock.kind != kind {
            return Err(LockError::Kind(lock.kind));
        }
        Ok(lock)
    }

    /// Reads a lock without looking at a signature: for whoever is about to
    /// sign it anew, or only shows it.
    ///
    /// # Errors
    ///
    /// Where it is none.
    pub fn parse(text: &str) -> Result<Self, LockError> {
        if text.len() > LOCK_BYTES_MAX {
            return Err(LockError::TooLarge);
        }
        let mut lock: Self =
            toml::from_str(text).map_err(|error| LockError::Form(error.message().to_owned()))?;
        if lock.version != VERSION {
            return Err(LockError::Version(lock.version));
        }
        if let Some(file) = lock.files.keys().find(|file| !lock.kind.names(file)) {
            return Err(LockError::Form(format!("`{file}` is no name of a file")));
        }
        lock.put_in_directories();
        Ok(lock)
    }

    /// Puts models into the directories that their names tell of. Locks once had the
    /// last part of a path for each, whatever its directory.
    fn put_in_directories(&mut self) {
        let kind = self.kind;
        let place = |file: &str, entry: &Entry| {
            let (dir, _) = entry.name.rsplit_once('/').filter(|_| !file.contains('/'))?;
            Some(format!("{dir}/{file}")).filter(|place| kind.names(place))
        };
        for (file, entry) in std::mem::take(&mut self.files) {
            let file = place(&file, &entry).unwrap_or(file);
            self.files.entry(file).or_insert(entry);
        }
    }

    /// The text that is signed.
    #[must_use]
    pub fn to_text(&self) -> String {
        let table = toml::to_string(self).expect("texts, numbers and tables have a form in TOML");
        format!("{PREFACE}{table}")
    }

    /// Whether these bytes may be loaded under this name.
    ///
    /// # Errors
    ///
    /// Names the digest that was found and, where there is one, the one that
    /// was signed.
    pub fn check(&self, file: &str, size: u64, found: Digest) -> Result<(), Mistrust> {
        let (kind, file) = (self.kind, file.to_owned());
        match self.files.get(&file) {
            Some(entry) if entry.sha256 == found && entry.size == size => Ok(()),
            Some(entry) => Err(Mistrust::Other { kind, file, found, expected: entry.sha256 }),
            None => Err(Mistrust::Unlisted { kind, file, found }),
        }
    }
}

/// Where the signature of a lock lies: beside it, as minisign expects.
#[must_use]
pub fn signature_path(lock: &Path) -> PathBuf {
    let mut path = lock.as_os_str().to_owned();
    path.push(".minisig");
    path.into()
}

/// A text of bounded size.
fn read(what: &'static str, path: &Path) -> Result<String, LockError> {
    let mut text = String::new();
    let read =
        File::open(path).and_then(|file| file.take(LOCK_BYTES_MAX as u64 + 1).read_to_string(&mut text));
    match read {
        Ok(_) if text.len() > LOCK_BYTES_MAX => Err(LockError::TooLarge),
        Ok(_) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(LockError::Absent(what)),
        Err(error) => Err(LockError::Unreadable { what, why: error.to_string() }),
    }
}

#[cfg(test)]
mod tests;
