//! Files that are no plugins, and plugins that do not start.

use std::{
    ffi::CString,
    fs,
    path::{Path, PathBuf},
};

use ksi_tests::{Daemon, built, library};
use serde_json::{Value, json};

const PLACEMENTS: [&str; 2] = ["in-process", "child"];

/// The offset of the plugin header in a library.
fn header(bytes: &[u8]) -> usize {
    let found: Vec<usize> = bytes
        .windows(8)
        .enumerate()
        .filter(|(_, window)| *window == b"KSIPLUG\x01")
        .map(|(at, _)| at)
        .collect();
    // The constant itself may lie in the code as well; the header is followed
    // by the version of the ABI and its own size.
    let is_header = |&&at: &&usize| bytes[at + 8..at + 16] == [1, 0, 0, 0, 120, 0, 0, 0];
    *found.iter().find(is_header).expect("a plugin has a header")
}

/// A changed copy of the echo plugin.
fn changed(dir: &Path, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let mut bytes = fs::read(library("echo")).expect("echo is built");
    change(&mut bytes);
    let path = dir.join(name);
    fs::write(&path, bytes).expect("a copy can be written");
    path
}

/// A real shared library that is no plugin.
fn foreign_library() -> PathBuf {
    let maps = fs::read_to_string("/proc/self/maps").expect("a process has a map");
    let libc =
        maps.lines().filter_map(|line| line.split_whitespace().nth(5)).find(|path| path.contains("libc.so"));
    libc.expect("this program uses libc").into()
}

fn is_refused(daemon: &Daemon, path: &Path, code: &str, words: &[&str]) {
    for placement in PLACEMENTS {
        let load = json!({"library": path, "placement": placement});
        let refusal = daemon.ask("plugin:load", load).expect_err("it is no plugin");
        assert_eq!(refusal["code"], code, "{}: {refusal}", path.display());
        let message = refusal["message"].as_str().expect("a text");
        for word in words {
            assert!(message.contains(word), "no {word:?} in {message:?}");
        }
        assert!(message.contains(&*path.to_string_lossy()), "{message}");
    }
    let list = daemon.ask("plugin:list", json!({})).expect("the daemon lives");
    let names: Vec<&Value> = list["plugins"].as_array().expect("a list").iter().map(|p| &p["name"]).collect();
    assert_eq!(
        names,
        [
            "anthropic",
            "checkpoint",
            "claude-cli",
            "completion",
            "echo",
            "echo_child",
            "llama",
            "openai",
            "prompt",
            "state"
        ],
        "nothing is left of it"
    );
}

#[test]
fn a_file_that_is_no_plugin_is_refused_by_what_it_is() {
    let daemon = Daemon::without_model();
    let dir = daemon.home.path().to_owned();
    let file = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::write(&path, text).expect("a file can be written");
        path
    };
    is_refused(&daemon, &file("text.so", "not a library\n"), "invalid_payload", &["not a shared library"]);
    is_refused(&daemon, &file("empty.so", ""), "invalid_payload", &["not a shared library"]);
    is_refused(&daemon, &dir, "invalid_payload", &["is not a file"]);
    is_refused(&daemon, &dir.join("missing.so"), "not_found", &["No such file"]);
    is_refused(&daemon, &built().join("ksid"), "invalid_payload", &["no KSI plugin"]);
    is_refused(&daemon, &foreign_library(), "invalid_payload", &["no KSI plugin"]);
    let half = changed(&dir, "half.so", |bytes| bytes.truncate(bytes.len() / 2));
    is_refused(&daemon, &half, "invalid_payload", &["not a shared library"]);
    let elsewhere = if cfg!(target_arch = "x86_64") { 183 } else { 62 };
    let other = changed(&dir, "other.so", |bytes| bytes[18] = elsewhere);
    is_refused(&daemon, &other, "invalid_payload", &["it is built for", "this machine is"]);
    let pipe = dir.join("pipe.so");
    let name = CString::new(pipe.to_string_lossy().as_bytes()).expect("a path");
    nix::unistd::mkfifo(name.as_c_str(), nix::sys::stat::Mode::S_IRUSR).expect("a pipe can be made");
    is_refused(&daemon, &pipe, "invalid_payload", &["is not a file"]);
}

