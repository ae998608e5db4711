//! Model files: where they are looked for, what is wrong with broken ones, and
//! that these disturb nobody.

use ksi_protocol::system::PluginState;
use ksi_tests::{Daemon, Home};
use serde_json::{Value, json};

use super::{TINY, add_model, answer, complete, find, fresh, greedy, model, text, with};

fn ask_of(name: &str) -> Value {
    with(greedy("Hello"), json!({"model": format!("llama/{name}")}))
}

/// The built-in model with other bytes at a place.
fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = TINY.to_vec();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

/// Files that must not be shown to llama.cpp, each with a part of what is said
/// of it.
fn broken() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let noise: Vec<u8> = (0..100_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    let huge = u64::MAX.to_le_bytes();
    let key = b"llama.block_count";
    let tokens = b"tokenizer.ggml.tokens";
    let tensor = b"output_norm.weight";
    vec![
        ("cut", TINY[..TINY.len() - 1].to_vec(), "truncated"),
        ("half", TINY[..TINY.len() / 2].to_vec(), "truncated"),
        ("head", TINY[..30].to_vec(), "truncated"),
        ("empty", Vec::new(), "not a GGUF file"),
        ("noise", noise, "not a GGUF file"),
        ("page", b"<html><body>404 Not Found</body></html>\n".to_vec(), "not a GGUF file"),
        ("version", patched(4, &99_u32.to_le_bytes()), "version 99"),
        ("tensors", patched(8, &huge), "tensors"),
        ("entries", patched(16, &huge), "metadata entries"),
        // The length of the first key.
        ("key", patched(24, &huge), "key"),
        ("blocks", patched(find(TINY, key) + key.len() + 4, &[0xff; 4]), "block_count"),
        // Type of the value, type of the elements, their number.
        ("tokens", patched(find(TINY, tokens) + tokens.len() + 8, &huge), "array elements"),
        // One dimension: its number, its length, its type, its offset.
        ("dimensions", patched(find(TINY, tensor) + tensor.len(), &[0xff; 4]), "dimensions"),
        ("length", patched(find(TINY, tensor) + tensor.len() + 4, &huge), "overflowing"),
        ("type", patched(find(TINY, tensor) + tensor.len() + 12, &[0xee; 4]), "unknown type"),
        (
            "offset",
            patched(find(TINY, tensor) + tensor.len() + 16, &(1_u64 << 40).to_le_bytes()),
            "truncated",
        ),
    ]
}

#[test]
fn broken_files_are_listed_with_their_fault_and_refused_and_disturb_nobody() {
    let home = Home::new();
    for (name, bytes, _) in broken() {
        add_model(&home.paths().models_dir(), name, &bytes);
    }
    let daemon = home.start();
    daemon.ready();
    let pid = daemon.plugin("llama").pid;
    for (name, _, fault) in broken() {
        let listed = model(&daemon, name);
        let error = listed["error"].as_str().unwrap_or_else(|| panic!("{name} has no error: {listed}"));
        assert!(error.contains(fault), "{name}: {error}");
        for refusal in [
            daemon.ask("llama:load", json!({"model": name})).unwrap_err(),
            complete(&daemon, &ask_of(name)).1.unwrap_err(),
        ] {
            assert_eq!((&refusal["code"], &refusal["retryable"]), (&json!("unavailable"), &json!(false)));
            let message = refusal["message"].as_str().unwrap();
            assert!(message.contains(name) && message.contains(error), "{message}");
        }
    }
    assert!(!text(&answer(&daemon, &greedy("Hello"))).is_empty());
    let now = daemon.plugin("llama");
    assert_eq!((now.state, now.pid, now.restarts), (PluginState::Ready, pid, 0));
}

