//! Events for many: the part that all receivers share is encoded once.
//!
//! An event frame begins with its subscription and sequence number, which
//! differ for each receiver; [`tail`] is everything after them. The bytes are
//! those that [`crate::Frame::encode`] writes, and a test holds them to it.

use bytes::{Bytes, BytesMut};
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
    // Length prefix, kind, number of fields, and two fields of at most 13 bytes.
    let mut head = [0; 40];
    head[4..11].copy_from_slice(b"\x81\xa5event");
    head[11] = 0x80 | (tail.fields + 2);
    head[12..16].copy_from_slice(b"\xa3sub");
    let mut end = put_uint(&mut head, 16, sub);
    head[end..end + 4].copy_from_slice(b"\xa3seq");
    end = put_uint(&mut head, end + 4, seq);
    // A tail comes from a frame or a plugin's message, so it is far below 4 GiB.
    let body = u32::try_from(end - 4 + tail.bytes.len()).unwrap_or(u32::MAX);
    head[..4].copy_from_slice(&body.to_be_bytes());
    buffer.reserve(end + tail.bytes.len());
    buffer.extend_from_slice(&head[..end]);
    buffer.extend_from_slice(&tail.bytes);
}

/// Writes a number in its shortest form; where it ends.
fn put_uint(head: &mut [u8; 40], at: usize, value: u64) -> usize {
    let (marker, bytes) = match value {
        0..=0x7f => {
            head[at] = value as u8;
            return at + 1;
        }
        0x80..=0xff => (0xcc, 1),
        0x100..=0xffff => (0xcd, 2),
        0x1_0000..=0xffff_ffff => (0xce, 4),
        _ => (0xcf, 8),
    };
    head[at] = marker;
    head[at + 1..at + 1 + bytes].copy_from_slice(&value.to_be_bytes()[8 - bytes..]);
    at + 1 + bytes
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
                    tenant: None,
                    chain: None,
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
