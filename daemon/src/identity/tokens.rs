//! Tokens: what is known of them, and the file that keeps it.
//!
//! The file holds a hash of each token and never the token. It is written beside
//! its place, synced and renamed, so that there is always a whole one.
//!
//! # Failure
//!
//! A file that others may read or write, that belongs to somebody else or that
//! cannot be understood is not believed: no token is taken then, none is made,
//! and the file is left as it is for a person to look at.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use ksi_identity::{Capability, is_tenant};
use ksi_protocol::{
    Code, Refusal,
    token::{ID_DIGITS, SECRET_DIGITS, Token, TokenInfo},
};
use nix::libc::O_NOFOLLOW;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Most tokens at a time.
pub(super) const TOKENS_MAX: usize = 4096;

/// Largest file that is read: far more than that many tokens take.
const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// The form of the file.
const VERSION: u32 = 1;

/// A token, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// What is told of it.
    pub(super) info: TokenInfo,
    /// SHA-256 of its text, in hexadecimal digits.
    hash: String,
}

impl Record {
    /// A new one with its token; what it is for, what it can do and whose it is
    /// are in `info`, whose id is given here.
    ///
    /// # Errors
    ///
    /// Where the system has no random numbers.
    pub(super) fn fresh(info: TokenInfo) -> Result<(Self, Token), Refusal> {
        let mut bytes = [0; (ID_DIGITS + SECRET_DIGITS) / 2];
        let mut filled = 0;
        while filled < bytes.len() {
            let got = getrandom(&mut bytes[filled..], GetRandomFlags::empty()).map_err(|error| {
                Refusal::new(Code::Unavailable, format!("the system gives no random numbers: {error}"))
            })?;
            filled += got;
        }
        let (id, secret) = bytes.split_at(ID_DIGITS / 2);
        let (id, secret) = (hex(id), hex(secret));
        let token = Token::of(&id, &secret);
        let hash = hash(&token);
        Ok((Self { info: TokenInfo { id, ..info }, hash }, token))
    }

    /// Whether this is the token. Takes as long whatever differs.
    #[must_use]
    pub(super) fn is(&self, token: &Token) -> bool {
        let (ours, theirs) = (self.hash.as_bytes(), hash(token));
        let theirs = theirs.as_bytes();
        let differing = ours.iter().zip(theirs).fold(0, |differing, (a, b)| differing | (a ^ b));
        ours.len() == theirs.len() && std::hint::black_box(differing) == 0
    }

    fn check(&self) -> Result<(), String> {
        let TokenInfo { id, can, tenant, .. } = &self.info;
        let digits =
            |text: &str, count: usize| text.len() == count && text.bytes().all(|b| b.is_ascii_hexdigit());
        if !digits(id, ID_DIGITS) || !digits(&self.hash, 64) {
            return Err(format!("the id or hash of the token `{id}` is none"));
        }
        if !is_tenant(tenant) {
            return Err(format!("the tenant of the token `{id}` is none"));
        }
        can.iter().try_for_each(|text| Capability::parse(text).map(|_| ()).map_err(|error| error.to_string()))
    }
}

fn hash(token: &Token) -> String {
    hex(Sha256::digest(token.expose().as_bytes()).as_slice())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    version: u32,
    tokens: Vec<Record>,
}

/// All tokens, in the order in which they were made, so that whoever gives comes
/// before what was given; or why they are not believed.
#[derive(Debug)]
pub(super) struct Tokens(Result<Vec<Record>, String>);

impl Default for Tokens {
    fn default() -> Self {
        Self(Ok(Vec::new()))
    }
}

impl Tokens {
    /// Those of a file; none where it is not there.
    #[must_use]
    pub(super) fn load(path: &Path, owner: u32) -> Self {
        Self(read(path, owner).map_err(|why| format!("{}: {why}", path.display())))
    }

    /// These, once they are safe in the file.
    ///
    /// # Errors
    ///
    /// `unavailable` where the file cannot be written, `busy` where they are too
    /// many. Then nothing has changed.
    pub(super) fn save(path: &Path, records: Vec<Record>) -> Result<Self, Refusal> {
        if records.len() > TOKENS_MAX {
            let message = format!("there are {TOKENS_MAX} tokens, and that is the limit");
            return Err(Refusal::new(Code::Busy, message).hint("`ksi token revoke ID` takes one back"));
        }
        write(path, &records).map_err(|error| {
            let message = format!("cannot write {}: {error}", path.display());
            Refusal::new(Code::Unavailable, message).hint("nothing has changed; is the disk full?")
        })?;
        Ok(Self(Ok(records)))
    }

    /// Those that there are.
    #[must_use]
    pub(super) fn list(&self) -> &[Record] {
        self.0.as_deref().unwrap_or_default()
    }

    /// Those that there are.
    ///
    /// # Errors
    ///
    /// `unavailable` where the file is not believed.
    pub(super) fn believed(&self) -> Result<&[Record], Refusal> {
        self.0.as_deref().map_err(|why| {
            Refusal::new(Code::Unavailable, format!("no token is taken: {why}"))
                .hint("repair or remove the file, then `ksi reload`; without it there are no tokens")
        })
    }

    /// Why none is taken.
    #[must_use]
    pub(super) fn trouble(&self) -> Option<&str> {
        self.0.as_ref().err().map(String::as_str)
    }
}

fn read(path: &Path, owner: u32) -> Result<Vec<Record>, String> {
    let file = match OpenOptions::new().read(true).custom_flags(O_NOFOLLOW).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.to_string()),
    };
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    if !metadata.is_file() || metadata.uid() != owner {
        return Err("it is no file of the user who runs the daemon".into());
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(format!("its mode is {mode:o}, and others than its owner may use it; 600 is right"));
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(|error| error.to_string())?;
    let kept: Kept = serde_json::from_str(&text).map_err(|error| format!("it is damaged: {error}"))?;
    if kept.version != VERSION {
        return Err(format!("its version is {}, and this release knows {VERSION}", kept.version));
    }
    kept.tokens.iter().try_for_each(Record::check)?;
    Ok(kept.tokens)
}

fn write(path: &Path, records: &[Record]) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let beside = path.with_extension("new");
    // One that a crash has left is no loss.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let kept = Kept { version: VERSION, tokens: records.to_vec() };
    let mut text = serde_json::to_vec_pretty(&kept)?;
    text.push(b'\n');
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests;
