//! Discovery: what plugins say of their events, merged with the policy of the
//! manifest.

use std::sync::Arc;

use ksi_protocol::{
    Code, Descriptor, EventName, Refusal,
    limits::NAME_BYTES_MAX,
    nearest,
    system::{Discover, Discovery, EventInfo, EventKind, PluginState},
};

use crate::{config::Config, own, plugin::fleet::Fleet};

/// Most names that a hint offers.
const NEAREST_MAX: usize = 3;

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
    Daemon(&'static own::Spec),
    Request(Arc<Descriptor>, usize),
    Fact(Arc<Descriptor>, usize),
}

/// Everything, by name.
fn all(fleet: &Fleet) -> Vec<Declared> {
    let own = own::REQUESTS.iter().chain(own::FACTS).map(|spec| Declared {
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
            By::Daemon(spec) => {
                let kind = if spec.reply.is_some() { EventKind::Request } else { EventKind::Fact };
                (kind, spec.about)
            }
            By::Request(of, at) => {
                let spec = &of.requests[*at];
                let kind = if spec.chunk.is_some() { EventKind::Stream } else { EventKind::Request };
                (kind, spec.about.as_str())
            }
            By::Fact(of, at) => (EventKind::Fact, of.emits[*at].about.as_str()),
        };
        let (request, reply, chunk) = match &self.by {
            _ if !detail => (None, None, None),
            By::Daemon(spec) => (Some((spec.payload)()), spec.reply.map(|reply| reply()), None),
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
        if !events.iter().any(|event| event.namespace() == namespace) {
            let hint = hint(namespace, events.iter().map(Declared::namespace));
            return Err(Refusal::not_found("namespace", namespace).hint(hint));
        }
        events.retain(|event| event.namespace() == namespace);
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
    let hint = hint(name, events.iter().map(|event| event.event.as_str()));
    Err(Refusal::new(Code::NotFound, format!("no event named `{name}`")).hint(hint))
}

/// Refuses what is longer than any name, which is not worth telling back.
fn check(name: &str) -> Result<(), Refusal> {
    if name.len() <= NAME_BYTES_MAX {
        return Ok(());
    }
    let message = format!("a name of {} bytes; the longest have {NAME_BYTES_MAX}", name.len());
    Err(Refusal::new(Code::InvalidPayload, message).hint("`ksi discover` lists all"))
}

/// The names that a user may have meant.
fn hint<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    match nearest::ranked(wanted, names, NEAREST_MAX).as_slice() {
        [] => "`ksi discover` lists all".to_owned(),
        near => format!("did you mean `{}`? `ksi discover` lists all", near.join("`, `")),
    }
}
