//! The face of lines: JSON, under the client's own ids or none.

use std::time::Duration;

use bytes::BytesMut;
use ksi_kernel::{Ask, Emission};
use ksi_protocol::{
    Code, Refusal,
    frame::{Id, Subscribe},
    json::{self, Verb},
    limits,
};
use serde_json::Value;

use super::{Face, Next, Session, verbs::after_hello};
use crate::hub::Turn;

impl Session<'_> {
    pub(super) fn lines(&mut self, input: &mut BytesMut, turn: &mut Turn<'_>, most: usize) -> Next {
        let mut done = 0;
        while let Some(end) = input[self.searched..].iter().position(|&byte| byte == b'\n') {
            let line = input.split_to(self.searched + end + 1);
            self.searched = 0;
            self.greeted = true;
            if line.len() > limits::FRAME_BYTES_MAX + 1 {
                return self.too_long();
            }
            match self.line(line.trim_ascii(), turn) {
                Next::Read => {}
                other => return other,
            }
            done += 1;
            if done == most {
                return Next::Yield;
            }
        }
        self.searched = input.len();
        if input.len() > limits::FRAME_BYTES_MAX {
            return self.too_long();
        }
        Next::Read
    }

    fn too_long(&self) -> Next {
        let message = format!("line is longer than the limit of {} bytes", limits::FRAME_BYTES_MAX);
        self.outbox.refuse(None, Refusal::new(Code::TooLarge, message));
        Next::Close
    }

    pub(super) fn line(&self, line: &[u8], turn: &mut Turn<'_>) -> Next {
        if line.is_empty() {
            return Next::Read;
        }
        match json::parse(line) {
            Ok(json::Input { id, verb: Verb::Hello { token } }) => match self.greet(token.as_ref()) {
                Ok(welcome) => {
                    self.outbox.line(&json::welcome_line(id.as_ref(), &welcome));
                    return after_hello(token.as_ref());
                }
                Err(refusal) => {
                    // Who was refused shall not go on in somebody else's name.
                    self.refuse_line(id.as_ref(), &refusal);
                    return Next::Close;
                }
            },
            Ok(input) => {
                let id = input.id.clone();
                if let Err(refusal) = self.verb(input, turn) {
                    self.refuse_line(id.as_ref(), &refusal);
                }
            }
            Err(malformed) => self.refuse_line(malformed.id.as_ref(), &malformed.refusal),
        }
        Next::Read
    }

    fn refuse_line(&self, id: Option<&Value>, refusal: &Refusal) {
        self.outbox.line(&json::refusal_line(id, refusal));
    }

    fn verb(&self, input: json::Input, turn: &mut Turn<'_>) -> Result<(), Refusal> {
        let json::Input { id, verb } = input;
        match verb {
            Verb::Request {
                event,
                data,
                timeout_ms,
                credit,
                correlation_id,
                idempotency_key,
                expires_in_ms,
            } => {
                let id = self.open(id)?;
                let ask = Ask {
                    timeout: timeout_ms.map(Duration::from_millis),
                    credit,
                    correlation_id: correlation_id.map(Into::into),
                    idempotency_key: idempotency_key.map(Into::into),
                    expires_in: expires_in_ms.map(Duration::from_millis),
                    ..Ask::new(id, event, data)
                };
                self.or_refuse(id, self.ask(ask, turn));
            }
            Verb::Emit { event, data, correlation_id } => {
                let emission =
                    Emission { correlation_id: correlation_id.map(Into::into), ..Emission::new(event, data) };
                let told = self.tell(emission, turn)?;
                if let Some(id) = id {
                    self.outbox.line(&serde_json::json!({"id": id, "data": {"delivered": told}}).to_string());
                }
            }
            Verb::Subscribe { pattern, class, since_seq, consumer, credit } => {
                let id = self.open(id)?;
                let subscribe = Subscribe { id, pattern, class, since_seq, consumer, credit };
                self.or_refuse(id, self.subscribe(subscribe, turn));
            }
            Verb::Unsubscribe(id) => {
                let ours = self.find(&id)?;
                self.unsubscribe(ours, turn)?;
                self.outbox.with_face(|face| {
                    if let Face::Json(lines) = face {
                        lines.close(ours);
                    }
                });
            }
            // Dealt with where the line is read.
            Verb::Hello { .. } => {}
            Verb::Cancel(id) => self.cancel(self.find(&id)?, turn),
            Verb::Credit(id, n) => self.credit(self.find(&id)?, n, turn),
        }
        Ok(())
    }

    /// A number for something that the client opens.
    fn open(&self, id: Option<Value>) -> Result<Id, Refusal> {
        self.outbox.with_face(|face| match face {
            Face::Json(lines) => lines.open(id),
            Face::Frames => Err(Refusal::new(Code::Internal, "a line on the frames face")),
        })
    }

    /// The number of something that the client has opened.
    fn find(&self, id: &Value) -> Result<Id, Refusal> {
        let found = self.outbox.with_face(|face| match face {
            Face::Json(lines) => lines.find(id),
            Face::Frames => None,
        });
        found.ok_or_else(|| Refusal::not_found("request or subscription", &id.to_string()))
    }
}
