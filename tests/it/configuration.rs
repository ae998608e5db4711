//! Configuration: what is wrong stops the start, and a running daemon keeps
//! what it has.

use std::process::Output;

use ksi_protocol::system::{HealthStatus, PluginState};
use ksi_tests::{Home, WITHOUT_MODEL, command, stderr, stdout};
use serde_json::json;

fn ksid(home: &Home, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    command("ksid", home.path()).args(arguments).envs(variables.iter().copied()).output().unwrap()
}

/// A start that fails for its configuration, and what it says.
fn refused(config: &str, arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let home = Home::with_config(config);
    let output = ksid(&home, arguments, variables);
    let words = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{words}");
    assert!(!home.paths().lock_file().exists(), "it has touched nothing");
    words
}

#[test]
fn an_unknown_key_stops_the_start_with_its_place_and_the_nearest_name() {
    let words = refused("[daemon]\nlog_format = \"text\"\nlog_levl = \"info\"\n", &[], &[]);
    assert!(words.contains("ksi.toml:3:1"), "{words}");
    assert!(words.contains("daemon.log_levl") && words.contains("`log_level`"), "{words}");
}

#[test]
fn all_that_is_wrong_is_reported_at_once() {
    let config = "[daemon]\nconnections_max = \"many\"\nshutdown_grace = \"5 parsecs\"\nbogus = 1\n\
                  [plugins.echo]\nplacement = \"outside\"\n[deamon]\nlog_level = \"info\"\n";
    let words = refused(config, &[], &[("KSI_DAEMON__THREADS", "some")]);
    for place in
        ["ksi.toml:2:", "ksi.toml:3:", "ksi.toml:4:", "ksi.toml:6:", "ksi.toml:7:", "KSI_DAEMON__THREADS"]
    {
        assert!(words.contains(place), "{place} is missing:\n{words}");
    }
    assert!(words.contains("`daemon`"), "{words}");
}

#[test]
fn a_wrong_type_stops_the_start_and_says_what_was_expected() {
    let words = refused("[daemon]\nlog_files = \"three\"\n", &[], &[]);
    assert!(words.contains("ksi.toml:2:13") && words.contains("daemon.log_files"), "{words}");
    assert!(words.contains("number"), "{words}");
}

#[test]
fn what_is_no_toml_stops_the_start_with_its_place() {
    let words = refused("[daemon\nlog_level = \"info\"\n", &[], &[]);
    assert!(words.contains("ksi.toml:1:"), "{words}");
}

#[test]
fn a_bad_variable_and_a_bad_flag_stop_the_start_and_are_named() {
    let words = refused("", &["--set", "daemon.log_level=lowd"], &[("KSI_DAEMON__LOG_FORMAT", "yaml")]);
    assert!(words.contains("KSI_DAEMON__LOG_FORMAT"), "{words}");
    assert!(words.contains("--set daemon.log_level"), "{words}");
    let words = refused("", &[], &[("KSI_DAEMON__LOG_LEVL", "info")]);
    assert!(words.contains("KSI_DAEMON__LOG_LEVL"), "{words}");
}

#[test]
fn a_configuration_can_be_checked_without_a_start() {
    let home = Home::with_config(WITHOUT_MODEL);
    let output = ksid(&home, &["--check-config"], &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains("valid"), "{}", stdout(&output));
    assert!(!home.paths().runtime_dir.exists() && !home.paths().state_dir.exists());
    let words = refused("[daemon]\nbogus = 1\n", &["--check-config"], &[]);
    assert!(words.contains("ksi.toml:2:1"), "{words}");
}

#[test]
fn later_layers_win_and_every_value_names_its_source() {
    let config = format!("[daemon]\nlog_level = \"warn\"\nlog_files = 7\n{WITHOUT_MODEL}");
    let daemon = Home::with_config(&config).start_with(|command| {
        command.env("KSI_DAEMON__LOG_LEVEL", "error").args(["--set", "daemon.log_bytes_max=1000000"]);
    });
    let shown = daemon.ask("config:show", json!({})).unwrap();
    let (values, sources) = (&shown["config"]["daemon"], &shown["sources"]);
    assert_eq!(values["log_level"], "error");
    assert_eq!(sources["daemon.log_level"], "KSI_DAEMON__LOG_LEVEL");
    assert_eq!(values["log_files"], 7);
    assert!(sources["daemon.log_files"].as_str().unwrap().ends_with("ksi.toml:3"), "{sources}");
    assert_eq!(values["log_bytes_max"], 1_000_000);
    assert_eq!(sources["daemon.log_bytes_max"], "--set daemon.log_bytes_max");
    assert!(sources["daemon.connections_max"].as_str().unwrap().contains("events.toml:"), "{sources}");
}

