//! Signing and verifying what may be loaded: the work that `model` and
//! `plugin` have in common.
//!
//! A lock is signed as a whole. Before files are added to one, the signature
//! that is there is verified, so that nobody signs what somebody else has put
//! into it.
//!
//! # Invariants
//!
//! * The signature is written before the lock that it belongs to takes its
//!   place; between the two, what is loaded is refused and never believed.

use std::{
    fs::{self, File},
    io::{Cursor, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use ksi_trust::{Digest, Entry, Key, Kind, Lock, LockError, is_guarded, signature_path};
use serde::Serialize;

use super::key;
use crate::{
    error::{Failure, Result},
    exit::Exit,
    invocation::{Invocation, short},
    output::{Report, Table, bytes},
    time::now_ms,
};

/// A file that is to be signed or verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    /// The name under which users know it.
    pub(super) name: String,
    /// The name under which the lock knows it.
    pub(super) file: String,
    /// Where it lies.
    pub(super) path: PathBuf,
}

/// What came of one file.
#[derive(Debug, Serialize)]
struct Outcome {
    name: String,
    file: String,
    path: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<Digest>,
    ok: bool,
    state: String,
}

/// Adds files to a lock, takes out those that are `gone`, and signs it.
///
/// # Errors
///
/// Refuses a lock that was changed since it was signed, files that others may
/// write, and a key that others may read; ends with 4 where there is nothing to
/// do.
pub(super) fn sign(
    at: &Invocation,
    kind: Kind,
    lock_path: &Path,
    secret: Option<&Path>,
    candidates: &[Candidate],
    gone: impl Fn(&str) -> bool,
) -> Result<()> {
    if candidates.is_empty() && !lock_path.exists() {
        return Err(nothing(kind));
    }
    let (secret, public) = key::secret(at, kind, secret)?;
    let line = public.to_base64();
    let key: Key = line.parse().expect("minisign's own key is one");
    let mut lock = match Lock::load(kind, lock_path, &key) {
        Ok(lock) => lock,
        Err(unusable) if unusable.why == LockError::Absent("lock") => Lock::new(kind),
        Err(unusable) => {
            return Err(Failure::new(
                Exit::Denied,
                "denied",
                format!("nothing is added to a lock that cannot be trusted: {unusable}"),
            )
            .hint(format!("look at it; to begin anew: rm {}", lock_path.display())));
        }
    };
    let signed = ksi_protocol::json::timestamp(now_ms());
    let mut outcomes = Vec::new();
    for (file, entry) in lock.files.extract_if(.., |file, _| gone(file)) {
        outcomes.push(Outcome {
            name: entry.name,
            path: lock_path.with_file_name(&file),
            file,
            size: None,
            sha256: None,
            ok: true,
            state: "gone, and taken out".into(),
        });
    }
    if candidates.is_empty() && outcomes.is_empty() {
        return Err(nothing(kind));
    }
    for candidate in candidates {
        let (sha256, size) = measure(&candidate.path)?;
        let entry = Entry { name: candidate.name.clone(), size, sha256, signed: signed.clone() };
        lock.files.insert(candidate.file.clone(), entry);
        outcomes.push(Outcome {
            name: candidate.name.clone(),
            file: candidate.file.clone(),
            path: candidate.path.clone(),
            size: Some(size),
            sha256: Some(sha256),
            ok: true,
            state: "signed".into(),
        });
    }
    let text = lock.to_text();
    let comment = format!("{kind}.lock of KSI, {signed}");
    let signature =
        minisign::sign(Some(&public), &secret, Cursor::new(&text), Some(&comment), Some("signature of KSI"))
            .map_err(|error| Failure::failed(format!("cannot sign: {error}")))?
            .into_string();
    replace(&signature_path(lock_path), &signature)?;
    replace(lock_path, &text)?;
    print(at, kind, lock_path, &outcomes)
}

/// There is no file of this kind.
fn nothing(kind: Kind) -> Failure {
    let (message, hint) = match kind {
        Kind::Models => ("there is no model to sign yet", "add one: ksi model add PATH.gguf"),
        Kind::Plugins => ("there is no library to sign", "name one: ksi plugin sign PATH.so"),
    };
    Failure::new(Exit::NotFound, "not_found", message).hint(hint)
}

/// The lock at this path, as the holder of the public key has signed it.
///
/// # Errors
///
/// Ends with 4 where there is none, with 8 where it is not believed.
pub(super) fn trusted(at: &Invocation, kind: Kind, lock_path: &Path) -> Result<Lock> {
    let key = key::public(at, kind)?;
    Lock::load(kind, lock_path, &key).map_err(|unusable| match unusable.why {
        LockError::Absent("lock") => Failure::not_found("lock", &lock_path.display().to_string())
            .hint(format!("make it: {} --all", kind.sign_command())),
        _ => Failure::new(Exit::Degraded, "untrusted", unusable.to_string()).hint("find out who changed it"),
    })
}

/// Compares files with a lock; all that it lists where `candidates` is empty,
/// each where `find` has it by the name of its file.
///
/// # Errors
///
/// Ends with 8 where a file is not what was signed or the lock is not
/// believed, with 4 where a file is missing from both.
pub(super) fn verify(
    at: &Invocation,
    kind: Kind,
    lock_path: &Path,
    candidates: &[Candidate],
    find: impl Fn(&str) -> PathBuf,
) -> Result<()> {
    let lock = trusted(at, kind, lock_path)?;
    let listed = || {
        lock.files
            .iter()
            .map(|(file, entry)| Candidate { name: entry.name.clone(), file: file.clone(), path: find(file) })
            .collect()
    };
    let all: Vec<Candidate> = if candidates.is_empty() { listed() } else { candidates.to_vec() };
    compare(at, lock_path, &lock, all)
}

/// Compares files with a lock that is believed.
///
/// # Errors
///
/// Ends with 8 where a file is not what was signed.
pub(super) fn compare(
    at: &Invocation,
    lock_path: &Path,
    lock: &Lock,
    candidates: Vec<Candidate>,
) -> Result<()> {
    let mut outcomes = Vec::new();
    let mut gone = false;
    for candidate in candidates {
        let measured = measure(&candidate.path);
        gone |= measured.as_ref().is_err_and(|failure| failure.exit == Exit::NotFound);
        let state = match &measured {
            Err(failure) => Err(failure.message.clone()),
            Ok((digest, size)) => {
                lock.check(&candidate.file, *size, *digest).map_err(|mistrust| mistrust.to_string())
            }
        };
        let measured = measured.ok();
        outcomes.push(Outcome {
            name: candidate.name,
            file: candidate.file,
            path: candidate.path,
            size: measured.map(|(_, size)| size),
            sha256: measured.map(|(digest, _)| digest),
            ok: state.is_ok(),
            state: state.err().unwrap_or_else(|| "as signed".into()),
        });
    }
    print(at, lock.kind, lock_path, &outcomes)?;
    if gone && lock.kind == Kind::Models {
        at.out.note("what is gone for good is taken out of the lock by: ksi model sign --all");
    }
    match outcomes.iter().all(|outcome| outcome.ok) {
        true => Ok(()),
        false => Err(Failure::quietly(Exit::Degraded)),
    }
}

fn print(at: &Invocation, kind: Kind, lock: &Path, outcomes: &[Outcome]) -> Result<()> {
    let mut table = Table::new(&["NAME", "SIZE", "SHA-256", "STATE", "+PATH"]);
    for outcome in outcomes {
        table.row([
            outcome.name.clone(),
            outcome.size.map_or("-".into(), bytes),
            outcome.sha256.map_or("-".into(), |digest| digest.to_string()[..16].to_owned()),
            outcome.state.clone(),
            short(&outcome.path),
        ]);
    }
    let names = outcomes.iter().map(|outcome| outcome.name.clone()).collect();
    let data = serde_json::json!({"kind": kind, "lock": lock, "files": outcomes});
    at.out.print(&Report::list(&data, "files", names, table)?)
}

/// Digest and size of a file that only its owner may write.
fn measure(path: &Path) -> Result<(Digest, u64)> {
    let unreadable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure::not_found("file", &path.display().to_string()),
        _ => Failure::to_file("read", path, &error),
    };
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(Failure::usage(format!("{} is no file", path.display())));
    }
    if !is_guarded(&metadata) {
        let message = format!("others than its owner may write {}", path.display());
        return Err(Failure::new(Exit::Denied, "denied", message)
            .hint(format!("it would not be loaded either: chmod go-w {}", path.display())));
    }
    Digest::read(file).map_err(unreadable)
}

/// Puts a text in the place of a file, whole or not at all.
fn replace(path: &Path, text: &str) -> Result<()> {
    let part = path.with_extension(format!("{}.part", std::process::id()));
    let written = fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o644)
        .open(&part)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&part, path));
    written.map_err(|error| {
        // The first error is the one to report.
        let _ = fs::remove_file(&part);
        Failure::to_file("write", path, &error)
    })
}
