//! Parts of answers, sent once the host's queue has room for them.

use std::time::Duration;

use ksi_sdk::prelude::{Code, Ctx, Refusal};

/// When to try again after a queue was full and did not say.
const QUEUE_PAUSE_MS: u64 = 50;

/// Sends until it is taken, or refused for another reason than a full queue.
pub(crate) async fn patiently(ctx: &Ctx, send: impl Fn() -> Result<(), Refusal>) -> Result<(), Refusal> {
    loop {
        match send() {
            Err(refusal) if refusal.code == Code::Busy => {
                ctx.sleep(Duration::from_millis(refusal.retry_after_ms.unwrap_or(QUEUE_PAUSE_MS))).await;
            }
            sent => return sent,
        }
    }
}
