//! Models where signatures are required: what is loaded is what was signed.
//!
//! A file is opened once. Its digest is taken from that descriptor and compared
//! with `models.lock`, its header is read from it, and llama.cpp is given it
//! under `/proc/self/fd`, so that nothing can be put in its place in between.
//! The built-in model needs no entry: it is a part of this library, and is
//! compared with it.
//!
//! The lock is read and its signature verified at every load, so a model that
//! was just signed can be loaded. Digests are remembered while files do not
//! change.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use ksi_sdk::prelude::{CancelToken, Code, Refusal, json};
use ksi_sdk::trust::{Digest, Digests, Key, Kind, Lock, is_guarded};

use crate::config::Config;
use crate::gguf::{self, Adapter, Header};
use crate::models::{BUILTIN, Entry, broken};
use crate::tuning::Lora;

/// The name of the lock, which lies among the models.
const LOCK: &str = "models.lock";

/// A model's file, as it may be loaded.
#[derive(Debug)]
pub struct Source {
    /// A path to exactly the file that was checked.
    pub path: PathBuf,
    /// Its header.
    pub header: Header,
    /// Adapters that are laid over it.
    pub adapters: Vec<Overlay>,
    /// Holds the file for as long as `path` is needed.
    _file: Option<File>,
}

/// An adapter's file, as it may be loaded, and how much of it is wanted.
#[derive(Debug)]
pub struct Overlay {
    /// What the configuration says.
    pub lora: Lora,
    /// A path to exactly the file that was checked.
    pub path: PathBuf,
    /// Its header.
    pub adapter: Adapter,
    /// Holds the file for as long as `path` is needed.
    _file: Option<File>,
}

impl Overlay {
    /// The file as it is found under its path, whoever wrote it.
    #[must_use]
    pub fn unchecked(lora: Lora, entry: Entry, adapter: Adapter) -> Self {
        Self { lora, path: entry.path, adapter, _file: None }
    }
}

impl Source {
    /// The file as it is found under its path, whoever wrote it.
    #[must_use]
    pub fn unchecked(entry: Entry, header: Header) -> Self {
        Self { path: entry.path, header, adapters: Vec::new(), _file: None }
    }

    /// Bytes of its adapters.
    #[must_use]
    pub fn adapter_bytes(&self) -> u64 {
        self.adapters.iter().map(|overlay| overlay.adapter.size_bytes).sum()
    }
}

/// Checks models against their lock.
#[derive(Debug)]
pub struct Vetting {
    /// `None` where there is no key: then only the built-in model is loaded.
    key: Option<Key>,
    digests: Digests,
    builtin: Digest,
}

impl Vetting {
    /// As the configuration says; `None` where any model may be loaded.
    #[must_use]
    pub fn of(config: &Config) -> Option<Self> {
        let key = config.models_key.as_deref().and_then(|key| key.parse().ok());
        let vetting = || Self { key, digests: Digests::default(), builtin: Digest::of(BUILTIN) };
        config.require_signed.then(vetting)
    }

    /// Opens a model's file and checks it.
    ///
    /// # Errors
    ///
    /// `denied` with the digest that was found and the one that was signed;
    /// `cancelled`; `unavailable` where it cannot be read.
    pub fn open(&self, entry: &Entry, models_dir: &Path, cancel: &CancelToken) -> Result<Source, Refusal> {
        let (file, path) = self.open_file(entry, models_dir, cancel)?;
        let header = gguf::inspect(&path).map_err(|error| broken(&entry.name, &error.to_string()))?;
        Ok(Source { path, header, adapters: Vec::new(), _file: Some(file) })
    }

    /// Opens an adapter's file and checks it.
    ///
    /// # Errors
    ///
    /// As [`Vetting::open`].
    pub fn open_adapter(
        &self,
        lora: Lora,
        entry: &Entry,
        models_dir: &Path,
        cancel: &CancelToken,
    ) -> Result<Overlay, Refusal> {
        let (file, path) = self.open_file(entry, models_dir, cancel)?;
        let adapter =
            gguf::inspect_adapter(&path).map_err(|error| broken(&entry.name, &error.to_string()))?;
        Ok(Overlay { lora, path, adapter, _file: Some(file) })
    }

    /// Opens a file that may be believed, and says under which path it stays that.
    fn open_file(
        &self,
        entry: &Entry,
        models_dir: &Path,
        cancel: &CancelToken,
    ) -> Result<(File, PathBuf), Refusal> {
        let unreadable = |error: io::Error| match cancel.is_cancelled() {
            true => Refusal::new(Code::Cancelled, "loading was cancelled"),
            false => broken(&entry.name, &format!("cannot be read: {error}")),
        };
        let file = File::open(&entry.path).map_err(unreadable)?;
        let watch = |file| Watched { file, cancel };
        let (found, size) = self.digests.of_file(&file, watch).map_err(unreadable)?;
        if !entry.builtin {
            if !is_guarded(&file.metadata().map_err(unreadable)?) {
                let message = format!(
                    "others than its owner may write {}, whose digest is {found}",
                    entry.path.display()
                );
                let hint = format!("signatures are required: chmod go-w {}", entry.path.display());
                return Err(Refusal::new(Code::Denied, message).hint(hint));
            }
            self.check(entry, models_dir, found, size)?;
        } else if found != self.builtin {
            let message = format!(
                "the file of the built-in model was changed: its digest is {found}, expected is {}",
                self.builtin
            );
            return Err(Refusal::new(Code::Denied, message)
                .hint("`ksi plugin restart llama` writes it anew; find out who changed it")
                .details(json!({ "found": found, "expected": self.builtin })));
        }
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        Ok((file, path))
    }

    fn check(&self, entry: &Entry, models_dir: &Path, found: Digest, size: u64) -> Result<(), Refusal> {
        let name = &entry.name;
        let denied = |why: String, hint: String| {
            Refusal::new(Code::Denied, format!("model `{name}` is not loaded: {why}"))
                .hint(hint)
                .details(json!({ "model": name, "found": found }))
        };
        let Some(key) = &self.key else {
            let why =
                format!("signatures are required, and there is no key of models; its digest is {found}");
            let hint =
                format!("ksi key create models, then: ksi model sign {name}; ksi plugin restart llama");
            return Err(denied(why, hint));
        };
        let sign = format!("if you know where it comes from: ksi model sign {name}");
        let lock = Lock::load(Kind::Models, &models_dir.join(LOCK), key)
            .map_err(|unusable| denied(format!("{unusable}; its digest is {found}"), sign.clone()))?;
        // With the directories in it: another file of the same last part is another file.
        let file = format!("{name}.gguf");
        lock.check(&file, size, found).map_err(|mistrust| denied(mistrust.to_string(), sign))
    }
}

/// A file that is read until somebody cancels.
struct Watched<'a> {
    file: &'a File,
    cancel: &'a CancelToken,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        self.file.read(buffer)
    }
}
