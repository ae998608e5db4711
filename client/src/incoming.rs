//! What comes from the daemon, taken apart no further than needed.
//!
//! The frames that come by the million (`reply`, `chunk`, `end`, `event`) are
//! recognised by hand in the form in which a daemon writes them; everything
//! else, and every other form of those, goes through [`Frame::decode`]. An
//! event is not decoded here but by the task that consumes it: what is dropped
//! from a full queue costs nothing, and the reading task stays free.
//!
//! # Invariants
//!
//! - What the short way accepts, [`Frame::decode`] decodes to the same frame.

use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};
use ksi_protocol::{
    EventName, Frame,
    frame::{Error, Event, Id},
    limits::FRAME_BYTES_MAX,
};

/// One frame from the daemon.
#[derive(Debug, PartialEq)]
pub(crate) enum Incoming {
    /// `reply`, `chunk` or `end`.
    Answer { id: Id, kind: Kind, data: Bytes },
    /// An event that is still encoded.
    Event { sub: Id, seq: u64, body: Bytes },
    /// Any other frame.
    Other(Box<Frame>),
}

/// Which answer it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Reply,
    Chunk,
    End,
}

/// Takes all whole frames off `buffer`. Returns how many bytes are missing for
/// the next one, as far as that is known. On an error, `frames` holds what came
/// before it.
pub(crate) fn take(buffer: &mut BytesMut, frames: &mut Vec<Incoming>) -> Result<usize, Error> {
    let (whole, missing) = measure(buffer)?;
    if whole > 0 {
        let run = buffer.split_to(whole).freeze();
        let mut at = 0;
        while at < whole {
            let length = (&run[at..]).get_u32() as usize;
            let body = at + 4..at + 4 + length;
            at = body.end;
            frames.push(parse(&run, body)?);
        }
    }
    Ok(missing)
}

/// Length of the whole frames at the start of `buffer`, and what is missing
/// for the next. A frame over the limit is an error only once it is the first,
/// so that those before it are not lost.
fn measure(buffer: &[u8]) -> Result<(usize, usize), Error> {
    let mut whole = 0;
    loop {
        let rest = &buffer[whole..];
        let Some(prefix) = rest.first_chunk::<4>() else { return Ok((whole, 4 - rest.len())) };
        let length = u32::from_be_bytes(*prefix) as usize;
        if length > FRAME_BYTES_MAX {
            return if whole > 0 { Ok((whole, 0)) } else { Err(Error::TooLarge(length)) };
        }
        if rest.len() < 4 + length {
            return Ok((whole, 4 + length - rest.len()));
        }
        whole += 4 + length;
    }
}

fn parse(run: &Bytes, body: Range<usize>) -> Result<Incoming, Error> {
    if let Some(incoming) = parse_short(run, body.clone()) {
        return Ok(incoming);
    }
    Frame::decode(&run.slice(body)).map(|frame| match frame {
        Frame::Reply { id, data } => Incoming::Answer { id, kind: Kind::Reply, data },
        Frame::Chunk { id, data } => Incoming::Answer { id, kind: Kind::Chunk, data },
        Frame::End { id, data } => Incoming::Answer { id, kind: Kind::End, data },
        frame => Incoming::Other(Box::new(frame)),
    })
}

fn parse_short(run: &Bytes, body: Range<usize>) -> Option<Incoming> {
    let mut cursor = Cursor { bytes: &run[..body.end], at: body.start };
    if cursor.map()? != 1 {
        return None;
    }
    let kind = match cursor.text()? {
        b"event" => {
            cursor.map()?;
            let sub = cursor.field(b"sub")?;
            let seq = cursor.field(b"seq")?;
            return Some(Incoming::Event { sub, seq, body: run.slice(body) });
        }
        b"reply" => Kind::Reply,
        b"chunk" => Kind::Chunk,
        b"end" => Kind::End,
        _ => return None,
    };
    if cursor.map()? != 2 {
        return None;
    }
    let id = cursor.field(b"id")?;
    if cursor.text()? != b"data" {
        return None;
    }
    let data = cursor.bin()?;
    (cursor.at == body.end).then(|| Incoming::Answer { id, kind, data: run.slice(data) })
}

