//! Where the libraries of llama.cpp are found that are not part of this one: with
//! `dynamic-backends` they stay where they were built.

use std::{env, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Set by llama-cpp-sys-2 for this feature alone.
    let Some(backends) = env::var_os("DEP_LLAMA_BACKENDS_DIR").map(PathBuf::from) else { return };
    let Some(built) = backends.parent() else { return };
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", built.join("lib").display());
    println!(
        "cargo:warning=a sandbox must let the plugin read its backends: plugins.llama.sandbox.read = [{:?}]",
        built.display()
    );
}
