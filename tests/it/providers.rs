//! Providers in their sandbox: a real child that reaches a server on this
//! machine, through the one port that it was granted.

use std::os::unix::fs::PermissionsExt;

use ksi_protocol::system::PluginState;
use ksi_provider_http::testing::{Act, FakeServer, answer, chunk, chunked_stream, last_chunk};
use ksi_tests::{Daemon, Home, WITHOUT_MODEL, stderr, wait_until};
use serde_json::{Value, json};

const KEY: &str = "sk-test-providers-0123456789";
const PROMPT: &str = "a prompt that nobody else may read";

/// A daemon whose `openai` asks this server, with these ports granted.
fn daemon(server: &FakeServer, ports: &[u16]) -> Daemon {
    let home = Home::with_config(&format!(
        "{WITHOUT_MODEL}[daemon]\nlog_level = \"trace\"\n\
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
