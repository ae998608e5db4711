//! Where signatures are required: what is loaded is what was signed, and all
//! else is refused by its digest, with everybody else undisturbed.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use ksi_protocol::system::PluginState;
use ksi_tests::{Daemon, Home, command, library, stderr, stdout, wait_until};
use serde_json::{Value, json};

use crate::model::{TINY, adapter::adapter, add_model};

const REQUIRED: &str = "[security]\nrequire_signed = true\n";
const WITHOUT_MODEL: &str = "[plugins.llama]\nenabled = false\n";

/// A home with libraries of its own, so that they can be spoilt.
struct Vault {
    home: Home,
    libraries: PathBuf,
}

impl Vault {
    fn new(config: &str, plugins: &[&str]) -> Self {
        let home = Home::with_config(config);
        let libraries = home.path().join("libraries");
        fs::create_dir(&libraries).unwrap();
        for plugin in plugins {
            let to = libraries.join(library(plugin).file_name().unwrap());
            fs::copy(library(plugin), &to).unwrap();
            fs::set_permissions(&to, Permissions::from_mode(0o644)).unwrap();
        }
        Self { home, libraries }
    }

    /// One with keys and a signed lock of the plugins.
    fn signed(config: &str, plugins: &[&str]) -> Self {
        let vault = Self::new(config, plugins);
        vault.fine(&["key", "create", "plugins", "--no-password"]);
        vault.fine(&[&["plugin", "sign"], plugins].concat());
        vault
    }

    fn environment(&self, command: &mut Command) {
        command.env("KSI_PLUGIN_DIR", &self.libraries);
    }

    fn ksi(&self, arguments: &[&str]) -> Output {
        let mut command = command("ksi", self.home.path());
        self.environment(&mut command);
        command.args(arguments).output().unwrap()
    }

    #[track_caller]
    fn ends(&self, arguments: &[&str], code: i32) -> String {
        let output = self.ksi(arguments);
        let words = format!("{}{}", stdout(&output), stderr(&output));
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {words}");
        words
    }

    #[track_caller]
    fn fine(&self, arguments: &[&str]) -> String {
        self.ends(arguments, 0)
    }

    fn library(&self, plugin: &str) -> PathBuf {
        self.libraries.join(format!("libplugin_{plugin}.so"))
    }

    fn start(self) -> Daemon {
        let libraries = self.libraries.clone();
        self.home.start_with(|command| {
            command.env("KSI_PLUGIN_DIR", libraries);
        })
    }
}

/// The digest as `ksi` sees it.
fn digest(vault: &Vault, noun: &str, name: &str) -> String {
    let report = vault.ksi(&[noun, "verify", name, "-o", "json"]);
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    report["files"][0]["sha256"].as_str().unwrap().to_owned()
}

/// Adds a byte at the end, which changes nothing of what a library does.
fn spoil(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    bytes.push(0);
    // A library that is mapped must not be written to in place.
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
}

fn why_held(daemon: &Daemon, plugin: &str) -> String {
    wait_until("the plugin is held", || daemon.plugin(plugin).state == PluginState::Held);
    daemon.plugin(plugin).last_error.unwrap()
}

#[test]
fn signed_plugins_run_and_a_changed_one_is_refused_by_both_digests_wherever_it_runs() {
    let config = format!(
        "{REQUIRED}{WITHOUT_MODEL}[plugins.completion]\nenabled = false\n\
         [plugins.echo_child]\nenabled = true\n[plugins.echo.restart]\nbackoff_min = \"1ms\"\nbackoff_max = \"1ms\"\n\
         [plugins.echo_child.restart]\nbackoff_min = \"1ms\"\nbackoff_max = \"1ms\"\n"
    );
    let vault = Vault::signed(&config, &["echo", "state", "checkpoint"]);
    let signed = digest(&vault, "plugin", "echo");
    let echo = vault.library("echo");
    let daemon = vault.start();
    daemon.ready();
    for event in ["echo:say", "echo_child:say"] {
        assert_eq!(daemon.ask(event, json!({"text": "hi"})).unwrap()["text"], "hi");
    }
    spoil(&echo);
    for plugin in ["echo", "echo_child"] {
        let refusal = daemon.ask("plugin:restart", json!({ "name": plugin })).unwrap_err();
        let message = refusal["message"].as_str().unwrap();
        assert!(message.contains(&signed) && message.contains("its digest is"), "{message}");
        let held = why_held(&daemon, plugin);
        assert!(held.contains(&signed), "{held}");
    }
    let health = daemon.health();
    assert!(health.reasons.iter().any(|reason| reason.contains("not what was signed")), "{health:?}");
    // Others go on.
    daemon.ask("state:set", json!({"key": "a", "value": 1})).unwrap();
}

