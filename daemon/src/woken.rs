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
}

/// This thread has woken a task.
pub fn note() {
    WOKEN.set(true);
}

/// Before a plugin runs: frees the task that waits in this thread's slot.
pub fn free(runtime: &tokio::runtime::Handle) {
    if WOKEN.take() {
        runtime.spawn(std::future::ready(()));
    }
}
