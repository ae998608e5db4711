//! Events for many: the part that all receivers share is encoded once.
//!
//! An event frame begins with its subscription and sequence number, which
//! differ for each receiver; [`tail`] is everything after them. The bytes are
//! those that [`crate::Frame::encode`] writes, and a test holds them to it.

use bytes::{BufMut, Bytes, BytesMut};
use rmp::encode::{ByteBuf, write_bin, write_str, write_uint};

use crate::frame::Id;

/// The shared part of an event frame, and how many fields it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tail {
    bytes: Bytes,
    fields: u8,
}

impl Tail {
    /// Bytes that the tail takes in a queue.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Never: a tail has a name at least.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// Encodes what all receivers of an event share.
#[must_use]
pub fn tail(event: &str, data: &[u8], origin: &str, at_ms: u64, correlation_id: Option<&str>) -> Tail {
    let mut buffer = ByteBuf::with_capacity(64 + event.len() + data.len() + origin.len());
    let text = |buffer: &mut ByteBuf, text: &str| {
        write_str(buffer, text).unwrap_or_else(|error| match error {});
    };
    text(&mut buffer, "event");
    text(&mut buffer, event);
    text(&mut buffer, "data");
    write_bin(&mut buffer, data).unwrap_or_else(|error| match error {});
    text(&mut buffer, "origin");
    text(&mut buffer, origin);
    text(&mut buffer, "at_ms");
    write_uint(&mut buffer, at_ms).unwrap_or_else(|error| match error {});
    if let Some(correlation_id) = correlation_id {
        text(&mut buffer, "correlation_id");
        text(&mut buffer, correlation_id);
    }
    let fields = 4 + u8::from(correlation_id.is_some());
    Tail { bytes: Bytes::from(buffer.into_vec()), fields }
}

/// Appends a whole event frame, length prefix first.
pub fn put(buffer: &mut BytesMut, sub: Id, seq: u64, tail: &Tail) {
    let start = buffer.len();
    buffer.put_u32(0);
    buffer.put_slice(b"\x81\xa5event");
    buffer.put_u8(0x80 | (tail.fields + 2));
    buffer.put_slice(b"\xa3sub");
    put_uint(buffer, sub);
    buffer.put_slice(b"\xa3seq");
    put_uint(buffer, seq);
    buffer.put_slice(&tail.bytes);
    // A tail comes from a frame or a plugin's message, so it is far below 4 GiB.
    let body = u32::try_from(buffer.len() - start - 4).unwrap_or(u32::MAX);
    buffer[start..start + 4].copy_from_slice(&body.to_be_bytes());
}

fn put_uint(buffer: &mut BytesMut, value: u64) {
    match value {
        0..=0x7f => buffer.put_u8(value as u8),
        0x80..=0xff => {
            buffer.put_u8(0xcc);
            buffer.put_u8(value as u8);
        }
        0x100..=0xffff => {
            buffer.put_u8(0xcd);
            buffer.put_u16(value as u16);
        }
        0x1_0000..=0xffff_ffff => {
            buffer.put_u8(0xce);
            buffer.put_u32(value as u32);
        }
        _ => {
            buffer.put_u8(0xcf);
            buffer.put_u64(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Event, Frame};

    #[test]
    fn a_shared_event_has_the_bytes_of_a_frame() {
        for seq in [1, 127, 128, 255, 256, 65_535, 65_536, u64::from(u32::MAX), u64::MAX] {
            for correlation_id in [None, Some("c".to_owned())] {
                let event = Event {
                    sub: seq / 2,
                    seq,
                    event: crate::EventName::parse("a:b").unwrap(),
                    data: crate::empty(),
                    origin: "session:1".into(),
                    at_ms: seq,
                    correlation_id: correlation_id.clone(),
                };
                let mut expected = BytesMut::new();
                Frame::Event(event).encode(&mut expected).unwrap();
                let mut shared = BytesMut::new();
                let tail = tail("a:b", &crate::empty(), "session:1", seq, correlation_id.as_deref());
                put(&mut shared, seq / 2, seq, &tail);
                assert_eq!(shared, expected, "seq {seq}");
            }
        }
    }
}
