//! `-o`: every verb that lists or shows, in every format.

use ksi_tests::{Daemon, Home, command, stderr, stdout};
use serde_json::Value;

use super::{documents, fine};

/// Verbs that only look, and whether two looks see the same.
const LOOKS: [(&str, bool); 27] = [
    ("plugin list", false),
    ("plugin inspect echo", false),
    ("model list", true),
    ("model show ksi-tiny", true),
    ("discover", true),
    ("discover completion", true),
    ("discover --detail", true),
    ("describe echo:say", true),
    ("config path", true),
    ("config show", true),
    ("config show --origin", true),
    ("config get daemon.log_level", true),
    ("config validate", true),
    ("status", false),
    ("health", false),
    ("doctor", false),
    ("version", true),
    ("work list", false),
    ("checkpoint list", false),
    ("checkpoint verify", false),
    ("audit query", false),
    ("token list", false),
    ("secret list", true),
    ("completion usage", false),
    ("completion providers", false),
    ("completion route hello", false),
    ("plugin probe echo_child", false),
];

/// A daemon that has something to show of everything, and the name of work that
/// it has done.
fn furnished() -> (Daemon, String) {
    let daemon = Home::with_config("[plugins.echo_child]\nenabled = true\n").start();
    daemon.ready();
    let line = ["send", "completion:async", "--prompt", "x", "--model", "mock/echo", "-o", "name"];
    let work = stdout(&fine(daemon.ksi(&line))).trim().to_owned();
    fine(daemon.ksi(&["wait", &work]));
    fine(daemon.ksi(&["token", "create", "ci", "--can", "completion.*"]));
    fine(daemon.home.ksi_with_input(&["secret", "set", "test"], "not a secret\n"));
    fine(daemon.ksi(&["checkpoint", "create"]));
    (daemon, work)
}

fn look(daemon: &Daemon, verb: &str, format: &str) -> String {
    let mut words: Vec<&str> = verb.split(' ').collect();
    words.extend(["-o", format]);
    let text = stdout(&fine(daemon.ksi(&words)));
    assert!(!text.contains('\u{1b}'), "`{verb} -o {format}` colours a pipe: {text}");
    text
}

fn json(verb: &str, text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("`{verb}`: {error}: {text}"))
}

#[test]
fn every_verb_that_looks_prints_in_every_format() {
    let (daemon, work) = furnished();
    let get = format!("work get {work}");
    for (verb, same) in LOOKS.into_iter().chain([(&*get, false)]) {
        let document = json(verb, &look(&daemon, verb, "json"));
        let yaml = look(&daemon, verb, "yaml");
        let yaml: Value =
            serde_yaml_ng::from_str(&yaml).unwrap_or_else(|error| panic!("`{verb}`: {error}: {yaml}"));
        if same {
            assert_eq!(document, yaml, "`{verb}`");
        }
        let lines = look(&daemon, verb, "jsonl");
        assert!(!lines.is_empty(), "`{verb}`");
        for line in lines.lines() {
            json(verb, line);
        }
        for format in ["table", "wide"] {
            assert!(!look(&daemon, verb, format).trim().is_empty(), "`{verb} -o {format}`");
        }
        let names = look(&daemon, verb, "name");
        assert!(!names.contains('{'), "`{verb} -o name`: {names}");
    }
}

#[test]
fn a_log_is_a_document_for_each_line_for_a_program_and_text_for_a_person() {
    let daemon = Daemon::without_model();
    daemon.ready();
    for format in ["json", "jsonl", "yaml"] {
        let lines = documents(format, &look(&daemon, "logs", format));
        assert!(lines.len() > 1, "{format}: {lines:?}");
        assert!(lines.iter().all(|line| line["line"].is_string()), "{format}: {lines:?}");
    }
    assert!(look(&daemon, "logs", "table").contains("ksid"));
}

#[test]
fn a_list_has_one_line_for_each_item() {
    let daemon = Home::new().start();
    daemon.ready();
    for (verb, items, first) in [
        ("plugin list", "plugins", "anthropic"),
        ("discover", "events", "audit:append"),
        ("model list", "models", "llama/ksi-tiny"),
    ] {
        let count = json(verb, &look(&daemon, verb, "json"))[items].as_array().map_or(0, Vec::len);
        assert!(count > 0, "{verb}");
        assert_eq!(look(&daemon, verb, "jsonl").lines().count(), count, "{verb}");
        let names = look(&daemon, verb, "name");
        assert_eq!(names.lines().count(), count, "{verb}");
        assert_eq!(names.lines().next(), Some(first));
        // A title, and a line for each.
        assert_eq!(look(&daemon, verb, "table").lines().count(), count + 1, "{verb}");
        let bare = [verb, "--no-headers"].join(" ");
        assert_eq!(look(&daemon, &bare, "table").lines().count(), count, "{verb}");
    }
}

#[test]
fn wide_tables_have_more_columns() {
    let daemon = Daemon::without_model();
    let narrow = look(&daemon, "plugin list", "table");
    let wide = look(&daemon, "plugin list", "wide");
    assert!(
        !narrow.contains("LIBRARY") && wide.contains("LIBRARY") && wide.contains("libplugin_echo.so"),
        "{wide}"
    );
}

#[test]
fn colours_come_only_where_they_are_asked_for() {
    let daemon = Daemon::without_model();
    daemon.ready();
    let painted = |arguments: &[&str], variables: &[(&str, &str)]| {
        let mut ksi = command("ksi", daemon.home.path());
        ksi.env_remove("NO_COLOR")
            .env_remove("CLICOLOR_FORCE")
            .args(arguments)
            .envs(variables.iter().copied());
        let output = ksi.output().expect("ksi runs");
        (stdout(&output) + &stderr(&output)).contains('\u{1b}')
    };
    let list = ["plugin", "list"];
    assert!(!painted(&list, &[]), "into a pipe");
    assert!(painted(&["plugin", "list", "--color", "always"], &[]));
    assert!(painted(&list, &[("CLICOLOR_FORCE", "1")]));
    assert!(!painted(&list, &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]));
    assert!(!painted(&["plugin", "list", "--color", "never"], &[("CLICOLOR_FORCE", "1")]));
    for wrong in [&["plugin", "inspect", "nobody"][..], &["nonsense"], &["--help"]] {
        assert!(!painted(wrong, &[]), "{wrong:?}");
    }
    // A model's own words are never coloured.
    assert!(!painted(&["ask", "-m", "mock/echo", "hi"], &[]));
}
