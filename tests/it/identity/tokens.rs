//! Tokens: how they are made, shown and taken back, from the command line to the
//! file.

use std::os::unix::{
    fs::{PermissionsExt as _, symlink},
    process::CommandExt as _,
};

use ksi_client::{Client, Error, Options};
use ksi_protocol::{Code, Frame, PROTOCOL_VERSION, frame::Hello, limits, token::Token};
use ksi_tests::{Daemon, Home, WITHOUT_MODEL, built, command, frames::Frames, stderr, stdout};
use serde_json::{Value, json};

use super::{code, create, lines_as, ready};

/// `ksi` with a token in its environment.
fn ksi_as(daemon: &Daemon, token: &str, arguments: &[&str]) -> std::process::Output {
    command("ksi", daemon.home.path()).args(arguments).env("KSI_TOKEN", token).output().unwrap()
}

#[test]
fn a_token_that_is_none_is_refused_on_both_faces_and_ends_the_connection() {
    let daemon = ready();
    let made = create(&daemon, &["echo.use"], None);
    let forged = Token::of(&made.info.id, &"0".repeat(64));
    for token in [forged.expose(), "", "ksi_", "*"] {
        let mut lines = daemon.lines();
        lines.send(&json!({"hello": {"token": token}, "id": 7}));
        let line = lines.receive();
        assert_eq!((&line["refusal"]["code"], &line["id"]), (&json!("denied"), &json!(7)), "{line}");
        assert_eq!(lines.try_receive(), None, "nobody goes on as somebody else");
        let mut frames = Frames::new(daemon.raw());
        let token = Some(Token::new(token));
        frames.send(&Frame::Hello(Hello {
            version: PROTOCOL_VERSION,
            client: "x".into(),
            token,
            ..Hello::default()
        }));
        assert_eq!(frames.refused().1.code, Code::Denied);
        assert_eq!(frames.try_receive(), None);
    }
}

/// A daemon whose starter had a token in the environment; `ksid` stands in its
/// home, as a link.
fn started_with_a_token() -> Daemon {
    let home = Home::with_config(WITHOUT_MODEL);
    let link = home.path().join("ksid");
    symlink(built().join("ksid"), &link).unwrap();
    let daemon = home.start_with(|command| {
        command.env("KSI_TOKEN", "ksi_0a1b2c3d").env("KSI_TOKEN_FILE", "/nowhere").arg0(&link);
    });
    daemon.ready();
    daemon
}

