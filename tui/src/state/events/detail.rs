//! One opened event as text. Made once, when it is opened, and bounded: a
//! payload of any size or shape opens at once.

use ksi_protocol::{frame::Event, json};

use super::Entry;
use crate::figures;

/// Largest payload that is decoded for a person. A larger one is shown by its
/// first bytes: nobody reads 256 KiB on a terminal.
pub(crate) const DECODED_BYTES_MAX: usize = 256 * 1024;

/// Most lines of one event; the rest is counted.
pub(crate) const LINES_MAX: usize = 2_000;

/// Longest line, in characters; a longer one goes on in the next, so that all
/// of it can be scrolled to.
const LINE_CHARS_MAX: usize = 1_000;

/// Bytes of an undecoded payload that are shown.
const HEX_BYTES: usize = 256;

/// An opened event.
#[derive(Debug)]
pub(crate) struct Detail {
    /// The text.
    pub(crate) lines: Vec<String>,
    /// Lines that are scrolled away above.
    pub(crate) scroll: usize,
}

impl Detail {
    /// Writes an entry out.
    pub(crate) fn of(entry: &Entry) -> Self {
        let mut lines = Vec::new();
        match entry {
            Entry::Mark { text, .. } => lines.push(text.clone()),
            Entry::Event(event) => write(&mut lines, event),
        }
        Self { lines, scroll: 0 }
    }
}

fn write(lines: &mut Vec<String>, event: &Event) {
    for (label, value) in [
        ("event", event.event.to_string()),
        ("origin", event.origin.to_string()),
        ("at", figures::moment(event.at_ms)),
        ("seq", event.seq.to_string()),
        ("correlation", event.correlation_id.clone().unwrap_or_else(|| "-".into())),
        ("payload", figures::bytes(event.data.len() as u64)),
    ] {
        lines.push(format!("{label:<12} {value}"));
    }
    if event.data.len() > DECODED_BYTES_MAX {
        lines.push(format!("too long to be decoded here; its first {HEX_BYTES} bytes:"));
        return hex(lines, &event.data);
    }
    match json::to_json(&event.data) {
        Ok(value) => wrapped(lines, &format!("{value:#}")),
        Err(refusal) => {
            lines.push(format!("not MessagePack ({}); its first {HEX_BYTES} bytes:", refusal.message));
            hex(lines, &event.data);
        }
    }
}

fn wrapped(lines: &mut Vec<String>, text: &str) {
    let mut rest = text.lines().count();
    for line in text.lines() {
        if lines.len() >= LINES_MAX {
            lines.push(format!("… {} more lines", figures::count(rest as u64)));
            return;
        }
        rest -= 1;
        let mut line = line;
        while let Some((cut, _)) = line.char_indices().nth(LINE_CHARS_MAX) {
            if lines.len() >= LINES_MAX {
                break;
            }
            let (head, tail) = line.split_at(cut);
            lines.push(head.to_owned());
            line = tail;
        }
        lines.push(line.chars().take(LINE_CHARS_MAX).collect());
    }
}

fn hex(lines: &mut Vec<String>, data: &[u8]) {
    for row in data[..data.len().min(HEX_BYTES)].chunks(16) {
        let pairs: Vec<String> = row.iter().map(|byte| format!("{byte:02x}")).collect();
        let text: String =
            row.iter().map(|b| if b.is_ascii_graphic() { char::from(*b) } else { '.' }).collect();
        lines.push(format!("{:<48} {text}", pairs.join(" ")));
    }
}
