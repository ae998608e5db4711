//! Exports that are handed out: files in a directory of the plugin's own.
//!
//! Whoever may have an export made need not be the daemon's owner, and what is in
//! it others have sent. Were it written wherever its asker says, he could put their
//! words where the owner's shell or scheduler obeys them. So he gives it a plain
//! name at most, and whoever may read the file takes it from there with rights of
//! his own.

use std::{io, path::PathBuf};

use ksi_sdk::prelude::Refusal;

use crate::disk::remove_parts;

/// Longest name, in bytes.
const NAME_BYTES_MAX: usize = 128;

/// Where exports lie.
pub struct Outgoing {
    dir: PathBuf,
}

impl Outgoing {
    /// In a directory that need not be there yet, and in which nothing else lies.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Removes what a crash left half written. Only while nobody exports.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub fn tidy(&self) -> io::Result<()> {
        remove_parts(&self.dir)
    }

    /// The file of this name or, where none is given, of that one.
    ///
    /// # Errors
    ///
    /// `invalid_payload` for a name that is not plain.
    pub fn file(&self, name: Option<String>, otherwise: impl FnOnce() -> String) -> Result<PathBuf, Refusal> {
        let name = name.unwrap_or_else(otherwise);
        if is_plain(&name) {
            return Ok(self.dir.join(name));
        }
        let rule =
            format!("a name has 1 to {NAME_BYTES_MAX} letters, digits, `.`, `_` and `-`, no sign first");
        Err(Refusal::invalid_payload(rule).at("name").hint("the answer says where the file lies"))
    }
}

fn is_plain(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    name.len() <= NAME_BYTES_MAX
        && name.bytes().all(allowed)
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use ksi_sdk::prelude::Code;

    use super::*;

    #[test]
    fn a_name_leads_nowhere_else_and_hides_nothing() {
        let outgoing = Outgoing::new("/there".into());
        let file = |name: &str| outgoing.file(Some(name.into()), String::new);
        for name in ["a", "2026-01-31.jsonl", "a..b", "A_b-c.ksi", &"x".repeat(128)] {
            assert_eq!(file(name).unwrap(), PathBuf::from("/there").join(name));
        }
        let long = "x".repeat(129);
        for name in [
            "",
            ".",
            "..",
            ".bash_login",
            "-a",
            "/etc/x",
            "a/b",
            "../x",
            "a b",
            "a\nb",
            "a\0",
            "\u{e4}",
            &long,
        ] {
            assert_eq!(file(name).unwrap_err().code, Code::InvalidPayload, "{name:?}");
        }
        assert_eq!(
            outgoing.file(None, || "audit-1.jsonl".into()).unwrap(),
            PathBuf::from("/there/audit-1.jsonl")
        );
    }
}
