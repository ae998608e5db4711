//! Completion of names that only the daemon knows: events, plugins, models,
//! work, checkpoints.
//!
//! A shell waits while this runs, so it gives up after a fraction of a second,
//! and says nothing at all where the daemon is down.

use std::{collections::BTreeSet, ffi::OsStr, future::Future, time::Duration};

use clap_complete::CompletionCandidate;
use ksi_client::{CallOptions, Client, Options};
use ksi_protocol::{
    checkpoint::Checkpoints,
    system::{Discovery, PluginList},
    work::{ListWork, WorkPage},
};
use serde_json::json;

use crate::{
    invocation::{encoded, places, typed},
    llama::Models,
};

/// Longest time for which the shell may wait.
const TIME_MAX: Duration = Duration::from_millis(400);

/// Names of events that can be asked or heard.
pub(crate) fn events(current: &OsStr) -> Vec<CompletionCandidate> {
    candidates(current, discovered())
}

/// Patterns: each namespace with a star, then each event.
pub(crate) fn patterns(current: &OsStr) -> Vec<CompletionCandidate> {
    let events = discovered();
    let spaces: BTreeSet<_> =
        events.iter().filter_map(|(name, _)| Some(format!("{}:*", name.split_once(':')?.0))).collect();
    let spaces = spaces.into_iter().map(|space| (space, String::new()));
    candidates(current, spaces.chain(events).collect())
}

/// Names of plugins.
pub(crate) fn plugins(current: &OsStr) -> Vec<CompletionCandidate> {
    let names = asked(|client| async move {
        let reply = client.request_raw("plugin:list", encoded(&json!({})).ok()?, call()).await.ok()?;
        let list: PluginList = typed("plugin:list", &reply).ok()?;
        Some(list.plugins.into_iter().map(|plugin| (plugin.name, plugin.about)).collect())
    });
    candidates(current, names)
}

/// Names of models as `ask` takes them.
pub(crate) fn models(current: &OsStr) -> Vec<CompletionCandidate> {
    let names = model_names().into_iter().map(|(name, about)| (format!("llama/{name}"), about));
    candidates(current, names.collect())
}

/// Ids of durable work, the newest first.
pub(crate) fn work(current: &OsStr) -> Vec<CompletionCandidate> {
    let names = asked(|client| async move {
        let reply =
            client.request_raw("work:list", encoded(&ListWork::default()).ok()?, call()).await.ok()?;
        let page: WorkPage = typed("work:list", &reply).ok()?;
        let newest = page.work.into_iter().rev();
        Some(newest.map(|work| (work.request_id, format!("{} {}", work.event, work.state))).collect())
    });
    candidates(current, names)
}

/// Ids of checkpoints.
pub(crate) fn checkpoints(current: &OsStr) -> Vec<CompletionCandidate> {
    let names = asked(|client| async move {
        let reply = client.request_raw("checkpoint:list", encoded(&json!({})).ok()?, call()).await.ok()?;
        let list: Checkpoints = typed("checkpoint:list", &reply).ok()?;
        let known = list.checkpoints.into_iter();
        Some(known.map(|checkpoint| (checkpoint.id, checkpoint.label.unwrap_or_default())).collect())
    });
    candidates(current, names)
}

/// Names of models without their provider.
pub(crate) fn local_models(current: &OsStr) -> Vec<CompletionCandidate> {
    candidates(current, model_names())
}

type Names = Vec<(String, String)>;

fn discovered() -> Names {
    asked(|client| async move {
        let reply = client.request_raw("system:discover", encoded(&json!({})).ok()?, call()).await.ok()?;
        let discovery: Discovery = typed("system:discover", &reply).ok()?;
        Some(discovery.events.into_iter().map(|info| (info.event, info.about)).collect())
    })
}

fn model_names() -> Names {
    asked(|client| async move {
        let reply = client.request_raw("llama:models", encoded(&json!({})).ok()?, call()).await.ok()?;
        let list: Models = typed("llama:models", &reply).ok()?;
        let about = |toy: bool| if toy { "toy".to_owned() } else { String::new() };
        Some(list.models.into_iter().map(|model| (model.name, about(model.toy))).collect())
    })
}

fn call() -> CallOptions {
    CallOptions::timeout(TIME_MAX)
}

/// Asks the daemon; nothing where it is down or slow.
fn asked<F: Future<Output = Option<Names>>>(question: impl FnOnce(Client) -> F) -> Names {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    let answer = runtime.block_on(async {
        tokio::time::timeout(TIME_MAX, async {
            // The environment alone: what is typed has not been parsed yet.
            let client = Client::connect(Options::new(places(None).socket)).await.ok()?;
            question(client).await
        })
        .await
    });
    answer.ok().flatten().unwrap_or_default()
}

fn candidates(current: &OsStr, names: Names) -> Vec<CompletionCandidate> {
    let current = current.to_string_lossy();
    let fitting = names.into_iter().filter(|(name, _)| name.starts_with(&*current));
    fitting
        .map(|(name, about)| {
            let about = about.lines().next().unwrap_or_default().to_owned();
            CompletionCandidate::new(name).help((!about.is_empty()).then(|| about.into()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_begin_as_typed_are_offered() {
        let names = vec![("echo:say".into(), "Say.".into()), ("agent:list".into(), String::new())];
        let offered = candidates(OsStr::new("ec"), names);
        assert_eq!(offered.len(), 1);
        assert_eq!(offered[0].get_value(), "echo:say");
        assert!(offered[0].get_help().is_some());
    }
}
