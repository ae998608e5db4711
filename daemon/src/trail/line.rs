//! A record as a line of the trail, and many of them as what the plugin that keeps
//! it is asked to write.

use ksi_protocol::{
    Bytes,
    audit::{Append, Lost, Record, Repeated},
};

use super::queue::Waiting;

/// A record as it is written.
pub(super) struct Line {
    text: String,
    /// What is written in its place where it cannot be; nothing in the place of that.
    pub(super) else_lost: Option<Lost>,
}

impl From<Waiting> for Line {
    fn from(waiting: Waiting) -> Self {
        let (record, else_lost) = match waiting {
            Waiting::Note(note, _) => {
                let (allowed, denied) = (note.allowed.into(), (!note.allowed).into());
                let lost = Lost { at_ms: note.at_ms, allowed, denied };
                (Record::Decision(note.into()), Some(lost))
            }
            Waiting::Repeated(repeated) => {
                let Repeated { at_ms, allowed, denied, .. } = repeated;
                (Record::Repeated(repeated), Some(Lost { at_ms, allowed, denied }))
            }
            Waiting::Lost(lost) => (Record::Lost(lost), None),
        };
        Self { text: record.line(), else_lost }
    }
}

pub(super) fn append(lines: &[Line]) -> Bytes {
    let append = Append { records: lines.iter().map(|line| line.text.clone()).collect() };
    ksi_protocol::encode(&append).expect("texts have a form in MessagePack")
}
