//! `model`: files that come and go.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ksi_tests::{Daemon, Home, stderr, stdout};

use super::{data, error, failed, fine};
use crate::model::adapter::adapter;

/// The file of the built-in model, to add under other names.
fn builtin(daemon: &Daemon) -> PathBuf {
    let shown = data(daemon.ksi(&["model", "show", "ksi-tiny", "-o", "json"]));
    shown["path"].as_str().expect("the built-in model has a file").into()
}

fn started() -> Daemon {
    let daemon = Home::new().start();
    daemon.ready();
    daemon
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn a_model_is_added_listed_shown_asked_and_removed() {
    let daemon = started();
    let source = text(&builtin(&daemon));
    let added = data(daemon.ksi(&["model", "add", &source, "--name", "mine", "-o", "json"]));
    let path = daemon.home.paths().models_dir().join("mine.gguf");
    assert_eq!((&added["model"], &added["path"]), (&"llama/mine".into(), &text(&path).into()));
    assert!(path.is_file());
    let names = stdout(&fine(daemon.ksi(&["model", "list", "-o", "name"])));
    assert_eq!(names, "llama/ksi-tiny\nllama/mine\n");
    let shown = stdout(&fine(daemon.ksi(&["model", "show", "llama/mine"])));
    assert!(shown.contains("on disk") && !shown.contains("built-in"), "{shown}");
    assert_eq!(
        data(daemon.ksi(&["ask", "-m", "llama/mine", "hi", "-o", "json"]))["answered"]["model"],
        "mine"
    );
    // The name is taken now.
    assert_eq!(
        error(daemon.ksi(&["model", "add", &source, "--name", "mine", "-o", "json"]), 6)["code"],
        "conflict"
    );
    // Nobody is there to confirm it.
    let words = failed(daemon.ksi(&["model", "rm", "mine"]), 2);
    assert!(words.contains("--yes") && path.is_file(), "{words}");
    fine(daemon.ksi(&["model", "rm", "mine", "--yes"]));
    assert!(!path.exists());
    assert_eq!(stdout(&fine(daemon.ksi(&["model", "list", "-o", "name"]))), "llama/ksi-tiny\n");
    failed(daemon.ksi(&["ask", "-m", "llama/mine", "hi"]), 4);
}

#[test]
fn an_adapter_is_added_listed_as_one_and_laid_over_the_model_that_names_it() {
    let config = "[plugins.llama.config.models.\"ksi-*\"]\nlora = [\"still:0.5\"]\n";
    let daemon = Home::with_config(config).start();
    daemon.ready();
    let words = failed(daemon.ksi(&["ask", "hi"]), 4);
    assert!(words.contains("no adapter named `still`"), "{words}");
    let source = daemon.home.path().join("still.gguf");
    fs::write(&source, adapter("llama", 192, 0.0)).expect("a file");
    let output = fine(daemon.ksi(&["model", "add", &text(&source)]));
    assert!(stderr(&output).contains("lora = [\"still\"]"), "{}", stderr(&output));
    let list = stdout(&fine(daemon.ksi(&["model", "list"])));
    let line = list.lines().find(|line| line.starts_with("still")).expect("it is listed");
    assert!(line.contains("adapter") && !line.contains("broken"), "{line}");
    let loaded = data(daemon.ksi(&["model", "load", "ksi-tiny", "-o", "json"]));
    assert_eq!(loaded["lora"], serde_json::json!(["still:0.5"]));
    fine(daemon.ksi(&["ask", "hi"]));
    let words = failed(daemon.ksi(&["ask", "-m", "llama/still", "hi"]), 1);
    assert!(words.contains("is an adapter") && words.contains("ksi model list"), "{words}");
}

#[test]
fn a_model_is_loaded_with_settings_of_its_own_and_shown_with_them_until_it_is_unloaded() {
    let daemon = started();
    let load = |more: &[&str]| daemon.ksi(&[&["model", "load", "ksi-tiny", "-o", "json"], more].concat());
    let loaded = data(load(&["--set", "context=256", "--set", "flash_attn=off", "--set", "slots=1"]));
    assert_eq!((&loaded["context"], &loaded["slots"]), (&256.into(), &1.into()));
    fine(daemon.ksi(&["ask", "hi"]));
    let shown = stdout(&fine(daemon.ksi(&["model", "show", "ksi-tiny"])));
    for part in ["context=256 (request)", "flash_attn=off (request)", "slots=1 (request)"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let list = stdout(&fine(daemon.ksi(&["model", "list", "-o", "wide"])));
    assert!(list.contains("SETTINGS") && list.contains("flash_attn=off"), "{list}");
    let refused = error(load(&["--set", "thread=1", "--set", "mlock=3"]), 2);
    assert_eq!(refused["code"], "invalid_payload", "{refused}");
    let words = refused["message"].as_str().expect("words");
    assert!(
        words.contains("did you mean `threads`?") && words.contains("`settings.mlock` is 3"),
        "{refused}"
    );
    assert!(failed(load(&["--set", "threads"]), 2).contains("NAME=VALUE"));
    fine(daemon.ksi(&["model", "unload", "ksi-tiny"]));
    assert_eq!(data(load(&[]))["context"], 1024);
}

#[test]
fn even_the_toy_says_enough_to_be_measured() {
    let daemon = started();
    let report =
        data(daemon.ksi(&["model", "bench", "ksi-tiny", "-n", "16", "--at-once", "2", "-o", "json"]));
    let measured = &report["measured"][0];
    assert_eq!(measured["at_once"], 2, "{report}");
    for figure in ["prompt_per_second", "first_token_ms", "generate_per_second", "total_per_second"] {
        assert!(measured[figure].as_f64().is_some_and(|figure| figure > 0.0), "{figure}: {report}");
    }
}

#[test]
fn models_in_directories_below_are_listed_asked_and_removed_by_their_paths() {
    let daemon = started();
    let models = daemon.home.paths().models_dir();
    fs::create_dir_all(models.join("sub")).expect("a directory");
    fs::copy(builtin(&daemon), models.join("sub/mine.gguf")).expect("a copy");
    let names = stdout(&fine(daemon.ksi(&["model", "list", "-o", "name"])));
    assert_eq!(names, "llama/ksi-tiny\nllama/sub/mine\n");
    fine(daemon.ksi(&["ask", "-m", "llama/sub/mine", "hi"]));
    let shown = data(daemon.ksi(&["model", "show", "sub/mine", "-o", "json"]));
    assert_eq!(shown["loaded"], true, "{shown}");
    fine(daemon.ksi(&["model", "rm", "llama/sub/mine", "--yes"]));
    assert!(!models.join("sub/mine.gguf").exists());
}

#[test]
fn a_link_is_removed_and_not_what_it_leads_to() {
    let daemon = started();
    let source = daemon.home.path().join("elsewhere.gguf");
    fs::copy(builtin(&daemon), &source).expect("a copy");
    fine(daemon.ksi(&["model", "add", &text(&source), "--link", "--name", "linked"]));
    let link = daemon.home.paths().models_dir().join("linked.gguf");
    assert_eq!(fs::read_link(&link).expect("a link"), source);
    fine(daemon.ksi(&["ask", "-m", "llama/linked", "hi"]));
    fine(daemon.ksi(&["model", "rm", "linked", "--yes"]));
    assert!(fs::symlink_metadata(&link).is_err() && source.is_file());
    // A link may be added, too; its file is copied.
    let to_it = daemon.home.path().join("symlink.gguf");
    std::os::unix::fs::symlink(&source, &to_it).expect("a link");
    fine(daemon.ksi(&["model", "add", &text(&to_it)]));
    let copy = daemon.home.paths().models_dir().join("symlink.gguf");
    assert!(fs::symlink_metadata(copy).is_ok_and(|meta| meta.is_file()));
}

#[test]
fn a_file_that_is_no_model_is_refused_and_leaves_nothing_behind() {
    let daemon = started();
    let write = |name: &str, bytes: &[u8]| {
        let path = daemon.home.path().join(name);
        fs::write(&path, bytes).expect("a file");
        text(&path)
    };
    let noise = write("noise.gguf", b"this is no model at all");
    let words = failed(daemon.ksi(&["model", "add", &noise]), 2);
    assert!(words.contains("no GGUF file"), "{words}");
    let whole = fs::read(builtin(&daemon)).expect("the model");
    let cut = write("cut.gguf", &whole[..whole.len() / 2]);
    let empty = write("empty.gguf", b"GGUF");
    for file in [&cut, &empty] {
        let words = failed(daemon.ksi(&["model", "add", file]), 1);
        assert!(words.contains("cannot use it"), "{words}");
    }
    failed(daemon.ksi(&["model", "add", "/nowhere/x.gguf"]), 4);
    failed(daemon.ksi(&["model", "add", &cut, "--name", "../x"]), 2);
    let left = fs::read_dir(daemon.home.paths().models_dir()).map_or(0, Iterator::count);
    assert_eq!(left, 0);
    assert_eq!(stdout(&fine(daemon.ksi(&["model", "list", "-o", "name"]))), "llama/ksi-tiny\n");
}

#[test]
fn a_model_is_loaded_and_unloaded_by_hand() {
    let daemon = started();
    let said = stdout(&fine(daemon.ksi(&["model", "load", "ksi-tiny"])));
    assert!(said.starts_with("llama/ksi-tiny loaded"), "{said}");
    assert!(stdout(&fine(daemon.ksi(&["model", "list"]))).contains("loaded"));
    assert!(stdout(&fine(daemon.ksi(&["status"]))).contains("ksi-tiny, context"));
    let said = stdout(&fine(daemon.ksi(&["model", "unload", "llama/ksi-tiny"])));
    assert_eq!(said, "llama/ksi-tiny unloaded\n");
    assert_eq!(
        stdout(&fine(daemon.ksi(&["model", "unload", "ksi-tiny"]))),
        "llama/ksi-tiny was not loaded\n"
    );
    for verb in ["load", "show"] {
        let error = error(daemon.ksi(&["model", verb, "ksi-tine", "-o", "json"]), 4);
        assert!(error["hint"].as_str().is_some_and(|hint| hint.contains("ksi-tiny")), "{verb}: {error}");
    }
    failed(daemon.ksi(&["model", "rm", "ksi-tiny", "--yes"]), 4);
}

#[test]
fn a_model_can_be_added_while_nothing_runs() {
    let daemon = started();
    let source = text(&builtin(&daemon));
    let home = daemon.kill();
    fine(home.ksi(&["model", "add", &source, "--name", "early"]));
    let daemon = home.start();
    daemon.ready();
    assert!(stdout(&fine(daemon.ksi(&["model", "list", "-o", "name"]))).contains("llama/early"));
}
