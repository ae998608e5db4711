//! `plugin new`: what it writes builds as it is and runs in both placements.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use ksi_tests::{Daemon, built};
use serde_json::json;

use super::{data, error, fine};

fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the root")
}

/// Builds a project beside the build under test, so that the next run finds
/// the dependencies built.
fn build(project: &Path) -> PathBuf {
    // The versions of the checkout are those that are there without a network.
    fs::copy(checkout().join("Cargo.lock"), project.join("Cargo.lock")).expect("a lock file");
    let target = built().parent().expect("a build directory lies in another").join("plugin-new");
    let output = Command::new(env!("CARGO"))
        .args(["build", "--release", "--offline"])
        .env("CARGO_TARGET_DIR", &target)
        .current_dir(project)
        .stdin(Stdio::null())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", ksi_tests::stderr(&output));
    target.join("release")
}

#[test]
fn a_new_plugin_builds_and_answers_in_both_placements() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let sdk = checkout().display().to_string();
    let written = data(daemon.ksi(&["plugin", "new", "night_owl", "--sdk", &sdk, "-o", "json"]));
    let project = daemon.home.path().join("night_owl");
    assert_eq!(written["library"], "target/release/libplugin_night_owl.so");
    for file in ["Cargo.toml", "src/lib.rs", ".gitignore"] {
        assert!(project.join(file).is_file(), "{file}");
    }
    assert_eq!(
        error(daemon.ksi(&["plugin", "new", "night_owl", "--sdk", &sdk, "-o", "json"]), 6)["code"],
        "conflict"
    );
    let library = build(&project).join("libplugin_night_owl.so").display().to_string();
    for placement in ["in-process", "child"] {
        let loaded = data(daemon.ksi(&["plugin", "load", &library, "--placement", placement, "-o", "json"]));
        assert_eq!((&loaded["state"], &loaded["placement"]), (&"ready".into(), &placement.into()));
        let said = data(daemon.ksi(&["send", "night_owl:say", "--text", "hoo", "-o", "json"]));
        assert_eq!(said, json!({"text": "hoo"}), "{placement}");
        fine(daemon.ksi(&["describe", "night_owl:say"]));
        fine(daemon.ksi(&["plugin", "unload", "night_owl"]));
        super::failed(daemon.ksi(&["send", "night_owl:say", "--text", "hoo"]), 4);
    }
}

#[test]
fn without_the_sdk_nothing_is_written() {
    let home = ksi_tests::Home::new();
    let error = error(home.ksi(&["plugin", "new", "owl", "--sdk", "/nowhere", "-o", "json"]), 4);
    assert!(error["hint"].as_str().is_some_and(|hint| hint.contains("--sdk")), "{error}");
    assert!(!home.path().join("owl").exists());
}
