//! Every "no" of the kernel, in one place: its words, its code, who is to
//! blame.
//!
//! Texts are for a person, codes and `details.blame` for a program.

use std::time::Duration;

use ksi_identity::{Caller, Decision, Permission, Principal};
use ksi_protocol::{Code, EventName, Pattern, Refusal, frame::Id};
use serde_json::json;

use crate::{envelope::Token, port::Role};

/// Milliseconds after which it makes sense to try a busy peer again: long
/// enough not to spin, short beside any request worth limiting.
const BUSY_RETRY_MS: u64 = 50;

/// Milliseconds after which it makes sense to look again for a plugin that is
/// being started.
const ABSENT_RETRY_MS: u64 = 200;

/// Who made a delivery fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// Whoever sent it.
    Sender,
    /// Whoever it was for, or an interceptor on the way.
    Receiver,
    /// The daemon itself.
    Kernel,
}

impl Blame {
    /// As it is written in `details.blame`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sender => "sender",
            Self::Receiver => "receiver",
            Self::Kernel => "kernel",
        }
    }
}

/// A peer broke the contract. What it said had no effect; a session is to be
/// closed and a plugin to be restarted for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It answers something that nobody ever asked.
    #[error("answers {0}, which nobody ever asked")]
    Unknown(Token),
    /// It answers what somebody else was asked.
    #[error("answers {0}, which somebody else was asked")]
    NotTheirs(Token),
    /// It gives a verdict on a request, or answers a question for a verdict.
    #[error("answers {0} with an answer of the wrong kind")]
    WrongKind(Token),
}

fn no(blame: Blame, code: Code, message: String) -> Refusal {
    Refusal::new(code, message).details(json!({ "blame": blame.as_str() }))
}

pub(crate) fn unknown_event(event: &EventName, nearest: &[&str]) -> Refusal {
    let hint = match nearest {
        [] => "`ksi discover` lists all events".to_owned(),
        names => format!("did you mean `{}`? `ksi discover` lists all events", names.join("`, `")),
    };
    no(Blame::Sender, Code::UnknownEvent, format!("no plugin knows the event `{event}`")).hint(hint)
}

pub(crate) fn no_owner(event: &EventName) -> Refusal {
    no(Blame::Receiver, Code::NoOwner, format!("nobody answers `{event}` now"))
        .hint("`ksi plugin list` shows what runs")
}

pub(crate) fn owned(event: &EventName, owner: &str) -> Refusal {
    no(Blame::Sender, Code::Conflict, format!("`{event}` is answered by `{owner}` already"))
}

pub(crate) fn kept(keeper: &str) -> Refusal {
    no(Blame::Sender, Code::Conflict, format!("work is kept by `{keeper}` already"))
}

pub(crate) fn no_keeper(event: &EventName) -> Refusal {
    let message = format!("`{event}` is durable, and nobody is there to keep it");
    no(Blame::Receiver, Code::Unavailable, message)
        .retry_after_ms(ABSENT_RETRY_MS)
        .hint("`ksi plugin list` shows how the plugin that keeps work fares")
}

/// What a plugin takes to tell of tenants that have nothing to do with it.
pub(crate) const EVERY_TENANT: &str = "every_tenant";

pub(crate) fn denied(role: Role, decision: &Decision<'_>) -> Refusal {
    let Decision { origin, caller, event, right, .. } = *decision;
    if let Some(manager) = event.manager().filter(|_| right == "may_call") {
        let message = format!("`{origin}` may not ask `{event}`: an instance answers its manager alone");
        return no(Blame::Sender, Code::Denied, message)
            .hint(format!("`ksi discover {manager}` lists what the plugin {manager} answers"));
    }
    if role == Role::Plugin && matches!(right, "may_call" | "emits") {
        let message = format!("`{origin}` may not send `{event}`: no `{right}` covers it");
        let hint = format!(
            "its descriptor must ask for `{event}`, and `{right}` of `{origin}` in the manifest grant it"
        );
        return no(Blame::Sender, Code::Denied, message).hint(hint);
    }
    if right == EVERY_TENANT {
        let message =
            format!("`{origin}` may not tell `{event}` of a tenant that has asked and told it nothing");
        let hint = format!("`{right}` of `{origin}` in the manifest lets it tell of any");
        return no(Blame::Sender, Code::Denied, message).hint(hint);
    }
    let verb = if decision.is_emission { "emit" } else { "ask" };
    lacks(caller, verb, event, right)
}

pub(crate) fn lacks(caller: &Caller, verb: &str, event: &EventName, permission: &str) -> Refusal {
    let name = &caller.principal.name;
    let message = format!("`{name}` may not {verb} `{event}`: it does not hold `{permission}`");
    let hint = match permission {
        name if name == Permission::PLUGINS.1 => "only plugins ask it".to_owned(),
        _ => format!(
            "a role under [identity] in ksi.toml, or a token, can give `{permission}`; one that was revoked or has expired gives nothing"
        ),
    };
    let details = json!({ "blame": Blame::Sender.as_str(), "permission": permission, "principal": name });
    Refusal::new(Code::Denied, message).hint(hint).details(details)
}

pub(crate) fn revoked(caller: &Caller, event: &EventName, now_ms: u64) -> Refusal {
    let Principal { name, expires_ms, .. } = &*caller.principal;
    let (why, hint) = match now_ms < *expires_ms {
        true => ("", "what allowed it was revoked"),
        false => (": it has expired", "`ksi token create` makes another"),
    };
    no(Blame::Sender, Code::Denied, format!("`{name}` may not ask `{event}` any more{why}")).hint(hint)
}

