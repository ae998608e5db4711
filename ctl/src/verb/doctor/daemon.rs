//! What only the running daemon knows: how it does, its plugins, the journal,
//! the models.

use ksi_protocol::system::{Health, HealthStatus, PluginList, PluginState, PluginStatus};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::json;

use super::{Check, fail, ok, warn};
use crate::{
    error::Failure,
    exit::Exit,
    invocation::Invocation,
    llama::{ModelInfo, Models},
};

/// What only the running daemon knows.
pub(super) async fn checks(at: &Invocation) -> Vec<Check> {
    let client = match at.connect().await {
        Ok(client) => client,
        Err(failure) if failure.exit == Exit::NotRunning => {
            return vec![warn("daemon", "not running", NOBODY, "ksi up")];
        }
        Err(failure) => return vec![fail("daemon", failure.message, NOBODY, failure.hint)],
    };
    let all = json!({});
    // What does not answer, or not so that it can be read, fails.
    let silent = |name, fix: &'static str| move |failure: Failure| fail(name, failure.message, SILENT, fix);
    vec![
        at.ask(&client, "system:health", &all)
            .await
            .map_or_else(silent("daemon", "ksi restart"), |said| health_check(&said)),
        at.ask(&client, "plugin:list", &all)
            .await
            .map_or_else(silent("plugins", "ksi logs"), |said| plugins(&said)),
        at.ask(&client, "checkpoint:status", &all)
            .await
            .map_or_else(silent("journal", "ksi plugin inspect checkpoint"), |said| journal(&said)),
        at.ask(&client, "llama:models", &all)
            .await
            .map_or_else(silent("models", "ksi plugin inspect llama"), |said| models(&said)),
    ]
}

/// Why it matters that there is no daemon to ask.
const NOBODY: &str = "nothing can be asked";

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

/// `checkpoint:status`, as far as it is looked at.
#[derive(Debug, Deserialize)]
struct Journal {
    accepting: bool,
    /// Left out where it accepts.
    reason: Option<String>,
    last_seq: u64,
    /// Left out where the store is as it was.
    rebuilt: Option<IgnoredAny>,
    notes: Vec<String>,
    troubles: Vec<String>,
}

/// Whether durable work is accepted.
fn journal(journal: &Journal) -> Check {
    const NAME: &str = "journal";
    let Journal { accepting, reason, last_seq, rebuilt, notes, troubles } = journal;
    if *accepting {
        let takes = format!("takes durable work, {last_seq} positions so far");
        if !troubles.is_empty() {
            let lost = "something that was kept may be lost";
            return warn(NAME, format!("{takes}; {}", troubles.join("; ")), lost, "ksi checkpoint verify");
        }
        if rebuilt.is_some() {
            let text = format!("{takes}; {}", notes.join("; "));
            let old = "the old store was damaged; nothing is lost unless a line here says so";
            return warn(NAME, text, old, "ksi checkpoint verify; remove the old store");
        }
        return ok(NAME, takes);
    }
    fail(
        NAME,
        reason.as_deref().unwrap_or("it takes nothing"),
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

/// `notes` are files that are not among the models, each with its reason.
fn models(Models { models, notes }: &Models) -> Check {
    const ADD: &str = "ksi model add PATH.gguf";
    let broken = |model: &ModelInfo| Some(format!("{}: {}", model.name, model.error.as_ref()?));
    let broken: Vec<_> = models.iter().filter_map(broken).collect();
    let real = models.iter().filter(|model| !model.toy).count();
    match (models.len(), broken.is_empty(), real) {
        (0, ..) => fail("models", "none", "nothing can be generated", ADD),
        (_, false, _) => {
            let fix = "remove or replace them: ksi model rm NAME";
            warn("models", broken.join("; "), "they cannot be loaded", fix)
        }
        (n, true, _) if !notes.is_empty() => {
            let fix = "the models directory is `models_dir` of plugins.llama.config";
            warn("models", format!("{n}; {}", notes.join("; ")), "what is left out cannot be used", fix)
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
    use serde_json::Value;

    use super::{super::Outcome, *};
    use crate::{invocation::shaped, llama};

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
        let looked = |status: Value| journal(&shaped("checkpoint:status", &status).unwrap());
        let takes = json!({"accepting": true, "last_seq": 7, "troubles": [], "notes": ["a torn tail"]});
        assert_eq!(looked(takes).outcome, Outcome::Ok);
        let damaged = json!({"accepting": true, "last_seq": 7, "troubles": ["move it away"], "notes": []});
        let check = looked(damaged);
        assert!(check.outcome == Outcome::Warn && check.text.contains("move it away"), "{check:?}");
        let rebuilt = json!({"accepting": true, "last_seq": 7, "rebuilt": {},
                             "troubles": [], "notes": ["made anew"]});
        let check = looked(rebuilt);
        assert!(check.outcome == Outcome::Warn && check.text.contains("made anew"), "{check:?}");
        let full = json!({"accepting": false, "reason": "the disk is full", "last_seq": 7,
                          "troubles": [], "notes": []});
        assert_eq!(
            (looked(full.clone()).outcome, looked(full).text),
            (Outcome::Fail, "the disk is full".into())
        );
    }

    #[test]
    fn models_that_are_broken_or_only_toys_are_warnings_and_none_a_failure() {
        let checked = |list: Value| models(&shaped("llama:models", &list).unwrap());
        let one = |more: Value| checked(json!({"models": [llama::model("a", more)]}));
        assert_eq!(checked(json!({"models": []})).outcome, Outcome::Fail);
        assert_eq!(one(json!({"toy": true})).outcome, Outcome::Warn);
        assert_eq!(one(json!({"error": "cut short"})).text, "a: cut short");
        assert_eq!(one(json!({})).outcome, Outcome::Ok);
        let more = json!({"models": [llama::model("a", json!({}))], "notes": ["x is left out"]});
        let check = checked(more);
        assert!(check.outcome == Outcome::Warn && check.text.contains("x is left out"), "{check:?}");
    }
}
