//! What the tests of several modules share.

use std::{
    path::Path,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Wake},
    thread::{self, Thread},
    time::{Duration, Instant},
};

use ksi_sdk::{Plugin, prelude::Refusal, protocol::work::Policy, testing::FakeHost};

use crate::engine::{Engine, Options, Recovery};

/// How long a test waits for what comes at once, but on a machine that is busy.
const DEADLINE: Duration = Duration::from_secs(60);

/// Work that is tried again soon, and does not live long.
pub(crate) fn policy() -> Policy {
    Policy {
        attempts: 3,
        backoff_min_ms: 100,
        backoff_max_ms: 1_000,
        timeout_ms: 5_000,
        expires_ms: 60_000,
        keep_ms: 600_000,
        repeat: true,
    }
}

/// Waits for what another thread brings about.
pub(crate) fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come");
        thread::yield_now();
    }
}

/// Has the plugin end what it does, as somebody wished.
pub(crate) fn drain<P: Plugin>(host: &FakeHost<P>) {
    if !host.drain() {
        wait_until("the end of the drain", || host.drained());
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread. One that nobody wakes fails the test.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Arc::new(Unpark(thread::current())).into();
    let mut future = pin!(future);
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        thread::park_timeout(deadline.saturating_duration_since(Instant::now()));
        assert!(Instant::now() < deadline, "nobody woke it");
    }
}

/// Opens an engine. The threads of one that was dropped without a word may still hold the directory for a
/// moment.
pub(crate) async fn open_engine(dir: &Path, options: &Options) -> Result<(Rc<Engine>, Recovery), Refusal> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match Engine::open(dir.to_owned(), options.clone()).await {
            Err(refusal) if refusal.message.contains("in use") && Instant::now() < deadline => {
                thread::yield_now();
            }
            opened => return opened,
        }
    }
}
