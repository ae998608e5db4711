//! The plugin with a program in place of `claude` that the test has written.
#![expect(clippy::unwrap_used, reason = "tests, with functions of their own")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ksi_provider::{Failure, Generated, StopReason};
use ksi_sdk::{
    prelude::{Code, Refusal, json},
    testing::{Answer, FakeHost},
};
use plugin_claude_cli::ClaudeCli;
use serde_json::Value;
use tempfile::TempDir;

const EVENT: &str = "claude-cli:generate";

/// A program that writes down how it was called, and then does what the test
/// says. `$run` is the number of the call, from 1.
struct Fake {
    dir: TempDir,
}

impl Fake {
    fn new(does: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let script = format!(
            "#!/bin/sh\ndir={dir}\nrun=1\nwhile [ -e $dir/argv.$run ]; do run=$((run+1)); done\n\
             printf '%s\\n' \"$@\" > $dir/argv.$run\npwd > $dir/cwd.$run\nenv > $dir/env.$run\n\
             for arg; do [ \"$last\" = --system-prompt-file ] && cat \"$arg\" > $dir/system.$run; last=$arg; done\n\
             cat > $dir/stdin.$run\n{does}\n",
            dir = dir.path().display()
        );
        // Written under another name: a file that is open for writing cannot be
        // started.
        let (draft, program) = (dir.path().join("draft"), dir.path().join("claude"));
        fs::write(&draft, script).unwrap();
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(draft, program).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn host(&self, more: Value) -> FakeHost<ClaudeCli> {
        let mut config = json!({ "command": self.path("claude") });
        for (name, value) in more.as_object().unwrap() {
            config[name] = value.clone();
        }
        FakeHost::start(config).unwrap()
    }
}

fn say(line: Value) -> String {
    format!("printf '%s\\n' '{line}'\n")
}

fn piece(text: &str) -> String {
    let event =
        json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "text_delta", "text": text } });
    say(json!({ "type": "stream_event", "event": event, "session_id": "s", "parent_tool_use_id": null }))
}

fn result(text: &str, session: &str) -> Value {
    json!({ "type": "result", "subtype": "success", "is_error": false, "result": text, "session_id": session,
        "total_cost_usd": 0.25, "num_turns": 1, "usage": { "input_tokens": 3, "output_tokens": 4,
        "cache_creation_input_tokens": 5, "cache_read_input_tokens": 6 } })
}

fn asks(said: &[&str]) -> Value {
    let messages: Vec<Value> = said
        .iter()
        .zip(["user", "assistant"].into_iter().cycle())
        .map(|(text, role)| json!({ "role": role, "content": text }))
        .collect();
    json!({ "messages": messages })
}

fn follow(host: &FakeHost<ClaudeCli>, ask: Value) -> (Vec<String>, Result<Generated, Refusal>) {
    let call = host.open(EVENT, ask);
    let mut pieces = Vec::new();
    loop {
        match host.next(&call) {
            Answer::Chunk(delta) => pieces.push(delta["text"].as_str().unwrap().to_owned()),
            Answer::End(end) => return (pieces, Ok(serde_json::from_value(end).unwrap())),
            Answer::Refusal(refusal) => return (pieces, Err(refusal)),
            other => panic!("{other:?}"),
        }
    }
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn is_alive(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    !stat.is_empty()
}

#[test]
fn an_answer_comes_in_pieces_and_then_whole() {
    let init = say(json!({ "type": "system", "subtype": "init", "model": "claude-x", "session_id": "s" }));
    let helper =
        json!({ "type": "content_block_delta", "delta": { "type": "text_delta", "text": "not for you" } });
    let helper = say(json!({ "type": "stream_event", "event": helper, "parent_tool_use_id": "t" }));
    let whole =
        say(json!({ "type": "assistant", "message": { "content": [{ "type": "text", "text": "Hello" }] } }));
    let fake = Fake::new(
        &[init, piece("Hel"), helper, piece("lo é"), whole, say(result("Hello é", "one"))].concat(),
    );
    let host = fake.host(json!({ "api_key": "sk-ant-0123456789" }));
    let mut ask = asks(&["hi it is a secret"]);
    ask["model"] = json!("opus");
    ask["temperature"] = json!(0);
    let messages = ask["messages"].as_array_mut().unwrap();
    messages.insert(0, json!({ "role": "system", "content": "be brief" }));
    let (pieces, generated) = follow(&host, ask);
    let generated = generated.unwrap();
    assert_eq!(pieces, ["Hel", "lo é"]);
    assert_eq!((generated.text.as_str(), generated.model.as_str()), ("Hello é", "claude-x"));
    assert_eq!((generated.stop_reason, generated.response_id.as_deref()), (StopReason::Stop, Some("one")));
    assert_eq!(generated.ignored, ["temperature"]);
    let usage = generated.usage;
    assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens), (14, 4, 6));
    assert_eq!((usage.cache_write_tokens, usage.cost_usd), (Some(5), Some(0.25)));

    let argv = fake.read("argv.1");
    assert!(argv.starts_with("-p\n--output-format\nstream-json\n"), "{argv}");
    assert!(argv.contains("\n--model=opus\n") && argv.contains("\n--tools\n\n"), "{argv}");
    assert!(!argv.contains("--resume"), "no name of a session is made up: {argv}");
    assert!(!argv.contains("secret") && !argv.contains("brief"), "what is said is no argument: {argv}");
    assert_eq!(
        (fake.read("stdin.1").as_str(), fake.read("system.1").as_str()),
        ("hi it is a secret", "be brief")
    );
    let environment = fake.read("env.1");
    assert!(environment.contains("ANTHROPIC_API_KEY=sk-ant-0123456789\n"), "{environment}");
    assert!(!environment.contains("CARGO"), "nothing else is inherited: {environment}");
    let texts = Path::new(fake.read("cwd.1").trim()).parent().unwrap().join("texts");
    assert_eq!(fs::read_dir(texts).unwrap().count(), 0, "the system's text is gone");
    assert!(host.logged().is_empty(), "neither a prompt nor a key is logged");
}

