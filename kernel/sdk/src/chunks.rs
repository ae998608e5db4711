//! The parts of a streamed answer, on their way out.

use std::{marker::PhantomData, sync::Arc};

use ksi_abi::Kind;
use ksi_protocol::{Code, Refusal};
use serde::Serialize;

use crate::{
    cancel::CancelToken,
    link::{Link, Outgoing, encode, send},
};

/// Sends parts of an answer of type `C`. May be cloned and moved to a thread.
pub struct Chunks<C> {
    link: Arc<dyn Link>,
    token: u64,
    cancel: CancelToken,
    chunk: PhantomData<fn(C)>,
}

impl<C> Clone for Chunks<C> {
    fn clone(&self) -> Self {
        Self { link: self.link.clone(), token: self.token, cancel: self.cancel.clone(), chunk: PhantomData }
    }
}

impl<C: Serialize> Chunks<C> {
    pub(crate) fn new(link: Arc<dyn Link>, token: u64, cancel: CancelToken) -> Self {
        Self { link, token, cancel, chunk: PhantomData }
    }

    /// Sends one part.
    ///
    /// # Errors
    ///
    /// `cancelled` once nobody waits for the answer, or the handler has ended.
    pub fn send(&self, chunk: &C) -> Result<(), Refusal> {
        if self.cancel.is_cancelled() {
            return Err(Refusal::new(Code::Cancelled, "the request is gone"));
        }
        let payload = encode(chunk)?;
        send(&self.link, &Outgoing { payload: &payload, ..Outgoing::new(Kind::Chunk, self.token) })
    }
}
