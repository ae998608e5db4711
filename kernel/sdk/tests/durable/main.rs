//! What outlives a handler, run by the fake host: state, the way to be ready,
//! work that is kept, and streams whose asker counts.

mod credit;
mod keeping;
mod opening;
mod state;

use ksi_sdk::prelude::*;

/// Nothing.
#[derive(Deserialize, JsonSchema)]
struct Nothing {}