#[test]
fn a_conversation_goes_on_with_the_last_session_and_from_the_same_directory() {
    // Another name each time, whatever it was told to resume.
    let fake = Fake::new(
        r#"printf '{"type":"result","subtype":"success","result":"answer %s","session_id":"s%s"}\n' $run $run"#,
    );
    let host = fake.host(json!({}));
    let ask = |said: &[&str], id: Option<&str>| {
        let mut ask = asks(said);
        if let Some(id) = id {
            ask["conversation_id"] = json!(id);
        }
        let (pieces, generated) = follow(&host, ask);
        assert_eq!(pieces, [generated.unwrap().text], "what does not come in pieces comes in one");
    };
    ask(&["a"], Some("c"));
    ask(&["a", "answer 1", "b"], Some("c"));
    ask(&["a", "answer 1", "b", "answer 2", "c"], Some("c"));
    // An edited past, another conversation, none at all: all from the start.
    ask(&["a", "answer 1", "b", "ANSWER 2", "c"], Some("c"));
    ask(&["a", "answer 1", "b"], Some("d"));
    ask(&["a", "answer 1", "b"], None);
    let resumed = |run: u32| {
        let argv = fake.read(&format!("argv.{run}"));
        argv.lines().find_map(|arg| arg.strip_prefix("--resume=").map(str::to_owned))
    };
    assert_eq!([1, 2, 3].map(resumed), [None, Some("s1".into()), Some("s2".into())]);
    assert_eq!((fake.read("stdin.2").as_str(), fake.read("stdin.3").as_str()), ("b", "c"));
    for run in [4, 5, 6] {
        assert_eq!(resumed(run), None, "{run}");
        assert!(fake.read(&format!("stdin.{run}")).contains("<user>\na\n</user>"), "{run}");
    }
    assert_eq!(fake.read("cwd.1"), fake.read("cwd.6"));
}

#[test]
fn a_session_that_the_command_has_lost_is_begun_anew() {
    let gone = json!({ "type": "result", "subtype": "error_during_execution", "is_error": true, "session_id": "x",
        "errors": ["No conversation found with session ID: s1"] });
    let fake = Fake::new(&format!(
        "case \"$*\" in *--resume*) {}exit 1;; *) {} ;; esac",
        say(gone).replace('\n', "; "),
        say(result("b", "s1")).trim()
    ));
    let host = fake.host(json!({}));
    for said in [&["a"][..], &["a", "b", "c"]] {
        let mut ask = asks(said);
        ask["conversation_id"] = json!("c");
        assert_eq!(follow(&host, ask).1.unwrap().text, "b");
    }
    assert!(fake.read("argv.2").contains("--resume=s1") && !fake.read("argv.3").contains("--resume"));
    assert!(fake.read("stdin.3").contains("<assistant>\nb\n</assistant>"), "it is told everything");
}

