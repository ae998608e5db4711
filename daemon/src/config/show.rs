//! The effective configuration for others to look at: as JSON with secrets
//! masked, with the origin of every value, and as a difference.

use std::collections::{BTreeMap, BTreeSet};

use ksi_protocol::{secret::handle, system::ConfigChanges};
use serde_json::{Map, Value as Json};

use super::{Config, section::dotted};
use crate::redaction;

/// What stands in place of a secret.
const MASK: &str = "***";

/// What keys sound like that hold a secret. `pass` is none of them: it is a part of
/// too many words, and counts as a word of its own.
const SECRETS: [&str; 8] =
    ["token", "secret", "key", "password", "passwd", "passphrase", "credential", "authorization"];

impl Config {
    /// The effective configuration in the shape of the files, every value
    /// present. Secrets are masked: what lies in a plugin's `config` under a key
    /// that sounds so, and whatever no line of the log would show.
    #[must_use]
    pub fn as_json(&self) -> Json {
        let mut root = Map::new();
        for name in ["daemon", "security", "identity", "plugins", "events"] {
            root.insert(name.to_owned(), Json::Object(Map::new()));
        }
        for (path, (value, _)) in &self.effective {
            let value =
                if is_secret_path(path) { masked(value.clone()) } else { mask_within(value.clone(), path) };
            insert(&mut root, path, redacted(value));
        }
        Json::Object(root)
    }

    /// The secrets that stand in the configuration themselves: texts under keys
    /// that sound so.
    #[must_use]
    pub fn secret_values(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (path, (value, _)) in &self.effective {
            if !own_part(path).is_empty() {
                texts_of_secrets(value, is_secret_path(path), &mut found);
            }
        }
        found
    }

    /// Where every value comes from: `daemon.log_level` → `ksi.toml:3`.
    #[must_use]
    pub fn origins(&self) -> BTreeMap<String, String> {
        self.effective.iter().map(|(path, (_, origin))| (dotted(path), origin.to_string())).collect()
    }

    /// What would change if `new` took the place of this.
    ///
    /// The log's level, who may do what, events' policies and what plugins are
    /// granted take effect at once; the rest of a plugin's by a reload of it; the
    /// rest of `[daemon]` by a restart of the daemon.
    #[must_use]
    pub fn changes(&self, new: &Self) -> ConfigChanges {
        let value =
            |config: &Self, path: &[String]| config.effective.get(path).map(|(value, _)| value.clone());
        let paths: BTreeSet<_> = self.effective.keys().chain(new.effective.keys()).collect();
        let mut changes = ConfigChanges::default();
        for path in paths.into_iter().filter(|path| value(self, path) != value(new, path)) {
            let words: Vec<_> = path.iter().map(String::as_str).collect();
            match words.as_slice() {
                ["daemon", "log_level" | "allow_uids"] | ["identity" | "events", ..] => {}
                ["plugins", name, ..] => {
                    changes.plugins.insert((*name).to_owned());
                }
                _ => changes.needs_restart.push(dotted(path)),
            }
            changes.changed.push(dotted(path));
        }
        changes
    }
}

fn insert(table: &mut Map<String, Json>, path: &[String], value: Json) {
    let Some((key, rest)) = path.split_first() else { return };
    if rest.is_empty() {
        table.insert(key.clone(), value);
        return;
    }
    let inner = table.entry(key.clone()).or_insert_with(|| Json::Object(Map::new()));
    if let Json::Object(inner) = inner {
        insert(inner, rest, value);
    }
}

/// Whether a key sounds like a secret. The name of a variable or file that
/// holds one is none.
pub(crate) fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let within = SECRETS.iter().any(|word| key.contains(word));
    let whole = || key.split(|byte: char| !byte.is_ascii_alphanumeric()).any(|word| word == "pass");
    (within || whole()) && !key.ends_with("_env") && !key.ends_with("_file")
}

/// Only a plugin's own configuration can hold a secret: every other key is
/// known here.
fn own_part(path: &[String]) -> &[String] {
    match path {
        [plugins, _, config, rest @ ..] if plugins == "plugins" && config == "config" => rest,
        _ => &[],
    }
}

fn is_secret_path(path: &[String]) -> bool {
    own_part(path).iter().any(|key| is_secret(key))
}

/// Numbers and switches under such a key (`max_tokens`) are none, nor is the
/// name of a secret that lies elsewhere.
fn masked(value: Json) -> Json {
    match value {
        Json::Number(_) | Json::Bool(_) | Json::Null => value,
        Json::String(text) if handle(&text).is_some() => Json::String(text),
        _ => Json::from(MASK),
    }
}

/// A value as the log would show it.
fn redacted(value: Json) -> Json {
    match value {
        Json::String(text) => Json::String(redaction::text(text)),
        Json::Array(items) => items.into_iter().map(redacted).collect(),
        Json::Object(table) => {
            Json::Object(table.into_iter().map(|(key, value)| (key, redacted(value))).collect())
        }
        other => other,
    }
}

fn texts_of_secrets(value: &Json, secret: bool, found: &mut Vec<String>) {
    match value {
        Json::String(text) if secret && handle(text).is_none() => found.push(text.clone()),
        Json::Array(items) => items.iter().for_each(|item| texts_of_secrets(item, secret, found)),
        Json::Object(table) => {
            table.iter().for_each(|(key, value)| texts_of_secrets(value, secret || is_secret(key), found));
        }
        _ => {}
    }
}

/// Masks what lies in the objects of a list.
fn mask_within(value: Json, path: &[String]) -> Json {
    if own_part(path).is_empty() {
        return value;
    }
    match value {
        Json::Array(items) => items.into_iter().map(|item| mask_within(item, path)).collect(),
        Json::Object(table) => {
            let entry = |(key, value): (String, Json)| {
                let value = if is_secret(&key) { masked(value) } else { mask_within(value, path) };
                (key, value)
            };
            Json::Object(table.into_iter().map(entry).collect())
        }
        other => other,
    }
}
