//! `config` and `reload`.

use std::fs;

use ksi_tests::{Daemon, Home, WITHOUT_MODEL, stderr, stdout};

use super::{data, error, failed, fine};

#[test]
fn path_says_where_everything_lies_without_a_daemon() {
    let home = Home::new();
    let paths = data(home.ksi(&["config", "path", "-o", "json"]));
    assert_eq!(paths["config"], home.paths().config_file.display().to_string());
    assert_eq!(paths["socket"], home.paths().socket.display().to_string());
    assert_eq!(paths["log"], home.paths().log_file().display().to_string());
    assert!(stdout(&fine(home.ksi(&["config", "path"]))).contains("models"));
}

#[test]
fn a_value_is_shown_with_its_place_set_and_reloaded() {
    let home = Home::with_config(&format!("# mine\n{WITHOUT_MODEL}"));
    let daemon = home.start();
    daemon.ready();
    assert_eq!(stdout(&fine(daemon.ksi(&["config", "get", "daemon.log_level"]))), "info\n");
    assert_eq!(data(daemon.ksi(&["config", "get", "plugins.llama.enabled", "-o", "json"])), false);
    let output = fine(daemon.ksi(&["config", "set", "daemon.log_level", "debug"]));
    assert!(
        stdout(&output).contains("log_level") && stderr(&output).contains("ksi reload"),
        "{}",
        stdout(&output)
    );
    let text = fs::read_to_string(daemon.home.paths().config_file).expect("ksi.toml");
    assert!(text.starts_with("# mine\n") && text.contains("log_level = \"debug\""), "{text}");
    // It is written, and not in force.
    assert_eq!(stdout(&fine(daemon.ksi(&["config", "get", "daemon.log_level"]))), "info\n");
    let reloaded = data(daemon.ksi(&["reload", "-o", "json"]));
    assert_eq!(reloaded["changed"], serde_json::json!(["daemon.log_level"]));
    assert_eq!(stdout(&fine(daemon.ksi(&["config", "get", "daemon.log_level"]))), "debug\n");
    assert!(stdout(&fine(daemon.ksi(&["reload"]))).contains("nothing has changed"));
    let shown = stdout(&fine(daemon.ksi(&["config", "show", "--origin"])));
    let line = shown.lines().find(|line| line.starts_with("daemon.log_level")).expect("the key");
    assert!(line.contains("debug") && line.contains("ksi.toml:"), "{line}");
    // A plugin goes on as it was started; what is said of that works.
    let set = fine(daemon.ksi(&["config", "set", "plugins.completion.config.default_model", "mock/echo"]));
    assert!(stderr(&set).contains("ksi reload && ksi plugin reload completion"), "{}", stderr(&set));
    let said = stdout(&fine(daemon.ksi(&["reload"])));
    assert!(said.contains("after: ksi plugin reload completion"), "{said}");
    fine(daemon.ksi(&["plugin", "reload", "completion"]));
    assert_eq!(stdout(&fine(daemon.ksi(&["ask", "said by the mock"]))), "said by the mock\n");
    fine(daemon.ksi(&["config", "set", "daemon.connections_max", "12"]));
    let said = stdout(&fine(daemon.ksi(&["reload"])));
    assert!(said.contains("ksi restart") && said.contains("connections_max"), "{said}");
}

#[test]
fn what_the_daemon_would_refuse_is_not_written() {
    let home = Home::with_config(WITHOUT_MODEL);
    for (key, value, part) in [
        ("daemon.log_levl", "debug", "did you mean `log_level`"),
        ("daemon.connections_max", "many", "connections_max"),
        ("nonsense", "1", "nonsense"),
        ("daemon", "1", "table"),
        ("a b", "1", "no key"),
    ] {
        let words = failed(home.ksi(&["config", "set", key, value]), 2);
        assert!(words.contains(part), "{key}: {words}");
    }
    assert_eq!(fs::read_to_string(home.paths().config_file).expect("ksi.toml"), WITHOUT_MODEL);
    let empty = Home::new();
    failed(empty.ksi(&["config", "set", "daemon.log_levl", "debug"]), 2);
    assert!(!empty.paths().config_file.exists(), "no file is left where there was none");
    fine(empty.ksi(&["config", "set", "daemon.log_level", "debug"]));
    fine(empty.ksi(&["config", "validate"]));
}

#[test]
fn validate_names_file_line_and_key_of_all_that_is_wrong() {
    let home = Home::with_config(
        "[daemon]\nlog_levl = \"debug\"\nshutdown_grace = \"soon\"\n\n[plugins.echo]\nplacement = \"moon\"\n",
    );
    let words = failed(home.ksi(&["config", "validate"]), 2);
    for part in ["ksi.toml:2:1", "log_levl", "ksi.toml:3:", "shutdown_grace", "ksi.toml:6:", "placement"] {
        assert!(words.contains(part), "no `{part}` in: {words}");
    }
    assert_eq!(error(home.ksi(&["config", "validate", "-o", "json"]), 2)["code"], "invalid_config");
    let fine_one = Home::with_config(WITHOUT_MODEL);
    assert!(stdout(&fine(fine_one.ksi(&["config", "validate"]))).contains("is fine"));
}

#[test]
fn a_reload_that_is_refused_changes_nothing() {
    let daemon = Daemon::without_model();
    daemon.ready();
    fs::write(daemon.home.paths().config_file, "[daemon]\nlog_levl = \"x\"\n").expect("ksi.toml");
    let words = failed(daemon.ksi(&["reload"]), 2);
    assert!(words.contains("ksi.toml:2:1") && words.contains("log_levl"), "{words}");
    assert_eq!(data(daemon.ksi(&["config", "get", "plugins.llama.enabled", "-o", "json"])), false);
}

#[test]
fn an_unknown_key_offers_the_nearest() {
    let daemon = Daemon::without_model();
    let words = failed(daemon.ksi(&["config", "get", "daemon.loglevel"]), 4);
    assert!(words.contains("did you mean `daemon.log_level`"), "{words}");
}
