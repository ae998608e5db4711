//! Waiting on somebody's behalf for what may take long: no longer than the asker has
//! itself, and not while the plugin is being stopped, which would be held up by it.

use std::{future::Future, pin::pin, time::Duration};

use futures_util::future::{Either, select};
use ksi_sdk::prelude::{Code, Ctx, Refusal};

/// Time that an answer is given to be with its asker before that one's deadline.
const MARGIN: Duration = Duration::from_millis(100);
/// After how long whoever was refused may ask again, milliseconds.
const RETRY_MS: u64 = 200;

/// How long to wait for somebody who wants to wait for so long, and who has so much
/// time left in all.
pub(crate) fn time(wanted: Duration, left: Option<Duration>) -> Duration {
    left.map_or(wanted, |left| wanted.min(left.saturating_sub(MARGIN)))
}

/// Waits until something is there, or the plugin is to finish.
///
/// # Errors
///
/// `unavailable`, to be asked again, where the plugin is being stopped.
pub(crate) async fn unless_stopped<T>(ctx: &Ctx, wait: impl Future<Output = T>) -> Result<T, Refusal> {
    match select(pin!(wait), pin!(ctx.draining())).await {
        Either::Left((there, _)) => Ok(there),
        Either::Right(_) => Err(Refusal::new(Code::Unavailable, "the completion plugin is being stopped")
            .hint("ask again when it is back; then it knows of durable requests (`completion:async`) alone")
            .retry_after_ms(RETRY_MS)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_waited_for_until_it_is_too_late_to_answer() {
        let ms = Duration::from_millis;
        for (wanted, left, waits) in [
            (ms(500), None, ms(500)),
            (ms(500), Some(ms(60_000)), ms(500)),
            (ms(60_000), Some(ms(500)), ms(400)),
            (ms(450), Some(ms(500)), ms(400)),
            (ms(500), Some(ms(50)), ms(0)),
            (ms(0), Some(ms(500)), ms(0)),
        ] {
            assert_eq!(time(wanted, left), waits, "{wanted:?} of {left:?}");
        }
    }
}
