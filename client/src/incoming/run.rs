//! Events of one subscription that arrived together.
//!
//! They stay as they lie in the buffer that one read has filled: queueing,
//! dropping and counting them costs the same for one as for a thousand, and
//! only who consumes them decodes them.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use ksi_protocol::{
    EventName, Frame,
    frame::{Error, Event, Id},
};

use super::Cursor;

/// Bytes of a length prefix.
const PREFIX: usize = 4;

/// Events with sequence numbers that follow each other; in a queue, one or
/// more.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Run {
    /// Whole frames, with their length prefixes.
    frames: Bytes,
    /// Sequence number of the first.
    first: u64,
    count: usize,
}

/// Name and origin of the last event that was decoded. Those of one
/// subscription often repeat them, and then share them.
#[derive(Debug, Default)]
pub(crate) struct Last {
    name: Option<EventName>,
    origin: Option<Arc<str>>,
}

impl Run {
    /// The run that begins at `at` in whole frames, and its subscription.
    /// `None` where no event in the usual form is there.
    pub(crate) fn find(frames: &Bytes, at: usize) -> Option<(Id, Self)> {
        let (mut cursor, mut end) = body(frames, at)?;
        let Head { sub, seq: first, .. } = cursor.head()?;
        let mut count = 1;
        while let Some((mut cursor, next_end)) = body(frames, end)
            && let Some(head) = cursor.head()
            && head.sub == sub
            && first.checked_add(count as u64) == Some(head.seq)
        {
            end = next_end;
            count += 1;
        }
        Some((sub, Self { frames: frames.slice(at..end), first, count }))
    }

    /// How many events there are.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Bytes that they take.
    pub(crate) fn bytes(&self) -> usize {
        self.frames.len()
    }

    /// The first and the last sequence number.
    pub(crate) fn span(&self) -> (u64, u64) {
        (self.first, self.first + (self.count as u64).saturating_sub(1))
    }

    /// Copies them out of the buffer that they arrived in, so that it is free.
    pub(crate) fn detach(&mut self) {
        self.frames = Bytes::copy_from_slice(&self.frames);
    }

    /// The name of the first one.
    pub(crate) fn name(&self) -> Option<Bytes> {
        let (mut cursor, _) = body(&self.frames, 0)?;
        cursor.head()?;
        cursor.skip(b"\xa5event")?;
        cursor.text().map(|name| self.frames.slice_ref(name))
    }

    /// Takes off the first event, undecoded.
    pub(crate) fn pop(&mut self) -> Option<Self> {
        let (_, end) = body(&self.frames, 0)?;
        let one = Self { frames: self.frames.split_to(end), first: self.first, count: 1 };
        self.first += 1;
        self.count -= 1;
        Some(one)
    }

    /// Takes off the first event and decodes it.
    pub(crate) fn decode(&mut self, last: &mut Last) -> Option<Result<Event, Error>> {
        let (mut cursor, end) = body(&self.frames, 0)?;
        let event = match cursor.event(&self.frames, last) {
            Some(event) => Ok(event),
            None => decode_long(&self.frames.slice(PREFIX..end)),
        };
        self.frames.advance(end);
        if self.frames.is_empty() {
            // What is empty would still hold the buffer.
            self.frames = Bytes::new();
        }
        self.first += 1;
        self.count -= 1;
        Some(event)
    }
}

fn decode_long(body: &Bytes) -> Result<Event, Error> {
    match Frame::decode(body)? {
        Frame::Event(event) => Ok(event),
        // Only what began as an event comes here, so this is a frame of two kinds.
        _ => Err(Error::Trailing(body.len())),
    }
}

/// The body of the frame at `at`, and where it ends.
fn body(frames: &[u8], at: usize) -> Option<(Cursor<'_>, usize)> {
    let rest = frames.get(at..)?;
    let (prefix, rest) = rest.split_first_chunk::<PREFIX>()?;
    let length = u32::from_be_bytes(*prefix) as usize;
    Some((Cursor(rest.get(..length)?), at + PREFIX + length))
}

/// What an event begins with.
struct Head {
    fields: u8,
    sub: Id,
    seq: u64,
}

impl Cursor<'_> {
    fn head(&mut self) -> Option<Head> {
        self.skip(b"\x81\xa5event")?;
        let fields = self.map()?;
        self.skip(b"\xa3sub")?;
        let sub = self.uint()?;
        self.skip(b"\xa3seq")?;
        Some(Head { fields, sub, seq: self.uint()? })
    }

    /// An event with its fields in the order in which a daemon writes them.
    pub(super) fn event(&mut self, frames: &Bytes, last: &mut Last) -> Option<Event> {
        let Head { fields, sub, seq } = self.head()?;
        self.skip(b"\xa5event")?;
        let event = last.name(self.text()?)?;
        self.skip(b"\xa4data")?;
        let data = self.bin()?;
        self.skip(b"\xa6origin")?;
        let origin = last.origin(self.text()?)?;
        self.skip(b"\xa5at_ms")?;
        let at_ms = self.uint()?;
        let correlation_id = match fields {
            6 => None,
            7 => {
                self.skip(b"\xaecorrelation_id")?;
                Some(std::str::from_utf8(self.text()?).ok()?.to_owned())
            }
            _ => return None,
        };
        if !self.0.is_empty() {
            return None;
        }
        Some(Event {
            sub,
            seq,
            event,
            data: frames.slice_ref(data),
            origin,
            at_ms,
            correlation_id,
            tenant: None,
            chain: None,
        })
    }
}

impl Last {
    fn name(&mut self, text: &[u8]) -> Option<EventName> {
        match &self.name {
            Some(name) if name.as_str().as_bytes() == text => {}
            _ => self.name = Some(EventName::parse(std::str::from_utf8(text).ok()?).ok()?),
        }
        self.name.clone()
    }

    fn origin(&mut self, text: &[u8]) -> Option<Arc<str>> {
        match &self.origin {
            Some(origin) if origin.as_bytes() == text => {}
            _ => self.origin = Some(std::str::from_utf8(text).ok()?.into()),
        }
        self.origin.clone()
    }
}
