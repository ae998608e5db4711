//! What is said in the place of one that could not be handed something.

use ksi_kernel::Verdict;
use ksi_protocol::{Code, Refusal};

/// What is said in a plugin's place, or the daemon's own, since it could not be
/// handed the matter.
#[derive(Debug)]
pub enum Instead {
    /// How a request ends.
    Refusal(Refusal),
    /// A word on what waits for one.
    Verdict(Verdict),
}

/// What becomes of a request for which its owner has no room.
#[must_use]
pub fn busy() -> Refusal {
    Refusal::new(Code::Busy, "the plugin does not keep up with what it is asked").retry_after_ms(200)
}
