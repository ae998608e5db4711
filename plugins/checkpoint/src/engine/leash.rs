//! Ends an engine whose owner has panicked: nobody calls or drops that one again, and its threads would keep the
//! directory from the next one for ever.

use std::sync::{Arc, Weak, mpsc::SyncSender};

use super::{shared::Shared, thread::Job};

/// Ends an engine from outside; keeps nothing of it alive.
pub struct Leash {
    shared: Weak<Shared>,
    jobs: Weak<SyncSender<Job>>,
}

impl Leash {
    pub(super) fn new(shared: &Arc<Shared>, jobs: &Arc<SyncSender<Job>>) -> Self {
        Self { shared: Arc::downgrade(shared), jobs: Arc::downgrade(jobs) }
    }

    /// Nothing is committed any more from now on. The checkpointer's thread syncs what was, makes no
    /// checkpoint of it, and lets go of the directory. Does not wait for that.
    pub fn end(self) {
        let (Some(shared), Some(jobs)) = (self.shared.upgrade(), self.jobs.upgrade()) else { return };
        shared.abandon();
        // Where the line is full the checkpointer is awake, and sees it after the job that it has.
        let _ = jobs.try_send(Job::Look);
    }
}
