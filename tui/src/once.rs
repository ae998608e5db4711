//! One snapshot for scripts: `ksi-monitor --once [--json]`.
//!
//! Connects once, asks once, prints once. Never waits for a daemon, and never
//! touches the terminal's modes.

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use ksi_client::{CallOptions, Client, Error, Options};
use ksi_protocol::system::{HealthStatus, Status};

use crate::{conn::now_ms, figures, state::plugins};

/// Time after which a daemon that does not answer counts as failed.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Exit code where something failed.
pub(crate) const FAILED: u8 = 1;
/// Exit code where no daemon runs.
pub(crate) const NOT_RUNNING: u8 = 3;
/// Exit code where the daemon did not answer in time.
pub(crate) const TIMED_OUT: u8 = 7;
/// Exit code where the daemon runs but is not `ok`.
pub(crate) const DEGRADED: u8 = 8;

/// Prints a snapshot on standard output. The exit code is 0 where the daemon
/// is `ok`, 3 where there is none, 7 where it does not answer, 8 where it is
/// anything else than `ok`, and 1 for any other failure.
pub(crate) async fn print(options: Options, as_json: bool) -> u8 {
    match snapshot(options).await {
        Ok((status, latency)) => {
            let text = if as_json { json(&status, latency) } else { plain(&status, latency) };
            // Whoever closed the pipe does not want the rest; the code counts.
            let _ = io::stdout().lock().write_all(text.as_bytes());
            match status.health.status {
                HealthStatus::Ok => 0,
                _ => DEGRADED,
            }
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "ksi-monitor: {error}");
            match error {
                Error::NotRunning { .. } => NOT_RUNNING,
                Error::TimedOut { .. } => TIMED_OUT,
                _ => FAILED,
            }
        }
    }
}

async fn snapshot(options: Options) -> Result<(Status, Duration), Error> {
    let call = || CallOptions::timeout(TIMEOUT);
    let client = Client::connect(options.reconnect(false)).await?;
    let sent = Instant::now();
    client.request_raw("system:health", ksi_protocol::empty(), call()).await?;
    let latency = sent.elapsed();
    let data = client.request_raw("system:status", ksi_protocol::empty(), call()).await?;
    let status = ksi_protocol::decode(&data).map_err(Error::Refused)?;
    Ok((status, latency))
}

/// `{"at", "latency_us", "status"}`, on one line.
fn json(status: &Status, latency: Duration) -> String {
    let snapshot = serde_json::json!({
        "at": figures::moment(now_ms()),
        "latency_us": u64::try_from(latency.as_micros()).unwrap_or(u64::MAX),
        "status": status,
    });
    format!("{snapshot}\n")
}

/// The same for people: totals, then one plugin a line, what is not ready
/// first.
fn plain(status: &Status, latency: Duration) -> String {
    let health = &status.health;
    let latency = figures::micros(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    let counters = &status.counters;
    let mut text = format!(
        "ksid {}  {}  up {}  pid {}  rss {}\n",
        figures::printable(&health.version),
        health.status.as_str(),
        figures::span(health.uptime_ms),
        health.pid,
        figures::bytes(status.rss_bytes),
    );
    text += &format!(
        "socket {}  boot {}\n",
        figures::printable(&status.socket),
        figures::printable(&status.boot)
    );
    text += &format!(
        "sessions {}  subscriptions {}  in flight {}  round trip {latency}\n",
        status.sessions, status.subscriptions, status.in_flight
    );
    for (label, value) in [
        ("requests", counters.requests),
        ("emits", counters.emits),
        ("deliveries", counters.deliveries),
        ("refusals", counters.refusals),
        ("dropped", counters.dropped),
    ] {
        text += &format!("{label} {}  ", figures::count(value));
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    for reason in &health.reasons {
        text += &format!("reason: {}\n", figures::printable(reason));
    }
    text += &table(status);
    text
}

fn table(status: &Status) -> String {
    let heads = [
        "PLUGIN",
        "STATE",
        "PLACE",
        "SANDBOX",
        "GEN",
        "RESTARTS",
        "PID",
        "RSS",
        "BUSY",
        "HANDLED",
        "LAST ERROR",
    ];
    let mut rows = vec![heads.map(str::to_owned)];
    for plugin in plugins::sorted(&status.plugins, plugins::Sort::Warnings) {
        rows.push([
            figures::printable(&plugin.name),
            plugin.state.as_str().into(),
            plugin.placement.as_str().into(),
            figures::or_dash(&figures::printable(&plugin.sandbox)),
            plugin.generation.to_string(),
            plugin.restarts.to_string(),
            plugin.pid.map_or_else(|| "-".into(), |pid| pid.to_string()),
            plugin.rss_bytes.map_or_else(|| "-".into(), figures::bytes),
            plugin.in_flight.to_string(),
            figures::count(plugin.handled),
            figures::printable(plugin.last_error.as_deref().unwrap_or("-")),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        conn::tests::Fake,
        state::tests::{plugin, status},
    };
    use ksi_protocol::system::PluginState;

    #[test]
    fn the_plain_snapshot_has_every_figure_and_no_control_character() {
        let mut status = status();
        let mut held = plugin("zeta", PluginState::Held);
        held.last_error = Some("exit code 1\u{1b}[31m".into());
        status.plugins.push(held);
        status.health.reasons = vec!["plugin zeta is held".into()];
        let text = plain(&status, Duration::from_micros(210));
        for part in
            ["ksid 0.1.0  ok  up 1h 0m  pid 42", "round trip 210 µs", "requests 1,234", "reason: plugin zeta"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains('\u{1b}'));
        let lines: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("PLUGIN")).collect();
        assert!(lines[1].starts_with("zeta"), "what is not ready comes first: {lines:?}");
    }

    #[test]
    fn the_json_snapshot_is_one_line_with_the_status_as_the_daemon_sent_it() {
        let status = status();
        let text = json(&status, Duration::from_micros(210));
        assert_eq!(text.lines().count(), 1);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["latency_us"], 210);
        assert_eq!(serde_json::from_value::<Status>(value["status"].clone()).unwrap(), status);
    }

    #[tokio::test]
    async fn the_exit_code_says_whether_a_daemon_runs_and_is_well() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("ksid.sock");
        let code = async |as_json| print(Options::new(&socket), as_json).await;
        assert_eq!(code(false).await, NOT_RUNNING);
        let well = Fake::start(&socket, "boot-1", HealthStatus::Ok, 0);
        assert_eq!(code(true).await, 0);
        drop(well);
        use HealthStatus::{Degraded, Starting, Stopping, Unhealthy};
        for health in [Degraded, Unhealthy, Starting, Stopping] {
            let _unwell = Fake::start(&socket, "boot-1", health, 0);
            assert_eq!(code(false).await, DEGRADED, "{health:?}");
        }
    }
}
