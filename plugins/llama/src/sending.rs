//! What goes out: parts of answers, once the host's queue has room for them, and
//! refusals, with the model that they are about.

use std::time::Duration;

use ksi_sdk::prelude::{Code, Ctx, Refusal, json};

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

/// A refusal for want of room, as one of this model: whoever asks for another need
/// not wait. Others stay as they are.
pub(crate) fn of_model(name: &str, mut refusal: Refusal) -> Refusal {
    if refusal.code == Code::Busy {
        let details = refusal.details.get_or_insert_with(|| json!({}));
        if let Some(details) = details.as_object_mut() {
            details.entry("model").or_insert_with(|| name.into());
        }
    }
    refusal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn want_of_room_is_told_with_the_model_that_lacks_it() {
        let busy = || Refusal::new(Code::Busy, "all are in use").retry_after_ms(500);
        assert_eq!(of_model("a", busy()), busy().details(json!({"model": "a"})));
        let known = busy().details(json!({"slots": 4}));
        assert_eq!(of_model("a", known), busy().details(json!({"slots": 4, "model": "a"})));
        let other = Refusal::new(Code::Timeout, "too late");
        assert_eq!(of_model("a", other.clone()), other);
    }
}
