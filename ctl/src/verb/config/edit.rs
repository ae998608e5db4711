//! One edit of `ksi.toml` that keeps comments and order, and can be taken
//! back.

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use toml_edit::{DocumentMut, Item, Key, Table, Value};

use crate::error::{Failure, Result};

/// A file about to be edited.
#[derive(Debug)]
pub(super) struct Edit {
    path: PathBuf,
    /// Its text; `None` where it does not exist.
    text: Option<String>,
    document: DocumentMut,
}

/// An edited file.
#[derive(Debug)]
pub(super) struct Change {
    path: PathBuf,
    before: Option<String>,
    after: String,
    /// The old value, as TOML.
    pub(super) was: Option<String>,
    /// The new value, as TOML.
    pub(super) now: String,
}

impl Edit {
    /// Reads the file; one that does not exist is empty.
    ///
    /// # Errors
    ///
    /// Fails where it cannot be read or is not TOML.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let text = match fs::read_to_string(path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(Failure::to_file("read", path, &error)),
        };
        let document = text.as_deref().unwrap_or_default().parse().map_err(|error| {
            Failure::failed(format!("{} is not TOML: {error}", path.display()))
                .hint("correct it, then run: ksi config validate")
        })?;
        Ok(Self { path: path.to_owned(), text, document })
    }

    /// Sets `a.b.c` to a value: TOML where it reads as such, else a text.
    ///
    /// # Errors
    ///
    /// Refuses a key that is none, and one whose parent is no table.
    pub(super) fn set(mut self, key: &str, value: &str) -> Result<Change> {
        let parts = parts(key)?;
        let (last, parents) = parts.split_last().expect("a parsed key has a part");
        let mut table: &mut Item = self.document.as_item_mut();
        for part in parents {
            let like = table.as_table_like_mut().ok_or_else(|| no_table(key))?;
            table = like.entry(part.get()).or_insert_with(|| {
                let mut table = Table::new();
                table.set_implicit(true);
                Item::Table(table)
            });
        }
        let table = table.as_table_like_mut().ok_or_else(|| no_table(key))?;
        let mut value = value.parse::<Value>().unwrap_or_else(|_| value.into());
        let now = value.to_string().trim().to_owned();
        let old = table.get(last).and_then(Item::as_value);
        if old.is_none() && table.get(last).is_some() {
            return Err(Failure::usage(format!("`{key}` is a table; set one of its keys")));
        }
        let was = old.map(|old| old.clone().decorated("", "").to_string());
        if let Some(old) = old {
            // A comment behind the old value stays behind the new one.
            *value.decor_mut() = old.decor().clone();
        }
        match table.get_mut(last) {
            Some(item) => *item = Item::Value(value),
            None => drop(table.insert(last, Item::Value(value))),
        }
        Ok(Change { path: self.path, before: self.text, after: self.document.to_string(), was, now })
    }
}

/// The parts of `a.b."c:d"`.
///
/// # Errors
///
/// Refuses what TOML would not take as a key.
pub(super) fn parts(key: &str) -> Result<Vec<Key>> {
    Key::parse(key).map_err(|_| {
        Failure::usage(format!("`{key}` is no key"))
            .hint("for example daemon.log_level, or events.\"completion:request\".timeout")
    })
}

fn no_table(key: &str) -> Failure {
    Failure::usage(format!("`{key}` lies below something that is no table"))
}

impl Change {
    /// Puts the new text in place, whole or not at all.
    ///
    /// # Errors
    ///
    /// Fails where the file cannot be written.
    pub(super) fn write(&self) -> Result<()> {
        replace(&self.path, &self.after)
    }

    /// Puts the old text back.
    ///
    /// # Errors
    ///
    /// Fails where the file cannot be written.
    pub(super) fn take_back(&self) -> Result<()> {
        match &self.before {
            Some(text) => replace(&self.path, text),
            None => {
                fs::remove_file(&self.path).map_err(|error| Failure::to_file("remove", &self.path, &error))
            }
        }
    }
}

fn replace(path: &Path, text: &str) -> Result<()> {
    // A link to a file kept elsewhere stays a link.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let part = path.with_extension("toml.part");
    let dir = path.parent().unwrap_or(Path::new("/"));
    let written = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .and_then(|()| fs::write(&part, text))
        .and_then(|()| fs::rename(&part, &path));
    written.map_err(|error| Failure::to_file("write", &path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(text: &str, key: &str, value: &str) -> Result<Change> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ksi.toml");
        fs::write(&path, text).unwrap();
        Edit::open(&path)?.set(key, value)
    }

    #[test]
    fn an_edit_keeps_comments_and_says_what_was() {
        let text = "# mine\n[daemon]\nlog_level = \"info\" # quiet\nother = 1\n";
        let change = edited(text, "daemon.log_level", "debug").unwrap();
        assert_eq!(change.after, "# mine\n[daemon]\nlog_level = \"debug\" # quiet\nother = 1\n");
        assert_eq!((change.was.as_deref(), change.now.as_str()), (Some("\"info\""), "\"debug\""));
    }

    #[test]
    fn tables_are_made_where_they_are_missing() {
        for (value, expected) in [
            ("5", "[plugins.llama]\nx = 5\n"),
            ("true", "[plugins.llama]\nx = true\n"),
            ("[\"a\"]", "[plugins.llama]\nx = [\"a\"]\n"),
            ("two words", "[plugins.llama]\nx = \"two words\"\n"),
        ] {
            assert_eq!(edited("", "plugins.llama.x", value).unwrap().after, expected);
        }
    }

    #[test]
    fn a_part_that_is_no_bare_word_stands_in_quotes() {
        let change = edited("", "events.\"a:b\".timeout", "5s").unwrap();
        assert_eq!(change.after, "[events.\"a:b\"]\ntimeout = \"5s\"\n");
    }

    #[test]
    fn keys_that_are_none_are_refused() {
        for key in ["", ".", "a.", "a.b.c", "t", "a:b"] {
            assert_eq!(edited("a = { b = 1 }\n[t]\n", key, "1").unwrap_err().exit as u8, 2, "{key}");
        }
        assert_eq!(edited("a = ", "b", "1").unwrap_err().exit as u8, 1);
    }

    #[test]
    fn a_change_can_be_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/ksi.toml");
        let change = Edit::open(&path).unwrap().set("a", "1").unwrap();
        change.write().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "a = 1\n");
        change.take_back().unwrap();
        assert!(!path.exists());
    }
}
