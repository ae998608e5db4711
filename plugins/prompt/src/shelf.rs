//! The directory of prompts.
//!
//! Only names that were found in the directory are opened, so no request leads
//! out of it.

use std::{fs, io, path::PathBuf};

use ksi_sdk::prelude::{Code, Refusal, json};

/// Largest template.
const TEMPLATE_BYTES_MAX: u64 = 64 * 1024;
/// Most templates that are looked at.
const TEMPLATES_MAX: usize = 10_000;

/// A template as it lies there.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) name: String,
    pub(crate) version: u32,
    pub(crate) text: String,
}

/// Where templates lie.
#[derive(Debug, Clone)]
pub(crate) struct Shelf {
    dir: PathBuf,
}

impl Shelf {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub(crate) fn dir(&self) -> &PathBuf {
        &self.dir
    }

    /// Names and versions, in their order. A directory that is not there is empty.
    fn names(&self) -> Result<Vec<(String, u32)>, Refusal> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| self.unreadable(&error))?,
        };
        let mut names = Vec::new();
        for entry in entries.take(TEMPLATES_MAX) {
            let file = entry.map_err(|error| self.unreadable(&error))?.file_name();
            names.extend(file.to_str().and_then(parse));
        }
        names.sort();
        Ok(names)
    }

    /// One version of a prompt, the newest where none is named.
    pub(crate) fn find(&self, name: &str, version: Option<u32>) -> Result<Found, Refusal> {
        let names = self.names()?;
        let versions: Vec<_> = names.iter().filter(|(known, _)| known == name).collect();
        let found = versions.iter().rev().find(|(_, one)| version.is_none_or(|version| *one == version));
        let Some((name, version)) = found else {
            let known: Vec<_> = match versions.is_empty() {
                true => names.iter().map(|(name, version)| format!("{name}@{version}")).collect(),
                false => versions.iter().map(|(name, version)| format!("{name}@{version}")).collect(),
            };
            let wanted = version.map_or_else(|| name.to_owned(), |version| format!("{name}@{version}"));
            return Err(Refusal::not_found("prompt", &wanted.escape_debug().to_string())
                .hint(format!("`ksi send prompt:list` lists them; they lie in {}", self.dir.display()))
                .details(json!({ "known": known })));
        };
        self.read(name, *version)
    }

    /// Every version of every prompt. One that cannot be read is left out.
    pub(crate) fn all(&self) -> Result<Vec<Found>, Refusal> {
        let names = self.names()?;
        Ok(names.iter().filter_map(|(name, version)| self.read(name, *version).ok()).collect())
    }

    fn read(&self, name: &str, version: u32) -> Result<Found, Refusal> {
        let path = self.dir.join(format!("{name}@{version}.j2"));
        let size = fs::metadata(&path).map_err(|error| self.unreadable(&error))?.len();
        if size > TEMPLATE_BYTES_MAX {
            let message =
                format!("the template {name}@{version} has {size} bytes, of {TEMPLATE_BYTES_MAX} allowed");
            return Err(Refusal::new(Code::TooLarge, message));
        }
        let text = fs::read_to_string(&path).map_err(|error| self.unreadable(&error))?;
        Ok(Found { name: name.into(), version, text })
    }

    fn unreadable(&self, error: &io::Error) -> Refusal {
        Refusal::new(Code::Unavailable, format!("cannot read {}: {error}", self.dir.display()))
            .hint("a directory elsewhere needs `sandbox.read` of the plugin")
    }
}

/// `NAME@VERSION.j2`, where the name has letters, digits, `-`, `_` and `.`.
fn parse(file: &str) -> Option<(String, u32)> {
    let (name, version) = file.strip_suffix(".j2")?.split_once('@')?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let named = (1..=64).contains(&name.len()) && name.bytes().all(fits);
    let number: u32 = version.parse().ok()?;
    // Not `01`: two files would be one version.
    (named && number > 0 && number.to_string() == version).then(|| (name.to_owned(), number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_a_name_and_a_version() {
        assert_eq!(parse("summary@3.j2"), Some(("summary".into(), 3)));
        for file in
            ["summary.j2", "summary@0.j2", "summary@01.j2", "@1.j2", "a b@1.j2", "../x@1.j2", "x@1.txt"]
        {
            assert_eq!(parse(file), None, "{file}");
        }
    }
}
