//! The parts of a streamed answer, on their way out.

use std::{future::poll_fn, marker::PhantomData, sync::Arc, task::Poll};

use ksi_abi::Kind;
use ksi_protocol::{Code, Refusal};
use serde::Serialize;

use crate::{
    cancel::CancelToken,
    flow::Flow,
    link::{Link, Outgoing, encode, send},
};

/// Sends parts of an answer of type `C`. May be cloned and moved to a thread.
///
/// An asker may say how many parts it has room for. A handler that can wait
/// does so before each part, with [`Chunks::ready`] or, on a thread of
/// [`crate::Ctx::spawn_blocking`], with [`Chunks::wait_ready`]; what it sends
/// without waiting is kept for the asker by the daemon, within limits.
///
/// ```
/// # use ksi_sdk::prelude::*;
/// # #[derive(Serialize, JsonSchema)] struct Line { text: String }
/// async fn lines(ctx: &Ctx, out: &Chunks<Line>) -> Result<(), Refusal> {
///     for n in 0..3 {
///         out.ready().await;
///         out.send(&Line { text: format!("line {n}") })?;
///     }
///     // The same from a thread.
///     let more = out.clone();
///     ctx.spawn_blocking(move || {
///         more.wait_ready();
///         more.send(&Line { text: "line 3".into() })
///     })
///     .await?
/// }
/// ```
pub struct Chunks<C> {
    link: Arc<dyn Link>,
    token: u64,
    cancel: CancelToken,
    /// What its asker has room for; `None` for any number.
    flow: Option<Arc<Flow>>,
    chunk: PhantomData<fn(C)>,
}

impl<C> Clone for Chunks<C> {
    fn clone(&self) -> Self {
        Self {
            link: self.link.clone(),
            token: self.token,
            cancel: self.cancel.clone(),
            flow: self.flow.clone(),
            chunk: PhantomData,
        }
    }
}

impl<C: Serialize> Chunks<C> {
    pub(crate) fn new(link: Arc<dyn Link>, token: u64, cancel: CancelToken, flow: Option<Arc<Flow>>) -> Self {
        Self { link, token, cancel, flow, chunk: PhantomData }
    }

    /// Sends one part, whether its asker has room or not.
    ///
    /// # Errors
    ///
    /// `cancelled` once nobody waits for the answer, or the handler has ended.
    pub fn send(&self, chunk: &C) -> Result<(), Refusal> {
        self.send_raw(&encode(chunk)?)
    }

    /// The same with a payload that is passed on as it is.
    ///
    /// # Errors
    ///
    /// As [`Chunks::send`].
    pub fn send_raw(&self, payload: &[u8]) -> Result<(), Refusal> {
        if self.cancel.is_cancelled() {
            return Err(Refusal::new(Code::Cancelled, "the request is gone"));
        }
        if let Some(flow) = &self.flow {
            flow.take();
        }
        send(&self.link, &Outgoing { payload, ..Outgoing::new(Kind::Chunk, self.token) })
    }

    /// Waits until the asker has room for a part: at once where it did not say
    /// how many it takes, or once the request is gone, which [`Chunks::send`]
    /// then says. Clones that wait at the same time are all let go by room for
    /// one.
    pub async fn ready(&self) {
        let Some(flow) = &self.flow else { return };
        poll_fn(|cx| match self.cancel.is_cancelled() {
            true => Poll::Ready(()),
            false => flow.poll_room(cx),
        })
        .await;
    }

    /// [`Chunks::ready`] for a thread, which it blocks. Never for the thread of
    /// a handler: nothing could ever let it go.
    pub fn wait_ready(&self) {
        if let Some(flow) = self.flow.as_ref().filter(|_| !self.cancel.is_cancelled()) {
            flow.wait_for_room();
        }
    }
}