#[test]
fn what_nobody_has_signed_is_refused_by_its_digest_and_signing_it_is_enough() {
    let config = format!(
        "{REQUIRED}{WITHOUT_MODEL}[plugins.completion]\nenabled = false\n[plugins.echo]\nenabled = false\n"
    );
    let vault = Vault::signed(&config, &["state", "checkpoint"]);
    let source = vault.home.path().join("libplugin_echo.so");
    fs::copy(library("echo"), &source).unwrap();
    fs::set_permissions(&source, Permissions::from_mode(0o644)).unwrap();
    let path = source.display().to_string();
    let load = json!({"library": path});
    let daemon = vault.start();
    daemon.ready();
    // Its own name is taken by the manifest, which is looked at afterwards.
    let refusal = daemon.ask("plugin:load", load.clone()).unwrap_err();
    assert_eq!(refusal["code"], "denied", "{refusal}");
    let message = refusal["message"].as_str().unwrap();
    assert!(message.contains("does not list it") && message.contains("its digest is"), "{message}");
    assert!(refusal["hint"].as_str().unwrap().contains("ksi plugin sign"), "{refusal}");
    assert!(daemon.ksi(&["plugin", "sign", &path]).status.success());
    assert_eq!(daemon.ask("plugin:load", load.clone()).unwrap_err()["code"], "conflict");
    // Others could change it between the check and the load.
    fs::set_permissions(&source, Permissions::from_mode(0o664)).unwrap();
    let refusal = daemon.ask("plugin:load", load).unwrap_err();
    assert!(refusal["message"].as_str().unwrap().contains("others than its owner may write"), "{refusal}");
}

#[test]
fn a_lock_that_was_changed_or_that_another_key_has_signed_lets_nothing_in() {
    let config = format!("{REQUIRED}{WITHOUT_MODEL}[plugins.completion]\nenabled = false\n");
    let vault = Vault::signed(&config, &["echo", "state", "checkpoint"]);
    let lock = vault.home.paths().plugins_lock();
    let good = fs::read_to_string(&lock).unwrap();
    fs::write(&lock, good.replace("name = \"echo\"", "name = \"ohce\"")).unwrap();
    // Nobody signs on top of it, and the daemon says why it would not start.
    let words = vault.ends(&["plugin", "sign", "state"], 5);
    assert!(words.contains("cannot be trusted"), "{words}");
    assert!(vault.ends(&["plugin", "verify"], 8).contains("signature"));
    fs::write(&lock, &good).unwrap();
    vault.fine(&["plugin", "verify"]);
    let public = vault.home.paths().public_key("plugins");
    fs::rename(&public, public.with_extension("old")).unwrap();
    fs::rename(vault.home.paths().secret_key("plugins"), public.with_extension("oldkey")).unwrap();
    vault.fine(&["key", "create", "plugins", "--no-password"]);
    assert!(vault.ends(&["plugin", "verify"], 8).contains("another key"));
    let daemon = vault.start();
    let status = daemon.plugin("echo");
    assert_ne!(status.state, PluginState::Ready);
    wait_until("the plugin says why", || daemon.plugin("echo").last_error.is_some());
    assert!(daemon.plugin("echo").last_error.unwrap().contains("signed by another key"));
}

#[test]
fn each_step_to_a_signed_model_says_the_next_and_one_that_is_gone_leaves_the_lock() {
    let vault = Vault::new(WITHOUT_MODEL, &[]);
    let models = vault.home.paths().models_dir();
    assert!(vault.ends(&["model", "verify"], 4).contains("ksi key create models"));
    vault.fine(&["key", "create", "models", "--no-password"]);
    assert!(vault.ends(&["model", "verify"], 4).contains("ksi model sign --all"));
    assert!(vault.ends(&["model", "sign", "--all"], 4).contains("ksi model add"));
    assert!(vault.ends(&["model", "sign", "ksi-tiny"], 4).contains("needs no signature"));
    for name in ["stays", "goes"] {
        add_model(&models, name, TINY);
        fs::set_permissions(models.join(format!("{name}.gguf")), Permissions::from_mode(0o600)).unwrap();
    }
    vault.fine(&["model", "sign", "--all"]);
    vault.fine(&["model", "verify"]);
    assert!(vault.fine(&["model", "rm", "goes", "--yes"]).contains("ksi model sign --all"));
    assert!(vault.ends(&["model", "verify"], 8).contains("ksi model sign --all"));
    assert!(vault.fine(&["model", "sign", "--all"]).contains("taken out"));
    vault.fine(&["model", "verify"]);
    vault.fine(&["model", "rm", "stays", "--yes"]);
    assert!(vault.fine(&["model", "sign", "--all"]).contains("taken out"), "also the last one");
    assert!(vault.ends(&["model", "sign", "--all"], 4).contains("ksi model add"));
}

