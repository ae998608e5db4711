//! The kernel of KSI: one envelope in, its deliveries out.
//!
//! A pure, synchronous routing machine. It knows which endpoints exist, who
//! owns which event, who listens, who has a word before and after, and which
//! requests wait for an answer. It does no I/O, never waits, never reads a
//! clock (time is an argument) and never looks into a payload; what it decides
//! lands in [`Effects`], and whoever called carries that out.
//!
//! Every method takes `&self` and may be called from any thread at any time.
//! The steady state takes no lock that all share: events are looked up in
//! tables that are copied on change, requests and subscriptions lie in sharded
//! maps, quotas are counted by the port that is charged.
//!
//! # Invariants
//!
//! - A request has one receiver, the owner of its event, and its asker gets
//!   exactly one last answer: whoever removes the request from the table of
//!   pending ones is the only one who may end it.
//! - An emitted envelope is never delivered to its own origin. (A request may
//!   be: it names its event, and an owner that asks itself means it.)
//! - All that waits is charged to a port and limited by its [`Quota`].
//! - Nobody asks, tells or hears anything that neither the permissions of its
//!   principal nor, of a plugin, the manifest and its own descriptor cover; and
//!   no client hears what belongs to a tenant that is not its own.
//! - Envelopes that one thread sends for one origin reach a receiver in the
//!   order in which they were sent, provided that the effects of each call are
//!   carried out before the next. An envelope that an interceptor has the word
//!   over is not waited for: later ones may overtake it, but those that pass
//!   the same interceptors keep the order in which these decide.
//! - A `Cancel` or `Credit` may overtake its `Request` when two threads race,
//!   so a receiver takes one for an unknown token as nothing. The same goes for
//!   a chunk that arrives after the last answer; its token tells them apart.
//! - Time never goes backwards: `now_ms` counts milliseconds from 1970, and
//!   its caller takes care that it is monotone.
//!
//! # Failure
//!
//! Nothing here fails. What cannot be done is a `Refusal` for whoever asked,
//! with a [`Blame`] in `details.blame` where the kernel knows it; a peer that
//! breaks the contract is a [`Fault`] for its caller to act upon.

#![forbid(unsafe_code)]

mod chain;
mod effects;
mod endings;
mod envelope;
mod figures;
mod interception;
mod interceptors;
mod kernel;
mod pending;
mod port;
mod rate;
mod refusals;
mod registry;
mod routing;
mod subscriptions;

pub use chain::Chains;
pub use effects::{Delivery, Effects, Fact};
pub use envelope::{Answer, Ask, Emission, Envelope, Takes, Token, Verdict};
pub use figures::Figures;
pub use interception::EMISSION_LIMIT;
pub use kernel::Kernel;
pub use port::{EndpointId, Port, Quota, Role};
pub use rate::Rate;
pub use refusals::{Blame, Fault};
pub use registry::Declared;
pub use subscriptions::Listener;

#[cfg(test)]
mod tests;