#[test]
fn a_file_that_only_llama_cpp_sees_through_is_refused_with_its_words() {
    let home = Home::new();
    let file = patched(find(TINY, b"output_norm.weight"), b"X");
    add_model(&home.paths().models_dir(), "renamed", &file);
    let daemon = home.start();
    daemon.ready();
    let refusal = complete(&daemon, &ask_of("renamed")).1.unwrap_err();
    assert_eq!((&refusal["code"], &refusal["retryable"]), (&json!("unavailable"), &json!(false)));
    assert!(refusal["message"].as_str().unwrap().contains("output_norm"), "{refusal}");
    answer(&daemon, &greedy("Hello"));
    assert_eq!(daemon.plugin("llama").restarts, 0);
}

#[test]
fn a_file_that_is_added_while_the_daemon_runs_is_found_under_its_name() {
    let daemon = fresh();
    let refusal = complete(&daemon, &ask_of("mine")).1.unwrap_err();
    assert_eq!(refusal["code"], "not_found", "{refusal}");
    add_model(&daemon.home.paths().models_dir(), "mine", TINY);
    let end = answer(&daemon, &ask_of("mine"));
    assert_eq!(end["answered"], json!({"provider": "llama", "model": "mine"}));
    assert_eq!((&end["requested"], &end["why"]), (&end["answered"], &json!("as requested")));
    assert_eq!(end["toy"], true, "a copy of the toy is a toy");
    let listed = model(&daemon, "mine");
    assert_eq!(
        (&listed["builtin"], &listed["toy"], &listed["loaded"]),
        (&json!(false), &json!(true), &json!(true))
    );
    assert!(listed["error"].is_null());
}

#[test]
fn an_unloaded_model_is_loaded_again_for_the_next_request() {
    let daemon = fresh();
    let load_ms = |daemon: &Daemon| answer(daemon, &greedy("Hello"))["timings"]["load_ms"].clone();
    assert!(load_ms(&daemon).is_number());
    assert!(load_ms(&daemon).is_null());
    assert_eq!(daemon.ask("llama:unload", json!({"model": "ksi-tiny"})).unwrap()["unloaded"], true);
    assert_eq!(model(&daemon, "ksi-tiny")["loaded"], false);
    assert!(load_ms(&daemon).is_number());
    assert_eq!(model(&daemon, "ksi-tiny")["loaded"], true);
}

#[test]
fn the_configuration_says_where_models_lie_and_which_one_is_the_default() {
    let elsewhere = Home::new();
    add_model(elsewhere.path(), "mine", TINY);
    let config = format!(
        "[plugins.llama.config]\nmodels_dir = {:?}\ndefault_model = \"mine\"\n",
        elsewhere.path().display().to_string()
    );
    let daemon = Home::with_config(&config).start();
    daemon.ready();
    let end = answer(&daemon, &greedy("Hello"));
    assert_eq!((&end["answered"]["model"], &end["why"]), (&json!("mine"), &json!("default model")));
    assert_eq!(model(&daemon, "ksi-tiny")["builtin"], true, "the built-in model is always there");
}

#[test]
fn an_absurd_number_of_threads_is_clamped_and_the_load_says_so() {
    let home = Home::new();
    let daemon = home.start_with(|command| {
        command.env("KSI_PLUGINS__LLAMA__CONFIG__THREADS", "100000");
    });
    daemon.ready();
    let report = daemon.ask("llama:load", json!({})).unwrap();
    let cores = std::thread::available_parallelism().unwrap().get();
    assert_eq!(report["threads"], cores, "{report}");
    assert!(report["notes"][0].as_str().unwrap().contains("100000"), "{report}");
    answer(&daemon, &greedy("Hello"));
}

#[test]
fn a_models_directory_that_is_not_there_or_is_a_file_leaves_the_built_in_model() {
    for dir in ["/nonexistent/models", "/dev/null"] {
        let config = format!("[plugins.llama.config]\nmodels_dir = \"{dir}\"\n");
        let daemon = Home::with_config(&config).start();
        daemon.ready();
        assert_eq!(answer(&daemon, &greedy("Hello"))["answered"]["model"], "ksi-tiny");
    }
}
