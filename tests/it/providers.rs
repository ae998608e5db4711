//! Providers in their sandbox: a real child that reaches a server on this
//! machine, through the one port that it was granted.

use std::os::unix::fs::PermissionsExt;

use ksi_protocol::system::PluginState;
use ksi_provider_http::testing::{Act, FakeServer, answer, answer_with, chunk, chunked_stream, last_chunk};
use ksi_tests::{Daemon, Home, Lines, WITHOUT_MODEL, stderr, wait_until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

const KEY: &str = "sk-test-providers-0123456789";
const PROMPT: &str = "a prompt that nobody else may read";

/// A daemon whose `openai` asks this server, with these ports granted.
fn daemon(server: &FakeServer, ports: &[u16]) -> Daemon {
    daemon_with(server, ports, "")
}

/// The same, with more of a configuration.
fn daemon_with(server: &FakeServer, ports: &[u16], more: &str) -> Daemon {
    let home = Home::with_config(&format!(
        "{WITHOUT_MODEL}{more}[daemon]\nlog_level = \"trace\"\n\
         [plugins.openai]\nenabled = true\nsandbox = {{ network = {ports:?} }}\nrestart = {{ failures_max = 1 }}\n\
         [plugins.openai.config]\nbase_url = \"{}/v1\"\napi_key = \"secret:openai\"\n",
        server.url()
    ));
    let set = home.ksi_with_input(&["secret", "set", "openai"], &format!("{KEY}\n"));
    assert!(set.status.success(), "{}", stderr(&set));
    let daemon = home.start();
    daemon.ready();
    daemon
}

fn piece(text: &str) -> Vec<u8> {
    format!("data: {}\n\n", json!({ "choices": [{ "index": 0, "delta": { "content": text } }] })).into_bytes()
}

/// A request to the server through `completion`, with a fallback.
fn routed(more: Value) -> Value {
    let mut request = json!({"prompt": "a b", "model": "openai/m", "fallbacks": ["mock/fixed:spare"]});
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request
}

/// Who was asked, and what became of it; and whether some of its text was sent.
fn tried(told: &Value) -> Vec<(&str, &str, bool)> {
    let list = told["tried"].as_array().unwrap_or_else(|| panic!("no attempts are told: {told}"));
    assert_eq!(told["attempts"], list.len(), "{told}");
    list.iter()
        .map(|one| {
            let provider = one["model"]["provider"].as_str().unwrap();
            (provider, one["outcome"].as_str().unwrap(), one["text_sent"] == true)
        })
        .collect()
}

/// All pieces of an answer since it last started over, how often it did, and the end.
fn heard(lines: &mut Lines) -> (String, usize, Value) {
    let (mut text, mut restarts) = (String::new(), 0);
    loop {
        let line = lines.receive();
        match line.get("chunk") {
            Some(chunk) if chunk["restarted"].is_object() => {
                text.clear();
                restarts += 1;
            }
            Some(chunk) => text += chunk["text"].as_str().unwrap(),
            None => return (text, restarts, line),
        }
    }
}

fn ask() -> Value {
    json!({ "model": "m", "messages": [{ "role": "user", "content": PROMPT }] })
}

#[test]
fn a_sandboxed_provider_streams_what_its_server_says() {
    let server = FakeServer::start(vec![
        vec![
            chunked_stream(),
            chunk(&piece("Hel")),
            chunk(&piece("lo")),
            chunk(b"data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n"),
            chunk(b"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\n"),
            chunk(b"data: [DONE]\n\n"),
            last_chunk(),
        ],
        answer("429 Too Many Requests", "application/json", "{}"),
        answer("200 OK", "application/json", "{\"data\":[{\"id\":\"m\"}]}"),
    ]);
    let daemon = daemon(&server, &[server.port()]);
    assert_eq!(daemon.plugin("openai").state, PluginState::Ready, "{}", daemon.log());
    let mut lines = daemon.lines();
    lines.send(&json!({ "event": "openai:generate", "data": ask() }));
    let (mut text, mut pieces) = (String::new(), 0);
    let end = loop {
        let line = lines.receive();
        match line.get("chunk") {
            Some(chunk) => {
                text += chunk["text"].as_str().unwrap();
                pieces += 1;
            }
            None => break line["data"].clone(),
        }
    };
    assert_eq!((text.as_str(), pieces), ("Hello", 2));
    assert_eq!((&end["text"], &end["stop_reason"]), (&json!("Hello"), &json!("stop")), "{end}");
    assert_eq!(end["usage"]["total_tokens"], 5);
    let asked = server.asked();
    assert_eq!(asked.header("authorization"), Some(format!("Bearer {KEY}").as_str()));
    assert_eq!(asked.json()["messages"][0]["content"], PROMPT);

    let refusal = daemon.ask("openai:generate", ask()).unwrap_err();
    assert_eq!((&refusal["code"], &refusal["retryable"]), (&json!("busy"), &json!(true)), "{refusal}");
    assert_eq!(refusal["details"]["failure"], "rate_limited");
    let models = daemon.ask("openai:models", json!({})).unwrap();
    assert_eq!(models["models"][0]["name"], "m");

    let said = daemon.log() + &daemon.ask("config:show", json!({})).unwrap().to_string();
    assert!(!said.contains(KEY) && !said.contains(PROMPT), "{said}");
}

#[test]
fn every_way_in_which_a_server_fails_is_told_and_the_fallback_answers_where_it_may() {
    let half = || vec![chunked_stream(), chunk(&piece("half "))];
    let error = |status: &str, more: &str| answer_with(status, "application/json", more, "{}");
    let server = FakeServer::start(vec![
        // Asked again when it said so, and then no more.
        error("429 Too Many Requests", "retry-after: 1\r\n"),
        error("500 Internal Server Error", ""),
        // Cut in the middle: nobody else may speak.
        half(),
        // The same where that is allowed, and then worse.
        half(),
        error("502 Bad Gateway", ""),
        // It wants to be left alone for long.
        error("503 Service Unavailable", "retry-after: 50\r\n"),
    ]);
    let daemon = daemon_with(
        &server,
        &[server.port()],
        "[plugins.completion.config]\nretry = { attempts = 1, base_ms = 10 }\nbreaker = { failures = 100 }\n",
    );
    let end = daemon.ask("completion:request", routed(json!({}))).expect("the fallback answers");
    assert_eq!(end["text"], "spare");
    assert_eq!(
        tried(&end),
        [("openai", "busy", false), ("openai", "unavailable", false), ("mock", "answered", true)]
    );
    let started = |place: usize| end["tried"][place]["started_ms"].as_u64().unwrap();
    assert!(started(1) >= started(0) + 1000, "not before it said: {end}");

    let refusal = daemon.ask("completion:request", routed(json!({}))).expect_err("it is cut");
    assert_eq!(refusal["details"]["failure"], "cut", "{refusal}");
    assert_eq!(tried(&refusal["details"]), [("openai", "unavailable", true)]);

    let mut lines = daemon.lines();
    lines.send(&json!({"event": "completion:request", "data": routed(json!({"restart": true}))}));
    let (text, restarts, line) = heard(&mut lines);
    assert_eq!((text.as_str(), restarts), ("spare", 1), "{line}");
    assert_eq!(
        tried(&line["data"]),
        [("openai", "unavailable", true), ("openai", "unavailable", false), ("mock", "answered", true)]
    );

    let end = daemon.ask("completion:request", routed(json!({}))).expect("the fallback answers");
    assert_eq!(tried(&end), [("openai", "unavailable", false), ("mock", "answered", true)]);
    while server.was_asked().is_some() {}
    let end = daemon.ask("completion:request", routed(json!({}))).expect("the fallback answers");
    assert_eq!(tried(&end), [("mock", "answered", true)]);
    assert!(server.was_asked().is_none(), "it is left alone");
    let refusal =
        daemon.ask("completion:request", routed(json!({"fallbacks": [], "timeout_ms": 2000}))).unwrap_err();
    assert!(refusal["retry_after_ms"].as_u64().unwrap() > 2000, "nobody waits for it in vain: {refusal}");
    assert!(server.was_asked().is_none());
}

#[test]
fn a_provider_that_is_killed_in_the_middle_gives_way_to_the_fallback() {
    let server = FakeServer::start(vec![vec![chunked_stream(), chunk(&piece("half ")), Act::Silence]]);
    let daemon =
        daemon_with(&server, &[server.port()], "[plugins.completion.config]\nretry = { attempts = 0 }\n");
    let mut lines = daemon.lines();
    lines.send(&json!({"event": "completion:request", "data": routed(json!({"restart": true}))}));
    assert_eq!(lines.receive()["chunk"]["text"], "half ");
    let pid = daemon.plugin("openai").pid.expect("it is a process");
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    let (text, restarts, line) = heard(&mut lines);
    assert_eq!((text.as_str(), restarts), ("spare", 1), "{line}");
    assert_eq!(tried(&line["data"]), [("openai", "plugin_restarted", true), ("mock", "answered", true)]);
    let status = daemon.ask("completion:status", json!({})).unwrap();
    assert_eq!((&status["running"], &status["queued"]), (&json!(0), &json!(0)));
}

#[test]
fn a_client_that_goes_closes_the_connection_to_the_server() {
    let server = FakeServer::answering(vec![chunked_stream(), chunk(&piece("x")), Act::Silence]);
    let daemon = daemon(&server, &[server.port()]);
    let mut lines = daemon.lines();
    lines.send(&json!({ "event": "openai:generate", "data": ask() }));
    assert_eq!(lines.receive()["chunk"]["text"], "x");
    drop(lines);
    server.wait_until_gone();
}

#[test]
fn without_its_port_a_provider_does_not_start_and_says_which_to_grant() {
    let server = FakeServer::start(Vec::new());
    let daemon = daemon(&server, &[server.port()]);
    let level = daemon.plugin("openai").sandbox;
    if !["L3", "L4", "L5"].contains(&&*level) {
        // Nothing holds a connection back here, so nothing can be missing.
        return;
    }
    drop(daemon);
    let daemon = self::daemon(&server, &[443, 53]);
    let refusal = daemon.ask("openai:generate", ask()).unwrap_err();
    assert_ne!(refusal["code"], "timeout", "{refusal}");
    let inspection = daemon.ask("plugin:inspect", json!({ "name": "openai" })).unwrap().to_string();
    let wanted = format!("sandbox.network = [{}]", server.port());
    assert!(daemon.plugin("openai").state == PluginState::Held, "{inspection}");
    assert!(inspection.contains(&wanted) || daemon.log().contains(&wanted), "{inspection}\n{}", daemon.log());
}

#[test]
fn a_sandboxed_command_answers_and_goes_with_all_it_started() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().display().to_string();
    let script = format!(
        "#!/bin/sh\ncat > {path}/stdin\n\
         if grep -q wait {path}/stdin; then\n\
         setsid -f sleep 1001 2> /dev/null; (sleep 1002 & echo $! > {path}/background.draft)\n\
         echo $$ > {path}/head.draft; mv {path}/background.draft {path}/background; mv {path}/head.draft {path}/head\n\
         exec sleep 1003\nfi\n\
         printf '%s\\n' '{}'\n",
        json!({ "type": "result", "subtype": "success", "result": "well", "session_id": "s" })
    );
    let program = dir.path().join("claude");
    std::fs::write(dir.path().join("draft"), script).unwrap();
    std::fs::set_permissions(dir.path().join("draft"), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::rename(dir.path().join("draft"), &program).unwrap();
    let daemon = Home::with_config(&format!(
        "{WITHOUT_MODEL}[plugins.claude-cli]\nenabled = true\n\
         sandbox = {{ exec = true, write = [{path:?}] }}\nrestart = {{ failures_max = 1 }}\n\
         [plugins.claude-cli.config]\ncommand = {program:?}\n"
    ))
    .start();
    daemon.ready();
    let ask = |text: &str| json!({ "messages": [{ "role": "user", "content": text }] });
    let end = daemon.ask("claude-cli:generate", ask("hi"));
    assert_eq!(end.unwrap_or_else(|refusal| panic!("{refusal}\n{}", daemon.log()))["text"], "well");

    let mut lines = daemon.lines();
    lines.send(&json!({ "event": "claude-cli:generate", "data": ask("wait") }));
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap_or_default();
    wait_until("the command and its child run", || !read("head").is_empty());
    drop(lines);
    for pid in [read("head"), read("background")] {
        let stat = format!("/proc/{}", pid.trim());
        wait_until("a process of the run is gone, and collected", || !std::path::Path::new(&stat).exists());
    }
    let end = daemon.ask("claude-cli:generate", ask("hi")).unwrap();
    assert_eq!(end["text"], "well", "the plugin itself is still there");
    assert_eq!(daemon.plugin("claude-cli").restarts, 0);
}
