//! The contract of providers: what every plugin that makes text is asked, and
//! what it answers.
//!
//! A provider is a plugin whose namespace `NS` is its name in `NS/model`. It
//! owns two events:
//!
//! | event | asked with | chunks | answer |
//! |---|---|---|---|
//! | `NS:generate` (stream) | [`Generate`] | [`Delta`] | [`Generated`] |
//! | `NS:models` | [`ListModels`] | | [`Models`] |
//!
//! The same types are read by whoever asks, so nothing has to be translated. A
//! provider may answer with fields of its own besides; who reads does not mind.
//! It retries nothing and stands in for nobody: what fails is a refusal whose
//! [`Failure`] says of what kind, and whoever asked decides.
//!
//! Between the two stands the plugin `completion`; what that answers is in
//! [`completion`].
//!
//! # Invariants
//!
//! - Types and rules only: no I/O, no clock, no state.
//! - A setting that a provider does not have is either refused or named in
//!   [`Generated::ignored`]; never dropped in silence.
//! - The deltas of an answer, joined, are its text and its tool calls.

pub mod request;
pub mod answer;
pub mod model;
pub mod failure;
pub mod completion;

pub use answer::{
    Alternative, Delta, Generated, StopReason, Timings, TokenLogprob, TokenLogprobs, ToolCallDelta, Usage,
};
pub use failure::Failure;
pub use model::{Capability, ListModels, Model, Models};
pub use request::{Generate, Message, ResponseFormat, Role, Schema, Tool, ToolCall, ToolChoice};
