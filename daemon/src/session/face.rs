//! The two encodings of a session, on the way out.
//!
//! The frames face writes length-delimited MessagePack; the JSON face writes
//! lines, echoes the client's own ids, and gives every answer a correlation id
//! and a time.

use std::{
    collections::HashMap,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::BytesMut;
use ksi_kernel::{Answer, Delivery, Envelope};
use ksi_protocol::{
    Code, Frame, Refusal,
    frame::Id,
    json::{Heading, gap_line, refusal_line},
};
use serde_json::Value;

use crate::wire;

/// How a session writes.
#[derive(Debug)]
pub enum Face {
    /// Length-delimited MessagePack.
    Frames,
    /// JSON lines.
    Json(Lines),
}

/// What the JSON face must remember: the client's ids.
#[derive(Debug, Default)]
pub struct Lines {
    next: Id,
    /// From our ids to the client's.
    ours: HashMap<Id, Option<Value>>,
    /// From the client's ids to ours; the key is the id's JSON text.
    theirs: HashMap<String, Id>,
}

impl Lines {
    /// A number for something that the client opens, under its own id or none.
    pub fn open(&mut self, id: Option<Value>) -> Result<Id, Refusal> {
        if let Some(id) = &id
            && self.theirs.contains_key(&id.to_string())
        {
            return Err(Refusal::new(Code::Conflict, format!("id {id} is in use on this connection"))
                .hint("give each request its own id, or none"));
        }
        self.next += 1;
        if let Some(id) = &id {
            self.theirs.insert(id.to_string(), self.next);
        }
        self.ours.insert(self.next, id);
        Ok(self.next)
    }

    /// Our number for the client's id.
    #[must_use]
    pub fn find(&self, id: &Value) -> Option<Id> {
        self.theirs.get(&id.to_string()).copied()
    }

    /// Forgets an id.
    pub fn close(&mut self, id: Id) {
        if let Some(Some(theirs)) = self.ours.remove(&id) {
            self.theirs.remove(&theirs.to_string());
        }
    }

    fn id(&self, id: Id) -> Option<&Value> {
        self.ours.get(&id).and_then(Option::as_ref)
    }
}

impl Face {
    /// Appends an answer.
    pub(super) fn answer(&mut self, delivery: Delivery, buffer: &mut BytesMut) {
        let Delivery::Answer { id, token, event, answer, correlation_id } = delivery else { return };
        match self {
            Self::Frames => {
                if wire::answer(id, answer).encode(buffer).is_err() {
                    let refusal = Refusal::new(Code::TooLarge, "the answer is larger than a frame may be");
                    // A refusal of a few words always fits.
                    let _ = Frame::Refusal { id: Some(id), refusal }.encode(buffer);
                }
            }
            Self::Json(lines) => {
                let last = answer.is_last();
                let made = format!("k{token:x}");
                let heading = Heading {
                    id: lines.id(id),
                    event: event.as_str(),
                    correlation_id: correlation_id.as_deref().unwrap_or(&made),
                    at_ms: wall_ms(),
                };
                let line = match answer {
                    Answer::Reply(data) => heading.reply(&data),
                    Answer::Chunk(data) => heading.chunk(&data),
                    Answer::End(data) => heading.end(&data),
                    Answer::Accepted { request_id, seq } => heading.accepted(&request_id, seq),
                    Answer::Refusal(refusal) => heading.refusal(&refusal),
                };
                put_line(buffer, &line);
                if last {
                    lines.close(id);
                }
            }
        }
    }

    /// Appends an event; the frames face has its own way for these.
    pub(super) fn event(&mut self, sub: Id, seq: u64, envelope: &Envelope, buffer: &mut BytesMut) {
        let Self::Json(lines) = self else { return };
        let heading = Heading {
            id: None,
            event: envelope.event.as_str(),
            correlation_id: envelope.correlation_id.as_deref().unwrap_or(""),
            at_ms: envelope.at_ms,
        };
        let sub = lines.id(sub).cloned().unwrap_or_else(|| sub.into());
        put_line(buffer, &heading.event(&sub, seq, &envelope.origin, &envelope.data));
    }

    /// Appends a frame of the daemon's own: a welcome, a gap, a refusal, the
    /// answer to a subscription.
    pub(super) fn frame(&mut self, frame: &Frame, buffer: &mut BytesMut) {
        match self {
            // These are small.
            Self::Frames => _ = frame.encode(buffer),
            Self::Json(lines) => match frame {
                Frame::Gap(gap) => {
                    let sub = lines.id(gap.sub).cloned().unwrap_or_else(|| gap.sub.into());
                    put_line(buffer, &gap_line(&sub, gap));
                }
                Frame::Refusal { id, refusal } => {
                    let theirs = id.and_then(|id| lines.id(id));
                    put_line(buffer, &refusal_line(theirs, refusal));
                    if let Some(id) = id {
                        lines.close(*id);
                    }
                }
                Frame::Reply { id, data } => {
                    let sub = lines.id(*id).cloned().unwrap_or_else(|| (*id).into());
                    let data = ksi_protocol::json::to_json(data).unwrap_or_default();
                    put_line(buffer, &serde_json::json!({ "id": sub, "data": data }).to_string());
                }
                _ => {}
            },
        }
    }
}

pub(super) fn put_line(buffer: &mut BytesMut, line: &str) {
    buffer.extend_from_slice(line.as_bytes());
    buffer.extend_from_slice(b"\n");
}

fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
