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
    let texts = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    if status["accepting"] == true {
        let takes = format!("takes durable work, {} positions so far", status["last_seq"]);
        let troubles = texts(&status["troubles"]);
        if !troubles.is_empty() {
            let lost = "something that was kept may be lost";
            return warn(NAME, format!("{takes}; {}", troubles.join("; ")), lost, "ksi checkpoint verify");
        }
        if status["rebuilt"].is_object() {
            let text = format!("{takes}; {}", texts(&status["notes"]).join("; "));
            let old = "the old store was damaged; nothing is lost unless a line here says so";
            return warn(NAME, text, old, "ksi checkpoint verify; remove the old store");
        }
        return ok(NAME, takes);
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
    // One that nobody wants to run may have failed before, and is off all the same.
    let counts = |plugin: &&PluginStatus| plugin.wanted || plugin.state != PluginState::Stopped;
    let wanted = list.plugins.iter().filter(counts);
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
    // Files that are not among them, each with its reason.
    let left_out = reply["notes"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let left_out: Vec<_> = left_out.collect();
    let real = models.iter().filter(|model| model["toy"] != true).count();
    match (models.len(), broken.is_empty(), real) {
        (0, ..) => fail("models", "none", "nothing can be generated", ADD),
        (_, false, _) => {
            let fix = "remove or replace them: ksi model rm NAME";
            warn("models", broken.join("; "), "they cannot be loaded", fix)
        }
        (n, true, _) if !left_out.is_empty() => {
            let fix = "the models directory is `models_dir` of plugins.llama.config";
            warn("models", format!("{n}; {}", left_out.join("; ")), "what is left out cannot be used", fix)
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

    /// What `plugin:list` says of one plugin.
    fn plugin(name: &str, state: &str, wanted: bool, last_error: Option<&str>) -> Value {
        json!({"name": name, "state": state, "wanted": wanted, "last_error": last_error,
               "version": "1", "placement": "child", "sandbox": "", "generation": 1, "restarts": 0,
               "in_flight": 0, "handled": 0, "library": "x"})
    }

    #[test]
    fn a_plugin_that_is_off_is_no_failure_whatever_it_said_before() {
        let checked = |list: &[Value]| {
            plugins(&serde_json::from_value(json!({"plugins": list})).expect("a list of plugins"))
        };
        let ready = plugin("a", "ready", true, None);
        let off = plugin("b", "stopped", false, Some("`api_key` is missing"));
        assert_eq!(checked(&[ready.clone(), off]), ok("plugins", "1 of 1 ready"));
        let missing = plugin("b", "stopped", true, Some("`api_key` is missing"));
        let check = checked(&[ready.clone(), missing]);
        assert!(check.outcome == Outcome::Fail && check.text.contains("api_key"), "{check:?}");
        let confined = plugin("b", "quarantined", false, None);
        assert_eq!(checked(&[ready, confined]).fix, "ksi plugin release b");
    }

    #[test]
    fn a_journal_that_was_damaged_is_a_warning_and_one_that_takes_nothing_a_failure() {
        let takes = json!({"accepting": true, "last_seq": 7, "troubles": [], "notes": ["a torn tail"]});
        assert_eq!(journal(&takes).outcome, Outcome::Ok);
        let damaged = json!({"accepting": true, "last_seq": 7, "troubles": ["move it away"]});
        let check = journal(&damaged);
        assert!(check.outcome == Outcome::Warn && check.text.contains("move it away"), "{check:?}");
        let rebuilt = json!({"accepting": true, "last_seq": 7, "rebuilt": {}, "notes": ["made anew"]});
        let check = journal(&rebuilt);
        assert!(check.outcome == Outcome::Warn && check.text.contains("made anew"), "{check:?}");
        let stopped = json!({"accepting": false, "reason": "the disk is full"});
        assert_eq!(journal(&stopped).outcome, Outcome::Fail);
    }

    #[test]
    fn models_that_are_broken_or_only_toys_are_warnings_and_none_a_failure() {
        let outcome = |list: Value| models(&json!({"models": list}));
        assert_eq!(outcome(json!([])).outcome, Outcome::Fail);
        assert_eq!(outcome(json!([{"name": "t", "toy": true}])).outcome, Outcome::Warn);
        assert_eq!(outcome(json!([{"name": "a", "error": "cut short"}])).text, "a: cut short");
        assert_eq!(outcome(json!([{"name": "a", "toy": false}])).outcome, Outcome::Ok);
        let more = json!({"models": [{"name": "a", "toy": false}], "notes": ["x is left out"]});
        let check = models(&more);
        assert!(check.outcome == Outcome::Warn && check.text.contains("x is left out"), "{check:?}");
    }
}