#[test]
fn a_plugin_of_another_kind_is_refused_by_its_header_without_running_it() {
    let daemon = Daemon::without_model();
    let dir = daemon.home.path().to_owned();
    is_refused(&daemon, &library("fixture_raw"), "conflict", &["99.0", "1.0"]);
    let minor = changed(&dir, "minor.so", |bytes| {
        let at = header(bytes);
        bytes[at + 10] = 2;
    });
    is_refused(&daemon, &minor, "conflict", &["1.2", "1.0"]);
    let feature = changed(&dir, "feature.so", |bytes| {
        let at = header(bytes);
        bytes[at + 16] |= 0x80;
    });
    is_refused(&daemon, &feature, "invalid_payload", &["0x80"]);
    let no_wall = changed(&dir, "no_wall.so", |bytes| {
        let at = header(bytes);
        bytes[at + 16] &= !1;
    });
    is_refused(&daemon, &no_wall, "invalid_payload", &["panics"]);
    let magic = changed(&dir, "magic.so", |bytes| {
        let at = header(bytes);
        bytes[at] = b'X';
    });
    is_refused(&daemon, &magic, "invalid_payload", &["magic"]);
    let name = changed(&dir, "name.so", |bytes| {
        let at = header(bytes);
        bytes[at + 24..at + 28].copy_from_slice(b"ECHO");
    });
    for placement in PLACEMENTS {
        let load = json!({"library": name, "placement": placement});
        let refusal = daemon.ask("plugin:load", load).expect_err("its name is none");
        assert_eq!(refusal["code"], "invalid_payload", "{refusal}");
    }
}

#[test]
fn a_plugin_that_calls_itself_otherwise_than_its_header_is_refused() {
    let daemon = Daemon::without_model();
    let path = changed(daemon.home.path(), "renamed.so", |bytes| {
        let at = header(bytes);
        bytes[at + 24..at + 28].copy_from_slice(b"ohce");
    });
    for placement in PLACEMENTS {
        let load = json!({"library": path, "placement": placement});
        let refusal = daemon.ask("plugin:load", load).expect_err("it has two names");
        let message = refusal["message"].as_str().expect("a text");
        assert!(message.contains("it calls itself echo"), "{message}");
    }
}

#[test]
fn a_plugin_that_refuses_to_start_is_refused_with_its_own_words() {
    let mut daemon = Daemon::without_model();
    for placement in PLACEMENTS {
        for (name, words) in [
            ("badstart", "badstart lacks what it needs"),
            ("panicstart", "panicked at start: as meant"),
            ("badopen", "badopen finds nothing to open (denied)"),
        ] {
            let refusal = daemon.load(&format!("fixture_{name}"), placement).expect_err("it does not start");
            assert_eq!(refusal["code"], "unavailable", "{refusal}");
            let message = refusal["message"].as_str().expect("a text");
            assert!(message.contains(words) && message.contains(name), "{placement}: {message}");
            let refusal = daemon.ask("plugin:inspect", json!({"name": name})).expect_err("it is forgotten");
            assert_eq!(refusal["code"], "not_found", "{refusal}");
        }
    }
    assert_eq!(daemon.ask("echo:say", json!({"text": "a"})).expect("others go on")["text"], "a");
    assert!(daemon.is_alive());
}

#[test]
fn a_plugin_of_the_manifest_that_does_not_start_leaves_the_rest_alone() {
    for placement in PLACEMENTS {
        let config = format!(
            "{}\n[plugins.badstart]\nlibrary = \"{}\"\nplacement = \"{placement}\"\n\
             restart = {{ backoff_min = \"1ms\", backoff_max = \"1ms\" }}\n",
            ksi_tests::WITHOUT_MODEL,
            library("fixture_badstart").display()
        );
        let mut daemon = ksi_tests::Home::with_config(&config).start();
        ksi_tests::wait_until("it is held", || {
            daemon.plugin("badstart").state == ksi_protocol::system::PluginState::Held
        });
        let health = daemon.ask("system:health", json!({})).expect("alive");
        assert_eq!(health["status"], "unhealthy");
        assert!(health["reasons"][0].as_str().expect("a text").contains("lacks what it needs"), "{health}");
        assert_eq!(daemon.ask("echo:say", json!({"text": "a"})).expect("others go on")["text"], "a");
        assert!(daemon.is_alive());
    }
}
