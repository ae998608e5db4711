//! The trait that a plugin implements.

use std::{future::Future, rc::Rc};

use ksi_protocol::Refusal;

use crate::{context::Ctx, register::Register};

/// A plugin: one value that lives from start to stop and answers events.
pub trait Plugin: Sized + 'static {
    /// Name of the plugin, and the namespace of its events.
    const NAME: &'static str;
    /// What it does, one sentence for users.
    const ABOUT: &'static str;
    /// Whether it needs a process of its own: it opens sockets, runs a runtime,
    /// or calls native code that may abort.
    const CHILD_ONLY: bool = false;
    /// Version of the state that it keeps.
    const STATE_VERSION: u32 = 0;

    /// Makes the plugin. It is ready to answer once this returns.
    ///
    /// # Errors
    ///
    /// A refusal says why it cannot start, and what the user can do.
    fn start(ctx: &Ctx) -> Result<Self, Refusal>;

    /// Names the events that it answers, hears and emits. Runs without an
    /// instance, so it must always name the same.
    fn register(on: &mut Register<Self>);

    /// Finishes or hands back what is not tied to a request. Requests in
    /// flight are waited for by the host.
    fn drain(self: Rc<Self>, ctx: Ctx) -> impl Future<Output = ()> {
        let _ = ctx;
        std::future::ready(())
    }
}
