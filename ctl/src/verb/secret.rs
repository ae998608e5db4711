//! `secret …`: the keyring, a file that nobody but its owner may read.
//!
//! Values come in through standard input or a prompt without echo, never
//! through the command line, which every user of the machine can read, and
//! never go out again: the daemon alone reads them, for the plugin whose
//! configuration names them.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, IsTerminal, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use ksi_protocol::secret::{BYTES_MAX, BYTES_MIN, HANDLE, is_name};
use nix::unistd::geteuid;
use serde_json::json;
use toml_edit::{DocumentMut, value};

use crate::{
    args::Secret,
    error::{Failure, Result},
    exit::Exit,
    invocation::{Invocation, short},
    output::{Report, Table},
};

/// What a keyring begins with.
const PREFACE: &str = "# Secrets of KSI. Nobody but the daemon reads them; ksi secret set NAME adds one.\n";

/// `ksi secret …`.
///
/// # Errors
///
/// Refuses a keyring that others may read, and a value that cannot be one.
pub(super) fn run(at: &Invocation, secret: &Secret) -> Result<()> {
    let mut keyring = Keyring::open(at.paths.keyring())?;
    match secret {
        Secret::List => list(at, &keyring),
        Secret::Set { name } => {
            if !is_name(name) {
                return Err(Failure::usage(format!("`{name}` cannot name a secret"))
                    .hint("1 to 64 lower-case letters, digits, `_` and `-`"));
            }
            let replaced = keyring.document.insert(name, value(read_value(name)?)).is_some();
            keyring.save()?;
            let how = if replaced { "replaced" } else { "kept" };
            let data = json!({"name": name, "replaced": replaced, "keyring": keyring.path});
            at.out.print(&Report::text(&data, format!("{name} {how} in {}", short(&keyring.path)))?)?;
            at.out.note(&format!(
                "Next: write \"{HANDLE}{name}\" where the plugin's configuration needs it, then: ksi reload && \
                 ksi plugin reload PLUGIN"
            ));
            Ok(())
        }
        Secret::Rm { name } => {
            if keyring.document.remove(name).is_none() {
                return Err(Failure::not_found("secret", name).hint("all secrets: ksi secret list"));
            }
            keyring.save()?;
            let data = json!({"name": name, "removed": true});
            at.out.print(&Report::text(&data, format!("{name} removed"))?)
        }
    }
}

fn list(at: &Invocation, keyring: &Keyring) -> Result<()> {
    let names: BTreeMap<&str, ()> = keyring.document.iter().map(|(name, _)| (name, ())).collect();
    let mut table = Table::new(&["NAME", "HANDLE"]);
    for name in names.keys() {
        table.row([(*name).to_owned(), format!("{HANDLE}{name}")]);
    }
    let secrets: Vec<_> =
        names.keys().map(|name| json!({"name": name, "handle": format!("{HANDLE}{name}")})).collect();
    let data = json!({"secrets": secrets, "keyring": keyring.path});
    at.out.print(&Report::list(
        &data,
        "secrets",
        names.keys().map(|name| (*name).to_owned()).collect(),
        table,
    )?)
}

/// The value: the whole of standard input but for its last newline, or what a
/// person types.
fn read_value(name: &str) -> Result<String> {
    let text = if io::stdin().is_terminal() {
        rpassword::prompt_password(format!("Value of {name}: "))
            .map_err(|error| Failure::failed(format!("cannot ask for the value: {error}")))?
    } else {
        let mut text = String::new();
        let limit = BYTES_MAX as u64 + 2;
        io::stdin()
            .take(limit)
            .read_to_string(&mut text)
            .map_err(|error| Failure::usage(format!("standard input cannot be read: {error}")))?;
        text
    };
    let value = text.strip_suffix('\n').unwrap_or(&text);
    match value.len() {
        BYTES_MIN..=BYTES_MAX => Ok(value.to_owned()),
        length => Err(Failure::usage(format!(
            "the value has {length} bytes; a secret has {BYTES_MIN} to {BYTES_MAX}"
        ))
        .hint("a shorter one could not be kept out of logs; pipe it in: ksi secret set NAME < FILE")),
    }
}

/// The keyring, opened for a change.
struct Keyring {
    path: PathBuf,
    document: DocumentMut,
}

impl Keyring {
    fn open(path: PathBuf) -> Result<Self> {
        let document = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => PREFACE.parse(),
            Err(error) => return Err(Failure::to_file("read", &path, &error)),
            Ok(metadata) => {
                let private = metadata.mode() & 0o077 == 0 && metadata.uid() == geteuid().as_raw();
                if !metadata.is_file() || !private {
                    let message = format!("{} is not a file that you alone may read", path.display());
                    return Err(Failure::new(Exit::Denied, "denied", message).hint(format!(
                        "chmod 600 {}; if somebody has read it, replace what is in it",
                        path.display()
                    )));
                }
                let text =
                    fs::read_to_string(&path).map_err(|error| Failure::to_file("read", &path, &error))?;
                text.parse()
            }
        };
        // An error of the parser quotes the line, and that is a secret.
        let damaged = || Failure::failed(format!("{} is damaged: it is not TOML", path.display()));
        Ok(Self { document: document.map_err(|_: toml_edit::TomlError| damaged())?, path })
    }

    /// Writes it whole or not at all.
    fn save(&self) -> Result<()> {
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|error| Failure::to_file("create", dir, &error))?;
        let part = self.path.with_extension(format!("{}.part", std::process::id()));
        let written = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&part)
            .and_then(|mut file| {
                file.write_all(self.document.to_string().as_bytes()).and_then(|()| file.sync_all())
            })
            .and_then(|()| fs::rename(&part, &self.path));
        written.map_err(|error| {
            // The first error is the one to report.
            let _ = fs::remove_file(&part);
            Failure::to_file("write", &self.path, &error)
        })
    }
}