#[test]
fn every_failure_has_its_kind() {
    let error =
        |said: &str| say(json!({ "type": "result", "subtype": "success", "is_error": true, "result": said }));
    for (does, code, retryable) in [
        (error("Invalid API key · Please run /login"), Code::Denied, false),
        (error("API Error: 529 {\"type\":\"error\"}"), Code::Unavailable, true),
        (error("Claude AI usage limit reached|9999999999"), Code::Busy, true),
        (say(json!({ "type": "result", "subtype": "error_max_turns" })), Code::Unavailable, true),
        ("echo 'unknown option --tools' >&2; exit 1".into(), Code::Unavailable, false),
        ("exit 3".into(), Code::Unavailable, false),
        ("kill -9 $$".into(), Code::Unavailable, true),
        ("exit 0".into(), Code::Unavailable, false),
        ("echo not json".into(), Code::Unavailable, false),
        ("printf '{\"type\":'".into(), Code::Unavailable, false),
        ("printf 'x%.0s' $(seq 5000)".into(), Code::TooLarge, false),
        ("while :; do echo '{\"type\":\"ping\"}'; done".into(), Code::TooLarge, false),
    ] {
        let fake = Fake::new(&does);
        let host = fake.host(json!({ "limits": { "line_bytes": 4096, "answer_bytes": 100_000 } }));
        let refusal = follow(&host, asks(&["hi"])).1.unwrap_err();
        assert_eq!((refusal.code, refusal.retryable), (code, retryable), "{does}: {refusal:?}");
        assert!(Failure::of(&refusal).is_some(), "{does}: {refusal:?}");
        let fake = Fake::new(&(piece("x") + &does));
        let host = fake.host(json!({ "limits": { "line_bytes": 4096, "answer_bytes": 100_000 } }));
        let (pieces, refused) = follow(&host, asks(&["hi"]));
        let refusal = refused.unwrap_err();
        assert_eq!((pieces.len(), refusal.code, refusal.retryable), (1, code, false), "{does}: {refusal:?}");
    }
}

#[test]
fn a_command_that_takes_too_long_is_ended() {
    for (config, words) in [
        (json!({ "timeouts": { "silence_ms": 200 } }), "said nothing for 200 ms"),
        (json!({ "timeouts": { "total_ms": 200 } }), "within 200 ms"),
    ] {
        let fake = Fake::new("echo $$ > $dir/pid; exec sleep 1000");
        let host = fake.host(config);
        let refusal = follow(&host, asks(&["hi"])).1.unwrap_err();
        assert!(refusal.code == Code::Timeout && refusal.message.contains(words), "{refusal:?}");
        wait_until("it is gone", || fake.read("pid").is_empty() || !is_alive(&fake.read("pid")));
    }
}

#[test]
fn a_cancelled_request_takes_all_its_processes_along() {
    // One in the background, one that left the group, one without parents and
    // one without the mark.
    let fake = Fake::new(&format!(
        "(sleep 1001 & echo $! > $dir/background)\nsetsid sh -c 'echo $$ > '$dir'/session; exec sleep 1002' &\n\
         env -i /bin/sh -c 'echo $$ > '$dir'/bare; exec sleep 1003' &\necho $$ > $dir/head\n\
         while [ ! -s $dir/session ] || [ ! -s $dir/bare ]; do :; done\n{}exec sleep 1004",
        piece("x")
    ));
    let host = fake.host(json!({}));
    let call = host.open(EVENT, asks(&["hi"]));
    assert!(matches!(host.next(&call), Answer::Chunk(_)));
    let pids = ["head", "background", "session", "bare"].map(|name| fake.read(name));
    assert!(pids.iter().all(|pid| is_alive(pid)), "{pids:?}");
    host.cancel(&call);
    wait_until("all of them are gone", || {
        pids.iter().all(|pid| {
            // Whoever adopted it here may not collect it.
            let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        })
    });
}

#[test]
fn there_are_no_more_runs_at_once_than_allowed() {
    let fake = Fake::new(&(piece("x") + "exec sleep 1000"));
    let host = fake.host(json!({ "running_max": 1 }));
    let call = host.open(EVENT, asks(&["hi"]));
    assert!(matches!(host.next(&call), Answer::Chunk(_)));
    let refusal = host.request(EVENT, asks(&["hi"])).unwrap_err();
    assert_eq!((refusal.code, refusal.retry_after_ms), (Code::Busy, Some(1000)));
    host.cancel(&call);
    let again = host.open(EVENT, asks(&["hi"]));
    assert!(matches!(host.next(&again), Answer::Chunk(_)));
}

#[test]
fn models_are_the_names_of_the_command_and_those_of_the_configuration() {
    let fake = Fake::new("");
    let known = json!({ "claude-x": { "context_length": 200_000 } });
    let host = fake.host(json!({ "default_model": "opus", "models": known }));
    let models = host.request("claude-cli:models", json!({})).unwrap();
    let names: Vec<&str> =
        models["models"].as_array().unwrap().iter().map(|model| model["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["opus", "claude-x", "haiku", "sonnet"]);
    assert_eq!(models["models"][1]["context_length"], 200_000);
}

#[test]
fn what_cannot_work_is_refused_at_the_start() {
    for (config, path) in [
        (json!({ "command": "no-such-program" }), "command"),
        (json!({ "command": "/etc" }), "command"),
        (json!({ "command": "sh", "path": "/nowhere" }), "command"),
        (json!({ "command": "sh", "running_max": 0 }), "running_max"),
        (json!({ "command": "sh", "timeouts": { "silence_ms": 0 } }), "timeouts.silence_ms"),
    ] {
        let refusal = FakeHost::<ClaudeCli>::start(config.clone()).err().unwrap();
        assert_eq!(refusal.details.as_ref().unwrap()["path"], path, "{config}: {refusal:?}");
        assert!(!refusal.hint.is_empty(), "{config}");
    }
}