#[test]
fn a_model_with_one_changed_byte_is_not_loaded_and_disturbs_nobody() {
    let vault = Vault::signed(REQUIRED, &["checkpoint", "completion", "echo", "llama", "state"]);
    let models = vault.home.paths().models_dir();
    for name in ["mine", "other", "unsigned"] {
        add_model(&models, name, TINY);
        fs::set_permissions(models.join(format!("{name}.gguf")), Permissions::from_mode(0o600)).unwrap();
    }
    vault.fine(&["key", "create", "models", "--no-password"]);
    vault.fine(&["model", "sign", "mine", "llama/other"]);
    let signed = digest(&vault, "model", "mine");
    let daemon = vault.start();
    daemon.ready();
    let pid = daemon.plugin("llama").pid;
    // The built-in one needs no signature.
    for name in ["ksi-tiny", "mine", "other"] {
        daemon
            .ask("llama:load", json!({"model": name}))
            .unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
    }
    daemon.ask("llama:unload", json!({"model": "mine"})).unwrap();
    let mut bytes = TINY.to_vec();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(models.join("mine.gguf"), &bytes).unwrap();
    let refusal = daemon.ask("llama:load", json!({"model": "mine"})).unwrap_err();
    assert_eq!(refusal["code"], "denied", "{refusal}");
    let message = refusal["message"].as_str().unwrap();
    let found = refusal["details"]["found"].as_str().unwrap();
    assert!(message.contains(&signed) && message.contains(found) && found != signed, "{message}");
    let refusal = daemon.ask("llama:load", json!({"model": "unsigned"})).unwrap_err();
    assert!(refusal["message"].as_str().unwrap().contains("does not list it"), "{refusal}");
    // What a request says has no say in it.
    for word in ["require_signed", "models_key"] {
        let refusal = daemon.ask("llama:load", json!({"model": "mine", word: false})).unwrap_err();
        assert_eq!(refusal["code"], "invalid_payload", "{refusal}");
    }
    let answer =
        daemon.ask("completion:request", json!({"prompt": "Hi", "model": "llama/other", "max_tokens": 2}));
    answer.unwrap();
    let llama = daemon.plugin("llama");
    assert_eq!((llama.pid, llama.restarts), (pid, 0));
    // As it was, it is loaded again.
    fs::write(models.join("mine.gguf"), TINY).unwrap();
    daemon.ask("llama:load", json!({"model": "mine"})).unwrap();
}

#[test]
fn an_adapter_that_nobody_has_signed_is_not_laid_over_a_model_that_somebody_has() {
    let config = format!("{REQUIRED}[plugins.llama.config.models.mine]\nlora = [\"style\"]\n");
    let vault = Vault::signed(&config, &["checkpoint", "completion", "echo", "llama", "state"]);
    let models = vault.home.paths().models_dir();
    add_model(&models, "mine", TINY);
    add_model(&models, "style", &adapter("llama", 192, 0.05));
    for name in ["mine", "style"] {
        fs::set_permissions(models.join(format!("{name}.gguf")), Permissions::from_mode(0o600)).unwrap();
    }
    vault.fine(&["key", "create", "models", "--no-password"]);
    vault.fine(&["model", "sign", "mine"]);
    let daemon = vault.start();
    daemon.ready();
    let load = || daemon.ask("llama:load", json!({"model": "mine"}));
    let refusal = load().unwrap_err();
    assert_eq!((&refusal["code"], &refusal["details"]["model"]), (&json!("denied"), &json!("style")));
    let message = refusal["message"].as_str().unwrap();
    let found = refusal["details"]["found"].as_str().unwrap();
    assert!(message.contains("does not list it") && message.contains(found), "{message}");
    assert!(daemon.ksi(&["model", "sign", "style"]).status.success());
    assert_eq!(load().unwrap()["lora"], json!(["style"]));
    // One byte of its numbers.
    daemon.ask("llama:unload", json!({"model": "mine"})).unwrap();
    let mut bytes = adapter("llama", 192, 0.05);
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(models.join("style.gguf"), bytes).unwrap();
    let message = load().unwrap_err()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("not what was signed") && message.contains(found), "{message}");
}

