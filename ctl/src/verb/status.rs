//! `status`, `health`, and what `ksi` says when it is asked nothing.

use std::time::Duration;

use clap::builder::styling::AnsiColor;
use ksi_client::Client;
use ksi_protocol::system::{Health, HealthStatus, PluginState, Status};
use ksi_provider::completion::Status as Work;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{
    error::{Failure, Result},
    exit::Exit,
    invocation::{Invocation, encoded, readable, shaped, short},
    llama::Models,
    output::{Report, bytes, millis, painted},
    verb::logs,
};

/// Time that a plugin may take to add its line to the status. The daemon's
/// own figures never wait for a plugin.
const EXTRA_TIMEOUT: Duration = Duration::from_millis(500);

/// Lines of the log at the end of the status.
const LOG_LINES: usize = 5;

/// `ksi status`.
///
/// # Errors
///
/// Ends with 3 where the daemon is not running.
pub(super) async fn status(at: &Invocation) -> Result<()> {
    match gather(at).await {
        Ok((data, text)) => at.out.print(&Report::text(&data, text)?.named(vec!["ksid".into()])),
        Err(failure) if failure.exit == Exit::NotRunning => {
            let data = json!({"status": "stopped", "socket": at.paths.socket, "degraded": []});
            at.out.print(&Report::text(&data, stopped(at))?)?;
            at.out.note("start it: ksi up");
            Err(Failure::quietly(Exit::NotRunning))
        }
        Err(failure) => Err(failure),
    }
}

/// `ksi` alone: the status and what to do next.
///
/// # Errors
///
/// Fails only where output does.
pub(super) async fn overview(at: &Invocation) -> Result<()> {
    let (report, next) = match gather(at).await {
        Ok((data, text)) => (Report::text(&data, text)?, "ksi ask \"hello\" · ksi chat · ksi top"),
        Err(failure) if failure.exit == Exit::NotRunning => {
            let data = json!({"status": "stopped", "socket": at.paths.socket, "degraded": []});
            (Report::text(&data, stopped(at))?, "ksi up · ksi doctor · ksi --help")
        }
        // How it does is not known: it may well run.
        Err(failure) => {
            let data = json!({"status": "unknown", "socket": at.paths.socket, "degraded": [failure.message]});
            let text = format!("{} ksid: {}", painted("●", AnsiColor::Red), failure.message);
            if !failure.hint.is_empty() {
                at.out.note(&failure.hint);
            }
            (Report::text(&data, text)?, "ksi doctor · ksi --help")
        }
    };
    at.out.print(&report)?;
    at.out.note(&format!("Next: {next}"));
    Ok(())
}

fn stopped(at: &Invocation) -> String {
    format!("○ ksid is not running ({})", short(&at.paths.socket))
}

/// Asks the daemon, and two plugins for a line each.
async fn gather(at: &Invocation) -> Result<(Value, String)> {
    let client = at.connect().await?;
    let status: Status = at.ask(&client, "system:status", &json!({})).await?;
    let (models, work) = tokio::join!(extra(&client, "llama:models"), extra(&client, "completion:status"));
    let mut text = text(at, &status);
    if let Some(line) = models.as_ref().map(|models| line("llama:models", models, model_line)) {
        text.push_str(&format!("\n   Model:   {line}"));
    }
    if let Some(line) = work.as_ref().map(|work| line("completion:status", work, work_line)) {
        text.push_str(&format!("\n   Queue:   {line}"));
    }
    let log = logs::tail(&at.paths.log_file(), LOG_LINES).unwrap_or_default();
    if !log.is_empty() {
        text.push_str("\n\n");
        text.push_str(&log.join("\n"));
    }
    Ok((data(&status, models, work)?, text))
}

/// Data of a plugin, where it is there and quick.
async fn extra(client: &Client, event: &str) -> Option<Value> {
    let options = ksi_client::CallOptions { timeout: Some(EXTRA_TIMEOUT), ..Default::default() };
    let reply = client.request_raw(event, encoded(&json!({})).ok()?, options).await.ok()?;
    readable(&reply).ok()
}

/// A plugin's line, or why what it says cannot be read.
fn line<T: DeserializeOwned>(event: &str, data: &Value, line: impl FnOnce(&T) -> String) -> String {
    shaped(event, data).map_or_else(|failure| failure.message, |data| line(&data))
}

/// For programs: the summary first, then all that the daemon said.
fn data(status: &Status, models: Option<Value>, work: Option<Value>) -> Result<Value> {
    let health = &status.health;
    let mut data = serde_json::to_value(status)
        .map_err(|error| Failure::failed(format!("the status cannot be written as JSON: {error}")))?;
    data["status"] = match health.status {
        HealthStatus::Stopping => "stopping",
        HealthStatus::Starting => "starting",
        HealthStatus::Ok | HealthStatus::Degraded | HealthStatus::Unhealthy => "running",
    }
    .into();
    data["pid"] = health.pid.into();
    data["version"] = health.version.clone().into();
    data["uptime_s"] = (health.uptime_ms / 1000).into();
    data["degraded"] = health.reasons.clone().into();
    data["models"] = models.and_then(|models| models.get("models").cloned()).unwrap_or(Value::Null);
    data["completions"] = work.unwrap_or(Value::Null);
    Ok(data)
}

