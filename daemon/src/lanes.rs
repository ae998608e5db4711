//! Lanes: who is served by which threads.
//!
//! The daemon's own threads serve the clients of its owner, the links of plugins
//! and itself. Every other user is served by one of a few lanes, each a runtime with
//! threads of its own, made when it is first needed. The system gives a processor
//! at once to a thread that has slept, and not to one that has been at work: so a
//! user who keeps his threads at work makes those of others no slower.
//!
//! # Invariants
//!
//! - A lane stays once it is made, until the daemon ends, so that nobody waits
//!   for its end; there are never more than [`LANES_MAX`].

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::runtime::{Builder, Handle, Runtime};

/// Lanes beside the daemon's own threads. More users than this share them.
pub const LANES_MAX: usize = 4;

/// Time for which none is made after the system had no threads for one.
const FAILED: Duration = Duration::from_secs(60);

/// All lanes.
#[derive(Debug)]
pub struct Lanes {
    home: Handle,
    beside: Mutex<Beside>,
}

#[derive(Debug, Default)]
struct Beside {
    lanes: Vec<Lane>,
    failed: Option<Instant>,
}

#[derive(Debug)]
struct Lane {
    /// Taken only at its end.
    runtime: Option<Runtime>,
    /// One more than there are users on it.
    users: Arc<()>,
}

/// To which lane a user is assigned, as long as he is there.
#[derive(Debug)]
pub struct Assignment {
    /// Where his connections are served.
    pub threads: Handle,
    _user: Option<Arc<()>>,
}

impl Lanes {
    /// No lane yet beside these threads.
    #[must_use]
    pub fn new(home: Handle) -> Self {
        Self { home, beside: Mutex::default() }
    }

    /// The daemon's own threads.
    #[must_use]
    pub fn home(&self) -> &Handle {
        &self.home
    }

    /// Assigns a user to the lane that has the fewest, to a new one while all have
    /// some. Where the system has no thread or descriptor left, among others; at
    /// home where there are none.
    #[must_use]
    pub fn assign(&self) -> Assignment {
        let mut beside = self.lock();
        let fewest = beside.lanes.iter().map(|lane| Arc::strong_count(&lane.users) - 1).min();
        if beside.lanes.len() < LANES_MAX
            && fewest.is_none_or(|users| users > 0)
            && beside.failed.is_none_or(|failed| failed.elapsed() > FAILED)
        {
            // As many as at home: a plugin that hangs takes one away here, too.
            match Lane::new(beside.lanes.len() + 1, self.home.metrics().num_workers()) {
                Some(lane) => beside.lanes.push(lane),
                None => {
                    tracing::warn!("no threads for another user, who is served by those that others use");
                    beside.failed = Some(Instant::now());
                }
            }
        }
        let lanes = &beside.lanes;
        let emptiest = lanes.iter().min_by_key(|lane| Arc::strong_count(&lane.users));
        match emptiest.and_then(|lane| Some((lane.runtime.as_ref()?, &lane.users))) {
            Some((runtime, users)) => {
                Assignment { threads: runtime.handle().clone(), _user: Some(users.clone()) }
            }
            None => Assignment { threads: self.home.clone(), _user: None },
        }
    }

    /// Has all lanes look whether something waits for them: the thread that
    /// watched the sockets of one may be lost in a plugin, and another takes its
    /// place only when there is something to do.
    pub fn rouse(&self) {
        self.home.spawn(std::future::ready(()));
        for runtime in self.lock().lanes.iter().filter_map(|lane| lane.runtime.as_ref()) {
            runtime.spawn(std::future::ready(()));
        }
    }

    /// Ends what is still served beside home, which ends by itself. Waits for
    /// nothing.
    pub fn end(&self) {
        self.lock().lanes.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Beside> {
        self.beside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lane {
    /// One with so many threads, where the system has them.
    fn new(number: usize, threads: usize) -> Option<Self> {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(threads).thread_name(format!("lane-{number}")).enable_all();
        // Without a descriptor it fails, and without a thread it panics.
        let built = catch_unwind(AssertUnwindSafe(|| builder.build()));
        let runtime = built.ok()?.ok()?;
        Some(Self { runtime: Some(runtime), users: Arc::default() })
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // A thread that hangs in a plugin must not keep the daemon.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The name of a thread that serves who is assigned so.
    async fn served_by(user: &Assignment) -> String {
        let name = user.threads.spawn(async { std::thread::current().name().unwrap_or_default().to_owned() });
        name.await.unwrap()
    }

    #[tokio::test]
    async fn users_have_lanes_of_their_own_while_there_are_any_then_share_them_evenly() {
        let lanes = Lanes::new(Handle::current());
        let mut users: Vec<Assignment> = (0..LANES_MAX).map(|_| lanes.assign()).collect();
        for (n, user) in (1..).zip(&users) {
            assert_eq!(served_by(user).await, format!("lane-{n}"));
        }
        assert_eq!(served_by(&lanes.assign()).await, "lane-1");
        // Who goes leaves room for the next, and no new lane is made.
        drop(users.remove(1));
        let next = lanes.assign();
        assert_eq!(served_by(&next).await, "lane-2");
        lanes.rouse();
        assert_eq!(lanes.lock().lanes.len(), LANES_MAX);
        lanes.end();
    }
}