#[test]
fn a_daemon_does_not_keep_the_token_of_whoever_starts_it() {
    let daemon = started_with_a_token();
    let pid = daemon.home.holder().map(|holder| holder.pid);
    assert_eq!(pid, Some(daemon.pid()), "it is the process that was started");
    // What it hands on tells what it has: this stands where its program stood.
    let link = daemon.home.path().join("ksid");
    let seen = daemon.home.path().join("environment");
    std::fs::remove_file(&link).unwrap();
    std::fs::write(&link, format!("#!/bin/sh\nenv > {}\nexit 1\n", seen.display())).unwrap();
    std::fs::set_permissions(&link, std::fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(daemon.ask("system:restart", json!({})).unwrap_err()["code"], "conflict");
    let seen = std::fs::read_to_string(seen).unwrap();
    assert!(seen.contains("KSI_HOME=") && !seen.contains("KSI_TOKEN"), "{seen}");
}

#[test]
fn hello_is_the_first_line_or_none() {
    let daemon = ready();
    let token = create(&daemon, &["echo.use"], None).token;
    let mut lines = daemon.lines();
    lines.send(&json!({"hello": {}}));
    assert!(lines.receive()["welcome"]["boot"].is_string());
    lines.send(&json!({"hello": {"token": token.expose()}}));
    assert_eq!(lines.receive()["refusal"]["code"], "invalid_frame");
    // What was refused was said as well, and what is longer than a greeting is none.
    let mut lines = daemon.lines();
    lines.send_text("{}");
    assert_eq!(lines.receive()["refusal"]["code"], "invalid_frame");
    lines.send(&json!({"hello": {"token": token.expose()}}));
    let refusal = lines.receive();
    assert!(refusal["refusal"]["message"].as_str().unwrap().contains("4096"), "{refusal}");
    assert_eq!(lines.try_receive(), None, "nobody goes on as somebody else");
    let mut lines = daemon.lines();
    let padding = " ".repeat(limits::HELLO_BYTES_MAX);
    lines.send_text(&format!("{{\"hello\":{{\"token\":\"{}\"}}}}{padding}", token.expose()));
    assert_eq!(lines.receive()["refusal"]["code"], "invalid_frame");
    assert_eq!(lines.try_receive(), None);
    for hello in [json!(1), json!({"token": 1}), json!({"tokens": "x"}), json!({"user": "root"})] {
        let mut lines = daemon.lines();
        lines.send(&json!({ "hello": hello }));
        let refusal = lines.receive();
        assert_eq!(refusal["refusal"]["code"], "invalid_frame", "{refusal}");
    }
}

#[test]
fn the_command_line_makes_shows_and_takes_back_tokens() {
    let daemon = ready();
    let made = daemon.ksi(&["token", "create", "ci", "--can", "echo.use", "--expires", "1h"]);
    let token = stdout(&made).trim().to_owned();
    assert!(Token::new(&token).id().is_some(), "{token}: {}", stderr(&made));
    assert!(!stderr(&made).contains(&token), "it is shown once");
    let said = ksi_as(&daemon, &token, &["send", "echo:say", "--json", r#"{"text":"hi"}"#, "-o", "json"]);
    assert_eq!(serde_json::from_str::<Value>(&stdout(&said)).unwrap(), json!({"text": "hi"}));
    let denied = ksi_as(&daemon, &token, &["plugin", "list"]);
    assert_eq!(denied.status.code(), Some(5), "{}", stderr(&denied));
    assert!(stderr(&denied).contains("plugin.read") && !stderr(&denied).contains(&token));
    let list = daemon.ksi(&["token", "list", "-o", "json"]);
    let list: Value = serde_json::from_str(&stdout(&list)).unwrap();
    let id = list["tokens"][0]["id"].as_str().unwrap().to_owned();
    assert!(list.to_string().contains("user:owner") && !list.to_string().contains(&token), "{list}");
    // From a file, too.
    let file = daemon.home.path().join("ci.token");
    std::fs::write(&file, format!("{token}\n")).unwrap();
    let path = file.to_str().unwrap();
    let said = daemon.ksi(&["--token-file", path, "send", "echo:say", "--text", "hi", "-o", "json"]);
    assert!(said.status.success(), "{}", stderr(&said));
    assert!(daemon.ksi(&["token", "revoke", &id]).status.success());
    let gone = daemon.ksi(&["--token-file", path, "health"]);
    assert_eq!(gone.status.code(), Some(5), "{}", stderr(&gone));
    assert!(daemon.ksi(&["--token-file", "/nowhere", "health"]).status.code() == Some(1));
    assert!(!daemon.log().contains(&token), "no token is in the log");
}

#[test]
fn a_token_makes_lesser_tokens_and_no_greater_ones() {
    let daemon = ready();
    let made = create(&daemon, &["echo.use", "token.use", "state.read"], None);
    let mut lines = lines_as(&daemon, &made.token);
    let mut make = |can: &[&str]| lines.ask("token:create", json!({"name": "x", "can": can}));
    for more in [&["*"][..], &["state.*"], &["echo.use", "system.admin"]] {
        let answer = make(more);
        assert_eq!(code(&answer), "denied", "{answer:?}");
        assert!(answer.unwrap_err()["details"]["permission"].is_string());
    }
    let less = make(&["echo.use"]).unwrap();
    let less = Token::new(less["token"].as_str().unwrap());
    let mut lines = lines_as(&daemon, &less);
    assert_eq!(code(&lines.ask("echo:say", json!({"text": "hi"}))), "ok");
    assert_eq!(code(&lines.ask("token:create", json!({"name": "x", "can": ["echo.use"]}))), "denied");
    // With its maker it goes.
    daemon.ask("token:revoke", json!({"id": made.info.id})).unwrap();
    assert_eq!(code(&lines.ask("echo:say", json!({"text": "hi"}))), "denied");
}

#[test]
fn the_library_shows_a_token_and_reads_a_file_at_each_connection() {
    let daemon = ready();
    let made = create(&daemon, &["echo.use"], None);
    let file = daemon.home.path().join("token");
    std::fs::write(&file, made.token.expose()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for options in [daemon.options().token(made.token.clone()), daemon.options().token_file(&file)] {
            let client = Client::connect(options).await.unwrap();
            let said: Value = client.request("echo:say", &json!({"text": "hi"})).await.unwrap();
            assert_eq!(said, json!({"text": "hi"}));
            let denied = client.request::<_, Value>("plugin:list", &json!({})).await.unwrap_err();
            assert!(matches!(denied, Error::Refused(refusal) if refusal.code == Code::Denied));
        }
        let none: Options = daemon.options().token_file("/nowhere/token");
        let error = Client::connect(none).await.err().unwrap();
        assert!(matches!(error, Error::TokenFile { .. }), "{error}");
    });
}

#[test]
fn tokens_survive_a_restart_and_a_file_that_others_may_read_is_not_believed() {
    let daemon = ready();
    let made = create(&daemon, &["echo.use"], None);
    let home = daemon.kill();
    let path = home.paths().state_dir.join("tokens.json");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let daemon = home.start();
    daemon.ready();
    assert_eq!(code(&lines_as(&daemon, &made.token).ask("echo:say", json!({"text": "hi"}))), "ok");
    let home = daemon.kill();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let daemon = home.start();
    let mut lines = daemon.lines();
    lines.send(&json!({"hello": {"token": made.token.expose()}}));
    assert_eq!(lines.receive()["refusal"]["code"], "unavailable");
    let health = daemon.health();
    assert!(health.reasons.iter().any(|reason| reason.contains("tokens.json") && reason.contains("644")));
    // Repaired, a reload is enough.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    daemon.ask("config:reload", json!({})).unwrap();
    lines_as(&daemon, &made.token);
}
