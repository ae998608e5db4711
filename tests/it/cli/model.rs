//! `model`: files that come and go.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ksi_tests::{Daemon, Home, stderr, stdout};

use super::{data, error, failed, fine};

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

/// A LoRA adapter of rank 1 for the built-in model that changes nothing: all of
/// its numbers are zero.
fn adapter() -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let mut bytes =
        [b"GGUF".as_slice(), &3_u32.to_le_bytes(), &2_u64.to_le_bytes(), &3_u64.to_le_bytes()].concat();
    for (key, value) in
        [("general.type", "adapter"), ("general.architecture", "llama"), ("adapter.type", "lora")]
    {
        bytes.extend([text(key), 8_u32.to_le_bytes().to_vec(), text(value)].concat());
    }
    for (half, shape, offset) in [("a", [192_u64, 1], 0_u64), ("b", [1, 192], 768)] {
        bytes.extend(text(&format!("blk.0.attn_q.weight.lora_{half}")));
        bytes.extend(2_u32.to_le_bytes());
        bytes.extend(shape.iter().flat_map(|length| length.to_le_bytes()));
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(32) + 2 * 768, 0);
    bytes
}

#[test]
fn an_adapter_is_added_listed_as_one_and_laid_over_the_model_that_names_it() {
    let config = "[plugins.llama.config.models.\"ksi-*\"]\nlora = [\"still:0.5\"]\n";
    let daemon = Home::with_config(config).start();
    daemon.ready();
    let words = failed(daemon.ksi(&["ask", "hi"]), 4);
    assert!(words.contains("no adapter named `still`"), "{words}");
    let source = daemon.home.path().join("still.gguf");
    fs::write(&source, adapter()).expect("a file");
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