/// Decodes an event. `name` is the name of the last one: events of one
/// subscription often repeat it, and then it is neither parsed nor allocated.
pub(crate) fn decode_event(body: &Bytes, name: &mut Option<EventName>) -> Result<Event, Error> {
    if let Some(event) = decode_event_short(body, name) {
        return Ok(event);
    }
    match Frame::decode(body)? {
        Frame::Event(event) => Ok(event),
        // Only what began as an event comes here, so this is a frame of two kinds.
        _ => Err(Error::Trailing(body.len())),
    }
}

fn decode_event_short(body: &Bytes, last: &mut Option<EventName>) -> Option<Event> {
    let mut cursor = Cursor { bytes: body, at: 0 };
    if cursor.map()? != 1 || cursor.text()? != b"event" {
        return None;
    }
    let fields = cursor.map()?;
    let sub = cursor.field(b"sub")?;
    let seq = cursor.field(b"seq")?;
    let (mut event, mut data, mut origin, mut at_ms, mut correlation_id) = (None, None, None, None, None);
    for _ in 2..fields {
        match cursor.text()? {
            b"event" if event.is_none() => event = Some(named(cursor.text()?, last)?),
            b"data" if data.is_none() => data = Some(body.slice(cursor.bin()?)),
            b"origin" if origin.is_none() => origin = Some(owned(cursor.text()?)?),
            b"at_ms" if at_ms.is_none() => at_ms = Some(cursor.uint()?),
            b"correlation_id" if correlation_id.is_none() => {
                correlation_id = Some(owned(cursor.text()?)?);
            }
            _ => return None,
        }
    }
    if cursor.at != body.len() {
        return None;
    }
    Some(Event { sub, seq, event: event?, data: data?, origin: origin?, at_ms: at_ms?, correlation_id })
}

fn named(text: &[u8], last: &mut Option<EventName>) -> Option<EventName> {
    match last {
        Some(name) if name.as_str().as_bytes() == text => Some(name.clone()),
        _ => {
            let name = EventName::parse(std::str::from_utf8(text).ok()?).ok()?;
            *last = Some(name.clone());
            Some(name)
        }
    }
}

fn owned(text: &[u8]) -> Option<String> {
    std::str::from_utf8(text).ok().map(str::to_owned)
}

/// The name in the body of an event, where it is the field after `seq`.
pub(crate) fn event_name(body: &[u8]) -> Option<Range<usize>> {
    let mut cursor = Cursor { bytes: body, at: 0 };
    cursor.map()?;
    cursor.text()?;
    cursor.map()?;
    cursor.field(b"sub")?;
    cursor.field(b"seq")?;
    if cursor.text()? != b"event" {
        return None;
    }
    let length = cursor.text()?.len();
    Some(cursor.at - length..cursor.at)
}

/// Reads the few MessagePack types that the short way needs; `None` for all
/// else, and at the end of the bytes.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|taken| taken[0])
    }

    /// A big-endian number of `width` bytes.
    fn number(&mut self, width: usize) -> Option<u64> {
        self.take(width).map(|taken| taken.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
    }

    fn length(&mut self, width: usize) -> Option<usize> {
        usize::try_from(self.number(width)?).ok()
    }

    fn map(&mut self) -> Option<usize> {
        match self.byte()? {
            marker @ 0x80..=0x8f => Some(usize::from(marker & 0x0f)),
            _ => None,
        }
    }

    fn uint(&mut self) -> Option<u64> {
        match self.byte()? {
            marker @ 0..=0x7f => Some(u64::from(marker)),
            0xcc => self.number(1),
            0xcd => self.number(2),
            0xce => self.number(4),
            0xcf => self.number(8),
            _ => None,
        }
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = match self.byte()? {
            marker @ 0xa0..=0xbf => usize::from(marker & 0x1f),
            0xd9 => self.length(1)?,
            0xda => self.length(2)?,
            0xdb => self.length(4)?,
            _ => return None,
        };
        self.take(length)
    }

    fn bin(&mut self) -> Option<Range<usize>> {
        let length = match self.byte()? {
            0xc4 => self.length(1)?,
            0xc5 => self.length(2)?,
            0xc6 => self.length(4)?,
            _ => return None,
        };
        self.take(length)?;
        Some(self.at - length..self.at)
    }

    /// The number in the field `name`, which must come next.
    fn field(&mut self, name: &[u8]) -> Option<u64> {
        if self.text()? != name {
            return None;
        }
        self.uint()
    }
}

#[cfg(test)]
mod tests;
