//! Server-sent events: bytes in, events out.
//!
//! Lines end as the standard says (`\n`, `\r\n`, `\r`), however the bytes are
//! cut; text is decoded line by line, so that a character torn between two reads
//! is whole again. What stands at the end without its line end or its empty line
//! is not an event.
//!
//! # Invariants
//!
//! - No more is held than one read and one event of `bytes_max`.

use std::ops::Range;

/// An event of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    /// Its name; empty where it has none.
    pub name: String,
    /// Its data: all its lines.
    pub data: String,
}

/// Why a stream cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// A line, or an event, is larger than it may be.
    #[error("a line of the stream has more than {0} bytes")]
    TooLong(usize),
    /// A line is no UTF-8.
    #[error("a line of the stream is no UTF-8")]
    NotText,
}

/// Takes events off a stream.
#[derive(Debug)]
pub struct Decoder {
    bytes_max: usize,
    /// What was read and not taken yet, from `at`.
    buffer: Vec<u8>,
    at: usize,
    /// How much of that is known to hold no line end.
    searched: usize,
    /// The last line ended with `\r`, so a `\n` that follows belongs to it.
    after_return: bool,
    /// No line was seen yet: a byte order mark may come.
    at_start: bool,
    event: Event,
    has_data: bool,
}

impl Decoder {
    /// A decoder for lines and events of at most so many bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            buffer: Vec::new(),
            at: 0,
            searched: 0,
            after_return: false,
            at_start: true,
            event: Event::default(),
            has_data: false,
        }
    }

    /// Takes what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.at);
        self.at = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next event, or `None` until more was read.
    ///
    /// # Errors
    ///
    /// A stream that cannot be understood; nothing comes after that.
    pub fn take(&mut self) -> Result<Option<Event>, Flaw> {
        while let Some(line) = self.line() {
            let text = std::str::from_utf8(&self.buffer[line]).map_err(|_| Flaw::NotText)?;
            let text = if std::mem::take(&mut self.at_start) {
                text.strip_prefix('\u{feff}').unwrap_or(text)
            } else {
                text
            };
            if text.len() > self.bytes_max {
                return Err(Flaw::TooLong(self.bytes_max));
            }
            if text.is_empty() {
                let event = std::mem::take(&mut self.event);
                if std::mem::take(&mut self.has_data) {
                    return Ok(Some(event));
                }
                continue;
            }
            let (field, value) = text.split_once(':').unwrap_or((text, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => value.clone_into(&mut self.event.name),
                "data" => {
                    if std::mem::replace(&mut self.has_data, true) {
                        self.event.data.push('\n');
                    }
                    self.event.data.push_str(value);
                }
                // Comments, and what is for browsers that come again.
                _ => {}
            }
            if self.event.data.len() > self.bytes_max {
                return Err(Flaw::TooLong(self.bytes_max));
            }
        }
        if self.buffer.len() - self.at > self.bytes_max {
            return Err(Flaw::TooLong(self.bytes_max));
        }
        Ok(None)
    }

    /// Takes the next whole line off the buffer, and says where it lies without
    /// its end.
    fn line(&mut self) -> Option<Range<usize>> {
        if self.after_return && self.at < self.buffer.len() {
            self.after_return = false;
            self.at += usize::from(self.buffer[self.at] == b'\n');
        }
        let from = self.at + std::mem::take(&mut self.searched);
        let found = self.buffer.get(from..)?.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
        let Some(end) = found.map(|found| from + found) else {
            self.searched = self.buffer.len() - self.at;
            return None;
        };
        let line = self.at..end;
        self.after_return = self.buffer[end] == b'\r';
        self.at = end + 1;
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(pieces: &[&[u8]], bytes_max: usize) -> Result<Vec<(String, String)>, Flaw> {
        let mut decoder = Decoder::new(bytes_max);
        let mut events = Vec::new();
        for piece in pieces {
            decoder.push(piece);
            while let Some(event) = decoder.take()? {
                events.push((event.name, event.data));
            }
        }
        Ok(events)
    }

    fn event(name: &str, data: &str) -> (String, String) {
        (name.to_owned(), data.to_owned())
    }

    #[test]
    fn fields_comments_and_line_ends_are_read_as_the_standard_says() {
        let stream = "\u{feff}data: a\n\n: ping\n\nevent: e\r\ndata:b\r\ndata\r\ndata:  c\r\n\r\nid: 1\rretry: 5\r\
            event: lost\r\rdata: d\r\rdata: never ended\n";
        let expected = vec![event("", "a"), event("e", "b\n\n c"), event("", "d")];
        assert_eq!(all(&[stream.as_bytes()], 1000).unwrap(), expected);
    }

    #[test]
    fn a_line_that_is_too_long_is_refused_before_its_end_has_come() {
        let flaw = Err(Flaw::TooLong(10));
        assert_eq!(all(&[b"data: 0123456"], 10), flaw);
        assert_eq!(all(&[b"data: 0123\n\n"], 10), Ok(vec![event("", "0123")]));
        assert_eq!(all(&[b"data: 01234\n\n"], 10), flaw);
        assert_eq!(all(&[b"data: 012\ndata: 345\ndata: 678\n\n"], 10), flaw, "nor one in many lines");
    }

    #[test]
    fn what_is_no_text_is_refused() {
        assert_eq!(all(&[b"data: \xff\n"], 100), Err(Flaw::NotText));
    }

    proptest! {
        /// However a stream is cut, in the middle of characters and line ends
        /// too, it holds the same events.
        #[test]
        fn where_a_stream_is_cut_does_not_matter(
            texts in prop::collection::vec("[a-zé漢🎉 :]{0,9}", 1..6),
            ends in prop::collection::vec(prop::sample::select(vec!["\n", "\r\n", "\r"]), 6),
            cuts in prop::collection::vec(0_usize..400, 0..12),
        ) {
            let mut stream = String::new();
            for (text, end) in texts.iter().zip(&ends) {
                stream += &format!("event: {text}{end}data: {text}{end}{end}");
            }
            let bytes = stream.as_bytes();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut % (bytes.len() + 1)).collect();
            cuts.sort_unstable();
            cuts.push(bytes.len());
            let mut from = 0;
            let pieces: Vec<&[u8]> =
                cuts.into_iter().map(|cut| &bytes[std::mem::replace(&mut from, cut)..cut]).collect();
            let expected: Vec<_> = texts.iter().map(|text| event(text, text)).collect();
            prop_assert_eq!(all(&pieces, 4096).unwrap(), expected);
        }
    }
}
