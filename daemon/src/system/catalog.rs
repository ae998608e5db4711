//! Discovery: what plugins say of their events, merged with the policy of the
//! manifest.

use ksi_protocol::{
    Code, Refusal,
    system::{Discover, Discovery, EventInfo, EventKind, PluginState},
};

use super::specs;
use crate::{config::Config, plugin::fleet::Fleet};

/// Everything, by name.
fn all(fleet: &Fleet, config: &Config) -> Vec<EventInfo> {
    let mut events: Vec<EventInfo> = specs::ALL
        .iter()
        .map(|spec| EventInfo {
            event: spec.event.into(),
            owner: "daemon".into(),
            kind: if spec.fact { EventKind::Fact } else { EventKind::Request },
            about: spec.about.into(),
            available: true,
            delivery: String::new(),
            permission: String::new(),
            timeout_ms: None,
            request: Some(specs::schema(spec)),
            reply: None,
            chunk: None,
        })
        .collect();
    for (status, descriptor, alias) in fleet.descriptors() {
        let Some(descriptor) = descriptor else { continue };
        let outer = |event: &str| match (&alias, event.split_once(':')) {
            (Some(alias), Some((inner, action))) if inner == descriptor.name => format!("{alias}:{action}"),
            _ => event.to_owned(),
        };
        let available = status.state == PluginState::Ready;
        let requests = descriptor.requests.iter().map(|spec| EventInfo {
            event: outer(spec.event.as_str()),
            owner: status.name.clone(),
            kind: if spec.chunk.is_some() { EventKind::Stream } else { EventKind::Request },
            about: spec.about.clone(),
            available,
            delivery: String::new(),
            permission: String::new(),
            timeout_ms: None,
            request: Some(spec.request.clone()),
            reply: Some(spec.reply.clone()),
            chunk: spec.chunk.clone(),
        });
        let facts = descriptor.emits.iter().map(|spec| EventInfo {
            event: outer(spec.event.as_str()),
            owner: status.name.clone(),
            kind: EventKind::Fact,
            about: spec.about.clone(),
            available,
            delivery: String::new(),
            permission: String::new(),
            timeout_ms: None,
            request: Some(spec.schema.clone()),
            reply: None,
            chunk: None,
        });
        events.extend(requests.chain(facts));
    }
    for event in &mut events {
        let policy = config.policy(&event.event, &event.event);
        event.delivery = policy.map_or("live", |policy| policy.delivery.as_str()).into();
        event.permission = policy.map(|policy| policy.permission.clone()).unwrap_or_default();
        event.timeout_ms = policy
            .and_then(|policy| policy.timeout)
            .map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
    }
    events.sort_by(|a, b| a.event.cmp(&b.event));
    events
}

/// `system:discover`.
pub(super) fn discover(fleet: &Fleet, config: &Config, ask: &Discover) -> Result<Discovery, Refusal> {
    let mut events = all(fleet, config);
    if let Some(namespace) = &ask.namespace {
        let namespaces: Vec<String> =
            events.iter().filter_map(|info| info.event.split(':').next()).map(str::to_owned).collect();
        events.retain(|info| info.event.split(':').next() == Some(namespace));
        if events.is_empty() {
            return Err(Refusal::not_found("namespace", namespace).hint(nearest(namespace, &namespaces)));
        }
    }
    if !ask.detail {
        for event in &mut events {
            (event.request, event.reply, event.chunk) = (None, None, None);
        }
    }
    Ok(Discovery { events })
}

/// `system:describe`.
pub(super) fn describe(fleet: &Fleet, config: &Config, name: &str) -> Result<EventInfo, Refusal> {
    let events = all(fleet, config);
    if let Some(info) = events.iter().find(|info| info.event == name) {
        return Ok(info.clone());
    }
    let names: Vec<String> = events.into_iter().map(|info| info.event).collect();
    Err(Refusal::new(Code::NotFound, format!("no event named `{name}`")).hint(nearest(name, &names)))
}

/// The names that a user may have meant.
fn nearest(wanted: &str, names: &[String]) -> String {
    let mut ranked: Vec<(&String, f64)> =
        names.iter().map(|name| (name, strsim::jaro_winkler(wanted, name))).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranked.dedup_by_key(|(name, _)| *name);
    let near: Vec<&str> = ranked.iter().take(3).map(|(name, _)| name.as_str()).collect();
    format!("nearest: {}; `ksi discover` lists all", near.join(", "))
}