#[test]
fn a_signed_model_does_not_speak_for_another_file_of_its_name() {
    let vault = Vault::signed(REQUIRED, &["checkpoint", "completion", "echo", "llama", "state"]);
    let models = vault.home.paths().models_dir();
    let other = [TINY, &[0]].concat();
    for (name, bytes) in [("x", TINY), ("a/x", other.as_slice()), ("b/x", TINY)] {
        let path = models.join(format!("{name}.gguf"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    }
    vault.fine(&["key", "create", "models", "--no-password"]);
    vault.fine(&["model", "sign", "x", "a/x"]);
    vault.fine(&["model", "verify"]);
    let daemon = vault.start();
    daemon.ready();
    for name in ["x", "a/x"] {
        daemon
            .ask("llama:load", json!({"model": name}))
            .unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
    }
    // The same bytes as `x`, and not where they were signed.
    let refusal = daemon.ask("llama:load", json!({"model": "b/x"})).unwrap_err();
    assert_eq!(refusal["code"], "denied", "{refusal}");
    assert!(refusal["message"].as_str().unwrap().contains("b/x.gguf is not signed"), "{refusal}");
    let signed = daemon.ksi(&["model", "sign", "b/x"]);
    assert!(signed.status.success(), "{}", stderr(&signed));
    daemon.ask("llama:load", json!({"model": "b/x"})).unwrap();
    // A signed one in the place of another.
    daemon.ask("llama:unload", json!({"model": "a/x"})).unwrap();
    fs::copy(models.join("x.gguf"), models.join("a/x.gguf")).unwrap();
    let refusal = daemon.ask("llama:load", json!({"model": "a/x"})).unwrap_err();
    assert!(refusal["message"].as_str().unwrap().contains("a/x.gguf is not what was signed"), "{refusal}");
}

#[test]
fn without_a_key_of_models_there_is_the_built_in_model_and_a_word_about_the_others() {
    let vault = Vault::signed(REQUIRED, &["checkpoint", "completion", "echo", "llama", "state"]);
    add_model(&vault.home.paths().models_dir(), "mine", TINY);
    let daemon = vault.start();
    daemon.ready();
    daemon.ask("llama:load", json!({})).unwrap();
    let refusal = daemon.ask("llama:load", json!({"model": "mine"})).unwrap_err();
    assert_eq!(refusal["code"], "denied", "{refusal}");
    assert!(refusal["hint"].as_str().unwrap().contains("ksi key create models"), "{refusal}");
}

#[test]
fn the_daemon_that_could_not_load_its_plugins_says_so_before_it_is_restarted() {
    let vault =
        Vault::new(&format!("{REQUIRED}{WITHOUT_MODEL}"), &["checkpoint", "completion", "echo", "state"]);
    let mut check = command("ksid", vault.home.path());
    vault.environment(&mut check);
    let output = check.arg("--check").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("there is no key of plugins"), "{}", stderr(&output));
}

#[test]
fn a_key_is_private_made_once_and_opened_by_its_password_alone() {
    let home = Home::new();
    let ksi = |arguments: &[&str], password: &str| {
        command("ksi", home.path()).env("KSI_KEY_PASSWORD", password).args(arguments).output().unwrap()
    };
    let made = ksi(&["key", "create", "models", "-o", "json"], "correct horse");
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    let secret = home.paths().secret_key("models");
    assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
    let shown = stdout(&ksi(&["key", "show", "models"], ""));
    assert_eq!(shown.trim(), made["public_key"].as_str().unwrap());
    assert!(shown.starts_with("RW"), "as minisign writes it: {shown}");
    let again = ksi(&["key", "create", "models"], "correct horse");
    assert_eq!(again.status.code(), Some(6), "{}", stderr(&again));
    add_model(&home.paths().models_dir(), "mine", TINY);
    let wrong = ksi(&["model", "sign", "mine"], "battery staple");
    assert_eq!(wrong.status.code(), Some(5), "{}", stderr(&wrong));
    assert!(!home.paths().models_lock().exists());
    let right = ksi(&["model", "sign", "--all"], "correct horse");
    assert!(right.status.success(), "{}", stderr(&right));
    assert!(ksi(&["model", "verify"], "").status.success());
    fs::set_permissions(&secret, Permissions::from_mode(0o640)).unwrap();
    let shared = ksi(&["model", "sign", "mine"], "correct horse");
    assert_eq!(shared.status.code(), Some(5));
    assert!(stderr(&shared).contains("others may read"), "{}", stderr(&shared));
    assert_eq!(ksi(&["key", "show", "plugins"], "").status.code(), Some(4));
}
