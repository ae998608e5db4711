//! Where secrets come from: the keyring, the daemon's environment, files; and
//! who gets them.
//!
//! A plugin's configuration names its secrets (`api_key = "secret:openai"`,
//! `api_key_env = "OPENAI_API_KEY"`, `api_key_file = "/run/secrets/openai"`).
//! When the plugin is started the names become values, in what is handed to
//! that plugin and nowhere else; the configuration that others see keeps the
//! names. Every value that passes here is learned by [`redaction`] first.
//!
//! # Failure
//!
//! A secret that is missing, and a keyring that others may read, keep from
//! starting the plugins that need it, with the reason; nothing else stops.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use ksi_protocol::{
    Code, Refusal,
    paths::Paths,
    secret::{BYTES_MAX, BYTES_MIN, handle, is_name},
};
use nix::{fcntl::OFlag, unistd::geteuid};
use serde_json::{Map, Value as Json};

use crate::{
    config::{Config, is_secret},
    redaction,
};

/// Largest keyring that is read, bytes.
const KEYRING_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Hands out secrets.
#[derive(Debug, Clone)]
pub struct Secrets {
    keyring: PathBuf,
}

impl Secrets {
    /// From these places. What is known so far is learned at once: the keyring
    /// and what the configuration holds itself.
    #[must_use]
    pub fn new(paths: &Paths, config: &Config) -> Self {
        let secrets = Self { keyring: paths.keyring() };
        redaction::learn(config.secret_values());
        match secrets.read() {
            Ok(values) => redaction::learn(values.into_values()),
            Err(why) => tracing::warn!("{why}"),
        }
        secrets
    }

    /// Puts values in the place of names, in the configuration of one plugin.
    ///
    /// # Errors
    ///
    /// `unavailable`, with the key whose secret cannot be had, and why.
    pub fn hand_out(&self, plugin: &str, config: &mut Json) -> Result<(), Refusal> {
        let mut keyring = None;
        let path = format!("plugins.{plugin}.config");
        self.fill(&path, config, &mut keyring).map_err(|(key, why)| {
            Refusal::new(Code::Unavailable, format!("`{key}` cannot be had: {why}"))
                .hint("`ksi secret list` shows what there is, `ksi secret set NAME` adds one")
        })
    }

    fn fill(
        &self,
        path: &str,
        value: &mut Json,
        keyring: &mut Option<BTreeMap<String, String>>,
    ) -> Result<(), (String, String)> {
        match value {
            Json::String(text) => {
                let Some(name) = handle(text) else { return Ok(()) };
                *text = self.of_keyring(name, keyring).map_err(|why| (path.to_owned(), why))?;
                Ok(())
            }
            Json::Array(items) => {
                let mut items = items.iter_mut().enumerate();
                items.try_for_each(|(at, item)| self.fill(&format!("{path}[{at}]"), item, keyring))
            }
            Json::Object(table) => {
                named_elsewhere(table).map_err(|(key, why)| (format!("{path}.{key}"), why))?;
                let mut entries = table.iter_mut();
                entries.try_for_each(|(key, value)| self.fill(&format!("{path}.{key}"), value, keyring))
            }
            _ => Ok(()),
        }
    }

    fn of_keyring(
        &self,
        name: &str,
        keyring: &mut Option<BTreeMap<String, String>>,
    ) -> Result<String, String> {
        let values = match keyring {
            Some(values) => values,
            None => {
                let values = self.read()?;
                redaction::learn(values.values().cloned());
                keyring.insert(values)
            }
        };
        let missing = || format!("the keyring {} has no secret `{name}`", self.keyring.display());
        checked(values.get(name).cloned().ok_or_else(missing)?)
    }

    /// All of the keyring; one that is not there is empty.
    fn read(&self) -> Result<BTreeMap<String, String>, String> {
        let path = self.keyring.display();
        let text = match private(&self.keyring) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(format!("the keyring {path} is not used: {error}")),
        };
        // An error of the parser quotes the line, so only its kind is told.
        let values: BTreeMap<String, String> = toml::from_str(&text)
            .map_err(|_| format!("the keyring {path} is damaged: NAME = \"VALUE\" lines"))?;
        match values.keys().find(|name| !is_name(name)) {
            Some(_) => Err(format!("the keyring {path} is damaged: a name in it is none")),
            None => Ok(values),
        }
    }
}

/// Puts values in the place of the variables and files that hold them:
/// `api_key_env` and `api_key_file` become `api_key`.
fn named_elsewhere(table: &mut Map<String, Json>) -> Result<(), (String, String)> {
    let suffixed = |key: &String| {
        let stem = key.strip_suffix("_env").or_else(|| key.strip_suffix("_file"))?;
        is_secret(stem).then(|| (key.clone(), stem.to_owned()))
    };
    let found: Vec<(String, String)> = table.keys().filter_map(suffixed).collect();
    for (key, stem) in found {
        let Some(Json::String(place)) = table.get(&key).cloned() else { continue };
        if table.contains_key(&stem) {
            return Err((key, format!("`{stem}` is given too; leave one of them out")));
        }
        let value = match key.ends_with("_env") {
            true => std::env::var(&place).map_err(|_| format!("the daemon's environment has no {place}")),
            false => of_file(Path::new(&place)),
        };
        let value = value.and_then(checked).map_err(|why| (key.clone(), why))?;
        redaction::learn([value.clone()]);
        table.remove(&key);
        table.insert(stem, Json::String(value));
    }
    Ok(())
}

/// A secret has bounds, so that it can be kept out of the log.
fn checked(value: String) -> Result<String, String> {
    match value.len() {
        BYTES_MIN..=BYTES_MAX => Ok(value),
        _ => Err(format!("a secret has {BYTES_MIN} to {BYTES_MAX} bytes")),
    }
}

/// A file with one secret in it, put there by somebody who may: ours or root's,
/// and not to be written by others.
fn of_file(path: &Path) -> Result<String, String> {
    let read = || -> io::Result<String> {
        let file = open(path, OFlag::empty())?;
        let metadata = file.metadata()?;
        if metadata.mode() & 0o022 != 0 || ![0, geteuid().as_raw()].contains(&metadata.uid()) {
            return Err(io::Error::other("others may write it: chmod go-w"));
        }
        let mut text = String::new();
        file.take(BYTES_MAX as u64 + 2).read_to_string(&mut text)?;
        Ok(text)
    };
    let text = read().map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned())
}

/// A file that nobody else may read or write.
fn private(path: &Path) -> io::Result<String> {
    // The file itself, not a link to one.
    let file = open(path, OFlag::O_NOFOLLOW)?;
    let metadata = file.metadata()?;
    if metadata.mode() & 0o077 != 0 {
        return Err(io::Error::other(format!("others may read it: chmod 600 {}", path.display())));
    }
    if metadata.uid() != geteuid().as_raw() {
        return Err(io::Error::other("it belongs to somebody else"));
    }
    let mut text = String::new();
    file.take(KEYRING_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Opens a regular file, and waits for nobody who writes into a pipe.
fn open(path: &Path, flags: OFlag) -> io::Result<File> {
    let flags = (flags | OFlag::O_NONBLOCK).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no regular file")),
    }
}

#[cfg(test)]
mod tests;
