//! What happens because time passes: values and items whose time is over are
//! removed, and leases end. One task sleeps until the earliest of it, and for
//! ever where there is nothing.
//!
//! What has expired is never shown, removed or not: whoever reads looks at the
//! time too.

use std::{pin::pin, rc::Rc, time::Duration};

use futures_util::future::select;

use crate::StatePlugin;

/// Values that are removed with one write, and queues and items that are
/// looked at in one go, so that other requests get their turn in between.
const AT_ONCE: usize = 128;
/// Pause after something was in the way: a write of the same key, or a state
/// that cannot be written.
const PAUSE: Duration = Duration::from_secs(1);

impl StatePlugin {
    /// Runs as long as the plugin.
    pub(crate) async fn keep_time(self: Rc<Self>) {
        loop {
            let now_ms = self.now_ms();
            match self.next_due() {
                None => self.timing.until(|| self.next_due().is_some()).await,
                Some(at_ms) if at_ms > now_ms => {
                    let earlier = self.timing.until(|| self.next_due().is_some_and(|next| next < at_ms));
                    let sleep = self.ctx.sleep(Duration::from_millis(at_ms - now_ms));
                    select(pin!(earlier), pin!(sleep)).await;
                }
                Some(_) if self.remove_due(now_ms).await => {}
                Some(_) => self.ctx.sleep(PAUSE).await,
            }
        }
    }

    fn next_due(&self) -> Option<u64> {
        let value = self.index.borrow().next_due();
        value.into_iter().chain(self.queues.next_due()).min()
    }

    /// Removes some of what is due; answers whether nothing is in the way of
    /// more.
    async fn remove_due(self: &Rc<Self>, now_ms: u64) -> bool {
        let due = self.index.borrow().due(now_ms, AT_ONCE);
        let values = due.is_empty() || self.expire(due).await;
        self.turn_queues(now_ms, AT_ONCE).await && values
    }
}