fn dot(status: HealthStatus) -> String {
    let color = match status {
        HealthStatus::Ok => AnsiColor::Green,
        HealthStatus::Starting | HealthStatus::Stopping => AnsiColor::Yellow,
        HealthStatus::Degraded | HealthStatus::Unhealthy => AnsiColor::Red,
    };
    painted("●", color)
}

fn text(at: &Invocation, status: &Status) -> String {
    let Status { health, counters, .. } = status;
    let mut lines = vec![
        format!("{} ksid {} - event daemon for AI agents", dot(health.status), health.version),
        format!(
            "   Active:  {}, up {}, pid {}",
            health.status.as_str(),
            millis(health.uptime_ms),
            health.pid
        ),
        format!("   Socket:  {}", short(status.socket.as_ref())),
        format!("   State:   {}", short(status.state_dir.as_ref())),
        format!("   Log:     {}", short(&at.paths.log_file())),
        format!("   Memory:  {}", bytes(status.rss_bytes)),
        format!("   Plugins: {}/{} ready{}", health.plugins_ready, health.plugins_total, unready(status)),
        format!(
            "   Clients: {}, {} subscriptions, {} requests in flight",
            status.sessions, status.subscriptions, status.in_flight
        ),
        format!(
            "   Events:  {} requests, {} emitted, {} delivered, {} refused, {} dropped",
            counters.requests, counters.emits, counters.deliveries, counters.refusals, counters.dropped
        ),
    ];
    lines.extend(
        health.reasons.iter().map(|reason| format!("   {} {reason}", painted("Trouble:", AnsiColor::Red))),
    );
    lines.join("\n")
}

/// The plugins that are not ready, by name; one that nobody wants to run is
/// just off.
fn unready(status: &Status) -> String {
    let unready: Vec<_> = status
        .plugins
        .iter()
        .filter(|plugin| plugin.state != PluginState::Ready)
        .map(|plugin| match (plugin.state, &plugin.last_error) {
            (PluginState::Stopped, None) => format!("{} off", plugin.name),
            (state, _) => format!("{} {}", plugin.name, state.as_str()),
        })
        .collect();
    if unready.is_empty() { String::new() } else { format!(" ({})", unready.join(", ")) }
}

fn model_line(Models { models, .. }: &Models) -> String {
    let loaded = models.iter().filter(|model| model.loaded).map(|model| {
        let toy = if model.toy { ", toy" } else { "" };
        let context = model.context_length.map_or(String::new(), |n| format!(", context {n}"));
        format!("{}{context}{toy}", model.name)
    });
    let loaded = loaded.collect::<Vec<_>>().join("; ");
    match (models.len(), loaded.is_empty()) {
        (0, _) => "none; add one: ksi model add PATH.gguf".to_owned(),
        (n, true) => format!("{n} known, none loaded"),
        (_, false) => loaded,
    }
}

fn work_line(Work { running, queued, .. }: &Work) -> String {
    format!("{running} running, {queued} waiting")
}

/// `ksi health`.
///
/// # Errors
///
/// Ends with 8 where the daemon is not whole, with 3 where it is not running.
pub(super) async fn health(at: &Invocation) -> Result<()> {
    let client = match at.connect().await {
        Ok(client) => client,
        Err(failure) => {
            if failure.exit == Exit::NotRunning {
                at.out.print(&Report::text(&json!({"status": "stopped"}), "stopped")?)?;
            }
            return Err(failure);
        }
    };
    let health: Health = at.ask(&client, "system:health", &json!({})).await?;
    let mut text = format!(
        "{}: {}/{} plugins ready, up {}",
        health.status.as_str(),
        health.plugins_ready,
        health.plugins_total,
        millis(health.uptime_ms)
    );
    for reason in &health.reasons {
        text.push_str(&format!("\n  {reason}"));
    }
    at.out.print(&Report::text(&health, text)?.named(vec![health.status.as_str().to_owned()]))?;
    match health.status {
        HealthStatus::Ok => Ok(()),
        _ => Err(Failure::quietly(Exit::Degraded)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama;

    #[test]
    fn the_model_line_says_what_is_loaded_or_what_to_do() {
        let other = llama::model("b", json!({}));
        let said = |models: Value| line("llama:models", &json!({ "models": models }), model_line);
        let loaded = json!({"loaded": true, "toy": true, "context_length": 2048});
        assert_eq!(said(json!([llama::model("a", loaded), other.clone()])), "a, context 2048, toy");
        assert_eq!(said(json!([other])), "1 known, none loaded");
        assert!(said(json!([])).contains("ksi model add"));
        assert!(said(json!([{"name": "b"}])).contains("missing field `path`"));
    }

    #[test]
    fn the_queue_line_says_what_runs_and_what_waits() {
        let said = |work: Value| line("completion:status", &work, work_line);
        let work = json!({"queued": 2, "running": 1, "requests": [], "providers": []});
        assert_eq!(said(work), "1 running, 2 waiting");
        assert!(said(json!({"queued": 2})).contains("missing field `running`"));
    }
}
