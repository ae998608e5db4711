//! `up`, `start`, `stop`, `restart`: the daemon's life.

use std::time::Duration;

use clap::builder::styling::AnsiColor;
use ksi_protocol::system::{Freeze, Freezing, Health, HealthStatus};
use ksi_provider::completion::Completed;
use serde_json::{Value, json};

use crate::{
    answer::{self, Question},
    args,
    error::{Failure, Result},
    exit::Exit,
    invocation::{Invocation, short},
    output::{Report, elapsed, millis, painted},
    restart::{self, Restarted},
    start::{self, Started, Stopped},
    time::whole_ms,
};

/// Time that the self-test of `up` may take: a first answer may have to load
/// a model.
const SELF_TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Tokens of the self-test.
const SELF_TEST_TOKENS: u32 = 16;

/// `ksi start`.
///
/// # Errors
///
/// Says why the daemon is not ready.
pub(super) async fn start(at: &Invocation) -> Result<()> {
    let started = start::start(at).await?;
    report_start(at, &started)
}

fn report_start(at: &Invocation, started: &Started) -> Result<()> {
    let Health { version, pid, plugins_ready, plugins_total, reasons, .. } = &started.health;
    let log = at.paths.log_file();
    let plugins = ready(&started.health);
    let text = match started.took {
        Some(took) => {
            format!("{version} started: pid {pid}, {plugins} in {}, log in {}", elapsed(took), short(&log))
        }
        None => format!("{version} is already running: pid {pid}, {plugins}"),
    };
    let data = json!({
        "status": status(started),
        "pid": pid,
        "version": version,
        "ready_ms": started.took.map(whole_ms),
        "socket": at.paths.socket,
        "log": log,
        "plugins_ready": plugins_ready,
        "plugins_total": plugins_total,
        "degraded": reasons,
    });
    at.out.print(&Report::text(&data, format!("ksid {text}"))?)?;
    warn(at, reasons);
    Ok(())
}

/// Says what of the daemon does not work; it is ready all the same.
fn warn(at: &Invocation, reasons: &[String]) {
    for reason in reasons {
        at.out.warn(&format!("{}: {reason}", painted("warning", AnsiColor::Yellow)));
    }
}

/// What a program is told of a start.
fn status(started: &Started) -> &'static str {
    if started.took.is_some() { "started" } else { "already_running" }
}

/// How many of the plugins are ready.
fn ready(Health { plugins_ready, plugins_total, .. }: &Health) -> String {
    format!("{plugins_ready}/{plugins_total} plugins ready")
}

/// `ksi stop`. A daemon that is not running has reached the wanted state, so
/// that is no failure.
///
/// # Errors
///
/// Fails where the daemon still runs.
pub(super) async fn stop(at: &Invocation, options: &args::Stop) -> Result<()> {
    let (data, text) = match start::stop(at, options.grace).await? {
        Stopped::WasNotRunning => {
            let text = format!("ksid is not running at {}", at.paths.socket.display());
            (json!({"status": "not_running"}), text)
        }
        Stopped::Gone { pid } => {
            (json!({"status": "stopped", "pid": pid}), format!("ksid stopped: pid {pid}"))
        }
    };
    at.out.print(&Report::text(&data, text)?)
}

/// `ksi restart`.
///
/// # Errors
///
/// As `stop` and `start`; says where nobody has taken over.
pub(super) async fn restart(at: &Invocation, options: &args::Stop) -> Result<()> {
    match restart::restart(at, options.grace).await? {
        Restarted::Started { before, started } => {
            match before {
                Stopped::WasNotRunning => at.out.note("ksid was not running"),
                Stopped::Gone { pid } => at.out.note(&format!("ksid stopped: pid {pid}")),
            }
            report_start(at, &started)
        }
        Restarted::TookOver { before, health: None, took } => {
            let ready_ms = whole_ms(took);
            let data = json!({
                "status": "restarted", "before": before, "ready_ms": ready_ms, "socket": at.paths.socket,
            });
            let text = format!("ksid restarted in {}; how it does is not for this token", millis(ready_ms));
            at.out.print(&Report::text(&data, text)?)
        }
        Restarted::TookOver { before, health: Some(health), took } => {
            at.out.print(&took_over(at, before, &health, took)?)?;
            warn(at, &health.reasons);
            Ok(())
        }
    }
}

fn took_over(at: &Invocation, before: u32, health: &Health, took: Duration) -> Result<Report> {
    let Health { version, pid, plugins_ready, plugins_total, .. } = health;
    let ready_ms = whole_ms(took);
    let time = millis(ready_ms);
    let plugins = ready(health);
    // Where the process has replaced its program, it is still the same one.
    let process = match before == *pid {
        true => format!("pid {pid} as before"),
        false => format!("pid {pid} in the place of {before}"),
    };
    let text = format!("ksid {version} restarted in {time}: {process}, {plugins}");
    let data = json!({
        "status": "restarted",
        "pid": pid,
        "before": before,
        "version": version,
        "ready_ms": ready_ms,
        "socket": at.paths.socket,
        "plugins_ready": plugins_ready,
        "plugins_total": plugins_total,
        "degraded": health.reasons,
    });
    Report::text(&data, text)
}

