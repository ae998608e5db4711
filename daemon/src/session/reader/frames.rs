//! The face of frames: length-delimited MessagePack.

use bytes::{Bytes, BytesMut};
use ksi_kernel::Emission;
use ksi_protocol::{
    Code, Frame, PROTOCOL_VERSION, Refusal,
    frame::{self, Hello},
    json,
};

use super::{Next, READ_BYTES, Session, verbs::after_hello};
use crate::{hub::Turn, wire::ask};

impl Session<'_> {
    pub(super) fn frames(&mut self, input: &mut BytesMut, turn: &mut Turn<'_>, most: usize) -> Next {
        for _ in 0..most {
            let before = input.len();
            match Frame::split(input) {
                Ok(Some(frame)) => {
                    let frame = compact(frame, before - input.len());
                    match self.frame(frame, turn) {
                        Next::Read => {}
                        other => return other,
                    }
                }
                Ok(None) => return Next::Read,
                Err(error) => {
                    let broken = matches!(error, frame::Error::TooLarge(_));
                    self.outbox.refuse(None, error.into());
                    if broken || !self.greeted {
                        return Next::Close;
                    }
                }
            }
        }
        Next::Yield
    }

    fn frame(&mut self, frame: Frame, turn: &mut Turn<'_>) -> Next {
        if !self.greeted {
            return self.hello(&frame);
        }
        match frame {
            Frame::Request(request) => self.or_refuse(request.id, self.ask(ask(request), turn)),
            Frame::Emit(emit) => {
                let emission = Emission {
                    correlation_id: emit.correlation_id.map(Into::into),
                    ..Emission::new(emit.event, emit.data)
                };
                match (self.tell(emission, turn), emit.id) {
                    (Ok(told), Some(id)) => {
                        let data = serde_json::json!({ "delivered": told });
                        let data = json::from_json(&data).unwrap_or_else(|_| ksi_protocol::empty());
                        self.outbox.frame(&Frame::Reply { id, data });
                    }
                    (Ok(_), None) => {}
                    (Err(refusal), id) => self.outbox.refuse(id, refusal),
                }
            }
            Frame::Subscribe(subscribe) => {
                self.or_refuse(subscribe.id, self.subscribe(subscribe, turn));
            }
            Frame::Unsubscribe { id } => self.or_refuse(id, self.unsubscribe(id, turn)),
            Frame::Cancel { id } => self.cancel(id, turn),
            Frame::Credit { id, n } => self.credit(id, n, turn),
            _ => self.outbox.refuse(
                None,
                Refusal::new(Code::InvalidFrame, "a client may not send this frame")
                    .hint("request, emit, subscribe, unsubscribe, cancel and credit are for clients"),
            ),
        }
        Next::Read
    }

    fn hello(&mut self, frame: &Frame) -> Next {
        match self.welcomed(frame) {
            Ok(next) => {
                self.greeted = true;
                next
            }
            Err(refusal) => {
                self.outbox.refuse(None, refusal);
                Next::Close
            }
        }
    }

    fn welcomed(&self, frame: &Frame) -> Result<Next, Refusal> {
        let Frame::Hello(Hello { version, client, token, .. }) = frame else {
            return Err(Refusal::new(Code::InvalidFrame, "the first frame must be `hello`"));
        };
        if *version != PROTOCOL_VERSION {
            let message = format!("client speaks protocol {version}, this daemon speaks {PROTOCOL_VERSION}");
            return Err(
                Refusal::new(Code::Conflict, message).hint("install client and daemon of one version")
            );
        }
        let welcome = self.greet(token.as_ref())?;
        let principal = &*self.seat.port().authority.caller.principal.name;
        tracing::debug!(session = welcome.session, client, principal, "client connected");
        self.outbox.frame(&Frame::Welcome(welcome));
        Ok(after_hello(token.as_ref()))
    }
}

/// A payload that is a small part of a large frame shall not keep all of it in
/// memory for as long as it waits somewhere.
fn compact(frame: Frame, frame_bytes: usize) -> Frame {
    if frame_bytes <= READ_BYTES {
        return frame;
    }
    let small = |data: Bytes| if data.len() < frame_bytes / 2 { Bytes::copy_from_slice(&data) } else { data };
    match frame {
        Frame::Request(request) => {
            Frame::Request(frame::Request { data: small(request.data.clone()), ..request })
        }
        Frame::Emit(emit) => Frame::Emit(frame::Emit { data: small(emit.data.clone()), ..emit }),
        other => other,
    }
}