pub(crate) fn shutting_down() -> Refusal {
    no(Blame::Kernel, Code::ShuttingDown, "the daemon is stopping and takes no new requests".into())
        .hint("try again when it is back: `ksi start`")
}

/// Steps of a causal chain that a refusal shows: enough to see a circle.
const STEPS_SHOWN: usize = 12;

/// The end of a causal chain, as a person reads it.
fn shown(chain: &str) -> String {
    let steps: Vec<&str> = chain.split(' ').collect();
    let hidden = steps.len().saturating_sub(STEPS_SHOWN);
    let shown = steps[hidden..].join(" > ");
    if hidden == 0 { shown } else { format!("({hidden} steps) > {shown}") }
}

pub(crate) fn circular(step: &str, chain: &str, limit: usize) -> Refusal {
    let message = format!(
        "`{step}` comes back more than {limit} times in one causal chain, and that is the limit: {}",
        shown(chain)
    );
    no(Blame::Sender, Code::TooLarge, message)
        .hint("plugins answer each other in a circle; `daemon.chain_repeats_max` bounds it")
}

pub(crate) fn too_deep(step: &str, chain: &str, limit: usize) -> Refusal {
    let message = format!(
        "`{step}` goes beyond {limit} steps of one causal chain, and that is the limit: {}",
        shown(chain)
    );
    no(Blame::Sender, Code::TooLarge, message)
        .hint("one thing leads to another without end; `daemon.chain_steps_max` bounds it")
}

pub(crate) fn wrong_length(field: &str, bytes: usize, least: usize, most: usize) -> Refusal {
    let message = format!("`{field}` has {bytes} bytes, and may have {least} to {most}");
    no(Blame::Sender, Code::InvalidFrame, message).hint("what is long belongs into the payload")
}

pub(crate) fn never_expires(event: &EventName) -> Refusal {
    let message = format!("`{event}` is not durable: what is not kept has no time after which it expires");
    no(Blame::Sender, Code::InvalidFrame, message)
        .hint("`timeout_ms` says how long you wait for its answer; leave `expires_in_ms` out")
}

pub(crate) fn detached() -> Refusal {
    no(Blame::Sender, Code::Cancelled, "the sender is no longer attached".into())
}

pub(crate) fn asker_busy(limit: u32) -> Refusal {
    no(Blame::Sender, Code::Busy, format!("{limit} requests are in flight, and that is the limit"))
        .retry_after_ms(BUSY_RETRY_MS)
        .hint("wait for answers before asking more")
}

pub(crate) fn share_used(origin: &str, payer: &str, own: u32) -> Refusal {
    let message =
        format!("`{payer}` has {own} requests that `{origin}` is to answer; the rest is for others");
    no(Blame::Sender, Code::Busy, message)
        .retry_after_ms(BUSY_RETRY_MS)
        .hint("wait for answers before asking more")
}

pub(crate) fn too_fast(origin: &str, rate: u32, wait_ms: u64) -> Refusal {
    let message = format!("`{origin}` may ask and tell {rate} times a second, and that is more");
    no(Blame::Sender, Code::Busy, message).retry_after_ms(wait_ms)
}

pub(crate) fn holder_busy(origin: &str, limit: u32) -> Refusal {
    no(
        Blame::Receiver,
        Code::Busy,
        format!("`{origin}` has {limit} requests to answer, and that is its limit"),
    )
    .retry_after_ms(BUSY_RETRY_MS)
}

pub(crate) fn duplicate_request(id: Id) -> Refusal {
    no(Blame::Sender, Code::Conflict, format!("a request with the id {id} is in flight already"))
        .hint("use another id for every request")
}

pub(crate) fn duplicate_subscription(id: Id) -> Refusal {
    no(Blame::Sender, Code::Conflict, format!("a subscription with the id {id} exists already"))
}

pub(crate) fn too_many_subscriptions(limit: u32) -> Refusal {
    no(Blame::Sender, Code::Busy, format!("{limit} subscriptions exist, and that is the limit"))
        .hint("unsubscribe first, or use a pattern that covers more")
}

pub(crate) fn no_subscription(id: Id) -> Refusal {
    no(Blame::Sender, Code::NotFound, format!("no subscription has the id {id}"))
}

pub(crate) fn no_durable(pattern: &Pattern) -> Refusal {
    no(Blame::Kernel, Code::Unavailable, format!("`{pattern}` cannot be subscribed to as `durable`"))
        .hint("whoever keeps work is asked to follow it")
}

pub(crate) fn timeout(event: &EventName, after: Duration) -> Refusal {
    let ms = after.as_millis();
    no(Blame::Receiver, Code::Timeout, format!("`{event}` was not answered within {ms} ms"))
        .hint("ask with a longer timeout if it needs one")
}

pub(crate) fn cancelled() -> Refusal {
    no(Blame::Sender, Code::Cancelled, "the request was cancelled".into())
}

pub(crate) fn parent_ended(parent: Token) -> Refusal {
    no(Blame::Sender, Code::Cancelled, format!("the request {parent}, for which this was asked, has ended"))
}

pub(crate) fn not_the_parent(parent: Token) -> Refusal {
    no(Blame::Sender, Code::Denied, format!("the request {parent} is not the sender's to ask for"))
}

pub(crate) fn interceptor_gone(origin: &str, event: &EventName) -> Refusal {
    let message = format!("`{origin}` must be heard before `{event}` passes, and it is not there");
    no(Blame::Receiver, Code::Unavailable, message).hint("`ksi plugin list` shows what runs")
}

pub(crate) fn interceptor_silent(origin: &str, event: &EventName) -> Refusal {
    let message = format!("`{origin}` must be heard before `{event}` passes, and it said nothing in time");
    no(Blame::Receiver, Code::Unavailable, message)
}
