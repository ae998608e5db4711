//! A configuration file from a careless hand, once as the user's `ksi.toml`
//! and once in place of the shipped manifest.
//!
//! Nothing may make the reader panic or hang, and what is refused says where.
#![no_main]

use std::{fs, path::PathBuf, sync::LazyLock};

use ksid::config::{Config, Sources};
use libfuzzer_sys::fuzz_target;

/// Where this process writes files of such a name.
fn path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("ksi-fuzz-config-{}-{name}.toml", std::process::id()))
}

/// Written anew for each input.
static FILE: LazyLock<PathBuf> = LazyLock::new(|| path("input"));
static ABSENT: LazyLock<PathBuf> = LazyLock::new(|| path("absent"));

/// What the user's file is laid over: of the shipped manifest what is about
/// the daemon, one plugin, and the one that keeps its work. To parse all of it
/// takes ten times as long as all that an input is for.
static MANIFEST: LazyLock<PathBuf> = LazyLock::new(|| {
    let shipped = include_str!("../../events.toml");
    let mut kept = true;
    let lines = shipped.lines().filter(|line| {
        if line.starts_with('[') {
            let of_a_plugin = line.starts_with("[plugins.") || line.starts_with("[events.");
            kept = !of_a_plugin || line.contains("echo") || line.starts_with("[plugins.checkpoint");
        }
        kept && !line.is_empty() && !line.starts_with('#')
    });
    let file = path("manifest");
    fs::write(&file, lines.collect::<Vec<_>>().join("\n")).expect("the temporary directory can be written");
    let sources = Sources { events: Some(file.clone()), ..Sources::file(&ABSENT) };
    let config = Config::load(&sources).expect("it is whole without the other plugins");
    assert!(config.policy("echo:say", "echo:say").is_some(), "and has the one");
    file
});

fuzz_target!(|bytes: &[u8]| {
    fs::write(&*FILE, bytes).expect("the temporary directory can be written");
    let as_users = Sources { events: Some(MANIFEST.clone()), ..Sources::file(&FILE) };
    let as_manifest = Sources { events: Some(FILE.clone()), ..Sources::file(&ABSENT) };
    for sources in [as_users, as_manifest] {
        if let Err(invalid) = Config::load(&sources) {
            assert!(!invalid.to_string().is_empty(), "a refusal says why");
        }
    }
});
