//! A configuration file from a careless hand, once as the user's `ksi.toml`
//! and once in place of the shipped manifest.
//!
//! Nothing may make the reader panic or hang, and what is refused says where.
#![no_main]

use std::{fs, path::PathBuf, sync::LazyLock};

use ksid::config::{Config, Sources};
use libfuzzer_sys::fuzz_target;

/// One file for each process, written anew for each input.
static FILE: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("ksi-fuzz-config-{}.toml", std::process::id())));

fuzz_target!(|bytes: &[u8]| {
    fs::write(&*FILE, bytes).expect("the temporary directory can be written");
    if let Err(invalid) = Config::load(&Sources::file(&FILE)) {
        assert!(!invalid.to_string().is_empty(), "a refusal says why");
    }
    let absent = FILE.with_extension("absent");
    let _ = Config::load(&Sources { events: Some(FILE.clone()), ..Sources::file(&absent) });
});
