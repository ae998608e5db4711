//! What only the running daemon knows: how it does, its plugins, the journal,
//! the models.

use ksi_protocol::system::{Health, HealthStatus, PluginList, PluginState, PluginStatus};
use serde_json::{Value, json};

use super::{Check, fail, ok, warn};
use crate::{exit::Exit, invocation::Invocation};

/// What only the running daemon knows.
pub(super) async fn checks(at: &Invocation) -> Vec<Check> {
    let mut checks = Vec::new();
    let client = match at.connect().await {
        Ok(client) => client,
        Err(failure) if failure.exit == Exit::NotRunning => {
            checks.push(warn("daemon", "not running", "nothing can be asked", "ksi up"));
            return checks;
        }
        Err(failure) => {
            checks.push(fail("daemon", failure.message, "nothing can be asked", failure.hint));
            return checks;
        }
    };
    match at.ask::<Health>(&client, "system:health", &json!({})).await {
        Ok(health) => checks.push(health_check(&health)),
        Err(failure) => checks.push(fail("daemon", failure.message, SILENT, "ksi restart")),
    }
    match at.ask::<PluginList>(&client, "plugin:list", &json!({})).await {
        Ok(list) => checks.push(plugins(&list)),
        Err(failure) => checks.push(fail("plugins", failure.message, SILENT, "ksi logs")),
    }
    match at.value(&client, "checkpoint:status", &json!({})).await {
        Ok(status) => checks.push(journal(&status)),
        Err(failure) => {
            checks.push(fail("journal", failure.message, SILENT, "ksi plugin inspect checkpoint"));
        }
    }
    match at.value(&client, "llama:models", &json!({})).await {
        Ok(reply) => checks.push(models(&reply)),
        Err(failure) => checks.push(fail("models", failure.message, SILENT, "ksi plugin inspect llama")),
    }
    checks
}

/// Why it matters that something does not answer.
const SILENT: &str = "what it is there for cannot be had";

fn health_check(health: &Health) -> Check {
    let text = format!("ksid {} answers, pid {}", health.version, health.pid);
    let ours = env!("CARGO_PKG_VERSION");
    match health.status {
        HealthStatus::Degraded | HealthStatus::Unhealthy => fail(
            "daemon",
            format!("{text}; {}", health.reasons.join("; ")),
            "some of what it is there for cannot be had",
            "ksi plugin list; ksi logs",
        ),
        _ if health.version != ours => warn(
            "daemon",
            format!("{text}, and ksi is {ours}"),
            "the two may not understand each other",
            "install both of one version, then: ksi restart",
        ),
        _ => ok("daemon", text),
    }
}

/// Whether durable work is accepted.
fn journal(status: &Value) -> Check {
    const NAME: &str = "journal";
    if status["accepting"] == true {
        return ok(NAME, format!("takes durable work, {} positions so far", status["last_seq"]));
    }
    let reason = status["reason"].as_str().unwrap_or("it takes nothing");
    fail(
        NAME,
        reason.to_owned(),
        "durable work is refused",
        "free some space and look at the disk; it goes on by itself then: ksi checkpoint list",
    )
}

fn plugins(list: &PluginList) -> Check {
    // One that was stopped without a failure is one that nobody wants to run.
    let wanted = list
        .plugins
        .iter()
        .filter(|plugin| plugin.state != PluginState::Stopped || plugin.last_error.is_some());
    let total = wanted.clone().count();
    let mut troubled = Vec::new();
    for plugin in wanted.filter(|plugin| plugin.state != PluginState::Ready) {
        let why = plugin.quarantined.as_ref().or(plugin.last_error.as_ref());
        let why = why.map_or("no reason given", String::as_str);
        troubled.push(format!("{} {}: {why}", plugin.name, plugin.state.as_str()));
    }
    if troubled.is_empty() {
        return ok("plugins", format!("{total} of {total} ready"));
    }
    let confined =
        |plugin: &&PluginStatus| matches!(plugin.state, PluginState::Held | PluginState::Quarantined);
    let confined = list.plugins.iter().find(confined);
    let fix =
        confined.map_or("ksi plugin list".into(), |plugin| format!("ksi plugin release {}", plugin.name));
    fail("plugins", troubled.join("; "), "their events are refused", fix)
}

fn models(reply: &Value) -> Check {
    const ADD: &str = "ksi model add PATH.gguf";
    let models = reply["models"].as_array().map(Vec::as_slice).unwrap_or_default();
    let broken: Vec<_> = models
        .iter()
        .filter_map(|model| Some(format!("{}: {}", model["name"].as_str()?, model.get("error")?.as_str()?)))
        .collect();
    let real = models.iter().filter(|model| model["toy"] != true).count();
    match (models.len(), broken.is_empty(), real) {
        (0, ..) => fail("models", "none", "nothing can be generated", ADD),
        (_, false, _) => {
            let fix = "remove or replace them: ksi model rm NAME";
            warn("models", broken.join("; "), "they cannot be loaded", fix)
        }
        (n, true, 0) => {
            let fix = format!("add a real one: {ADD}");
            warn("models", format!("{n}, only toys"), "they know next to nothing", fix)
        }
        (n, true, _) => ok("models", format!("{n}")),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Outcome, *};

    #[test]
    fn models_that_are_broken_or_only_toys_are_warnings_and_none_a_failure() {
        let outcome = |list: Value| models(&json!({"models": list}));
        assert_eq!(outcome(json!([])).outcome, Outcome::Fail);
        assert_eq!(outcome(json!([{"name": "t", "toy": true}])).outcome, Outcome::Warn);
        assert_eq!(outcome(json!([{"name": "a", "error": "cut short"}])).text, "a: cut short");
        assert_eq!(outcome(json!([{"name": "a", "toy": false}])).outcome, Outcome::Ok);
    }
}
