//! `send`: flags by schema, payloads from everywhere, and early words about
//! mistakes.

use std::fs;

use ksi_tests::{Daemon, stderr, stdout};
use serde_json::json;

use super::{data, documents, error, failed, fine};

#[test]
fn flags_are_the_fields_of_the_event() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let output = fine(daemon.ksi(&["send", "echo:say", "--text", "hello"]));
    assert_eq!(stdout(&output), "{\n  \"text\": \"hello\"\n}\n");
    assert_eq!(stderr(&output), "");
    assert_eq!(
        data(daemon.ksi(&["-o", "json", "send", "echo:say", "--text=--odd"])),
        json!({"text": "--odd"})
    );
    let end = data(daemon.ksi(&[
        "send",
        "completion:request",
        "--prompt",
        "a-b c",
        "--model",
        "mock/echo",
        "--max-tokens",
        "1",
        "-o",
        "json",
    ]));
    assert_eq!(
        (end["text"].as_str().map(str::trim), &end["stop_reason"]),
        (Some("a-b"), &"length".into()),
        "{end}"
    );
    let help = stdout(&fine(daemon.ksi(&["send", "echo:say", "--help"])));
    assert!(help.contains("--text <text>") && help.contains("[required]"), "{help}");
    assert!(stdout(&fine(daemon.ksi(&["send", "--help"]))).contains("--emit"));
}

#[test]
fn a_mistake_names_the_field_and_what_it_takes() {
    let daemon = Daemon::without_model();
    daemon.ready();
    for (line, parts) in [
        (&["send", "echo:say"][..], &["--text", "(text)", "missing", "ksi send echo:say --help"][..]),
        (
            &["send", "completion:request", "--prompt", "x", "--max-tokens", "many"],
            &["max_tokens", "integer", "`many`"],
        ),
        (
            &["send", "completion:request", "--prompt", "x", "--temperature", "hot"],
            &["temperature", "number"],
        ),
        (&["send", "echo:say", "--txt", "x"], &["--txt", "did you mean --text?"]),
        (&["send", "echo:say", "word"], &["`word`"]),
        (&["send", "echo:say", "--json", "{"], &["not JSON"]),
        (&["send", "echo:say", "--json", "@/nowhere.json"], &["/nowhere.json"]),
        (&["send"], &["no event given"]),
    ] {
        let words = failed(daemon.ksi(line), 2);
        for part in parts {
            assert!(words.contains(part), "{line:?}: no `{part}` in: {words}");
        }
    }
    // What only the daemon can know is its refusal, and ends alike.
    let words = failed(daemon.ksi(&["send", "echo:say", "--json", r#"{"text":5}"#]), 2);
    assert!(words.contains("text"), "{words}");
    let error =
        error(daemon.ksi(&["send", "echo:say", "--json", r#"{"text":"x","more":1}"#, "-o", "json"]), 2);
    assert_eq!(error["code"], "invalid_payload", "{error}");
    // Behind the fields, too, `-o` says how an error is told.
    let error = super::error(daemon.ksi(&["send", "echo:say", "--txt", "x", "-o", "json"]), 2);
    assert_eq!(error["code"], "usage", "{error}");
}

#[test]
fn an_unknown_event_ends_with_4_and_the_nearest_name() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let words = failed(daemon.ksi(&["send", "echo:sya", "--text", "x"]), 4);
    assert!(words.contains("echo:sya") && words.contains("echo:say"), "{words}");
    let error = error(daemon.ksi(&["send", "echo:sya", "-o", "json"]), 4);
    assert!(error["hint"].as_str().is_some_and(|hint| hint.contains("echo:say")), "{error}");
    for line in [["send", "zzqqxx:a"], ["describe", "zzqqxx:a"], ["discover", "zzqqxx"]] {
        let error = super::error(daemon.ksi(&[&line[..], &["-o", "json"]].concat()), 4);
        assert!(error["hint"].as_str().is_some_and(|hint| !hint.contains("did you mean")), "{error}");
    }
}

#[test]
fn the_payload_comes_from_json_a_file_or_standard_input() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let file = daemon.home.path().join("payload.json");
    fs::write(&file, r#"{"text":"from a file"}"#).expect("a file");
    let at = format!("@{}", file.display());
    let line = |json: &str| ["send", "echo:say", "-o", "json", "--json", json].map(str::to_owned).to_vec();
    let run = |line: &[String], input: &str| {
        let words: Vec<&str> = line.iter().map(String::as_str).collect();
        data(daemon.home.ksi_with_input(&words, input))
    };
    assert_eq!(run(&line(r#"{"text":"given"}"#), ""), json!({"text": "given"}));
    assert_eq!(run(&line(&at), ""), json!({"text": "from a file"}));
    assert_eq!(run(&line("-"), r#"{"text":"piped"}"#), json!({"text": "piped"}));
    // A flag goes on top.
    let mut both = line(&at);
    both.extend(["--text".into(), "flag".into()]);
    assert_eq!(run(&both, ""), json!({"text": "flag"}));
}

#[test]
fn a_stream_is_shown_as_it_comes_and_a_program_says_whether_it_wants_that() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let line = ["send", "completion:request", "--prompt", "a b c", "--model", "mock/echo"];
    let with = |more: &[&str]| {
        let mut line = line.to_vec();
        line.extend(more);
        stdout(&fine(daemon.ksi(&line)))
    };
    assert_eq!(with(&[]), "a b c\n");
    let end: serde_json::Value = serde_json::from_str(&with(&["-o", "json"])).expect("one document");
    assert_eq!(end["text"], "a b c");
    let lines: Vec<serde_json::Value> =
        with(&["-o", "jsonl"]).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let (last, chunks) = lines.split_last().expect("lines");
    assert_eq!(last["end"], true);
    let text: String = chunks.iter().filter_map(|chunk| chunk["chunk"]["text"].as_str()).collect();
    assert_eq!(text, "a b c");
    assert!(chunks.len() >= 3, "{lines:?}");
    for format in ["json", "yaml"] {
        let parts = documents(format, &with(&["--stream", "-o", format]));
        assert_eq!(parts.len(), lines.len(), "{format}: {parts:?}");
        assert_eq!(parts.last().map(|last| &last["data"]["text"]), Some(&json!("a b c")), "{format}");
    }
}

#[test]
fn what_nobody_declares_can_be_told_but_not_asked() {
    let daemon = Daemon::without_model();
    daemon.ready();
    assert_eq!(
        data(daemon.ksi(&["send", "my:event", "--emit", "--n", "1", "-o", "json"])),
        json!({"delivered": 0})
    );
    failed(daemon.ksi(&["send", "my:event", "--n", "1"]), 4);
}