/// `ksi freeze` and `ksi thaw`.
///
/// # Errors
///
/// Fails where the order cannot be written down.
pub(super) async fn freeze(at: &Invocation, on: bool, reason: Option<String>) -> Result<()> {
    let client = at.connect().await?;
    let done: Freezing = at.ask(&client, "system:freeze", &Freeze { on, reason }).await?;
    let text = match done.frozen {
        true => format!("frozen; {} under way go on to their end", done.in_flight),
        false => "thawed".to_owned(),
    };
    at.out.print(&Report::text(&done, text)?)?;
    if on {
        at.out.note("Only reading and administration go on. End it: ksi thaw");
    }
    Ok(())
}

/// One line of what `up` has checked.
struct Step {
    name: &'static str,
    ok: bool,
    text: String,
}

/// `ksi up`: from nothing to a model's first words.
///
/// # Errors
///
/// Fails where the daemon does not start; ends with 8 where something of it
/// does not work.
pub(super) async fn up(at: &Invocation) -> Result<()> {
    let started = start::start(at).await?;
    let (self_test, completed) = self_test(at, &started).await;
    let model = model_step(completed.as_ref());
    let steps = [config_step(at), socket_step(at), plugins_step(&started), model, self_test];
    let whole = steps.iter().all(|step| step.ok) && started.health.status == HealthStatus::Ok;
    at.out.print(&checklist(at, &started, &steps)?)?;
    warn(at, &started.health.reasons);
    if !whole {
        at.out.warn("Next: ksi doctor · ksi logs");
        return Err(Failure::quietly(Exit::Degraded));
    }
    at.out.note("Next: ksi ask \"hello\" · ksi chat · ksi top");
    Ok(())
}

fn checklist(at: &Invocation, started: &Started, steps: &[Step]) -> Result<Report> {
    let lines = steps.iter().map(|Step { name, ok, text }| {
        let mark = if *ok { painted("✓", AnsiColor::Green) } else { painted("✗", AnsiColor::Red) };
        format!("{mark} {name:<9} {text}")
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    let checks = steps.iter().map(|step| json!({"name": step.name, "ok": step.ok, "text": step.text}));
    let data = json!({
        "status": status(started),
        "pid": started.health.pid,
        "version": started.health.version,
        "socket": at.paths.socket,
        "checks": checks.collect::<Vec<Value>>(),
        "degraded": started.health.reasons,
    });
    Report::text(&data, text)
}

fn config_step(at: &Invocation) -> Step {
    let file = &at.paths.config_file;
    let text = match file.exists() {
        true => short(file),
        false => format!("defaults; {} is read where it exists", short(file)),
    };
    Step { name: "config", ok: true, text }
}

fn socket_step(at: &Invocation) -> Step {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(&at.paths.socket).map(|meta| meta.permissions().mode() & 0o777);
    let path = short(&at.paths.socket);
    match mode {
        Ok(mode) => {
            let ok = mode & 0o077 == 0;
            let note = if ok { "" } else { ", open to others" };
            Step { name: "socket", ok, text: format!("{path} ({mode:04o}{note})") }
        }
        Err(error) => Step { name: "socket", ok: false, text: format!("{path}: {error}") },
    }
}

fn plugins_step(started: &Started) -> Step {
    let Health { plugins_ready, plugins_total, .. } = started.health;
    let when = match started.took {
        Some(took) => format!(" in {}", elapsed(took)),
        None => ", running already".to_owned(),
    };
    let text = format!("{plugins_ready}/{plugins_total} ready{when}");
    Step { name: "plugins", ok: plugins_ready == plugins_total, text }
}

fn model_step(completed: Option<&Completed>) -> Step {
    let Some(Completed { answered, toy, .. }) = completed else {
        return Step { name: "model", ok: false, text: "none has answered".to_owned() };
    };
    let toy = if *toy { ", a toy; add yours: ksi model add ~/models/x.gguf" } else { "" };
    Step { name: "model", ok: true, text: format!("{answered}{toy}") }
}

/// Lets the default model say a few words.
async fn self_test(at: &Invocation, started: &Started) -> (Step, Option<Completed>) {
    let question = Question {
        prompt: Some("Say hello.".to_owned()),
        max_tokens: Some(SELF_TEST_TOKENS),
        ..Question::default()
    };
    let mut pieces = 0_usize;
    let options = at.call_within(SELF_TEST_TIMEOUT);
    let answered = answer::stream(&started.client, &question, options, |_| {
        pieces += 1;
        Ok(())
    });
    match answered.await {
        Ok((_, completed)) => {
            let tokens = completed.usage.completion_tokens;
            let speed = completed.timings.generate_per_second;
            let text = format!("{tokens} tokens in {pieces} pieces, {speed:.0} tokens/s");
            (Step { name: "self-test", ok: tokens > 0, text }, Some(completed))
        }
        Err(failure) => {
            let hint = if failure.hint.is_empty() { String::new() } else { format!(" ({})", failure.hint) };
            (Step { name: "self-test", ok: false, text: format!("{}{hint}", failure.message) }, None)
        }
    }
}
