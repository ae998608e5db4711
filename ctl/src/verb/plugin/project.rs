//! The project of a new plugin: the `echo` plugin under another name.
//!
//! What is written builds as it is. Nothing that exists is overwritten.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::error::{Failure, Result};
use crate::exit::Exit;

/// The plugin that serves as the template; it is built and tested with KSI.
const TEMPLATE: &str = include_str!("../../../../plugins/echo/src/lib.rs");

/// What was written.
#[derive(Debug)]
pub(super) struct Project {
    /// The directory.
    pub(super) dir: PathBuf,
    /// Its files.
    pub(super) files: Vec<String>,
    /// Where the library will lie once it is built.
    pub(super) library: String,
}

/// Writes the project.
///
/// # Errors
///
/// Fails where the name is none, the SDK is not found, or the directory holds
/// a project already.
pub(super) fn write(name: &str, dir: &Path, sdk: Option<&Path>) -> Result<Project> {
    check(name)?;
    let sdk = sdk_dir(sdk)?;
    let manifest = dir.join("Cargo.toml");
    if manifest.exists() {
        return Err(Failure::new(
            Exit::Conflict,
            "conflict",
            format!("{} exists already", manifest.display()),
        )
        .hint("choose another directory: --dir DIR"));
    }
    let src = dir.join("src");
    fs::create_dir_all(&src).map_err(|error| Failure::to_file("create", &src, &error))?;
    let mut files = Vec::new();
    for (path, text) in [
        (manifest, cargo_toml(name, &sdk)),
        (src.join("lib.rs"), source(TEMPLATE, name)),
        (dir.join(".gitignore"), "/target\n".to_owned()),
    ] {
        fs::write(&path, text).map_err(|error| Failure::to_file("write", &path, &error))?;
        files.push(path.display().to_string());
    }
    let library = format!("target/release/libplugin_{name}.so");
    Ok(Project { dir: dir.to_owned(), files, library })
}

/// A name is a Rust identifier and a namespace at once.
fn check(name: &str) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let starts = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
    if starts && name.bytes().all(allowed) && name.len() <= 32 {
        return Ok(());
    }
    Err(Failure::usage(format!("`{name}` cannot name a plugin"))
        .hint("a lower-case letter, then up to 31 lower-case letters, digits or _"))
}

/// Where `ksi-sdk` lies: as told, or in the checkout that this executable, or
/// the current directory, is in.
fn sdk_dir(told: Option<&Path>) -> Result<PathBuf> {
    let is_sdk = |dir: &PathBuf| {
        fs::read_to_string(dir.join("Cargo.toml")).is_ok_and(|text| text.contains("name = \"ksi-sdk\""))
    };
    let absolute = |dir: PathBuf| dir.canonicalize().unwrap_or(dir);
    if let Some(told) = told {
        let found = [told.to_owned(), told.join("kernel/sdk")].into_iter().find(is_sdk);
        return found.map(absolute).ok_or_else(|| {
            Failure::not_found("ksi-sdk", &told.display().to_string())
                .hint("--sdk takes the root of a KSI checkout, or its kernel/sdk")
        });
    }
    let starts = [std::env::current_exe().ok(), std::env::current_dir().ok()];
    let above = |start: &PathBuf| start.ancestors().map(|dir| dir.join("kernel/sdk")).find(is_sdk);
    starts.iter().flatten().find_map(above).map(absolute).ok_or_else(|| {
        Failure::new(Exit::NotFound, "not_found", "ksi-sdk was not found: this is no KSI checkout")
            .hint("say where it lies: ksi plugin new NAME --sdk /path/to/ksi")
    })
}

fn cargo_toml(name: &str, sdk: &Path) -> String {
    let sdk = toml_edit::value(sdk.display().to_string());
    format!(
        "[package]
name = \"plugin-{name}\"
version = \"0.1.0\"
edition = \"2024\"
publish = false

# A workspace of its own, wherever it lies.
[workspace]

[lib]
crate-type = [\"cdylib\", \"rlib\"]

[dependencies]
ksi-sdk = {{ path ={sdk} }}
serde = {{ version = \"1\", features = [\"derive\"] }}

# The panic wall around plugins stands on unwinding.
[profile.release]
panic = \"unwind\"

[lints.clippy]
unused_async = \"warn\"
",
        sdk = match sdk.to_string() {
            text if text.starts_with(' ') => text,
            text => format!(" {text}"),
        }
    )
}

/// The template with its names replaced: `Echo` and `echo` by those of the
/// new plugin, where they stand alone or begin an event's name.
fn source(template: &str, name: &str) -> String {
    let pascal: String = name
        .split('_')
        .map(|part| {
            let mut chars = part.chars();
            chars
                .next()
                .map_or(String::new(), |first| first.to_ascii_uppercase().to_string() + chars.as_str())
        })
        .collect();
    template.replace("Echo", &pascal).replace("echo", name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_template_become_those_of_the_plugin() {
        let template = "struct Echo; const NAME: &str = \"echo\"; on.request(\"echo:say\", Echo::say)";
        assert_eq!(
            source(template, "night_owl"),
            "struct NightOwl; const NAME: &str = \"night_owl\"; on.request(\"night_owl:say\", NightOwl::say)"
        );
    }

    #[test]
    fn only_identifiers_name_a_plugin() {
        for (name, fine) in [
            ("greeter", true),
            ("night_owl2", true),
            ("Greeter", false),
            ("2x", false),
            ("_x", false),
            ("a-b", false),
            ("", false),
            ("../x", false),
        ] {
            assert_eq!(check(name).is_ok(), fine, "{name}");
        }
    }

    #[test]
    fn a_project_is_written_once_and_never_overwritten() {
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("greeter");
        let project = write("greeter", &dir, Some(checkout)).unwrap();
        assert_eq!(project.files.len(), 3);
        let manifest = fs::read_to_string(dir.join("Cargo.toml")).unwrap();
        let document: toml_edit::DocumentMut = manifest.parse().unwrap();
        assert_eq!(document["package"]["name"].as_str(), Some("plugin-greeter"));
        let sdk = document["dependencies"]["ksi-sdk"]["path"].as_str().unwrap();
        assert!(Path::new(sdk).join("Cargo.toml").is_file(), "{sdk}");
        assert_eq!(write("greeter", &dir, Some(checkout)).unwrap_err().exit, Exit::Conflict);
    }

    #[test]
    fn a_project_depends_on_all_that_the_template_does() {
        let template: toml_edit::DocumentMut =
            include_str!("../../../../plugins/echo/Cargo.toml").parse().unwrap();
        let written: toml_edit::DocumentMut = cargo_toml("x", Path::new("/sdk")).parse().unwrap();
        for (name, _) in template["dependencies"].as_table().unwrap() {
            assert!(written["dependencies"].get(name).is_some(), "{name}");
        }
    }

    #[test]
    fn a_missing_sdk_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let failure = write("x", &dir.path().join("x"), Some(dir.path())).unwrap_err();
        assert_eq!(failure.exit, Exit::NotFound);
        assert!(!dir.path().join("x").exists());
    }
}
