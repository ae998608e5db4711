//! The trait that a plugin implements.

use std::{
    future::{Future, ready},
    rc::Rc,
};

use ksi_protocol::{Code, Refusal};

use crate::{
    context::Ctx,
    register::Register,
    state::{Batch, State},
};

/// A plugin: one value that lives from start to stop and answers events.
///
/// It begins in three steps: `start` makes it, `migrate` brings its state up to
/// date where that is older than the plugin, `open` reads what it needs. Then
/// it is ready, and gets its first event.
pub trait Plugin: Sized + 'static {
    /// Name of the plugin, and the namespace of its events.
    const NAME: &'static str;
    /// What it does, one sentence for users.
    const ABOUT: &'static str;
    /// Whether it needs a process of its own: it opens sockets, runs a runtime,
    /// or calls native code that may abort.
    const CHILD_ONLY: bool = false;
    /// Version of the state that it keeps. Above 0 it does not open before the
    /// state is of this version; at 0 nobody looks.
    const STATE_VERSION: u32 = 0;

    /// Makes the plugin.
    ///
    /// # Errors
    ///
    /// A refusal says why it cannot start, and what the user can do.
    fn start(ctx: &Ctx) -> Result<Self, Refusal>;

    /// Names the events that it answers, hears and emits. Runs without an
    /// instance, so it must always name the same.
    fn register(on: &mut Register<Self>);

    /// Brings the state from version `from` to [`Plugin::STATE_VERSION`]: reads
    /// what is there and returns what changes. The changes and the new version
    /// are written together. State that never had a version, none at all
    /// included, is of version 0.
    ///
    /// What does not fit into one batch is committed in parts before; then a
    /// migration that was broken off must be able to begin again.
    ///
    /// ```
    /// # use ksi_sdk::prelude::*;
    /// # struct Notes;
    /// impl Plugin for Notes {
    ///     const STATE_VERSION: u32 = 2;
    ///     async fn migrate(state: State, from: u32) -> Result<Batch, Refusal> {
    ///         let mut batch = state.batch();
    ///         if from == 1 {
    ///             // Version 1 kept one text.
    ///             if let Some(note) = state.get::<String>("note").await? {
    ///                 batch = batch.delete("note").put("note/1", &note.value);
    ///             }
    ///         }
    ///         Ok(batch)
    ///     }
    /// #   const NAME: &'static str = "notes";
    /// #   const ABOUT: &'static str = "Keeps notes";
    /// #   fn start(_: &Ctx) -> Result<Self, Refusal> { Ok(Self) }
    /// #   fn register(_: &mut Register<Self>) {}
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// A refusal says why the state cannot be used; the plugin does not start,
    /// and the state stays as it is. By default that of any version but 0.
    fn migrate(state: State, from: u32) -> impl Future<Output = Result<Batch, Refusal>> {
        ready(if from == 0 {
            Ok(state.batch())
        } else {
            let message = format!("plugin {} cannot read its state of version {from}", Self::NAME);
            Err(Refusal::new(Code::Conflict, message).hint("run the release of the plugin that wrote it"))
        })
    }

    /// Makes the plugin ready: reads its state, opens files, waits for what
    /// must be there. It is ready to answer once this returns; events that come
    /// earlier wait. All of it must be over within the plugin's start timeout.
    ///
    /// # Errors
    ///
    /// A refusal says why it cannot start, and what the user can do.
    fn open(self: Rc<Self>, ctx: Ctx) -> impl Future<Output = Result<(), Refusal>> {
        let _ = ctx;
        ready(Ok(()))
    }

    /// Finishes or hands back what is not tied to a request. Requests in
    /// flight are waited for by the host.
    fn drain(self: Rc<Self>, ctx: Ctx) -> impl Future<Output = ()> {
        let _ = ctx;
        ready(())
    }
}
