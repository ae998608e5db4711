//! What comes from the daemon, taken apart no further than needed.
//!
//! The frames that come by the million (`reply`, `chunk`, `end`, `event`) are
//! recognised by hand in the form in which a daemon writes them; everything
//! else, and every other form of those, goes through [`Frame::decode`]. Events
//! are not decoded here but by the task that consumes them, and those of one
//! read stay together ([`Run`]): what is dropped from a full queue costs
//! nothing, and the reading task stays free.
//!
//! # Invariants
//!
//! - What the short way accepts, [`Frame::decode`] decodes to the same frame.

mod run;

use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};
use ksi_protocol::{
    Frame,
    frame::{Error, Id},
    limits::FRAME_BYTES_MAX,
};

pub(crate) use self::run::{Last, Run};

/// One frame from the daemon, or many events of one subscription.
#[derive(Debug, PartialEq)]
pub(crate) enum Incoming {
    /// `reply`, `chunk` or `end`.
    Answer { id: Id, kind: Kind, data: Bytes },
    /// Events that are still encoded.
    Events { sub: Id, run: Run },
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
            if let Some((sub, events)) = Run::find(&run, at) {
                at += events.bytes();
                frames.push(Incoming::Events { sub, run: events });
                continue;
            }
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
    let mut cursor = Cursor(&run[body]);
    cursor.skip(b"\x81")?;
    let kind = match cursor.text()? {
        b"reply" => Kind::Reply,
        b"chunk" => Kind::Chunk,
        b"end" => Kind::End,
        _ => return None,
    };
    cursor.skip(b"\x82\xa2id")?;
    let id = cursor.uint()?;
    cursor.skip(b"\xa4data")?;
    let data = cursor.bin()?;
    cursor.0.is_empty().then(|| Incoming::Answer { id, kind, data: run.slice_ref(data) })
}

/// Reads the few MessagePack types that the short way needs; `None` for all
/// else, and at the end of the bytes.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    /// Passes over these bytes, which must come next.
    #[inline]
    fn skip<const N: usize>(&mut self, expected: &[u8; N]) -> Option<()> {
        let (found, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        (found == expected).then_some(())
    }

    #[inline]
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    #[inline]
    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*bytes)
    }

    #[inline]
    fn byte(&mut self) -> Option<u8> {
        self.bytes::<1>().map(|[byte]| byte)
    }

    /// How many entries a short map has.
    #[inline]
    fn map(&mut self) -> Option<u8> {
        match self.byte()? {
            marker @ 0x80..=0x8f => Some(marker & 0x0f),
            _ => None,
        }
    }

    #[inline]
    fn uint(&mut self) -> Option<u64> {
        Some(match self.byte()? {
            marker @ 0..=0x7f => marker.into(),
            0xcc => self.byte()?.into(),
            0xcd => u16::from_be_bytes(self.bytes()?).into(),
            0xce => u32::from_be_bytes(self.bytes()?).into(),
            0xcf => u64::from_be_bytes(self.bytes()?),
            _ => return None,
        })
    }

    #[inline]
    fn text(&mut self) -> Option<&'a [u8]> {
        let length = match self.byte()? {
            marker @ 0xa0..=0xbf => usize::from(marker & 0x1f),
            0xd9 => self.byte()?.into(),
            0xda => u16::from_be_bytes(self.bytes()?).into(),
            0xdb => u32::from_be_bytes(self.bytes()?) as usize,
            _ => return None,
        };
        self.take(length)
    }

    #[inline]
    fn bin(&mut self) -> Option<&'a [u8]> {
        let length = match self.byte()? {
            0xc4 => self.byte()?.into(),
            0xc5 => u16::from_be_bytes(self.bytes()?).into(),
            0xc6 => u32::from_be_bytes(self.bytes()?) as usize,
            _ => return None,
        };
        self.take(length)
    }
}

#[cfg(test)]
mod tests;