#[test]
fn secrets_are_never_shown() {
    let config = format!(
        "{WITHOUT_MODEL}[plugins.echo.config]\napi_key = \"hunter2\"\napi_key_env = \"SOME_VARIABLE\"\n\
         nested = {{ password = \"hunter2\", names = [{{ token = \"hunter2\" }}] }}\n"
    );
    let daemon = Home::with_config(&config).start();
    daemon.ready();
    let shown = daemon.ask("config:show", json!({})).unwrap();
    let config = &shown["config"]["plugins"]["echo"]["config"];
    assert_eq!(config["api_key"], "***");
    assert_eq!(config["api_key_env"], "SOME_VARIABLE");
    assert!(!shown.to_string().contains("hunter2"), "{shown}");
    let inspection = daemon.ask("plugin:inspect", json!({"name": "echo"})).unwrap();
    assert!(!inspection.to_string().contains("hunter2"), "{inspection}");
    assert!(!daemon.log().contains("hunter2") && !daemon.words().contains("hunter2"));
}

#[test]
fn a_reload_takes_over_what_it_can_and_names_what_it_cannot() {
    let daemon = Home::with_config(WITHOUT_MODEL).start();
    daemon.ready();
    let config = format!(
        "[daemon]\nlog_level = \"debug\"\nconnections_max = 99\n{WITHOUT_MODEL}[plugins.echo_child]\nenabled = true\n"
    );
    let changes = daemon.reconfigure(&config).unwrap();
    let changed = changes["changed"].to_string();
    for key in ["daemon.log_level", "daemon.connections_max", "plugins.echo_child.enabled"] {
        assert!(changed.contains(key), "{changes}");
    }
    assert_eq!(changes["needs_restart"], json!(["daemon.connections_max"]));
    assert_eq!(changes["plugins"], json!(["echo_child"]), "these are restarted when somebody says so");
    let status = daemon.ask("plugin:load", json!({"library": "echo_child"})).unwrap();
    assert_eq!(status["state"], "ready");
    assert_eq!(daemon.ask("echo_child:say", json!({"text": "hi"})).unwrap()["text"], "hi");
    let nothing = daemon.ask("config:reload", json!({})).unwrap();
    assert_eq!(nothing["changed"], json!([]));
}

#[test]
fn a_reload_starts_a_plugin_that_is_new_in_the_file() {
    let daemon = Home::with_config(WITHOUT_MODEL).start();
    daemon.ready();
    let config =
        format!("{WITHOUT_MODEL}[plugins.second]\nlibrary = \"libplugin_echo.so\"\nnamespace = \"second\"\n");
    daemon.reconfigure(&config).unwrap();
    daemon.ready();
    assert_eq!(daemon.ask("second:say", json!({"text": "hi"})).unwrap()["text"], "hi");
    assert_eq!(daemon.plugin("echo").generation, 1, "what runs goes on");
}

#[test]
fn a_reload_of_a_bad_file_changes_nothing_and_says_why() {
    let config = format!("[daemon]\nlog_level = \"warn\"\n{WITHOUT_MODEL}");
    let daemon = Home::with_config(&config).start();
    daemon.ready();
    let refusal = daemon.reconfigure("[daemon]\nlog_level = 7\nbogus = true\n").unwrap_err();
    assert_eq!(refusal["code"], "invalid_payload");
    let message = refusal["message"].as_str().unwrap();
    assert!(message.contains("ksi.toml:2:") && message.contains("ksi.toml:3:"), "{message}");
    let shown = daemon.ask("config:show", json!({})).unwrap();
    assert_eq!(shown["config"]["daemon"]["log_level"], "warn");
    assert_eq!(daemon.health().status, HealthStatus::Ok);
    assert!(daemon.ask("echo:say", json!({"text": "hi"})).is_ok());
}

#[test]
fn a_plugin_with_a_bad_configuration_does_not_start_and_the_rest_does() {
    let config = format!("{WITHOUT_MODEL}[plugins.completion.config]\ndefaul_model = \"mock/echo\"\n");
    let daemon = Home::with_config(&config).start();
    daemon.ready();
    let health = daemon.health();
    assert_eq!(health.status, HealthStatus::Unhealthy);
    let reasons = health.reasons.join("\n");
    assert!(reasons.contains("completion") && reasons.contains("defaul_model"), "{reasons}");
    let status = daemon.plugin("completion");
    assert_ne!(status.state, PluginState::Ready);
    assert!(status.last_error.unwrap().contains("defaul_model"));
    let refusal = daemon.ask("completion:status", json!({})).unwrap_err();
    assert!(["no_owner", "unavailable"].contains(&refusal["code"].as_str().unwrap()), "{refusal}");
    assert_eq!(daemon.ask("echo:say", json!({"text": "hi"})).unwrap()["text"], "hi");
}

#[test]
fn a_plugin_of_the_manifest_whose_library_is_missing_is_a_reason_and_no_obstacle() {
    let config = format!("{WITHOUT_MODEL}[plugins.nowhere]\nlibrary = \"libnowhere.so\"\n");
    let daemon = Home::with_config(&config).start();
    daemon.ready();
    let health = daemon.health();
    assert_eq!(health.status, HealthStatus::Unhealthy);
    assert!(health.reasons.join("\n").contains("libnowhere.so"), "{:?}", health.reasons);
    assert_eq!(daemon.ask("echo:say", json!({"text": "hi"})).unwrap()["text"], "hi");
}
