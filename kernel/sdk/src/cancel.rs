//! Cancellation that blocking work can see.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Tells work outside the handler, on a thread for example, that nobody waits
/// for it any more. Cheap to clone and to ask.
#[derive(Debug, Clone, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// Whether the request was cancelled, or its handler has ended.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    pub(crate) fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Cancels the token when the handler's future goes, however it goes.
pub(crate) struct CancelOnDrop(pub(crate) CancelToken);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}
