//! `key …`: the minisign keys under lock files, made, shown and opened.
//!
//! The secret half lies in the configuration directory, readable by its owner
//! alone, and the daemon never reads it. A password, where one is wanted, comes
//! from `KSI_KEY_PASSWORD` or a prompt without echo, never from the command
//! line, which every user of the machine can read.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, IsTerminal, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

use ksi_trust::{Key, Kind};
use minisign::{KeyPair, PublicKey, SecretKey, SecretKeyBox};
use serde_json::json;

use crate::{
    args::{self, KeyKind},
    error::{Failure, Result},
    exit::Exit,
    invocation::{Invocation, short},
    output::Report,
};

/// The variable that holds the password of a secret key.
const PASSWORD: &str = "KSI_KEY_PASSWORD";
/// Longest password that minisign takes.
const PASSWORD_BYTES_MAX: usize = 1024;

/// `ksi key …`.
///
/// # Errors
///
/// Fails where a key exists already, or none does, or files cannot be written.
pub(super) fn run(at: &Invocation, key: args::Key) -> Result<()> {
    match key {
        args::Key::Create { kind, no_password } => create(at, kind.into(), no_password),
        args::Key::Show { kind } => show(at, kind.into()),
    }
}

impl From<KeyKind> for Kind {
    fn from(kind: KeyKind) -> Self {
        match kind {
            KeyKind::Models => Self::Models,
            KeyKind::Plugins => Self::Plugins,
        }
    }
}

fn create(at: &Invocation, kind: Kind, no_password: bool) -> Result<()> {
    let (secret, public) = (at.paths.secret_key(kind.as_str()), at.paths.public_key(kind.as_str()));
    for path in [&secret, &public] {
        if path.symlink_metadata().is_ok() {
            return Err(exists(kind, path));
        }
    }
    let password = if no_password { None } else { Some(new_password()?) };
    let pair = match password {
        None => KeyPair::generate_unencrypted_keypair(),
        Some(password) => KeyPair::generate_encrypted_keypair(Some(password)),
    };
    let pair = pair.map_err(|error| Failure::failed(format!("cannot make a key: {error}")))?;
    let written = |error: minisign::PError| Failure::failed(format!("cannot write a key: {error}"));
    let comment = format!("minisign secret key of KSI, {kind}");
    let secret_text = pair.sk.to_box(Some(&comment)).map_err(written)?.into_string();
    let public_text = pair.pk.to_box().map_err(written)?.into_string();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&at.paths.config_dir)
        .map_err(|error| Failure::to_file("create", &at.paths.config_dir, &error))?;
    write_new(&secret, &secret_text, 0o600)
        .map_err(|failure| failure.unwrap_or_else(|| exists(kind, &secret)))?;
    write_new(&public, &public_text, 0o644)
        .map_err(|failure| failure.unwrap_or_else(|| exists(kind, &public)))?;
    let line = pair.pk.to_base64();
    let data = json!({"kind": kind, "public_key": line, "public": public, "secret": secret});
    let text = format!("{line}\n  public  {}\n  secret  {}", short(&public), short(&secret));
    at.out.print(&Report::text(&data, text)?.named(vec![line]))?;
    at.out.note(&format!(
        "Next: {} --all; then: ksi config set security.require_signed true",
        kind.sign_command()
    ));
    Ok(())
}

fn exists(kind: Kind, path: &Path) -> Failure {
    Failure::new(Exit::Conflict, "conflict", format!("{} exists already", path.display()))
        .hint(format!("a new key would leave {kind}.lock without a signature; move the old one away first"))
}

/// Writes a file that is not there yet; `None` where it is.
fn write_new(path: &Path, text: &str, mode: u32) -> std::result::Result<(), Option<Failure>> {
    let made = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let written = made.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
    written.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => None,
        _ => Some(Failure::to_file("write", path, &error)),
    })
}

fn show(at: &Invocation, kind: Kind) -> Result<()> {
    let path = at.paths.public_key(kind.as_str());
    let key = public(at, kind)?;
    let data = json!({"kind": kind, "public_key": key.to_string(), "public": path});
    at.out.print(&Report::text(&data, key.to_string())?.named(vec![key.to_string()]))
}

/// The public key of a kind.
///
/// # Errors
///
/// Ends with 4 where there is none.
pub(super) fn public(at: &Invocation, kind: Kind) -> Result<Key> {
    let path = at.paths.public_key(kind.as_str());
    let text = fs::read_to_string(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            Failure::not_found("key", kind.as_str()).hint(format!("make one: ksi key create {kind}"))
        }
        _ => Failure::to_file("read", &path, &error),
    })?;
    text.parse().map_err(|error| Failure::failed(format!("{}: {error}", path.display())))
}

/// The secret key of a kind, opened. `elsewhere` names another file than the
/// usual one.
///
/// # Errors
///
/// Ends with 4 where there is none, with 5 where others may read it or the
/// password is wrong.
pub(super) fn secret(
    at: &Invocation,
    kind: Kind,
    elsewhere: Option<&Path>,
) -> Result<(SecretKey, PublicKey)> {
    let usual = at.paths.secret_key(kind.as_str());
    let path = elsewhere.unwrap_or(&usual);
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Failure::not_found("secret key", &path.display().to_string())
            .hint(format!("make one: ksi key create {kind}; or name it: --key FILE")),
        _ => Failure::to_file("read", path, &error),
    };
    let mode = fs::metadata(path).map_err(unreadable)?.mode();
    if mode & 0o077 != 0 {
        let message = format!("others may read {}", path.display());
        return Err(Failure::new(Exit::Denied, "denied", message)
            .hint(format!("chmod 600 {}; if somebody has read it, make a new one", path.display())));
    }
    let text = fs::read_to_string(path).map_err(unreadable)?;
    let closed = |error: minisign::PError| {
        Failure::new(Exit::Denied, "denied", format!("{} cannot be opened: {error}", path.display()))
    };
    let boxed = || SecretKeyBox::from_string(&text).map_err(closed);
    let key = match boxed()?.into_unencrypted_secret_key() {
        Ok(key) => key,
        Err(_) => boxed()?.into_secret_key(Some(password("Password of the key: ")?)).map_err(closed)?,
    };
    let public = PublicKey::from_secret_key(&key).map_err(closed)?;
    Ok((key, public))
}

/// The password of a key that is made: twice, where a person types it.
fn new_password() -> Result<String> {
    let first = password("Password for the new key: ")?;
    if std::env::var_os(PASSWORD).is_none() && password("The same again: ")? != first {
        return Err(Failure::usage("the two passwords differ"));
    }
    match first.is_empty() {
        false => Ok(first),
        true => Err(Failure::usage("the password is empty").hint("a key without one: --no-password")),
    }
}

fn password(prompt: &str) -> Result<String> {
    let typed = match std::env::var(PASSWORD) {
        Ok(password) => password,
        Err(_) if !io::stdin().is_terminal() => {
            return Err(Failure::usage("the key has a password, and nobody is there to type it")
                .hint(format!("set {PASSWORD}; or make a key without one: --no-password")));
        }
        Err(_) => rpassword::prompt_password(prompt)
            .map_err(|error| Failure::failed(format!("cannot ask for the password: {error}")))?,
    };
    if typed.len() > PASSWORD_BYTES_MAX {
        return Err(Failure::usage(format!("a password has at most {PASSWORD_BYTES_MAX} bytes")));
    }
    Ok(typed)
}
