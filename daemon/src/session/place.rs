//! The places at which the connections of one user are served at once, where
//! others are connected: fewer than there are threads.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};

use super::pace::{Lately, Pace};

/// The places of one user.
#[derive(Debug)]
pub(super) struct Places {
    free: Semaphore,
    /// The number of the user.
    user: u64,
    pace: Pace,
    lately: Arc<Lately>,
}

impl Places {
    /// So many of them, none of them taken.
    pub(super) fn new(count: usize, user: u64, lately: Arc<Lately>) -> Self {
        Self { free: Semaphore::new(count), user, pace: Pace::new(count), lately }
    }

    /// Waits for one.
    pub(super) async fn take<'a>(&'a self, tenure: &'a Tenure) -> Option<Place<'a>> {
        // Never closed; were it, nobody would have to wait.
        let permit = self.free.acquire().await.ok()?;
        tenure.0.store(HELD, Ordering::Release);
        Some(Place { places: self, tenure, began: Instant::now(), permit: Some(permit) })
    }

    /// One that was held is lost: others get another.
    pub(super) fn lose(&self, tenure: &Tenure) {
        if tenure.0.compare_exchange(HELD, LOST, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.free.add_permits(1);
        }
    }
}

/// Whether a connection has a place now.
#[derive(Debug, Default)]
pub struct Tenure(AtomicU8);

const NONE: u8 = 0;
const HELD: u8 = 1;
/// Others have got another for it.
const LOST: u8 = 2;

/// A place at which one connection is served, and since when it is.
#[derive(Debug)]
pub struct Place<'a> {
    places: &'a Places,
    tenure: &'a Tenure,
    began: Instant,
    /// Taken only at the end.
    permit: Option<SemaphorePermit<'a>>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        // One that was given up for lost and comes back is no place more.
        if self.tenure.0.swap(NONE, Ordering::AcqRel) == LOST
            && let Some(permit) = self.permit.take()
        {
            permit.forget();
        }
    }
}

impl Place<'_> {
    /// The turn is over. Others get the place, after a pause where this user is
    /// served all the time and somebody else is served, too.
    pub async fn leave(self, now_ms: u64) {
        let Places { lately, pace, user, .. } = self.places;
        if lately.serve(*user, now_ms) {
            let pause = pace.charge(self.began, Instant::now());
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
    }
}
