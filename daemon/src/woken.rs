//! Whether this thread has woken a task since it last let a plugin run.
//!
//! The runtime keeps the task that a thread has woken last in a slot of that
//! thread's own, from which no other thread takes it. A plugin that does not
//! come back would take that task with it. So whoever wakes a task notes it
//! here, and before a plugin runs in this process the slot is given something
//! harmless instead, which moves the task to where others find it. Most
//! requests wake nobody, and cost nothing.

use std::cell::Cell;

thread_local! {
    static WOKEN: Cell<bool> = const { Cell::new(false) };
    static HAS_SLOT: Cell<bool> = const { Cell::new(true) };
}

/// This thread has woken a task.
pub fn note() {
    WOKEN.set(HAS_SLOT.get());
}

/// Runs something on a thread that is none of the runtime's workers, so that
/// what it wakes waits in no slot of its own.
pub fn without_slot(run: impl FnOnce()) {
    HAS_SLOT.set(false);
    run();
    HAS_SLOT.set(true);
}

/// Before a plugin runs: frees the task that waits in this thread's slot.
pub fn free() {
    if WOKEN.take()
        && let Ok(runtime) = tokio::runtime::Handle::try_current()
    {
        runtime.spawn(std::future::ready(()));
    }
}
