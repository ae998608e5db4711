//! Discovery: what plugins say of their events, merged with the policy of the
//! manifest.

use std::sync::Arc;

use ksi_protocol::{
    Code, Descriptor, EventName, Refusal,
    limits::NAME_BYTES_MAX,
    system::{Discover, Discovery, EventInfo, EventKind, PluginState},
};

use super::specs;
use crate::{config::Config, plugin::fleet::Fleet};

/// An event that somebody declares. What it says of itself, schemas above all, is
/// large, so it stays where it is until it is told.
struct Declared {
    event: String,
    owner: String,
    available: bool,
    by: By,
}

/// Where an event is specified.
enum By {
    Daemon(&'static specs::Spec),
    Request(Arc<Descriptor>, usize),
    Fact(Arc<Descriptor>, usize),
}

/// Everything, by name.
fn all(fleet: &Fleet) -> Vec<Declared> {
    let own = specs::ALL.iter().map(|spec| Declared {
        event: spec.event.into(),
        owner: "daemon".into(),
        available: true,
        by: By::Daemon(spec),
    });
    let mut events: Vec<Declared> = own.collect();
    for (status, descriptor, alias) in fleet.descriptors() {
        let Some(descriptor) = descriptor else { continue };
        let declared = |event: &EventName, by: By| Declared {
            event: match (&alias, event.as_str().split_once(':')) {
                (Some(alias), Some((inner, action))) if inner == descriptor.name => {
                    format!("{alias}:{action}")
                }
                _ => event.to_string(),
            },
            owner: status.name.clone(),
            available: status.state == PluginState::Ready,
            by,
        };
        let requests = descriptor.requests.iter().enumerate();
        events.extend(
            requests.map(|(at, spec)| declared(&spec.event, By::Request(Arc::clone(&descriptor), at))),
        );
        let facts = descriptor.emits.iter().enumerate();
        events.extend(facts.map(|(at, spec)| declared(&spec.event, By::Fact(Arc::clone(&descriptor), at))));
    }
    events.sort_by(|a, b| a.event.cmp(&b.event));
    events
}

impl Declared {
    fn namespace(&self) -> &str {
        self.event.split(':').next().unwrap_or_default()
    }

    /// What is told of it, with its schemas where `detail` is wanted.
    fn info(self, config: &Config, detail: bool) -> EventInfo {
        let policy = config.policy(&self.event, &self.event);
        let (kind, about) = match &self.by {
            By::Daemon(spec) => (if spec.fact { EventKind::Fact } else { EventKind::Request }, spec.about),
            By::Request(of, at) => {
                let spec = &of.requests[*at];
                let kind = if spec.chunk.is_some() { EventKind::Stream } else { EventKind::Request };
                (kind, spec.about.as_str())
            }
            By::Fact(of, at) => (EventKind::Fact, of.emits[*at].about.as_str()),
        };
        let (request, reply, chunk) = match &self.by {
            _ if !detail => (None, None, None),
            By::Daemon(spec) => (Some(specs::schema(spec)), None, None),
            By::Request(of, at) => {
                let spec = &of.requests[*at];
                (Some(spec.request.clone()), Some(spec.reply.clone()), spec.chunk.clone())
            }
            By::Fact(of, at) => (Some(of.emits[*at].schema.clone()), None, None),
        };
        EventInfo {
            about: about.into(),
            kind,
            available: self.available,
            delivery: policy.map_or("live", |policy| policy.delivery.as_str()).into(),
            permission: policy.map(|policy| policy.permission.clone()).unwrap_or_default(),
            timeout_ms: policy
                .and_then(|policy| policy.timeout)
                .map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
            request,
            reply,
            chunk,
            owner: self.owner,
            event: self.event,
        }
    }
}

/// `system:discover`.
pub(super) fn discover(fleet: &Fleet, config: &Config, ask: &Discover) -> Result<Discovery, Refusal> {
    check(ask.namespace.as_deref().unwrap_or_default())?;
    let mut events = all(fleet);
    if let Some(namespace) = &ask.namespace {
        let namespaces: Vec<String> = events.iter().map(|event| event.namespace().to_owned()).collect();
        events.retain(|event| event.namespace() == namespace);
        if events.is_empty() {
            return Err(Refusal::not_found("namespace", namespace).hint(nearest(namespace, &namespaces)));
        }
    }
    Ok(Discovery { events: events.into_iter().map(|event| event.info(config, ask.detail)).collect() })
}

/// `system:describe`.
pub(super) fn describe(fleet: &Fleet, config: &Config, name: &str) -> Result<EventInfo, Refusal> {
    check(name)?;
    let mut events = all(fleet);
    if let Some(at) = events.iter().position(|event| event.event == name) {
        return Ok(events.swap_remove(at).info(config, true));
    }
    let names: Vec<String> = events.into_iter().map(|event| event.event).collect();
    Err(Refusal::new(Code::NotFound, format!("no event named `{name}`")).hint(nearest(name, &names)))
}

/// Refuses what is longer than any name: to look for those that are alike would take
/// time in its length, as often as somebody asks.
fn check(name: &str) -> Result<(), Refusal> {
    if name.len() <= NAME_BYTES_MAX {
        return Ok(());
    }
    let message = format!("a name of {} bytes; the longest have {NAME_BYTES_MAX}", name.len());
    Err(Refusal::new(Code::InvalidPayload, message).hint("`ksi discover` lists all"))
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
